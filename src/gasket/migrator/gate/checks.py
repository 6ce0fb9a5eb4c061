"""What is checked before anything is applied: one ordered list, for every path to the schema.

Each check says what it looks at, and for whom it holds. Every path calls `pass_gate` with its `Request` and has no
check of its own, so a new check is a new line of CHECKS. Two things are refused elsewhere, because no connection would
be there to look with: files that cannot be read, and a way to the server on which the lock could not hold.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import asyncpg
import msgspec

from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import MigratorError
from gasket.migrator.gate import collisions, refusals, rights, targets
from gasket.migrator.gate.callers import APPLYING, EVERYBODY, GOING_BACK, STAMPING, STARTS, WRITING, Caller, Request
from gasket.migrator.gate.situation import Case, Situation, read_situation
from gasket.migrator.revisions.files import Revisions


class _Check(msgspec.Struct, frozen=True):
    """`refusal` answers why the callers may not pass; it may also raise that."""

    refusal: Callable[[Case], Awaitable[MigratorError | None]]
    looks_at: str
    callers: frozenset[Caller]


async def pass_gate(
    connection: asyncpg.Connection,
    config: MigratorConfig,
    revisions: Revisions,
    request: Request,
    *,
    migrating: bool = False,
    tables_expected: bool = False,
) -> Situation:
    """Read the situation and run the checks. `migrating`: the connection is the migrating role's, for certain.

    `tables_expected` is as for `read_state`.

    Raises:
        MigratorError: the first refusal.
    """
    situation = await read_situation(connection, config.schema, revisions, tables_expected=tables_expected)
    if refusal := await find_refusal(connection, config, situation, request, migrating=migrating):
        raise refusal
    return situation


async def find_refusal(
    connection: asyncpg.Connection,
    config: MigratorConfig,
    situation: Situation,
    request: Request,
    *,
    migrating: bool = False,
) -> MigratorError | None:
    """Why the caller may not pass; None where it may."""
    case = Case(situation, request, config, connection, migrating or config.migration_database_url is None)
    for check in CHECKS:
        if request.caller in check.callers:
            try:
                refusal = await check.refusal(case)
            except MigratorError as error:
                refusal = error
            if refusal:
                return refusal
    return None


CHECKS = (
    _Check(refusals.files_there, "the folders of the migrations", EVERYBODY - {Caller.CURRENT, Caller.COMPARE}),
    _Check(refusals.files_in_one_piece, "the files' parents", EVERYBODY),
    _Check(refusals.one_head, "the files' heads", APPLYING | STARTS),
    _Check(refusals.plain_ids, "the ids of what is not applied", EVERYBODY - {Caller.FOLLOWER, Caller.CURRENT}),
    _Check(
        refusals.no_newer_revisions,
        "applied revisions that this release lacks",
        APPLYING | STARTS | STAMPING | {Caller.DOWNGRADE, Caller.COMPARE, Caller.CURRENT},
    ),
    _Check(
        targets.target_there,
        "the revision that was named",
        frozenset({Caller.UPGRADE, Caller.ACCEPT}) | GOING_BACK | STAMPING,
    ),
    _Check(targets.something_to_roll_back, "what is newer", frozenset({Caller.ROLLBACK})),
    _Check(targets.step_is_clear, "what a step down starts from", GOING_BACK),
    _Check(targets.steps_pending, "how many steps up there are", frozenset({Caller.UPGRADE})),
    _Check(targets.target_applied, "whether the revision is applied", frozenset({Caller.DOWNGRADE})),
    _Check(targets.acceptable, "the edited files", frozenset({Caller.ACCEPT})),
    _Check(targets.nothing_else_recorded, "the version table", frozenset({Caller.ADOPT})),
    _Check(refusals.files_as_applied, "the applied files' digests", APPLYING | STARTS | GOING_BACK),
    _Check(refusals.not_held, "what was taken back", frozenset({Caller.START, Caller.WAITER, Caller.STATUS})),
    _Check(refusals.whole, "downgrades that were cut short", (APPLYING | STARTS) - {Caller.START}),
    _Check(refusals.rules_kept, "the pending files", APPLYING),
    _Check(refusals.needed_work_goes_on, "background work that the pending files need", APPLYING),
    _Check(
        collisions.nothing_in_the_way,
        "names that are there without a version table",
        (APPLYING - {Caller.START}) | {Caller.ENSURE_VERSION},
    ),
    _Check(refusals.loadable, "the pending files, imported", frozenset({Caller.PLAN, Caller.STATUS})),
    _Check(rights.writable, "whether the server takes writes", (APPLYING - {Caller.START}) | WRITING),
    _Check(rights.rights, "the rights to the schema", (APPLYING - {Caller.START}) | WRITING),
    _Check(refusals.replayable, "the ledger's ways back", frozenset({Caller.ROLLBACK})),
    _Check(rights.archive_rights, "the rights to the archive", GOING_BACK),
)
