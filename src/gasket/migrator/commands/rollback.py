"""`gasket database rollback`."""

from __future__ import annotations

import click
from alembic import command

from gasket.migrator.alembic_command import counts_from_here
from gasket.migrator.apply.progress_display import progress_shown
from gasket.migrator.apply.session import MigrationSession
from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.commands.confirm import confirm, confirmations
from gasket.migrator.commands.running import run
from gasket.migrator.config import MigratorConfig
from gasket.migrator.gate.callers import Caller, Request
from gasket.migrator.gate.named_revision import rollback_goal
from gasket.migrator.ledger.read import read_stored
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.runner import in_process_config, under_lock
from gasket.migrator.webhook_messages import outcome_told


def rollback_command(config: MigratorConfig) -> click.Command:
    """The command, for the database that `config` names."""

    @click.command(
        "rollback",
        help="Take a newer release's revisions back. Goes to this release's head, or to REVISION, with the SQL that "
        "the ledger keeps: this release does not have their files.",
    )
    @click.argument("revision", required=False)
    @confirmations
    def roll_back(revision: str | None, **answers: bool) -> None:
        options = confirm(config, Caller.ROLLBACK, revision, **answers)
        with progress_shown(config.log_format):
            taken_back = run(config, lambda: rollback(config, revision, options))
        if taken_back:  # or the preview has said that nothing would be
            click.echo(f"Taken back: {', '.join(taken_back)}")

    roll_back.context_settings["ignore_unknown_options"] = True  # "-1" is a revision
    return roll_back


async def rollback(config: MigratorConfig, target: str | None, options: StepOptions) -> list[str]:
    """Bring a newer schema back, to `target` or to this release's own, from what the ledger keeps.

    Returns the revisions that were taken back.

    Raises:
        NotReplayableError: one of them cannot be taken back without its file; nothing was changed.
        TargetError: `target` is no such revision, or nothing is newer than this release.
        MigratorError: as for any downgrade.
    """
    revisions = configured_revisions(config.ini)

    async def work(session: MigrationSession) -> None:
        with outcome.following(session.steps):
            await _roll_back(session, target, options)

    # The first try of a number of steps may have come further than anybody knows.
    fresh_tries = not (target and counts_from_here(target))
    with outcome_told(config, options.command) as outcome:
        await under_lock(config, revisions, work, fresh_tries=fresh_tries)
    return outcome.done


async def _roll_back(session: MigrationSession, target: str | None, options: StepOptions) -> None:
    request = Request(Caller.ROLLBACK, (target,) if target else (), discard_data=options.discard_data)
    situation = await session.pass_gate(request)
    goal = rollback_goal(situation, target)
    if goal is None:
        return
    stored = await session.on_own_tables(lambda connection: read_stored(connection, session.config.schema))
    session.steps.options = options
    session.steps.grafts = {unknown.revision: stored[unknown.revision] for unknown in situation.plan.unknown}
    await session.prepare()
    await session.run(lambda connection: command.downgrade(in_process_config(session, connection), goal))
