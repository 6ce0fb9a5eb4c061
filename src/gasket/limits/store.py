"""The limits' tables, as one replica uses them: over one connection, one statement after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg

from gasket.postgres.connections import open_connection
from gasket.postgres.quoting import quote_identifier

LEASE_SECONDS = 10
"""A replica that was killed has its places for so long."""

CLEANED_AT_ONCE = 1000
"""Rows that one statement deletes: no request that takes a place waits for longer than that."""

_TIMEOUT = 2.0
_NOBODY = UUID(int=0)

# Sorted, so that replicas that count for the same subjects wait for one another in one order.
_TELL = """
INSERT INTO {schema}.limit_windows AS w (subject, kind, starts_at, ends_at, used)
SELECT t.subject, t.kind, to_timestamp(t.starts_at), to_timestamp(t.starts_at + t.seconds), t.used
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[])
    AS t(subject, kind, starts_at, seconds, used)
ORDER BY t.subject, t.kind, t.starts_at
ON CONFLICT (subject, kind, starts_at) DO UPDATE SET used = w.used + excluded.used
"""
_LEARN = """
SELECT w.subject, w.kind, extract(epoch FROM w.starts_at)::bigint AS starts_at, w.used
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS t(subject, kind, starts_at)
JOIN {schema}.limit_windows AS w
    ON w.subject = t.subject AND w.kind = t.kind AND w.starts_at = to_timestamp(t.starts_at)
"""
# A window counts for as long again as it lasted. The index is one of ends_at, so that has to be asked for, too.
_DROP_OLD = """
DELETE FROM {schema}.limit_windows WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {schema}.limit_windows
    WHERE ends_at < now() AND ends_at + (ends_at - starts_at) < now()
    ORDER BY ends_at LIMIT $1 FOR UPDATE SKIP LOCKED))
"""
# The row that is locked goes, too, a day after it was last needed: who waits for it meanwhile then inserts it anew.
_LOCK_SUBJECT = """
INSERT INTO {schema}.limit_slots (subject, replica, slots, expires_at) VALUES ($1, $2, 0, now() + interval '1 day')
ON CONFLICT (subject, replica) DO UPDATE SET expires_at = excluded.expires_at
"""
_LEASE = """
INSERT INTO {schema}.limit_slots (subject, replica, slots, expires_at)
SELECT $1, $2, greatest($3::int, least($4::int, $5::int - coalesce(sum(slots), 0)::int)),
    now() + make_interval(secs => $6)
FROM {schema}.limit_slots WHERE subject = $1 AND replica <> $2 AND expires_at > now()
ON CONFLICT (subject, replica) DO UPDATE SET slots = excluded.slots, expires_at = excluded.expires_at
RETURNING slots
"""
_RENEW = """
WITH leases AS (
    SELECT * FROM unnest($1::text[], $2::int[], $3::int[]) AS t(subject, slots, most)
), renewed AS (
    INSERT INTO {schema}.limit_slots (subject, replica, slots, expires_at)
    SELECT subject, $4, slots, now() + make_interval(secs => $5) FROM leases
    ON CONFLICT (subject, replica) DO UPDATE SET slots = excluded.slots, expires_at = excluded.expires_at
)
SELECT subject FROM leases WHERE slots + (
    SELECT coalesce(sum(others.slots), 0) FROM {schema}.limit_slots AS others
    WHERE others.subject = leases.subject AND others.replica <> $4 AND others.expires_at > now()
) > most
"""
_GIVE_BACK = "DELETE FROM {schema}.limit_slots WHERE replica = $2 AND subject = ANY ($1::text[])"
_DROP_EXPIRED = """
DELETE FROM {schema}.limit_slots WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {schema}.limit_slots
    WHERE expires_at < now() - interval '1 hour' LIMIT $1 FOR UPDATE SKIP LOCKED))
"""


class Count(NamedTuple):
    """A subject's count in one window: `starts_at` in seconds since 1970, `seconds` long."""

    subject: str
    kind: str
    starts_at: int
    seconds: int
    used: int = 0


class Lease(NamedTuple):
    """Places of a subject for one replica. All replicas together may have `limit`."""

    subject: str
    slots: int
    limit: int


class LimitStore:
    """Raises OSError, asyncpg.PostgresError or asyncpg.InterfaceError when the database does not answer in time."""

    def __init__(self, database_url: str, *, schema: str, application_name: str) -> None:
        self._url = database_url
        self._application_name = application_name
        self._replica = uuid4()
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()
        quoted = quote_identifier(schema)
        self._sql = {
            name: text.format(schema=quoted)
            for name, text in {
                "tell": _TELL,
                "learn": _LEARN,
                "drop_old": _DROP_OLD,
                "lock": _LOCK_SUBJECT,
                "lease": _LEASE,
                "renew": _RENEW,
                "give_back": _GIVE_BACK,
                "drop_expired": _DROP_EXPIRED,
            }.items()
        }

    async def tell(self, counts: Sequence[Count]) -> None:
        """Add to what all replicas have counted."""
        if counts:
            columns = [list(column) for column in zip(*counts, strict=True)]
            await self._run(lambda c: c.execute(self._sql["tell"], *columns))

    async def learn(self, counts: Sequence[Count]) -> list[Count]:
        """The counts of all replicas in these windows; windows without a count are left out."""
        subjects, kinds, starts, lengths = (list(c) for c in zip(*(count[:4] for count in counts), strict=True))
        seconds = dict(zip(zip(subjects, kinds, starts, strict=True), lengths, strict=True))
        rows = await self._run(lambda c: c.fetch(self._sql["learn"], subjects, kinds, starts))
        return [Count(s, k, at, seconds[s, k, at], used) for s, k, at, used in rows]

    async def now(self) -> float:
        """The database's time, in seconds since 1970."""
        return float(await self._run(lambda c: c.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")))

    async def lease(self, subject: str, *, in_use: int, wanted: int, limit: int) -> int:
        """How many places of `limit` this replica has now, for LEASE_SECONDS: what the others leave, up to `wanted`.

        Those in use are taken, whatever the others have.
        """

        async def work(connection: asyncpg.Connection) -> int:
            async with connection.transaction(isolation="read_committed"):
                await connection.execute(self._sql["lock"], subject, _NOBODY)
                arguments = (subject, self._replica, in_use, wanted, limit, LEASE_SECONDS)
                return int(await connection.fetchval(self._sql["lease"], *arguments))

        slots: int = await self._run(work)
        return slots

    async def renew(self, leases: Sequence[Lease]) -> set[str]:
        """Have so many places for LEASE_SECONDS more; those of which none is needed are given back.

        Returns the subjects of which all replicas together have more places than the limit.
        """
        overbooked = []
        if kept := [lease for lease in leases if lease.slots]:
            columns = [list(column) for column in zip(*kept, strict=True)]
            arguments = (*columns, self._replica, LEASE_SECONDS)
            overbooked = await self._run(lambda c: c.fetch(self._sql["renew"], *arguments))
        await self.give_back(lease.subject for lease in leases if not lease.slots)
        return {subject for (subject,) in overbooked}

    async def give_back(self, subjects: Iterable[str]) -> None:
        """Have no places of these any more."""
        if given := list(subjects):
            await self._run(lambda c: c.execute(self._sql["give_back"], given, self._replica))

    async def clean(self) -> bool:
        """Delete what no longer counts, some of it at a time; whether there may be more."""
        more = False
        for name in ("drop_old", "drop_expired"):
            done = await self._run(lambda c, sql=self._sql[name]: c.execute(sql, CLEANED_AT_ONCE))
            more |= int(done.removeprefix("DELETE ")) == CLEANED_AT_ONCE
        return more

    async def close(self) -> None:
        """Harmless when there is no connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _run(self, work: Any) -> Any:
        async with asyncio.timeout(_TIMEOUT), self._turn:
            if self._connection is None or self._connection.is_closed():
                self._connection = await open_connection(self._url, application_name=self._application_name)
            try:
                return await work(self._connection)
            except BaseException:
                await self.close()
                raise
