"""Usage on its way into the database: nothing twice, nothing lost that need not be, nobody held up."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from gasket.usage.entry import UsageEntry
from gasket.usage.writer import BATCH, MOST_WAITING, UsageWriter
from tests.acceptance.processes import until
from tests.acceptance.wire import Server, tapped

from .conftest import migrate
from .usage_entries import assert_totals_agree, entry

NAME = "gasket-usage-test"
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _time_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as a slow machine needs, but for the tests that are about it."""
    monkeypatch.setattr("gasket.usage.writer.CLOSE_TIMEOUT", 60.0)


@pytest.fixture
async def usage(database: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A look at the session's database, whose tables of usage are empty."""
    yield database
    await database.execute(
        "DELETE FROM usage_records; DELETE FROM usage_totals; DELETE FROM usage_slots; DELETE FROM usage_days; "
        "DELETE FROM api_keys"
    )
    await database.execute("DELETE FROM backend_profiles")


@pytest.fixture
async def writer(usage: asyncpg.Connection, api_database_url: str) -> AsyncIterator[UsageWriter]:
    async with writing(api_database_url) as writer:
        yield writer


@asynccontextmanager
async def writing(url: str, schema: str = "public") -> AsyncIterator[UsageWriter]:
    writer = UsageWriter(url, schema=schema, application_name=NAME)
    try:
        yield writer
    finally:
        await writer.close()


async def written(writer: UsageWriter, count: int) -> None:
    """Wait until so many are in the database."""
    await until(lambda: writer.written >= count, 30, lambda: f"{count} to be written, not {writer.written}")
    assert writer.written == count


async def cut_off(connection: asyncpg.Connection) -> int:
    """End the writer's connections to the database that `connection` is to."""
    ended: int = await connection.fetchval(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = $1",
        NAME,
    )
    return ended


async def test_a_record_holds_what_was_put(writer: UsageWriter, usage: asyncpg.Connection) -> None:
    put = entry(started_at=NOON, first_byte_ms=None, estimated=True)
    writer.put(put)
    assert writer.waiting == 1
    await written(writer, 1)
    assert (writer.waiting, writer.dropped) == (0, 0)
    [row] = await usage.fetch("SELECT * FROM usage_records")
    assert {**row, "request_id": str(row["request_id"])} == {name: getattr(put, name) for name in put.__struct_fields__}
    [total] = await usage.fetch("SELECT * FROM usage_totals")
    assert tuple(total.values()) == (NOON, 1, 2, 3, "gpt-x", "ada@example.com", 1, 10, 5, 7, 2, 1)


async def test_a_model_counts_once_an_upstream_has_answered_for_it(
    writer: UsageWriter, usage: asyncpg.Connection
) -> None:
    for status, model, backend, tokens in (
        (200, "real", 3, 5),
        (200, None, 3, 5),
        (404, "invented", None, 0),
        (400, "invented too", 3, 0),
        (499, "left in the middle", 3, 5),
    ):
        writer.put(entry(status=status, model=model, backend_id=backend, completion_tokens=tokens))
    assert await writer.close() == 0
    rows = await usage.fetch("SELECT model, backend_id, requests FROM usage_totals ORDER BY 1, 2")
    assert [tuple(row) for row in rows] == [("", 0, 1), ("", 3, 2), ("left in the middle", 3, 1), ("real", 3, 1)]
    await assert_totals_agree(usage, records=5)


async def test_another_schema(usage: asyncpg.Connection, database_url: str) -> None:
    await migrate(database_url)
    connection = await asyncpg.connect(database_url, timeout=10)
    try:
        await connection.execute("ALTER SCHEMA public RENAME TO other; CREATE SCHEMA public")
        async with writing(database_url, schema="other") as writer:
            writer.put(entry())
            assert await writer.close() == 0
        assert await connection.fetchval("SELECT requests FROM other.usage_totals") == 1
    finally:
        await connection.close(timeout=10)


async def test_a_clean_end_loses_none_and_takes_no_more(
    writer: UsageWriter, usage: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2 * BATCH + 1):
        writer.put(entry())
    assert await writer.close() == 0
    writer.put(entry())
    assert (writer.waiting, writer.written, writer.dropped) == (0, 2 * BATCH + 1, 1)
    await assert_totals_agree(usage, records=2 * BATCH + 1)
    assert await writer.close() == 0
    assert not caplog.records

    async def is_disconnected() -> bool:
        return not await cut_off(usage)

    await until(is_disconnected, 10, "the connection to be given back")


async def test_one_that_was_never_used_closes_at_once(api_database_url: str) -> None:
    assert await UsageWriter(api_database_url, schema="public", application_name=NAME).close() == 0


class TestLosingTheDatabase:
    async def test_an_answer_to_commit_that_is_lost_counts_nothing_twice(
        self, usage: asyncpg.Connection, api_database_url: str
    ) -> None:
        async with swallowing(api_database_url, b"COMMIT\0") as (url, swallowed), writing(url) as writer:
            for _ in range(BATCH):
                writer.put(entry())
            await written(writer, BATCH)
            assert swallowed() == 1
            await assert_totals_agree(usage, records=BATCH)

    async def test_a_connection_that_dies_before_the_commit_loses_none(
        self, usage: asyncpg.Connection, api_database_url: str
    ) -> None:
        async with swallowing(api_database_url, b"usage_totals") as (url, swallowed), writing(url) as writer:
            for _ in range(BATCH):
                writer.put(entry())
            await written(writer, BATCH)
            assert swallowed() == 1
            await assert_totals_agree(usage, records=BATCH)

    async def test_connections_that_are_ended_all_the_time(
        self, writer: UsageWriter, usage: asyncpg.Connection
    ) -> None:
        ended = 0
        for _ in range(20):
            for _ in range(100):
                writer.put(entry(key_id=random.randint(1, 5)))
            await asyncio.sleep(0.05)
            ended += await cut_off(usage)

        async def was_ended() -> bool:
            nonlocal ended
            ended += await cut_off(usage)
            return ended >= 3

        await until(was_ended, 30, "three connections to be ended")
        await written(writer, 2000)
        await assert_totals_agree(usage, records=2000)

    async def test_a_database_that_is_away_for_a_while_is_told_of_twice(
        self, database_url: str, server_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, logger="gasket.usage")

        def said() -> list[str]:
            return [record.getMessage() for record in caplog.records if record.name == "gasket.usage"]

        await migrate(database_url)
        name = Server.of(database_url).database
        server = await asyncpg.connect(server_url, timeout=10)
        try:
            async with writing(database_url) as writer:
                writer.put(entry())
                await written(writer, 1)
                await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
                await server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
                for _ in range(3 * BATCH):
                    writer.put(entry())
                await until(lambda: bool(said()), 30, "a complaint")
                assert writer.waiting == 3 * BATCH
                await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
                await written(writer, 3 * BATCH + 1)
                assert writer.dropped == 0
        finally:
            await server.close(timeout=10)
        away, back = said()
        assert away.startswith("usage is not written, up to 50000 records wait: ")
        assert back.startswith("usage is written again")

    async def test_a_full_queue_drops_the_newest_and_counts(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gasket.usage.writer.CLOSE_TIMEOUT", 0.5)
        async with writing("postgresql://127.0.0.1:1/none") as writer:
            first = entry()
            for _ in range(MOST_WAITING + 10):
                writer.put(first)
            assert (writer.waiting, writer.dropped) == (MOST_WAITING, 10)
            async with asyncio.timeout(30):
                assert await writer.close() == MOST_WAITING
            assert (writer.waiting, writer.dropped) == (0, MOST_WAITING + 10)
        assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "ERROR"]
        dropping, _, lost = caplog.messages
        assert dropping == "usage records are being dropped: 50000 wait for the database already"
        assert lost.startswith("50000 usage records are lost")

    async def test_a_server_that_answers_nothing_does_not_hold_up_the_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gasket.usage.writer.CLOSE_TIMEOUT", 0.5)

        async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        deaf = await asyncio.start_server(ignore, "127.0.0.1", 0)
        async with deaf:
            port = deaf.sockets[0].getsockname()[1]
            async with writing(f"postgresql://u@127.0.0.1:{port}/d?sslmode=disable") as writer:
                writer.put(entry())
                async with asyncio.timeout(30):
                    assert await writer.close() == 1


async def test_three_writers_of_the_same_keys_never_wait_in_a_circle(
    usage: asyncpg.Connection, api_database_url: str
) -> None:
    """Each batch has the keys in another order, so that unsorted upserts would deadlock at once."""
    before = await usage.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    writers = [UsageWriter(api_database_url, schema="public", application_name=NAME) for _ in range(3)]
    for number in range(10_000):
        changes = {"key_id": random.randint(1, 200), "model": random.choice("abc"), "started_at": NOON}
        writers[number % 3].put(entry(**changes, prompt_tokens=number))
    # A close has five seconds, and is not to be the one that writes most of them.
    await until(lambda: not any(writer.waiting for writer in writers), 60, "all to be written")
    assert await asyncio.gather(*(writer.close() for writer in writers)) == [0, 0, 0]
    assert sum(writer.written for writer in writers) == 10_000
    await assert_totals_agree(usage, records=10_000)
    await usage.execute("SELECT pg_stat_clear_snapshot()")
    after = await usage.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert after == before


@pytest.mark.parametrize(
    "poison",
    [
        lambda: entry(request_id="none of ours"),
        lambda: entry(key_id=2**40),
        lambda: entry(user_email=None),
        lambda: entry(status="many"),
        lambda: entry(bytes_in=2**70),
        lambda: entry(key_id=9, started_at=NOON),  # of which the totals have as many requests as fit
    ],
    ids=["request id", "integer", "null", "type", "more than 64 bits", "sum"],
)
async def test_one_entry_that_cannot_be_stored_stops_no_other(
    writer: UsageWriter, usage: asyncpg.Connection, caplog: pytest.LogCaptureFixture, poison: Callable[[], UsageEntry]
) -> None:
    await usage.execute(
        "INSERT INTO usage_totals VALUES ($1, 9, 2, 3, 'gpt-x', 'ada@example.com', 9223372036854775807, 0, 0)", NOON
    )
    bad = poison()
    for _ in range(50):
        writer.put(entry())
    writer.put(bad)
    for _ in range(50):
        writer.put(entry())
    assert await writer.close() == 0
    assert (writer.written, writer.dropped) == (100, 1)
    await usage.execute("DELETE FROM usage_totals WHERE key_id = 9")
    await assert_totals_agree(usage, records=100)
    [said] = caplog.messages
    assert said.startswith(f"the usage record of request {bad.request_id} is dropped: ")


async def test_what_clients_make_up_is_stored_cut_to_size(writer: UsageWriter, usage: asyncpg.Connection) -> None:
    writer.put(entry(model="m\0" + "\ud800" + "x" * 300, path="/v1/\0", prompt_tokens=2**70, completion_tokens=-1))
    assert await writer.close() == 0
    row = await usage.fetchrow("SELECT model, path, prompt_tokens, completion_tokens FROM usage_records")
    assert row is not None
    assert tuple(row) == ("m\ufffd?" + "x" * 197, "/v1/\ufffd", 10**9, 0)


class TestLastUse:
    @pytest.fixture
    async def keys(self, usage: asyncpg.Connection) -> list[int]:
        """Two keys that were never used."""
        profile = await usage.fetchval("INSERT INTO backend_profiles (name) VALUES ('p') RETURNING id")
        rows = await usage.fetch(
            "INSERT INTO api_keys (user_email, name, key_value, key_preview, profile_id) "
            "SELECT 'ada@example.com', n, n, n, $1 FROM (VALUES ('one'), ('two')) AS v (n) RETURNING id",
            profile,
        )
        return [row["id"] for row in rows]

    async def test_it_is_written_once_a_minute(
        self, usage: asyncpg.Connection, keys: list[int], api_database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gasket.usage.writer.INTERVAL", 0.1)
        seen: list[datetime | None] = []
        async with tapped(api_database_url) as tap, writing(tap.url) as writer:
            for seconds in (0, 59, 60, 61, 121):
                writer.put(entry(key_id=keys[0], started_at=NOON + timedelta(seconds=seconds)))
                await written(writer, len(seen) + 1)
                seen.append(await last_use(usage, keys[0]))
        assert [(moment - NOON).total_seconds() for moment in seen if moment] == [0, 0, 60, 60, 121]
        assert await last_use(usage, keys[1]) is None
        [statements] = tap.statements
        # The driver parses a statement without a name twice.
        assert len([statement for statement in statements if "api_keys" in statement]) == 2 * 3

    async def test_a_key_that_a_rotation_has_replaced_has_a_time_of_its_own(
        self, writer: UsageWriter, usage: asyncpg.Connection, keys: list[int]
    ) -> None:
        await usage.execute(
            "INSERT INTO previous_api_keys (key_id, key_value, expires_at) SELECT id, 'old ' || name, $1 FROM api_keys",
            NOON,
        )
        writer.put(entry(key_id=keys[0], started_at=NOON))
        for digest in ("old two", "older two"):
            writer.put(entry(key_id=keys[1], started_at=NOON), previous_digest=digest)
        await written(writer, 3)
        assert [await last_use(usage, key) for key in keys] == [NOON, NOON]
        rows = await usage.fetch("SELECT key_value, last_used_at FROM previous_api_keys")
        assert {row["key_value"]: row["last_used_at"] for row in rows} == {"old one": None, "old two": NOON}

    @pytest.mark.parametrize("later", [timedelta(hours=-1), timedelta(seconds=59)])
    async def test_another_replica_has_just_written_it(
        self, writer: UsageWriter, usage: asyncpg.Connection, keys: list[int], later: timedelta
    ) -> None:
        await usage.execute("UPDATE api_keys SET last_used_at = $1", NOON)
        writer.put(entry(key_id=keys[0], started_at=NOON + later))
        await written(writer, 1)
        assert await last_use(usage, keys[0]) == NOON

    async def test_a_key_that_is_being_changed_holds_nothing_up(
        self, writer: UsageWriter, usage: asyncpg.Connection, keys: list[int], api_database_url: str
    ) -> None:
        other = await asyncpg.connect(api_database_url, timeout=10)
        try:
            async with other.transaction():
                await other.execute("SELECT FROM api_keys WHERE id = $1 FOR UPDATE", keys[0])
                for key in (*keys, 2_000_000_000):  # and one that is deleted meanwhile
                    writer.put(entry(key_id=key, started_at=NOON))
                await written(writer, 3)
                assert [await last_use(usage, key) for key in keys] == [None, NOON]
        finally:
            await other.close(timeout=10)


async def last_use(connection: asyncpg.Connection, key: int) -> datetime | None:
    moment: datetime | None = await connection.fetchval("SELECT last_used_at FROM api_keys WHERE id = $1", key)
    return moment


@asynccontextmanager
async def swallowing(url: str, statement: bytes) -> AsyncIterator[tuple[str, Callable[[], int]]]:
    """A local port to the server of `url`, that once keeps its answer to a statement and hangs up instead.

    Yields the URL, and how often it has happened.
    """
    target, tasks, swallowed = Server.of(url), set[asyncio.Task[None]](), 0

    async def serve(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        nonlocal swallowed
        server, to_server = await target.open()
        armed = False

        async def upwards() -> None:
            nonlocal armed
            while data := await client.read(1_000_000):
                armed = armed or (not swallowed and statement in data)
                to_server.write(data)
            to_server.close()

        tasks.add(asyncio.create_task(upwards()))
        while data := await server.read(1_000_000):
            if armed:
                swallowed += 1
                break
            to_client.write(data)
        to_client.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield target.url_through(listener.sockets[0].getsockname()[1]), lambda: swallowed
    await asyncio.gather(*tasks)


def test_ids_of_version_7_are_what_the_records_are_found_by() -> None:
    assert UUID(entry().request_id).version == 7
