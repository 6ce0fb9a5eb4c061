"""Materialized views over tables that got rows back: refreshed where no session waits for that, otherwise named."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection

from gasket.migrator.archive.inventory import held_relations
from gasket.migrator.archive.savepoints import unless_refused

# Through views, and through the parents of partitions and inherited tables. What reads another view comes after it.
# $2 is what this transaction has made: a materialized view may read a table in a function, which nothing tells.
_READERS = """
WITH RECURSIVE readers (oid, depth) AS (
    SELECT c.oid, 0 FROM pg_class AS c
    WHERE c.oid = ANY ($1::bigint[]::oid[]) OR (c.oid = ANY ($2::bigint[]::oid[]) AND c.relkind = 'm')
    UNION
    SELECT next.oid, readers.depth + 1
    FROM readers CROSS JOIN LATERAL (
        SELECT view.oid FROM pg_depend AS d JOIN pg_rewrite AS r ON r.oid = d.objid
        JOIN pg_class AS view ON view.oid = r.ev_class
        WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = readers.oid
          AND view.relkind IN ('v', 'm') AND view.oid <> readers.oid
        UNION ALL
        SELECT i.inhparent FROM pg_inherits AS i WHERE i.inhrelid = readers.oid
    ) AS next
)
SELECT c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name
FROM readers JOIN pg_class AS c ON c.oid = readers.oid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'm' AND c.relispopulated
GROUP BY c.oid, n.nspname, c.relname ORDER BY max(readers.depth), c.oid
"""


def refresh_views(connection: Connection, tables: Collection[int]) -> tuple[str, ...]:
    """Refresh the materialized views over `tables` (oids) that this transaction has made: they have no readers yet.

    Returns the names of the others, as SQL: a refresh would keep their readers off for as long as it takes.

    Raises:
        sqlalchemy.exc.DBAPIError: a passing fault.
    """
    if not tables:
        return ()
    own = held_relations(connection).exclusive
    views = connection.exec_driver_sql(_READERS, (list(tables), list(own))).all()
    return tuple(
        view.name
        for view in views
        if view.oid not in own or not unless_refused(connection, f"REFRESH MATERIALIZED VIEW {view.name}")
    )
