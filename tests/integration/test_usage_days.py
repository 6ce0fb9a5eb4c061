"""Days of usage are summed up, and what is read of them is what the totals have, whoever changes these and when."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any, get_args

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.db import create_engine, create_sessions
from gasket.usage.groups import SUMMED
from gasket.usage.schemas import Group, UsageQuery
from gasket.usage.service import UsageService
from gasket.usage.store import BEGIN
from gasket.usage.summing import Block, DaySums
from gasket.usage.writer import BATCH, UsageWriter
from tests.acceptance.installation import REPOSITORY
from tests.acceptance.processes import until

from .conftest import migrate
from .usage_entries import entry

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
DAYS = 20
FIRST = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - (DAYS + 2) * DAY
"""The day with the number 0; days up to the number DAYS are over."""
GROUPS: list[Group] = ["key", "user", "profile", "model", "backend", "day", "month"]
ADD = """
INSERT INTO usage_totals AS t SELECT $1, $2, $3, $4, $5, $6, n, 10 * n, n, 7 * n, 2 * n, n
FROM (SELECT $7::bigint) AS v (n)
ON CONFLICT (hour, key_id, profile_id, backend_id, model) DO UPDATE SET
    requests = t.requests + excluded.requests, prompt_tokens = t.prompt_tokens + excluded.prompt_tokens
"""
EMPTY = "DELETE FROM usage_records; DELETE FROM usage_totals; DELETE FROM usage_slots; DELETE FROM usage_days"
WITHOUT_TRIGGERS = "SET LOCAL session_replication_role = replica"


@pytest.fixture
async def usage(database: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A look at the session's database, whose tables of usage are empty."""
    await database.execute(EMPTY)
    yield database
    await database.execute(EMPTY)


@pytest.fixture
async def other(api_database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """One more session."""
    connection = await asyncpg.connect(api_database_url, timeout=30)
    yield connection
    await connection.close(timeout=10)


@pytest.fixture(scope="module")
async def session(api_database_url: str) -> AsyncIterator[AsyncSession]:
    """As a page has it."""
    async with session_of(api_database_url) as session:
        yield session


@asynccontextmanager
async def session_of(url: str) -> AsyncIterator[AsyncSession]:
    engine = create_engine(url, schema="public", release="test", pool_size=1)
    async with create_sessions(engine)() as session:
        yield session
    await engine.dispose()


async def add(connection: asyncpg.Connection, day: int, *, key: int = 1) -> None:
    """A request at noon of the day with this number."""
    await connection.execute(ADD, FIRST + day * DAY + 12 * HOUR, key, key, key, f"m{key}", f"u{key}@example.com", 1)


async def sum_all(connection: asyncpg.Connection, sums: DaySums | None = None) -> list[date]:
    """Sum up until nothing is left to do; the single days in the order in which they were summed."""
    sums = sums or DaySums("public", first=(0.0, 0.0))
    days = []
    async with asyncio.timeout(60):  # other tests' transactions on the same server have to end
        while sums.due():
            block = await sums.step(connection)
            if block and block.days == 1:
                days.append(block.day)
    return days


async def good_days(connection: asyncpg.Connection) -> list[int]:
    """The numbers of the days whose sums are used."""
    rows = await connection.fetch(
        "SELECT day FROM usage_days WHERE by IN ('all', 'changed') AND days = 1 "
        "GROUP BY day HAVING bool_and(by = 'all' AND name = tableoid::text) ORDER BY day"
    )
    return [(row["day"] - FIRST.date()).days for row in rows]


async def of_service(session: AsyncSession, query: UsageQuery) -> dict[Any, tuple[int, ...]]:
    """What a page of `/api/usage` and the page Usage tell, which has to be the same."""
    service, [group] = UsageService(session), query.groups
    async with session.begin():
        items, count = await service.sums(query, order="asc", limit=10_000, offset=0)
    async with session.begin():
        largest = await service.largest(query, limit=10_000)
    found = {getattr(item, group): tuple(getattr(item, name) for name in SUMMED) for item in items}
    assert {getattr(item, group): tuple(getattr(item, name) for name in SUMMED) for item in largest.rows} == found
    assert largest.groups == count == len(items) == len(found)
    overall = tuple(getattr(largest.total, name) for name in SUMMED)
    assert overall == added(found.values())
    return found


async def of_totals(connection: asyncpg.Connection, query: UsageQuery) -> dict[Any, tuple[int, ...]]:
    """The same, added up here."""
    groups: dict[Any, list[tuple[int, ...]]] = defaultdict(list)
    for row in await connection.fetch("SELECT * FROM usage_totals"):
        hour = row["hour"].astimezone(UTC)
        if (query.start is None or hour >= query.start) and (query.end is None or hour < query.end):
            values = {
                "key": row["key_id"],
                "user": row["user_email"].lower(),
                "profile": row["profile_id"],
                "model": row["model"] or None,
                "backend": row["backend_id"] or None,
                "day": hour.date(),
                "month": f"{hour:%Y-%m}",
            }
            groups[values[query.groups[0]]].append(tuple(row[name] for name in SUMMED))
    return {value: added(rows) for value, rows in groups.items()}


def added(rows: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*rows, strict=True))) or (0,) * len(SUMMED)


class TestReading:
    @pytest.mark.parametrize("seed", range(4))
    async def test_it_is_what_the_totals_have(
        self, usage: asyncpg.Connection, session: AsyncSession, seed: int
    ) -> None:
        chosen = random.Random(seed)
        changes = [self.change_some, self.erase_one, self.delete_some, self.sum_some, self.sum_some, self.sum_some]
        await self.change_some(usage, chosen)
        for _ in range(12):
            await chosen.choice(changes)(usage, chosen)
            for group in chosen.sample(GROUPS, 3):
                query = UsageQuery(groups=(group,), start=self.moment(chosen), end=self.moment(chosen, after=DAYS))
                assert await of_service(session, query) == await of_totals(usage, query), query

    @staticmethod
    def moment(chosen: random.Random, after: int = 0) -> datetime | None:
        """None, the beginning of a day, or any hour; before the totals, among them, or after them."""
        moment = FIRST + DAY * (chosen.randint(-2, DAYS) + after) + HOUR * chosen.choice([0, 0, chosen.randint(0, 23)])
        return chosen.choice([None, moment, moment, moment])

    @staticmethod
    async def change_some(usage: asyncpg.Connection, chosen: random.Random) -> None:
        rows = [
            (
                FIRST + HOUR * chosen.randint(0, 24 * (DAYS - 5) - 1),
                chosen.randint(1, 12),
                chosen.randint(1, 3),
                chosen.randint(0, 2),
                chosen.choice(["", "small", "large"]),
                chosen.choice(["ada@example.com", "Ada@Example.com", "bob@example.com"]),
                chosen.randint(1, 1000),
            )
            for _ in range(chosen.randint(1, 60))
        ]
        await usage.executemany(ADD, rows)
        await usage.execute("UPDATE usage_totals SET hour = hour + interval '5 days' WHERE key_id = 12 AND model = ''")

    @staticmethod
    async def erase_one(usage: asyncpg.Connection, chosen: random.Random) -> None:
        await usage.execute("UPDATE usage_totals SET user_email = 'x' WHERE user_email = 'bob@example.com'")

    @staticmethod
    async def delete_some(usage: asyncpg.Connection, chosen: random.Random) -> None:
        await usage.execute("DELETE FROM usage_totals WHERE key_id = $1", chosen.randint(1, 12))

    @staticmethod
    async def sum_some(usage: asyncpg.Connection, chosen: random.Random) -> None:
        await sum_all(usage)
        days = chosen.sample(range(DAYS), chosen.randint(0, 8))
        await usage.execute("DELETE FROM usage_days WHERE day - $1 = ANY ($2)", FIRST.date(), days)

    @pytest.mark.parametrize("group", GROUPS)
    async def test_the_totals_of_days_with_sums_are_not_read(
        self, usage: asyncpg.Connection, session: AsyncSession, group: Group
    ) -> None:
        for day in range(3):
            await add(usage, day)
        await sum_all(usage)
        await usage.execute("UPDATE usage_days SET requests = 1000 WHERE requests = 1")
        # The last hour of the first day, the second day, and the first 13 hours of the third one.
        query = UsageQuery(groups=(group,), start=FIRST + 23 * HOUR, end=FIRST + 2 * DAY + 13 * HOUR)
        sums = await of_service(session, query)
        assert sum(requests for requests, *_ in sums.values()) == 1001

    @pytest.mark.parametrize(
        "query",
        [
            UsageQuery(groups=("hour",)),
            UsageQuery(groups=("key", "day")),
            UsageQuery(groups=("day",), key=1),
            UsageQuery(groups=("day",), keys=(1,)),
            UsageQuery(groups=("day",), user="u1@example.com"),
            UsageQuery(groups=("day",), profile=1),
            UsageQuery(groups=("day",), model="m1"),
            UsageQuery(groups=("day",), backend=1),
        ],
        ids=str,
    )
    async def test_what_days_cannot_tell_is_read_from_the_totals(
        self, usage: asyncpg.Connection, session: AsyncSession, query: UsageQuery
    ) -> None:
        await add(usage, 0)
        await add(usage, 0, key=2)
        await sum_all(usage)
        await usage.execute("UPDATE usage_days SET requests = 1000")
        async with session.begin():
            [first, *_], _ = await UsageService(session).sums(query, order="asc", limit=10, offset=0)
        assert first.requests == (2 if query.groups == ("hour",) else 1)

    def test_every_filter_is_known(self) -> None:
        """A new one has to be in `fits`, and in the test before (`end_user`: in `test_usage_api.py`)."""
        filters = {"key", "keys", "user", "profile", "model", "backend", "end_user"}
        assert set(UsageQuery.__struct_fields__) == {"groups", "start", "end"} | filters
        assert set(get_args(Group)) == {*GROUPS, "hour", "end_user"}


class TestSumming:
    async def test_the_newest_day_comes_first_and_today_never(self, usage: asyncpg.Connection) -> None:
        today = await usage.fetchval("SELECT ((now() - interval '1 hour') AT TIME ZONE 'UTC')::date")
        start = datetime(today.year, today.month, today.day, tzinfo=UTC)
        for ago in (0, 1, 3):
            await usage.execute(ADD, start - ago * DAY, 1, 1, 1, "m", "ada@example.com", 1)
        sums = DaySums("public", first=(0.0, 0.0))
        assert await sum_all(usage, sums) == [today - ago * DAY for ago in (1, 2, 3)]
        assert not sums.due()
        rows = await usage.fetch(
            "SELECT by, name, requests FROM usage_days WHERE day = $1 AND days = 1 ORDER BY by", today - DAY
        )
        oid = await usage.fetchval("SELECT 'usage_days'::regclass::oid::text")
        values = {"all": oid, "backend": "1", "key": "1", "model": "m", "profile": "1", "user": "ada@example.com"}
        assert [tuple(row) for row in rows] == [(by, name, 1) for by, name in values.items()]
        rows = await usage.fetch(
            "SELECT by, name, requests FROM usage_days WHERE day = $1 AND days = 1", today - 2 * DAY
        )
        assert [tuple(row) for row in rows] == [("all", oid, 0)]
        assert await sum_all(usage) == []

    async def test_it_waits_at_the_start(self) -> None:
        assert not DaySums("public").due()

    async def test_of_two_replicas_one_sums(self, usage: asyncpg.Connection, other: asyncpg.Connection) -> None:
        await add(usage, 0)
        await add(usage, 1)
        first, second = (DaySums("public", first=(0.0, 0.0)) for _ in range(2))
        async with summed_but_not_committed(usage, first):
            async with asyncio.timeout(30):
                assert await second.step(other) is None
            assert not second.due()
        await sum_all(usage, first)
        assert set(await good_days(usage)) >= {0, 1}

    async def test_another_schema_than_that_of_the_session(self, usage: asyncpg.Connection) -> None:
        await add(usage, 0)
        await usage.execute("SET search_path = pg_catalog")
        try:
            assert FIRST.date() in await sum_all(usage)
            await usage.execute("UPDATE public.usage_totals SET requests = 5")
            assert FIRST.date() in await sum_all(usage)
        finally:
            await usage.execute("RESET search_path")

    async def test_a_change_before_the_end_of_the_day_is_waited_for(
        self, usage: asyncpg.Connection, other: asyncpg.Connection, session: AsyncSession
    ) -> None:
        """Nothing marks it, so a transaction that goes on for hours must be in the sums."""
        await add(usage, 0)
        transaction = other.transaction()
        await transaction.start()
        await other.execute(WITHOUT_TRIGGERS)  # as of a statement while the day went on
        await add(other, 0)
        sums = DaySums("public", first=(0.0, 0.0))
        assert [await sums.step(usage) for _ in range(3)] == [None] * 3
        assert sums.due()
        await transaction.commit()
        await sum_all(usage, sums)
        query = UsageQuery(groups=("key",))
        assert await of_service(session, query) == await of_totals(usage, query)
        assert 0 in await good_days(usage)

    async def test_one_that_never_ends_is_told_of_once_an_hour(
        self,
        usage: asyncpg.Connection,
        other: asyncpg.Connection,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("gasket.usage.summing._LONGEST_WAIT", 0.0)
        transaction = other.transaction()
        await transaction.start()
        await other.fetchval("SELECT pg_current_xact_id()")
        sums = DaySums("public", first=(0.0, 0.0))
        while sums.due():
            assert await sums.step(usage) is None
        await transaction.rollback()
        [said] = caplog.messages
        assert said.startswith("days of usage are not summed up for another hour: a transaction has been open for 0 ")


@asynccontextmanager
async def summed_but_not_committed(connection: asyncpg.Connection, sums: DaySums) -> AsyncIterator[Block]:
    """A step that has done all but its COMMIT."""
    block = None
    while block is None:
        await connection.execute(BEGIN)
        block = await sums._step(connection)
        if block is None:
            await connection.execute("COMMIT")
    yield block
    await connection.execute("COMMIT")


class TestLateChanges:
    """Each of a day that is over and summed."""

    @pytest.mark.parametrize(
        "statement",
        [
            f"INSERT INTO usage_totals VALUES ('{FIRST + HOUR}', 9, 9, 9, '', 'a@example.com', 1, 1, 1)",
            f"UPDATE usage_totals SET requests = 5 WHERE hour < '{FIRST + DAY}'",
            f"UPDATE usage_totals SET hour = '{FIRST + HOUR}' WHERE hour > '{FIRST + DAY}'",
            f"UPDATE usage_totals SET hour = '2999-12-31' WHERE hour < '{FIRST + DAY}'",
            f"DELETE FROM usage_totals WHERE hour < '{FIRST + DAY}'",
            "TRUNCATE usage_totals",
        ],
    )
    async def test_any_statement_makes_the_sums_void(
        self, usage: asyncpg.Connection, session: AsyncSession, statement: str
    ) -> None:
        await add(usage, 0)
        await add(usage, 1)
        await sum_all(usage)
        assert {0, 1} <= set(await good_days(usage))
        await usage.execute(statement)
        assert 0 not in await good_days(usage)
        query = UsageQuery(groups=("key",))
        expected = await of_totals(usage, query)
        assert await of_service(session, query) == expected
        await sum_all(usage)
        assert await of_service(session, query) == expected
        assert await usage.fetchval("SELECT count(*) FROM usage_days WHERE by = 'changed'") == 0

    @pytest.mark.parametrize("statement", ["DELETE FROM usage_totals", "TRUNCATE usage_totals"])
    async def test_also_sums_that_the_transaction_cannot_see(
        self, usage: asyncpg.Connection, other: asyncpg.Connection, statement: str
    ) -> None:
        await add(usage, 0)
        async with other.transaction(isolation="repeatable_read"):
            assert await other.fetchval("SELECT count(*) FROM usage_days WHERE by = 'all'") == 0
            # As summing leaves it, which waits for this transaction if that has written anything.
            assert 0 in [(day - FIRST.date()).days for day in await sum_all(usage)]
            assert 0 in await good_days(usage)
            await other.execute(statement)
        assert 0 not in await good_days(usage)

    async def test_those_of_other_days_stay(self, usage: asyncpg.Connection) -> None:
        await add(usage, 0)
        await add(usage, 1)
        await sum_all(usage)
        before = await good_days(usage)
        await add(usage, 0)
        assert await good_days(usage) == before[1:]
        assert await sum_all(usage) == [FIRST.date()]

    async def test_today_leaves_no_mark(self, usage: asyncpg.Connection) -> None:
        await usage.execute(ADD, datetime.now(UTC), 1, 1, 1, "m", "ada@example.com", 1)
        await usage.execute("UPDATE usage_totals SET requests = 2")
        await usage.execute("DELETE FROM usage_totals WHERE hour > now() - interval '1 minute'")
        assert await usage.fetchval("SELECT count(*) FROM usage_days") == 0

    @pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
    @pytest.mark.parametrize("order", ["begins, sum, changes, commits", "sum begins, changes, sum commits"])
    async def test_whoever_comes_first_no_sum_stays_wrong(
        self, usage: asyncpg.Connection, other: asyncpg.Connection, session: AsyncSession, isolation: Any, order: str
    ) -> None:
        await add(usage, 0)
        sums = DaySums("public", first=(0.0, 0.0))
        transaction = other.transaction(isolation=isolation)
        async with asyncio.timeout(60):
            if order.startswith("begins"):
                await transaction.start()
                await other.fetch("SELECT FROM usage_days")  # its snapshot: it will not see what is summed after this
                await sum_all(usage, sums)
                await add(other, 0, key=2)
            else:
                async with summed_but_not_committed(usage, sums):
                    await transaction.start()
                    await add(other, 0, key=2)
            await transaction.commit()
        query = UsageQuery(groups=("key",))
        expected = await of_totals(usage, query)
        assert len(expected) == 2
        assert await of_service(session, query) == expected
        await sum_all(usage)
        assert await of_service(session, query) == expected
        assert 0 in await good_days(usage)

    async def test_one_that_is_not_committed_when_the_day_is_summed_makes_it_void_later(
        self, usage: asyncpg.Connection, other: asyncpg.Connection, session: AsyncSession
    ) -> None:
        await add(usage, 0)
        sums = DaySums("public", first=(0.0, 0.0))
        async with asyncio.timeout(60):
            while sums._over is None or not await usage.fetchval(
                "SELECT pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8", sums._over["transaction_id"]
            ):
                await sums.step(usage)
        transaction = other.transaction()
        await transaction.start()
        await add(other, 0, key=2)
        await sum_all(usage, sums)
        assert 0 in await good_days(usage)
        await transaction.commit()
        query = UsageQuery(groups=("key",))
        assert await of_service(session, query) == await of_totals(usage, query)

    async def test_late_ones_never_wait_for_each_other(
        self, usage: asyncpg.Connection, other: asyncpg.Connection
    ) -> None:
        await add(usage, 0)
        await sum_all(usage)
        transaction = other.transaction()
        await transaction.start()
        await add(other, 0, key=2)
        await add(other, 0, key=3)
        async with asyncio.timeout(30):
            await add(usage, 0, key=4)
        await transaction.commit()
        assert 0 not in await good_days(usage)


class TestInTheWriter:
    @pytest.fixture(autouse=True)
    def _often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gasket.usage.writer.INTERVAL", 0.01)

    async def test_it_sums_between_two_batches(self, usage: asyncpg.Connection, api_database_url: str) -> None:
        await add(usage, 0)
        async with writing(api_database_url, DaySums("public", first=(0.0, 0.0))) as writer:
            writer.put(entry(started_at=FIRST))

            async def is_summed() -> bool:
                return 0 in await good_days(usage) and await usage.fetchval(
                    "SELECT sum(requests) = 2 FROM usage_totals"
                )

            await until(is_summed, 120, "the day to be summed")

    async def test_days_that_cannot_be_summed_hold_up_no_records(
        self, usage: asyncpg.Connection, api_database_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        sums = DaySums("nowhere", first=(0.0, 0.0))
        async with writing(api_database_url, sums) as writer:
            for _ in range(2):
                writer.put(entry())
                await until(lambda: not writer.waiting, 30, "the entry to be written")
            await until(lambda: bool(caplog.messages), 30, "a complaint")
        [said] = caplog.messages
        assert said.startswith("days of usage are not summed up for another hour (the page Usage takes longer, and ")
        assert not sums.due()
        assert await usage.fetchval("SELECT count(*) FROM usage_records") == 2

    async def test_records_of_today_are_written_and_none_is_lost_while_a_day_is_summed(
        self, usage: asyncpg.Connection, other: asyncpg.Connection, api_database_url: str
    ) -> None:
        """The sum waits for a lock; records do not need it, and the end does not wait for the sum."""
        # Of the modes that keep a DELETE waiting, one that gives no id to the transaction: its end would be waited for.
        await add(usage, 0)
        transaction = other.transaction()
        await transaction.start()
        await other.execute("LOCK TABLE usage_days IN SHARE ROW EXCLUSIVE MODE")
        async with writing(api_database_url, DaySums("public", first=(0.0, 0.0))) as writer:

            async def waits() -> bool:
                return bool(
                    await usage.fetchval(
                        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'usage_days'::regclass"
                    )
                )

            await until(waits, 60, "the sum to wait")
            writer.put(entry())
            assert await writer.close() == 0
            assert writer.written == 1
        await transaction.rollback()

    async def test_a_batch_that_waits_comes_first(self, caplog: pytest.LogCaptureFixture) -> None:
        sums = DaySums("public", first=(0.0, 0.0))
        writer = UsageWriter("postgresql://127.0.0.1:1/none", schema="public", application_name="x", day_sums=sums)
        writer._queue.extend([entry()] * BATCH)
        await writer._sum_day()
        assert sums.due()
        writer._queue.clear()
        await writer._sum_day()
        assert not sums.due()


@asynccontextmanager
async def writing(url: str, sums: DaySums) -> AsyncIterator[UsageWriter]:
    writer = UsageWriter(url, schema="public", application_name="gasket-usage-test", day_sums=sums)
    writer.start()
    try:
        yield writer
    finally:
        await writer.close()


async def test_rows_that_come_back_from_the_archive_are_not_believed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the older release ran, totals of days that were over have changed, and nothing has marked them."""
    await migrate(database_url)
    connection = await asyncpg.connect(database_url, timeout=30)
    try:
        await add(connection, 0)
        await sum_all(connection)
        before = await connection.fetch("SELECT * FROM usage_days ORDER BY by, days, day, name")
        monkeypatch.setenv("DATABASE_URL", database_url)
        config = Config(str(REPOSITORY / "alembic.ini"))
        await asyncio.to_thread(command.downgrade, config, "e93a5c20d718")
        await add(connection, 0)
        await asyncio.to_thread(command.upgrade, config, "head")
        assert await connection.fetch("SELECT * FROM usage_days ORDER BY by, days, day, name") == before
        assert await good_days(connection) == []
        query = UsageQuery(groups=("key",))
        async with session_of(database_url) as session:
            assert await of_service(session, query) == await of_totals(connection, query)
        assert FIRST.date() in await sum_all(connection)
        assert 0 in await good_days(connection)
        sums = await connection.fetch("SELECT requests FROM usage_days WHERE day = $1 AND days = 1", FIRST.date())
        assert {row["requests"] for row in sums} == {2}
    finally:
        await connection.close(timeout=10)
