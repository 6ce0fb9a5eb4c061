"""How much was asked lately, how much of it failed, and how long it took."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy import BigInteger, ColumnElement, cast, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.usage.models import UsageSlot

_BUCKETS_OF_AN_OCTAVE = 8


class Slot(msgspec.Struct, frozen=True):
    """What began in five minutes, or in an hour, from `start` on. `failed` is part of `requests`."""

    start: datetime
    requests: int = 0
    failed: int = 0
    tokens: int = 0


class Traffic(msgspec.Struct, frozen=True):
    """The sums of a range and its slots, oldest first and without a gap.

    The durations are from a request's head to the end of its answer, in milliseconds; None: there was no request.
    """

    slots: list[Slot]
    p50_ms: float | None
    p99_ms: float | None

    @property
    def requests(self) -> int:
        """All of the range."""
        return sum(slot.requests for slot in self.slots)

    @property
    def failed(self) -> int:
        """Those that ended with an error, a refusal included. A client that left is none."""
        return sum(slot.failed for slot in self.slots)

    @property
    def tokens(self) -> int:
        """Prompt and completion."""
        return sum(slot.tokens for slot in self.slots)


class TrafficService:
    """Reads what the writer of usage has summed up by five minutes."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def last(self, now: datetime, *, slots: int, width: timedelta) -> Traffic:
        """The last `slots` times `width`, whole multiples of five minutes; the newest is still going on."""
        newest = _begin(now, width)
        starts = [newest - width * back for back in reversed(range(slots))]
        in_range = UsageSlot.slot >= starts[0]
        # Literals: to PostgreSQL the same expression with another parameter is another expression.
        wide: ColumnElement[timedelta] = literal_column(f"interval '{width.total_seconds():.0f} seconds'")
        start = func.date_bin(wide, UsageSlot.slot, literal_column("timestamptz '2000-01-01Z'"))
        sums = [
            cast(func.sum(column), BigInteger()) for column in (UsageSlot.requests, UsageSlot.failed, UsageSlot.tokens)
        ]
        rows = await self._session.execute(select(start, *sums).where(in_range).group_by(start))
        found = {row[0]: Slot(*row) for row in rows}
        counts = await self._session.execute(
            select(UsageSlot.bucket, sums[0]).where(in_range).group_by(UsageSlot.bucket)
        )
        buckets = {row[0]: row[1] for row in counts}
        return Traffic(
            [found.get(begun) or Slot(begun) for begun in starts], percentile(buckets, 0.5), percentile(buckets, 0.99)
        )


def percentile(buckets: Mapping[int, int], share: float) -> float | None:
    """The duration in milliseconds within which this share of the requests ended; right to 5 %. None: there is none.

    `buckets` has the number of requests by `UsageSlot.bucket`.
    """
    wanted = share * sum(buckets.values())
    reached = 0
    for bucket, requests in sorted(buckets.items()):
        reached += requests
        if reached and reached >= wanted:
            return float(2 ** ((bucket + 0.5) / _BUCKETS_OF_AN_OCTAVE))
    return None


def _begin(moment: datetime, width: timedelta) -> datetime:
    seconds = width.total_seconds()
    return datetime.fromtimestamp(moment.timestamp() // seconds * seconds, UTC)
