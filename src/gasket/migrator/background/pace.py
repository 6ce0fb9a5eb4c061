"""How large a batch is and how long the pause after it: a backfill is never in anybody's way for long."""

from __future__ import annotations

_FIRST_SIZE = 100
_LARGEST_SIZE = 20_000
_AIM = 0.1
"""Seconds that a batch is to take: so long a writer may wait for one of its rows."""
_AIM_IN_THE_WAY = 0.025
_ROOM = 0.7
"""Of the aim, as far as batches grow by themselves: one in a row may take longer, as at a checkpoint."""
_FIRST_RETREAT = 0.2
_LONGEST_RETREAT = 10.0


class Pace:
    """`share` of the time is worked, from above 0 to 1. `size` is how many rows the next batch may change."""

    def __init__(self, share: float) -> None:
        self.size = _FIRST_SIZE
        self._share = share
        self._retreat = _FIRST_RETREAT
        self._suspects = 0

    def after_batch(self, seconds: float, rows: int, *, in_the_way: bool) -> float:
        """The pause after a batch that took so long and changed `rows`; it sets the size of the next.

        `in_the_way`: another session waited for its locks. Then the next batch is shorter, and the pause as long as it.
        """
        self._retreat = _FIRST_RETREAT
        self._suspects = max(0, self._suspects - rows)
        factor = (_AIM_IN_THE_WAY if in_the_way else _AIM) / max(seconds, 0.001)
        full = rows >= self.size
        if factor < 1:
            self.size = max(1, int(self.size * factor))
        elif full and not self._suspects:
            self.size = min(_LARGEST_SIZE, max(self.size, int(self.size * min(2.0, factor * _ROOM))))
        pause = seconds * (1 - self._share) / self._share
        return max(pause, seconds) if in_the_way else pause

    def retreat(self) -> float:
        """The pause after a batch that did not get its locks, and was rolled back: longer each time."""
        self.size = max(1, self.size // 2)
        pause, self._retreat = self._retreat, min(self._retreat * 2, _LONGEST_RETREAT)
        return pause

    def split(self) -> bool:
        """A batch has failed: try its first half. False where it had only one row to change."""
        if self.size == 1:
            return False
        self._suspects = max(self._suspects, self.size)
        self.size //= 2
        return True
