"""`gasket database plan`: shows what an upgrade would do."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from gasket.migrator.commands.plan_forecast import forecast_pending
from gasket.migrator.commands.plan_markdown import plan_in_markdown
from gasket.migrator.commands.plan_sarif import plan_in_sarif
from gasket.migrator.commands.plan_text import format_plan
from gasket.migrator.commands.running import run
from gasket.migrator.config import MigratorConfig
from gasket.migrator.revisions.configuration import configured_revisions

_PENDING = 3
_FAILS = 1
"""Exit codes of `plan`."""


def plan_command(config: MigratorConfig) -> click.Command:
    """The command, for the database that `config` names."""

    @click.command(
        "plan",
        help="Show what an upgrade would do. Exits with 0: nothing to do, 3: pending, 1: it would be refused or fail.",
    )
    @click.option("--sql", is_flag=True, help="Show the statements too.")
    @click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
    @click.option(
        "--format",
        "form",
        type=click.Choice(["text", "json", "markdown", "sarif"]),
        default="text",
        help="markdown and sarif: for a pull request.",
    )
    def plan(sql: bool, as_json: bool, form: str) -> None:
        found = run(config, lambda: forecast_pending(config))
        match "json" if as_json else form:
            case "json":
                click.echo(msgspec.json.encode(found).decode())
            case "markdown":
                click.echo(plan_in_markdown(found, sql=sql))
            case "sarif":
                paths = {file.revision: file.path for file in configured_revisions(config.ini).values()}
                click.echo(msgspec.json.encode(plan_in_sarif(found, paths, Path.cwd(), config.release)).decode())
            case _:
                click.echo(format_plan(found, sql=sql))
        sys.exit(_FAILS if found.fails else _PENDING if found.revisions else 0)

    return plan
