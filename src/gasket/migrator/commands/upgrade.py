"""`gasket database upgrade`."""

from __future__ import annotations

import alembic.command
import click

from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.command_line import database_command
from gasket.migrator.commands.confirm import ask, at_a_terminal, count
from gasket.migrator.commands.plan_forecast import forecast_pending
from gasket.migrator.commands.plan_text import format_plan
from gasket.migrator.commands.running import run, show_target
from gasket.migrator.config import MigratorConfig
from gasket.migrator.runner import command_config


def upgrade_command(config: MigratorConfig) -> click.Command:
    """The command, for the database that `config` names."""

    @click.command("upgrade", help="Apply what is pending, up to REVISION.")
    @click.argument("revision", default="head")
    @click.option("--sql", is_flag=True, help="Print the SQL instead of running it.")
    @click.option("--tag", help="A text for env.py.")
    @click.option("--no-restore", is_flag=True, help="Leave archived rows in the archive.")
    @click.option("--no-prompt", is_flag=True, help="Do not ask.")
    def upgrade(revision: str, sql: bool, tag: str | None, no_restore: bool, no_prompt: bool) -> None:
        if not sql:
            target = show_target(config)
            if at_a_terminal() and not no_prompt:  # a Job has no terminal; what a start does as well needs no question
                _confirm(config, target.address, revision)
        options = StepOptions(restore=not no_restore, command=database_command(f"upgrade {revision}"))
        alembic.command.upgrade(command_config(config, options), revision, sql=sql, tag=tag)

    return upgrade


def _confirm(config: MigratorConfig, address: str, revision: str) -> None:
    plan = run(config, lambda: forecast_pending(config))
    click.echo(format_plan(plan))
    if plan.revisions:
        what = (
            f"Apply {count(plan.revisions)}" if revision in ("head", "heads") else f"Apply revisions up to {revision}"
        )
        ask(f"{what} to {address}?", no_prompt=False)
