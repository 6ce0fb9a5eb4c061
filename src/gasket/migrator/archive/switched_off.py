"""What is switched off while archived rows are written, and then on again exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection

from gasket.migrator.archive.live_table import ForeignKey, Target
from gasket.postgres.quoting import quote_identifier

# A partition's clone of its parent's trigger goes with that one.
_TRIGGERS = """
SELECT tgrelid::regclass::text AS table, quote_ident(tgname) AS name, tgenabled::text AS enabled
FROM pg_trigger
WHERE tgrelid IN (SELECT relid FROM pg_partition_tree($1::bigint::oid::regclass) UNION SELECT $1::bigint::oid::regclass)
  AND NOT tgisinternal AND tgparentid = 0 AND tgenabled <> 'D'
"""
# ev_type 2 is ON UPDATE, 3 is ON INSERT. Rules of a partition do not see the rows that its parent routes to it.
_RULES = """
SELECT quote_ident(rulename) AS name, ev_enabled::text AS enabled
FROM pg_rewrite WHERE ev_class = $1::bigint::oid AND ev_type IN ('2', '3') AND ev_enabled <> 'D'
"""
_FORCED_ROW_SECURITY = "SELECT relforcerowsecurity FROM pg_class WHERE oid = $1::bigint::oid"
_DEFERRABLE = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(con.conname)
FROM pg_constraint AS con JOIN pg_namespace AS n ON n.oid = con.connamespace
WHERE con.conrelid = ANY ($1::bigint[]::oid[]) AND con.condeferrable AND con.contype IN ('p', 'u', 'x')
"""
_WHEN = {"O": "", "A": "ALWAYS ", "R": "REPLICA "}
"""By `tgenabled` and `ev_enabled`: what stands behind ENABLE."""


@contextmanager
def switched_off(
    connection: Connection, group: Sequence[Target], deferred: Sequence[tuple[Target, ForeignKey]]
) -> Iterator[None]:
    """For the block: no triggers, no rules, no policies for the owner, any value for an identity.

    `deferred` foreign keys, each with its table, are checked at the end of the block.
    To be used in a savepoint: after an error, that puts everything back.
    """
    opening, closing = list[str](), list[str]()
    if deferred:
        closing.append("SET CONSTRAINTS ALL IMMEDIATE")
    for target, key in deferred:
        alter = f"ALTER TABLE {target.table} ALTER CONSTRAINT {quote_identifier(key.name)}"
        opening.append(f"{alter} DEFERRABLE INITIALLY DEFERRED")
        closing.append(f"{alter} {key.timing}")
    for target in group:
        for statement, undo in _pairs(connection, target):
            opening.append(statement)
            closing.append(undo)
    if deferred:
        opening.append("SET CONSTRAINTS ALL DEFERRED")
        oids = [target.oid for target in group]
        if others := connection.exec_driver_sql(_DEFERRABLE, (oids,)).scalars().all():
            opening.append(f"SET CONSTRAINTS {', '.join(others)} IMMEDIATE")
    for statement in opening:
        connection.exec_driver_sql(statement)
    yield
    for statement in closing:
        connection.exec_driver_sql(statement)


def _pairs(connection: Connection, target: Target) -> Iterator[tuple[str, str]]:
    """Statements, each with the one that undoes it."""
    alter = f"ALTER TABLE {target.table}"
    for trigger in connection.exec_driver_sql(_TRIGGERS, (target.oid,)):
        of_table = f"ALTER TABLE {trigger.table}"
        enable = f"{of_table} ENABLE {_WHEN[trigger.enabled]}TRIGGER {trigger.name}"
        yield f"{of_table} DISABLE TRIGGER {trigger.name}", enable
    for rule in connection.exec_driver_sql(_RULES, (target.oid,)):
        yield f"{alter} DISABLE RULE {rule.name}", f"{alter} ENABLE {_WHEN[rule.enabled]}RULE {rule.name}"
    if connection.exec_driver_sql(_FORCED_ROW_SECURITY, (target.oid,)).scalar_one():
        yield f"{alter} NO FORCE ROW LEVEL SECURITY", f"{alter} FORCE ROW LEVEL SECURITY"
    for value in target.values:
        if target.keys and value.always_identity:  # which an UPDATE may not set
            generated = f"{alter} ALTER COLUMN {value.quoted} SET GENERATED"
            yield f"{generated} BY DEFAULT", f"{generated} ALWAYS"
