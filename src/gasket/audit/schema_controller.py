"""What `/api/migrations` does that somebody has to answer for; the rest of it is in `gasket/migrator/controller.py`."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Controller, Request, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, QueryParameter, SkipValidation
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.access.authentication import identity_of
from gasket.access.origins import origin_as
from gasket.audit.schema import AuditedSchema
from gasket.errors import ConflictError, NotFoundError
from gasket.http import problems
from gasket.inputs import PageSize, check_query
from gasket.migrator.archive.look import ArchivedRows
from gasket.migrator.controller import refusals_answered
from gasket.migrator.ledger.background import Work
from gasket.migrator.operations import SchemaOperations

Schema = NamedDependency[SkipValidation[AuditedSchema]]
RowCursor = Annotated[
    str | None, QueryParameter(pattern=r"^\(\d{1,9},\d{1,4}\)$", description="`next` of the page before")
]


def provide_schema(
    request: Request[Any, Any, State],
    db_session: NamedDependency[SkipValidation[AsyncSession]],
    schema_operations: NamedDependency[SkipValidation[SchemaOperations]],
) -> AuditedSchema:
    """Litestar's provider of the schema's verbs, of who sends the request."""
    identity = identity_of(request)
    origin = origin_as(request.scope, identity, by_page=identity.session_id is not None)
    return AuditedSchema(schema_operations, db_session, origin)


_DEPENDENCIES = {"audited_schema": Provide(provide_schema, sync_to_thread=False)}


class SchemaController(Controller):
    """Background work, and rows of the archive."""

    path = "/migrations"
    tags = ("migrations",)
    dependencies = _DEPENDENCIES

    @post(
        "/background/{work_id:int}/pause",
        status_code=200,
        summary="Pause background work",
        responses=problems(NotFoundError, ConflictError),
    )
    async def pause(self, audited_schema: Schema, work_id: FromPath[int]) -> Work:
        """Pending or running work; it ends the batch under way. Any replica may be asked."""
        with refusals_answered():
            return await audited_schema.pause(work_id)

    @post(
        "/background/{work_id:int}/resume",
        status_code=200,
        summary="Resume background work",
        responses=problems(NotFoundError, ConflictError),
    )
    async def resume(self, audited_schema: Schema, work_id: FromPath[int]) -> Work:
        """A replica goes on with work that is paused, has failed or was cancelled."""
        with refusals_answered():
            return await audited_schema.resume(work_id)

    @get(
        "/archives/{archive:int}/entries/{entry:int}", summary="Look into an archive", responses=problems(NotFoundError)
    )
    async def look(
        self,
        request: Request[Any, Any, State],
        audited_schema: Schema,
        archive: FromPath[int],
        entry: FromPath[int],
        cursor: RowCursor = None,
        page_size: PageSize = 20,
    ) -> ArchivedRows:
        """Rows that a downgrade took away, page by page. Each look is an entry of the audit.

        Secrets and digests are not shown.
        """
        check_query(request, frozenset({"cursor", "pageSize"}))
        with refusals_answered():
            return await audited_schema.archived_rows(archive, entry, cursor=cursor, limit=page_size)
