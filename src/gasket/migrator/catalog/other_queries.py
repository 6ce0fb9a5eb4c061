"""Queries for functions, types and all that is neither a table nor hangs on one."""

from __future__ import annotations

from gasket.migrator.catalog.query import (
    FIRST_OWN_OID,
    MIGRATING_ROLE,
    Query,
    enabled,
    options,
    privileges,
)


def _not_of_extension(catalog: str, oid: str) -> str:
    """The condition that no extension has made the object."""
    return f"NOT EXISTS (SELECT FROM of_extensions AS e WHERE e.classid = '{catalog}'::regclass AND e.objid = {oid})"


_FUNCTIONS = f"""
    SELECT CASE p.prokind WHEN 'p' THEN 'procedure' ELSE 'function' END, p.oid::regprocedure::text, s.space, NULL,
        pg_get_functiondef(p.oid)
    FROM pg_proc AS p JOIN spaces AS s ON s.oid = p.pronamespace
    WHERE p.prokind <> 'a' AND {_not_of_extension("pg_proc", "p.oid")}"""
_AGGREGATES = f"""
    SELECT 'aggregate', p.oid::regprocedure::text, s.space, NULL, concat_ws(' ', pg_get_function_result(p.oid),
        a.aggkind, a.aggnumdirectargs, a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn,
        a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn, a.aggfinalextra, a.aggfinalmodify,
        nullif(a.aggsortop, 0)::regoperator, a.aggtranstype::regtype, a.agginitval, p.proparallel)
    FROM pg_proc AS p JOIN spaces AS s ON s.oid = p.pronamespace JOIN pg_aggregate AS a ON a.aggfnoid = p.oid
    WHERE {_not_of_extension("pg_proc", "p.oid")}"""
_PRIVILEGES_ON_FUNCTIONS = privileges(
    "SELECT p.oid::regprocedure::text, s.space, p.oid::regprocedure::text, p.proowner, "
    "coalesce(p.proacl, acldefault('f', p.proowner)) "
    f"FROM pg_proc AS p JOIN spaces AS s ON s.oid = p.pronamespace WHERE {_not_of_extension('pg_proc', 'p.oid')}"
)
_EVENT_TRIGGERS = f"""
    SELECT 'event trigger', quote_ident(t.evtname), NULL, NULL, concat(concat_ws(' ', 'ON ' || t.evtevent,
        'WHEN TAG IN ' || t.evttags::text, 'EXECUTE ' || t.evtfoid::regproc), {enabled("t.evtenabled")})
    FROM pg_event_trigger AS t WHERE {_not_of_extension("pg_event_trigger", "t.oid")}"""

_TYPES = """
    SELECT CASE t.typtype WHEN 'd' THEN 'domain' ELSE 'type' END, t.id, t.space, NULL,
        CASE t.typtype
        WHEN 'e' THEN (SELECT 'ENUM (' || string_agg(quote_literal(v.enumlabel), ', ' ORDER BY v.enumsortorder) || ')'
                       FROM pg_enum AS v WHERE v.enumtypid = t.oid)
        WHEN 'd' THEN concat_ws(' ', format_type(t.typbasetype, t.typtypmod),
            CASE WHEN t.typcollation <> b.typcollation THEN 'COLLATE ' || t.typcollation::regcollation END,
            CASE WHEN t.typnotnull THEN 'NOT NULL' END, 'DEFAULT ' || t.typdefault)
        WHEN 'r' THEN (SELECT concat_ws(' ', 'RANGE OF ' || g.rngsubtype::regtype,
                           nullif(g.rngcollation, 0)::regcollation, nullif(g.rngcanonical, 0)::regproc,
                           nullif(g.rngsubdiff, 0)::regproc, o.opcname)
                       FROM pg_range AS g JOIN pg_opclass AS o ON o.oid = g.rngsubopc WHERE g.rngtypid = t.oid)
        WHEN 'c' THEN 'COMPOSITE'
        ELSE concat_ws(' ', t.typlen, t.typbyval, t.typcategory, t.typispreferred, t.typdelim, t.typinput, t.typoutput,
            t.typreceive, t.typsend, t.typmodin, t.typmodout, t.typanalyze, t.typalign, t.typstorage,
            nullif(t.typelem, 0)::regtype, t.typdefault) END
    FROM types AS t LEFT JOIN pg_type AS b ON b.oid = t.typbasetype"""
_CONSTRAINTS_OF_DOMAINS = """
    SELECT 'constraint', t.id || '.' || quote_ident(c.conname), t.space, t.id, pg_get_constraintdef(c.oid)
    FROM types AS t JOIN pg_constraint AS c ON c.contypid = t.oid WHERE c.contype = 'c'"""
_PRIVILEGES_ON_TYPES = privileges(
    "SELECT t.id, t.space, t.id, t.typowner, coalesce(t.typacl, acldefault('T', t.typowner)) FROM types AS t"
)
_SOME_TYPE = (
    f"pg_type WHERE oid >= {FIRST_OWN_OID} AND (typtype IN ('e', 'd', 'r', 'p') "
    "OR typtype = 'b' AND typcategory <> 'A' "
    "OR typtype = 'c' AND EXISTS (SELECT FROM pg_class AS c WHERE c.oid = typrelid AND c.relkind = 'c'))"
)

_OPERATORS = f"""
    SELECT 'operator', o.oid::regoperator::text, s.space, NULL, concat_ws(' ', o.oprcode, o.oprresult::regtype,
        o.oprcanmerge, o.oprcanhash, nullif(o.oprcom, 0)::regoperator, nullif(o.oprnegate, 0)::regoperator, o.oprrest,
        o.oprjoin)
    FROM pg_operator AS o JOIN spaces AS s ON s.oid = o.oprnamespace
    WHERE {_not_of_extension("pg_operator", "o.oid")}"""
_OPERATOR_CLASSES = f"""
    SELECT 'operator class', s.space || '.' || quote_ident(o.opcname) || ' USING ' || a.amname, s.space, NULL,
        concat_ws(' ', CASE WHEN o.opcdefault THEN 'DEFAULT' END, 'FOR ' || o.opcintype::regtype,
            'STORAGE ' || nullif(o.opckeytype, 0)::regtype, 'FAMILY ' || f.opfname)
    FROM pg_opclass AS o JOIN spaces AS s ON s.oid = o.opcnamespace JOIN pg_am AS a ON a.oid = o.opcmethod
    JOIN pg_opfamily AS f ON f.oid = o.opcfamily WHERE {_not_of_extension("pg_opclass", "o.oid")}"""
_OPERATOR_FAMILIES = f"""
    SELECT 'operator family', s.space || '.' || quote_ident(f.opfname) || ' USING ' || a.amname, s.space, NULL,
        concat_ws(', ',
            (SELECT string_agg(concat_ws(' ', m.amopstrategy, m.amopopr::regoperator, m.amoppurpose), ', '
                 ORDER BY m.amoplefttype, m.amoprighttype, m.amopstrategy)
             FROM pg_amop AS m WHERE m.amopfamily = f.oid),
            (SELECT string_agg(concat_ws(' ', m.amprocnum, m.amproc::regprocedure), ', '
                 ORDER BY m.amproclefttype, m.amprocrighttype, m.amprocnum)
             FROM pg_amproc AS m WHERE m.amprocfamily = f.oid))
    FROM pg_opfamily AS f JOIN spaces AS s ON s.oid = f.opfnamespace JOIN pg_am AS a ON a.oid = f.opfmethod
    WHERE {_not_of_extension("pg_opfamily", "f.oid")}"""
_COLLATIONS = f"""
    SELECT 'collation', c.oid::regcollation::text, s.space, NULL,
        (to_jsonb(c) - ARRAY['oid', 'collname', 'collnamespace', 'collowner', 'collversion'])::text
    FROM pg_collation AS c JOIN spaces AS s ON s.oid = c.collnamespace
    WHERE {_not_of_extension("pg_collation", "c.oid")}"""
_CONVERSIONS = f"""
    SELECT 'conversion', s.space || '.' || quote_ident(c.conname), s.space, NULL,
        concat_ws(' ', c.conforencoding, c.contoencoding, c.conproc, c.condefault)
    FROM pg_conversion AS c JOIN spaces AS s ON s.oid = c.connamespace
    WHERE {_not_of_extension("pg_conversion", "c.oid")}"""
_TEXT_SEARCH_CONFIGURATIONS = f"""
    SELECT 'text search configuration', c.oid::regconfig::text, s.space, NULL,
        concat_ws(' ', (SELECT p.prsname FROM pg_ts_parser AS p WHERE p.oid = c.cfgparser),
            (SELECT string_agg(m.maptokentype || ' ' || m.mapdict::regdictionary, ', '
                 ORDER BY m.maptokentype, m.mapseqno) FROM pg_ts_config_map AS m WHERE m.mapcfg = c.oid))
    FROM pg_ts_config AS c JOIN spaces AS s ON s.oid = c.cfgnamespace
    WHERE {_not_of_extension("pg_ts_config", "c.oid")}"""
_TEXT_SEARCH_DICTIONARIES = f"""
    SELECT 'text search dictionary', d.oid::regdictionary::text, s.space, NULL,
        concat_ws(' ', (SELECT t.tmplname FROM pg_ts_template AS t WHERE t.oid = d.dicttemplate), d.dictinitoption)
    FROM pg_ts_dict AS d JOIN spaces AS s ON s.oid = d.dictnamespace
    WHERE {_not_of_extension("pg_ts_dict", "d.oid")}"""
_TEXT_SEARCH_PARSERS = f"""
    SELECT 'text search parser', s.space || '.' || quote_ident(p.prsname), s.space, NULL,
        concat_ws(' ', p.prsstart, p.prstoken, p.prsend, p.prsheadline, p.prslextype)
    FROM pg_ts_parser AS p JOIN spaces AS s ON s.oid = p.prsnamespace
    WHERE {_not_of_extension("pg_ts_parser", "p.oid")}"""
_TEXT_SEARCH_TEMPLATES = f"""
    SELECT 'text search template', s.space || '.' || quote_ident(t.tmplname), s.space, NULL,
        concat_ws(' ', t.tmplinit, t.tmpllexize)
    FROM pg_ts_template AS t JOIN spaces AS s ON s.oid = t.tmplnamespace
    WHERE {_not_of_extension("pg_ts_template", "t.oid")}"""

_SCHEMAS = f"""
    SELECT 'schema', quote_ident(s.space), NULL, NULL, ''
    FROM spaces AS s WHERE s.space <> 'public' AND {_not_of_extension("pg_namespace", "s.oid")}"""
_EXTENSIONS = """
    SELECT 'extension', quote_ident(e.extname), NULL, NULL, 'SCHEMA ' || e.extnamespace::regnamespace
    FROM pg_extension AS e WHERE e.extname <> 'plpgsql'"""
_CASTS = f"""
    SELECT 'cast', c.castsource::regtype || ' AS ' || c.casttarget::regtype, NULL, NULL,
        concat_ws(' ', nullif(c.castfunc, 0)::regprocedure, c.castcontext, c.castmethod)
    FROM pg_cast AS c WHERE c.oid >= {FIRST_OWN_OID} AND {_not_of_extension("pg_cast", "c.oid")}"""
_LANGUAGES = f"""
    SELECT 'language', quote_ident(l.lanname), NULL, NULL, concat_ws(' ', l.lanpltrusted,
        nullif(l.lanplcallfoid, 0)::regproc, nullif(l.laninline, 0)::regproc, nullif(l.lanvalidator, 0)::regproc)
    FROM pg_language AS l WHERE l.oid >= {FIRST_OWN_OID} AND {_not_of_extension("pg_language", "l.oid")}"""
_TRANSFORMS = f"""
    SELECT 'transform', t.trftype::regtype || ' FOR ' || l.lanname, NULL, NULL,
        concat_ws(' ', nullif(t.trffromsql, 0)::regproc, nullif(t.trftosql, 0)::regproc)
    FROM pg_transform AS t JOIN pg_language AS l ON l.oid = t.trflang
    WHERE {_not_of_extension("pg_transform", "t.oid")}"""
_ACCESS_METHODS = f"""
    SELECT 'access method', quote_ident(a.amname), NULL, NULL, concat_ws(' ', a.amtype, a.amhandler)
    FROM pg_am AS a WHERE a.oid >= {FIRST_OWN_OID} AND {_not_of_extension("pg_am", "a.oid")}"""
_FOREIGN_DATA_WRAPPERS = f"""
    SELECT 'foreign data wrapper', quote_ident(w.fdwname), NULL, NULL, concat_ws(' ',
        nullif(w.fdwhandler, 0)::regproc, nullif(w.fdwvalidator, 0)::regproc, {options("w.fdwoptions")})
    FROM pg_foreign_data_wrapper AS w WHERE {_not_of_extension("pg_foreign_data_wrapper", "w.oid")}"""
_FOREIGN_SERVERS = f"""
    SELECT 'foreign server', quote_ident(v.srvname), NULL, NULL, concat_ws(' ', 'TYPE ' || v.srvtype,
        'VERSION ' || v.srvversion, 'WRAPPER ' || w.fdwname, {options("v.srvoptions")})
    FROM pg_foreign_server AS v JOIN pg_foreign_data_wrapper AS w ON w.oid = v.srvfdw
    WHERE {_not_of_extension("pg_foreign_server", "v.oid")}"""
_USER_MAPPINGS = """
    SELECT 'user mapping', quote_ident(m.srvname) || ' for ' || m.usename, NULL, NULL, '' FROM pg_user_mappings AS m"""
_PRIVILEGES_ON_SCHEMAS = privileges(
    "SELECT 'schema ' || quote_ident(s.space), NULL::text, quote_ident(s.space), s.nspowner, "
    "coalesce(s.nspacl, acldefault('n', s.nspowner)) FROM spaces AS s "
    f"WHERE {_not_of_extension('pg_namespace', 's.oid')}"
)
_PRIVILEGES_ON_FOREIGN = privileges(
    "SELECT 'foreign data wrapper ' || quote_ident(w.fdwname), NULL::text, NULL::text, w.fdwowner, w.fdwacl "
    "FROM pg_foreign_data_wrapper AS w WHERE w.fdwacl IS NOT NULL UNION ALL "
    "SELECT 'foreign server ' || quote_ident(v.srvname), NULL, NULL, v.srvowner, v.srvacl "
    "FROM pg_foreign_server AS v WHERE v.srvacl IS NOT NULL"
)
_PRIVILEGES_ON_LANGUAGES = privileges(
    "SELECT 'language ' || quote_ident(l.lanname), NULL::text, NULL::text, l.lanowner, l.lanacl "
    "FROM pg_language AS l WHERE l.lanacl IS NOT NULL"
)
_DEFAULT_PRIVILEGES = f"""
    SELECT 'default privileges', concat_ws(' ', 'for',
            CASE WHEN pg_get_userbyid(d.defaclrole) = $5 THEN '{MIGRATING_ROLE}'
                ELSE pg_get_userbyid(d.defaclrole)::text END,
            'in schema ' || nullif(d.defaclnamespace, 0)::regnamespace, 'on',
            CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'FUNCTIONS'
                WHEN 'T' THEN 'TYPES' WHEN 'n' THEN 'SCHEMAS' ELSE d.defaclobjtype::text END,
            'to', CASE WHEN a.grantee = d.defaclrole THEN 'the role itself' WHEN a.grantee = 0 THEN 'PUBLIC'
                ELSE pg_get_userbyid(a.grantee)::text END), NULL, NULL,
        string_agg(a.privilege_type || CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END, ', '
            ORDER BY a.privilege_type)
    FROM pg_default_acl AS d CROSS JOIN LATERAL aclexplode(d.defaclacl) AS a
    GROUP BY d.oid, d.defaclrole, d.defaclnamespace, d.defaclobjtype, a.grantee"""
# Those on tables and on what hangs on them are `tables`'; an extension comments itself.
_COMMENTS = f"""
    SELECT 'comment', o.type || ' ' || o.identity, o.schema, NULL, d.description
    FROM pg_description AS d CROSS JOIN LATERAL pg_identify_object(d.classoid, d.objoid, d.objsubid) AS o
    WHERE d.objoid >= {FIRST_OWN_OID} AND d.classoid NOT IN ('pg_class'::regclass, 'pg_trigger'::regclass,
            'pg_rewrite'::regclass, 'pg_policy'::regclass, 'pg_extension'::regclass, 'pg_largeobject'::regclass)
      AND NOT (d.classoid = 'pg_constraint'::regclass
               AND EXISTS (SELECT FROM pg_constraint AS c WHERE c.oid = d.objoid AND c.conrelid <> 0))
      AND (o.schema IS NULL OR EXISTS (SELECT FROM spaces AS s WHERE quote_ident(s.space) = o.schema))
      AND NOT (d.classoid = 'pg_namespace'::regclass AND NOT EXISTS (SELECT FROM spaces AS s WHERE s.oid = d.objoid))
      AND NOT EXISTS (SELECT FROM of_extensions AS e WHERE e.classid = d.classoid AND e.objid = d.objoid)"""


def _publications(version: int) -> str:
    """Row filters, lists of columns and whole schemas came with PostgreSQL 15."""
    table = "r.prrelid::regclass::text"
    schemas = "NULL"
    if version >= 15:
        table = (
            "concat_ws(' ', r.prrelid::regclass, (SELECT '(' || string_agg(quote_ident(a.attname), ', ' "
            "ORDER BY a.attnum) || ')' FROM pg_attribute AS a WHERE a.attrelid = r.prrelid "
            "AND a.attnum = ANY (r.prattrs)), 'WHERE ' || pg_get_expr(r.prqual, r.prrelid))"
        )
        schemas = (
            "(SELECT 'SCHEMAS ' || string_agg(n.pnnspid::regnamespace::text, ', ' "
            "ORDER BY n.pnnspid::regnamespace::text) FROM pg_publication_namespace AS n WHERE n.pnpubid = p.oid)"
        )
    return f"""
    SELECT 'publication', quote_ident(p.pubname), NULL, NULL, concat_ws(' ',
        CASE WHEN p.puballtables THEN 'ALL TABLES' END, {schemas},
        (SELECT 'TABLES ' || string_agg({table}, ', ' ORDER BY r.prrelid::regclass::text)
         FROM pg_publication_rel AS r WHERE r.prpubid = p.oid),
        (to_jsonb(p) - ARRAY['oid', 'pubname', 'pubowner', 'puballtables'])::text)
    FROM pg_publication AS p WHERE {_not_of_extension("pg_publication", "p.oid")}"""


_OWN_LANGUAGE = f"pg_language WHERE oid >= {FIRST_OWN_OID} OR lanacl IS NOT NULL"


def other_objects(version: int) -> list[Query]:
    """The queries for a server of that major version."""
    return [
        Query(_FUNCTIONS, of="pg_proc"),
        Query(_AGGREGATES, of="pg_proc"),
        Query(_PRIVILEGES_ON_FUNCTIONS, of="pg_proc"),
        Query(_EVENT_TRIGGERS, of="pg_event_trigger"),
        Query(_TYPES, where=_SOME_TYPE),
        Query(_CONSTRAINTS_OF_DOMAINS, where=_SOME_TYPE),
        Query(_PRIVILEGES_ON_TYPES, where=_SOME_TYPE),
        Query(_OPERATORS, of="pg_operator"),
        Query(_OPERATOR_CLASSES, of="pg_opclass"),
        Query(_OPERATOR_FAMILIES, of="pg_opfamily"),
        Query(_COLLATIONS, of="pg_collation"),
        Query(_CONVERSIONS, of="pg_conversion"),
        Query(_TEXT_SEARCH_CONFIGURATIONS, of="pg_ts_config"),
        Query(_TEXT_SEARCH_DICTIONARIES, of="pg_ts_dict"),
        Query(_TEXT_SEARCH_PARSERS, of="pg_ts_parser"),
        Query(_TEXT_SEARCH_TEMPLATES, of="pg_ts_template"),
        Query(_SCHEMAS, where=f"pg_namespace WHERE oid >= {FIRST_OWN_OID}"),
        Query(_EXTENSIONS, where="pg_extension WHERE extname <> 'plpgsql'"),
        Query(_CASTS, where=f"pg_cast WHERE oid >= {FIRST_OWN_OID}"),
        Query(_LANGUAGES, where=_OWN_LANGUAGE),
        Query(_TRANSFORMS, of="pg_transform"),
        Query(_ACCESS_METHODS, where=f"pg_am WHERE oid >= {FIRST_OWN_OID}"),
        Query(_FOREIGN_DATA_WRAPPERS, where="pg_foreign_data_wrapper"),
        Query(_FOREIGN_SERVERS, of="pg_foreign_server"),
        Query(_USER_MAPPINGS, of="pg_user_mapping"),
        Query(_PRIVILEGES_ON_SCHEMAS),
        Query(_PRIVILEGES_ON_FOREIGN, where="pg_foreign_data_wrapper"),
        Query(_PRIVILEGES_ON_LANGUAGES, where=_OWN_LANGUAGE),
        Query(_DEFAULT_PRIVILEGES, where="pg_default_acl"),
        Query(_COMMENTS, where=f"pg_description WHERE objoid >= {FIRST_OWN_OID}"),
        Query(_publications(version), where="pg_publication"),
    ]
