"""What the catalog should be: written down after each run of revisions, in `migration_catalog`.

A run adds what it changed to what was expected before it. So a trigger that was dropped by hand stays a difference when
the next revision is applied. The record counts as long as the ledger's newest row is the one that it was taken with.
"""

from __future__ import annotations

import logging

import asyncpg
import msgspec

from gasket.migrator.catalog.read import Catalog, Object, read_catalog
from gasket.migrator.ledger.read import are_there
from gasket.migrator.ledger.tables import CATALOG, LEDGER, qualified
from gasket.postgres.errors import DRIVER_ERRORS, describe

log = logging.getLogger("gasket.migrator")


class _Record(msgspec.Struct, frozen=True):
    """`objects` is None where nothing is known to compare with; then `reason` says why."""

    objects: Catalog | None
    reason: str = ""


class Recording:
    """One run: `begin` before its first step; `finish` when it has ended and changed something, also with an error.

    The ledger may not be there yet when it begins.
    """

    def __init__(self, connection: asyncpg.Connection, schema: str) -> None:
        self._connection = connection
        self._schema = schema
        self._before: Catalog | None = None
        self._expected: Catalog | None = None

    async def begin(self) -> None:
        """Remember what is there. Without it `finish` does nothing."""
        if self._before is not None:
            return
        try:
            self._expected = (await read_record(self._connection, self._schema)).objects
            self._before = await read_catalog(self._connection, self._schema)
        except asyncpg.PostgresError as error:
            _warn(error)

    async def finish(self, *, anew: bool) -> None:
        """Write down what is expected from now on; with `anew` everything in the schema, whoever made it.

        It never fails: what was applied is applied.
        """
        if self._before is None:
            return
        before, self._before = self._before, None
        try:
            after = await read_catalog(self._connection, self._schema)
            known = None if anew else self._expected
            expected = _expected_after(known, before, after, schema=self._schema)
            await write_record(self._connection, self._schema, expected)
        except DRIVER_ERRORS as error:
            _warn(error)


def _expected_after(expected: Catalog | None, before: Catalog, after: Catalog, *, schema: str) -> Catalog:
    """What was expected, changed as the run changed the catalog. Where nothing was, what is in `schema` now."""
    if expected is None:
        expected = {key: found for key, found in after.items() if found.schema == schema}
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    kept = {key: found for key, found in expected.items() if key not in changed}
    return kept | {key: after[key] for key in changed if key in after}


async def expect_index(connection: asyncpg.Connection, schema: str, index: str) -> None:
    """Add an index that was built after its revision to what is expected. Under the lock only."""
    expected = (await read_record(connection, schema)).objects
    if expected is None:
        return
    name = f".{await connection.fetchval('SELECT quote_ident($1)', index)}"
    built = {
        key: found
        for key, found in (await read_catalog(connection, schema)).items()
        if key[1].endswith(name) or (found.owner or "").endswith(name)
    }
    await write_record(connection, schema, expected | built)


async def read_record(connection: asyncpg.Connection, schema: str) -> _Record:
    """What is expected of the catalog at the ledger's newest row."""
    row = None
    try:
        if all(await are_there(connection, schema, LEDGER, CATALOG)):
            row = await connection.fetchrow(
                f"SELECT server_version, objects, ledger_row = ({_last(schema)}) AS current "
                f"FROM {qualified(schema, CATALOG)} ORDER BY id DESC LIMIT 1"
            )
    except asyncpg.InsufficientPrivilegeError as error:
        return _Record(None, f"the record of it cannot be read: {describe(error)}")
    version = connection.get_server_version().major
    if row is None:
        return _Record(None, "nothing was recorded when the newest revision was applied")
    if not row["current"]:
        return _Record(None, "a release that records nothing has changed the schema last")
    if row["server_version"] != version:
        return _Record(None, f"the record was taken on PostgreSQL {row['server_version']}, and this is {version}")
    return _Record({(kind, name): Object(*rest) for kind, name, *rest in msgspec.json.decode(row["objects"])})


async def write_record(connection: asyncpg.Connection, schema: str, objects: Catalog) -> None:
    """Under the lock only. It replaces the record that is there."""
    rows = msgspec.json.encode([(*key, *found) for key, found in objects.items()]).decode()
    await connection.execute(
        f"WITH replaced AS (DELETE FROM {qualified(schema, CATALOG)}) "
        f"INSERT INTO {qualified(schema, CATALOG)} (ledger_row, server_version, objects) "
        f"VALUES (({_last(schema)}), $1, $2)",
        connection.get_server_version().major,
        rows,
    )


def _last(schema: str) -> str:
    """SQL for the newest row by which the schema may have changed; 0: there is none."""
    return f"SELECT coalesce(max(id), 0) FROM {qualified(schema, LEDGER)} WHERE direction <> 'accept'"


def _warn(error: Exception) -> None:
    log.warning(
        "the catalog could not be recorded, so `status` cannot show drift of functions, triggers and privileges: %s",
        describe(error),
    )
