"""What usage is summed by, and the sums themselves, as SQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Date, FromClause, cast, func, literal_column

from gasket.usage.schemas import Group

TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "audio_tokens")
SUMMED = ("requests", *TOKENS)
"""The columns with numbers, of totals and of days."""

# Literals and no parameters: to PostgreSQL the same expression with another parameter is another expression, and what
# is selected would not be what is grouped by.
EMPTY: ColumnElement[str] = literal_column("''")
UTC: ColumnElement[str] = literal_column("'UTC'")
_MONTH: ColumnElement[str] = literal_column("'month'")


def sums_of(source: FromClause) -> list[ColumnElement[int]]:
    """The sums of its rows."""
    return [cast(func.sum(source.c[name]), BigInteger()).label(name) for name in SUMMED]


def group_of(totals: FromClause, group: Group) -> ColumnElement[Any]:
    """What a row of the totals, or one with their columns, belongs to."""
    columns = totals.c
    match group:
        case "key" | "profile":
            return columns[f"{group}_id"].expression
        case "user":
            return func.lower(columns.user_email)
        case "model" | "end_user":
            return func.nullif(columns[group], EMPTY)
        case "backend":
            return func.nullif(columns.backend_id, literal_column("0"))
        case "hour":
            return columns.hour.expression
    utc = columns.hour.op("AT TIME ZONE")(UTC)
    return cast(utc, Date()) if group == "day" else month_of(utc)


def month_of(time: ColumnElement[Any]) -> ColumnElement[Any]:
    """The first day of the month of a time without a zone."""
    return cast(func.date_trunc(_MONTH, time), Date())
