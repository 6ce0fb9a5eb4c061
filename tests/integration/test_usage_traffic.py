"""What the pages show of the last hour and day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from gasket import db
from gasket.usage.store import UsageStore
from gasket.usage.traffic import Traffic, TrafficService, percentile

from .test_usage_writer import usage  # noqa: F401  # a fixture
from .usage_entries import entry

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
FIVE = timedelta(minutes=5)


async def last_hour(url: str, now: datetime) -> Traffic:
    engine = db.create_engine(url, schema="public", release="test", pool_size=1)
    try:
        async with db.create_sessions(engine)() as session:
            return await TrafficService(session).last(now, slots=12, width=FIVE)
    finally:
        await engine.dispose()


async def test_requests_errors_durations_and_tokens(usage: asyncpg.Connection, api_database_url: str) -> None:  # noqa: F811
    now = NOON + timedelta(minutes=3)
    batch = [
        *[entry(started_at=NOON - FIVE, duration_ms=100.0) for _ in range(98)],
        entry(started_at=NOON, status=502, outcome="upstream_failed", duration_ms=9000.0),
        entry(started_at=NOON, status=400, duration_ms=9000.0),
        entry(started_at=NOON, status=499, outcome="client_gone", duration_ms=0.0),
        entry(started_at=NOON - timedelta(hours=1)),
    ]
    store = UsageStore("public")
    await store.write(usage, batch, {})
    await store.write(usage, batch, {})  # as after a COMMIT whose answer was lost
    traffic = await last_hour(api_database_url, now)
    assert [slot.start for slot in traffic.slots] == [NOON - FIVE * back for back in range(11, -1, -1)]
    assert [slot.requests for slot in traffic.slots] == [0] * 10 + [98, 3]
    assert (traffic.requests, traffic.failed, traffic.tokens) == (101, 2, 101 * 15)
    assert traffic.p50_ms == pytest.approx(100, rel=0.05)
    assert traffic.p99_ms == pytest.approx(9000, rel=0.05)


async def test_without_a_request_nothing_took_any_time(usage: asyncpg.Connection, api_database_url: str) -> None:  # noqa: F811
    traffic = await last_hour(api_database_url, NOON)
    assert (traffic.requests, traffic.p50_ms, traffic.p99_ms) == (0, None, None)
    assert len(traffic.slots) == 12


@pytest.mark.parametrize(("share", "bucket"), [(0.0, 3), (0.5, 3), (0.51, 5), (0.99, 5), (1.0, 9)])
def test_a_percentile_is_in_the_bucket_in_which_it_is_reached(share: float, bucket: int) -> None:
    assert percentile({9: 1, 3: 50, 5: 49}, share) == 2 ** ((bucket + 0.5) / 8)
