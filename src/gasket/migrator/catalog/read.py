"""What a database is made of, as PostgreSQL's catalog tells it: to compare two databases, or one with itself later.

`pg_dump` is not fit for it: its output differs from run to run, and the order of columns is a difference in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import asyncpg

from gasket.migrator.archive.schema import archive_schema
from gasket.migrator.catalog.other_queries import other_objects
from gasket.migrator.catalog.query import FIRST_OWN_OID, SHARED, Query
from gasket.migrator.catalog.table_queries import OF_TABLES
from gasket.migrator.ledger.tables import OWN_TABLES_PREFIX, VERSION_TABLE


class Object(NamedTuple):
    """`schema` is None for an object that is in no schema; `owner` is the object that it belongs to, if any."""

    schema: str | None
    owner: str | None
    definition: str


Catalog = dict[tuple[str, str], Object]
"""By kind and name. A name is written as it is with an empty `search_path`."""


async def read_catalog(connection: asyncpg.Connection, schema: str, *, migrating_role: str | None = None) -> Catalog:
    """Every object of the database but those of PostgreSQL, of extensions and of the migrator in `schema`.

    Where `migrating_role` is given, default privileges call it "the migrating role".
    """
    queries = [*OF_TABLES, *other_objects(connection.get_server_version().major)]
    async with connection.transaction():
        await connection.execute("SET LOCAL search_path = ''; SET LOCAL jit = off; SET LOCAL lock_timeout = '1s'")
        needed = await _not_empty(connection, queries)
        rows = await connection.fetch(
            f"WITH {SHARED} "
            + " UNION ALL ".join(f"SELECT * FROM ({query.sql}) AS found(a, b, c, d, e)" for query in needed)
            # Every parameter has its type, whichever of the queries are there.
            + " WHERE num_nulls($1::text, $2::text, $3::text, $4::text, $5::text) < 5",
            *(schema, VERSION_TABLE, OWN_TABLES_PREFIX, archive_schema(schema), migrating_role),
        )
    return {(kind, name): Object(space, owner, definition or "") for kind, name, space, owner, definition in rows}


async def _not_empty(connection: asyncpg.Connection, queries: Sequence[Query]) -> list[Query]:
    """Those that find something. Whatever is in a schema depends on it, so one look at pg_depend tells most."""
    conditions = list(dict.fromkeys(query.where for query in queries if query.where))
    exist = ", ".join(f"EXISTS (SELECT FROM {table})" for table in conditions)
    [(classes, *found)] = await connection.fetch(
        "SELECT ARRAY(SELECT classid::regclass::text FROM (SELECT DISTINCT classid FROM pg_catalog.pg_depend "
        f"WHERE objid >= {FIRST_OWN_OID}) AS own), {exist}"
    )
    catalogs = {name.removeprefix("pg_catalog.") for name in classes}
    not_empty = {None, *(table for table, exists in zip(conditions, found, strict=True) if exists)}
    return [query for query in queries if query.where in not_empty and (query.of is None or query.of in catalogs)]
