"""A database to try revisions out on: made on the live server and dropped, or one that was set aside for it.

Which database is whose, when several plans run and some are killed:

- A plan takes a session-level advisory lock on its connection to the live database *before* it makes the scratch
  database from whose name the lock's key is made, and keeps it to the end. `pg_locks` shows it from every database
  of the server: a database without that lock has no living plan.
- A database is a leftover of ours if its name has our form, this role may drop it, nobody holds that lock, nobody is
  connected to it (`pg_stat_activity`), and it bears our comment or is empty, as a plan leaves it that is killed
  between CREATE DATABASE and COMMENT. It is dropped without FORCE, so that PostgreSQL has the last word.
- In a database that was set aside the lock is taken in that database itself, and the comment stands for as long as
  anything of ours is in it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote, unquote_plus

import asyncpg
import msgspec

from gasket.migrator.apply.lock import migration_lock
from gasket.migrator.apply.lock_holder import LOCK_CLASS, lock_key
from gasket.migrator.config import MigratorConfig, tell_nobody
from gasket.migrator.connecting import connected, open_connection
from gasket.migrator.errors import ScratchDatabaseError
from gasket.migrator.revisions.files import Revisions
from gasket.migrator.revisions.rules.source import made_extensions
from gasket.migrator.scratch.given_database import (
    MARK,
    MEND,
    SETTING,
    claim,
    is_empty,
    read_extensions,
)
from gasket.migrator.scratch.not_tried import Guard
from gasket.postgres.connections import close_connection
from gasket.postgres.errors import DRIVER_ERRORS, describe
from gasket.postgres.poolers import leads_through_pooler
from gasket.postgres.quoting import quote_identifier
from gasket.postgres.sessions import prepare_session

log = logging.getLogger("gasket.migrator")

NAME = r"^gasket_scratch_[0-9a-f]{16}$"
_LOCK_IN_GIVEN = "gasket scratch database"  # no schema's name: those have no spaces
_STATEMENT_LIMIT = 60.0
_FAILURES = (*DRIVER_ERRORS, ValueError)


class Scratch(msgspec.Struct, frozen=True):
    """`config` is the live one with both URLs led to the scratch database; `notes` say how that differs from live.

    `revisions` are tried out in it. `guard` knows the roles that the live server has and the scratch database's has
    not.
    """

    config: MigratorConfig
    revisions: Revisions
    notes: tuple[str, ...]
    guard: Guard


@asynccontextmanager
async def scratch_database(config: MigratorConfig, revisions: Revisions) -> AsyncIterator[Scratch]:
    """An empty database on the live server; gone, or empty again, afterwards in every case.

    It is that of `config.scratch_url`, else one is made, for which the role needs CREATEDB. Extensions that live has
    and that no revision makes itself are made in it, as far as the role may.

    Raises:
        ScratchDatabaseError: there is none; it says why and what to do.
        DatabaseUnavailableError, DatabaseRefusedError: the live database cannot be reached.
        LockTimeoutError: another plan uses the database that was given.
    """
    async with connected(config, migrating=True) as live:
        if await leads_through_pooler(live):
            raise ScratchDatabaseError(
                reason=f"{config.migration_setting} leads through a connection pooler",
                mend="Set GASKET_MIGRATION_DATABASE_URL to a direct connection to the same database.",
            )
        await prepare_session(live, config.schema)
        making = _given(config, live, config.scratch_url) if config.scratch_url else _made(config, live)
        async with making as url:
            on_scratch = replace(
                config, database_url=url, migration_database_url=url, scratch_url=None, notify=tell_nobody
            )
            notes = await _add_extensions(on_scratch, live, revisions)
            missing = await _missing_roles(on_scratch, live) if config.scratch_url else frozenset[str]()
            yield Scratch(config=on_scratch, revisions=revisions, notes=notes, guard=Guard(missing))


def _with_database(url: str, name: str) -> str:
    """The same libpq URL with another database; user, hosts, ports, socket folder and options stay as they are.

    The forms are those of the PostgreSQL manual, "Connection URIs": several hosts, a Unix socket's folder in the
    host's place or in the query, the database in the path or as `dbname` in the query. A name in the path goes
    before PGDATABASE and before a service file's.
    """
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    authority = rest.partition("/")[0]
    options = [o for o in query.split("&") if o and unquote_plus(o.partition("=")[0]) not in ("dbname", "database")]
    return f"{scheme}://{authority}/{quote(name, safe='')}" + ("?" + "&".join(options) if options else "")


@asynccontextmanager
async def _made(config: MigratorConfig, live: asyncpg.Connection) -> AsyncIterator[str]:
    """A new database, for which `live` holds the lock; its URL."""
    if not await live.fetchval("SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"):
        role = quote_identifier(await live.fetchval("SELECT current_user"))
        raise ScratchDatabaseError(
            reason=f"role {role} may not create databases",
            mend=f"As an administrator run: ALTER ROLE {role} CREATEDB; or: {MEND}",
        )
    await _drop_leftovers(config, live)
    name = f"gasket_scratch_{secrets.token_hex(8)}"
    async with migration_lock(live, name, wait=0):
        try:
            await _create(live, name)
            yield _with_database(config.migration_url, name)
        finally:
            await _to_the_end(_drop(config, live, name))


async def _create(live: asyncpg.Connection, name: str) -> None:
    """Of template0, to which no session connects; with the encoding and collation of the live database."""
    [row] = await live.fetch(
        "SELECT pg_encoding_to_char(encoding) AS encoding, datcollate, datctype, "
        "current_setting('server_version_num')::int >= 150000 AS has_providers "
        "FROM pg_database WHERE datname = current_database()"
    )
    options = await live.fetchval(
        "SELECT format('ENCODING %L LC_COLLATE %L LC_CTYPE %L', $1::text, $2::text, $3::text)",
        *(row["encoding"], row["datcollate"], row["datctype"]),
    )
    if row["has_providers"]:
        options += " LOCALE_PROVIDER libc"
    try:
        await live.execute(f"CREATE DATABASE {name} TEMPLATE template0 {options}", timeout=_STATEMENT_LIMIT)
        await live.execute(f"COMMENT ON DATABASE {name} IS '{MARK}'", timeout=_STATEMENT_LIMIT)
    except _FAILURES as error:
        raise ScratchDatabaseError(reason=f"it could not be created: {describe(error)}", mend=MEND) from error


async def _drop(config: MigratorConfig, live: asyncpg.Connection, name: str) -> None:
    """Drop it with its connections; where this role may not end those, only if there are none."""
    connection = live
    try:
        if live.is_closed():
            connection = await open_connection(config, migrating=True)
        try:
            await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", timeout=_STATEMENT_LIMIT)
        except asyncpg.InsufficientPrivilegeError:
            await connection.execute(f"DROP DATABASE IF EXISTS {name}", timeout=_STATEMENT_LIMIT)
    except _FAILURES as error:
        log.warning("scratch database %s could not be dropped; the next plan drops it: %s", name, describe(error))
    finally:
        if connection is not live:
            await close_connection(connection)


async def _drop_leftovers(config: MigratorConfig, live: asyncpg.Connection) -> None:
    """Drop what killed plans left, by the rules at the top of this file."""
    names = await live.fetch(
        "SELECT d.datname AS name, coalesce(starts_with(shobj_description(d.oid, 'pg_database'), $2), false) AS marked "
        "FROM pg_database AS d WHERE d.datname ~ $1 AND pg_has_role(d.datdba, 'USAGE') "
        "AND NOT EXISTS (SELECT FROM pg_stat_activity AS a WHERE a.datid = d.oid "
        "AND a.backend_type IS DISTINCT FROM 'autovacuum worker')",
        *(NAME, MARK),
    )
    # Looked up after the names: the lock of a living plan is older than its database.
    held = {
        row["objid"]
        for row in await live.fetch(
            "SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND classid = $1::oid", LOCK_CLASS
        )
    }
    for name, marked in names:
        if lock_key(name) in held:
            continue
        try:
            if marked or await _is_empty_database(config, _with_database(config.migration_url, name)):
                await live.execute(f"DROP DATABASE {name}", timeout=_STATEMENT_LIMIT)
                log.info("dropped scratch database %s, which an interrupted plan had left behind", name)
        except _FAILURES as error:
            log.info("database %s looks like a scratch database but could not be dropped: %s", name, describe(error))


async def _is_empty_database(config: MigratorConfig, url: str) -> bool:
    connection = await open_connection(replace(config, migration_database_url=url), migrating=True)
    try:
        return await is_empty(connection)
    finally:
        await close_connection(connection)


@asynccontextmanager
async def _given(config: MigratorConfig, live: asyncpg.Connection, url: str) -> AsyncIterator[str]:
    """The database that was set aside, emptied before and after, for one plan at a time; its URL."""
    try:
        connection = await open_connection(replace(config, migration_database_url=url), migrating=True)
    except _FAILURES as error:
        raise ScratchDatabaseError(
            reason=f"that of {SETTING} cannot be reached: {describe(error)}", mend=f"Correct {SETTING}."
        ) from None
    try:
        await prepare_session(connection, config.schema)
        async with migration_lock(connection, _LOCK_IN_GIVEN, wait=config.lock_wait):
            give_back = await claim(connection, live)
            try:
                yield url
            finally:
                await _to_the_end(give_back())
    finally:
        await close_connection(connection)


async def _add_extensions(scratch: MigratorConfig, live: asyncpg.Connection, revisions: Revisions) -> tuple[str, ...]:
    """Make what live has; those that a revision makes are left to it, for it may do so without IF NOT EXISTS."""
    wanted = await read_extensions(live)
    if not wanted:
        return ()
    made_by_revisions = {name for file in revisions.values() for name in made_extensions(file.path.read_bytes())}
    notes = []
    async with connected(scratch, migrating=True) as connection:
        present = await read_extensions(connection)
        for name in sorted(wanted.keys() - present.keys() - made_by_revisions):
            schema = quote_identifier(wanted[name])
            try:
                await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}", timeout=_STATEMENT_LIMIT)
                await connection.execute(
                    f"CREATE EXTENSION IF NOT EXISTS {quote_identifier(name)} SCHEMA {schema}",
                    timeout=_STATEMENT_LIMIT,
                )
            except asyncpg.PostgresError as error:
                notes.append(
                    f"The live database has extension {name}, the scratch database has not ({describe(error)}); a "
                    f"revision that needs it fails there. Let an administrator make it in an empty database and "
                    f"let {SETTING} name that."
                )
    return tuple(notes)


async def _missing_roles(scratch: MigratorConfig, live: asyncpg.Connection) -> frozenset[str]:
    """The database that was set aside may be on another server."""
    roles = "SELECT rolname::text FROM pg_catalog.pg_roles"
    async with connected(scratch, migrating=True) as connection:
        wanted, present = await live.fetch(roles), await connection.fetch(roles)
    return frozenset(row[0] for row in wanted) - {row[0] for row in present}


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Clean up though the caller is cancelled once more in the middle of it."""
    cleaning = asyncio.create_task(work)
    try:
        await asyncio.shield(cleaning)
    except asyncio.CancelledError:
        await asyncio.wait({cleaning}, timeout=_STATEMENT_LIMIT)
        raise
