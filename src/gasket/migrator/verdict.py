"""What a start, or an explicit upgrade, would say to a schema: the checks that need no lock, in their order."""

from __future__ import annotations

import asyncpg

from gasket.migrator.collisions import collisions_with_revisions
from gasket.migrator.connection import MigratorConfig
from gasket.migrator.edits import Edit, check_edits
from gasket.migrator.errors import AdoptionError, MigratorError
from gasket.migrator.ledger import DatabaseState, read_applier
from gasket.migrator.loading import load_scripts
from gasket.migrator.plan import Plan, check_hold, check_upgrade
from gasket.migrator.revisions import Revisions
from gasket.migrator.rules.check import refuse_broken


async def check_pending(
    connection: asyncpg.Connection,
    config: MigratorConfig,
    revisions: Revisions,
    plan: Plan,
    database: DatabaseState,
    edits: tuple[Edit, ...],
) -> None:
    """Refuse what an explicit upgrade would.

    Raises:
        MigratorError: as the upgrade would.
    """
    check_upgrade(plan, config.release)
    check_edits(plan, edits)
    refuse_broken(plan.pending)
    if not database.has_version_table and (found := await collisions_with_revisions(connection, config, revisions)):
        raise AdoptionError(found=found)
    if plan.pending:
        load_scripts(config.ini)


async def find_refusal(
    connection: asyncpg.Connection,
    config: MigratorConfig,
    revisions: Revisions,
    plan: Plan,
    database: DatabaseState,
    edits: tuple[Edit, ...],
) -> MigratorError | None:
    """Why a start would not go on; None where it would serve, migrate, or wait until somebody else has migrated."""
    try:
        check_upgrade(plan, config.release)
        check_edits(plan, edits)
        if config.migrate_on_startup:
            if plan.held:
                applied_by = await read_applier(connection, config.schema, plan.held.revision)
                check_hold(plan, release=config.release, applied_by=applied_by)
            await check_pending(connection, config, revisions, plan, database, edits)
    except MigratorError as refusal:
        return refusal
    return None
