"""What commands do under the lock beside Alembic's own: accept an edit, roll back, drop an archive."""

from __future__ import annotations

import asyncpg
from alembic import command

from gasket.migrator.alembic_command import counts_from_here
from gasket.migrator.archive.manifest import Archive, drop_archive
from gasket.migrator.archive.schema import archive_schema, stored
from gasket.migrator.connection import MigratorConfig, describe, quote_identifier
from gasket.migrator.edits import file_digest
from gasket.migrator.errors import MissingPrivilegeError, RevisionFileError
from gasket.migrator.graft import check_replayable
from gasket.migrator.plan import make_plan
from gasket.migrator.revisions import Revisions, migrations_directory, read_revisions
from gasket.migrator.runner import alembic_config, locked, with_fresh_tries
from gasket.migrator.session import MigrationSession
from gasket.migrator.steps import StepOptions
from gasket.migrator.verdict import rollback_target


async def accept(config: MigratorConfig, revision: str) -> None:
    """Record that the edited file of an applied revision was reviewed: it counts as what was applied from now on.

    Raises:
        RevisionFileError: there is no such file, it is not applied, or it is not Python.
    """
    revisions = read_revisions(migrations_directory(config.ini))

    async def once() -> None:
        async with locked(config, revisions) as session:
            plan = make_plan(revisions, await session.read_state())
            if revision not in revisions or revision in {file.revision for file in plan.pending}:
                raise RevisionFileError(
                    file=f"of revision {revision}",
                    problem="is not there, or not applied",
                    mend="Which files were edited says: litestar database status",
                )
            session.steps.digests = {revision: file_digest(revisions[revision])}
            await session.prepare()
            await session.accept(revision)

    await with_fresh_tries(once)


async def drop_from_archive(config: MigratorConfig, archive: Archive) -> None:
    """Drop one archive for good.

    Raises:
        UnknownArchiveError: it is gone.
        MissingPrivilegeError: its tables are another role's.
    """
    revisions = read_revisions(migrations_directory(config.ini))

    async def once() -> None:
        async with locked(config, revisions) as session:
            try:
                await session.on_own_tables(lambda connection: drop_archive(connection, config.schema, archive.number))
            except asyncpg.InsufficientPrivilegeError as error:
                role: str = await session.on_own_tables(lambda connection: connection.fetchval("SELECT current_user"))
                raise MissingPrivilegeError(
                    role=role,
                    need=f"drop archive {archive.number} ({describe(error)})",
                    statement=_to_drop(config.schema, archive, quote_identifier(role)),
                ) from None

    await with_fresh_tries(once)


async def rollback(config: MigratorConfig, target: str | None, options: StepOptions) -> list[str]:
    """Bring a newer schema back, to `target` or to this release's own, from what the ledger keeps.

    Returns the revisions that were taken back.

    Raises:
        NotReplayableError: one of them cannot be taken back without its file; nothing was changed.
        CommandError: `target` is no such revision, or nothing is newer than this release.
        MigratorError: as for any downgrade.
    """
    revisions = read_revisions(migrations_directory(config.ini))
    revisions.check_chain()
    taken_back: list[str] = []

    async def once() -> None:
        async with locked(config, revisions) as session:
            try:
                await _roll_back(session, revisions, target, options)
            finally:
                taken_back.extend(session.steps.applied)

    if target and counts_from_here(target):
        await once()  # its first try may have come further than anybody knows
    else:
        await with_fresh_tries(once)
    return taken_back


async def _roll_back(session: MigrationSession, revisions: Revisions, target: str | None, options: StepOptions) -> None:
    database = await session.read_state()
    plan = make_plan(revisions, database)
    goal = rollback_target(revisions, plan, database, target)
    if goal is None:
        return
    stored = await session.read_stored()
    unknown = [revision.revision for revision in plan.unknown]
    check_replayable(unknown, stored)
    session.steps.options, session.steps.grafts = options, {revision: stored[revision] for revision in unknown}
    if not options.discard_data:
        await session.check_archive_rights()
    await session.prepare()
    await session.run(lambda connection: command.downgrade(alembic_config(session, connection), goal))


def _to_drop(schema: str, archive: Archive, role: str) -> str:
    tables = [stored(schema, entry.stored_in) for entry in archive.entries if entry.stored_in]
    return "; ".join(
        [
            f"GRANT USAGE, CREATE ON SCHEMA {quote_identifier(archive_schema(schema))} TO {role}",
            f"GRANT SELECT, DELETE ON {stored(schema, 'manifest')} TO {role}",
            *(f"ALTER TABLE {table} OWNER TO {role}" for table in tables),
        ]
    )
