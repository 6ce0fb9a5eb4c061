"""`/api/audit`."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Controller, Request, get
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import QueryParameter, SkipValidation
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.audit.schemas import AuditPage, AuditQuery
from gasket.audit.service import AuditService
from gasket.http import problems
from gasket.inputs import PageSize, check_query, read_range

_PARAMETERS = frozenset({"who", "object", "object_id", "action", "from", "to", "cursor", "pageSize"})
_LARGEST_ID = 2**63 - 1
"""The largest value of PostgreSQL's type bigint (manual, "Numeric Types")."""
# Text to Litestar, which would take a number for seconds since 1970.
_MOMENT = {"format": "date-time"}


def provide_audit(db_session: NamedDependency[SkipValidation[AsyncSession]]) -> AuditService:
    """Litestar's provider of the service."""
    return AuditService(db_session)


def provide_query(
    request: Request[Any, Any, State],
    who: Annotated[
        str | None, QueryParameter(description="Of this token, person or database role, in whatever case")
    ] = None,
    object_: Annotated[
        str | None, QueryParameter(name="object", description="Of this kind of object: key, profile, ...")
    ] = None,
    object_id: Annotated[
        str | None, QueryParameter(name="object_id", description="Of the objects with this id")
    ] = None,
    action: Annotated[str | None, QueryParameter(description="This was done: create, change, delete, ...")] = None,
    from_: Annotated[
        str | None, QueryParameter(name="from", schema_extra=_MOMENT, description="With an offset: from then on")
    ] = None,
    to: Annotated[
        str | None,
        QueryParameter(schema_extra=_MOMENT, description="With an offset, later than `from`; itself not in it"),
    ] = None,
    cursor: Annotated[int | None, QueryParameter(ge=1, le=_LARGEST_ID, description="`next` of the page before")] = None,
) -> AuditQuery:
    """The query's parameters, checked."""
    check_query(request, _PARAMETERS)
    start, end = read_range(from_, to)
    return AuditQuery(
        who=who,
        object_kind=object_,
        object_id=object_id,
        action=action,
        start=start,
        end=end,
        before=cursor,
    )


_DEPENDENCIES = {
    "audit": Provide(provide_audit, sync_to_thread=False),
    "audit_query": Provide(provide_query, sync_to_thread=False),
}


class AuditController(Controller):
    """Who did what."""

    path = "/audit"
    tags = ("audit",)
    dependencies = _DEPENDENCIES

    @get(summary="Show who did what", responses=problems())
    async def list_entries(
        self,
        audit: NamedDependency[SkipValidation[AuditService]],
        audit_query: NamedDependency[SkipValidation[AuditQuery]],
        page_size: PageSize = 20,
    ) -> AuditPage:
        """Entries, the newest first. What was done with SQL has the database role as `actor`.

        `before` and `after` are whole rows without secrets and digests; `changed` names the columns that differ.
        """
        return await audit.page(audit_query, size=page_size)
