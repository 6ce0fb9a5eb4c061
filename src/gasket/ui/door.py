"""Which requests are for pages, and the application of the pages, which is made when the first one comes."""

from __future__ import annotations

import asyncio
import pkgutil
from typing import Any

from litestar import Litestar
from litestar.types import ASGIApp, Receive, Scope, Send

from gasket.access.sign_in_controller import PATH as SIGN_IN

PREFIX = "/ui"

_LEADS_TO = {"/": PREFIX, "/schema": f"{PREFIX}/reference"}
_MAKE = "gasket.ui.application:make_application"


class Door:
    """The ASGI application of all pages. `app` is the one of `/api`, whose dependencies the pages use, too.

    The pages are a Litestar application of their own. To make it takes a quarter of a second (Jinja, templates,
    routes), which a replica that nobody looks at saves.
    """

    def __init__(self, app: Litestar) -> None:
        self._app = app
        self._pages: asyncio.Task[ASGIApp] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lead on from `/` and `/schema`, and answer everything else with a page."""
        if target := _LEADS_TO.get(scope["path"].rstrip("/") or "/"):
            fields = [(b"location", target.encode()), (b"cache-control", b"no-store"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 303, "headers": fields})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        if self._pages is None:
            # In a thread: requests below /v1 must not wait for it.
            self._pages = asyncio.create_task(asyncio.to_thread(self._make))
        pages = await asyncio.shield(self._pages)
        await pages(scope, receive, send)

    def _make(self) -> ASGIApp:
        pages: ASGIApp = pkgutil.resolve_name(_MAKE)(self._app)
        return pages


def is_for_people(scope: Any) -> bool:
    """Whether a request is for a page: it is below `/ui` or for `/schema`, or a browser asks for `/` or signs in."""
    path = scope["path"]
    if path.startswith(f"{SIGN_IN}/"):
        return is_browser(scope)
    if path.rstrip("/") in ("", "/schema"):
        return scope["method"] in ("GET", "HEAD") and (path != "/" or is_browser(scope))
    return bool(path == PREFIX or path.startswith(f"{PREFIX}/"))


def is_browser(scope: Any) -> bool:
    """Whether the client takes HTML by name. Programs take `*/*`."""
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])
