"""The database that GASKET_SCRATCH_DATABASE_URL sets aside: whether it is fit, whether it is empty, emptying it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import Any

import asyncpg

from gasket.migrator.errors import ScratchDatabaseError
from gasket.postgres.errors import DRIVER_ERRORS, describe
from gasket.postgres.poolers import leads_through_pooler
from gasket.postgres.quoting import quote_identifier

log = logging.getLogger("gasket.migrator")

SETTING = "GASKET_SCRATCH_DATABASE_URL"
MEND = f"Let {SETTING} name an empty database on the same server that belongs to the role it logs in as."
MARK = "Scratch database of Gasket: the next plan drops whatever is in it. Extensions that stay: "
"""The comment on a database that holds something of ours, followed by the extensions that were there before. It never
changes, or a leftover of an older release would stay for ever."""

_BATCH = 100
_STATEMENT_LIMIT = 60.0

# What PostgreSQL's own schemas hold and what belongs to an extension is not counted, nor what goes with something
# else: an identity column's sequence, a table's row type.
_OBJECTS = """
SELECT identified.type, identified.identity
FROM pg_catalog.pg_depend AS d
JOIN pg_catalog.pg_namespace AS n ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
CROSS JOIN LATERAL pg_catalog.pg_identify_object(d.classid, d.objid, d.objsubid) AS identified
WHERE d.deptype = 'n' AND d.classid <> 'pg_catalog.pg_extension'::regclass
  AND NOT starts_with(n.nspname, 'pg_') AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS other
                  WHERE other.classid = d.classid AND other.objid = d.objid AND other.deptype IN ('i', 'e'))
"""
_SCHEMAS = """
SELECT n.nspname FROM pg_catalog.pg_namespace AS n
WHERE NOT starts_with(n.nspname, 'pg_') AND n.nspname NOT IN ('information_schema', 'public')
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension AS e WHERE e.extnamespace = n.oid)
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d
                  WHERE d.classid = 'pg_catalog.pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e')
"""
# pg_identify_object's words where DROP has others.
_WORDS = {"composite type": "type", "statistics object": "statistics"}


async def is_empty(connection: asyncpg.Connection) -> bool:
    """Whether the database holds nothing but what it was made with, and extensions."""
    objects = f"SELECT NOT EXISTS ({_OBJECTS}) AND NOT EXISTS ({_SCHEMAS})"
    return bool(await connection.fetchval(objects, timeout=_STATEMENT_LIMIT))


async def read_extensions(connection: asyncpg.Connection) -> dict[str, str]:
    """The extensions with the schema that each is in; without plpgsql, which every database has."""
    rows = await connection.fetch(
        "SELECT e.extname, n.nspname FROM pg_catalog.pg_extension AS e "
        "JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname <> 'plpgsql' ORDER BY 1",
        timeout=_STATEMENT_LIMIT,
    )
    return {row["extname"]: row["nspname"] for row in rows}


async def _wipe(connection: asyncpg.Connection, *, keep_extensions: Collection[str]) -> None:
    """Drop every object, schema and extension, but for `public` and the extensions to keep.

    In many small transactions: a DROP SCHEMA CASCADE takes all its locks at once, and with a long history there are
    more of them than the server has room for.
    """
    for name in (await read_extensions(connection)).keys() - set(keep_extensions):
        await connection.execute(f"DROP EXTENSION IF EXISTS {quote_identifier(name)} CASCADE", timeout=_STATEMENT_LIMIT)
    drops = [
        f"DROP {_WORDS.get(row['type'], row['type'])} IF EXISTS {row['identity']} CASCADE"
        for row in await connection.fetch(_OBJECTS, timeout=_STATEMENT_LIMIT)
    ]
    drops += [
        f"DROP SCHEMA IF EXISTS {quote_identifier(row['nspname'])} CASCADE"
        for row in await connection.fetch(_SCHEMAS, timeout=_STATEMENT_LIMIT)
    ]
    for start in range(0, len(drops), _BATCH):
        await connection.execute(";\n".join(drops[start : start + _BATCH]), timeout=_STATEMENT_LIMIT)


async def _refuse_unfit(connection: asyncpg.Connection, live: asyncpg.Connection) -> None:
    """Refuse the live database, and any database that has data."""
    identity = (
        "SELECT (SELECT system_identifier FROM pg_control_system()) AS server, d.oid, d.datname::text AS name, "
        "current_setting('server_version_num')::int / 10000 AS version, current_user::text AS role, "
        "pg_has_role(d.datdba, 'USAGE') AS owned, "
        "coalesce(starts_with(shobj_description(d.oid, 'pg_database'), $1), false) AS marked "
        "FROM pg_database AS d WHERE d.datname = current_database()"
    )
    [there], [here] = await connection.fetch(identity, MARK), await live.fetch(identity, MARK)
    reason = None
    if await leads_through_pooler(connection):
        reason = "leads through a connection pooler"
    elif (there["server"], there["oid"]) == (here["server"], here["oid"]):
        reason = "names the live database itself"
    elif there["version"] != here["version"]:
        reason = f"names a PostgreSQL {there['version']}, and the live one is a {here['version']}"
    elif not there["owned"]:
        reason = f"names database {there['name']}, which does not belong to role {there['role']}"
    elif not there["marked"] and not await is_empty(connection):
        reason = f"names database {there['name']}, which is not empty"
    if reason:
        raise ScratchDatabaseError(reason=f"{SETTING} {reason}", mend=MEND)


async def claim(connection: asyncpg.Connection, live: asyncpg.Connection) -> Callable[[], Coroutine[Any, Any, None]]:
    """Mark it ours, and empty it of what a killed plan left; what is returned empties it again and gives it back.

    Raises:
        ScratchDatabaseError: it is the live database, or has data, or is not fit.
    """
    await _refuse_unfit(connection, live)
    comment: str | None = await connection.fetchval(
        "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()"
    )
    if comment and comment.startswith(MARK):
        stay, comment = set(comment.removeprefix(MARK).split()), None
        await _wipe(connection, keep_extensions=stay)
    else:
        stay = set(await read_extensions(connection))
        await _comment(connection, MARK + " ".join(sorted(stay)))
    return partial(_give_back, connection, comment, stay)


async def _give_back(connection: asyncpg.Connection, comment: str | None, stay: set[str]) -> None:
    """Empty it, and then put its own comment in the place of ours."""
    try:
        await _wipe(connection, keep_extensions=stay)
        await _comment(connection, comment)
    except DRIVER_ERRORS as error:
        log.warning("the database of %s could not be emptied; the next plan empties it: %s", SETTING, describe(error))


async def _comment(connection: asyncpg.Connection, comment: str | None) -> None:
    statement = "SELECT format('COMMENT ON DATABASE %I IS %L', current_database(), $1::text)"
    await connection.execute(await connection.fetchval(statement, comment), timeout=_STATEMENT_LIMIT)
