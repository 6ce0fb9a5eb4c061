"""How the live schema stands, asked while serving: for readiness probes, and for whatever else only looks."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from typing import Any, TypeVar

import asyncpg
import msgspec

from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import open_connection
from gasket.migrator.gate.schema_state import Plan, SchemaState
from gasket.migrator.gate.situation import Situation, read_situation
from gasket.migrator.ledger.background import OPEN, UNFINISHED, Work, read_works
from gasket.migrator.ledger.read import are_there, read_history, read_versions
from gasket.migrator.ledger.tables import BACKGROUND
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.revisions.files import Revisions
from gasket.postgres.errors import AWAY, DRIVER_ERRORS, describe
from gasket.postgres.sessions import READINESS, Replica, serving_replicas

log = logging.getLogger("gasket.migrator")

T = TypeVar("T")

DATABASE_AWAY = "database_away"
LEAVING = "leaving"

_SHARED_FOR = 1.0
_PROBE_TIMEOUT = 2.0
_REPORT_TIMEOUT = 10.0
_GRACE = 30.0
_FIRST_WATCH_AFTER = 2.0
_WATCH_EVERY = 5.0
_ROWS_OF_ONE_CHANGE = 20
_NO_ANSWER = "The database does not answer."
_DONE = {"upgrade": "applied", "downgrade": "took back", "stamp": "stamped", "accept": "accepted the file of"}


class Readiness(msgspec.Struct, frozen=True):
    """`revision` is what is applied (None: nothing), `head` is what this release has.

    `detail` says in one sentence why the replica is not ready, or warns.
    """

    ready: bool
    state: str
    revision: str | None
    head: str | None
    detail: str | None = None


class SchemaMonitor:
    """Reads the state of the schema over one connection of its own.

    Probes are shared for a second, so that many probes cost one query. A database that is away does not take
    a replica out of the load balancer at once: for 30 s the last good answer stands.

    Between probes it looks by itself every few seconds, so that its log tells when the schema was changed, and the name
    of its session tells others that this replica serves.
    """

    def __init__(self, config: MigratorConfig) -> None:
        self._config = config
        self._connection: asyncpg.Connection | None = None
        self._opening: asyncio.Task[asyncpg.Connection] | None = None
        self._using = asyncio.Lock()
        self._probe: asyncio.Task[Readiness] | None = None
        self._probed_at = 0.0
        self._situation: Situation | None = None
        self._last_good: Readiness | None = None
        self._good_at = 0.0
        self._leaving = False
        self._told_away = False
        self._watching: asyncio.Task[None] | None = None
        self._has_background_table = False
        self.works: list[Work] = []

    @cached_property
    def _revisions(self) -> Revisions:
        return configured_revisions(self._config.ini)

    @property
    def pending(self) -> int | None:
        """How many revisions of this release were not applied when the database was last asked; None: never asked."""
        return len(self._situation.plan.pending) if self._situation else None

    def start(self) -> None:
        """Look every few seconds from now on, until `close`. This replica serves."""
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        await asyncio.sleep(_FIRST_WATCH_AFTER)  # the first probe comes sooner, and a start is not slowed down
        while True:
            await self.readiness()
            await asyncio.sleep(_WATCH_EVERY)

    async def readiness(self) -> Readiness:
        """The answer is at most two seconds old, and comes within about two seconds."""
        if self._leaving:
            return self._as_of_last(ready=False, state=LEAVING, detail="This replica is being stopped.")
        now = time.monotonic()
        if self._probe is None or (self._probe.done() and now - self._probed_at >= _SHARED_FOR):
            self._probed_at = now
            self._probe = asyncio.create_task(self._look())
        return await asyncio.shield(self._probe)

    async def ask(self, read: Callable[[asyncpg.Connection, Revisions], Awaitable[T]]) -> T:
        """What `read` finds over this connection, with the files of this release; it has ten seconds.

        Raises:
            OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError: the database is away.
        """
        async with self._turn(_REPORT_TIMEOUT) as connection:
            return await read(connection, self._revisions)

    async def replicas(self) -> list[Replica] | None:
        """The replicas that serve from this schema now; None where the database does not answer."""
        try:
            async with self._turn(_PROBE_TIMEOUT) as connection:
                return await serving_replicas(connection, self._config.schema)
        except DRIVER_ERRORS:
            return None

    async def open_work(self) -> list[Work] | None:
        """What there is of background work to do; None where the database does not answer.

        `works` is what was seen last of work that is neither complete nor void.
        """
        try:
            async with self._turn(_PROBE_TIMEOUT) as connection:
                # The first migration of a release that knows the table makes it; until then the server logs no error.
                if not self._has_background_table:
                    [self._has_background_table] = await are_there(connection, self._config.schema, BACKGROUND)
                if self._has_background_table:
                    self.works = await read_works(connection, self._config.schema, states=UNFINISHED)
        except DRIVER_ERRORS:
            return None
        return [work for work in self.works if work.state in OPEN]

    def leave(self) -> None:
        """From now on the answer is no, whatever the schema's state is."""
        self._leaving = True

    async def close(self) -> None:
        """Give the connection back; harmless when there is none."""
        if self._watching is not None:
            self._watching.cancel()
        if self._probe is not None:
            self._probe.cancel()
        opening, self._opening = self._opening, None
        if opening is not None and not opening.cancel() and opening.exception() is None:
            self._connection = opening.result()  # it came too late for its probe
        self._drop_connection()

    async def _look(self) -> Readiness:
        try:
            async with self._turn(_PROBE_TIMEOUT) as connection:
                answer = await self._ask(connection)
        except DRIVER_ERRORS as error:
            if not self._told_away:
                self._told_away = True
                log.warning(
                    "the state of the schema cannot be read (%s); the last answer counts for %.0f s, then this replica "
                    "is not ready",
                    describe(error),
                    _GRACE,
                )
            return self._away(error)
        if self._told_away:
            self._told_away = False
            log.info("the state of the schema can be read again")
        self._last_good, self._good_at = answer, time.monotonic()
        return answer

    async def _ask(self, connection: asyncpg.Connection) -> Readiness:
        """Only the versions are read, unless they are others than before, or this release did not serve on those."""
        versions = await read_versions(connection, self._config.schema)
        before = self._situation
        if before and before.plan.serves and versions == before.database.versions:
            return _readiness_in(before)
        self._situation = now = await read_situation(connection, self._config.schema, self._revisions)
        if before is None or before.plan.serves is not now.plan.serves:
            await self._tell_of_change(connection, now, first=before is None)
        return _readiness_in(now)

    async def _tell_of_change(self, connection: asyncpg.Connection, situation: Situation, *, first: bool) -> None:
        """One log line when this replica stops being ready, with what the ledger says of it, and one when it is again.

        A replica that starts has just been told that the schema is right: `first` it is silent about that.
        """
        plan = situation.plan
        if plan.serves:
            if not first:
                log.info("this release can run on the schema again: this replica is ready")
            return
        history: list[dict[str, Any]] = []
        if situation.database.has_ledger:
            history = await read_history(connection, self._config.schema, _ROWS_OF_ONE_CHANGE)
        log.warning(
            "the schema was changed while this replica was serving; it is no longer ready. %s %s",
            _last_change(history, plan),
            _readiness_in(situation).detail,
        )

    def _away(self, error: Exception) -> Readiness:
        last, age = self._last_good, time.monotonic() - self._good_at
        ready = last is not None and last.ready and age < _GRACE
        refused = isinstance(error, asyncpg.PostgresError) and not isinstance(error, AWAY)
        detail = "The database does not let this replica read the state of the schema." if refused else _NO_ANSWER
        return self._as_of_last(ready=ready, state=DATABASE_AWAY, detail=detail)

    def _as_of_last(self, *, ready: bool, state: str, detail: str) -> Readiness:
        last = self._last_good
        head = self._situation.plan.head if self._situation else None
        return Readiness(ready, state, revision=last.revision if last else None, head=head, detail=detail)

    @asynccontextmanager
    async def _turn(self, limit: float) -> AsyncIterator[asyncpg.Connection]:
        """The connection, for one at a time and for `limit` seconds; after an error the next one gets another."""
        async with asyncio.timeout(limit), self._using:
            try:
                yield await self._connected()
            except BaseException:
                self._drop_connection()
                raise

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            # Opened beside the probe: where the first of several hosts is silent, it takes longer than a probe may.
            if self._opening is None:
                self._opening = asyncio.create_task(open_connection(self._config, migrating=False, activity=READINESS))
                self._opening.add_done_callback(self._opened)
            opening = self._opening
            await asyncio.wait({opening})
            self._connection, self._opening = opening.result(), None
        return self._connection

    def _opened(self, opening: asyncio.Task[asyncpg.Connection]) -> None:
        if opening.cancelled() or opening.exception() is not None:
            self._opening = None  # the next probe tries again

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*DRIVER_ERRORS):
                connection.terminate()


def _readiness_in(situation: Situation) -> Readiness:
    """For everybody who may ask for readiness: no more than the revisions."""
    plan, revision = situation.plan, ", ".join(sorted(situation.database.versions)) or None
    current = revision or "no revision"
    if plan.state is SchemaState.BEHIND:
        how = "was taken back" if plan.taken_back else "has not been applied"
        detail = f"The schema is at {current}; this release needs {plan.head}, which {how}."
    elif plan.state is SchemaState.INCOMPATIBLE:
        detail = f"The schema is at {current}, on which this release cannot run; it needs {plan.head}."
    else:
        detail = "; ".join(map(str, situation.edits))
    return Readiness(plan.serves, plan.state.value, revision, plan.head, detail or None)


def _last_change(history: Sequence[dict[str, Any]], plan: Plan) -> str:
    """The newest rows of the ledger that one command has written, as a sentence."""
    taken_back = plan.state is SchemaState.BEHIND
    if not history or taken_back is not (history[0]["direction"] == "downgrade"):
        return "The ledger does not say who changed it."
    newest = history[0]
    same = ("direction", "command", "release", "role", "host")
    rows = itertools.takewhile(lambda row: all(row[name] == newest[name] for name in same), history)
    revisions = ", ".join(row["revision"] for row in rows)
    command = f"`{newest['command']}`" if newest["command"] else "A command that the ledger does not name"
    return (
        f"{command} of release {newest['release']}, run as role {newest['role']} on host {newest['host']}, "
        f"{_DONE[newest['direction']]} {revisions}."
    )
