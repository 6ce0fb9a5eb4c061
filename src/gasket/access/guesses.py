"""Wrong credentials, counted by client address, so that guessing is slowed.

OWASP API Security Top 10, API2:2023 (Broken Authentication).
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

_log = logging.getLogger("gasket.access")

_FREE = 10
"""So many in `_WINDOW` are only wrong."""
_WINDOW = 60.0
_LONGEST = 3600.0
_MOST_ADDRESSES = 10_000
_IPV6_NETWORK = 64
"""A client has at least such a network for itself (RFC 6177), and any address in it."""


class _Guesser(msgspec.Struct):
    window_began: float
    count: int = 0
    pause: float = _WINDOW / 2
    paused_until: float = 0.0
    told_at: float = float("-inf")


class Guesses:
    """The wrong credentials of the last hour, of at most 10,000 addresses."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guessers: OrderedDict[str, _Guesser] = OrderedDict()

    def count(self, address: str | None) -> float:
        """Note a wrong credential; the seconds for which the client should wait, 0 while it is one of the free ones.

        More than 10 in a minute have to wait a minute, then two, and so on up to an hour.
        """
        now = self._clock()
        guesser = self._guesser(_sender(address), now)
        if now < guesser.paused_until:
            return guesser.paused_until - now
        if now - guesser.window_began >= _WINDOW:
            guesser.window_began, guesser.count = now, 0
        guesser.count += 1
        if guesser.count <= _FREE:
            return 0.0
        guesser.pause = min(guesser.pause * 2, _LONGEST)
        guesser.paused_until, guesser.count = now + guesser.pause, 0
        if now - guesser.told_at >= _WINDOW:
            guesser.told_at = now
            _log.warning(
                "more than %d wrong credentials in a minute from %s; they get 429 for the next %.0f s",
                _FREE,
                _sender(address),
                guesser.pause,
            )
        return guesser.pause

    def _guesser(self, sender: str, now: float) -> _Guesser:
        guesser = self._guessers.pop(sender, None)
        if guesser is None or now - max(guesser.window_began, guesser.paused_until) >= _LONGEST:
            guesser = _Guesser(window_began=now)
        self._guessers[sender] = guesser
        if len(self._guessers) > _MOST_ADDRESSES:
            self._guessers.popitem(last=False)  # the one that has not guessed for longest
        return guesser


def _sender(address: str | None) -> str:
    if address is None:
        return "a Unix socket"
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, _IPV6_NETWORK), strict=False))
