"""Old records go, in small batches and whoever else is at it; totals stay."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import asyncpg
import pytest

from gasket.app import create_app
from gasket.settings import read_settings
from gasket.usage.retention import Retention
from gasket.usage.writer import UsageWriter
from tests.acceptance.processes import until

from .conftest import ADMIN_TOKEN, SECRET_KEY
from .usage_entries import entry

# Ids as we make them: the time in milliseconds, the version, and anything.
RECORDS = """
INSERT INTO usage_records
SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3)
    || 'a' || substr(md5(n::text), 4, 15))::uuid,
    at, 1, 'ada@example.com', 2, NULL, NULL, '/v1/models', 200, 'ok', NULL, 1, 0, 0, 0, 0, false, 0
FROM (SELECT n, now() - make_interval(secs => $1 * 86400 + n) AS at FROM generate_series(1, $2::int) AS n) AS moments
"""

Fill = Callable[[float, int], Awaitable[None]]


@pytest.fixture
async def usage(database: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    yield database
    await database.execute("DELETE FROM usage_records; DELETE FROM usage_totals; DELETE FROM usage_slots")
    await database.execute("DELETE FROM usage_days")


@pytest.fixture
def fill(usage: asyncpg.Connection) -> Fill:
    """Call it with an age in days and a number: so many records of that age and some seconds."""

    async def insert(days: float, count: int) -> None:
        await usage.execute(RECORDS, days, count)

    return insert


def due_at_once(days: int, at_once: int) -> Retention:
    retention = Retention("public", days=days, at_once=at_once)
    retention._next = 0.0
    return retention


async def test_what_is_older_goes_batch_by_batch(usage: asyncpg.Connection, fill: Fill) -> None:
    await fill(29.99, 5)
    await fill(30, 25)
    retention = due_at_once(30, 10)
    assert [await retention.step(usage) for _ in range(2)] == [10, 10]
    assert retention.due()
    assert await retention.step(usage) == 5
    assert not retention.due()
    assert await usage.fetchval("SELECT count(*) FROM usage_records") == 5
    retention._next = 0.0
    await fill(40, 3)
    assert await retention.step(usage) == 3


async def test_the_longest_retention_reaches_back_before_1970_and_deletes_nothing(
    usage: asyncpg.Connection, fill: Fill
) -> None:
    await fill(0, 5)
    await fill(20_000, 5)
    assert await due_at_once(36_500, 10).step(usage) == 0
    assert await usage.fetchval("SELECT count(*) FROM usage_records") == 10


async def test_two_replicas_at_it_take_what_the_other_leaves(
    usage: asyncpg.Connection, fill: Fill, api_database_url: str
) -> None:
    await fill(31, 20)
    other = await asyncpg.connect(api_database_url, timeout=10)
    try:
        transaction = other.transaction()
        await transaction.start()
        assert await due_at_once(30, 10).step(other) == 10
        async with asyncio.timeout(30):
            assert await due_at_once(30, 15).step(usage) == 10
        assert await usage.fetchval("SELECT count(*) FROM usage_records") == 10
        await transaction.rollback()
    finally:
        await other.close(timeout=10)


def test_it_waits_at_the_start() -> None:
    assert not Retention("public", days=30).due()
    assert due_at_once(1, 10).due()


async def test_zero_days_is_for_ever_but_for_slots(usage: asyncpg.Connection, fill: Fill) -> None:
    await fill(1000, 3)
    await usage.execute(
        "INSERT INTO usage_slots SELECT now() - make_interval(days => age), 1, 1, 0, 0 "
        "FROM unnest(ARRAY[7, 9, 100]) AS age"
    )
    retention = due_at_once(0, 10)
    assert await retention.step(usage) == 0
    assert not retention.due()
    assert await usage.fetchval("SELECT count(*) FROM usage_records") == 3
    assert await usage.fetchval("SELECT count(*) FROM usage_slots") == 1


async def test_the_writer_does_it_between_two_batches(
    usage: asyncpg.Connection, fill: Fill, api_database_url: str
) -> None:
    await fill(31, 25)
    retention = due_at_once(30, 10)
    writer = UsageWriter(api_database_url, schema="public", application_name="gasket-usage-test", retention=retention)
    writer.put(entry())
    try:

        async def old_ones_are_gone() -> bool:
            return bool(await usage.fetchval("SELECT count(*) = 1 FROM usage_records"))

        await until(old_ones_are_gone, 20, "the old records to be deleted")
    finally:
        await writer.close()
    assert writer.written == 1
    assert await usage.fetchval("SELECT sum(requests) FROM usage_totals") == 1


@pytest.fixture
def as_it_was() -> Iterator[None]:
    """What a replica makes of the process's garbage collector ends with the test."""
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


@pytest.mark.usefixtures("as_it_was")
async def test_a_replica_without_requests_does_it_too(
    usage: asyncpg.Connection, fill: Fill, api_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gasket.proxy.plugin._BACKGROUND_AFTER", 0.01)
    monkeypatch.setattr("gasket.usage.retention._FIRST", (0.0, 0.0))
    await fill(91, 5)
    environment = {"DATABASE_URL": api_database_url, "GASKET_ADMIN_TOKEN": ADMIN_TOKEN, "GASKET_SECRET_KEY": SECRET_KEY}

    async def gone() -> bool:
        return not await usage.fetchval("SELECT count(*) FROM usage_records")

    async with create_app(read_settings(environment)).lifespan():
        await until(gone, 20, "the old records to be deleted")


async def test_the_old_ones_that_cannot_be_deleted_hold_up_no_new_ones(
    usage: asyncpg.Connection, api_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    retention = Retention("nowhere", days=30)
    retention._next = 0.0
    writer = UsageWriter(api_database_url, schema="public", application_name="gasket-usage-test", retention=retention)
    for _ in range(2):
        writer.put(entry())
        await until(lambda: not writer.waiting, 10, "the entry to be written")
    await until(lambda: bool(caplog.messages), 10, "a complaint")
    assert await writer.close() == 0
    [said] = caplog.messages
    assert said.startswith("old usage records stay for another hour: ")
    assert await usage.fetchval("SELECT count(*) FROM usage_records") == 2


async def test_what_a_replica_does_at_its_end_leaves_no_connection(
    api_database_url: str, database: asyncpg.Connection
) -> None:
    """Also if it is not the first one of the process."""
    settings = {"DATABASE_URL": api_database_url, "GASKET_ADMIN_TOKEN": ADMIN_TOKEN, "GASKET_SECRET_KEY": SECRET_KEY}
    settings["GASKET_RELEASE"] = "0.0.1-end"
    apps = [create_app(read_settings(settings)) for _ in range(2)]
    for app in apps:
        async with app.lifespan():
            await asyncio.sleep(0)  # the audit waits for its next work
            app.state.authenticator.count_guess_from("203.0.113.79")

    async def gone() -> bool:
        return not await database.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE position('0.0.1-end' IN application_name) > 0"
        )

    await until(gone, 30, "the end of the connections")
    refused = "SELECT count(*) FROM audit_log WHERE action = 'refused_sign_in' AND source = '203.0.113.79'"
    assert await database.fetchval(refused) == 2
    del app, apps  # not earlier: what is collected is closed, too
