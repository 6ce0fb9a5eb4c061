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

    The row is written only by the backend that holds the advisory lock of `lock_class` and `lock_key`.
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
    lock_class: int
    lock_key: int


def insert_statement(schema: str) -> str:
    """The INSERT of one `NewLedgerRow`, which inserts nothing unless this very backend holds the migration lock.

    It returns PINNED as it is after the step, and the transaction's number.
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
        f"INSERT INTO {qualified(schema, LEDGER)} ({', '.join(values)}) SELECT {', '.join(values.values())} "
        "WHERE EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND objsubid = 2 "
        f"AND classid = {at['lock_class']}::oid AND objid = {at['lock_key']}::oid AND granted "
        "AND pid = pg_backend_pid()) "
        f"RETURNING {PINNED}, pg_current_xact_id()::text"
    )


@cache
def lock_statement(schema: str) -> str:
    """Takes, to the end of the transaction, the locks with which a step writes to the books; it changes nothing.

    It returns the transaction's number. Writing no rows is one round trip for both tables, and unlike LOCK TABLE the
    statement takes the version's row, too.
    """
    ledger, versions = qualified(schema, LEDGER), qualified(schema, VERSION_TABLE)
    return (
        f"WITH ledger AS (INSERT INTO {ledger} (revision, direction) SELECT '', '' WHERE false), "
        f"versions AS (UPDATE {versions} SET version_num = version_num WHERE false), "
        f"held AS (SELECT FROM {versions} FOR UPDATE) "
        "SELECT pg_current_xact_id()::text, count(*) FROM held"
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
