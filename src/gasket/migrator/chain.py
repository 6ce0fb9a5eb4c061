"""The chain of revisions: what became of each, and the SQL of one of them, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

import asyncpg
import msgspec
from msgspec import Meta

from gasket.migrator.gate.situation import Situation, read_situation
from gasket.migrator.ledger.tables import LEDGER, qualified
from gasket.migrator.revisions.files import Revisions

# The last two through to_jsonb: the ledger of an older release lacks these columns before the next migration.
_RUN = """
revision, direction, started_at, duration_ms, release, role, host, backward_compatible,
to_jsonb(l) ->> 'command' AS command, split_part(to_jsonb(l) -> 'script' ->> 'doc', E'\\n', 1) AS description
"""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the ledger: when a revision was applied, taken back, stamped or accepted, and by whom."""

    revision: str
    direction: str
    started_at: datetime
    duration_ms: int | None
    release: str | None
    role: str | None
    host: str | None
    backward_compatible: bool | None
    command: str | None
    description: str | None


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A revision in the chain. `last` is its last row of the ledger but those that accept an edit; None: it has none.

    `ahead` is applied, and this release lacks its file. `held` is pending, and a start does not apply it.
    """

    revision: str
    parents: list[str]
    state: Literal["applied", "pending", "ahead"]
    description: str | None
    edited: Annotated[str | None, Meta(description="What is wrong with its file, in words; null: nothing")]
    held: bool
    has_file: bool
    backward_compatible: bool | None
    last: Run | None


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the chain, the newest revision first. `total` counts all of it, `edited` are those with another file
    than the applied one.
    """

    items: list[Link]
    total: int
    edited: list[str]


class Sql(msgspec.Struct, frozen=True, kw_only=True):
    """What one direction does. `reason` says why the statements are not all of it, as what "it" does."""

    statements: list[str]
    reason: str | None


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One revision with everything that the ledger says of it, newest first, and its SQL.

    `upgrade` is None of a revision whose file this release lacks; `downgrade` is then as the ledger keeps it.
    """

    link: Link
    runs: list[Run]
    upgrade: Sql | None
    downgrade: Sql | None


async def read_chain(
    connection: asyncpg.Connection, schema: str, revisions: Revisions, *, limit: int, offset: int
) -> Chain:
    """The revisions of this release and of the database, at most `limit` of them."""
    situation = await read_situation(connection, schema, revisions)
    order = _order(situation)
    wanted = order[offset : offset + limit]
    last = await _read_last_runs(connection, schema, situation, wanted)
    links = [_link(situation, revision, last.get(revision)) for revision in wanted]
    return Chain(items=links, total=len(order), edited=[edit.revision for edit in situation.edits if not edit.gone])


async def read_step(
    connection: asyncpg.Connection, schema: str, revisions: Revisions, revision: str, *, limit: int
) -> tuple[Link, list[Run]] | None:
    """One revision and the newest `limit` rows of the ledger about it; None where nobody knows it."""
    situation = await read_situation(connection, schema, revisions)
    if revision not in _order(situation):
        return None
    last = await _read_last_runs(connection, schema, situation, [revision])
    query = f"SELECT {_RUN} FROM {qualified(schema, LEDGER)} AS l WHERE revision = $1 ORDER BY id DESC LIMIT $2"
    runs = await _read_runs(connection, situation, query, revision, limit)
    return _link(situation, revision, last.get(revision)), runs


def _order(situation: Situation) -> list[str]:
    """Newest first: what is ahead, then the files against their order, then what lost its file."""
    revisions, plan = situation.revisions, situation.plan
    ahead = sorted(plan.unknown, key=lambda entry: (entry.started_at, entry.revision), reverse=True)
    known = reversed(revisions.in_order(revisions))
    return [
        *(entry.revision for entry in ahead),
        *(file.revision for file in known),
        *(entry.revision for entry in plan.missing),
    ]


def _link(situation: Situation, revision: str, last: Run | None) -> Link:
    plan, entry = situation.plan, situation.database.ledger.get(revision)
    file = situation.revisions.get(revision)
    ahead = any(unknown.revision == revision for unknown in plan.unknown)
    applied = revision in plan.applied
    description = last.description if last and last.description else file.read_description() if file else None
    return Link(
        revision=revision,
        parents=list(file.parents if file else entry.down_revisions if entry else ()),
        state="ahead" if ahead else "applied" if applied else "pending",
        description=description,
        edited=next((str(edit) for edit in situation.edits if edit.revision == revision), None),
        held=situation.hold is not None and situation.hold.revision == revision,
        has_file=file is not None,
        backward_compatible=file.backward_compatible if file else entry.backward_compatible if entry else None,
        last=last,
    )


async def _read_last_runs(
    connection: asyncpg.Connection, schema: str, situation: Situation, revisions: Sequence[str]
) -> dict[str, Run]:
    query = (
        f"SELECT DISTINCT ON (revision) {_RUN} FROM {qualified(schema, LEDGER)} AS l "
        "WHERE revision = ANY ($1) AND direction <> 'accept' ORDER BY revision, id DESC"
    )
    return {run.revision: run for run in await _read_runs(connection, situation, query, revisions)}


async def _read_runs(connection: asyncpg.Connection, situation: Situation, query: str, *arguments: object) -> list[Run]:
    rows = await connection.fetch(query, *arguments) if situation.database.has_ledger else []
    return [Run(**row) for row in rows]
