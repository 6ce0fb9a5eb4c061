"""Everything there is to say of a schema, for `litestar database status`."""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar

import asyncpg
import msgspec

from gasket.migrator.archive.schema import archive_schema
from gasket.migrator.connection import MigratorConfig, looking
from gasket.migrator.drift import find_drift
from gasket.migrator.edits import Edit
from gasket.migrator.errors import HeldRevisionError, MigratorError
from gasket.migrator.ledger import DatabaseState, read_failures, read_history
from gasket.migrator.lock import find_holder
from gasket.migrator.plan import Plan, SchemaState
from gasket.migrator.revisions import Revisions, migrations_directory, read_revisions
from gasket.migrator.verdict import find_refusal, read_situation

T = TypeVar("T")

_ROWS = 10


class LedgerRow(msgspec.Struct, frozen=True):
    """One row of `migration_ledger`, as it stands there."""

    id: int
    revision: str
    down_revision: str | None
    direction: str
    file_sha256: str | None
    release: str | None
    role: str | None
    host: str | None
    started_at: datetime
    duration_ms: int | None
    backward_compatible: bool | None


class FailureRow(msgspec.Struct, frozen=True):
    """One row of `migration_failures`."""

    id: int
    revision: str | None
    direction: str | None
    error: str
    release: str | None
    role: str | None
    host: str | None
    failed_at: datetime


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """State in one word and one sentence, and what they rest on; history and failures newest first.

    `ahead` are applied revisions that this release lacks, `drift` is null where nobody asked for it or the schema is
    not at head.
    """

    state: str
    sentence: str
    current: list[str]
    head: str | None
    pending: list[str]
    ahead: list[str]
    edited: list[str]
    held: str | None
    drift: list[str] | None
    lock_holder: str | None
    history: list[LedgerRow]
    failures: list[FailureRow]
    archive_bytes: int


async def read_report(config: MigratorConfig) -> StatusReport:
    """Look at the database of DATABASE_URL, without the lock.

    Raises:
        MigratorError: it cannot be reached, or the files do not fit together.
    """
    revisions = read_revisions(migrations_directory(config.ini))
    async with looking(config) as connection:
        return await report_on(connection, config, revisions, rows=_ROWS, drift=True)


async def report_on(
    connection: asyncpg.Connection, config: MigratorConfig, revisions: Revisions, *, rows: int, drift: bool
) -> StatusReport:
    """The report, over a connection that is there; at most `rows` of history and of failures."""
    schema = config.schema
    situation = await read_situation(connection, config, revisions)
    database, plan, edits = situation.database, situation.plan, situation.edits
    holder = await find_holder(connection, schema)
    history = await read_history(connection, schema, rows) if database.has_ledger else []
    failures = await read_failures(connection, schema, rows)
    refusal = await find_refusal(connection, config, situation)
    compare = drift and plan.state is SchemaState.AT_HEAD
    differences = await find_drift(connection, config) if compare else None
    return StatusReport(
        state=_word(plan, refusal, edits, differences),
        sentence=f"A start refuses. {refusal}" if refusal else _sentence(config, plan, edits, differences, database),
        current=sorted(database.versions),
        head=plan.head,
        pending=[file.revision for file in plan.pending],
        ahead=[revision.revision for revision in plan.unknown],
        edited=[str(edit) for edit in edits],
        held=plan.held.revision if plan.held else None,
        drift=differences,
        lock_holder=str(holder) if holder else None,
        history=[LedgerRow(**row) for row in history],
        failures=[FailureRow(**row) for row in failures],
        archive_bytes=await _archive_bytes(connection, schema),
    )


def _word(plan: Plan, refusal: MigratorError | None, edits: tuple[Edit, ...], drift: list[str] | None) -> str:
    if isinstance(refusal, HeldRevisionError):
        return "held"
    if refusal and plan.state is not SchemaState.INCOMPATIBLE:
        return "refused"
    if plan.state is SchemaState.AT_HEAD and (edits or drift):
        return "edited" if edits else "drifted"
    return plan.state.value


def _sentence(
    config: MigratorConfig, plan: Plan, edits: tuple[Edit, ...], drift: list[str] | None, database: DatabaseState
) -> str:
    """Of a schema on which a start does not refuse."""
    current = ", ".join(sorted(database.versions)) or "no revision"
    if plan.state is SchemaState.BEHIND:
        what = "applies what is pending" if config.migrate_on_startup else "waits until somebody else has applied it"
        pending = f"{len(plan.pending)} revisions are" if len(plan.pending) > 1 else "1 revision is"
        return f"The schema is at {current}; {pending} pending, up to {plan.head}. A start {what}."
    if plan.state is SchemaState.AHEAD:
        return f"The schema is at {current}, newer than {plan.head}; this release can run on it."
    if edits:
        return f"The schema is at head {plan.head}, but applied files are not what was applied."
    if drift:
        points = f"{len(drift)} point{'s' if len(drift) > 1 else ''}"
        return f"The schema is at head {plan.head}, but the live tables differ from the models in {points}."
    return f"The schema is at head {plan.head}" + (", and the live tables equal the models." if drift == [] else ".")


async def _archive_bytes(connection: asyncpg.Connection, schema: str) -> int:
    size: int = await connection.fetchval(
        "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_catalog.pg_class AS c "
        "WHERE c.relnamespace = to_regnamespace(quote_ident($1)) AND c.relkind = 'r'",
        archive_schema(schema),
    )
    return size


def format_status(report: StatusReport) -> str:
    """The report as lines for a terminal; what is empty is left out."""
    lines = [f"{report.state}: {report.sentence}", f"  current    {', '.join(report.current) or '(none)'}"]
    lines.append(f"  head       {report.head or '(none)'}")
    for label, values in (
        ("pending", report.pending),
        ("ahead", report.ahead),
        ("edited", report.edited),
        ("drift", report.drift or []),
    ):
        lines += [f"  {label if first else '':<10} {value}" for first, value in _marked(values)]
    if report.lock_holder:
        lines.append(f"  lock       {report.lock_holder}")
    if report.archive_bytes:
        lines.append(f"  archive    {report.archive_bytes / 1_000_000:.1f} MB")
    for first, row in _marked(report.history):
        lines.append(
            f"  {'last runs' if first else '':<10} {row.started_at:%Y-%m-%d %H:%M:%S} {row.direction} "
            f"{row.revision} by release {row.release} in {row.duration_ms} ms"
        )
    for first, failure in _marked(report.failures):
        lines.append(
            f"  {'failures' if first else '':<10} {failure.failed_at:%Y-%m-%d %H:%M:%S} {failure.direction} "
            f"{failure.revision} by release {failure.release}: {failure.error}"
        )
    return "\n".join(lines)


def _marked(values: list[T]) -> list[tuple[bool, T]]:
    return [(index == 0, value) for index, value in enumerate(values)]
