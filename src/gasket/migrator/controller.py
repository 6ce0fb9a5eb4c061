"""The migrator's routes: readiness, and what was applied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import HTTPException, ServiceUnavailableException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, QueryParameter

from gasket.migrator.archive.entries import Archive
from gasket.migrator.chain import Chain, Step
from gasket.migrator.commands.status import StatusReport
from gasket.migrator.errors import MigratorError, NotThereError, TargetError
from gasket.migrator.monitor import Readiness, SchemaMonitor
from gasket.migrator.operations import SchemaOperations
from gasket.migrator.starting import StartReport
from gasket.postgres.errors import DRIVER_ERRORS

_Operations = NamedDependency[SchemaOperations]


@get(
    "/health/ready",
    summary="Whether this replica can serve",
    description=(
        "200 while the schema is at this release's head or compatible with it, and for 30 s after the database "
        "went away; 503 otherwise. While the replica starts, the answer says what it does."
    ),
    tags=["health"],
    responses={
        503: ResponseSpec(
            Readiness | StartReport,  # type: ignore[arg-type]  # Litestar takes any annotation
            description="Do not send requests here",
            generate_examples=False,
        )
    },
)
async def readiness(schema_monitor: NamedDependency[SchemaMonitor]) -> Response[Readiness]:
    """For load balancers; open to all, so it tells no more than the revisions.

    While the replica starts, the application has another answer.
    """
    answer = await schema_monitor.readiness()
    return Response(answer, status_code=200 if answer.ready else 503)


async def _migrations(
    schema_operations: _Operations,
    limit: Annotated[int, QueryParameter(ge=1, le=1000, description="At most this many rows of history")] = 100,
    drift: Annotated[bool, QueryParameter(description="Compare the live database with what it should be, too")] = False,
) -> StatusReport:
    """The same as `gasket database status`."""
    with refusals_answered():
        return await schema_operations.report(rows=limit, drift=drift)


async def _revisions(
    schema_operations: _Operations,
    limit: Annotated[int, QueryParameter(ge=1, le=200, description="At most this many revisions")] = 50,
    offset: Annotated[int, QueryParameter(ge=0, le=1_000_000, description="So many newer ones are left out")] = 0,
) -> Chain:
    """The chain: applied, pending, ahead."""
    with refusals_answered():
        return await schema_operations.chain(limit=limit, offset=offset)


async def _revision(schema_operations: _Operations, revision: FromPath[str]) -> Step:
    """One of the chain."""
    with refusals_answered():
        return await schema_operations.step(revision)


async def _plan(schema_operations: _Operations) -> dict[str, Any]:
    """The same as `gasket database plan --json`."""
    with refusals_answered():
        found: dict[str, Any] = msgspec.to_builtins(await schema_operations.plan())
        return found


async def _archives(schema_operations: _Operations) -> list[Archive]:
    """The same as `gasket database archive list`."""
    with refusals_answered():
        return await schema_operations.archives()


@contextmanager
def refusals_answered() -> Iterator[None]:
    """Around a request: what is refused, and a database that is away, as exceptions with an HTTP status.

    Raises:
        HTTPException: 404, 409 or 503, with the migrator's sentence.
    """
    try:
        yield
    except NotThereError as refusal:
        raise HTTPException(str(refusal), status_code=404) from None
    except TargetError as refusal:
        raise HTTPException(str(refusal), status_code=409) from None
    except MigratorError as refusal:
        raise ServiceUnavailableException(str(refusal)) from None
    except DRIVER_ERRORS:
        raise ServiceUnavailableException("The database cannot be reached; try again shortly.") from None


def migrations_routes(
    problems: Mapping[int, ResponseSpec], not_there: Mapping[int, ResponseSpec]
) -> list[HTTPRouteHandler]:
    """`/migrations` and what only looks below it. `problems` documents what the application makes of errors; of a route
    that may not find what it is asked for it is `not_there`.
    """
    tags = ["migrations"]
    return [
        get(
            "/migrations",
            summary="The schema's state and history",
            description=(
                "What `gasket database status` says: state, current revision, head, what is pending, and what was "
                "applied, when and by which release. `drift=true` also compares the live database with what was "
                "recorded after the newest revision."
            ),
            tags=tags,
            responses=problems,
        )(_migrations),
        get(
            "/migrations/revisions",
            summary="The chain of revisions",
            description="Newest first: those that are ahead of this release, then its own, applied or pending.",
            tags=tags,
            responses=problems,
        )(_revisions),
        get(
            "/migrations/revisions/{revision:str}",
            summary="A revision, with its SQL",
            description="Every row of the ledger about it, and the statements of both directions.",
            tags=tags,
            responses=not_there,
        )(_revision),
        post(
            "/migrations/plan",
            status_code=200,
            summary="Make a plan of what is pending",
            description=(
                "What `gasket database plan --json` says. It tries the revisions out in a scratch database, which it "
                "makes and drops; it has 60 s."
            ),
            tags=tags,
            responses=problems,
        )(_plan),
        get(
            "/migrations/archives",
            summary="What downgrades have taken away and kept",
            description="Newest first; `rows_left` of each is what has not come back.",
            tags=tags,
            responses=problems,
        )(_archives),
    ]
