"""The limits of keys and profiles, and how much of them one replica knows to be used. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from gasket.limits.windows import SlidingWindow, remaining

_MINUTE = 60
_PLACE_WAIT = 1.0
"""Seconds; when one of the running requests ends is not known."""
_FORGOTTEN_AFTER = 3
"""Windows in which nothing came."""

Fields = list[tuple[bytes, bytes]]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of a key or a profile; None is unlimited. `token_window` is in seconds."""

    requests_per_minute: int | None = None
    tokens_per_window: int | None = None
    token_window: int = _MINUTE
    max_concurrency: int | None = None

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return (self.requests_per_minute, self.tokens_per_window, self.max_concurrency) != (None, None, None)


NO_LIMITS = Limits()


class Refusal(NamedTuple):
    """A limit that refuses a request: `kind` is requests, tokens or concurrency; `wait` is in seconds."""

    kind: str
    message: str
    wait: float


class Subject:
    """One key or profile (`key:5`, `profile:2`), as this replica knows it."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.in_use = 0
        """Requests under way."""
        self.leased = 0
        """Places that the replica has: as many requests may be under way without asking the database."""
        self.booked = 0
        """Places that the database has for this replica; one that is given up stays there until the next exchange."""
        self.peak = 0
        """The most requests under way since the last exchange."""
        self.overbooked = False
        """Whether all replicas together have more places than the limit."""
        self.full_until = 0.0
        """By the monotonic clock: until then the database is not asked for places again."""
        self.used_at = 0.0
        """By the monotonic clock."""
        self.loaded = False
        """Whether it knows what the others have let pass before."""
        self.windows: dict[str, SlidingWindow] = {}
        self.take(limits)

    def take(self, limits: Limits) -> None:
        """The limits as they are now: counts stay, unless the window has another length."""
        self.limits = limits
        for kind, seconds, limit in (
            ("requests", _MINUTE, limits.requests_per_minute),
            ("tokens", limits.token_window, limits.tokens_per_window),
        ):
            known = self.windows.get(kind)
            if limit is None:
                self.windows.pop(kind, None)
            elif known is None or known.seconds != seconds:
                self.windows[kind] = SlidingWindow(seconds)
                self.loaded = False

    def places(self) -> int:
        """How many it keeps: those in use, and what it lately had in use beside them and still may.

        Where all replicas together have too many, those in use alone.
        """
        limit = self.limits.max_concurrency
        if limit is None:
            return 0
        return self.in_use if self.overbooked else max(self.in_use, min(self.peak, limit))

    def limit(self, kind: str) -> int:
        """Of requests a minute, or of tokens in a window."""
        limit = self.limits.requests_per_minute if kind == "requests" else self.limits.tokens_per_window
        assert limit is not None
        return limit

    def no_place(self) -> Refusal:
        """The refusal of a request when all places are in use."""
        message = f"{self._whose} may have {self.limits.max_concurrency} requests at once."
        return Refusal("concurrency", message, _PLACE_WAIT)

    def used_up(self, now: float) -> list[Refusal]:
        """The refusals of a request, one for each limit that is used up."""
        refusals = []
        for kind, window in self.windows.items():
            limit = self.limit(kind)
            if window.used(now) >= limit:
                span = "a minute" if window.seconds == _MINUTE else f"in {window.seconds} s"
                message = f"{self._whose} may have {limit} {kind} {span}."
                refusals.append(Refusal(kind, message, window.wait(limit, now)))
        return refusals

    def is_over(self, now: float) -> bool:
        """Whether its last request was so long ago that nothing of it counts any more; by the monotonic clock."""
        longest = max((window.seconds for window in self.windows.values()), default=_MINUTE)
        return not (self.in_use or self.leased or self.booked) and now - self.used_at > _FORGOTTEN_AFTER * longest

    @property
    def _whose(self) -> str:
        return "This key" if self.name.startswith("key:") else "The keys of this profile together"


def limit_fields(subjects: Sequence[Subject], now: float) -> Fields:
    """Of each kind the limit of which least is left; of several that are used up, the one with the longest wait."""
    fields: Fields = []
    for kind in ("requests", "tokens"):
        windows = [(s.limit(kind), s.windows[kind]) for s in subjects if kind in s.windows]
        if windows:
            states = [(remaining(limit, w.used(now)), w.wait(limit, now), limit) for limit, w in windows]
            left, wait, limit = min(states, key=lambda state: (state[0], -state[1]))
            fields += [
                (f"x-ratelimit-limit-{kind}".encode(), str(limit).encode()),
                (f"x-ratelimit-remaining-{kind}".encode(), str(left).encode()),
                (f"x-ratelimit-reset-{kind}".encode(), f"{wait:.3f}s".encode()),
            ]
    return fields
