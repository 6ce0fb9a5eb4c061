"""`gasket database adopt`; the comparison is `scratch.adopt`'s."""

from __future__ import annotations

import alembic.command
import click

from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.command_line import database_command
from gasket.migrator.commands.running import look, run, show_target
from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import AdoptionError
from gasket.migrator.gate.callers import Caller, Request
from gasket.migrator.gate.checks import pass_gate
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.runner import command_config
from gasket.migrator.scratch.adopt import compare_with_revision, record_adopted

_NOT_COMPARED = (
    "Not compared: rows, the order of columns, owners, roles and their memberships, tablespaces, settings of roles and "
    "of the database, versions of extensions, large objects, security labels."
)
"""What a revision may change and no catalog of ours shows."""


def adopt_command(config: MigratorConfig) -> click.Command:
    """The command, for the database that `config` names."""

    @click.command(
        "adopt",
        help="Take over tables without a version table. Compares them with what REVISION builds, and records "
        "REVISION if nothing is missing or different. If REVISION is recorded already, it only compares.",
    )
    @click.argument("revision")
    @click.option("--force", is_flag=True, help="Record it in spite of differences, or of another recorded revision.")
    def adopt(revision: str, force: bool) -> None:
        revisions = configured_revisions(config.ini)
        show_target(config)
        request = Request(Caller.ADOPT, (revision,), force=force)
        situation = look(config, lambda live, _: pass_gate(live, config, revisions, request, migrating=True))
        meant = set(revisions.heads) if revision in ("head", "heads") else {revision}
        difference, expected = run(config, lambda: compare_with_revision(config, revisions, revision))
        click.echo("\n".join(difference.lines()) or f"The live schema is what revision {revision} builds.")
        click.echo(_NOT_COMPARED)
        if not (difference.fits or force):
            raise AdoptionError(revision=revision)
        if situation.database.versions != meant:
            options = StepOptions(command=database_command(f"adopt {revision}{' --force' if force else ''}"))
            alembic.command.stamp(command_config(config, options), revision)
        run(config, lambda: record_adopted(config, revisions, expected))
        click.echo(f"The schema is recorded at {revision}.")

    return adopt
