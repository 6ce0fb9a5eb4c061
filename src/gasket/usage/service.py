"""Sums of usage, from the totals alone: records are many, and old ones are deleted."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import BigInteger, ColumnElement, Date, Row, cast, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.usage.models import UsageTotal
from gasket.usage.schemas import Group, UsageQuery, UsageSum

# Literals and no parameters: to PostgreSQL the same expression with another parameter is another expression, and what
# is selected would not be what is grouped by.
_UTC = UsageTotal.hour.op("AT TIME ZONE")(literal_column("'UTC'"))
_GROUPS: dict[Group, ColumnElement[Any]] = {
    "key": UsageTotal.key_id.expression,
    "user": func.lower(UsageTotal.user_email),
    "profile": UsageTotal.profile_id.expression,
    "model": func.nullif(UsageTotal.model, literal_column("''")),
    "backend": func.nullif(UsageTotal.backend_id, literal_column("0")),
    "hour": UsageTotal.hour.expression,
    "day": cast(_UTC, Date()),
    "month": cast(func.date_trunc(literal_column("'month'"), _UTC), Date()),
}
_SUMS: tuple[ColumnElement[int], ...] = tuple(
    cast(func.sum(column), BigInteger()).label(column.key)
    for column in (UsageTotal.requests, UsageTotal.prompt_tokens, UsageTotal.completion_tokens)
)


class UsageService:
    """Reads; what writes is `UsageWriter`."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def sums(
        self, query: UsageQuery, *, order: Literal["asc", "desc"], limit: int, offset: int
    ) -> tuple[list[UsageSum], int]:
        """A page of the groups, in the order of what they are grouped by; and how many groups there are."""
        columns = [_GROUPS[group] for group in query.groups]
        named = [column.label(group) for group, column in zip(query.groups, columns, strict=True)]
        groups = select(*named, *_SUMS).where(*_conditions(query)).group_by(*columns)
        page = (
            groups.add_columns(func.count().over().label("total"))
            .order_by(*[column.asc() if order == "asc" else column.desc() for column in columns])
            .limit(limit)
            .offset(offset)
        )
        rows = (await self._session.execute(page)).all()
        if rows or not offset:
            return [_sum(row) for row in rows], rows[0].total if rows else 0
        # Behind the last page there is no row that could tell.
        total = await self._session.scalar(select(func.count()).select_from(groups.subquery()))
        return [], total or 0


def _conditions(query: UsageQuery) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if query.start is not None:
        conditions.append(UsageTotal.hour >= query.start)
    if query.end is not None:
        conditions.append(UsageTotal.hour < query.end)
    if query.user is not None:
        conditions.append(func.lower(UsageTotal.user_email) == func.lower(query.user))
    for column, wanted in (
        (UsageTotal.key_id, query.key),
        (UsageTotal.profile_id, query.profile),
        (UsageTotal.model, query.model),
        (UsageTotal.backend_id, query.backend),
    ):
        if wanted is not None:
            conditions.append(column == wanted)
    return conditions


def _sum(row: Row[Any]) -> UsageSum:
    fields = dict(row._mapping)
    del fields["total"]
    if "month" in fields:
        fields["month"] = f"{fields['month']:%Y-%m}"
    return UsageSum(**fields, total_tokens=fields["prompt_tokens"] + fields["completion_tokens"])
