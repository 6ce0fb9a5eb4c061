"""Alembic's run, step by step: what is recorded of each revision, and which one failed.

The one file that uses names of Alembic's that are not public (`_migrations_fn`, `_proxy`, the command's
function); `tests/integration/test_alembic_names.py` fails when Alembic changes them.
"""

from __future__ import annotations

import functools
import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, MigrationInfo, RevisionStep, StampStep
from asyncpg.prepared_stmt import PreparedStatement
from sqlalchemy.util import await_only

from gasket.migrator.attempts import Attempts
from gasket.migrator.connection import MigratorConfig, describe
from gasket.migrator.digest import digest
from gasket.migrator.errors import LockLostError
from gasket.migrator.grants import grant_to_application
from gasket.migrator.ledger import insert_statement, record_failure
from gasket.migrator.lock import LOCK_CLASS, lock_key
from gasket.migrator.revisions import Revisions

log = logging.getLogger("gasket.migrator")

_COMMANDS = {"upgrade": "upgrade", "downgrade": "downgrade", "do_stamp": "stamp"}


def command_that_writes(environment: Any) -> str | None:
    """`upgrade`, `downgrade` or `stamp`, or None for a command that only looks (current, check, revision).

    `environment` is the module `alembic.context` as env.py imports it.
    """
    proxied: EnvironmentContext = environment._proxy
    return _COMMANDS.get(proxied.context_opts["fn"].__name__)


class StepRecorder:
    """Follows one run of Alembic on the connection that holds the lock.

    After the run, or in the middle of a failed one: `applied` are the revisions whose steps are committed,
    `current` is the one under way, `partly` whether an autocommit block has already committed a part of it.
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
        self._config = config
        self._revisions = revisions
        self._connection = connection
        self._application_role = application_role
        self._host = socket.gethostname()
        self._attempts = Attempts(config, connection, self._record_failed_try)
        self._started = time.monotonic()
        self._before: set[str] = set()
        self._insert: PreparedStatement[asyncpg.Record] | None = None

    async def start(self) -> None:
        """What has to be set on the connection before Alembic gets it."""
        await self._attempts.start()

    def attach(self, context: MigrationContext) -> None:
        """Follow the steps that `context` is going to run."""
        find_steps = context._migrations_fn
        assert find_steps is not None

        def followed(heads: tuple[str, ...], ctx: MigrationContext) -> Iterator[RevisionStep | StampStep]:
            self._before = self._revisions.with_ancestors(heads)
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
            await_only(self._record(revision, direction))
        if self._application_role:
            await_only(grant_to_application(self._connection, self._config.schema, self._application_role))

    async def record_failure(self, error: str) -> None:
        """Write down that the step under way failed, once its transaction is rolled back."""
        await record_failure(
            self._connection,
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
        for number, step in enumerate(steps, start=1):
            info = step.info
            name = info.up_revision_id or "base"
            self.current = name
            self.direction = "stamp" if info.is_stamp else "upgrade" if info.is_upgrade else "downgrade"
            self.partly = False
            self._started = time.monotonic()
            if not info.is_stamp:
                log.info("%s of revision %s (%d of %d)", self.direction, name, number, len(steps))
                self._try_until_granted(context, step, name)
            yield step
            self.applied.append(name)
            self.current = None

    def _try_until_granted(self, context: MigrationContext, step: Any, name: str) -> None:
        migrate: Callable[..., None] = step.migration_fn

        @functools.wraps(migrate)
        def tried(**arguments: Any) -> None:
            self._attempts.run(context, name, lambda _try: migrate(**arguments), may_retry=lambda: not self.partly)

        step.migration_fn = tried

    async def _record(self, revision: str, direction: str) -> None:
        if self._insert is None:
            self._insert = await self._connection.prepare(insert_statement(self._config.schema))
        file = self._revisions.get(revision)
        row_id = await self._insert.fetchval(
            revision,
            ", ".join(file.down_revisions) or None if file else None,
            direction,
            file.sha256 if file else None,
            self._config.release,
            self._host,
            round((time.monotonic() - self._started) * 1000),
            file.backward_compatible if file else None,
            digest(file.path.read_bytes()) if file and direction != "downgrade" else None,
            None,
            None,
            LOCK_CLASS,
            lock_key(self._config.schema),
        )
        if row_id is None:
            raise LockLostError(reason="this session no longer holds it", applied=self.applied)

    def _record_failed_try(self, error: BaseException) -> None:
        await_only(self.record_failure(describe(error)))

    def _watch_autocommit(self, context: MigrationContext) -> None:
        enter_block: Callable[[], Any] = context.autocommit_block

        @functools.wraps(enter_block)
        @contextmanager
        def watched() -> Iterator[None]:
            self.partly = True
            with enter_block(), self._attempts.no_lock_timeout():
                yield

        context.autocommit_block = watched  # type: ignore[method-assign]
