"""Which live tables Alembic compares with the models, for drift and for autogenerate alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from sqlalchemy import Connection, MetaData, text

from gasket.migrator.ledger.tables import OWN_TABLES_PREFIX, VERSION_TABLE

_Includes = Callable[[str | None, str, Any], bool]
"""Alembic's `include_name`."""

# Partitions and the children of inheritance are often made and dropped at run time, as the rows need them.
_TABLES = text("""
SELECT c.relname FROM pg_catalog.pg_class AS c
WHERE c.relnamespace = to_regnamespace(quote_ident(:schema)) AND c.relkind IN ('r', 'p', 'f')
  AND (EXISTS (SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhrelid = c.oid)
       OR EXISTS (SELECT FROM pg_catalog.pg_depend AS d WHERE d.classid = 'pg_catalog.pg_class'::regclass
                  AND d.objid = c.oid AND d.deptype = 'e'))
""")
# A foreign key that refers to a partitioned table gets one more constraint for each of its partitions.
_FOREIGN_KEYS = text("""
SELECT c.relname, f.conname
FROM pg_catalog.pg_constraint AS f JOIN pg_catalog.pg_class AS c ON c.oid = f.conrelid
WHERE f.connamespace = to_regnamespace(quote_ident(:schema)) AND f.contype = 'f' AND f.conparentid <> 0
""")


def compared_with_models(connection: Connection, metadata: MetaData, schema: str) -> _Includes:
    """Leave out what no revision makes: partitions, inheriting tables, those of extensions and of the migrator.

    A table that has a model is compared in any case. The database is asked when the first name is compared.
    """
    with_model = {table.name for table in metadata.tables.values()}

    @cache
    def left_out() -> tuple[set[str], set[tuple[str, str]]]:
        tables = set(connection.scalars(_TABLES, {"schema": schema}))
        foreign_keys = {(table, name) for table, name in connection.execute(_FOREIGN_KEYS, {"schema": schema})}
        return tables - with_model, foreign_keys

    def include(name: str | None, kind: str, parents: Any) -> bool:
        if name is None or kind not in ("table", "foreign_key_constraint"):
            return True
        tables, foreign_keys = left_out()
        if kind == "table":
            own = name == VERSION_TABLE or name.startswith(OWN_TABLES_PREFIX)
            return not own and name not in tables
        return (parents["table_name"], name) not in foreign_keys

    return include
