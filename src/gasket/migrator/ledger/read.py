"""What the ledger says: the state of the schema, the stored ways back, the history."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import asyncpg
import msgspec

from gasket.migrator.ledger.tables import (
    FAILURE_COLUMNS,
    FAILURES,
    LEDGER,
    LEDGER_COLUMNS,
    PROGRESS,
    VERSION_TABLE,
    qualified,
)

_ENTRY_COLUMNS = (
    "revision",
    "down_revision",
    "direction",
    "file_sha256",
    "release",
    "backward_compatible",
    "started_at",
)


class LedgerEntry(NamedTuple):
    """The last row of a revision. `direction` is `upgrade`, `downgrade` or `stamp`.

    A later `accept` (a reviewed edit) adds the file's hash to `accepted`, and decides `backward_compatible`.
    """

    revision: str
    down_revisions: tuple[str, ...]
    direction: str
    file_sha256: str | None
    release: str | None
    backward_compatible: bool | None
    started_at: str = ""
    accepted: tuple[str | None, ...] = ()


class DatabaseState(msgspec.Struct, frozen=True):
    """What the database says of its schema, in one SELECT.

    `has_version_table` and `has_ledger` tell a database that Gasket never saw from one that was downgraded to
    base. `half_taken_back` is the applied revision of which a downgrade has committed a part: it is under way, or was
    cut short.
    """

    versions: frozenset[str]
    ledger: Mapping[str, LedgerEntry]
    has_version_table: bool
    has_ledger: bool
    half_taken_back: str | None = None


async def read_state(connection: asyncpg.Connection, schema: str, *, tables_expected: bool = False) -> DatabaseState:
    """The versions, and the last ledger row of every revision.

    `tables_expected`: one SELECT where the tables are there, which is every start but the first, and the first of a
    later release. Else the server is asked first which are there, so that it logs no error for one that is not.
    """
    rows: list[asyncpg.Record] | None = None
    has_versions = has_ledger = True
    if tables_expected:
        with suppress(asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            rows = await connection.fetch(_state_query(schema, versions=True, ledger=True, progress=True))
    if rows is None:
        has_versions, has_ledger, has_progress = await are_there(connection, schema, VERSION_TABLE, LEDGER, PROGRESS)
        rows = await connection.fetch(
            _state_query(schema, versions=has_versions, ledger=has_ledger, progress=has_progress)
        )
    versions = frozenset(version for version in {row[0] for row in rows} if version is not None)
    half_taken_back = rows[0]["half_taken_back"]
    ledger: dict[str, LedgerEntry] = {}
    by_id = {row[1]: row for row in rows if row[1] is not None}
    for _id, row in sorted(by_id.items()):  # the last row of a revision stays
        entry = _entry(row)
        applied = ledger.get(entry.revision)
        if applied and entry.direction == "accept":
            accepted = (*applied.accepted, entry.file_sha256)
            entry = applied._replace(accepted=accepted, backward_compatible=entry.backward_compatible)
        ledger[entry.revision] = entry
    return DatabaseState(
        versions=versions,
        ledger=ledger,
        has_version_table=has_versions,
        has_ledger=has_ledger,
        half_taken_back=half_taken_back if half_taken_back in versions else None,
    )


async def read_versions(connection: asyncpg.Connection, schema: str) -> frozenset[str]:
    """The applied heads alone; empty where the version table is missing."""
    try:
        rows = await connection.fetch(f"SELECT version_num::text FROM {qualified(schema, VERSION_TABLE)}")
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return frozenset()
    return frozenset(row[0] for row in rows)


async def is_whole_at(connection: asyncpg.Connection, schema: str, heads: Iterable[str]) -> bool:
    """Whether exactly these heads are applied, and no downgrade of them has begun."""
    has_versions, has_progress = await are_there(connection, schema, VERSION_TABLE, PROGRESS)
    if not has_versions or await read_versions(connection, schema) != set(heads):
        return False
    begun = f"SELECT EXISTS (SELECT FROM {qualified(schema, PROGRESS)} WHERE downgrade)"
    # Without the table a release that did not have it has migrated last.
    return not (has_progress and await connection.fetchval(begun))


async def newest_rows(connection: asyncpg.Connection, schema: str) -> tuple[int | None, ...]:
    """The newest id of the ledger, and of what unrecorded steps have committed; None for a table without rows."""
    tables = (LEDGER, PROGRESS)
    there = await are_there(connection, schema, *tables)
    found = [
        await connection.fetchval(f"SELECT max(id) FROM {qualified(schema, table)}") if is_there else None
        for table, is_there in zip(tables, there, strict=True)
    ]
    return tuple(found)


async def are_there(connection: asyncpg.Connection, schema: str, *tables: str) -> list[bool]:
    """Whether each table of the schema is there; neither that one nor the schema has to be."""
    names = [qualified(schema, table) for table in tables]
    query = "SELECT to_regclass(name) IS NOT NULL FROM unnest($1::text[]) WITH ORDINALITY AS t(name, n) ORDER BY n"
    return [row[0] for row in await connection.fetch(query, names)]


def _state_query(schema: str, *, versions: bool, ledger: bool, progress: bool) -> str:
    """Each row of the ledger beside each version, of which there is one; NULL in place of what is not there.

    The server neither sorts nor groups nor casts nor makes arrays or JSON: its process is as new as the connection, and
    would have to look each operator and function up in the catalog first, which costs it more than the query itself.
    Even LIMIT has its number in quotes: without them it is an integer, to be cast to bigint.
    """
    no_version = "(SELECT NULL::text AS version_num)"
    no_ledger = f"(SELECT NULL::bigint AS id, {', '.join(f'NULL::text AS {name}' for name in _ENTRY_COLUMNS)})"
    downgrade = f"(SELECT revision FROM {qualified(schema, PROGRESS)} WHERE downgrade LIMIT '1')"
    return (
        f"SELECT v.version_num, l.id, {', '.join(f'l.{name}' for name in _ENTRY_COLUMNS)}, "
        f"{downgrade if progress else 'NULL::text'} AS half_taken_back FROM (SELECT) AS s "
        f"LEFT JOIN {qualified(schema, VERSION_TABLE) if versions else no_version} AS v ON {str(versions).lower()} "
        f"LEFT JOIN {qualified(schema, LEDGER) if ledger else no_ledger} AS l ON {str(ledger).lower()}"
    )


def _entry(row: asyncpg.Record) -> LedgerEntry:
    _version, _id, revision, down_revision, direction, file_sha256, release, compatible, started_at, _half = row
    return LedgerEntry(
        revision=revision,
        down_revisions=tuple(down_revision.split(", ")) if down_revision else (),
        direction=direction,
        file_sha256=file_sha256,
        release=release,
        backward_compatible=compatible,
        started_at=started_at.isoformat(timespec="seconds"),
    )


class TakenBack(msgspec.Struct, frozen=True):
    """A revision whose last row is a downgrade: when it was taken back, by which role, with which command.

    `applied_by` is the release that had applied it last. `told_no`: the release with the given files had been seen
    before.
    """

    revision: str
    at: str
    role: str | None
    command: str | None
    applied_by: str | None
    told_no: bool


async def read_taken_back(
    connection: asyncpg.Connection, schema: str, revisions: Sequence[str], *, files: str
) -> list[TakenBack]:
    """How the given revisions were taken back, in the given order; `files` is the fingerprint of a release's files.

    Such a release was seen before where any row of the ledger, or any failure, that is older than the downgrade has
    its fingerprint: it applied something, tried to, or took something back.
    """
    [has_failures] = await are_there(connection, schema, FAILURES)
    tried = (
        f"OR EXISTS (SELECT FROM {qualified(schema, FAILURES)} AS f "
        "WHERE f.failed_at < d.started_at AND to_jsonb(f) ->> 'files' = $2)"
        if has_failures
        else ""
    )
    ledger = qualified(schema, LEDGER)
    # Through to_jsonb, as in read_digests.
    rows = await connection.fetch(
        f"""
        SELECT d.revision, d.started_at AS at, d.role, to_jsonb(d) ->> 'command' AS command,
            (SELECT a.release FROM {ledger} AS a WHERE a.revision = d.revision
             AND a.direction IN ('upgrade', 'stamp') ORDER BY a.id DESC LIMIT 1) AS applied_by,
            EXISTS (SELECT FROM {ledger} AS l WHERE l.id <= d.id AND to_jsonb(l) ->> 'files' = $2) {tried} AS told_no
        FROM (SELECT DISTINCT ON (revision) * FROM {ledger}
              WHERE revision = ANY ($1) ORDER BY revision, id DESC) AS d
        """,
        list(revisions),
        files,
    )
    found = {row["revision"]: TakenBack(**{**row, "at": row["at"].isoformat(timespec="seconds")}) for row in rows}
    return [found[revision] for revision in revisions if revision in found]


async def read_digests(connection: asyncpg.Connection, schema: str, revisions: Sequence[str]) -> dict[str, set[str]]:
    """The digests of each revision's file: as it was last applied or stamped, and as it was accepted since then."""
    # Through to_jsonb, because the ledger of an older release has no such column before the next migration.
    rows = await connection.fetch(
        f"SELECT revision, direction, to_jsonb(l) ->> 'digest' AS digest FROM {qualified(schema, LEDGER)} AS l "
        "WHERE revision = ANY ($1) AND to_jsonb(l) ->> 'digest' IS NOT NULL ORDER BY id",
        list(revisions),
    )
    digests: dict[str, set[str]] = {}
    for row in rows:
        if row["direction"] == "accept":
            digests.setdefault(row["revision"], set()).add(row["digest"])
        else:
            digests[row["revision"]] = {row["digest"]}
    return digests


class StoredRevision(msgspec.Struct, frozen=True):
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
    # Through to_jsonb, as in read_digests.
    rows = await connection.fetch(
        "SELECT DISTINCT ON (revision) revision, release, to_jsonb(l) ->> 'digest' AS digest, "
        "to_jsonb(l) ->> 'script' AS script, to_jsonb(l) ->> 'downgrade_sql' AS downgrade_sql "
        f"FROM {qualified(schema, LEDGER)} AS l "
        "WHERE to_jsonb(l) ->> 'script' IS NOT NULL ORDER BY revision, id DESC"
    )
    return {
        row["revision"]: StoredRevision(
            row["revision"], row["release"], row["digest"], json.loads(row["script"]), row["downgrade_sql"]
        )
        for row in rows
    }


async def read_history(connection: asyncpg.Connection, schema: str, limit: int) -> list[dict[str, Any]]:
    """The newest rows first, each with its revision's description: the first line of its file's docstring."""
    ledger = qualified(schema, LEDGER)
    # Through to_jsonb, as in read_digests.
    rows = await connection.fetch(
        f"""
        WITH newest AS (SELECT * FROM {ledger} ORDER BY id DESC LIMIT $1),
        described AS (
            SELECT DISTINCT ON (revision) revision, to_jsonb(l) -> 'script' ->> 'doc' AS doc
            FROM {ledger} AS l
            WHERE revision IN (SELECT revision FROM newest) AND to_jsonb(l) ->> 'script' IS NOT NULL
            ORDER BY revision, id DESC
        )
        SELECT id, {", ".join(LEDGER_COLUMNS)}, to_jsonb(newest) ->> 'command' AS command,
            split_part(described.doc, E'\n', 1) AS description
        FROM newest LEFT JOIN described USING (revision) ORDER BY id DESC
        """,
        limit,
    )
    return [dict(row) for row in rows]


async def read_failures(connection: asyncpg.Connection, schema: str, limit: int) -> list[dict[str, Any]]:
    """The newest failed tries first; none where the table is not there yet."""
    if not all(await are_there(connection, schema, FAILURES)):
        return []
    rows = await connection.fetch(
        f"SELECT id, {', '.join(FAILURE_COLUMNS)} FROM {qualified(schema, FAILURES)} ORDER BY id DESC LIMIT $1", limit
    )
    return [dict(row) for row in rows]
