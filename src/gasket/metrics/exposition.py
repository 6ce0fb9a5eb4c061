"""The registry of one application, and the route that shows it."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, get
from litestar.datastructures import CacheControlHeader
from litestar.handlers import HTTPRouteHandler
from litestar.types import Guard
from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.openmetrics import exposition as openmetrics

from gasket.metrics.state import StateCollector

PATH = "/metrics"

_TEXT = "text/plain"
_OPENMETRICS = "application/openmetrics-text"


def make_registry() -> CollectorRegistry:
    """One for each application: prometheus-client's own would refuse the second one of a process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    # A second series for each counter, which Prometheus does without.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client's
    return registry


def metrics_route(registry: CollectorRegistry, state: StateCollector, guards: list[Guard]) -> HTTPRouteHandler:
    """`GET /metrics`, behind these guards.

    Text exposition format 0.0.4, or OpenMetrics 1.0.0 where the Accept header prefers that. prometheus-client's own
    choice between the two raises TypeError for a version that is no number, and repeats whatever was asked for.
    """

    @get(
        PATH,
        guards=guards,
        include_in_schema=False,
        cache_control=CacheControlHeader(no_store=True),
    )
    async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
        await state.look()
        opened = request.accept.best_match([_TEXT, _OPENMETRICS]) == _OPENMETRICS
        encode = openmetrics.generate_latest if opened else generate_latest
        content_type = openmetrics.CONTENT_TYPE_LATEST if opened else CONTENT_TYPE_PLAIN_0_0_4
        # Thousands of series take tens of milliseconds, for which requests below /v1 would have to wait.
        text = await asyncio.to_thread(encode, registry)
        return Response(text, headers={"content-type": content_type})

    return metrics
