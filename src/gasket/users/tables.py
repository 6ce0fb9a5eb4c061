"""Where addresses are kept: tables and columns of all rooms, by name, and archived rows of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.db import Transactions
from gasket.migrator.archive.schema import archive_schema
from gasket.postgres.quoting import quote_identifier

ROWS_AT_ONCE = 20_000
"""Rows that one statement looks at: some tenths of a second."""

SECRETS = ("key_value", "digest", "root_proof")
"""Columns that are of no use to the person, and of much to a thief."""
IN_ARCHIVES = (
    *("user_email", "end_user", "email", "name", "subject", "revoked_by", "created_by"),
    *("actor", "object_id", "before", "after"),
)
OF_PERSON = "lower(email) = $1 OR lower(name) = $1 OR lower(subject) = $1"
"""SQL for the rows of `people` that have the address `$1`, in lower case."""
_TEXTS = ("text", "character varying", "jsonb")
_ARCHIVED = """
SELECT c.relname::text AS name, array_agg(a.attname::text ORDER BY a.attnum) AS columns,
    array_agg(format_type(a.atttypid, NULL) ORDER BY a.attnum) AS types,
    has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
        AND has_table_privilege(c.oid, 'UPDATE') AS allowed
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p')
GROUP BY c.oid, c.relname, n.oid HAVING array_agg(a.attname::text) && $2::text[] ORDER BY c.relname
"""


class Large(NamedTuple):
    """A table that is walked through by an indexed column of this type, from `start`."""

    table: str
    column: str
    type: str
    start: str


RECORDS = Large("usage_records", "request_id", "uuid", "00000000-0000-0000-0000-000000000000")
TOTALS = Large("usage_totals", "hour", "timestamptz", "-infinity")
AUDIT = Large("audit_log", "id", "bigint", "0")


class Archived(msgspec.Struct, frozen=True):
    """An archived table with columns that may have addresses; `columns` maps each name to its type.

    `ends_keys`: it has rows of keys with their revocation. Without `allowed` this role may not change it.
    """

    table: str
    columns: dict[str, str]
    ends_keys: bool
    allowed: bool

    @property
    def condition(self) -> str:
        """SQL for the rows in which the pattern `$1` is found."""
        return " OR ".join(f"{name}::text ~* $1" for name in self.columns)


async def run(session: AsyncSession, sql: str, *arguments: object) -> Any:
    """The result of SQL in PostgreSQL's own form, with `$1` and so on."""
    return await (await session.connection()).exec_driver_sql(sql, arguments)


def qualified(schema: str, table: str) -> str:
    """The table's name as SQL."""
    return f"{quote_identifier(schema)}.{quote_identifier(table)}"


def people_of(schema: str) -> str:
    """SQL for the ids of the people with the address `$1`, whose keys may have an earlier one."""
    return f"(SELECT id FROM {qualified(schema, 'people')} WHERE {OF_PERSON})"


async def end_of_window(session: AsyncSession, schema: str, large: Large, after: str) -> str | None:
    """The last value of the column among the next rows after this one, as text; None where there are none."""
    table = qualified(schema, large.table)
    sql = (
        f"SELECT k::text FROM (SELECT {large.column} AS k FROM {table} WHERE {large.column} > $1::text::{large.type} "
        f"ORDER BY {large.column} LIMIT {ROWS_AT_ONCE}) AS w ORDER BY k DESC LIMIT 1"
    )
    end: str | None = (await run(session, sql, after)).scalar_one_or_none()
    return end


def within(large: Large, first: int) -> str:
    """The condition for the rows of a window whose bounds are the parameters `first` and the one after it."""
    column, type_ = large.column, large.type
    return f"{column} > ${first}::text::{type_} AND {column} <= ${first + 1}::text::{type_}"


async def windows(transaction: Transactions, schema: str, large: Large) -> AsyncIterator[tuple[AsyncSession, str, str]]:
    """A session for each part of the table, with its bounds; what is done there is committed before the next part."""
    after = large.start
    while True:
        async with transaction() as session:
            end = await end_of_window(session, schema, large, after)
            if end is None:
                return
            yield session, after, end
        after = end


async def find_archived(session: AsyncSession, schema: str) -> Sequence[Archived]:
    """The archived tables that may have addresses."""
    rows = (await run(session, _ARCHIVED, archive_schema(schema), list(IN_ARCHIVES))).all()
    return [
        Archived(
            row.name,
            {n: t for n, t in zip(row.columns, row.types, strict=True) if n in IN_ARCHIVES and t in _TEXTS},
            {"user_email", "revoked_at"} <= set(row.columns),
            row.allowed,
        )
        for row in rows
    ]
