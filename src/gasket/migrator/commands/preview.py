"""What a downgrade, a rollback or a stamp would do, shown before anybody is asked whether to do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import asyncpg
import msgspec
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import Script
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from gasket.migrator.apply.attempts import TRY_LOCK_TIMEOUT_MS
from gasket.migrator.apply.graft import graft
from gasket.migrator.apply.steps import downgrade_steps
from gasket.migrator.archive.faults import sqlstate
from gasket.migrator.archive.inventory import count_rows
from gasket.migrator.archive.loss_estimate import Estimate, estimate_downgrade
from gasket.migrator.archive.trial import TrialStep
from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import connected, looking, open_connection
from gasket.migrator.gate.callers import Caller, Request
from gasket.migrator.gate.checks import pass_gate
from gasket.migrator.gate.named_revision import rollback_goal
from gasket.migrator.ledger.read import StoredRevision, read_stored
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.revisions.loading import where
from gasket.migrator.revisions.scripts import script_directory
from gasket.migrator.sql.render import from_json, render
from gasket.migrator.synchronous import run_sync
from gasket.postgres.blockers import Blocker, BlockerWatch
from gasket.postgres.connections import close_connection
from gasket.postgres.errors import describe
from gasket.postgres.quoting import quote_identifier


class Preview(msgspec.Struct, frozen=True):
    """`rendering.reason` of a step says why its SQL cannot be shown.

    `estimate` is None where the steps were not tried out; `unknown` says why, None where it was not wanted.

    `locked`: they could not be tried out because of a lock.
    """

    steps: tuple[TrialStep, ...]
    estimate: Estimate | None = None
    unknown: str | None = None
    locked: bool = False

    def text(self, *, archived: bool) -> str:
        """The steps and what they would take away; `archived` is whether that is kept."""
        if not self.steps:
            return "Nothing would be taken back."
        lines = []
        for step in self.steps:
            lines.append(f"{step.revision}  {step.description}")
            if step.rendering.reason:
                lines.append(f"    -- Python: it {step.rendering.reason}")
            lines += [f"    {line}" for statement in step.rendering.statements for line in statement.sql.splitlines()]
        if self.estimate is not None:
            lines += ["", *_losses(self.estimate, archived=archived)]
        elif self.unknown is not None:
            lines += ["", " ".join([self.unknown, *([self._archives()] if self.locked and archived else [])])]
        return "\n".join(lines)

    def _archives(self) -> str:
        """What the steps will do with rows that they take away, as far as their texts tell."""
        in_parts = [
            step.revision
            for step in self.steps
            if any(statement.autocommit for statement in step.rendering.statements) and not step.touches_only_indexes
        ]
        if in_parts:
            return (
                f"{', '.join(in_parts)} has an autocommit block: if it takes rows away, it will be refused, because "
                "they cannot be archived."
            )
        if any(step.rendering.reason for step in self.steps):
            return "Its rows will be archived, or it will be refused."
        return "Its rows will be archived in any case."


def _losses(estimate: Estimate, *, archived: bool) -> list[str]:
    if not (estimate.losses or estimate.not_archived or estimate.refused):
        return ["No rows and no columns go with it."]
    lines = []
    for loss in estimate.losses:
        what = f"column {', '.join(loss.columns)} of {loss.table}" if loss.columns else f"table {loss.table}"
        note = f" ({loss.problem})" if loss.problem else ""
        rows = "an unknown number of rows" if loss.rows is None else f"about {count_rows(loss.rows)}"
        lines.append(f"{what}: {rows}, {loss.size / 1e6:.1f} MB{note}")
    lines += estimate.not_archived
    if not archived:
        lines.append("None of it is archived.")
    elif estimate.refused:
        lines += estimate.refused
    elif estimate.rows:
        lines.append(f"Copying them into the archive takes about {max(0.1, estimate.seconds):.1f} s.")
    return lines


async def preview_downgrade(config: MigratorConfig, caller: Caller, target: str | None, *, tried: bool) -> Preview:
    """The steps down to `target`; where they are `tried` out on the live tables, with what they would take away.

    The trial is taken back. What the steps lock and rewrite is really locked and rewritten meanwhile, for as long as
    their statements take.

    A rollback takes revisions that this release lacks from the ledger; without a target it goes to this release's own.

    Raises:
        TargetError: there is no such revision.
        SchemaAheadError: a downgrade lacks a file.
        NotReplayableError: a revision cannot be taken back from the ledger.
    """
    revisions = configured_revisions(config.ini)
    from_ledger = caller is Caller.ROLLBACK
    request = Request(caller, (target,) if target else (), discard_data=True)  # to look needs no archive
    async with looking(config, migrating=True) as connection:
        situation = await pass_gate(connection, config, revisions, request, migrating=True)
        goal = rollback_goal(situation, target) if from_ledger else target
        if goal is None:
            return Preview(())
        stored = await read_stored(connection, config.schema) if from_ledger else {}
    grafts = {unknown.revision: stored[unknown.revision] for unknown in situation.plan.unknown}
    scripts = _scripts_down(config, tuple(situation.database.versions), goal, grafts)
    steps = tuple(_step(config, script, grafts.get(script.revision)) for script in scripts)
    if not tried:
        return Preview(steps)
    # A connection of its own: to try it out takes as long as it takes.
    async with connected(config, migrating=True) as connection:
        return await _with_trial(config, connection, steps)


async def _with_trial(
    config: MigratorConfig,
    connection: asyncpg.Connection,
    steps: tuple[TrialStep, ...],
) -> Preview:
    other = await open_connection(config, migrating=True)  # open already: the trial waits for a lock for a moment only

    async def ready() -> asyncpg.Connection:
        return other

    watch = BlockerWatch(ready, connection.get_server_pid())
    try:
        with watch.watching():
            estimate = await run_sync(connection, lambda c: _try_out(config, c, steps))
    except DBAPIError as error:
        if sqlstate(error) == asyncpg.LockNotAvailableError.sqlstate:
            return Preview(steps, unknown=_held(watch.blockers), locked=True)
        return Preview(steps, unknown=f"The step fails when it is tried out: {describe(error)}")
    except Exception as error:  # of the migration's own Python: the real step will say it better, and where
        return Preview(steps, unknown=f"The step fails when it is tried out: {where(error, error)}")
    finally:
        watch.close()
        await close_connection(other)
    return Preview(steps, estimate)


def _held(blockers: Sequence[Blocker]) -> str:
    """The reason in words for the person who is asked, not in the server's."""
    held = [f"{_named(blocker)} holds {blocker.relation or 'a lock'}" for blocker in blockers]
    return f"{', '.join(held) or 'Another session holds a lock'}, so the step could not be tried out."


def _scripts_down(
    config: MigratorConfig, heads: tuple[str, ...], target: str, grafts: Mapping[str, StoredRevision]
) -> list[Script]:
    directory = script_directory(config.ini)
    graft(directory, grafts)
    return [step.revision for step in downgrade_steps(directory, target, heads)]


def _step(config: MigratorConfig, script: Script, stored: StoredRevision | None) -> TrialStep:
    if stored:
        rendering = from_json(stored.downgrade_sql or "{}")
    else:
        rendering = render(script.module.downgrade, metadata=config.metadata)
    return TrialStep(script.revision, rendering, script.module.downgrade, script.doc)


def _named(blocker: Blocker) -> str:
    if blocker.gid is not None:
        return f"the prepared transaction {blocker.gid}"
    return f"pid {blocker.pid} ({blocker.application or blocker.role})"


def _try_out(config: MigratorConfig, connection: Connection, steps: Sequence[TrialStep]) -> Estimate:
    connection.execute(
        text("SELECT set_config('search_path', :path, true), set_config('lock_timeout', :limit, true)"),
        {"path": quote_identifier(config.schema), "limit": f"{TRY_LOCK_TIMEOUT_MS}ms"},
    )
    context = MigrationContext.configure(connection, opts={"version_table_schema": config.schema})
    try:
        with Operations.context(context):
            return estimate_downgrade(context, schema=config.schema, steps=steps)
    finally:
        connection.rollback()
