"""What the rows of the live database decide: on which of them a step would fail, and how many a step writes.

Every look is a transaction of its own that only reads, for two seconds at most. No value of a row is told, only names,
counts and SQLSTATEs.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import asyncpg
import msgspec

from gasket.migrator.scratch.effects import Effects, Statement
from gasket.migrator.scratch.probes import COUNTED, Probe, probes, shown
from gasket.migrator.scratch.requirements import Requirement
from gasket.migrator.sql.lexer import Kind, tokens
from gasket.migrator.sql.locks import LockMode
from gasket.migrator.sql.reader import read
from gasket.migrator.sql.reading import touched_tables
from gasket.postgres.quoting import quote_identifier

_EACH = 2.0
_ALTOGETHER = 30.0
_DATA_FAULTS = ("22", "23")
_WRITES = frozenset({"insert", "update", "delete", "merge"})

# reltuples is -1 before the first ANALYZE; a partitioned table's are those of its partitions.
_SIZE = """
SELECT coalesce(sum(CASE WHEN c.reltuples >= 0 THEN c.reltuples END), -1)::float,
    coalesce(sum(pg_relation_size(c.oid)), 0)::bigint
FROM pg_class AS c
WHERE c.relkind <> 'p' AND (c.oid = to_regclass($1) OR c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass($1))))
"""
_SMALL = 10_000_000
# Whether it is a table, and no part of one of the others: the rows of its partitions are counted as its own.
_STANDS_ALONE = """
WITH RECURSIVE line AS (
    SELECT to_regclass($1)::oid AS oid UNION SELECT i.inhparent FROM pg_inherits AS i JOIN line ON i.inhrelid = line.oid
)
SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass($1) AND relkind IN ('r', 'p', 'f'))
    AND NOT EXISTS (SELECT FROM line JOIN unnest($2::text[]) AS other ON line.oid = to_regclass(other))
"""


class RowFinding(msgspec.Struct, frozen=True):
    """A statement (from 1) that would fail on rows that are there, or of which that is not known; `sentence` says it.

    `rows` is how many, at most 1,001; None where that is not known. `certain` is False where an earlier statement
    writes to the table, or it could not be looked at.
    """

    statement: int
    table: str
    sentence: str
    rows: int | None
    certain: bool


class Write(msgspec.Struct, frozen=True):
    """Rows that a statement (from 1) writes, as PostgreSQL's planner estimates them. None: not known."""

    statement: int
    table: str
    operation: str
    rows: int | None
    bytes: int | None


class LiveRows:
    """Looks at the live database, for `_ALTOGETHER` seconds in all."""

    def __init__(self, connection: asyncpg.Connection, schema: str) -> None:
        self._connection = connection
        self._schema = schema
        self._until = time.monotonic() + _ALTOGETHER

    async def findings(self, requirements: Iterable[Requirement], statements: Sequence[Statement]) -> list[RowFinding]:
        """Of one revision: what is in the way, and what could not be looked at."""
        found = []
        for requirement in requirements:
            sql = statements[requirement.statement - 1].sql
            for probe in probes(requirement, sql):
                finding = await self._look(requirement, probe)
                if finding:
                    found.append(finding)
                    break
        return found

    async def writes(self, effects: Effects) -> list[Write]:
        """What the statements of one revision write, by the plans that PostgreSQL makes on live and does not run.

        A block or a function has no plan: of a table that it may write to, the number of rows is not known.
        """
        found = []
        for number, statement in enumerate(effects.statements, start=1):
            planned, readings = [], read(statement.sql)
            for reading in readings:
                if reading.kind in _WRITES or (reading.kind in ("select", "with") and reading.writes_rows):
                    planned += await self._planned(number, statement.sql, [t.relation[-1] for t in reading.touches])
            found += planned
            told = [
                table
                for table, touch in touched_tables(readings, self._schema)
                if touch.mode is LockMode.ROW_EXCLUSIVE and touch.writes is not False
            ]
            seen = [table for at, table in effects.row_locks if at == number]
            for table in await self._not_planned({*told, *seen}, {write.table for write in planned}):
                found.append(Write(number, table, "", None, None))
        return found

    async def _not_planned(self, locked: Set[str], planned: Set[str]) -> list[str]:
        """The live tables of whose rows no plan tells, nor of the rows of a table that they are parts of."""
        left = []
        for table in sorted(locked - planned):
            others = [_quoted(other) for other in sorted(planned | locked) if other != table]
            try:
                [(not_planned,)] = await self._fetch(_STANDS_ALONE, _quoted(table), others)
            except (asyncpg.PostgresError, TimeoutError):
                not_planned = True
            if not_planned:
                left.append(table)
        return left

    async def _look(self, requirement: Requirement, probe: Probe) -> RowFinding | None:
        if probe.sql is None:
            return _not_known(requirement, probe.problem)
        try:
            [(count,)] = await self._fetch(probe.sql, *probe.arguments)
        except asyncpg.UndefinedTableError:
            return None  # an earlier pending statement makes it: no rows are there
        except asyncpg.UndefinedColumnError:
            return _not_known(requirement, "a column in it is not there yet")
        except (asyncpg.QueryCanceledError, TimeoutError):
            return _not_known(requirement, f"looking takes longer than {_EACH:g} s")
        except asyncpg.PostgresError as error:
            if probe.fails_itself and str(error.sqlstate)[:2] in _DATA_FAULTS:
                return _finding(requirement, f"on rows of {{table}}: {probe.problem} (SQLSTATE {error.sqlstate})", None)
            return _not_known(requirement, f"it cannot be looked at (SQLSTATE {error.sqlstate})")
        if probe.fails_itself or not count:
            return None
        return _finding(
            requirement, probe.problem if probe.of_table else f"on {{rows}} of {{table}}: {probe.problem}", count
        )

    async def _planned(self, number: int, sql: str, tables: Sequence[str]) -> list[Write]:
        not_known = [Write(number, table, "", None, None) for table in tables[:1]]
        parameters = max((int(token.text) for token in tokens(sql) if token.kind is Kind.PARAMETER), default=0)
        if parameters and self._connection.get_server_version().major < 16:
            return not_known
        options = "FORMAT JSON, VERBOSE" + (", GENERIC_PLAN" if parameters else "")
        try:
            [(plan,)] = await self._fetch(f"EXPLAIN ({options}) {sql}", *[None] * parameters)
            nodes = list(_modifying(json.loads(plan)[0]["Plan"]))
            return [await self._write(number, node) for node in nodes]
        except asyncpg.UndefinedTableError:
            return []
        except (asyncpg.PostgresError, TimeoutError, ValueError):
            return not_known

    async def _write(self, number: int, node: Mapping[str, Any]) -> Write:
        source = node.get("Plans", [{}])[0]
        rows = int(source.get("Plan Rows", 0))
        schema, name = node["Schema"], node["Relation Name"]
        table = name if schema == self._schema else f"{schema}.{name}"
        qualified = f"{quote_identifier(schema)}.{quote_identifier(name)}"
        [(counted, size)] = await self._fetch(_SIZE, qualified)
        if counted < 0 and size > _SMALL and node["Operation"] != "Insert":
            return Write(number, table, node["Operation"].upper(), None, None)
        if (
            counted < 0 and node["Operation"] != "Insert"
        ):  # the planner assumes ten pages of a table it knows nothing of
            [(counted,)] = await self._fetch(f"SELECT count(*) FROM {qualified}")
            rows = min(rows, counted)
        a_row = size / counted if counted > 0 else source.get("Plan Width", 0)
        return Write(number, table, node["Operation"].upper(), rows, round(rows * a_row))

    async def _fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        limit = min(_EACH, left)
        async with self._connection.transaction(readonly=True):
            await self._connection.execute(
                f"SET LOCAL statement_timeout = {limit * 1000:.0f}; SET LOCAL lock_timeout = 200; "
                f"SET LOCAL row_security = off; SET LOCAL search_path = {quote_identifier(self._schema)}"
            )
            rows: list[asyncpg.Record] = await self._connection.fetch(sql, *arguments, timeout=limit + 1)
            return rows


def _quoted(table: str) -> str:
    """The SQL name of a table; a dot stands after its schema."""
    return ".".join(map(quote_identifier, table.split(".")))


def _finding(requirement: Requirement, problem: str, count: int | None) -> RowFinding:
    many = count is not None and count > COUNTED
    number = f"more than {COUNTED:,}" if many else f"{count:,}" if count is not None else ""
    table = shown(requirement.table)
    values = {"table": table, "number": number, "rows": f"{number} row{'' if count == 1 else 's'}"}
    told = re.sub(r"\{(table|number|rows)\}", lambda found: values[found[1]], problem)  # it may have other braces
    if requirement.after_writes:
        sentence = f"may fail {told}; what runs before it writes to {table}, so it may be mended by then"
    else:
        sentence = f"would fail {told}"
    sentence = f"statement {requirement.statement} {sentence}"
    return RowFinding(requirement.statement, table, sentence, count, certain=not requirement.after_writes)


def _not_known(requirement: Requirement, why: str) -> RowFinding:
    table = shown(requirement.table)
    where = f"rows of {table} ({requirement.kind})"
    sentence = f"statement {requirement.statement}: whether it fails on {where} is not known: {why}"
    return RowFinding(requirement.statement, table, sentence, None, certain=False)


def _modifying(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The nodes of a plan that write rows. With ExplainOneQuery's text they bear the table and the operation."""
    if node["Node Type"] == "ModifyTable":
        yield node
    for inner in node.get("Plans", ()):
        yield from _modifying(inner)
