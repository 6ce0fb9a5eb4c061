"""Objects that depend on a table and are no part of it: CASCADE drops them."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from typing import NamedTuple

from sqlalchemy import Connection

from gasket.migrator.archive.inventory import After
from gasket.postgres.driver import fetch

# Extensions bring their own again. A foreign key's clones for partitions go with it.
_QUERY = """
WITH own AS (SELECT oid FROM pg_namespace WHERE nspname IN ('pg_catalog', 'information_schema', 'pg_toast')),
    of_extensions AS (SELECT objid FROM pg_depend WHERE deptype = 'e')
SELECT CASE c.relkind WHEN 'v' THEN 'view' ELSE 'materialized view' END AS kind, c.oid::bigint AS oid,
    c.relnamespace::bigint AS home, c.relname::text AS name, c.oid::regclass::text AS shown, '{}'::smallint[] AS columns
FROM pg_class AS c WHERE c.relkind IN ('v', 'm') AND c.relnamespace NOT IN (SELECT oid FROM own)
  AND c.oid NOT IN (SELECT objid FROM of_extensions)
UNION ALL
SELECT 'function', p.oid, p.pronamespace, p.proname, p.oid::regprocedure::text, '{}'
FROM pg_proc AS p WHERE p.pronamespace NOT IN (SELECT oid FROM own) AND p.oid NOT IN (SELECT objid FROM of_extensions)
UNION ALL
SELECT 'domain', t.oid, t.typnamespace, t.typname, t.oid::regtype::text, '{}'
FROM pg_type AS t WHERE t.typtype = 'd' AND t.typnamespace NOT IN (SELECT oid FROM own)
  AND t.oid NOT IN (SELECT objid FROM of_extensions)
UNION ALL
SELECT 'foreign key', con.oid, con.conrelid, con.conname, format('%I of %s', con.conname, con.conrelid::regclass),
    con.conkey
FROM pg_constraint AS con WHERE con.contype = 'f' AND con.conparentid = 0
UNION ALL
SELECT 'trigger', oid, tgrelid, tgname, format('%I of %s', tgname, tgrelid::regclass), '{}'
FROM pg_trigger WHERE NOT tgisinternal AND tgparentid = 0
UNION ALL
SELECT 'policy', oid, polrelid, polname, format('%I of %s', polname, polrelid::regclass), '{}' FROM pg_policy
UNION ALL
SELECT 'rule', r.oid, r.ev_class, r.rulename, format('%I of %s', r.rulename, r.ev_class::regclass), '{}'
FROM pg_rewrite AS r WHERE r.rulename <> '_RETURN'
UNION ALL
SELECT 'default', d.oid, d.adrelid, a.attname, format('of %s.%I', d.adrelid::regclass, a.attname), ARRAY[d.adnum]
FROM pg_attrdef AS d JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
WHERE a.attgenerated = ''
"""
_OF_TABLES = frozenset({"foreign key", "trigger", "policy", "rule", "default"})
_SHOWN = 10


class _Bystander(NamedTuple):
    """`home` is the oid of its table or schema, `columns` are numbers of columns of that table with which it goes."""

    kind: str
    oid: int
    home: int
    name: str
    shown: str
    columns: tuple[int, ...]


def read_bystanders(connection: Connection) -> tuple[_Bystander, ...]:
    """All views, functions, domains, and what belongs to tables, but for PostgreSQL's own."""
    rows = fetch(connection, _QUERY)
    return tuple(_Bystander._make((*facts, tuple(columns))) for *facts, columns in rows)


def taken_along(before: Sequence[_Bystander], now: Sequence[_Bystander], after: After, sql: str) -> str | None:
    """What a step drops beside what it says, in words; None where that is nothing.

    What belongs to a table or a column goes with it, and what the step's own `sql` names is no surprise.
    """
    remaining = {(bystander.kind, bystander.oid) for bystander in now}
    made_anew = {(bystander.kind, bystander.home, bystander.name) for bystander in now}
    homes = after.held.marks.keys() | {bystander.oid for bystander in now if bystander.kind == "view"}
    gone = [
        f"{bystander.kind} {bystander.shown}"
        for bystander in before
        if (bystander.kind, bystander.oid) not in remaining
        and (bystander.kind, bystander.home, bystander.name) not in made_anew
        and not _goes_with_its_table(bystander, after, homes)
        and not re.search(rf"\b{re.escape(bystander.name)}\b", sql, re.IGNORECASE)
    ]
    if not gone:
        return None
    more = f" and {len(gone) - _SHOWN} more" if len(gone) > _SHOWN else ""
    named = f"{', '.join(gone[:_SHOWN])}{more}"
    return f"CASCADE also drops {named}: not archived; they come back only if upgrade() makes them"


def _goes_with_its_table(bystander: _Bystander, after: After, homes: Set[int]) -> bool:
    """Or another session has dropped or changed it meanwhile. `homes` are the tables that are still there."""
    if bystander.kind not in _OF_TABLES:
        return False
    if bystander.home not in after.held.oids or bystander.home not in homes:
        return True
    table = after.relations.get(bystander.home)  # None: the step has nothing to do with it, its columns are there
    return table is not None and not table.columns.keys() >= set(bystander.columns)
