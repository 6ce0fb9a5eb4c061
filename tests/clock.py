"""A clock of the test's own, for what takes one in place of `time.monotonic`."""

from __future__ import annotations


class Clock:
    """It stands still until the test moves it. `now` is in seconds."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
