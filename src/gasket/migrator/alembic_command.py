"""Which of Alembic's commands runs env.py: its public names do not tell (`_proxy`, the command's function)."""

from __future__ import annotations

import re
from typing import Any

from alembic.runtime.environment import EnvironmentContext

_COMMANDS = {
    "upgrade": "upgrade",
    "downgrade": "downgrade",
    "do_stamp": "stamp",
    "do_ensure_version": "ensure-version",
}


def command_that_writes(environment: Any) -> str | None:
    """`upgrade`, `downgrade`, `stamp` or `ensure-version`; None for one that only looks (current, check, revision).

    `environment` is the module `alembic.context` as env.py imports it.
    """
    proxied: EnvironmentContext = environment._proxy
    return _COMMANDS.get(proxied.context_opts["fn"].__name__)


def compares_with_models(environment: Any) -> bool:
    """Whether the command is `check` or `revision`."""
    proxied: EnvironmentContext = environment._proxy
    return bool(proxied.context_opts["fn"].__name__ == "retrieve_migrations")


def destinations(environment: Any) -> tuple[str, ...]:
    """Where the command is to lead, as it was typed: several for a stamp, none for `ensure-version`."""
    proxied: EnvironmentContext = environment._proxy
    named = proxied.context_opts.get("destination_rev") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def starting_point(environment: Any) -> tuple[str, ...]:
    """Where the SQL that is printed starts from, as it was typed (`from:to`); empty where nothing was."""
    proxied: EnvironmentContext = environment._proxy
    named = proxied.context_opts.get("starting_rev")
    return (named,) if named else ()


def counts_from_here(target: str) -> bool:
    """Whether that is a number of steps (`-1`, `+2`): done again, it would go that much further."""
    return bool(re.fullmatch(r"(?:[^@]*@)?[+-]\d+", target))


def rest_of(target: str) -> str:
    """What to type to go on towards the target once a step failed: of a number of steps, nobody knows how many."""
    return "-1" if counts_from_here(target) else target
