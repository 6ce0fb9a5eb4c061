"""How far a start has come, for those who ask a replica before it is ready."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import msgspec

from gasket.migrator.apply.events import DOING, LockAwaited, LocksTaken, RevisionsPending, Step, StepBegun, StepDone
from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import open_connection
from gasket.migrator.facts import Waiting
from gasket.migrator.ledger.background import OPEN, Work
from gasket.postgres.blockers import Blocker, find_blockers
from gasket.postgres.errors import DRIVER_ERRORS
from gasket.postgres.progress import StatementProgress, statement_progress
from gasket.postgres.sessions import LOOKING

MIGRATING = "migrating"
WAITING = "waiting"

_SHARED_FOR = 1.0
_LOOK_TIMEOUT = 2.0
_SHOWN_LONGER = 1.0


class Session(msgspec.Struct, frozen=True):
    """A session of the database. Of a prepared transaction, which has none, `pid` is null."""

    pid: int | None
    application: str


class BlockingSession(Session, frozen=True):
    """`relation` is the table that is waited for, `seconds` the age of the session's transaction; null: not known."""

    relation: str | None
    seconds: float | None


class StartReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `/health/ready` answers until the schema is right. Null is what is not known, or does not apply.

    - `state`: `migrating` in the replica that holds the migration lock, otherwise `waiting`.
    - `revision`, `description`, `number`, `total`: the revision that is being applied, of those of this run.
    - `elapsed`: seconds since it began, or since the wait began.
    - `holder`: who holds the migration lock that is waited for.
    - `blockers`: who holds the locks that the revision waits for.
    - `percent`, `eta`: of the phase of a CREATE INDEX, REINDEX, CLUSTER or VACUUM FULL, or of a backfill that the
      revision needs; `eta` in seconds.
    """

    ready: bool = False
    state: str
    detail: str
    revision: str | None = None
    description: str | None = None
    number: int | None = None
    total: int | None = None
    elapsed: float
    holder: Session | None = None
    blockers: list[BlockingSession] = []
    percent: float | None = None
    eta: float | None = None


class Starting:
    """Listens to one start with `hear`; `look` says where it is. Those who ask in one second share one look."""

    def __init__(self, config: MigratorConfig) -> None:
        self._config = config
        self._fact: object = Waiting("for the database")
        self._since = time.monotonic()
        self._blockers: list[Blocker] = []
        self._blockers_until = 0.0
        self._work: Work | None = None
        self._rate = _Rate()
        self._look: asyncio.Task[StartReport] | None = None
        self._looked = 0.0

    def hear(self, fact: object) -> None:
        """A fact of `apply/events.py`, the background work that a revision needs, or a `Waiting`."""
        match fact:
            case LocksTaken():
                self._blockers = list(fact.blockers)
                self._blockers_until = time.monotonic() + fact.pause + _SHOWN_LONGER
            case StepDone():
                self._blockers = []
            case Work():
                self._work = fact if fact.state in OPEN else None
            case _ if fact != self._fact:
                self._fact, self._since = fact, time.monotonic()
                self._blockers, self._work = [], None

    async def look(self) -> StartReport:
        """At most two seconds old is what this answers, within about two seconds."""
        now = time.monotonic()
        if self._look is None or (self._look.done() and now - self._looked >= _SHARED_FOR):
            self._looked = now
            self._look = asyncio.create_task(self._ask_in_time())
        return await asyncio.shield(self._look)

    async def _ask_in_time(self) -> StartReport:
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT):
                return await self._ask()
        except DRIVER_ERRORS:
            return self.report()

    async def _ask(self) -> StartReport:
        """Ask the database, where something is being applied, how far that is."""
        match self._fact:
            case StepBegun(pid=pid):
                # Of its own, for what migrates may be in a statement; and not kept, for it is not missed at its end.
                connection = await open_connection(self._config, migrating=True, activity=LOOKING)
                try:
                    return self.report(await statement_progress(connection, pid), await find_blockers(connection, pid))
                finally:
                    connection.terminate()
            case LockAwaited(watch=watch):
                return self.report(watch.statement)
        return self.report()

    def report(self, statement: StatementProgress | None = None, blockers: list[Blocker] | None = None) -> StartReport:
        """What was told so far, and what was found about it in the database."""
        elapsed = time.monotonic() - self._since
        under_way = statement or self._work
        percent = under_way.percent if under_way else None
        eta = self._rate.eta(under_way) if under_way else None
        how_far = _how_far(under_way, percent)
        match self._fact:
            case StepBegun(step=step):
                found = blockers or (self._blockers if time.monotonic() < self._blockers_until else [])
                shown = [_blocking(blocker) for blocker in found]
                return StartReport(
                    state=MIGRATING,
                    detail="; ".join(filter(None, [_applying(step, elapsed), how_far, *map(_blocked, shown)])),
                    revision=step.revision,
                    description=step.title or None,
                    number=step.number,
                    total=step.total,
                    elapsed=round(elapsed, 1),
                    blockers=shown,
                    percent=percent,
                    eta=eta,
                )
            case RevisionsPending(count=count):
                detail = f"this replica has the migration lock; {count} revision{'s' if count > 1 else ''} to apply"
                return StartReport(state=MIGRATING, detail=detail, elapsed=round(elapsed, 1))
            case LockAwaited(watch=watch):
                held = watch.holder
                detail = f"waiting for the session that migrates, for {_duration(elapsed)}"
                if held is not None:
                    detail += (
                        f"; the migration lock is held by pid {held.pid} ({held.application or 'no name'}), "
                        f"which made its last progress {_duration(watch.idle)} ago"
                    )
                return StartReport(
                    state=WAITING,
                    detail="; ".join(filter(None, [detail, how_far])),
                    elapsed=round(elapsed, 1),
                    holder=Session(held.pid, held.application) if held else None,
                    percent=percent,
                    eta=eta,
                )
        what = self._fact.what if isinstance(self._fact, Waiting) else "for the schema"
        return StartReport(state=WAITING, detail=f"waiting {what}, for {_duration(elapsed)}", elapsed=round(elapsed, 1))


class _Rate:
    """How fast a backfill or the phase of a statement moves, from the first and the last time that it was looked at."""

    def __init__(self) -> None:
        self._phase: object = None
        self._first = 0
        self._since = 0.0

    def eta(self, what: StatementProgress | Work) -> float | None:
        """Seconds to the end; None before it has moved."""
        phase: object
        done: int | None
        if isinstance(what, Work):
            phase, done, total = what.id, what.rows_done, what.rows_estimated
        else:
            phase, done, total = (what.command, what.phase, what.relation), what.done, what.total
        if done is None or not total:
            return None
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._first, self._since = phase, done, now
        moved = done - self._first
        if moved <= 0:
            return None
        left = max(0, total - done)  # rows are made while a backfill runs, and it counts them too
        return round(left * (now - self._since) / moved, 1)


def _applying(step: Step, elapsed: float) -> str:
    title = f", {step.title}" if step.title else ""
    return f"{DOING[step.direction]} revision {step.number} of {step.total}{title}, for {_duration(elapsed)}"


def _how_far(what: StatementProgress | Work | None, percent: float | None) -> str | None:
    if what is None:
        return None
    name = f"finishing {what}" if isinstance(what, Work) else f"{what.command}: {what.phase}"
    return name + (f", {percent:.0f} %" if percent is not None else "")


def _blocking(blocker: Blocker) -> BlockingSession:
    age = (datetime.now(UTC) - blocker.since).total_seconds() if blocker.since else None
    seconds = round(max(0.0, age), 1) if age is not None else None
    if blocker.gid is not None:
        return BlockingSession(None, "a prepared transaction", blocker.relation, seconds)
    application = "an autovacuum worker" if blocker.autovacuum else blocker.application
    return BlockingSession(blocker.pid, application, blocker.relation, seconds)


def _blocked(by: BlockingSession) -> str:
    who = by.application if by.pid is None else f"pid {by.pid} ({by.application or 'no name'})"
    age = f" for {_duration(by.seconds)}" if by.seconds is not None else ""
    return f"waiting for {by.relation or 'a lock'}, held by {who}{age}"


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
