"""A sliding window, of two fixed ones: the current, and as much of the one before as still lies within. Pure.

It is exact where requests come evenly; at worst it takes for even what was not. One more may pass while less than the
limit is used: that lets all of an empty window be used at once, and all of it where requests come evenly; the last one
may exceed the limit, by less than one. Whatever the length of the window and the number of requests, it costs two
numbers.
"""

from __future__ import annotations

import math
from collections import defaultdict


class SlidingWindow:
    """What was used of a limit in the last `seconds`: by all replicas, as far as it is reported, and by this one.

    Times are seconds since 1970, by the database's clock.
    """

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        self._shared: dict[int, int] = {}
        self._own: defaultdict[int, int] = defaultdict(int)
        self._being_reported: dict[int, int] = {}

    def count(self, amount: int, now: float) -> None:
        """Add what this replica has used."""
        self._own[self._index(now)] += amount

    def used(self, now: float) -> float:
        """The use in the last `seconds`, approximately."""
        index = self._index(now)
        return self._total(index) + self._total(index - 1) * self._weight_of_last(now)

    @property
    def unreported(self) -> int:
        """The use that the other replicas do not know yet."""
        return sum(self._own.values())

    def wait(self, limit: int, now: float) -> float:
        """Seconds until less than the limit is used, if nothing else comes."""
        index = self._index(now)
        current, last = self._total(index), self._total(index - 1)
        left = self.seconds - (now - index * self.seconds)
        if current < limit:
            return _until_small(last, limit - current, left, self.seconds)
        return left + _until_small(current, limit, self.seconds, self.seconds)

    def to_report(self) -> dict[int, int]:
        """What to report, by the start of its window. Call `reported` once it is written, or this again."""
        for index, amount in self._own.items():
            self._being_reported[index] = self._being_reported.get(index, 0) + amount
        self._own.clear()
        return {index * self.seconds: amount for index, amount in self._being_reported.items()}

    def reported(self) -> None:
        """It is written. It counts beside the known sum until `learn` brings one that contains it."""
        for index, amount in self._being_reported.items():
            self._shared[index] = self._shared.get(index, 0) + amount
        self._being_reported.clear()

    def learn(self, start: int, used: int) -> None:
        """Take over what all replicas have used in the window that starts at `start`."""
        self._shared[start // self.seconds] = used

    def forget_old(self, now: float) -> None:
        """Drop what no longer counts."""
        oldest = self._index(now) - 1
        for counts in (self._shared, self._own, self._being_reported):
            for index in [index for index in counts if index < oldest]:
                del counts[index]

    def starts(self, now: float) -> tuple[int, int]:
        """The starts of the window before and the current one."""
        index = self._index(now)
        return (index - 1) * self.seconds, index * self.seconds

    def _index(self, now: float) -> int:
        return int(now // self.seconds)

    def _weight_of_last(self, now: float) -> float:
        return 1 - (now % self.seconds) / self.seconds

    def _total(self, index: int) -> int:
        return self._shared.get(index, 0) + self._own.get(index, 0) + self._being_reported.get(index, 0)


def _until_small(amount: int, room: int, left: float, seconds: int) -> float:
    """Seconds until an amount that fades out evenly, with `left` of `seconds` to go, is at most `room`."""
    if amount * left / seconds <= room:
        return 0.0
    return left - seconds * room / amount


def remaining(limit: int, used: float) -> int:
    """How many requests may come now, one after the other."""
    return max(0, limit - math.floor(used))
