"""Revisions applied to a scratch database by the real runner, for what can be found out by it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import asyncpg
from sqlalchemy import Connection

from gasket.migrator.errors import ScratchDatabaseError
from gasket.migrator.revisions import Revisions
from gasket.migrator.runner import upgrade_in_process
from gasket.migrator.scratch.database import Scratch
from gasket.migrator.session import MigrationSession, migration_session

log = logging.getLogger("gasket.migrator")

_LIMIT = 300.0

_trying_out: ContextVar[bool] = ContextVar("trying_out", default=False)


async def build(
    scratch: Scratch,
    revisions: Revisions,
    versions: Iterable[str],
    then: Callable[[MigrationSession, Connection], None] | None = None,
) -> None:
    """Apply the given revisions, and all they stand on, through the runner; `then` goes on over the same session.

    Raises:
        MigrationFailedError: a revision fails on the scratch database.
        ScratchDatabaseError: it takes too long.
    """
    try:
        async with asyncio.timeout(_LIMIT) as limit:
            with _without_news():
                await _build(scratch, revisions, versions, then)
    except TimeoutError:
        if not limit.expired():
            raise
        raise ScratchDatabaseError(
            reason=f"the revisions took longer on it than {_LIMIT:.0f} s", mend="Look for one that waits or loops."
        ) from None


async def _build(
    scratch: Scratch,
    revisions: Revisions,
    versions: Iterable[str],
    then: Callable[[MigrationSession, Connection], None] | None,
) -> None:
    async with migration_session(scratch.config, revisions, application=None, not_needed=_never) as session:
        assert session is not None  # it waits for nothing but the lock
        trying = session

        def work(connection: Connection) -> None:
            for version in versions:
                upgrade_in_process(trying, connection, version)
                connection.rollback()  # Alembic leaves a transaction behind, in which it has looked around
            if then:
                then(trying, connection)

        await session.prepare()
        await session.run(work)


class _NoNews(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or not _trying_out.get()


@contextmanager
def _without_news() -> Iterator[None]:
    """Keep what is logged of each applied revision back: it reads as if it were the live database."""
    quiet = _NoNews()
    loggers = [log, logging.getLogger("alembic.runtime.migration")]
    token = _trying_out.set(True)
    for logger in loggers:
        logger.addFilter(quiet)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(quiet)
        _trying_out.reset(token)


async def _never(_connection: asyncpg.Connection) -> bool:
    return False
