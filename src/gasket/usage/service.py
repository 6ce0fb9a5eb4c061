"""Sums of usage: from the totals, for records are many, and old ones are deleted; by end user from the records, since
totals have none.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Date,
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
)
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.db import is_any_of
from gasket.usage.models import UsageRecord, UsageTotal
from gasket.usage.schemas import Group, UsageQuery, UsageSum

# Literals and no parameters: to PostgreSQL the same expression with another parameter is another expression, and what
# is selected would not be what is grouped by.
_EMPTY: ColumnElement[str] = literal_column("''")
_UTC: ColumnElement[str] = literal_column("'UTC'")
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "audio_tokens")
_SUMMED = ("requests", *_TOKENS)


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
        groups, _ = _grouped(query)
        inner = groups.subquery()
        tokens = inner.c.prompt_tokens + inner.c.completion_tokens
        page = (
            select(inner, func.count().over().label("total"), *[_overall(inner, name) for name in _SUMMED])
            .order_by(tokens.desc(), inner.c.requests.desc(), *[inner.c[group] for group in query.groups])
            .limit(limit)
        )
        rows = (await self._session.execute(page)).all()
        if not rows:
            return Largest([], 0, _total(dict.fromkeys(_SUMMED, 0)))
        total = _total({name: getattr(rows[0], f"all_{name}") for name in _SUMMED})
        return Largest([_sum(row) for row in rows], rows[0].total, total)


def _total(sums: dict[str, Any]) -> UsageSum:
    return UsageSum(**sums, total_tokens=sums["prompt_tokens"] + sums["completion_tokens"])


def _overall(groups: Subquery, name: str) -> ColumnElement[int]:
    return cast(func.sum(groups.c[name]).over(), BigInteger()).label(f"all_{name}")


def _grouped(query: UsageQuery) -> tuple[Select[Any], list[ColumnElement[Any]]]:
    """The groups with their sums, and what they are grouped by."""
    by_end_user = "end_user" in query.groups or query.end_user is not None
    source = _records(query) if by_end_user else UsageTotal.__table__
    columns = [_group(source, group) for group in query.groups]
    named = [column.label(group) for group, column in zip(query.groups, columns, strict=True)]
    sums = [cast(func.sum(source.c[name]), BigInteger()).label(name) for name in _SUMMED]
    return select(*named, *sums).where(*_conditions(source, query)).group_by(*columns), columns


def _records(query: UsageQuery) -> Subquery:
    """The records in the range of the query, with the columns of the totals and `end_user`."""
    record = UsageRecord
    answered = or_(record.status < literal_column("400"), record.completion_tokens > literal_column("0"))
    rows = select(
        func.date_trunc(literal_column("'hour'"), record.started_at, _UTC).label("hour"),
        record.key_id,
        record.profile_id,
        func.coalesce(record.backend_id, literal_column("0")).label("backend_id"),
        case((answered, func.coalesce(record.model, _EMPTY)), else_=_EMPTY).label("model"),
        record.user_email,
        func.coalesce(record.end_user, _EMPTY).label("end_user"),
        literal_column("1").label("requests"),
        *[getattr(record, name) for name in _TOKENS],
    )
    if query.start is not None:
        rows = rows.where(record.started_at >= query.start)
    if query.end is not None:
        rows = rows.where(record.started_at < query.end)
    return rows.subquery()


def _group(source: FromClause, group: Group) -> ColumnElement[Any]:
    columns = source.c
    match group:
        case "key" | "profile":
            return columns[f"{group}_id"].expression
        case "user":
            return func.lower(columns.user_email)
        case "model" | "end_user":
            return func.nullif(columns[group], _EMPTY)
        case "backend":
            return func.nullif(columns.backend_id, literal_column("0"))
        case "hour":
            return columns.hour.expression
    utc = columns.hour.op("AT TIME ZONE")(_UTC)
    return cast(utc if group == "day" else func.date_trunc(literal_column("'month'"), utc), Date())


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
