"""What a replica answers until its start is complete, to all but `/health` and `/metrics`: 503."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from html import escape
from typing import Any

import msgspec

from gasket import http
from gasket.errors import SchemaNotReadyError
from gasket.migrator.starting import Session, StartReport
from gasket.proxy.errors import MigratingError, error_body
from gasket.proxy.headers import own_fields
from gasket.proxy.misplaced import find_mistake
from gasket.request_ids import new_request_id
from gasket.ui.assets import address_of
from gasket.ui.door import is_browser
from gasket.ui.headers import SECURITY_FIELDS
from gasket.upstream.connection import Fields

ANSWERED = frozenset({"/health", "/metrics"})
"""The paths that are answered by the application itself, in every state."""
_GATEWAY = "/v1"
_READINESS = "/health/ready"
_REFRESH = 2
"""Seconds, of the page and of `Retry-After`."""
_NOT_READY = "This replica is still starting; try again shortly."
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<noscript><meta http-equiv="refresh" content="{refresh}"></noscript>
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Gasket is starting</title>
<link rel="icon" type="image/svg+xml" href="{icon}">
<link rel="stylesheet" href="{stylesheet}">
<script src="{script}" defer></script>
</head>
<body class="alone">
<main data-refresh="{refresh}">
<p class="brand"><img src="{icon}" alt="">Gasket</p>
<h1>Gasket is starting</h1>
<p>{detail}</p>
<progress max="100" aria-label="How far it is"{value}></progress>
<dl class="facts">
{facts}</dl>
<p class="quiet small">This page looks again every {refresh} seconds, and leads on when Gasket is ready.</p>
</main>
</body>
</html>
"""
_FACT = "<dt>{}</dt><dd>{}</dd>\n"


class Unready:
    """An ASGI application. `look` says how far the start is."""

    def __init__(self, look: Callable[[], Awaitable[StartReport]]) -> None:
        self._look = look

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 503, in the shape of the API that the path is of; to a browser with a page."""
        path = scope["path"]
        fields: Fields = [(b"retry-after", b"%d" % _REFRESH), (b"cache-control", b"no-store")]
        if path == _GATEWAY or path.startswith(f"{_GATEWAY}/") or find_mistake(path):
            request_id, error = new_request_id(), MigratingError()
            body = error_body(error, path.removeprefix(_GATEWAY), request_id)
            fields += [(b"content-type", b"application/json"), *own_fields(request_id, None)]
        elif path.rstrip("/") == _READINESS:
            body = msgspec.json.encode(await self._look())
            fields.append((b"content-type", b"application/json"))
        elif path.startswith(http.API_PREFIX) or not is_browser(scope):
            body = msgspec.json.encode(http.describe(SchemaNotReadyError(_NOT_READY)))
            fields.append((b"content-type", b"application/problem+json"))
        else:
            body = _page(await self._look()).encode()
            fields += [(b"content-type", b"text/html; charset=utf-8"), *SECURITY_FIELDS]
        fields.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": 503, "headers": fields})
        await send({"type": "http.response.body", "body": body})


def _page(report: StartReport) -> str:
    return _PAGE.format(
        refresh=_REFRESH,
        icon=address_of("icon.svg"),
        stylesheet=address_of("gasket.css"),
        script=address_of("gasket.js"),
        detail=escape(report.detail),
        value=f' value="{report.percent:.0f}"' if report.percent is not None else "",
        facts="".join(_FACT.format(name, words) for name, words in _facts(report)),
    )


def _facts(report: StartReport) -> Iterator[tuple[str, str]]:
    """What is known of the start, each with its name; in HTML."""
    if report.number is not None:
        yield "Revision", f"{report.number} of {report.total}"
    if report.revision is not None:
        yield "Name", f"<bdi>{escape(report.description or report.revision)}</bdi>"
    yield "Time", f"{report.elapsed:.0f} s"
    if report.eta is not None:
        yield "Left", f"about {report.eta:.0f} s"
    if report.holder is not None:
        yield "Migrates now", _session(report.holder)
    for blocker in report.blockers:
        yield "Waits for", f"{escape(blocker.relation or 'a lock')}, held by {_session(blocker)}"


def _session(session: Session) -> str:
    name = f"<bdi>{escape(session.application or 'no name')}</bdi>"
    return name if session.pid is None else f"{name} (pid {session.pid})"
