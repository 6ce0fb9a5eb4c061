"""What a start does: nothing where the schema is at head, else whatever brings it there, or a refusal."""

from __future__ import annotations

import asyncio
import logging
import pkgutil
import time
from collections.abc import Awaitable, Callable

from gasket.migrator.apply.events import LockAwaited
from gasket.migrator.apply.lock_holder import HolderWatch
from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import looking, opening
from gasket.migrator.errors import DatabasesDifferError, NotMigratedError
from gasket.migrator.facts import Waiting, tell
from gasket.migrator.gate.callers import Caller, Request
from gasket.migrator.gate.checks import pass_gate
from gasket.migrator.gate.schema_state import Plan
from gasket.migrator.gate.situation import Situation
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.revisions.files import Revisions
from gasket.migrator.webhook_messages import Outcome, outcome_told

log = logging.getLogger("gasket.migrator")

_POLL = 0.5
_MIGRATE = "gasket.migrator.runner:migrate"
"""Imported where something is pending: a start at head does without half of the migrator."""


async def bring_to_head(config: MigratorConfig) -> Plan:
    """What a start does: nothing at head, else bring the schema there, or refuse.

    At head this is one connection and one SELECT: no lock, no write, no Alembic.

    Raises:
        MigratorError: any of its kinds; the message is for the person who has to act.
    """
    with outcome_told(config) as outcome:
        return await _bring_to_head(config, outcome)


async def _bring_to_head(config: MigratorConfig, outcome: Outcome) -> Plan:
    started = time.monotonic()
    request = Request(Caller.START if config.migrate_on_startup else Caller.FOLLOWER)
    async with opening(config) as opened:
        revisions = configured_revisions(config.ini)
        async with looking(config, opened) as connection:
            situation = await pass_gate(connection, config, revisions, request, tables_expected=True)
        if not situation.serves and config.migrate_on_startup:
            migrate: Callable[..., Awaitable[Situation | None]] = pkgutil.resolve_name(_MIGRATE)
            situation = await migrate(config, revisions, outcome, connection) or situation
    if not situation.serves:
        situation = await _until_head(config, revisions, request)
    _tell(config, situation, seconds=time.monotonic() - started)
    return situation.plan


async def _until_head(config: MigratorConfig, revisions: Revisions, request: Request) -> Situation:
    """Look until DATABASE_URL shows a schema that this release serves on.

    Where this start has migrated, a standby may take a moment, and another database for ever. Else another start, or a
    command, migrates: then the time counts from that one's last progress.

    Raises:
        DatabasesDifferError, NotMigratedError: it does not show in time.
    """
    watch = HolderWatch(config.schema)
    follows = request.caller is Caller.FOLLOWER
    limit = config.lock_wait if follows else config.database_wait
    announced = False
    while True:
        async with looking(config) as connection:
            situation = await pass_gate(connection, config, revisions, request)
            if situation.serves:
                return situation
            if follows:
                await watch.look(connection)
        shown, head = sorted(situation.database.versions), situation.plan.head or "base"
        if watch.idle >= limit and follows:
            holder = str(watch.holder) if watch.holder else None
            raise NotMigratedError(waited=watch.waited, current=shown, head=head, holder=holder)
        if watch.idle >= limit:
            raise DatabasesDifferError(setting=config.migration_setting, head=head, shown=shown, waited=watch.waited)
        tell(LockAwaited(watch) if follows else Waiting("until the server of DATABASE_URL has the new schema, too"))
        if not announced and follows:
            log.info("GASKET_MIGRATE_ON_STARTUP is false: waiting up to %.0f s until the schema is migrated", limit)
        elif not announced:
            log.warning("waiting up to %.0f s until the server of DATABASE_URL has revision %s, too", limit, head)
        announced = True
        await asyncio.sleep(min(_POLL, max(0.05, limit - watch.idle)))


def _tell(config: MigratorConfig, situation: Situation, *, seconds: float) -> None:
    for edit in situation.edits:
        log.warning("%s; nothing is pending, so this release serves", edit)
    if unknown := situation.plan.unknown:
        log.warning(
            "the schema is ahead of this release %s (%s); the ledger says that the release can run on it",
            config.release,
            ", ".join(f"{revision.revision} by release {revision.release}" for revision in unknown),
        )
    else:
        log.info("the schema is at head (%s); this took %.2f s", situation.plan.head, seconds)
