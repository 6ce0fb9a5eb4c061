"""`/api/usage`."""

from __future__ import annotations

from typing import Annotated, Any

from advanced_alchemy.service import OffsetPagination
from litestar import Controller, Request, get
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import QueryParameter, SkipValidation
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.db import MAX_ID
from gasket.http import problems
from gasket.inputs import CurrentPage, PageSize, SortOrder, check_query
from gasket.usage.schemas import Group, UsageQuery, UsageSum, whole_hours
from gasket.usage.service import UsageService

_FILTERS = ("key", "user", "profile", "model", "backend", "end_user")
_PARAMETERS = frozenset({"group", "from", "to", *_FILTERS, "currentPage", "pageSize", "sortOrder"})
_BY_DAY: list[Group] = ["day"]
# Text to Litestar, which would take a number for seconds since 1970.
_MOMENT = {"format": "date-time"}


def provide_usage(db_session: NamedDependency[SkipValidation[AsyncSession]]) -> UsageService:
    """Litestar's provider of the service."""
    return UsageService(db_session)


def provide_query(
    request: Request[Any, Any, State],
    group: Annotated[
        list[Group] | None,
        QueryParameter(description="What to sum by; several are given by repeating it. Without it: by day"),
    ] = None,
    from_: Annotated[
        str | None,
        QueryParameter(
            name="from",
            schema_extra=_MOMENT,
            description="With an offset. The range takes in every hour that it touches; without it: from the beginning",
        ),
    ] = None,
    to: Annotated[
        str | None,
        QueryParameter(schema_extra=_MOMENT, description="With an offset, later than `from`; itself not in it"),
    ] = None,
    key: Annotated[int | None, QueryParameter(ge=1, le=MAX_ID, description="Requests with this key")] = None,
    user: Annotated[
        str | None, QueryParameter(description="Requests with keys of this address, in whatever case")
    ] = None,
    profile: Annotated[int | None, QueryParameter(ge=1, le=MAX_ID, description="Requests under this profile")] = None,
    model: Annotated[str | None, QueryParameter(description="Requests for this model; empty: without one")] = None,
    backend: Annotated[
        int | None, QueryParameter(ge=0, le=MAX_ID, description="Requests to this backend; 0: to none")
    ] = None,
    end_user: Annotated[
        str | None,
        QueryParameter(name="end_user", description="Requests of this end user; empty: of those without one"),
    ] = None,
) -> UsageQuery:
    """The query's parameters, checked."""
    check_query(request, _PARAMETERS)
    first, last = whole_hours(from_, to)
    return UsageQuery(
        groups=tuple(dict.fromkeys(group or _BY_DAY)),
        start=first,
        end=last,
        key=key,
        user=user,
        profile=profile,
        model=model,
        backend=backend,
        end_user=end_user,
    )


_DEPENDENCIES = {
    "usage": Provide(provide_usage, sync_to_thread=False),
    "usage_query": Provide(provide_query, sync_to_thread=False),
}


class UsageController(Controller):
    """Who used what."""

    path = "/usage"
    tags = ("usage",)
    dependencies = _DEPENDENCIES

    @get(summary="Sum usage up", responses=problems())
    async def sum_usage(
        self,
        usage: NamedDependency[SkipValidation[UsageService]],
        usage_query: NamedDependency[SkipValidation[UsageQuery]],
        current_page: CurrentPage = 1,
        page_size: PageSize = 20,
        sort_order: SortOrder = "asc",
    ) -> OffsetPagination[UsageSum]:
        """Requests and tokens by key, user, profile, model, backend, end user, hour, day or month; by default by day.

        Days and months are those of UTC. A request is in the sums within about a second after its end, and by the
        hour in which it began. A group without requests is left out. By end user, or of one, only those requests count
        whose records are kept: `GASKET_USAGE_RETENTION_DAYS`.
        """
        offset = page_size * (current_page - 1)
        items, total = await usage.sums(usage_query, order=sort_order, limit=page_size, offset=offset)
        return OffsetPagination(items=items, limit=page_size, offset=offset, total=total)
