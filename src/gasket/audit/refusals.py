"""Wrong credentials, counted, so that guessing makes a few entries of the audit and not millions."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.audit.service import AuditService
from gasket.origin import Origin

MOST_ADDRESSES = 10
"""With entries of their own; further addresses share one entry."""


class Refused(msgspec.Struct, frozen=True):
    """How often credentials of this address were wrong. Without one: of a Unix socket, or of further addresses."""

    source: str | None
    count: int
    further: bool = False


class RefusedSignIns:
    """Wrong credentials since the last entries were made."""

    def __init__(self) -> None:
        self._counts: dict[str | None, int] = {}
        self._further = 0

    def count(self, address: str | None) -> None:
        """Note one of this address; None is a Unix socket."""
        if address in self._counts or len(self._counts) < MOST_ADDRESSES:
            self._counts[address] = self._counts.get(address, 0) + 1
        else:
            self._further += 1

    def take(self) -> list[Refused]:
        """What was counted; counting begins anew."""
        found = list(self._found())
        self._counts, self._further = {}, 0
        return found

    def put_back(self, refused: list[Refused]) -> None:
        """Count what could not be stored together with what came meanwhile."""
        for one in refused:
            if one.further or (one.source not in self._counts and len(self._counts) >= MOST_ADDRESSES):
                self._further += one.count
            else:
                self._counts[one.source] = self._counts.get(one.source, 0) + one.count

    def _found(self) -> Iterator[Refused]:
        for address, count in self._counts.items():
            yield Refused(address, count)
        if self._further:
            yield Refused(None, self._further, further=True)


async def record_refused(session: AsyncSession, refused: list[Refused]) -> None:
    """An entry for each. The caller commits."""
    for one in refused:
        details: dict[str, object] = {"count": one.count}
        if one.further:
            details["sources"] = "further addresses"
        origin = Origin(actor="unknown", kind="unknown", how="api", source=one.source)
        await AuditService(session).record(origin, "refused_sign_in", details=details)
