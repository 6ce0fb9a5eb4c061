"""The metrics of requests that Litestar answers: `/api`, health, documentation."""

from __future__ import annotations

import time

from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry, Counter, Histogram

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "other"


class AdministrationMetrics:
    """Stands in front of Litestar's router, so that what it finds no route for counts, too."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "gasket_api_requests_total",
            "Requests to all but `/v1`; `route` as in the documentation of the API, `other` where there is none",
            ["method", "route", "status"],
            registry=registry,
        )
        self._duration = Histogram(
            "gasket_api_request_duration_seconds",
            "From a request's head to the end of its answer",
            ["method", "route"],
            registry=registry,
        )

    async def measure(self, application: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count it when it has ended; one that got no answer does not count."""
        started, status = time.monotonic(), 0

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await application(scope, receive, noting_status)
        finally:
            if status:
                method = scope.get("method")
                labels = method if method in _METHODS else _OTHER, scope.get("path_template") or _OTHER
                self._requests.labels(*labels, status).inc()
                self._duration.labels(*labels).observe(time.monotonic() - started)
