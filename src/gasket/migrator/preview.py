"""What a downgrade, a rollback or a stamp would do, shown before anybody is asked whether to do it."""

from __future__ import annotations

from dataclasses import dataclass

from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from gasket.migrator.archive.estimate import Estimate, TrialStep, estimate_downgrade
from gasket.migrator.attempts import TRY_LOCK_TIMEOUT_MS
from gasket.migrator.connection import MigratorConfig, connect, looking, quote_identifier
from gasket.migrator.graft import check_replayable, graft
from gasket.migrator.ledger import StoredRevision, read_state, read_stored
from gasket.migrator.plan import make_plan
from gasket.migrator.revisions import migrations_directory, read_revisions
from gasket.migrator.session import engine_over
from gasket.migrator.sql.render import Rendering, from_json, render
from gasket.migrator.steps import downgrade_steps
from gasket.migrator.verdict import check_downgrade, rollback_target


@dataclass(frozen=True, slots=True)
class PreviewedStep:
    """One revision that would be taken back; `rendering.reason` says why its SQL cannot be shown."""

    revision: str
    description: str
    rendering: Rendering


@dataclass(frozen=True, slots=True)
class Preview:
    """`estimate` is None where it could not be tried out, for the reason in `unknown`."""

    steps: tuple[PreviewedStep, ...]
    estimate: Estimate | None
    unknown: str | None = None

    def text(self, *, archived: bool) -> str:
        """For whoever is asked; `archived` is whether what goes is kept."""
        if not self.steps:
            return "Nothing would be taken back."
        lines = []
        for step in self.steps:
            lines.append(f"{step.revision}  {step.description}")
            if step.rendering.reason:
                lines.append(f"    -- Python: it {step.rendering.reason}")
            lines += [f"    {line}" for statement in step.rendering.statements for line in statement.sql.splitlines()]
        lines.append("")
        if self.estimate is None:
            lines.append(f"What goes with it is not known: {self.unknown}")
        elif not self.estimate.losses and not self.estimate.not_archived:
            lines.append("No rows and no columns go with it.")
        else:
            for loss in self.estimate.losses:
                what = f"column {', '.join(loss.columns)} of {loss.table}" if loss.columns else f"table {loss.table}"
                note = f" ({loss.problem})" if loss.problem else ""
                lines.append(f"{what}: about {loss.rows} rows, {loss.size / 1e6:.1f} MB{note}")
            lines += self.estimate.not_archived
            if archived:
                lines.append(f"Copying them into the archive takes about {max(0.1, self.estimate.seconds):.1f} s.")
            else:
                lines.append("None of it is archived.")
        return "\n".join(lines)


async def preview_downgrade(config: MigratorConfig, target: str | None, *, from_ledger: bool) -> Preview:
    """Try the steps down to `target` out on the live tables, and take that back.

    What the steps lock and rewrite is really locked and rewritten meanwhile, for as long as their statements take.

    `from_ledger`: revisions that this release lacks are taken from the ledger (rollback); None is this release's own.

    Raises:
        CommandError: there is no such revision.
        SchemaAheadError: a downgrade lacks a file.
        NotReplayableError: a revision cannot be taken back from the ledger.
    """
    revisions = read_revisions(migrations_directory(config.ini))
    revisions.check_chain()
    async with looking(config, migrating=True) as connection:
        database = await read_state(connection, config.schema)
        plan = make_plan(revisions, database)
        grafts: dict[str, StoredRevision] = {}
        goal = rollback_target(revisions, plan, database, target) if from_ledger else target
        if goal is None:
            return Preview((), None)
        if from_ledger:
            stored = await read_stored(connection, config.schema)
            unknown = [revision.revision for revision in plan.unknown]
            check_replayable(unknown, stored)
            grafts = {revision: stored[revision] for revision in unknown}
        else:
            check_downgrade(revisions, database, config.release)

    def look(sqlalchemy_connection: Connection) -> Preview:
        return _try_out(config, sqlalchemy_connection, tuple(database.versions), goal, grafts)

    connection = await connect(config, migrating=True)  # of its own: to try it out takes as long as it takes
    try:
        async with engine_over(connection).connect() as sqlalchemy_connection:
            return await sqlalchemy_connection.run_sync(look)
    finally:
        await connection.close(timeout=2)


def _try_out(
    config: MigratorConfig,
    connection: Connection,
    heads: tuple[str, ...],
    target: str,
    grafts: dict[str, StoredRevision],
) -> Preview:
    directory = ScriptDirectory.from_config(Config(str(config.ini)))
    graft(directory, grafts)
    steps, trials = [], []
    for step in downgrade_steps(directory, target, heads):
        script = step.revision
        stored = grafts.get(script.revision)
        rendering = (
            from_json(stored.downgrade_sql or "{}")
            if stored
            else render(script.module.downgrade, metadata=config.metadata)
        )
        steps.append(PreviewedStep(script.revision, script.doc, rendering))
        trials.append(TrialStep(script.revision, rendering, script.module.downgrade))
    connection.execute(
        text("SELECT set_config('search_path', :path, true), set_config('lock_timeout', :limit, true)"),
        {"path": quote_identifier(config.schema), "limit": f"{TRY_LOCK_TIMEOUT_MS}ms"},
    )
    context = MigrationContext.configure(connection, opts={"version_table_schema": config.schema})
    try:
        with Operations.context(context):
            estimate = estimate_downgrade(context, schema=config.schema, steps=trials)
    except DBAPIError as error:
        return Preview(tuple(steps), None, str(error.orig).splitlines()[0])
    except Exception as error:  # of the migration's own Python: the real step will say it better, and where
        return Preview(tuple(steps), None, f"it fails when it is tried out ({type(error).__name__}: {error})")
    finally:
        connection.rollback()
    return Preview(tuple(steps), estimate)
