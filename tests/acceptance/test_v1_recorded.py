"""Usage is recorded exactly: whatever ends a replica, cuts the database off, or breaks an answer off."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from gasket.usage.writer import INTERVAL
from tests.acceptance.gateway import HELLO, Gateway, Tenant, Wire, created, request, wire
from tests.acceptance.processes import Replica, until
from tests.acceptance.upstream import DONE, End, Step, completion, delta, event, json_answer, stream
from tests.acceptance.wire import tapped

STREAMED = {**HELLO, "stream": True}
TOKENS = {"prompt_tokens": 11, "completion_tokens": 22, "total_tokens": 33}
USAGE = event({"id": "chatcmpl-1", "choices": [], "usage": TOKENS})
LATE = 0.5
"""Seconds that a transaction may take."""
SUMS = "count(*), coalesce(sum(prompt_tokens), 0)::bigint, coalesce(sum(completion_tokens), 0)::bigint"
TOTALS = "coalesce(sum(requests), 0)::bigint, " + SUMS.partition(", ")[2]

Sums = tuple[int, int, int]
"""Requests, tokens of them, and tokens of their answers."""


class Crowd:
    """Clients that ask one request after the other, each over a connection of its own, until told to stop."""

    def __init__(self) -> None:
        self.answered: dict[str, float] = {}
        """When an answer was complete, on the loop's clock, by the id that the replica gave it."""
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []

    def send(self, replica: Replica, keys: Sequence[str], *, most: int | None = None, pause: float = 0.0) -> None:
        """Begin with one more client, which takes the keys in turn; of `most` requests, or without end."""
        self._tasks.append(asyncio.create_task(self._send(replica, keys, most, pause)))

    async def finish(self) -> None:
        """Let the clients end what they are at."""
        self._over = True
        await self.done()

    async def done(self) -> None:
        """Wait until all of them have ended by themselves."""
        await asyncio.gather(*self._tasks)

    async def abandon(self) -> None:
        """The replica is gone: so are the clients."""
        self._over = True
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert outcome is None or isinstance(outcome, (OSError, EOFError)), outcome

    async def _send(self, replica: Replica, keys: Sequence[str], most: int | None, pause: float) -> None:
        sent = 0
        async with wire(replica) as connection:
            while not self._over and sent != most:
                await connection.send(request(keys[sent % len(keys)]))
                sent += 1
                got = await connection.answer()
                assert got.status == 200, got
                self.answered[got.one("x-gasket-request-id")] = asyncio.get_running_loop().time()
                await asyncio.sleep(pause)


@pytest.fixture
async def database(gateway: Gateway) -> asyncpg.Connection:
    """The shared replica's database."""
    return await gateway.installation.look()


@asynccontextmanager
async def replica_of(gateway: Gateway, **settings: str) -> AsyncIterator[Replica]:
    """One more on the same database. Nothing may make it log a stack trace."""
    replica = gateway.installation.replica(settings)
    try:
        await replica.ready()
        yield replica
    finally:
        await replica.stop()
        assert "Traceback" not in replica.output, str(replica)


async def recorded(database: asyncpg.Connection, key_id: int) -> set[str]:
    """The ids of the key's requests."""
    rows = await database.fetch("SELECT request_id FROM usage_records WHERE key_id = $1", key_id)
    return {str(row[0]) for row in rows}


async def sums(database: asyncpg.Connection, table: str, what: str, keys: Collection[int]) -> Sums:
    """Of these keys, from records or from totals."""
    row = await database.fetchrow(f"SELECT {what} FROM {table} WHERE key_id = ANY ($1::int[])", list(keys))
    assert row is not None
    return row[0], row[1], row[2]


async def assert_exact(database: asyncpg.Connection, keys: Collection[int], expected: Sums) -> None:
    """As soon as that may take, records and totals are exactly that; then they agree for each key, too."""

    async def written() -> bool:
        return (await sums(database, "usage_records", SUMS, keys))[0] >= expected[0]

    await until(written, 60, f"{expected[0]} records")
    assert await sums(database, "usage_records", SUMS, keys) == expected
    assert await sums(database, "usage_totals", TOTALS, keys) == expected
    for key in keys:
        of_key = [await sums(database, *what, [key]) for what in (("usage_records", SUMS), ("usage_totals", TOTALS))]
        assert of_key[0] == of_key[1], key


def of_completions(count: int) -> Sums:
    """What so many of the upstream's usual answers cost."""
    return count, 3 * count, 5 * count


async def test_a_replica_that_is_killed_loses_no_more_than_the_last_interval(gateway: Gateway) -> None:
    """What is written and what is lost is exact each time. The time is that of a machine that lets the replica run:
    one of a few tries has to be so.
    """
    lost: list[float] = []
    for _ in range(5):
        lost = await _lose(gateway, await gateway.tenant())
        if lost and max(lost) <= INTERVAL + LATE:
            return
    raise AssertionError(f"lost, in seconds before the kill: {lost}")


async def _lose(gateway: Gateway, tenant: Tenant) -> list[float]:
    """How many seconds before a kill the answers came whose records are lost."""
    crowd, database = Crowd(), await gateway.installation.look()
    async with replica_of(gateway) as replica:
        for _ in range(4):
            crowd.send(replica, [tenant.key], pause=0.01)
        for _ in range(2):
            await _flushed(database, tenant.key_id)
        await asyncio.sleep(INTERVAL / 2)
        answers = len(crowd.answered) + 20  # that are in memory alone, or hardly out of it
        await until(lambda: len(crowd.answered) >= answers, 30, "more answers")
        killed_at = asyncio.get_running_loop().time()
        replica.signal(signal.SIGKILL)
        await replica.exited(20)
        await crowd.abandon()
    kept = await recorded(database, tenant.key_id)
    records = await sums(database, "usage_records", SUMS, [tenant.key_id])
    assert records == await sums(database, "usage_totals", TOTALS, [tenant.key_id]) == of_completions(len(kept))
    return [killed_at - at for request_id, at in crowd.answered.items() if request_id not in kept]


async def _flushed(database: asyncpg.Connection, key_id: int) -> None:
    """Wait until more of the key's requests are in the database."""
    before = await recorded(database, key_id)

    async def more() -> bool:
        return await recorded(database, key_id) > before

    await until(more, 30, "a flush")


async def test_a_replica_that_is_told_to_stop_loses_nothing(
    gateway: Gateway, tenant: Tenant, database: asyncpg.Connection
) -> None:
    crowd, clients = Crowd(), 4
    async with replica_of(gateway) as replica:
        for _ in range(clients):
            crowd.send(replica, [tenant.key])
        await until(lambda: len(crowd.answered) > 300, 60, "answers")
        replica.signal(signal.SIGTERM)
        await replica.exited(30)
        await crowd.abandon()
    kept = await recorded(database, tenant.key_id)
    assert set(crowd.answered) <= kept
    assert len(kept) <= len(crowd.answered) + clients, "an answer that was on its way at the end, for each client"
    await assert_exact(database, [tenant.key_id], of_completions(len(kept)))


async def test_a_stream_that_a_stop_ends_is_recorded(
    gateway: Gateway, tenant: Tenant, database: asyncpg.Connection
) -> None:
    tenant.upstream.plays(stream(delta("a"), End.NEVER))
    async with replica_of(gateway, GASKET_DRAIN_TIMEOUT="1") as replica, wire(replica) as connection:
        await connection.send(tenant.request(body=STREAMED))
        head = await connection.head()
        replica.signal(signal.SIGTERM)
        await replica.exited(30)
        assert (await connection.body(head)).last_error["code"] == "shutting_down"
    record = await record_of(tenant, database)
    assert told(record) == (200, "shutdown", record["bytes_in"] // 4, 1, True)


async def test_a_database_that_was_cut_off_in_between_loses_nothing(
    gateway: Gateway, tenant: Tenant, database: asyncpg.Connection
) -> None:
    crowd = Crowd()
    direct = gateway.installation.database_url
    async with (
        tapped(direct) as tap,
        replica_of(gateway, DATABASE_URL=tap.url, GASKET_MIGRATION_DATABASE_URL=direct) as replica,
    ):
        for _ in range(4):
            crowd.send(replica, [tenant.key], pause=0.005)

        async def some_are_written() -> bool:
            return bool(await recorded(database, tenant.key_id))

        await until(some_are_written, 30, "the first records")
        await tap.cut()
        away = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE $1"
        sessions = f"gasket-usage%:{replica.pid}"
        await until(lambda: database.fetchval(away, sessions), 30, "the end of the last transaction")
        before, cut_at = len(crowd.answered), len(await recorded(database, tenant.key_id))
        await until(lambda: len(crowd.answered) > before + 100, 20, "requests that go on meanwhile")
        await replica.says("usage is not written")
        await asyncio.sleep(2.0)  # how long the database is away, at least
        assert len(await recorded(database, tenant.key_id)) == cut_at
        await tap.open()
        await crowd.finish()
        await assert_exact(database, [tenant.key_id], of_completions(len(crowd.answered)))
        assert await recorded(database, tenant.key_id) == set(crowd.answered)
        await replica.says("usage is written again")


@pytest.mark.parametrize("count", [3000, pytest.param(10_000, marks=pytest.mark.soak)])
async def test_replicas_that_write_for_the_same_keys_never_wait_in_a_circle(
    gateway: Gateway, database: asyncpg.Connection, count: int
) -> None:
    tenants = [await gateway.tenant() for _ in range(3)]
    issued = [await gateway.issue(tenant.profile) for tenant in tenants for _ in range(3)]
    keys, ids = [one["key"] for one in issued], [one["id"] for one in issued]
    deadlocks = await _deadlocks(database)
    crowd = Crowd()
    async with replica_of(gateway) as second, replica_of(gateway) as third:
        for replica in (gateway.replica, second, third):
            for turn in range(4):
                order = keys[turn:] + keys[:turn]
                crowd.send(replica, order if turn % 2 else order[::-1])
        await _flushed(database, ids[-1])
        for _ in range(3):
            await _hold_up(gateway, ids[len(ids) // 2], writers=3)
        await until(lambda: len(crowd.answered) >= count, 120, f"{count} answers")
        await crowd.finish()
    expected = of_completions(len(crowd.answered))
    await assert_exact(database, ids, expected)
    assert await _deadlocks(database) == deadlocks
    shown = [await _shown(gateway, profile=tenant.profile) for tenant in tenants]
    assert tuple(map(sum, zip(*shown, strict=True))) == expected
    for key_id in ids:
        assert await _shown(gateway, key=key_id) == await sums(database, "usage_records", SUMS, [key_id])


async def _hold_up(gateway: Gateway, key_id: int, *, writers: int) -> None:
    """Let all writers come to be in the middle of their transactions at once: a key's totals are locked meanwhile.

    Left to themselves they are done within milliseconds, and hardly ever meet.
    """
    look = await gateway.installation.look()
    holder = await gateway.installation.connect()

    async def all_wait() -> bool:
        # Each time anew: the key's first row, or that of a new hour, may have come since.
        await holder.execute("SELECT FROM usage_totals WHERE key_id = $1 FOR UPDATE SKIP LOCKED", key_id)
        waiting = await look.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name LIKE 'gasket-usage%' AND wait_event_type = 'Lock'"
        )
        return bool(waiting == writers)

    try:
        async with holder.transaction():
            await until(all_wait, 30, f"{writers} writers that wait")
    finally:
        await holder.close(timeout=10)


async def _deadlocks(database: asyncpg.Connection) -> int:
    """What PostgreSQL has counted in this database; a backend tells of its own within a second."""
    await database.execute("SELECT pg_stat_clear_snapshot()")
    found: int = await database.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return found


async def _shown(gateway: Gateway, **of: int) -> Sums:
    """What `GET /api/usage` sums up."""
    pages = await created(await gateway.api.get("/usage", params=of), 200)
    assert all(item["total_tokens"] == item["prompt_tokens"] + item["completion_tokens"] for item in pages["items"])
    fields = ("requests", "prompt_tokens", "completion_tokens")
    requests, prompt, answers = (sum(item[field] for item in pages["items"]) for field in fields)
    return requests, prompt, answers


async def record_of(tenant: Tenant, database: asyncpg.Connection) -> dict[str, Any]:
    """The key's one record, once it is there."""
    found: list[asyncpg.Record] = []

    async def written() -> bool:
        found[:] = await database.fetch("SELECT * FROM usage_records WHERE key_id = $1", tenant.key_id)
        return bool(found)

    await until(written, 20, "a record")
    [record] = found
    return dict(record)


def told(record: dict[str, Any]) -> tuple[Any, ...]:
    """What the tests below are about."""
    return tuple(record[name] for name in ("status", "outcome", "prompt_tokens", "completion_tokens", "estimated"))


async def test_a_plain_answer(tenant: Tenant, database: asyncpg.Connection) -> None:
    got = await tenant.ask()
    record = await record_of(tenant, database)
    assert told(record) == (200, "ok", 3, 5, False)
    assert str(record["request_id"]) == got.one("x-gasket-request-id")
    assert (record["profile_id"], record["backend_id"]) == (tenant.profile, tenant.backends[0])
    assert (record["model"], record["path"]) == ("model-a", "/v1/chat/completions")
    assert (record["user_email"], record["retries"]) == ("ada@example.com", 0)
    assert (record["bytes_out"], record["bytes_in"]) == (len(got.body), len(tenant.upstream.requests[0].message.body))
    assert 0 <= record["first_byte_ms"] <= record["duration_ms"]
    assert abs(record["started_at"].timestamp() - time.time()) < 10


async def test_a_stream_whose_client_did_not_ask(tenant: Tenant, database: asyncpg.Connection) -> None:
    tenant.upstream.plays(stream(delta("a"), delta("b"), USAGE, DONE))
    got = await tenant.ask(body=STREAMED)
    assert got.body == delta("a") + delta("b") + DONE
    record = await record_of(tenant, database)
    assert told(record) == (200, "ok", 11, 22, False)
    assert record["bytes_out"] == len(got.body)


async def test_a_stream_that_its_client_leaves(tenant: Tenant, database: asyncpg.Connection) -> None:
    events: list[Step] = [delta("a"), delta("b"), delta("c")]
    tenant.upstream.plays(stream(*events, End.NEVER))
    sent = tenant.request(body=STREAMED)
    async with tenant.wire() as connection:
        await connection.send(sent)
        await connection.head()
        await read_on(connection, b"data:", 3)
    record = await record_of(tenant, database)
    assert told(record) == (499, "client_gone", record["bytes_in"] // 4, 3, True)
    assert record["bytes_in"] == len(sent.partition(b"\r\n\r\n")[2])


async def read_on(connection: Wire, until: bytes, count: int = 1) -> None:
    """Read of an answer until these bytes have come so often."""
    read = b""
    while read.count(until) < count:
        read += await asyncio.wait_for(connection.reader.read(1000), 30)


async def test_usage_that_was_said_first_does_not_make_leaving_free(
    tenant: Tenant, database: asyncpg.Connection
) -> None:
    early = event({"choices": [{"index": 0, "delta": {}}], "usage": {"prompt_tokens": 10, "completion_tokens": 0}})
    tenant.upstream.plays(stream(early, *[delta("a")] * 50, End.NEVER))
    async with tenant.wire() as connection:
        await connection.send(tenant.request(body=STREAMED))
        await connection.head()
        await read_on(connection, b"data:", 51)
    assert told(await record_of(tenant, database)) == (499, "client_gone", 10, 51, True)


async def test_a_client_that_leaves_once_it_has_all_is_not_estimated(
    tenant: Tenant, database: asyncpg.Connection
) -> None:
    usage = event({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 1}})
    tenant.upstream.plays(stream(delta("a"), delta(""), usage, DONE, End.NEVER))
    async with tenant.wire() as connection:
        await connection.send(tenant.request(body=STREAMED))
        await connection.head()
        await read_on(connection, DONE)
    assert told(await record_of(tenant, database)) == (499, "client_gone", 11, 1, False)


@pytest.mark.parametrize("end", [End.FIN, End.RST])
async def test_a_stream_that_its_upstream_breaks_off(tenant: Tenant, database: asyncpg.Connection, end: End) -> None:
    tenant.upstream.plays(stream(delta("a"), delta("b"), 0.1, end, whole=False))
    got = await tenant.ask(body=STREAMED)
    assert got.last_error["code"] == "upstream_failed"
    record = await record_of(tenant, database)
    assert told(record) == (200, "upstream_failed", record["bytes_in"] // 4, 2, True)


async def test_what_was_counted_before_a_stream_broke_off_counts(tenant: Tenant, database: asyncpg.Connection) -> None:
    tenant.upstream.plays(stream(delta("a"), USAGE, 0.1, End.FIN, whole=False))
    await tenant.ask(body=STREAMED)
    assert told(await record_of(tenant, database)) == (200, "upstream_failed", 11, 22, False)


@pytest.mark.parametrize("body", [HELLO, STREAMED])
async def test_a_client_that_leaves_before_the_answer_pays_for_what_it_asked(
    tenant: Tenant, database: asyncpg.Connection, body: dict[str, Any]
) -> None:
    tenant.upstream.plays((End.NEVER,))
    async with tenant.wire() as connection:
        await connection.send(tenant.request(body=body))
        await tenant.upstream.asked()
    record = await record_of(tenant, database)
    assert told(record) == (499, "client_gone", record["bytes_in"] // 4, 0, True)
    assert record["bytes_in"] == len(json.dumps(body))


async def test_so_does_one_whose_backend_is_too_slow(gateway: Gateway, database: asyncpg.Connection) -> None:
    tenant = await gateway.tenant(backend={"first_byte_timeout": 1})
    tenant.upstream.plays((End.NEVER,))
    assert (await tenant.ask()).status == 504
    record = await record_of(tenant, database)
    assert told(record) == (504, "timeout", record["bytes_in"] // 4, 0, True)


async def test_what_no_backend_was_asked_or_none_took_costs_a_request(
    gateway: Gateway, tenant: Tenant, database: asyncpg.Connection
) -> None:
    tenant.upstream.plays((End.NEVER,))
    async with tenant.wire() as connection:
        await connection.send(tenant.request("/v1/rerank"))
        await tenant.upstream.asked()
    assert told(await record_of(tenant, database)) == (499, "client_gone", 0, 0, False)
    away = await gateway.tenant({"answers": [(End.FIN,)]})
    assert (await away.ask()).status == 502
    assert told(await record_of(away, database)) == (502, "upstream_failed", 0, 0, False)


async def test_a_request_that_a_second_backend_answered_is_one(gateway: Gateway, database: asyncpg.Connection) -> None:
    tenant = await gateway.tenant({"answers": [(End.FIN,)]}, {"answers": [json_answer(completion("b"))]})
    assert (await tenant.ask()).status == 200
    record = await record_of(tenant, database)
    assert told(record) == (200, "ok", 3, 5, False)
    assert (record["backend_id"], record["retries"]) == (tenant.backends[1], 1)


async def test_whoever_has_no_key_leaves_no_record(tenant: Tenant, database: asyncpg.Connection) -> None:
    async with wire(tenant.replica) as connection:
        await connection.send(request(tenant.key[:-1] + ("0" if tenant.key[-1] != "0" else "1")))
        refused = (await connection.answer()).one("x-gasket-request-id")
    await tenant.ask()
    await record_of(tenant, database)  # written after the other one would have been
    assert await database.fetchval("SELECT count(*) FROM usage_records WHERE request_id::text = $1", refused) == 0
