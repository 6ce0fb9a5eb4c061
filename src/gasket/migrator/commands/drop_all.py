"""The command `drop-all`: Advanced Alchemy's command of that name is refused here."""

from __future__ import annotations

import click
from alembic.util import CommandError

from gasket.migrator.command_line import database_command
from gasket.migrator.config import MigratorConfig


def drop_all_command(_config: MigratorConfig) -> click.Command:
    """The command, which takes whatever options it is given."""

    @click.command("drop-all", hidden=True, context_settings={"ignore_unknown_options": True})
    @click.argument("options", nargs=-1, type=click.UNPROCESSED)
    def drop_all(options: tuple[str, ...]) -> None:
        raise CommandError(
            "drop-all would drop tables without the migration lock and without the ledger; nothing was changed. "
            f"Run: {database_command('downgrade base')}"
        )

    return drop_all
