"""The ceiling: the least that a gateway of uvicorn and aiohttp can do. No framework, no key, no model, no log.

It forwards what a gateway must: the body and its type one way, the status, the type and the length of the answer the
other way, and the answer as it comes. UPSTREAM_URL says where to.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_BACK = (b"content-type", b"content-length")
_URL = os.environ.get("UPSTREAM_URL", "")


class Ceiling:
    """An ASGI application with one session to its upstream, whose options are those of Gasket's."""

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Forward a request to the path that it names."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        body = await _read(receive)
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        async with self._session.request(
            scope["method"], _URL + scope["path"], data=body, headers=headers, allow_redirects=False
        ) as answer:
            back = [(name.lower(), value) for name, value in answer.raw_headers if name.lower() in _BACK]
            await send({"type": "http.response.start", "status": answer.status, "headers": back})
            async for data in answer.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60),
            auto_decompress=False,
            trust_env=False,
        )
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._session.close()
        await send({"type": "lifespan.shutdown.complete"})


async def _read(receive: Receive) -> bytes:
    pieces = []
    more = True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


app = Ceiling()
