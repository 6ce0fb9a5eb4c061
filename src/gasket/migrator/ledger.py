"""The ledger: what was applied, when, by which release. It lives in tables named `migration_*`.

These tables belong to the migrator and not to the revisions: it makes and extends them under the lock, only
ever by adding, so they survive `downgrade base` and an older release can read and write them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import asyncpg

from gasket.migrator.connection import PINNED, quote_identifier

VERSION_TABLE = "alembic_version"
OWN_TABLES_PREFIX = "migration_"
LEDGER = "migration_ledger"
FAILURES = "migration_failures"

_COLUMNS = {
    "revision": "text NOT NULL",
    "down_revision": "text",
    "direction": "text NOT NULL",
    "file_sha256": "text",
    "release": "text",
    "role": "text",
    "host": "text",
    "started_at": "timestamptz NOT NULL DEFAULT clock_timestamp()",
    "duration_ms": "bigint",
    "backward_compatible": "boolean",
}
_ADDED_COLUMNS = {"digest": "text", "script": "jsonb", "downgrade_sql": "jsonb"}
_ENTRY_COLUMNS = (
    "revision",
    "down_revision",
    "direction",
    "file_sha256",
    "release",
    "backward_compatible",
    "role",
    "started_at",
)
_FAILURE_COLUMNS = {
    "revision": "text",
    "direction": "text",
    "error": "text NOT NULL",
    "release": "text",
    "role": "text DEFAULT current_user",
    "host": "text",
    "failed_at": "timestamptz NOT NULL DEFAULT clock_timestamp()",
}


class LedgerEntry(NamedTuple):
    """The last row of a revision. `direction` is `upgrade`, `downgrade` or `stamp`.

    A later `accept` (a reviewed edit) says no more than which file counts as applied, and what that decides.
    """

    revision: str
    down_revisions: tuple[str, ...]
    direction: str
    file_sha256: str | None
    release: str | None
    backward_compatible: bool | None
    role: str | None = None
    started_at: str = ""


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """What the database says of its schema, and the role that asked, in one SELECT.

    `has_version_table` and `has_ledger` tell a database that Gasket never saw from one that was downgraded to
    base.
    """

    versions: frozenset[str]
    ledger: Mapping[str, LedgerEntry]
    has_version_table: bool
    has_ledger: bool
    role: str


async def read_state(connection: asyncpg.Connection, schema: str) -> DatabaseState:
    """The versions, the last ledger row of every revision, and the role.

    One SELECT where both tables are there, which is every start but the first.
    """
    try:
        rows = await connection.fetch(_state_query(schema, versions=True, ledger=True))
        has_versions = has_ledger = True
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        [(has_versions, has_ledger)] = await connection.fetch(
            "SELECT to_regclass($1) IS NOT NULL, to_regclass($2) IS NOT NULL",
            _qualified(schema, VERSION_TABLE),
            _qualified(schema, LEDGER),
        )
        rows = await connection.fetch(_state_query(schema, versions=has_versions, ledger=has_ledger))
    versions, role = rows[0][:2]
    ledger: dict[str, LedgerEntry] = {}
    for row in sorted(row[2:] for row in rows if row["id"] is not None):  # by id: the last row of a revision stays
        entry = _entry(row)
        applied = ledger.get(entry.revision)
        if applied and entry.direction == "accept":
            entry = applied._replace(file_sha256=entry.file_sha256, backward_compatible=entry.backward_compatible)
        ledger[entry.revision] = entry
    return DatabaseState(
        versions=frozenset(versions),
        ledger=ledger,
        has_version_table=has_versions,
        has_ledger=has_ledger,
        role=role,
    )


async def read_versions(connection: asyncpg.Connection, schema: str) -> frozenset[str]:
    """The applied heads alone; empty where the version table is missing."""
    try:
        rows = await connection.fetch(f"SELECT version_num::text FROM {_qualified(schema, VERSION_TABLE)}")
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return frozenset()
    return frozenset(row[0] for row in rows)


def _state_query(schema: str, *, versions: bool, ledger: bool) -> str:
    """One row for each of the ledger's, or one without it.

    The server neither sorts nor groups nor makes JSON: its process is as new as the connection, and would have to
    look each operator up in the catalog first, which costs it more than the query itself.
    """
    version_rows = f"ARRAY(SELECT version_num::text FROM {_qualified(schema, VERSION_TABLE)})"
    no_ledger = f"(SELECT NULL::bigint AS id, {', '.join(f'NULL::text AS {name}' for name in _ENTRY_COLUMNS)})"
    return (
        f"SELECT s.versions, s.role, l.id, {', '.join(f'l.{name}' for name in _ENTRY_COLUMNS)} "
        f"FROM (SELECT {version_rows if versions else 'ARRAY[]::text[]'} AS versions, current_user::text AS role) AS s "
        f"LEFT JOIN {_qualified(schema, LEDGER) if ledger else no_ledger} AS l ON {str(ledger).lower()}"
    )


def _entry(row: Sequence[Any]) -> LedgerEntry:
    _id, revision, down_revision, direction, file_sha256, release, compatible, role, started_at = row
    return LedgerEntry(
        revision=revision,
        down_revisions=tuple(down_revision.split(", ")) if down_revision else (),
        direction=direction,
        file_sha256=file_sha256,
        release=release,
        backward_compatible=compatible,
        role=role,
        started_at=started_at.isoformat(timespec="seconds"),
    )


async def ensure_tables(connection: asyncpg.Connection, schema: str) -> None:
    """Make the migrator's tables, or add the columns that an older release did not know. Only under the lock."""
    for name, columns in ((LEDGER, _COLUMNS | _ADDED_COLUMNS), (FAILURES, _FAILURE_COLUMNS)):
        table = _qualified(schema, name)
        present = {
            row["attname"]
            for row in await connection.fetch(
                "SELECT attname FROM pg_catalog.pg_attribute "
                "WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
                table,
            )
        }
        if not present:
            definitions = ", ".join(f"{column} {kind}" for column, kind in columns.items())
            await connection.execute(
                f"CREATE TABLE {table} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {definitions})"
            )
        for column in columns.keys() - present if present else ():
            await connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {columns[column]}")


def insert_statement(schema: str) -> str:
    """The INSERT of one ledger row, which inserts nothing unless this very backend holds the migration lock.

    Parameters: revision, down_revision, direction, file_sha256, release, host, duration_ms,
    backward_compatible, digest, script, downgrade SQL (both as JSON text), lock class, lock key. Returns PINNED as it
    is after the step.
    """
    return (
        f"INSERT INTO {_qualified(schema, LEDGER)} (revision, down_revision, direction, file_sha256, release, role, "
        "host, started_at, duration_ms, backward_compatible, digest, script, downgrade_sql) "
        "SELECT $1::text, $2::text, $3::text, $4::text, $5::text, current_user, $6::text, "
        "clock_timestamp() - $7::bigint * interval '1 millisecond', $7::bigint, $8::boolean, $9::text, "
        "$10::text::jsonb, $11::text::jsonb "
        "WHERE EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND objsubid = 2 "
        "AND classid = $12::oid AND objid = $13::oid AND granted AND pid = pg_backend_pid()) "
        f"RETURNING {PINNED}"
    )


def lock_statement(schema: str) -> str:
    """Takes, to the end of the transaction, the locks with which a step writes to the books; it changes nothing.

    Writing no rows is one round trip for both tables, and unlike LOCK TABLE the statement takes the version's row, too.
    """
    ledger, versions = _qualified(schema, LEDGER), _qualified(schema, VERSION_TABLE)
    return (
        f"WITH ledger AS (INSERT INTO {ledger} (revision, direction) SELECT '', '' WHERE false), "
        f"versions AS (UPDATE {versions} SET version_num = version_num WHERE false) "
        f"SELECT version_num FROM {versions} FOR UPDATE"
    )


async def record_failure(
    connection: asyncpg.Connection, schema: str, *, revision: str, direction: str, error: str, release: str, host: str
) -> None:
    """Write down a try that failed, outside the transaction that was rolled back."""
    await connection.execute(
        f"INSERT INTO {_qualified(schema, FAILURES)} (revision, direction, error, release, host) "
        "VALUES ($1, $2, $3, $4, $5)",
        revision,
        direction,
        error,
        release,
        host,
    )


async def read_applier(connection: asyncpg.Connection, schema: str, revision: str) -> str | None:
    """The release that last applied or stamped a revision."""
    release: str | None = await connection.fetchval(
        f"SELECT release FROM {_qualified(schema, LEDGER)} WHERE revision = $1 "
        "AND direction IN ('upgrade', 'stamp') ORDER BY id DESC LIMIT 1",
        revision,
    )
    return release


async def read_digests(connection: asyncpg.Connection, schema: str, revisions: list[str]) -> dict[str, str]:
    """The digest of each revision's file as it was applied, stamped, or accepted after a review."""
    # Through to_jsonb, because the ledger of an older release has no such column until somebody migrates.
    rows = await connection.fetch(
        f"SELECT DISTINCT ON (revision) revision, to_jsonb(l) ->> 'digest' AS digest "
        f"FROM {_qualified(schema, LEDGER)} AS l "
        "WHERE revision = ANY ($1) AND to_jsonb(l) ->> 'digest' IS NOT NULL ORDER BY revision, id DESC",
        revisions,
    )
    return {row["revision"]: row["digest"] for row in rows}


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """What the ledger keeps of a revision for a release that lacks its file.

    `script` holds `down_revision`, `depends_on`, `branch_labels` and `doc` as Alembic's module has them;
    `downgrade_sql` is None, or a rendering as `gasket.migrator.sql.render` stores it.
    """

    revision: str
    release: str | None
    digest: str | None
    script: dict[str, Any]
    downgrade_sql: str | None


async def read_stored(connection: asyncpg.Connection, schema: str) -> dict[str, StoredRevision]:
    """Every revision that was ever applied or stamped with its script, by revision."""
    kept = ", ".join(f"to_jsonb(l) ->> '{name}' AS {name}" for name in _ADDED_COLUMNS)  # as in read_digests
    rows = await connection.fetch(
        f"SELECT DISTINCT ON (revision) revision, release, {kept} FROM {_qualified(schema, LEDGER)} AS l "
        "WHERE to_jsonb(l) ->> 'script' IS NOT NULL ORDER BY revision, id DESC"
    )
    return {
        row["revision"]: StoredRevision(
            row["revision"], row["release"], row["digest"], json.loads(row["script"]), row["downgrade_sql"]
        )
        for row in rows
    }


async def read_history(connection: asyncpg.Connection, schema: str, limit: int) -> list[dict[str, Any]]:
    """The newest rows first, as they stand in the table."""
    rows = await connection.fetch(
        f"SELECT id, {', '.join(_COLUMNS)} FROM {_qualified(schema, LEDGER)} ORDER BY id DESC LIMIT $1",
        limit,
    )
    return [dict(row) for row in rows]


async def read_failures(connection: asyncpg.Connection, schema: str, limit: int) -> list[dict[str, Any]]:
    """The newest failed tries first; none where the table is not there yet."""
    if await connection.fetchval("SELECT to_regclass($1) IS NULL", _qualified(schema, FAILURES)):
        return []
    rows = await connection.fetch(
        f"SELECT id, {', '.join(_FAILURE_COLUMNS)} FROM {_qualified(schema, FAILURES)} ORDER BY id DESC LIMIT $1", limit
    )
    return [dict(row) for row in rows]


def _qualified(schema: str, table: str) -> str:
    return f"{quote_identifier(schema)}.{table}"
