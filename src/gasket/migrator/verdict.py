"""What a start, or an explicit upgrade, would say to a schema: the checks that need no lock, in their order."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg
from alembic.util import CommandError

from gasket.migrator.collisions import collisions_with_revisions
from gasket.migrator.connection import MigratorConfig
from gasket.migrator.edits import Edit, check_edits, find_edits
from gasket.migrator.errors import AdoptionError, MigratorError, SchemaAheadError
from gasket.migrator.ledger import DatabaseState, read_applier, read_state
from gasket.migrator.loading import load_scripts
from gasket.migrator.plan import Plan, check_hold, check_upgrade, make_plan
from gasket.migrator.revisions import Revisions
from gasket.migrator.rules.check import refuse_broken


@dataclass(frozen=True, slots=True)
class Situation:
    """What there is to judge: the files, the database, how they stand to each other, and which files were edited."""

    revisions: Revisions
    database: DatabaseState
    plan: Plan
    edits: tuple[Edit, ...]


async def read_situation(connection: asyncpg.Connection, config: MigratorConfig, revisions: Revisions) -> Situation:
    """Where no applied file's bytes differ, it is one SELECT.

    Raises:
        MultipleHeadsError, RevisionFileError: the files do not fit together.
    """
    database = await read_state(connection, config.schema)
    plan = make_plan(revisions, database)
    return Situation(revisions, database, plan, await find_edits(connection, config.schema, plan, database))


def check_downgrade(revisions: Revisions, database: DatabaseState, release: str) -> None:
    """Refuse a downgrade of what this release has no files for.

    Raises:
        SchemaAheadError: such a revision is applied.
    """
    if unknown := sorted(database.versions - revisions.keys()):
        entry = database.ledger.get(unknown[0])
        raise SchemaAheadError(
            revision=unknown[0],
            applied_by=entry.release if entry else None,
            release=release,
            why="a downgrade needs its file",
        )


def rollback_target(revisions: Revisions, plan: Plan, database: DatabaseState, target: str | None) -> str | None:
    """Where a rollback leads: to `target`, else to the newest of this release's revisions that is applied.

    None where nothing is newer than this release, so that there is nothing to roll back.

    Raises:
        CommandError: nothing is newer, and `target` is not where the schema is; or without a target it is not clear.
    """
    if plan.unknown:
        own = revisions.heads_of(revisions.keys() - {file.revision for file in plan.pending})
        if not target and len(own) > 1:
            raise CommandError(
                f"This release's revisions {' and '.join(own)} are both applied, and nothing of this release is on "
                "top; nothing was changed. Name the one to go back to: litestar database rollback REVISION"
            )
        return target or (own[0] if own else "base")
    if target and target not in database.versions:
        raise CommandError(
            "No revision is applied that is newer than this release, so there is nothing to roll back; nothing was "
            f"changed. To take back revisions of this release run: litestar database downgrade {target}"
        )
    return None


async def check_pending(connection: asyncpg.Connection, config: MigratorConfig, situation: Situation) -> None:
    """Refuse what an explicit upgrade would.

    Raises:
        MigratorError: as the upgrade would.
    """
    revisions, plan = situation.revisions, situation.plan
    check_upgrade(plan, config.release)
    check_edits(plan, situation.edits)
    refuse_broken(plan.pending)
    if not situation.database.has_version_table:
        found = await collisions_with_revisions(connection, config, revisions)
        if found:
            raise AdoptionError(found=found)
    if plan.pending:
        load_scripts(config.ini)


async def refuse_held(connection: asyncpg.Connection, config: MigratorConfig, plan: Plan) -> None:
    """Refuse to apply a head that was taken back, naming who had applied it.

    Raises:
        HeldRevisionError: it was.
    """
    if plan.held:
        applied_by = await read_applier(connection, config.schema, plan.held.revision)
        check_hold(plan, release=config.release, applied_by=applied_by)


async def find_refusal(
    connection: asyncpg.Connection, config: MigratorConfig, situation: Situation
) -> MigratorError | None:
    """Why a start would not go on; None where it would serve, migrate, or wait until somebody else has migrated."""
    try:
        check_upgrade(situation.plan, config.release)
        check_edits(situation.plan, situation.edits)
        if config.migrate_on_startup:
            await refuse_held(connection, config, situation.plan)
            await check_pending(connection, config, situation)
    except MigratorError as refusal:
        return refusal
    return None
