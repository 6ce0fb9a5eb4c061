"""What a schema is made of, as PostgreSQL's catalog tells it: to compare two schemas exactly.

`pg_dump` is not fit for it: its output differs from run to run, and column order is not a difference that
matters.
"""

from __future__ import annotations

import asyncpg

from gasket.migrator.ledger import OWN_TABLES_PREFIX, VERSION_TABLE

Catalog = dict[tuple[str, str], str]
"""(kind, name) -> definition. Kinds are the keys of `_KINDS`."""

_RELATIONS = """
relations AS (
    SELECT c.*, c.oid::regclass::text AS id
    FROM pg_class AS c
    WHERE c.relnamespace = to_regnamespace(quote_ident($1))
      AND c.relname <> $2 AND NOT starts_with(c.relname, $3)
      AND NOT EXISTS (SELECT FROM pg_depend AS d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
      AND NOT EXISTS (SELECT FROM pg_index AS i JOIN pg_class AS t ON t.oid = i.indrelid
                      WHERE i.indexrelid = c.oid AND (t.relname = $2 OR starts_with(t.relname, $3)))
)"""

_KINDS = {
    "table": """
        SELECT id, concat_ws(' ', relkind, relpersistence, reloptions, relrowsecurity, relforcerowsecurity,
            relreplident, pg_get_partkeydef(oid), pg_get_expr(relpartbound, oid),
            CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(oid) END,
            (SELECT string_agg(inhparent::regclass::text, ',' ORDER BY inhseqno)
             FROM pg_inherits WHERE inhrelid = relations.oid))
        FROM relations WHERE relkind IN ('r', 'p', 'v', 'm', 'f')""",
    "column": """
        SELECT id || '.' || quote_ident(a.attname), concat_ws(' ', format_type(a.atttypid, a.atttypmod),
            CASE WHEN a.attnotnull THEN 'NOT NULL' END, nullif(a.attidentity::text, ''),
            nullif(a.attgenerated::text, ''), pg_get_expr(d.adbin, d.adrelid),
            CASE WHEN a.attcollation <> t.typcollation THEN a.attcollation::regcollation::text END,
            CASE WHEN a.attstorage <> t.typstorage THEN a.attstorage::text END,
            nullif(a.attcompression::text, ''), nullif(a.attstattarget, -1))
        FROM relations
        JOIN pg_attribute AS a ON a.attrelid = relations.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN pg_type AS t ON t.oid = a.atttypid
        LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'c')""",
    "constraint": """
        SELECT coalesce(id, c.contypid::regtype::text) || '.' || quote_ident(c.conname),
            pg_get_constraintdef(c.oid) || CASE WHEN c.convalidated THEN '' ELSE ' (not validated)' END
        FROM pg_constraint AS c LEFT JOIN relations ON relations.oid = c.conrelid
        WHERE c.connamespace = to_regnamespace(quote_ident($1)) AND c.contype <> 't'
          AND (c.conrelid = 0 OR relations.oid IS NOT NULL)""",
    "index": """
        SELECT id, concat_ws(' ', pg_get_indexdef(relations.oid), CASE WHEN NOT i.indisvalid THEN 'INVALID' END,
            CASE WHEN i.indisclustered THEN 'CLUSTERED' END, CASE WHEN i.indisreplident THEN 'REPLICA IDENTITY' END)
        FROM relations JOIN pg_index AS i ON i.indexrelid = relations.oid""",
    "sequence": """
        SELECT id, concat_ws(' ', s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmax, s.seqmin, s.seqcache,
            s.seqcycle, (SELECT d.refobjid::regclass || '.' || a.attname
                         FROM pg_depend AS d JOIN pg_attribute AS a
                           ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                         WHERE d.objid = relations.oid AND d.classid = 'pg_class'::regclass
                           AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')))
        FROM relations JOIN pg_sequence AS s ON s.seqrelid = relations.oid""",
    "type": """
        SELECT t.oid::regtype::text, concat_ws(' ', t.typtype,
            (SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid),
            CASE WHEN t.typtype = 'd'
                 THEN concat_ws(' ', format_type(t.typbasetype, t.typtypmod), t.typnotnull, t.typdefault) END,
            (SELECT rngsubtype::regtype::text FROM pg_range WHERE rngtypid = t.oid))
        FROM pg_type AS t
        WHERE t.typnamespace = to_regnamespace(quote_ident($1)) AND t.typtype IN ('e', 'd', 'r')
          AND NOT EXISTS (SELECT FROM pg_depend AS d
                          WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')""",
    "function": """
        SELECT p.oid::regprocedure::text, CASE WHEN p.prokind IN ('f', 'p', 'w') THEN pg_get_functiondef(p.oid)
            ELSE concat_ws(' ', p.prokind, p.prorettype::regtype) END
        FROM pg_proc AS p
        WHERE p.pronamespace = to_regnamespace(quote_ident($1))
          AND NOT EXISTS (SELECT FROM pg_depend AS d
                          WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')""",
    "trigger": """
        SELECT id || '.' || quote_ident(t.tgname), pg_get_triggerdef(t.oid) || ' ' || t.tgenabled::text
        FROM pg_trigger AS t JOIN relations ON relations.oid = t.tgrelid WHERE NOT t.tgisinternal""",
    "rule": """
        SELECT id || '.' || quote_ident(r.rulename), pg_get_ruledef(r.oid)
        FROM pg_rewrite AS r JOIN relations ON relations.oid = r.ev_class WHERE r.rulename <> '_RETURN'""",
    "policy": """
        SELECT id || '.' || quote_ident(p.polname), concat_ws(' ', p.polcmd, p.polpermissive,
            p.polroles::regrole[], pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
        FROM pg_policy AS p JOIN relations ON relations.oid = p.polrelid""",
    "statistics": """
        SELECT quote_ident(s.stxname), pg_get_statisticsobjdef(s.oid)
        FROM pg_statistic_ext AS s WHERE s.stxnamespace = to_regnamespace(quote_ident($1))""",
    "comment": """
        SELECT id || coalesce('.' || quote_ident(a.attname), ''), d.description
        FROM pg_description AS d
        JOIN relations ON relations.oid = d.objoid AND d.classoid = 'pg_class'::regclass
        LEFT JOIN pg_attribute AS a ON a.attrelid = d.objoid AND a.attnum = d.objsubid AND d.objsubid > 0""",
    # By grantee, whoever granted it; the owner is not named, for it is another on each database. What is not granted
    # at all counts as the owner's default, which is what it means.
    "privileges": """
        SELECT granted.id || ' to ' || CASE granted.grantee WHEN granted.owner THEN 'its owner' WHEN 0 THEN 'PUBLIC'
                ELSE granted.grantee::regrole::text END,
            string_agg(DISTINCT granted.privilege, ', ' ORDER BY granted.privilege)
        FROM (
            SELECT id, relowner AS owner, acl.grantee,
                acl.privilege_type || CASE WHEN acl.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS privilege
            FROM relations CROSS JOIN LATERAL aclexplode(
                coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))) AS acl
            WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
            UNION ALL
            SELECT id || '.' || quote_ident(a.attname), relowner, acl.grantee,
                acl.privilege_type || CASE WHEN acl.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
            FROM relations JOIN pg_attribute AS a ON a.attrelid = relations.oid
            CROSS JOIN LATERAL aclexplode(a.attacl) AS acl
        ) AS granted
        GROUP BY granted.id, granted.owner, granted.grantee""",
}


async def read_catalog(connection: asyncpg.Connection, schema: str) -> Catalog:
    """Everything in `schema` but the migrator's own tables; names are as seen with an empty `search_path`."""
    branches = [
        f"SELECT '{kind}' AS kind, named.* FROM ({query}) AS named(name, definition)" for kind, query in _KINDS.items()
    ]
    async with connection.transaction():
        await connection.execute("SET LOCAL search_path = ''")
        rows = await connection.fetch(
            f"WITH {_RELATIONS} " + " UNION ALL ".join(branches), schema, VERSION_TABLE, OWN_TABLES_PREFIX
        )
    return {(row["kind"], row["name"]): row["definition"] or "" for row in rows}
