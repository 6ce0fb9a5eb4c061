"""Sums of usage from those of whole days, which are few, and from the totals where a day has none."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    ColumnElement,
    Date,
    DateTime,
    Integer,
    Interval,
    Select,
    Subquery,
    Text,
    and_,
    cast,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.orm import aliased

from gasket.usage.groups import EMPTY, SUMMED, UTC, group_of, month_of, sums_of
from gasket.usage.models import UsageDay, UsageTotal
from gasket.usage.schemas import Group, UsageQuery
from gasket.usage.summing import SIZES

_BY: dict[Group, str] = {
    **{"key": "key", "user": "user", "profile": "profile", "model": "model", "backend": "backend"},
    **{"day": "all", "month": "all"},
}
"""The kind of row (`by` of `usage_days`) that answers each group."""
_MOMENT = DateTime(timezone=True)
_A_DAY = literal_column("interval '1 day'", Interval())


def fits(query: UsageQuery) -> bool:
    """Whether days have what is asked for: one group, and nothing is left out but by time."""
    filters = (query.key, query.keys, query.user, query.profile, query.model, query.backend, query.end_user)
    return len(query.groups) == 1 and query.groups[0] in _BY and all(given is None for given in filters)


def grouped_by_days(query: UsageQuery) -> tuple[Select[Any], list[ColumnElement[Any]]]:
    """The groups with their sums, and what they are grouped by, of a query that `fits`.

    One statement, for which the totals and the days are those of one moment. All rows are summed at once: PostgreSQL
    expects fewer days than there are, and would sort the rows of a part instead of hashing them.
    """
    [group] = query.groups
    blocks = _blocks(query, single=_BY[group] == "all")
    rows = union_all(_of_days(group, blocks), _of_totals(group, _gaps(query, blocks))).subquery("rows")
    value = rows.c[group]
    return select(value.label(group), *sums_of(rows)).group_by(value), [value]


def _of_days(group: Group, blocks: CTE) -> Select[Any]:
    row = UsageDay.__table__.c
    found = select(_value(group).label(group), *[row[name] for name in SUMMED]).select_from(blocks)
    found = found.join(UsageDay, and_(row.days == blocks.c.days, row.day == blocks.c.day))
    # A day without usage has a row of all, and is no group.
    return found.where(row.by == literal_column(f"'{_BY[group]}'"), row.requests > literal_column("0"))


def _value(group: Group) -> ColumnElement[Any]:
    """What the totals have in the place of the day or the name."""
    row = UsageDay.__table__.c
    match group:
        case "day":
            return row.day.expression
        case "month":
            return month_of(cast(row.day, DateTime()))
        case "user":
            return row.name.expression
        case "model":
            return func.nullif(row.name, EMPTY)
        case "backend":
            return func.nullif(cast(row.name, Integer()), literal_column("0"))
    return cast(row.name, Integer())


def _of_totals(group: Group, gaps: Subquery) -> Select[Any]:
    totals = UsageTotal.__table__
    within = and_(totals.c.hour >= gaps.c.first, totals.c.hour < gaps.c.last)
    rows = select(group_of(totals, group).label(group), *[totals.c[name] for name in SUMMED])
    return rows.select_from(gaps).join(totals, within)


def _blocks(query: UsageQuery, *, single: bool) -> CTE:
    """The longest blocks of days in the range whose sums are good. `single`: the days alone.

    Which are good, `UsageDay` says. `gasket.usage.summing` has the same rule: change both.
    """
    row = aliased(UsageDay, name="d")
    own = cast(literal_column("d.tableoid"), Text())
    sizes = func.unnest(literal(list(SIZES), ARRAY(Integer))).table_valued("size").render_derived("sizes")
    block = row.day - (row.day - literal_column("'0001-01-01'::date", Date())) % sizes.c.size
    there = select(row.days, row.day, (row.name == own).label("good")).where(row.by == literal_column("'all'"))
    changed = (
        select(sizes.c.size, block, false()).join_from(row, sizes, true()).where(row.by == literal_column("'changed'"))
    )
    found = union_all(there, changed).subquery("found")

    utc = cast(found.c.day, DateTime())
    begins, ends = func.timezone(UTC, utc), func.timezone(UTC, utc + found.c.days * _A_DAY)
    good = select(found.c.days, found.c.day, begins.label("begins"), ends.label("ends"))
    if single:
        good = good.where(found.c.days == literal_column("1"))
    if query.start is not None:
        good = good.where(begins >= query.start)
    if query.end is not None:
        good = good.where(ends <= query.end)
    blocks = good.group_by(found.c.days, found.c.day).having(func.bool_and(found.c.good)).subquery("good")

    # Of two blocks one is within the other, or they have no day in common.
    before = func.max(blocks.c.ends).over(order_by=[blocks.c.begins, blocks.c.ends.desc()], rows=(None, -1))
    sorted_ = select(blocks, before.label("covered")).subquery("sorted")
    longest = or_(sorted_.c.covered.is_(None), sorted_.c.covered <= sorted_.c.begins)
    return select(sorted_).where(longest).cte("blocks")


def _gaps(query: UsageQuery, blocks: CTE) -> Subquery:
    """What the range has before, between and after these blocks: from `first` on and before `last`."""
    start, end = _moment(query.start, "-infinity"), _moment(query.end, "infinity")
    edges = union_all(select(blocks.c.begins, blocks.c.ends), select(start, start)).subquery("edges")
    following = func.lead(edges.c.begins, 1, end).over(order_by=edges.c.ends)
    gaps = select(edges.c.ends.label("first"), following.label("last")).subquery("sides")
    return select(gaps).where(gaps.c.first < gaps.c.last).subquery("gaps")


def _moment(moment: datetime | None, otherwise: str) -> ColumnElement[Any]:
    return literal_column(f"'{otherwise}'::timestamptz", _MOMENT) if moment is None else literal(moment, _MOMENT)
