"""The parts from which the queries for the catalog are made. They run with an empty `search_path`.

Parameters: $1 the application's schema, $2 the version table, $3 the prefix of the migrator's tables, $4 the archive's
schema, $5 the role that is called MIGRATING_ROLE (NULL: every role goes by its name).
"""

from __future__ import annotations

import msgspec

FIRST_OWN_OID = 16384
"""Smaller oids are PostgreSQL's own objects (`FirstNormalObjectId` in its `access/transam.h`)."""

MIGRATING_ROLE = "the migrating role"

# What is in PostgreSQL's schemas and in the archive, the migrator's own tables and what an extension has made: all
# that is in none of these.
SHARED = f"""
spaces AS MATERIALIZED (
    SELECT n.oid, n.nspname::text AS space, n.nspowner, n.nspacl
    FROM pg_namespace AS n
    WHERE NOT starts_with(n.nspname, 'pg_') AND n.nspname NOT IN ('information_schema', $4)
),
of_extensions AS MATERIALIZED (SELECT classid, objid FROM pg_depend WHERE deptype = 'e'),
relations AS MATERIALIZED (
    SELECT c.*, s.space, c.oid::regclass::text AS id,
        CASE WHEN c.relispartition THEN 'partition'
            WHEN c.relkind IN ('r', 'f') AND EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = c.oid)
                THEN 'inheriting table'
            ELSE CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table'
                ELSE 'table' END
        END AS kind
    FROM pg_class AS c JOIN spaces AS s ON s.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c', 'S')
      AND NOT (s.space = $1 AND (c.relname = $2 OR starts_with(c.relname, $3)))
      AND NOT EXISTS (SELECT FROM of_extensions AS e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid)
),
indexes AS MATERIALIZED (
    SELECT c.oid, c.reloptions, c.reltablespace, c.oid::regclass::text AS id, i.indisvalid, i.indisclustered,
        r.id AS table_id, r.space, r.oid AS table_oid
    FROM pg_index AS i JOIN relations AS r ON r.oid = i.indrelid JOIN pg_class AS c ON c.oid = i.indexrelid
),
types AS (
    SELECT t.*, s.space, t.oid::regtype::text AS id FROM pg_type AS t JOIN spaces AS s ON s.oid = t.typnamespace
    WHERE t.oid >= {FIRST_OWN_OID} AND (t.typtype IN ('e', 'd', 'r', 'b', 'p') OR t.typtype = 'c'
        AND EXISTS (SELECT FROM relations AS r WHERE r.oid = t.typrelid AND r.relkind = 'c'))
      AND NOT EXISTS (SELECT FROM pg_type AS element WHERE element.typarray = t.oid)
      AND NOT EXISTS (SELECT FROM of_extensions AS e WHERE e.classid = 'pg_type'::regclass AND e.objid = t.oid)
)"""


class Query(msgspec.Struct, frozen=True):
    """Gives kind, name, schema (NULL: in none), the object that it belongs to (NULL: to none) and definition.

    It is left out where it would find nothing, for PostgreSQL plans all the queries for longer than it runs those that
    find something: where nothing of the catalog `of` depends on anything, or where a SELECT FROM `where` is empty.
    """

    sql: str
    of: str | None = None
    where: str | None = None


def options(column: str) -> str:
    """The names of foreign options and a hash of their values: a password may be among them."""
    return (
        f"(SELECT 'OPTIONS (' || string_agg(o.option_name, ', ' ORDER BY o.option_name) || ') ' || "
        f"md5(string_agg(o.option_name || '=' || o.option_value, ',' ORDER BY o.option_name)) "
        f"FROM pg_options_to_table({column}) AS o)"
    )


def enabled(column: str) -> str:
    """When a trigger or a rule fires, unless it is as usual."""
    return (
        f"CASE {column} WHEN 'D' THEN ' DISABLED' WHEN 'R' THEN ' ENABLED REPLICA' WHEN 'A' THEN ' ENABLED ALWAYS' END"
    )


def privileges(objects: str) -> str:
    """By grantee, whoever granted them. `objects` gives name, schema, what it belongs to, owner and ACL.

    The owner is not named, for it may be another one in each database.
    """
    privilege = "a.privilege_type || CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END"
    return f"""
    SELECT 'privileges', o.id || ' to ' || CASE WHEN a.grantee = o.owner THEN 'its owner'
            WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END,
        o.space, o.belongs, string_agg(DISTINCT {privilege}, ', ' ORDER BY {privilege})
    FROM ({objects}) AS o(id, space, belongs, owner, acl) CROSS JOIN LATERAL aclexplode(o.acl) AS a
    GROUP BY o.id, o.space, o.belongs, o.owner, a.grantee"""
