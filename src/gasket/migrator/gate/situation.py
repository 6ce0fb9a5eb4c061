"""What there is to judge before anything is applied: the files and the database, read once."""

from __future__ import annotations

import asyncpg
import msgspec

from gasket.migrator.command_line import database_command
from gasket.migrator.config import MigratorConfig
from gasket.migrator.gate.callers import APPLYING, WRITING, Caller, Request
from gasket.migrator.gate.schema_state import Plan, SchemaState, make_plan
from gasket.migrator.ledger.read import DatabaseState, TakenBack, read_state, read_taken_back
from gasket.migrator.revisions.edits import Edit, find_edits
from gasket.migrator.revisions.files import Revisions


class Situation(msgspec.Struct, frozen=True):
    """The files, the database, and how they stand to each other.

    `edits` are applied files that are no longer what was applied. `hold` is a pending revision that was taken back
    and that this release does not apply again by itself.
    """

    revisions: Revisions
    database: DatabaseState
    plan: Plan
    edits: tuple[Edit, ...]
    hold: TakenBack | None

    @property
    def serves(self) -> bool:
        """Whether this release can serve on the schema as it is."""
        return self.plan.serves and self.database.half_taken_back is None

    @property
    def files_fit(self) -> bool:
        """Whether the files lead to one head, and stand on nothing but what is known."""
        return len(self.plan.heads) == 1 and not self.plan.unfounded

    def ahead(self, release: str) -> str | None:
        """What `release`, which has these files, can do with a schema that is newer; None where it is not."""
        if not self.plan.unknown:
            return None
        versions = ", ".join(sorted(self.database.versions))
        newest = max(self.plan.unknown, key=lambda entry: entry.started_at)
        if not newest.started_at:
            return (
                f"The schema is at {versions}, which neither this release {release} nor the ledger knows, so this "
                f"release, whose head is {self.plan.head}, cannot run on it. Deploy the release that has it, or, if "
                "alembic_version is wrong, correct it"
            )
        if self.plan.state is SchemaState.AHEAD:
            can = "it is recorded as compatible, so this release can run on it"
        else:
            can = f"{self.plan.why_incompatible()}, so this release cannot run on it"
        return (
            f"The schema is at {versions} (release {newest.release} applied it at {newest.started_at}), which is newer "
            f"than this release {release}, whose head is {self.plan.head}: {can}. To bring the schema back to this "
            f"release, run: {database_command('rollback')}"
        )


class Case(msgspec.Struct, frozen=True):
    """What a check may look at. `migrating`: the connection is of the role that changes the schema."""

    situation: Situation
    request: Request
    config: MigratorConfig
    connection: asyncpg.Connection
    migrating: bool

    @property
    def writes(self) -> bool:
        """Whether there is something to write for this caller, with a connection that shows whether it may."""
        caller = self.request.caller
        needed = caller in WRITING or caller is Caller.UPGRADE or (caller in APPLYING and self.situation.plan.pending)
        return self.migrating and bool(needed)


async def read_situation(
    connection: asyncpg.Connection, schema: str, revisions: Revisions, *, tables_expected: bool = False
) -> Situation:
    """Where no applied file's bytes differ and nothing was taken back, it is `read_state` alone.

    Raises:
        RevisionFileError: a pending file stands on itself.
    """
    database = await read_state(connection, schema, tables_expected=tables_expected)
    plan = make_plan(revisions, database)
    edits = await find_edits(connection, schema, changed=plan.changed, missing=plan.missing, ledger=database.ledger)
    return Situation(revisions, database, plan, edits, await _find_hold(connection, schema, revisions, plan))


async def _find_hold(connection: asyncpg.Connection, schema: str, revisions: Revisions, plan: Plan) -> TakenBack | None:
    """The pending revision that stays back: this release's own head, or any if the release was seen before."""
    if not plan.taken_back:
        return None
    pending = [row.revision for row in plan.taken_back]
    taken_back = await read_taken_back(connection, schema, pending, files=revisions.fingerprint)
    held = [one for one in taken_back if one.told_no or one.revision in plan.heads]
    return max(held, key=lambda one: one.revision in plan.heads, default=None)
