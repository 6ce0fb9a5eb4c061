"""`/api/me/usage`."""

from __future__ import annotations

import msgspec
from advanced_alchemy.service import OffsetPagination
from litestar import get
from litestar.di import NamedDependency, Provide
from litestar.params import SkipValidation

from gasket.http import problems
from gasket.inputs import CurrentPage, PageSize, SortOrder
from gasket.keys.own_controller import OwnKeys, provide_own_keys
from gasket.usage.controller import provide_query, provide_usage
from gasket.usage.schemas import UsageQuery, UsageSum
from gasket.usage.service import UsageService


async def provide_own_query(usage_query: NamedDependency[SkipValidation[UsageQuery]], own_keys: OwnKeys) -> UsageQuery:
    """The query, of the requests with keys of who asks."""
    return msgspec.structs.replace(usage_query, keys=await own_keys.ids())


@get(
    "/me/usage",
    summary="Sum one's own usage up",
    tags=["me"],
    responses=problems(),
    dependencies={
        "usage": Provide(provide_usage, sync_to_thread=False),
        "usage_query": Provide(provide_query, sync_to_thread=False),
        "own_keys": Provide(provide_own_keys, sync_to_thread=False),
        "own_query": Provide(provide_own_query),
    },
)
async def sum_own_usage(
    usage: NamedDependency[SkipValidation[UsageService]],
    own_query: NamedDependency[SkipValidation[UsageQuery]],
    current_page: CurrentPage = 1,
    page_size: PageSize = 20,
    sort_order: SortOrder = "asc",
) -> OffsetPagination[UsageSum]:
    """As `/api/usage`, of requests with one's own keys, as long as an administrator has not deleted them."""
    offset = page_size * (current_page - 1)
    items, total = await usage.sums(own_query, order=sort_order, limit=page_size, offset=offset)
    return OffsetPagination(items=items, limit=page_size, offset=offset, total=total)
