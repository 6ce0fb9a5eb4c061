"""Alembic's run, step by step: what is recorded of each revision, and which one failed.

Names of Alembic's that are not public (`_migrations_fn`, `_upgrade_revs`, `_downgrade_revs`, `should_delete_branch`)
are used here alone, in `alembic_command` and in `render`; `tests/migrator/integration/test_alembic_names.py` fails when
Alembic changes them.
"""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import asyncpg
import msgspec
from alembic.runtime.migration import MigrationContext, MigrationInfo, RevisionStep, StampStep
from alembic.script import Script, ScriptDirectory
from sqlalchemy.util import await_only

from gasket.migrator.apply.attempts import Attempts
from gasket.migrator.apply.earlier_try import EarlierTry, find_earlier_try
from gasket.migrator.apply.events import Step, step_begun, step_done
from gasket.migrator.apply.grants import grant_to_application
from gasket.migrator.apply.kept_rows import KeptRows
from gasket.migrator.apply.ledger_rows import LedgerRows
from gasket.migrator.apply.leftovers import drop_invalid_indexes
from gasket.migrator.apply.lock_holder import lock_arguments
from gasket.migrator.apply.locked_connection import pin_settings
from gasket.migrator.apply.statements import Statements, StepUnderWay, transaction_controlled
from gasket.migrator.apply.version_moves import VersionMoves
from gasket.migrator.archive.trial import connection_of
from gasket.migrator.background.declared import check_backfills, declared_works, needed_revisions
from gasket.migrator.background.needed import finish_needed
from gasket.migrator.background.worker_lock import interrupt_index_build
from gasket.migrator.catalog.recorded import Recording
from gasket.migrator.command_line import database_command
from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import NO_REVISION, LockGivenAwayError, LockLostError, MigratorError, NotForRevisionsError
from gasket.migrator.ledger.background import record_works, void_works
from gasket.migrator.ledger.read import StoredRevision
from gasket.migrator.ledger.step_progress import forget_progress, unfinished_revisions
from gasket.migrator.ledger.tables import VERSION_TABLE
from gasket.migrator.ledger.write import lock_statement
from gasket.migrator.revisions.files import Revisions
from gasket.migrator.revisions.loading import require_as_read
from gasket.migrator.revisions.rules.check import verdict_on
from gasket.migrator.sql.render import Rendering, from_json, render
from gasket.postgres.driver import fetch
from gasket.postgres.errors import DRIVER_ERRORS
from gasket.postgres.sessions import PINNED

log = logging.getLogger("gasket.migrator")

_SETS_ROLE = re.compile(rb"\bSET\s+((SESSION|LOCAL)\s+)?(ROLE|SESSION\s+AUTHORIZATION)\b", re.IGNORECASE)


def downgrade_steps(directory: ScriptDirectory, target: str, heads: tuple[str, ...]) -> list[RevisionStep]:
    """The steps that Alembic would take from `heads` down to `target`.

    Raises:
        CommandError: there is no such revision.
    """
    steps: list[RevisionStep] = directory._downgrade_revs(target, heads)  # type: ignore[arg-type]  # as Alembic's command
    return steps


def upgrade_steps(directory: ScriptDirectory, target: str, heads: tuple[str, ...]) -> list[RevisionStep]:
    """The steps that Alembic would take from `heads` up to `target`.

    Raises:
        CommandError: there is no such revision.
    """
    steps: list[RevisionStep] = directory._upgrade_revs(target, heads)  # type: ignore[arg-type]  # as Alembic's command
    return steps


class StepOptions(msgspec.Struct, frozen=True):
    """What a command may ask for.

    `discard_data`: a downgrade does not archive what it takes away. `restore`: an upgrade puts it back.
    `without_archive`: the command that does the same and discards, for the refusal of rows that cannot be archived.
    `command` is what the ledger says was run: the command as it was typed, or `start`.
    """

    discard_data: bool = False
    restore: bool = True
    without_archive: str = msgspec.field(default_factory=lambda: database_command("downgrade --no-archive"))
    command: str = "start"


def _title(step: RevisionStep | StampStep) -> str:
    return (step.revision.doc or "") if isinstance(step, RevisionStep) else ""


class StepRecorder:
    """Follows one run of Alembic on the connection that holds the lock.

    After the run, or in the middle of a failed one: `applied` are the revisions whose steps are committed, `current` is
    the one under way. Before it a command may set `options`, `grafts` (revisions to take back without a file), and
    `recording` to None: in a database in which revisions are only tried out, no replica serves.
    """

    def __init__(
        self,
        config: MigratorConfig,
        revisions: Revisions,
        connection: asyncpg.Connection,
        *,
        application_role: str | None,
    ) -> None:
        self.applied: list[str] = []
        self.direction = "upgrade"
        self.options = StepOptions()
        self.grafts: Mapping[str, StoredRevision] = {}
        self.recording: Recording | None = Recording(connection, config.schema)
        self._config = config
        self._revisions = revisions
        self._connection = connection
        self._application_role = application_role
        self._attempts = Attempts(config, connection)
        self._statements = Statements(connection, config.schema, self._attempts)
        self._step: StepUnderWay | None = None
        self._began = time.monotonic()
        self._before: set[str] = set()
        self._ledger = LedgerRows(config, revisions, connection)
        self._moves = VersionMoves()
        self._rows = KeptRows(config, self._attempts)
        self._begun: set[str] = set()
        self._with_works: set[str] = set()
        self._pinned = ""
        self._pinned_after_step = ""

    async def start(self) -> None:
        """What has to be known of the connection before Alembic gets it."""
        self._pinned = self._pinned_after_step = await self._connection.fetchval(f"SELECT {PINNED}")

    def attach(self, context: MigrationContext) -> None:
        """Follow the steps that `context` is going to run."""
        find_steps = context._migrations_fn
        assert find_steps is not None

        def followed(heads: tuple[str, ...], ctx: MigrationContext) -> Iterator[RevisionStep | StampStep]:
            assert ctx.connection is not None
            self._before = self._revisions.with_ancestors(heads)
            pending = self._revisions.keys() - self._before
            self._rows.find_waiting(ctx.connection, [self._revisions[revision] for revision in pending])
            self._begun, self._with_works = await_only(unfinished_revisions(self._connection, self._config.schema))
            yield from self._follow(ctx, list(find_steps(heads, ctx)))

        context._migrations_fn = followed  # type: ignore[assignment]
        self._statements.watch(
            context, command=self.options.command, after_block=functools.partial(self._after_block, context)
        )
        self._moves.watch(context)

    @property
    def current(self) -> str | None:
        """The revision whose step is under way."""
        return self._step.place.revision if self._step else None

    @property
    def partly(self) -> bool:
        """Whether an autocommit block of the step under way was entered."""
        return self._step is not None and self._step.partly

    @property
    def in_revision(self) -> bool:
        """Whether the function of the step under way runs, and not what the migrator does around it."""
        return self._statements.in_revision

    @property
    def leaves_a_part(self) -> bool:
        """Whether a part of the step under way may stay though the step has failed."""
        return self._step is not None and self._step.leaves_a_part

    async def has_committed_by_itself(self) -> bool:
        """Whether the transaction in which the step began is committed, though the step has failed."""
        transaction = self._step.transaction if self._step else None
        if transaction is None or self._connection.is_closed():
            return False
        status = await self._connection.fetchval("SELECT pg_xact_status($1::text::xid8)", transaction)
        return bool(status == "committed")

    def on_version_apply(
        self, *, ctx: MigrationContext, step: MigrationInfo, heads: Iterable[str], run_args: object
    ) -> None:
        """Alembic's hook, inside the step's transaction: write the ledger, hand out the grants."""
        if step.is_stamp:
            after = self._revisions.with_ancestors(heads)
            attested = [file.revision for file in self._revisions.in_order(after - self._before)]
            rows, direction = attested or sorted(heads) or ["base"], "stamp"
            self._before = after
        else:
            rows, direction = list(step.up_revision_ids), self.direction
        for revision in rows:
            script = None if revision == "base" else step.revision_map.get_revision(revision)
            await_only(self.record(revision, direction, script if isinstance(script, Script) else None))
            if direction == "upgrade" and isinstance(script, Script) and (works := declared_works(script.module)):
                await_only(record_works(self._connection, self._config.schema, revision, self._config.release, works))
        if self._application_role:
            await_only(grant_to_application(self._connection, self._config.schema, self._application_role))

    @property
    def still_at(self) -> str:
        """The revision that the schema is at while the step under way is not committed."""
        file = self._revisions.get(self.current or "")
        if self.direction != "upgrade" or file is None:
            return self.current or "base"
        return ", ".join(file.down_revisions) or NO_REVISION

    async def record_failure(self, error: str, *, over: asyncpg.Connection | None = None) -> None:
        """Write down that the step under way failed, once its transaction is rolled back."""
        await self._ledger.write_failure(self.current or "base", self.direction, error, over=over)

    def _follow(
        self, context: MigrationContext, steps: list[RevisionStep | StampStep]
    ) -> Iterator[RevisionStep | StampStep]:
        """Between Alembic and its steps: what is before `yield` runs before Alembic begins the step's transaction, what
        is after it once Alembic has committed.
        """
        assert context.connection is not None
        require_as_read(
            (step.revision for step in steps if isinstance(step, RevisionStep) and step.is_upgrade), self._revisions
        )
        context.connection.commit()  # Alembic has only looked so far: each step begins without a transaction
        if not all(step.info.is_stamp for step in steps):
            context.opts["target_metadata"] = self._config.metadata  # for its naming convention
        began = time.monotonic()
        for number, step in enumerate(steps, start=1):
            info = step.info
            name = (", ".join(info.destination_revision_ids) if info.is_stamp else info.up_revision_id) or "base"
            self.direction = "stamp" if info.is_stamp else "upgrade" if info.is_upgrade else "downgrade"
            place = Step(self.direction, name, number, len(steps), _title(step))
            self._step = under_way = StepUnderWay(place, started=time.monotonic())
            await_only(self._pin_again())
            step_begun(place, pid=self._connection.get_server_pid(), elapsed=under_way.started - began)
            if self.direction == "upgrade" and isinstance(step, RevisionStep):
                needs = needed_revisions(step.revision.module)
                await_only(finish_needed(self._connection, self._config, name, needs))
            if not info.is_stamp:
                self._look_for_earlier_try(under_way)
                self._clear_leftovers(step, place)
            self._try_until_granted(context, step, under_way)
            self._moves.defer(step)
            if self.direction == "downgrade":
                judge_quickly(step)
            yield step
            self.applied.append(name)
            self._step = None
            self._after_commit(context, name)
            if self.recording is None and self.direction == "upgrade":  # no replica serves from a scratch database
                await_only(finish_needed(self._connection, self._config, name, [name]))
            now = time.monotonic()
            step_done(place, duration=now - under_way.started, elapsed=now - began)

    async def finish(self) -> None:
        """Record what the catalog is after the run, if anything was applied."""
        if self.recording and self.applied:
            with suppress(*DRIVER_ERRORS):
                await self._pin_again()
            await self.recording.finish(anew=self.direction == "stamp")

    def sets_a_role(self) -> bool:
        """Whether the revision under way names a role that its statements are to have."""
        file = self._revisions.get(self.current or "")
        return file is not None and bool(_SETS_ROLE.search(file.path.read_bytes()))

    async def _pin_again(self) -> None:
        """A step that sets `search_path`, a timeout or the role, or resets all, must not decide for those after it."""
        if self._pinned_after_step != self._pinned:
            log.warning("revision %s changed settings of the session; they are put back", self.applied[-1])
            await self._connection.execute("RESET SESSION AUTHORIZATION; RESET ROLE")
            await pin_settings(self._connection, self._config)
            await self.start()

    def _look_for_earlier_try(self, under_way: StepUnderWay) -> None:
        revision, direction = under_way.place.revision, under_way.place.direction
        if revision in self._begun:
            under_way.earlier = await_only(find_earlier_try(self._connection, self._config.schema, revision, direction))

    def _clear_leftovers(self, step: Any, place: Step) -> None:
        script: Script = step.revision
        file = self._revisions.get(script.revision)
        if script.revision not in self.grafts and not (file and verdict_on(file).concurrently):
            return
        if step.is_upgrade:
            statements = render(script.module.upgrade, metadata=self._config.metadata).statements
        else:
            statements = self._render_downgrade(script).statements
        if not any(statement.autocommit for statement in statements):  # CONCURRENTLY runs nowhere else
            return
        with self._attempts.no_lock_timeout(place):  # as in the autocommit block that comes next
            await_only(drop_invalid_indexes(self._connection, self._config.schema, script.revision, statements))

    def _try_until_granted(self, context: MigrationContext, step: Any, under_way: StepUnderWay) -> None:
        """Let Alembic call, in the place of the step's function, one that tries it until it gets its locks."""
        migrate: Callable[..., None] = step.migration_fn

        @functools.wraps(migrate)
        def tried(**arguments: Any) -> None:
            def run() -> None:
                with self._statements.of(under_way):
                    migrate(**arguments)
                if not self._connection.is_in_transaction():  # what is written of the step would stay
                    raise transaction_controlled("COMMIT or ROLLBACK")

            self._attempts.run(
                context,
                under_way.place,
                lambda: self._attempt(context, step, under_way, run),
                may_retry=lambda: not under_way.partly,
                committed=lambda: await_only(self.has_committed_by_itself()),
            )

        step.migration_fn = tried

    def _attempt(self, context: MigrationContext, step: Any, under_way: StepUnderWay, run: Callable[[], None]) -> None:
        """One try, in a transaction of its own: the step's function with what belongs to it before and after."""
        self._lock_books(context)
        if step.info.is_stamp:
            run()
        elif step.is_upgrade:
            script: Script = step.revision
            self._ledger.keep_meanwhile(script)
            self._rows.upgrade(context, script, run, restore=self.options.restore)
            if not under_way.partly:  # otherwise the revision cannot be taken back any more
                check_backfills(connection_of(context), script.revision, declared_works(script.module))
        else:
            self._downgrade(context, step.revision, under_way.earlier, run)

    def _downgrade(
        self, context: MigrationContext, script: Script, earlier: EarlierTry, run: Callable[[], None]
    ) -> None:
        if script.revision in self._with_works:
            await_only(interrupt_index_build(self._connection, self._config.schema, script.revision))
            with self._attempts.long_lock_timeout():  # for the batch that is under way
                await_only(void_works(self._connection, self._config.schema, script.revision))
        grafted = self.grafts.get(script.revision)
        self._rows.downgrade(
            context,
            script,
            run,
            digest=grafted.digest if grafted else self._ledger.digest(script.revision),
            rendering=earlier.rest_of(self._render_downgrade(script)),
            discard=self.options.discard_data,
        )

    def _render_downgrade(self, script: Script) -> Rendering:
        """What the downgrade would run: that of its file, or what the ledger keeps of it."""
        if grafted := self.grafts.get(script.revision):
            return from_json(grafted.downgrade_sql or "{}")
        return self._ledger.render_downgrade(script)

    def _after_commit(self, context: MigrationContext, revision: str) -> None:
        """Bring what had to wait for the commit, and write down what stays in the archive."""
        report = self._rows.restored_after_commit(connection_of(context), revision)
        if report and report.incomplete:
            error = f"{report}; run: {'; '.join(report.remedies)}" if report.remedies else str(report)
            with suppress(asyncpg.LockNotAvailableError):  # of the failures' table: the log tells the same
                await_only(self._ledger.write_failure(revision, "restore", error))

    async def record(self, revision: str, direction: str, script: Script | None = None) -> None:
        """Write one row of the ledger; with `script`, also what a release that lacks the file needs to take it back.

        Raises:
            LockLostError, LockGivenAwayError: this session does not hold the lock any more.
        """
        if self.partly or revision in self._begun:
            await forget_progress(self._connection, self._config.schema, revision)
        step = self._step
        duration = round((time.monotonic() - (step.started if step else self._began)) * 1000)
        move = self._moves.take()
        written = await self._ledger.write(
            revision, direction, script, move=move, duration_ms=duration, command=self.options.command
        )
        if written is None:
            raise self._lock_gone()
        self._pinned_after_step, transaction, moved = written
        if step and step.transaction is not None and transaction != step.transaction:
            raise transaction_controlled("COMMIT or ROLLBACK")
        if move and moved != 1:
            raise NotForRevisionsError(f"{VERSION_TABLE} does not hold {move[0]} any more: leave that table to Alembic")

    def _lock_books(self, context: MigrationContext) -> None:
        assert self._step is not None
        schema = self._config.schema
        [row] = fetch(connection_of(context), lock_statement(schema, lock_arguments(schema)))
        self._step.transaction, held, _ = row
        if not held:
            raise self._lock_gone()

    def _lock_gone(self) -> MigratorError:
        if self.current is not None and self.direction != "stamp":  # only a revision's own statements can let it go
            return LockGivenAwayError(revision=self.current, applied=self.applied, partly=self.leaves_a_part)
        return LockLostError(reason="this session no longer holds it", applied=self.applied)

    def _after_block(self, context: MigrationContext) -> None:
        """The commit has released the locks on the migrator's own tables. It may have run a DISCARD ALL, too."""
        self._ledger.prepare_again()
        with self._attempts.long_lock_timeout():
            self._lock_books(context)


def judge_quickly(step: Any) -> None:
    """Let Alembic see at once that a step down from the only head to one revision is a move, and no branch's end.

    It would walk all ancestors for that, at every step: with 2,000 revisions some ten milliseconds each.
    """
    judge: Callable[[set[str]], bool] = step.should_delete_branch

    def ends_branch(heads: set[str]) -> bool:
        plain = heads == {step.revision.revision} and len(step.to_revisions) == 1
        return not plain and judge(heads)

    step.should_delete_branch = ends_branch
