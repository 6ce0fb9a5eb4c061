"""One piece of work, to its end: what a replica's worker, a start that needs it and a command do alike."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

import asyncpg

from gasket.migrator.apply.events import background_begun, background_ended, background_progress
from gasket.migrator.background import INDEX
from gasket.migrator.background.backfills import BackfillRun, StoppedError, WorkFailedError
from gasket.migrator.background.index_builds import build_index
from gasket.migrator.background.pace import Pace
from gasket.migrator.command_line import database_command
from gasket.migrator.config import MigratorConfig
from gasket.migrator.ledger.background import (
    OPEN,
    State,
    Work,
    change_state,
    is_taken_back,
    read_work,
    void_works,
)
from gasket.postgres.errors import describe, is_lost

log = logging.getLogger("gasket.migrator")

_TELL_EVERY = 10.0
_PAUSE_AFTER_ERROR = 2.0
_ROW_POLL = 0.2
_TOLD = {State.COMPLETE: "is complete", State.FAILED: "has failed"}
_KINDS = {State.COMPLETE: "completed", State.FAILED: "failed"}

T = TypeVar("T")


async def work_on(
    connection: asyncpg.Connection,
    config: MigratorConfig,
    work: Work,
    *,
    share: float,
    yields: bool,
    before: Collection[State] = OPEN,
    tell_every: float = _TELL_EVERY,
) -> Work:
    """Do the work until it is complete or has failed, or is not to be done any more; returns its row then.

    The connection holds the worker's lock and has a `lock_timeout`. `before` are the states from which it is begun;
    `share` is the part of the time that is worked. With `yields` it is left when another process wants to do it.
    `config.notify` is told when the work is complete or has failed.

    Raises:
        OSError, asyncpg.PostgresError, asyncpg.InterfaceError: the connection is lost. Nothing of the work is.
    """
    started, schema = time.monotonic(), config.schema
    claimed = await _until_granted(
        lambda: change_state(connection, schema, work.id, State.RUNNING, before=before, worker=config.process)
    )
    if claimed is None:
        return await read_work(connection, schema, work.id) or work
    if await is_taken_back(connection, schema, claimed.revision):
        await void_works(connection, schema, claimed.revision)
    else:
        background_begun(claimed)
        telling = _Telling(started, tell_every)
        await _run(connection, schema, claimed, share=share, yields=yields, telling=telling)
    ended = await read_work(connection, schema, work.id) or claimed
    if ended.state is not State.RUNNING:
        background_ended(ended, elapsed=time.monotonic() - started)
    if ended.state in _TOLD:
        # Not the error itself: it names a row by its key.
        sentence = f"{ended} {_TOLD[ended.state]}. `{database_command('background list')}` shows it."
        data = {"work": ended.id, "revision": ended.revision, "table": ended.table_name, "rows": ended.rows_done}
        config.notify(f"background.{_KINDS[ended.state]}", f"{sentence[0].upper()}{sentence[1:]}", data)
    return ended


class _Telling:
    """Logs how far the work is, every few seconds."""

    def __init__(self, started: float, every: float) -> None:
        self._started = started
        self._every = every
        self._told_at = started

    def __call__(self, work: Work) -> None:
        now = time.monotonic()
        if now - self._told_at >= self._every:
            self._told_at = now
            background_progress(work, elapsed=now - self._started)


async def _run(
    connection: asyncpg.Connection, schema: str, work: Work, *, share: float, yields: bool, telling: _Telling
) -> None:
    """Until its row says that it is complete or has failed, or that it is not to go on."""
    try:
        complete = False
        while not complete:
            complete = await _is_complete(connection, schema, work, share=share, yields=yields, telling=telling)
        state, error = State.COMPLETE, None
    except StoppedError:
        return
    except WorkFailedError as failure:
        if await is_taken_back(connection, schema, work.revision):  # it has failed because of that
            await void_works(connection, schema, work.revision)
            return
        state, error = State.FAILED, str(failure)
    await _until_granted(lambda: change_state(connection, schema, work.id, state, before={State.RUNNING}, error=error))


async def _is_complete(
    connection: asyncpg.Connection, schema: str, work: Work, *, share: float, yields: bool, telling: _Telling
) -> bool:
    """Whether one run came to the end. False, after a pause: an error has cut it short that passes."""
    try:
        if work.kind == INDEX:
            await build_index(connection, schema, work, yields=yields)
        else:
            await BackfillRun(connection, schema, work, Pace(share), yields=yields, tell=telling).run()
    except asyncpg.PostgresError as error:
        if is_lost(error) or connection.is_closed():
            raise
        log.warning("%s: %s; trying again in %.0f s", work, describe(error), _PAUSE_AFTER_ERROR)
        await asyncio.sleep(_PAUSE_AFTER_ERROR)
        return False
    return True


async def _until_granted(change: Callable[[], Awaitable[T]]) -> T:
    """Change the work's row, again while a command or a downgrade has it locked."""
    while True:
        try:
            return await change()
        except asyncpg.LockNotAvailableError:
            await asyncio.sleep(_ROW_POLL)
