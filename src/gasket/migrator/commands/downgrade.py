"""`gasket database downgrade`."""

from __future__ import annotations

import alembic.command
import click

from gasket.migrator.commands.confirm import confirm, confirmations
from gasket.migrator.config import MigratorConfig
from gasket.migrator.gate.callers import Caller
from gasket.migrator.revisions.scripts import alembic_config
from gasket.migrator.runner import command_config


def downgrade_command(config: MigratorConfig) -> click.Command:
    """The command, for the database that `config` names."""

    @click.command("downgrade", help="Take revisions back, down to REVISION. Rows that would be dropped are archived.")
    @click.argument("revision", default="-1")
    @click.option("--sql", is_flag=True, help="Print the SQL instead of running it; REVISION is from:to.")
    @click.option("--tag", help="A text for env.py.")
    @confirmations
    def downgrade(revision: str, sql: bool, tag: str | None, **answers: bool) -> None:
        if sql:
            alembic.command.downgrade(alembic_config(config.ini), revision, sql=True, tag=tag)
            return
        options = confirm(config, Caller.DOWNGRADE, revision, **answers)
        alembic.command.downgrade(command_config(config, options), revision, tag=tag)

    downgrade.context_settings["ignore_unknown_options"] = True  # "-1" is a revision
    return downgrade
