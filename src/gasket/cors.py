"""Browsers of other origins: GASKET_CORS_ORIGINS, and the CORS protocol (WHATWG Fetch Standard, 3.3)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

_Fields = list[tuple[bytes, bytes]]

_PREFIXES = ("/v1/", "/api/")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?")
_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:\s*,\s*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
_METHODS = b"GET, POST, PUT, PATCH, DELETE"
_KEPT_FOR = b"7200"
"""Seconds for which a browser need not ask again; Chromium allows no more."""
_SHOWN = (
    b"x-request-id, x-gasket-request-id, x-gasket-unavailable-backends, retry-after, retry-after-ms, "
    b"x-ratelimit-limit-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, "
    b"x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, x-ratelimit-reset-tokens, x-should-retry, *"
)
"""`*` is whatever else passes to clients, a backend's `response_headers` too; the names are for older browsers."""
_VARY = (b"vary", b"origin")


class CorsOrigins(msgspec.Struct, frozen=True):
    """The origins whose pages may read answers; `*`: all. Keys come in header fields, and cookies mean nothing here."""

    origins: frozenset[bytes] = frozenset()

    @classmethod
    def parse(cls, text: str) -> CorsOrigins:
        """Origins as browsers send them, comma-separated, or `*`.

        Raises:
            ValueError: one is no origin; the message says which by its number, and does not show it.
        """
        entries = [entry.strip().lower().removesuffix("/") for entry in text.split(",") if entry.strip()]
        for number, entry in enumerate(entries, start=1):
            if entry != "*" and not _ORIGIN.fullmatch(entry):
                raise ValueError(f"must have * or an origin such as https://chat.example:8443 in entry {number}")
        return cls(frozenset(_as_sent(entry).encode() for entry in entries))

    def __bool__(self) -> bool:
        return bool(self.origins)

    def allows(self, origin: bytes) -> bool:
        """Whether pages of this origin may read answers."""
        return bool(origin) and (b"*" in self.origins or origin.lower() in self.origins)

    async def call(self, application: Any, scope: Any, receive: Any, send: Any) -> None:
        """Answer a preflight, which has no key; or let the application answer, and the page read that."""
        if not scope["path"].startswith(_PREFIXES):
            await application(scope, receive, send)
            return
        asked = _first(scope["headers"])
        origin = asked.get(b"origin", b"")
        own = self._fields(origin)
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in asked and self.allows(origin):
            await send({"type": "http.response.start", "status": 204, "headers": own + _preflight(asked)})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_readably(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        await application(scope, receive, send_readably if own else send)

    def _fields(self, origin: bytes) -> _Fields:
        """Where some origins are allowed and others not, a cache has to know that the answer is this origin's."""
        vary = [] if b"*" in self.origins else [_VARY]
        if not self.allows(origin):
            return vary
        return [
            (b"access-control-allow-origin", b"*" if b"*" in self.origins else origin),
            (b"access-control-expose-headers", _SHOWN),
            *vary,
        ]


def _as_sent(origin: str) -> str:
    """The origin as browsers write it: without the port that its scheme implies."""
    port = {"http": ":80", "https": ":443"}.get(origin.partition(":")[0])
    return origin.removesuffix(port) if port else origin


def _first(fields: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    return dict(reversed(list(fields)))


def _preflight(asked: dict[bytes, bytes]) -> _Fields:
    """Any header field may be sent: those that must not pass on are dropped later."""
    names = asked.get(b"access-control-request-headers", b"")
    allowed = [(b"access-control-allow-headers", names)] if _NAMES.fullmatch(names) else []
    return [
        (b"access-control-allow-methods", _METHODS),
        *allowed,
        (b"access-control-max-age", _KEPT_FOR),
    ]
