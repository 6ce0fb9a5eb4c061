"""`gasket database accept`."""

from __future__ import annotations

import click

from gasket.migrator.apply.session import MigrationSession
from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.command_line import database_command
from gasket.migrator.commands.running import run, show_target
from gasket.migrator.config import MigratorConfig
from gasket.migrator.gate.callers import Caller, Request
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.revisions.loading import load_scripts
from gasket.migrator.runner import under_lock


def accept_command(config: MigratorConfig) -> click.Command:
    """The command, for the database that `config` names."""

    @click.command("accept", help="Accept the edited file of REVISION. From then on it counts as what was applied.")
    @click.argument("revision")
    def accept_edit(revision: str) -> None:
        show_target(config)
        run(config, lambda: accept(config, revision))
        click.echo(f"The file of revision {revision}, as it is now, counts as what was applied.")

    return accept_edit


async def accept(config: MigratorConfig, revision: str) -> None:
    """Record that the edited file of an applied revision was reviewed: it counts as what was applied from now on.

    Raises:
        TargetError: there is no such revision, it is not applied, or its file was not edited.
        RevisionFileError: a file cannot be loaded.
    """

    async def work(session: MigrationSession) -> None:
        await session.pass_gate(Request(Caller.ACCEPT, (revision,)))
        script = load_scripts(config.ini).get_revision(revision)
        session.steps.options = StepOptions(command=database_command(f"accept {revision}"))
        await session.prepare()
        await session.accept(script)

    await under_lock(config, configured_revisions(config.ini), work)
