"""Sums of usage. From sums of whole days where these can answer; otherwise from the totals, because records are many
and old ones are deleted. By end user from the records, because totals have none.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Row,
    Select,
    Subquery,
    case,
    cast,
    func,
    literal_column,
    or_,
    select,
    true,
)
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.db import is_any_of
from gasket.usage.days import fits, grouped_by_days
from gasket.usage.groups import EMPTY, SUMMED, TOKENS, UTC, group_of, sums_of
from gasket.usage.models import UsageRecord, UsageTotal
from gasket.usage.schemas import UsageQuery, UsageSum


class Largest(msgspec.Struct, frozen=True):
    """Some groups, how many there are, and the sums of all of them."""

    rows: list[UsageSum]
    groups: int
    total: UsageSum


class UsageService:
    """Reads; what writes is `UsageWriter`."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def sums(
        self, query: UsageQuery, *, order: Literal["asc", "desc"], limit: int, offset: int
    ) -> tuple[list[UsageSum], int]:
        """A page of the groups, in the order of what they are grouped by; and how many groups there are."""
        groups, columns = _grouped(query)
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

    async def largest(self, query: UsageQuery, *, limit: int) -> Largest:
        """The groups with the most tokens, the largest first; and what all groups have together."""
        groups = _grouped(query)[0].cte("groups")
        sums = [cast(func.sum(groups.c[name]), BigInteger()).label(f"all_{name}") for name in SUMMED]
        overall = select(func.count().label("total"), *sums).select_from(groups).subquery("overall")
        tokens = groups.c.prompt_tokens + groups.c.completion_tokens
        page = (
            select(groups, overall)
            .join_from(groups, overall, true())
            .order_by(tokens.desc(), groups.c.requests.desc(), *[groups.c[group] for group in query.groups])
            .limit(limit)
        )
        rows = (await self._session.execute(page)).all()
        if not rows:
            return Largest([], 0, _total(dict.fromkeys(SUMMED, 0)))
        total = _total({name: getattr(rows[0], f"all_{name}") for name in SUMMED})
        return Largest([_sum(row) for row in rows], rows[0].total, total)


def _total(sums: dict[str, Any]) -> UsageSum:
    return UsageSum(**sums, total_tokens=sums["prompt_tokens"] + sums["completion_tokens"])


def _grouped(query: UsageQuery) -> tuple[Select[Any], list[ColumnElement[Any]]]:
    """The groups with their sums, and what they are grouped by."""
    if fits(query):
        return grouped_by_days(query)
    by_end_user = "end_user" in query.groups or query.end_user is not None
    source = _records(query) if by_end_user else UsageTotal.__table__
    columns = [group_of(source, group) for group in query.groups]
    named = [column.label(group) for group, column in zip(query.groups, columns, strict=True)]
    return select(*named, *sums_of(source)).where(*_conditions(source, query)).group_by(*columns), columns


def _records(query: UsageQuery) -> Subquery:
    """The records in the range of the query, with the columns of the totals and `end_user`."""
    record = UsageRecord
    answered = or_(record.status < literal_column("400"), record.completion_tokens > literal_column("0"))
    rows = select(
        func.date_trunc(literal_column("'hour'"), record.started_at, UTC).label("hour"),
        record.key_id,
        record.profile_id,
        func.coalesce(record.backend_id, literal_column("0")).label("backend_id"),
        case((answered, func.coalesce(record.model, EMPTY)), else_=EMPTY).label("model"),
        record.user_email,
        func.coalesce(record.end_user, EMPTY).label("end_user"),
        literal_column("1").label("requests"),
        *[getattr(record, name) for name in TOKENS],
    )
    if query.start is not None:
        rows = rows.where(record.started_at >= query.start)
    if query.end is not None:
        rows = rows.where(record.started_at < query.end)
    return rows.subquery()


def _conditions(source: FromClause, query: UsageQuery) -> list[ColumnElement[bool]]:
    columns = source.c
    conditions: list[ColumnElement[bool]] = []
    if query.start is not None:
        conditions.append(columns.hour >= query.start)
    if query.end is not None:
        conditions.append(columns.hour < query.end)
    if query.user is not None:
        conditions.append(func.lower(columns.user_email) == func.lower(query.user))
    if query.keys is not None:
        # The index of the totals finds these keys in each hour.
        conditions.append(is_any_of(columns.key_id, query.keys))
    for name, wanted in (
        ("key_id", query.key),
        ("profile_id", query.profile),
        ("model", query.model),
        ("backend_id", query.backend),
        ("end_user", query.end_user),
    ):
        if wanted is not None:
            conditions.append(columns[name] == wanted)
    return conditions


def _sum(row: Row[Any]) -> UsageSum:
    fields = {name: value for name, value in row._mapping.items() if name in UsageSum.__struct_fields__}
    if "month" in fields:
        fields["month"] = f"{fields['month']:%Y-%m}"
    return UsageSum(**fields, total_tokens=fields["prompt_tokens"] + fields["completion_tokens"])
