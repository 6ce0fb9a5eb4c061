"""Which of Alembic's commands runs env.py: its public names do not tell (`_proxy`, the command's function)."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from alembic.runtime.environment import EnvironmentContext

from gasket.migrator.gate.callers import Caller

_WRITING = {
    "upgrade": Caller.UPGRADE,
    "downgrade": Caller.DOWNGRADE,
    "do_stamp": Caller.STAMP,
    "do_ensure_version": Caller.ENSURE_VERSION,
}


class RunningCommand(msgspec.Struct, frozen=True):
    """`writes` is its name where it changes the database: current, check and revision only look.

    `compares` is true of `check` and `revision`. `destinations` are where the command is to lead, as they were typed:
    several of a stamp, none of `ensure-version`. `start` is where the SQL that is printed starts from (`from:to`).
    """

    writes: Caller | None
    compares: bool
    destinations: tuple[str, ...]
    start: str | None


def running_command(environment: Any) -> RunningCommand:
    """The command for which env.py runs. `environment` is the module `alembic.context` as env.py imports it."""
    proxied: EnvironmentContext = environment._proxy
    options = proxied.context_opts
    function = options["fn"].__name__
    named = options.get("destination_rev") or ()
    return RunningCommand(
        writes=_WRITING.get(function),
        compares=function == "retrieve_migrations",
        destinations=(named,) if isinstance(named, str) else tuple(named),
        start=options.get("starting_rev"),
    )


def counts_from_here(target: str) -> bool:
    """Whether that is a number of steps (`-1`, `+2`): done again, it would go that much further."""
    return bool(re.fullmatch(r"(?:[^@]*@)?[+-]\d+", target))


def rest_of(target: str) -> str:
    """What to type to go on towards the target once a step failed: of a number of steps, nobody knows how many."""
    return "-1" if counts_from_here(target) else target
