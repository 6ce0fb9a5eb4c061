"""What the migrator changes about `litestar database`.

Advanced Alchemy's commands stay; they are changed in place, on its group itself, because the order in which
Litestar asks plugins for commands is not defined.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click
from advanced_alchemy.extensions.litestar.cli import database_group
from alembic.util import CommandError

from gasket.migrator.commands import added_commands
from gasket.migrator.connection import MigratorConfig
from gasket.migrator.loading import naming_the_file

_ADAPTED = "gasket_adapted"


def adapt_database_commands(config: MigratorConfig) -> None:
    """Add the migrator's commands, and make every refusal one line. Twice is once, for the last `config`."""
    for command in added_commands(config):
        database_group.add_command(command)
    _adapt(database_group)


def _adapt(group: click.Group) -> None:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            _adapt(command)
        elif command.callback is not None and not hasattr(command.callback, _ADAPTED):
            refused = group is database_group and name == "drop-all"
            command.callback = _refuse_in_one_line(_drop_all if refused else command.callback)
            setattr(command.callback, _ADAPTED, True)


def _refuse_in_one_line(callback: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def run(*args: Any, **options: Any) -> Any:
        try:
            with naming_the_file():
                return callback(*args, **options)
        except CommandError as refusal:
            click.echo(f"Error: {refusal}", err=True)
            sys.exit(1)

    return run


def _drop_all(**_options: Any) -> None:
    raise CommandError(
        "drop-all would drop tables behind the ledger's back, without the migration lock; nothing was changed. "
        "Run: litestar database downgrade base"
    )
