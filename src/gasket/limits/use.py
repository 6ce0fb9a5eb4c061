"""How much of their limits keys and profiles have used, as all replicas together have told it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.limits.models import LimitSlot, LimitWindow
from gasket.limits.subjects import Limits
from gasket.limits.windows import SlidingWindow

_MINUTE = 60


class LimitUse(msgspec.Struct, frozen=True, kw_only=True):
    """What was used in the last minute and the last token window, and how many places replicas hold now."""

    requests: int = 0
    tokens: int = 0
    places: int = 0


class LimitUseService:
    """Reads what replicas write at least once a second. Nothing is counted for what has no limit."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def of(self, limits: Mapping[str, Limits]) -> dict[str, LimitUse]:
        """The use of each of these subjects (`key:5`, `profile:2`), with two queries."""
        limited = {subject: limit for subject, limit in limits.items() if limit.any}
        if not limited:
            return {subject: LimitUse() for subject in limits}
        used = await self._used(limited)
        places = await self._places(limited)
        return {
            subject: LimitUse(
                requests=used.get((subject, "requests"), 0),
                tokens=used.get((subject, "tokens"), 0),
                places=places.get(subject, 0),
            )
            for subject in limits
        }

    async def _used(self, limits: Mapping[str, Limits]) -> dict[tuple[str, str], int]:
        """By subject and kind. The window before the current one counts in part, so rows may have ended."""
        length = LimitWindow.ends_at - LimitWindow.starts_at
        rows = await self._session.execute(
            select(
                LimitWindow.subject,
                LimitWindow.kind,
                LimitWindow.starts_at,
                LimitWindow.ends_at,
                LimitWindow.used,
                func.now().label("now"),
            ).where(LimitWindow.subject.in_(limits), LimitWindow.ends_at + length > func.now())
        )
        windows: dict[tuple[str, str], SlidingWindow] = {}
        now = 0.0
        for row in rows:
            seconds = _MINUTE if row.kind == "requests" else limits[row.subject].token_window
            if (row.ends_at - row.starts_at).total_seconds() == seconds:  # else the limit had another window then
                window = windows.setdefault((row.subject, row.kind), SlidingWindow(seconds))
                window.learn(int(row.starts_at.timestamp()), row.used)
            now = row.now.timestamp()
        return {name: int(window.used(now)) for name, window in windows.items()}

    async def _places(self, limits: Mapping[str, Limits]) -> dict[str, int]:
        rows = await self._session.execute(
            select(LimitSlot.subject, LimitSlot.slots).where(
                LimitSlot.subject.in_(limits), LimitSlot.expires_at > func.now()
            )
        )
        places: defaultdict[str, int] = defaultdict(int)
        for subject, slots in rows:
            places[subject] += slots
        return places
