"""A database that our runner did not build: whether it is what a revision builds."""

from __future__ import annotations

from collections.abc import Iterable

import asyncpg

from gasket.migrator.apply.session import MigrationSession
from gasket.migrator.catalog.difference import Difference, compare_catalogs
from gasket.migrator.catalog.query import MIGRATING_ROLE
from gasket.migrator.catalog.read import Catalog, Object, read_catalog
from gasket.migrator.catalog.recorded import write_record
from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import connected
from gasket.migrator.errors import ScratchDatabaseError
from gasket.migrator.revisions.files import Revisions
from gasket.migrator.revisions.scripts import script_directory
from gasket.migrator.runner import under_lock
from gasket.migrator.scratch.database import scratch_database
from gasket.migrator.scratch.not_tried import HeldBack
from gasket.migrator.scratch.rehearsal import REVISION_ERRORS, build
from gasket.migrator.sql.lexer import tokens


async def compare_with_revision(
    config: MigratorConfig, revisions: Revisions, revision: str
) -> tuple[Difference, Catalog]:
    """Compare the live database with what `revision`, and all it stands on, makes in a scratch database.

    Returns also what the catalog is expected to be once the revision is recorded: what is there by then.

    Raises:
        ScratchDatabaseError: there is none, or the revisions cannot be built on it.
        DatabaseUnavailableError, DatabaseRefusedError: the live database cannot be reached.
    """
    async with scratch_database(config, revisions) as scratch:
        empty = await _read(scratch.config)
        try:
            await build(scratch, script_directory(config.ini), [revision])
        except REVISION_ERRORS as error:
            raise ScratchDatabaseError(
                reason=f"revision {revision} cannot be built on it ({error.what})",
                made=True,
                mend=" ".join(scratch.notes) or "Correct what it failed at.",
            ) from error
        built = await _read(scratch.config)
        live = await _read(config)
    made = {key: found for key, found in built.items() if empty.get(key) != found}
    schemas = {config.schema, *(found.schema for found in made.values() if found.schema)}
    taken_away = empty.keys() - built.keys()
    guard = scratch.guard
    if absent := await _roles_not_there(config, guard.held_back):
        made |= {("role", role): Object(None, None, "") for role in absent}
    notes = (*scratch.notes, *map(_not_compared, guard.held_back), *guard.cluster_changes)
    difference = compare_catalogs(live, made, taken_away=taken_away, schemas=schemas, notes=notes)
    unequal = {(entry.kind, entry.name) for entry in (*difference.missing, *difference.different)}
    equal = {key: found for key, found in made.items() if key not in unequal}
    return difference, equal | {key: live[key] for key in unequal & made.keys() & live.keys()}


async def record_adopted(config: MigratorConfig, revisions: Revisions, expected: Catalog) -> None:
    """Keep what is expected from now on, for the drift that `status` shows.

    Raises:
        MigratorError: the lock was not to be had.
    """

    async def write(connection: asyncpg.Connection) -> None:
        role: str = await connection.fetchval("SELECT current_user::text")
        await write_record(connection, config.schema, _name_role(expected, role))

    async def work(session: MigrationSession) -> None:
        await session.prepare()
        await session.on_own_tables(write)

    await under_lock(config, revisions, work, fresh_tries=False)


async def _roles_not_there(config: MigratorConfig, held_back: Iterable[HeldBack]) -> list[str]:
    """Roles that the revisions make and that the live server has not."""
    names = [role for held in held_back for role in _roles_made(held.sql)]
    if not names:
        return []
    async with connected(config, migrating=True) as connection:
        rows = await connection.fetch("SELECT rolname::text FROM pg_catalog.pg_roles WHERE rolname = ANY ($1)", names)
    return sorted(set(names) - {row[0] for row in rows})


def _roles_made(sql: str) -> list[str]:
    """The role that a CREATE ROLE, USER or GROUP makes."""
    words = [token for token in tokens(sql) if token.is_identifier]
    makes = len(words) > 2 and words[0].is_word("create") and words[1].is_word("role", "user", "group")
    return [words[2].text] if makes and not words[2].is_word("mapping") else []


def _name_role(catalog: Catalog, migrating_role: str) -> Catalog:
    """The catalog as it is without `migrating_role`: with the name of the role in its part's place."""
    return {
        (kind, name.replace(MIGRATING_ROLE, migrating_role, 1) if kind == "default privileges" else name): found
        for (kind, name), found in catalog.items()
    }


def _not_compared(held: HeldBack) -> str:
    return f"{held.kind.upper()} in revision {held.revision} is not compared: {held.reason}."


async def _read(config: MigratorConfig) -> Catalog:
    async with connected(config, migrating=True) as connection:
        role: str = await connection.fetchval("SELECT current_user::text")
        return await read_catalog(connection, config.schema, migrating_role=role)
