"""The migrator's routes: readiness, and what was applied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import asyncpg
from litestar import Response, get
from litestar.di import NamedDependency
from litestar.exceptions import ServiceUnavailableException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.params import QueryParameter

from gasket.migrator.errors import MigratorError
from gasket.migrator.report import StatusReport
from gasket.migrator.status import Readiness, SchemaMonitor


@get(
    "/health/ready",
    summary="Whether this replica can serve",
    description=(
        "200 while the schema is at this release's head or compatible with it, and for 30 s after the database "
        "went away; 503 otherwise."
    ),
    tags=["health"],
    responses={503: ResponseSpec(Readiness, description="Do not send requests here", generate_examples=False)},
)
async def readiness(schema_monitor: NamedDependency[SchemaMonitor]) -> Response[Readiness]:
    """For load balancers; open to all, so it tells no more than the revisions."""
    answer = await schema_monitor.readiness()
    return Response(answer, status_code=200 if answer.ready else 503)


async def migrations(
    schema_monitor: NamedDependency[SchemaMonitor],
    limit: Annotated[int, QueryParameter(ge=1, le=1000, description="At most this many rows of history")] = 100,
    drift: Annotated[bool, QueryParameter(description="Compare the live tables with the models, too")] = False,
) -> StatusReport:
    """The same as `litestar database status`."""
    try:
        return await schema_monitor.report(rows=limit, drift=drift)
    except MigratorError as refusal:  # the files have changed under a running replica
        raise ServiceUnavailableException(str(refusal)) from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        raise ServiceUnavailableException("The database cannot be reached; try again shortly.") from None


def migrations_route(problems: Mapping[int, ResponseSpec]) -> HTTPRouteHandler:
    """`GET /migrations`; `problems` documents what the application makes of errors."""
    return get(
        "/migrations",
        summary="The schema's state and history",
        description=(
            "What `litestar database status` says: state, current revision, head, what is pending, and what was "
            "applied, when and by which release. `drift=true` also compares the live tables with the models."
        ),
        tags=["migrations"],
        responses=problems,
    )(migrations)
