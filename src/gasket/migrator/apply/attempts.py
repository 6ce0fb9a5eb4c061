"""Work that is tried until it gets its locks: short tries under `lock_timeout`, longer and longer pauses between.

A queued ALTER TABLE stops every reader that comes after it. So a try waits 100 ms for a lock, except where only an
autovacuum is in the way or nobody queues behind the wait. What grows is the pause, in which readers and writers flow.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Any, TypeVar

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from gasket.migrator.apply.events import Restoring, Step, locks_taken, waiting_on
from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import open_connection
from gasket.migrator.errors import LocksNotGrantedError
from gasket.postgres.blockers import Blocker, BlockerWatch, only_prepared

T = TypeVar("T")

TRY_LOCK_TIMEOUT_MS = 100
_AUTOVACUUM_MARGIN_MS = 200
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_LOOK_EVERY = 1.0  # a build may take hours, and each look at who blocks stops all who take a lock for a moment
_ENOUGH_TRIES = 4  # to see who blocks, where connecting takes longer than a try
_RETRIED = {"55P03", "40P01"}  # lock_not_available, deadlock_detected


class _Tries:
    """The tries of one step or `archive restore`, or where that is None of work on the migrator's own tables.

    `partly`: an autocommit block has committed a part of the step.
    """

    def __init__(
        self,
        config: MigratorConfig,
        connection: asyncpg.Connection,
        step: Step | Restoring | None,
        *,
        partly: bool = False,
    ) -> None:
        self._partly = partly
        self._limit = config.ddl_wait
        self._step = step
        self._started = time.monotonic()
        self._number = 1
        self._seen: list[Blocker] = []
        self._watch = BlockerWatch(lambda: open_connection(config, migrating=True), connection.get_server_pid())

    @property
    def blockers(self) -> list[Blocker]:
        """Who blocked the last try, as far as was looked."""
        return self._watch.blockers

    def close(self) -> None:
        """There are no more."""
        self._watch.close()

    def one(self) -> AbstractContextManager[None]:
        """One try. From the second on, another connection looks who blocks."""
        return self._watch.watching() if self._number > 1 else nullcontext()

    def failed(self) -> float:
        """Say that the try found a lock taken; returns how many seconds to pause.

        Raises:
            LocksNotGrantedError: it was the last within GASKET_MIGRATION_DDL_WAIT; it names who blocks.
        """
        number, waited = self._number, time.monotonic() - self._started
        blockers = self.blockers
        self._seen = blockers or self._seen  # on a slow server the look may come too late for the last try
        if waited >= self._limit and (number >= _ENOUGH_TRIES or self._seen):
            raise LocksNotGrantedError(
                revision=self._step.revision if isinstance(self._step, Step) else None,
                archive=self._step.archive if isinstance(self._step, Restoring) else None,
                waited=waited,
                tries=number,
                blockers=[f"{blocker}{'' if blockers else ', as an earlier try saw'}" for blocker in self._seen],
                partly=self._partly,
                only_prepared=only_prepared(self._seen),
            )
        pause: float = min(_FIRST_PAUSE * 2 ** min(number - 1, 10), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)
        locks_taken(self._step, tries=number, elapsed=waited, limit=self._limit, blockers=blockers, pause=pause)
        self._number += 1
        self._watch.open()
        return pause


async def until_granted(
    config: MigratorConfig,
    connection: asyncpg.Connection,
    work: Callable[[], Awaitable[T]],
    *,
    step: Restoring | None = None,
) -> T:
    """Do `work` again while its locks are taken; the session has a `lock_timeout`.

    Without a `step` it works on the migrator's own tables.

    Raises:
        LocksNotGrantedError: not within GASKET_MIGRATION_DDL_WAIT.
    """
    with closing(_Tries(config, connection, step)) as tries:
        while True:
            try:
                with tries.one():
                    return await work()
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                pause = tries.failed()
            await asyncio.sleep(pause)


class Attempts:
    """Runs steps of one Alembic context on one connection, whose `lock_timeout` is TRY_LOCK_TIMEOUT_MS."""

    def __init__(self, config: MigratorConfig, connection: asyncpg.Connection) -> None:
        self._config = config
        self._connection = connection
        self._lock_timeout = TRY_LOCK_TIMEOUT_MS

    @property
    def patient(self) -> bool:
        """Whether the try under way waits longer for a lock than others, for an autovacuum to yield."""
        return self._lock_timeout > TRY_LOCK_TIMEOUT_MS

    @contextmanager
    def no_lock_timeout(self, step: Step) -> Iterator[None]:
        """For what must not be cut short: a CREATE INDEX CONCURRENTLY that times out leaves an INVALID index behind.

        The log says for whom it waits.
        """
        watch = BlockerWatch(
            lambda: open_connection(self._config, migrating=True),
            self._connection.get_server_pid(),
            every=_LOOK_EVERY,
            on_others=functools.partial(waiting_on, step),
        )
        with self._lock_timeout_of(0), closing(watch), watch.watching(after=_LOOK_EVERY):
            yield

    @contextmanager
    def long_lock_timeout(self) -> Iterator[None]:
        """For a lock that nobody queues behind: as long as all the tries of a step may take together."""
        with self._lock_timeout_of(max(TRY_LOCK_TIMEOUT_MS, round(self._config.ddl_wait * 1000))):
            yield

    def run(
        self,
        context: Any,
        step: Step,
        migrate: Callable[[], None],
        *,
        may_retry: Callable[[], bool],
        committed: Callable[[], bool],
    ) -> None:
        """Call `migrate()` in the context's transaction, again in a new one while its locks are taken.

        Nothing of a failed try is left: the transaction it ran in is rolled back. `may_retry` says no once an
        autocommit block has committed a part of the step; `committed` is asked after the rollback, and says whether
        something else has.

        Raises:
            LocksNotGrantedError: not within GASKET_MIGRATION_DDL_WAIT; it names who blocks.
        """
        with closing(_Tries(self._config, self._connection, step)) as tries:
            while True:
                try:
                    with tries.one():
                        migrate()
                    await_only(self._set_lock_timeout(TRY_LOCK_TIMEOUT_MS))
                    return
                except DBAPIError as error:
                    if getattr(error.orig, "sqlstate", None) not in _RETRIED or not may_retry():
                        raise
                    context._transaction.rollback()
                    if committed():
                        raise
                    pause = tries.failed()
                await_only(self._wait(tries, pause))
                context._transaction = context.connection.begin()

    def run_statement(self, step: Step, execute: Callable[[], None]) -> None:
        """Call `execute()`, one statement of the step's autocommit block, again while its locks are taken.

        Raises:
            LocksNotGrantedError: not within GASKET_MIGRATION_DDL_WAIT; it names who blocks.
        """
        with closing(_Tries(self._config, self._connection, step, partly=True)) as tries:
            while True:
                try:
                    with tries.one():
                        execute()
                    await_only(self._set_lock_timeout(TRY_LOCK_TIMEOUT_MS))
                    return
                except Exception as error:
                    if getattr(error, "sqlstate", None) not in _RETRIED:
                        raise
                    pause = tries.failed()
                await_only(self._wait(tries, pause))

    async def _wait(self, tries: _Tries, pause: float) -> None:
        """Pause before the next try, and decide how long that one waits for a lock.

        PostgreSQL cancels an autovacuum worker only for a session that has waited `deadlock_timeout` (manual, "Routine
        Vacuuming").
        """
        await asyncio.sleep(pause)
        only_vacuum = bool(tries.blockers) and all(blocker.yields for blocker in tries.blockers)
        await self._set_lock_timeout(await self._past_deadlock_timeout() if only_vacuum else TRY_LOCK_TIMEOUT_MS)

    @contextmanager
    def _lock_timeout_of(self, milliseconds: int) -> Iterator[None]:
        await_only(self._set_lock_timeout(milliseconds))
        try:
            yield
        finally:
            if not self._connection.is_closed():
                await_only(self._set_lock_timeout(TRY_LOCK_TIMEOUT_MS))

    async def _set_lock_timeout(self, milliseconds: int) -> None:
        """For the session: SET LOCAL would end with the first autocommit block.

        A SET in a transaction that is rolled back is undone (PostgreSQL manual, "SET"), so between two tries it
        comes after the rollback.
        """
        if self._lock_timeout != milliseconds:
            await self._connection.execute(f"SET lock_timeout = {milliseconds}")
            self._lock_timeout = milliseconds

    async def _past_deadlock_timeout(self) -> int:
        setting = "SELECT setting::int FROM pg_settings WHERE name = 'deadlock_timeout'"  # in milliseconds
        return int(await self._connection.fetchval(setting)) + _AUTOVACUUM_MARGIN_MS
