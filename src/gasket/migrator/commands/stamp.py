"""`gasket database stamp`."""

from __future__ import annotations

import alembic.command
import click

from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.command_line import database_command
from gasket.migrator.commands.confirm import ask, require_answer
from gasket.migrator.commands.running import look, show_target
from gasket.migrator.config import MigratorConfig
from gasket.migrator.gate.callers import Caller, Request
from gasket.migrator.gate.checks import pass_gate
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.runner import command_config


def stamp_command(config: MigratorConfig) -> click.Command:
    """The command, for the database that `config` names."""

    @click.command("stamp", help="Record REVISION without running it.")
    @click.argument("revision")
    @click.option("--sql", is_flag=True, help="Print the SQL instead of running it.")
    @click.option("--tag", help="A text for env.py.")
    @click.option("--purge", is_flag=True, help="Empty the version table first.")
    @click.option("--no-prompt", is_flag=True, help="Do not ask.")
    def stamp(revision: str, sql: bool, tag: str | None, purge: bool, no_prompt: bool) -> None:
        if not sql:
            require_answer(no_prompt=no_prompt)
            show_target(config)
            revisions = configured_revisions(config.ini)
            request = Request(Caller.STAMP, (revision,))
            situation = look(config, lambda live, _: pass_gate(live, config, revisions, request, migrating=True))
            current = ", ".join(sorted(situation.database.versions)) or "no revision"
            click.echo(f"The schema is recorded at {current}, and would be at {revision}. No table is touched.")
            ask("Is the schema what that revision builds?", no_prompt=no_prompt)
        options = StepOptions(command=database_command(f"stamp {revision}{' --purge' if purge else ''}"))
        alembic.command.stamp(command_config(config, options), revision, sql=sql, tag=tag, purge=purge)

    return stamp
