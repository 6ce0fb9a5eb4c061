"""Lets a request pass or not, from what this replica knows; and tells the others, a moment later, what it let pass."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress

from gasket.errors import GasketError
from gasket.limits.store import Count, Lease, LimitStore
from gasket.limits.subjects import Fields, Limits, Refusal, Subject, limit_fields
from gasket.postgres.errors import DRIVER_ERRORS, describe

log = logging.getLogger("gasket.limits")

SYNC_EVERY = 1.0
"""Seconds from the begin of one exchange to that of the next, at the latest; what it takes itself comes on top."""

_SHORTEST_SYNC_PAUSE = 0.05
_REPORTED_SHARE = 10
"""The part of a limit, one tenth, that is reported at once."""
_CLEAN_EVERY = 60.0
_FULL_FOR = 0.25
_CLOSE_TIMEOUT = 2.0


class LimitReachedError(GasketError):
    """A limit is reached. `kind` is requests, tokens or concurrency; `retry_after` is in seconds."""

    def __init__(self, refusal: Refusal, fields: Fields) -> None:
        super().__init__(refusal.message)
        self.kind = refusal.kind
        self.retry_after = refusal.wait
        self.fields = fields


class Grant:
    """A request that may pass. End it once, with the tokens that it has cost."""

    def __init__(self, limiter: Limiter, subjects: Sequence[Subject], fields: Fields) -> None:
        self.fields = fields
        """The header fields that show the client its limits (OpenAI API reference, "Rate limits in headers")."""
        self._limiter = limiter
        self._subjects = subjects

    def end(self, tokens: int) -> None:
        """Its places are free, its tokens count."""
        self._limiter.end(self._subjects, tokens)


class Limiter:
    """The limits of all keys and profiles on this replica.

    Requests and tokens are counted here and reported to the others every SYNC_EVERY, or as soon as a tenth of the limit
    is used: what replicas let pass meanwhile may exceed the limit. Places for concurrent requests are leased, so that
    limit holds exactly. Without the database each replica uses what it knows.
    """

    def __init__(self, store: LimitStore) -> None:
        self._store = store
        self._subjects: dict[str, Subject] = {}
        self._offset = time.time() - time.monotonic()
        self._syncing: asyncio.Task[None] | None = None
        self._soon = asyncio.Event()
        self._turn = asyncio.Lock()
        self._away = False

    async def admit(self, limited: Sequence[tuple[str, Limits]]) -> Grant:
        """Let a request pass that these subjects (`key:5`, `profile:2`) with their limits have to allow, all of them.

        Raises:
            LimitReachedError: one does not; of several that do not, the one that is longest to wait for.
        """
        if self._syncing is None:
            self._syncing = asyncio.create_task(self._sync_for_ever())
        subjects = [await self._subject(name, limits) for name, limits in limited]
        taken: list[Subject] = []
        refusals: list[Refusal] = []
        try:
            for subject in subjects:
                if not await self._take_place(subject):
                    refusals.append(subject.no_place())
                    break
                taken.append(subject)
            now = self._now()
            for subject in subjects:
                refusals += subject.used_up(now)
            if refusals:
                raise LimitReachedError(max(refusals, key=lambda refusal: refusal.wait), limit_fields(subjects, now))
        except BaseException:
            for subject in taken:
                subject.in_use -= 1
            raise
        for subject in subjects:
            self._count(subject, "requests", 1, now)
        return Grant(self, subjects, limit_fields(subjects, now))

    def end(self, subjects: Sequence[Subject], tokens: int) -> None:
        """See `Grant.end`."""
        now = self._now()
        for subject in subjects:
            subject.in_use -= 1
            subject.used_at = time.monotonic()  # a long request's tokens stay until they are reported
            subject.full_until = 0.0
            if subject.overbooked:
                subject.leased = min(subject.leased, subject.in_use)
            self._count(subject, "tokens", tokens, now)

    async def close(self) -> None:
        """Report what is not reported yet, and give all places back."""
        if self._syncing is None:
            return
        self._syncing.cancel()
        with suppress(asyncio.CancelledError):
            await self._syncing
        with suppress(*DRIVER_ERRORS):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._report()
                await self._store.give_back(s.name for s in self._subjects.values() if s.leased or s.booked)
        await self._store.close()

    def _now(self) -> float:
        """By the database's clock, on which the windows of all replicas agree; a wall clock here may step."""
        return time.monotonic() + self._offset

    async def _subject(self, name: str, limits: Limits) -> Subject:
        subject = self._subjects.get(name)
        if subject is None:
            subject = self._subjects[name] = Subject(name, limits)
        elif subject.limits is not limits and subject.limits != limits:
            subject.take(limits)
        subject.used_at = time.monotonic()
        if not subject.loaded:
            await self._load(subject)
        return subject

    async def _load(self, subject: Subject) -> None:
        """Load what the other replicas have let pass: once, before the first request.

        Not of a database that is known to be away: the exchange finds out when it is back, and no request waits for it.
        """
        try:
            async with self._turn:
                if not subject.loaded and not self._away:
                    await self._set_clock()
                    await self._learn([subject])
                    subject.loaded = True
        except DRIVER_ERRORS as error:
            self._note_away(error)

    async def _set_clock(self) -> None:
        """With each exchange, for the database's clock may step, too, and a machine that sleeps misses time."""
        self._offset = await self._store.now() - time.monotonic()

    async def _take_place(self, subject: Subject) -> bool:
        limit = subject.limits.max_concurrency
        if limit is not None and subject.in_use >= min(subject.leased, limit):
            if subject.in_use < limit:
                await self._lease(subject, limit)
            if subject.in_use >= min(subject.leased, limit):
                return False
        subject.in_use += 1
        subject.peak = max(subject.peak, subject.in_use)
        return True

    async def _lease(self, subject: Subject, limit: int) -> None:
        if subject.full_until > time.monotonic():
            return
        try:
            async with self._turn:
                if subject.in_use < subject.leased:
                    return  # the task before this one has leased enough
                if self._away:
                    subject.leased = limit
                    return
                in_use = subject.in_use
                wanted = min(in_use + max(1, limit // _REPORTED_SHARE), limit)
                subject.leased = await self._store.lease(subject.name, in_use=in_use, wanted=wanted, limit=limit)
                subject.booked = subject.leased
        except DRIVER_ERRORS as error:
            self._note_away(error)
            subject.leased = limit
            return
        if subject.leased <= subject.in_use:
            subject.full_until = time.monotonic() + _FULL_FOR

    def _count(self, subject: Subject, kind: str, amount: int, now: float) -> None:
        window = subject.windows.get(kind)
        if window is not None and amount:
            window.count(amount, now)
            if window.unreported * _REPORTED_SHARE >= subject.limit(kind):
                self._soon.set()

    async def _sync_for_ever(self) -> None:
        clock = asyncio.get_running_loop().time
        clean_at, due = time.monotonic() + _CLEAN_EVERY, clock() + SYNC_EVERY
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._soon.wait()
            self._soon.clear()
            due = clock() + SYNC_EVERY
            try:
                async with self._turn:
                    await self._sync()
                if time.monotonic() >= clean_at:
                    clean_at = time.monotonic() + _CLEAN_EVERY
                    if await self._store.clean():
                        clean_at = 0.0  # go on after the next exchange, which that holds up no longer than once
            except Exception as error:  # whatever it is: not to share any more would be worse
                self._note_away(error)
                await asyncio.sleep(SYNC_EVERY)
            else:
                self._note_back()
            await asyncio.sleep(_SHORTEST_SYNC_PAUSE)

    async def _sync(self) -> None:
        await self._report()
        await self._set_clock()
        now = time.monotonic()
        for subject in [subject for subject in self._subjects.values() if subject.is_over(now)]:
            del self._subjects[subject.name]
        await self._renew()
        await self._learn([subject for subject in self._subjects.values() if subject.windows])

    async def _renew(self) -> None:
        """Keep only the places that are needed.

        Where all replicas together have more than the limit, for it was lowered or the database was away, a place that
        gets free is given up: without that, replicas with steady traffic would keep what they have for ever.
        """
        leases = []
        for subject in self._subjects.values():
            places = subject.places()
            if places or subject.leased or subject.booked:
                leases.append(Lease(subject.name, places, subject.limits.max_concurrency or 0))
            subject.leased, subject.peak = places, subject.in_use
        overbooked = await self._store.renew(leases)
        for lease in leases:
            self._subjects[lease.subject].booked = lease.slots
        for subject in self._subjects.values():
            subject.overbooked = subject.name in overbooked
            if subject.overbooked:
                subject.leased = min(subject.leased, subject.in_use)

    async def _report(self) -> None:
        windows = [(s, kind, window) for s in self._subjects.values() for kind, window in s.windows.items()]
        counts = [
            Count(subject.name, kind, start, window.seconds, used)
            for subject, kind, window in windows
            for start, used in window.to_report().items()
        ]
        await self._store.tell(counts)
        for _, _, window in windows:
            window.reported()

    async def _learn(self, subjects: Sequence[Subject]) -> None:
        now = self._now()
        counts = [
            Count(subject.name, kind, start, window.seconds)
            for subject in subjects
            for kind, window in subject.windows.items()
            for start in window.starts(now)
        ]
        if not counts:
            return
        windows = {(subject.name, kind): w for subject in subjects for kind, w in subject.windows.items()}
        for count in await self._store.learn(counts):
            windows[count.subject, count.kind].learn(count.starts_at, count.used)
        for window in windows.values():
            window.forget_old(now)

    def _note_away(self, error: BaseException) -> None:
        if not self._away:
            self._away = True
            log.warning("limits hold for this replica alone: they are not shared with the others: %s", describe(error))

    def _note_back(self) -> None:
        if self._away:
            self._away = False
            log.info("limits are shared with the other replicas again")
