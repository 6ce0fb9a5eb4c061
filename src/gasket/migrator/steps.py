"""Alembic's run, step by step: what is recorded of each revision, and which one failed.

Names of Alembic's that are not public (`_migrations_fn`, `_downgrade_revs`) are used here alone, in `alembic_command`
and in `render`; `tests/integration/test_alembic_names.py` fails when Alembic changes them.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg
from alembic.runtime.migration import MigrationContext, MigrationInfo, RevisionStep, StampStep
from alembic.script import Script, ScriptDirectory
from asyncpg.prepared_stmt import PreparedStatement
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from gasket.migrator.archive.keep import archive_before_downgrade, check_after_downgrade
from gasket.migrator.archive.manifest import archived_revisions
from gasket.migrator.archive.restore import upgrade_restoring
from gasket.migrator.archive.trial import connection_of
from gasket.migrator.attempts import TRY_LOCK_TIMEOUT_MS, Attempts
from gasket.migrator.connection import PINNED, MigratorConfig, describe, prepare_session
from gasket.migrator.digest import digest
from gasket.migrator.errors import LockLostError
from gasket.migrator.events import Step, step_begun, step_done
from gasket.migrator.grants import grant_to_application
from gasket.migrator.ledger import (
    OWN_TABLES_PREFIX,
    VERSION_TABLE,
    StoredRevision,
    insert_statement,
    lock_statement,
    record_failure,
)
from gasket.migrator.leftovers import drop_invalid_indexes
from gasket.migrator.lock import LOCK_CLASS, lock_key
from gasket.migrator.revisions import Revisions
from gasket.migrator.sql.render import Rendering, from_json, render, to_json

log = logging.getLogger("gasket.migrator")


def is_ours_to_compare(name: str | None, kind: str, _parents: object) -> bool:
    """Alembic's `include_name`: the migrator's own tables are no part of the models."""
    return kind != "table" or name is None or not (name == VERSION_TABLE or name.startswith(OWN_TABLES_PREFIX))


def downgrade_steps(directory: ScriptDirectory, target: str, heads: tuple[str, ...]) -> list[RevisionStep]:
    """The steps that Alembic would take from `heads` down to `target`.

    Raises:
        CommandError: there is no such revision.
    """
    steps: list[RevisionStep] = directory._downgrade_revs(target, heads)  # type: ignore[arg-type]  # as Alembic's command
    return steps


@dataclass(frozen=True, slots=True)
class StepOptions:
    """What a command may ask for.

    `discard_data`: a downgrade does not archive what it takes away. `restore`: an upgrade puts it back.
    `without_archive`: the command that would do the same and discard, for whoever reads that rows cannot be archived.
    """

    discard_data: bool = False
    restore: bool = True
    without_archive: str = "litestar database downgrade --no-archive"


class StepRecorder:
    """Follows one run of Alembic on the connection that holds the lock.

    After the run, or in the middle of a failed one: `applied` are the revisions whose steps are committed,
    `current` is the one under way, `partly` whether an autocommit block has already committed a part of it.
    `digests` are those of files that were parsed already, by revision; another's is taken when it is recorded.
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
        self.current: str | None = None
        self.direction = "upgrade"
        self.partly = False
        self.options = StepOptions()
        self.grafts: Mapping[str, StoredRevision] = {}
        self.digests: Mapping[str, str] = {}
        self._config = config
        self._revisions = revisions
        self._connection = connection
        self._application_role = application_role
        self._host = socket.gethostname()
        self._attempts = Attempts(config, connection, self._record_failed_try)
        self._started = time.monotonic()
        self._before: set[str] = set()
        self._waiting: dict[str, str | None] = {}
        self._insert: PreparedStatement[asyncpg.Record] | None = None
        self._insert_numbers = itertools.count(1)
        self._pinned = ""
        self._pinned_after_step = ""

    async def start(self) -> None:
        """What has to be set on the connection before Alembic gets it."""
        await self._attempts.start()
        self._pinned = self._pinned_after_step = await self._connection.fetchval(f"SELECT {PINNED}")

    def attach(self, context: MigrationContext) -> None:
        """Follow the steps that `context` is going to run."""
        find_steps = context._migrations_fn
        assert find_steps is not None

        def followed(heads: tuple[str, ...], ctx: MigrationContext) -> Iterator[RevisionStep | StampStep]:
            assert ctx.connection is not None
            self._before = self._revisions.with_ancestors(heads)
            archived = archived_revisions(ctx.connection, self._config.schema)
            self._waiting = {r: self._digest(r) for r in archived & self._revisions.keys() - self._before}
            yield from self._follow(ctx, list(find_steps(heads, ctx)))

        context._migrations_fn = followed  # type: ignore[assignment]
        self._watch_autocommit(context)

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
        if self._application_role:
            await_only(grant_to_application(self._connection, self._config.schema, self._application_role))

    async def record_failure(self, error: str, *, over: asyncpg.Connection | None = None) -> None:
        """Write down that the step under way failed, once its transaction is rolled back."""
        await record_failure(
            over or self._connection,
            self._config.schema,
            revision=self.current or "base",
            direction=self.direction,
            error=error,
            release=self._config.release,
            host=self._host,
        )

    def _follow(
        self, context: MigrationContext, steps: list[RevisionStep | StampStep]
    ) -> Iterator[RevisionStep | StampStep]:
        assert context.connection is not None
        context.connection.commit()  # Alembic has only looked so far: each step begins without a transaction
        began = time.monotonic()
        for number, step in enumerate(steps, start=1):
            info = step.info
            name = info.up_revision_id or "base"
            self.current = name
            self.direction = "stamp" if info.is_stamp else "upgrade" if info.is_upgrade else "downgrade"
            self.partly = False
            self._started = time.monotonic()
            await_only(self._pin_again())
            place = Step(self.direction, name, number, len(steps))
            step_begun(place, elapsed=self._started - began)
            if not info.is_stamp:
                self._clear_leftovers(step, name)
            self._try_until_granted(context, step, place)
            yield step
            self.applied.append(name)
            self._waiting.pop(name, None)  # from here on its columns hold what people write
            self.current = None
            now = time.monotonic()
            step_done(place, duration=now - self._started, elapsed=now - began)

    async def _pin_again(self) -> None:
        """A step that sets `search_path`, a timeout or the role, or resets all, must not decide for those after it."""
        if self._pinned_after_step != self._pinned:
            log.warning("revision %s changed settings of the session; they are put back", self.applied[-1])
            await self._connection.execute("RESET ROLE")
            await prepare_session(self._connection, self._config)
            await self.start()

    def _clear_leftovers(self, step: Any, name: str) -> None:
        file = self._revisions.get(name)
        if grafted := self.grafts.get(name):
            statements = from_json(grafted.downgrade_sql or "{}").statements
        elif file and b"concurrently" in file.path.read_bytes().lower():
            module = step.revision.module
            function = module.upgrade if step.is_upgrade else module.downgrade
            statements = render(function, metadata=self._config.metadata).statements
        else:
            return
        with self._attempts.no_lock_timeout():  # as in the autocommit block that comes next
            await_only(drop_invalid_indexes(self._connection, self._config.schema, name, statements))

    def _try_until_granted(self, context: MigrationContext, step: Any, place: Step) -> None:
        migrate: Callable[..., None] = step.migration_fn
        lock_books = functools.partial(connection_of(context).exec_driver_sql, lock_statement(self._config.schema))

        @functools.wraps(migrate)
        def tried(**arguments: Any) -> None:
            run = functools.partial(migrate, **arguments)
            copies = _Copies()

            def attempt() -> None:
                lock_books()
                if step.info.is_stamp:
                    run()
                elif step.is_upgrade:
                    self._upgrade(context, step.revision, run, copies)
                else:
                    self._downgrade(context, step.revision, run, copies)

            self._attempts.run(context, place, attempt, may_retry=lambda: not self.partly)
            if self.partly:  # its commit has let the books go, and it cannot be done again
                with self._attempts.long_lock_timeout():
                    lock_books()

        step.migration_fn = tried

    def _upgrade(self, context: MigrationContext, script: Script, run: Callable[[], None], copies: _Copies) -> None:
        if not self._waiting:
            run()
            return
        with copies.counted():
            upgrade_restoring(
                context,
                schema=self._config.schema,
                revision=script.revision,
                digests=self._waiting,
                run_upgrade=run,
                render_upgrade=functools.partial(render, script.module.upgrade, metadata=self._config.metadata),
                restore=self.options.restore,
                strong=copies.strong,
            )

    def _downgrade(self, context: MigrationContext, script: Script, run: Callable[[], None], copies: _Copies) -> None:
        grafted = self.grafts.get(script.revision)
        report = archive_before_downgrade(
            context,
            schema=self._config.schema,
            revision=script.revision,
            digest=grafted.digest if grafted else self._digest(script.revision),
            release=self._config.release,
            rendering=from_json(grafted.downgrade_sql or "{}") if grafted else self._render(script),
            run_downgrade=run,
            discard=self.options.discard_data,
            strong=copies.strong,
        )
        if report.archive is not None or report.waiting:
            # A request that has read a row waits for our lock with its UPDATE, and our step for what the request has
            # read: the shorter wait is ours, also in a try that was patient with autovacuum, or it is a deadlock.
            connection_of(context).exec_driver_sql(f"SET LOCAL lock_timeout = {TRY_LOCK_TIMEOUT_MS}")
        with copies.counted():
            run()
        check_after_downgrade(context, self._config.schema, report)

    async def record(self, revision: str, direction: str, script: Script | None = None) -> None:
        """Write one row of the ledger; with `script`, also what a release that lacks the file needs to take it back.

        Raises:
            LockLostError: this session does not hold the lock any more.
        """
        if self._insert is None:
            # Without a name it would be parsed and planned for each row anew, for which the server takes 0.3 ms.
            self._insert = await self._connection.prepare(
                insert_statement(self._config.schema), name=f"gasket_ledger_{next(self._insert_numbers)}"
            )
        file = self._revisions.get(revision)
        down_revisions = _down_revisions(script) if script else file.down_revisions if file else ()
        keep = script if script and direction in ("upgrade", "stamp") else None
        pinned = await self._insert.fetchval(
            revision,
            ", ".join(down_revisions) or None,
            direction,
            file.sha256 if file else None,
            self._config.release,
            self._host,
            round((time.monotonic() - self._started) * 1000),
            file.backward_compatible if file else None,
            self._digest(revision) if direction != "downgrade" else None,
            _describe_script(keep) if keep else None,
            to_json(self._render(keep)) if keep else None,
            LOCK_CLASS,
            lock_key(self._config.schema),
        )
        if pinned is None:
            raise LockLostError(reason="this session no longer holds it", applied=self.applied)
        self._pinned_after_step = pinned

    def _digest(self, revision: str) -> str | None:
        if revision in self.digests:
            return self.digests[revision]
        file = self._revisions.get(revision)
        return digest(file.path.read_bytes()) if file else None

    def _render(self, script: Script) -> Rendering:
        return render(script.module.downgrade, metadata=self._config.metadata)

    def _record_failed_try(self, error: BaseException) -> None:
        with suppress(asyncpg.LockNotAvailableError):  # of that table: the log tells the same
            await_only(self.record_failure(describe(error)))

    def _watch_autocommit(self, context: MigrationContext) -> None:
        enter_block: Callable[[], Any] = context.autocommit_block

        @functools.wraps(enter_block)
        @contextmanager
        def watched() -> Iterator[None]:
            self.partly = True
            with enter_block(), self._attempts.no_lock_timeout():
                yield
            self._insert = None  # a DISCARD ALL drops it, and is for these blocks alone

        context.autocommit_block = watched  # type: ignore[method-assign]


class _Copies:
    """How often rows were copied in vain, because the real step then found a lock taken.

    After the second time the next try takes its strong lock first: readers wait, and the copy is not made again and
    again.
    """

    def __init__(self) -> None:
        self._in_vain = 0

    @property
    def strong(self) -> bool:
        return self._in_vain >= 2

    @contextmanager
    def counted(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError:
            self._in_vain += 1
            raise


def _down_revisions(script: Script) -> tuple[str, ...]:
    down = script.down_revision
    return () if down is None else (down,) if isinstance(down, str) else tuple(down)


def _describe_script(script: Script) -> str:
    """What Alembic's module says of the revision's place, as JSON."""
    names = ("down_revision", "depends_on", "branch_labels")
    return json.dumps({**{name: getattr(script.module, name, None) for name in names}, "doc": script.doc})
