"""The SQL of a backfill: a walk along the primary key, one range of keys after the other.

A range ends at the last of so many rows that match, and after so many rows in any case: a statement is short though few
rows match. The key may have any types and any number of columns; it is compared as a row (PostgreSQL manual, "Row
Constructor Comparison"), for which its index serves.
"""

from __future__ import annotations

from contextlib import suppress

import asyncpg
import msgspec

from gasket.postgres.errors import is_lost

PRIMARY_KEY = """
SELECT quote_ident(a.attname) AS name, format_type(a.atttypid, a.atttypmod) AS type
FROM pg_catalog.pg_index AS i
CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k(attnum, place)
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = to_regclass($1) AND i.indisprimary AND k.place <= i.indnkeyatts
ORDER BY k.place
"""
_COUNT_WITHIN = "3s"
# pg_partition_tree() is empty for a table that is no partition. reltuples is -1 before the first ANALYZE.
_ESTIMATED_ROWS = """
SELECT sum(greatest(c.reltuples, 0))::bigint FROM pg_catalog.pg_class AS c
WHERE c.relkind <> 'p' AND (c.oid = to_regclass($1)
    OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree(to_regclass($1)) WHERE isleaf))
"""
"""The rows of a table and of its partitions, as PostgreSQL estimates them; NULL where there is no such table."""
# A key is kept as text, which has to come out the same in every session, whatever role and database set. The index of
# the key is in order already; and without statistics the planner might choose another way for each batch.
LOCAL_SETTINGS = """
SELECT set_config(name, value, true) FROM (VALUES
    ('DateStyle', 'ISO'), ('IntervalStyle', 'postgres'), ('extra_float_digits', '1'), ('bytea_output', 'hex'),
    ('enable_seqscan', 'off'), ('enable_bitmapscan', 'off'), ('enable_sort', 'off'), ('jit', 'off')
) AS s(name, value)
"""

Key = list[str]
"""The values of a primary key, as text."""


class Walk(msgspec.Struct, frozen=True):
    """`columns` are the names and types of the primary key; the rest is as the revision says it. All of it is SQL."""

    table: str
    assignments: str
    condition: str
    columns: tuple[tuple[str, str], ...]

    async def end_of_batch(
        self, connection: asyncpg.Connection, after: Key | None, size: int, window: int
    ) -> tuple[Key, bool] | None:
        """The last key of the next range, and whether it is the last of the table; None where no row is left.

        The range has at most `size` rows that match, and `where` is asked of at most `window` rows.
        """
        beyond, bounds = self._beyond(after)
        # A line comment in the revision's SQL ends with its line.
        full: Key | None = await connection.fetchval(
            f"SELECT {self._as_text} FROM (SELECT {self._names}, ({self.condition}\n) AS gasket_matches "
            f"FROM {self.table} {beyond} ORDER BY {self._names} LIMIT {window}) AS looked_at "
            f"WHERE gasket_matches ORDER BY {self._names} OFFSET {size - 1} LIMIT 1",
            *bounds,
        )
        in_order = f"SELECT {self._as_text} FROM {self.table} {beyond} ORDER BY"
        if full is None:
            full = await connection.fetchval(f"{in_order} {self._names} OFFSET {window - 1} LIMIT 1", *bounds)
        if full is not None:
            return full, False
        descending = ", ".join(f"{name} DESC" for name, _ in self.columns)
        last: Key | None = await connection.fetchval(f"{in_order} {descending} LIMIT 1", *bounds)
        return None if last is None else (last, True)

    async def change(self, connection: asyncpg.Connection, after: Key | None, end: Key) -> tuple[int, int]:
        """How many rows beyond `after` were changed, up to `end`, and how many of them match as before."""
        bounds = [end] if after is None else [end, after]
        beyond = f"({self._names}) > ({self._values(2)}) AND" if after is not None else ""
        row = await connection.fetchrow(
            f"WITH changed AS (UPDATE {self.table} SET {self.assignments}\n"
            f"WHERE {beyond} ({self._names}) <= ({self._values(1)}) AND ({self.condition}\n) "
            f"RETURNING ({self.condition}\n) IS TRUE AS matches) "
            "SELECT count(*), count(*) FILTER (WHERE matches) FROM changed",
            *bounds,
        )
        assert row is not None
        return row[0], row[1]

    async def finds_any(self, connection: asyncpg.Connection) -> bool:
        """Whether a row of the table matches, in one look."""
        return bool(await connection.fetchval(f"SELECT EXISTS (SELECT FROM {self.table} WHERE ({self.condition}\n))"))

    async def first_after(self, connection: asyncpg.Connection, after: Key | None) -> Key | None:
        """The key of the next row, whether it matches or not."""
        beyond, bounds = self._beyond(after)
        query = f"SELECT {self._as_text} FROM {self.table} {beyond} ORDER BY {self._names} LIMIT 1"
        key: Key | None = await connection.fetchval(query, *bounds)
        return key

    async def look_at(self, connection: asyncpg.Connection, key: Key) -> None:
        """Ask `where` of one row."""
        query = f"SELECT ({self.condition}\n) FROM {self.table} WHERE ({self._names}) = ({self._values(1)})"
        await connection.fetchval(query, key)

    async def unchangeable(self, connection: asyncpg.Connection) -> Key | None:
        """A row that matches, and goes on to match after the UPDATE; None: not found.

        A trigger that returns NULL leaves the row out, or one that comes after the UPDATE takes it back. Nothing is
        changed. All statements see one snapshot, and the row is locked: no other session is the reason.
        """
        transaction = connection.transaction(isolation="repeatable_read")
        await transaction.start()
        try:
            await connection.execute(LOCAL_SETTINGS)
            key: Key | None = await connection.fetchval(
                f"SELECT {self._as_text} FROM {self.table} WHERE ({self.condition}\n) LIMIT 1 FOR UPDATE SKIP LOCKED"
            )
            if key is None:
                return None
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")  # their triggers, too, before it is looked at
            await connection.execute(
                f"UPDATE {self.table} SET {self.assignments}\nWHERE ({self._names}) = ({self._values(1)})", key
            )
            matches = await connection.fetchval(
                f"SELECT EXISTS (SELECT FROM {self.table} WHERE ({self._names}) = ({self._values(1)}) "
                f"AND ({self.condition}\n))",
                key,
            )
            return key if matches else None
        finally:
            if not connection.is_closed():
                await transaction.rollback()

    def name(self, key: Key) -> str:
        """A row, for a person: `(id) = (42)`."""
        return f"({self._names}) = ({', '.join(key)})"

    def _beyond(self, after: Key | None) -> tuple[str, list[Key]]:
        """The clause for the rows that come after this key, and its parameters."""
        return ("", []) if after is None else (f"WHERE ({self._names}) > ({self._values(1)})", [after])

    @property
    def _names(self) -> str:
        return ", ".join(name for name, _ in self.columns)

    @property
    def _as_text(self) -> str:
        return f"ARRAY[{', '.join(f'{name}::text' for name, _ in self.columns)}]"

    def _values(self, parameter: int) -> str:
        return ", ".join(
            f"(${parameter}::text[])[{place}]::{kind}" for place, (_, kind) in enumerate(self.columns, start=1)
        )


async def make_walk(connection: asyncpg.Connection, *, table: str, assignments: str, condition: str) -> Walk | None:
    """None where the table has no primary key, or is not there."""
    rows = await connection.fetch(PRIMARY_KEY, table)
    if not rows:
        return None
    return Walk(table, assignments, condition, tuple((row["name"], row["type"]) for row in rows))


async def count_rows(connection: asyncpg.Connection, schema: str, table: str, condition: str | None) -> int | None:
    """How many rows match, in at most a few seconds. No transaction is open.

    Without a condition, and where those that match cannot be counted, it is how many rows the table has, as PostgreSQL
    estimates it. None: there is no such table.
    """
    if condition is not None:
        try:
            return await _within(connection, schema, f"SELECT count(*) FROM {table} WHERE ({condition}\n)")
        except asyncpg.PostgresError as error:
            # It takes too long; the revision makes the column or the table; or the condition fails on a row as it is.
            if is_lost(error):
                raise
    rows = await _within(connection, schema, _ESTIMATED_ROWS, table)
    if rows == 0:  # as before the first ANALYZE
        with suppress(asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError):
            return await _within(connection, schema, f"SELECT count(*) FROM {table}")
    return rows


async def _within(connection: asyncpg.Connection, schema: str, query: str, *arguments: str) -> int | None:
    async with connection.transaction(readonly=True):
        await connection.execute(
            "SELECT set_config('search_path', quote_ident($1), true), set_config('statement_timeout', $2, true)",
            *(schema, _COUNT_WITHIN),
        )
        rows: int | None = await connection.fetchval(query, *arguments)
    return rows
