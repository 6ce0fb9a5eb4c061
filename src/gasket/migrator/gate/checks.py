"""What is checked before anything is applied: one ordered list, for every path to the schema.

A check raises why its callers may not pass. Every path calls `pass_gate` with its `Request` and has no check of its
own, so a new check is a new line of CHECKS. Three things are refused elsewhere. No connection would be there to look
with: files that cannot be read, and a way to the server on which the lock could not hold. And a start learns only when
it imports a file that it is another revision than its text says.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import asyncpg

from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import MigratorError
from gasket.migrator.gate import collisions, file_checks, named_revision, rights
from gasket.migrator.gate.callers import APPLYING, GOING_BACK, STAMPING, TO_HEAD, WRITING, Caller, Request
from gasket.migrator.gate.situation import Case, Situation, read_situation
from gasket.migrator.revisions.files import Revisions


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
    try:
        for check, callers in CHECKS.items():
            if request.caller in callers:
                await check(case)
    except MigratorError as refusal:
        return refusal
    return None


_EVERYBODY = frozenset(Caller)

CHECKS: dict[Callable[[Case], Awaitable[None]], frozenset[Caller]] = {
    file_checks.files_there: _EVERYBODY - {Caller.CURRENT, Caller.COMPARE},
    file_checks.files_in_one_piece: _EVERYBODY,
    file_checks.one_head: TO_HEAD,
    file_checks.plain_ids: _EVERYBODY - {Caller.FOLLOWER, Caller.CURRENT},
    file_checks.no_newer_revisions: TO_HEAD | STAMPING | {Caller.DOWNGRADE, Caller.COMPARE, Caller.CURRENT},
    named_revision.target_there: frozenset({Caller.UPGRADE, Caller.ACCEPT}) | GOING_BACK | STAMPING,
    named_revision.something_to_roll_back: frozenset({Caller.ROLLBACK}),
    named_revision.step_is_clear: GOING_BACK,
    named_revision.steps_pending: frozenset({Caller.UPGRADE}),
    named_revision.target_applied: frozenset({Caller.DOWNGRADE}),
    named_revision.acceptable: frozenset({Caller.ACCEPT}),
    named_revision.nothing_else_recorded: frozenset({Caller.ADOPT}),
    file_checks.files_as_applied: TO_HEAD | GOING_BACK,
    file_checks.not_held: frozenset({Caller.START, Caller.WAITER, Caller.STATUS}),
    file_checks.whole: TO_HEAD - {Caller.START},
    file_checks.rules_kept: APPLYING,
    file_checks.needed_work_goes_on: APPLYING,
    collisions.nothing_in_the_way: (APPLYING - {Caller.START}) | {Caller.ENSURE_VERSION},
    file_checks.loadable: frozenset({Caller.PLAN, Caller.STATUS}),
    rights.writable: (APPLYING - {Caller.START}) | WRITING,
    rights.rights: (APPLYING - {Caller.START}) | WRITING,
    file_checks.replayable: frozenset({Caller.ROLLBACK}),
    rights.archive_rights: GOING_BACK,
}
"""For which callers each check holds, in the order in which they run."""
