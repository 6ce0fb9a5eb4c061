"""Writing to the ledger: one row of it with its statement, the locks of a step, a failure."""

from __future__ import annotations

import logging
from functools import cache
from typing import NamedTuple

import asyncpg

from gasket.migrator.ledger.sequences import lagging_table, set_sequence
from gasket.migrator.ledger.tables import FAILURES, LEDGER, VERSION_TABLE, qualified
from gasket.postgres.sessions import PINNED

log = logging.getLogger("gasket.migrator")


class NewLedgerRow(NamedTuple):
    """The parameters of `insert_statement`, in order; `script` and `downgrade_sql` are JSON as text.

    With the row Alembic's version moves from `version` to `next_version`, where it is to move.
    """

    revision: str
    down_revision: str | None
    direction: str
    file_sha256: str | None
    release: str
    host: str
    duration_ms: int
    backward_compatible: bool | None
    digest: str | None
    script: str | None
    downgrade_sql: str | None
    command: str
    files: str
    version: str | None
    next_version: str | None


def insert_statement(schema: str, lock: str) -> str:
    """The INSERT of one `NewLedgerRow`, which inserts nothing unless this very session holds the migration lock.

    Only the session that holds it can release it. It is taken again at once, and in a step `lock_statement` keeps it
    from others meanwhile; to look it up in `pg_locks` costs more than the INSERT. `lock` are its keys.
    It returns PINNED as it is after the step, the transaction's number, and how many of Alembic's rows have moved.
    """
    at = {name: f"${number}" for number, name in enumerate(NewLedgerRow._fields, start=1)}
    duration = f"{at['duration_ms']}::bigint"
    values = {
        "revision": f"{at['revision']}::text",
        "down_revision": f"{at['down_revision']}::text",
        "direction": f"{at['direction']}::text",
        "file_sha256": f"{at['file_sha256']}::text",
        "release": f"{at['release']}::text",
        "role": "current_user",
        "host": f"{at['host']}::text",
        "started_at": f"clock_timestamp() - {duration} * interval '1 millisecond'",
        "duration_ms": duration,
        "backward_compatible": f"{at['backward_compatible']}::boolean",
        "digest": f"{at['digest']}::text",
        "script": f"{at['script']}::text::jsonb",
        "downgrade_sql": f"{at['downgrade_sql']}::text::jsonb",
        "command": f"{at['command']}::text",
        "files": f"{at['files']}::text",
    }
    return (
        f"WITH moved AS (UPDATE {qualified(schema, VERSION_TABLE)} SET version_num = {at['next_version']}::text "
        f"WHERE version_num = {at['version']}::text RETURNING 1), "
        f"written AS (INSERT INTO {qualified(schema, LEDGER)} ({', '.join(values)}) "
        f"SELECT {', '.join(values.values())} "
        f"WHERE CASE WHEN pg_advisory_unlock({lock}) THEN pg_try_advisory_lock({lock}) END RETURNING 1) "
        f"SELECT {PINNED}, pg_current_xact_id()::text, (SELECT count(*) FROM moved) FROM written"
    )


@cache
def lock_statement(schema: str, lock: str) -> str:
    """Takes, to the end of the transaction, the locks with which a step writes to the books; it changes nothing.

    The migration lock with the keys `lock` is among them, besides the one that the session holds: so nobody else gets
    it before the step is committed. It returns the transaction's number, and false where another session has that
    lock. Writing no rows is one round trip for both tables, and unlike LOCK TABLE it takes the version's row, too.
    """
    ledger, versions = qualified(schema, LEDGER), qualified(schema, VERSION_TABLE)
    return (
        f"WITH ledger AS (INSERT INTO {ledger} (revision, direction) SELECT '', '' WHERE false), "
        f"versions AS (UPDATE {versions} SET version_num = version_num WHERE false), "
        f"held AS (SELECT FROM {versions} FOR UPDATE) "
        f"SELECT pg_current_xact_id()::text, pg_try_advisory_xact_lock({lock}), count(*) FROM held"
    )


async def record_failure(
    connection: asyncpg.Connection,
    schema: str,
    *,
    revision: str,
    direction: str,
    error: str,
    release: str,
    host: str,
    files: str,
) -> None:
    """Write down a try that failed, outside the transaction that was rolled back."""
    try:
        await connection.execute(
            f"INSERT INTO {qualified(schema, FAILURES)} (revision, direction, error, release, host, files) "
            "VALUES ($1, $2, $3, $4, $5, $6)",
            *(revision, direction, error, release, host, files),
        )
    except asyncpg.UniqueViolationError as fault:
        table = lagging_table(fault, schema)
        if table is None:
            raise
        log.warning(
            "the failure of revision %s could not be recorded: the sequence of %s.id lies behind the rows; run: %s",
            *(revision, table, set_sequence(table)),
        )
