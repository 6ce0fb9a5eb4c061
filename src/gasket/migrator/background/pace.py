"""How large a batch is and how long the pause after it: a backfill is never in anybody's way for long."""

from __future__ import annotations

_FIRST_SIZE = 100
_LARGEST_SIZE = 20_000
_AIM = 0.1
"""Seconds that a batch is to take: so long a writer may wait for one of its rows."""
_AIM_IN_THE_WAY = 0.025
_ROOM = 0.7
"""Of the aim, as far as batches grow by themselves: one in a row may take longer, as at a checkpoint."""
_NO_SHORTER = 0.7
"""Of the time of a batch with twice as many rows."""
_FIRST_RETREAT = 0.2
_LONGEST_RETREAT = 10.0


class Pace:
    """`share` of the time is worked, from above 0 to 1. `size` is how many rows the next batch may change."""

    def __init__(self, share: float) -> None:
        self.size = _FIRST_SIZE
        self._share = share
        self._retreat = _FIRST_RETREAT
        self._suspects = 0
        self._fixed = 0.0
        self._last = (0, 0.0)

    def after_batch(self, seconds: float, rows: int, *, in_the_way: bool) -> float:
        """The pause after a batch that took so long and changed `rows`; it sets the size of the next.

        `in_the_way`: another session waited for its locks. Then the next batch is shorter, or at least no larger,
        and the pause as long as this one.
        """
        self._retreat = _FIRST_RETREAT
        self._suspects = max(0, self._suspects - rows)
        if rows:  # without any, the time says nothing of a smaller batch
            self._note_fixed(seconds, rows)
        aim = _AIM_IN_THE_WAY if in_the_way else max(_AIM, self._fixed / 2)
        factor = aim / max(seconds - self._fixed, 0.001)
        full = rows >= self.size
        if factor < 1 and rows:
            self.size = max(1, int(self.size * factor))
        elif full and not self._suspects and not in_the_way:
            self.size = min(_LARGEST_SIZE, max(self.size, int(self.size * min(2.0, factor * _ROOM))))
        pause = seconds * (1 - self._share) / self._share
        return max(pause, seconds) if in_the_way else pause

    def _note_fixed(self, seconds: float, rows: int) -> None:
        """See how much of a batch's time does not depend on its rows: a smaller one would not be shorter.

        A `where` with a subquery that reads a whole table takes its time before the first row is locked.
        """
        rows_before, seconds_before = self._last
        self._last = rows, seconds
        no_shorter = 2 * rows <= rows_before and seconds > _NO_SHORTER * seconds_before
        if no_shorter or rows == 1:
            self._fixed = seconds
        else:
            self._fixed = min(self._fixed, seconds)

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
