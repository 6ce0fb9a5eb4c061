"""Queries on the live database that tell whether its rows fulfil what a statement asks of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from gasket.migrator.scratch.requirements import Requirement
from gasket.migrator.sql.lexer import tokens
from gasket.postgres.quoting import quote_identifier

COUNTED = 1000
"""So many rows are counted and one more: what comes beyond is "more than"."""

_SIZED_TEXT = re.compile(r"^character(?: varying)?\((\d+)\)$")


class Probe(msgspec.Struct, frozen=True):
    """A query for the number of rows that are in the way; with `fails_itself` it is the error that tells.

    Without SQL `problem` says why there is no look. `of_table`: it does not count rows, and names table and number.
    """

    sql: str | None
    problem: str
    arguments: tuple[object, ...] = ()
    fails_itself: bool = False
    of_table: bool = False


def probes(requirement: Requirement, sql: str) -> list[Probe]:
    """The looks that tell whether rows fulfil it; the first that finds something says enough."""
    table, kind, expressions = requirement.table, requirement.kind, requirement.expressions
    if kind == "no rows":
        return [Probe(_count(f"FROM {table}"), "the new column is NOT NULL and has no default")]
    if kind in ("check", "partition bound"):
        problem = "a CHECK constraint does not hold" if kind == "check" else "they do not belong into the partition"
        return [Probe(_count(f"FROM {table} WHERE NOT ({expressions[0]})"), problem)]
    if kind == "expression":
        condition, *values = expressions
        query = f"SELECT count(({', '.join(values)})) FROM {table} WHERE {condition}"
        return [Probe(query, "an expression fails on at least one of them", fails_itself=True)]
    if kind == "unique":
        return [_unique(requirement)]
    if None in (*requirement.columns, *requirement.other_columns):
        return [Probe(None, "a column in it is not there yet")]
    columns = [str(column) for column in requirement.columns]
    quoted = [quote_identifier(column) for column in columns]
    if kind == "not null":
        return [Probe(_count(f"FROM {table} WHERE {quoted[0]} IS NULL"), f"{columns[0]} is NULL")]
    if kind == "domain":
        condition = re.sub(r"\bVALUE\b", lambda _found: quoted[0], expressions[0].removeprefix("CHECK "))
        return [Probe(_count(f"FROM {table} WHERE NOT {condition}"), f"{columns[0]} breaks a constraint of its domain")]
    if kind == "foreign key":
        return [_foreign_key(requirement, quoted)]
    if kind == "exclusion":
        return [_exclusion(requirement, quoted)]
    return _type(requirement, columns[0], quoted[0], sql)


def _unique(requirement: Requirement) -> Probe:
    predicate, nulls_not_distinct, *expressions = requirement.expressions
    columns = [*requirement.columns, *[None] * len(expressions)]
    keys = [quote_identifier(name) if name else text for name, text in zip(columns, expressions, strict=False)]
    where = [f"({predicate})", *(f"({key}) IS NOT NULL" for key in keys if nulls_not_distinct != "true")]
    query = f"FROM {requirement.table} WHERE {' AND '.join(where)} GROUP BY {', '.join(keys)} HAVING count(*) > 1"
    of_keys = ", ".join(keys).replace('"', "")
    return Probe(_count(query), f"on {{table}}: values of {of_keys} occur more than once ({{number}})", of_table=True)


def _foreign_key(requirement: Requirement, quoted: Sequence[str]) -> Probe:
    if requirement.other is None:
        return Probe(None, "the table that it refers to is not there yet")
    there = [quote_identifier(str(column)) for column in requirement.other_columns]
    pairs = list(zip(quoted, there, strict=True))
    given = " AND ".join(f"child.{column} IS NOT NULL" for column in quoted)
    equal = " AND ".join(f"parent.{other} = child.{column}" for column, other in pairs)
    query = (
        f"FROM {requirement.table} AS child WHERE {given} "
        f"AND NOT EXISTS (SELECT FROM {requirement.other} AS parent WHERE {equal})"
    )
    return Probe(_count(query), f"they refer to rows that {shown(requirement.other)} does not have")


def _exclusion(requirement: Requirement, quoted: Sequence[str]) -> Probe:
    compared = " AND ".join(
        f"a.{column} {operator} b.{column}" for column, operator in zip(quoted, requirement.expressions, strict=True)
    )
    query = f"FROM {requirement.table} AS a JOIN {requirement.table} AS b ON a.ctid < b.ctid AND {compared}"
    return Probe(_count(query), "on {table}: pairs of rows exclude each other ({number})", of_table=True)


def _type(requirement: Requirement, column: str, quoted: str, sql: str) -> list[Probe]:
    table, (new, _filled, *labels) = requirement.table, requirement.expressions
    using = _using(sql)
    value = f"({using})" if using else quoted
    if labels:
        # An enum that a pending revision makes is not live: its labels are compared instead of a cast to it.
        plain_cast = using and re.fullmatch(rf'"?{re.escape(column)}"?(\s*::\s*[\w."]+)*', using)
        text = f"({quoted if plain_cast else value})::text"
        query = _count(f"FROM {table} WHERE {text} <> ALL ($1::text[])")
        return [Probe(query, f"{column} has values that {new} does not have", (labels,))]
    cast = Probe(
        f"SELECT count(({value})::{new}) FROM {table}",
        f"{column} cannot be cast to {new} in at least one of them",
        fails_itself=True,
    )
    if sized := _SIZED_TEXT.match(new):
        query = _count(f"FROM {table} WHERE length(rtrim(({value})::text)) > {sized[1]}")
        return [Probe(query, f"{column} is longer than {new}"), cast]
    return [cast]


def _using(sql: str) -> str | None:
    """The expression of USING, where the statement changes one column only."""
    depth, start = 0, None
    for token in tokens(sql):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(token.text if not token.is_identifier else "", 0)
        if token.is_word("using") and depth == 0 and start is None:
            start = token.end
        elif start is not None and depth == 0 and (token.is_symbol(",") or token.is_symbol(";")):
            return sql[start : token.start].strip()
    return sql[start:].strip() if start is not None else None


def _count(query: str) -> str:
    return f"SELECT count(*) FROM (SELECT {query} LIMIT {COUNTED + 1}) AS found"


def shown(table: str) -> str:
    """The name of a table, without quotes."""
    return table.replace('"', "")
