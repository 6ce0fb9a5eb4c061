"""`gasket database status`: everything there is to say of a schema."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import asyncpg
import click
import msgspec

from gasket.migrator.apply.lock_holder import find_holder
from gasket.migrator.archive.manifest import read_left
from gasket.migrator.archive.schema import archive_schema
from gasket.migrator.commands.running import run
from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import looking
from gasket.migrator.errors import HeldRevisionError, MigratorError
from gasket.migrator.gate.callers import Caller, Request
from gasket.migrator.gate.checks import find_refusal
from gasket.migrator.gate.schema_state import SchemaState
from gasket.migrator.gate.situation import Situation, read_situation
from gasket.migrator.ledger.background import UNFINISHED, Work, format_work, read_works
from gasket.migrator.ledger.read import read_failures, read_history
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.revisions.files import Revisions

_PENDING = 3
_REFUSED = 1
"""Exit codes of `status --check`."""

_ROWS = 10
_MORE_FAILURES = 10
_FIND_DRIFT = "gasket.migrator.catalog.drift:find_drift"
_NEXT_LINE = "\n" + 13 * " "


def status_command(config: MigratorConfig) -> click.Command:
    """The command, for the database that `config` names."""

    @click.command("status", help="Show the state of the schema.")
    @click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
    @click.option("--check", is_flag=True, help="Exit with 0: nothing to do, 3: revisions pending, 1: a start refuses.")
    @click.option("--models", is_flag=True, help="Compare the tables with this release's models, too.")
    def status(as_json: bool, check: bool, models: bool) -> None:
        report = run(config, lambda: read_report(config, models=models))
        click.echo(msgspec.json.encode(report).decode() if as_json else _format_status(report))
        if check:
            sys.exit(_REFUSED if report.refused else _PENDING if report.pending else 0)

    return status


class LedgerRow(msgspec.Struct, frozen=True):
    """One row of `migration_ledger`, as it stands there; `command` is None where an older release wrote it.

    `description` is the first line of the docstring of the revision's file, as it was applied.
    """

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
    command: str | None
    description: str | None


class FailureRow(msgspec.Struct, frozen=True):
    """One row of `migration_failures`; `over` says that the revision has since been applied or taken back."""

    id: int
    revision: str | None
    direction: str | None
    error: str
    release: str | None
    role: str | None
    host: str | None
    failed_at: datetime
    over: bool


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """State in one word and one sentence, and what they rest on; history and failures newest first.

    `refused` is whether a start would refuse. Failures of revisions that are neither in the files nor applied are left
    out.

    `ahead` are applied revisions that this release lacks, `left_in_archive` says which archived rows did not come back
    with their revision, and why. `drift` and `tuned` are null where they were not asked for, or the schema is not at
    head; `tuned` are changes that change no result. `mends` is SQL that takes drift back, where that is known.
    `not_compared` says why drift is not all. `background` is work
    after the start that is neither complete nor void.
    """

    state: str
    sentence: str
    refused: bool
    current: list[str]
    head: str | None
    pending: list[str]
    ahead: list[str]
    edited: list[str]
    held: str | None
    drift: list[str] | None
    tuned: list[str] | None
    not_compared: str | None
    mends: list[str] | None
    lock_holder: str | None
    history: list[LedgerRow]
    failures: list[FailureRow]
    archive_bytes: int
    left_in_archive: list[str]
    background: list[Work]


async def read_report(config: MigratorConfig, *, models: bool = False) -> StatusReport:
    """Look at the database of DATABASE_URL, without the lock; `models` as for `find_drift`.

    Raises:
        MigratorError: it cannot be reached, or the files do not fit together.
    """
    revisions = configured_revisions(config.ini)
    async with looking(config) as connection:
        return await report_on(connection, config, revisions, rows=_ROWS, drift=True, models=models)


async def report_on(
    connection: asyncpg.Connection,
    config: MigratorConfig,
    revisions: Revisions,
    *,
    rows: int,
    drift: bool,
    models: bool = False,
) -> StatusReport:
    """The report, over a connection that is there; at most `rows` of history and of failures."""
    schema = config.schema
    request = Request(Caller.STATUS if config.migrate_on_startup else Caller.FOLLOWER)
    situation = await read_situation(connection, schema, revisions)
    database, plan = situation.database, situation.plan
    holder = await find_holder(connection, schema)
    history = await read_history(connection, schema, rows) if database.has_ledger else []
    failures = await read_failures(connection, schema, rows * _MORE_FAILURES)
    left = await read_left(connection, schema)
    refusal = await find_refusal(connection, config, situation, request)
    if refusal and not situation.files_fit:  # there is no head to report against
        raise refusal
    found = None
    if drift and plan.state is SchemaState.AT_HEAD:
        find_drift = pkgutil.resolve_name(_FIND_DRIFT)  # a replica that serves reports without it
        found = await find_drift(connection, config, models=models)
    differences = found.differences if found else None
    return StatusReport(
        state=_word(situation, refusal, differences),
        sentence=f"A start refuses. {refusal}" if refusal else _sentence(config, situation, differences),
        refused=refusal is not None,
        current=sorted(database.versions),
        head=plan.head,
        pending=[file.revision for file in plan.pending],
        ahead=[revision.revision for revision in plan.unknown],
        edited=[str(edit) for edit in situation.edits],
        held=situation.hold.revision if situation.hold else None,
        drift=differences,
        tuned=found.tuned if found else None,
        not_compared=found.not_compared if found else None,
        mends=found.mends if found else None,
        lock_holder=str(holder) if holder else None,
        history=[LedgerRow(**row) for row in history],
        failures=_failures_of_interest(failures, situation, release=config.release, left=left)[:rows],
        archive_bytes=await _archive_bytes(connection, schema),
        left_in_archive=left,
        background=await read_works(connection, schema, states=UNFINISHED),
    )


def _failures_of_interest(
    rows: Iterable[Mapping[str, Any]], situation: Situation, *, release: str, left: Sequence[str]
) -> list[FailureRow]:
    """Those of revisions that are in the files or applied, and those after which another release has given up.

    While a new release fails, older replicas serve and are asked what is wrong. What this release lacks the file of was
    renamed or dropped, and is left out. Putting rows back is over once none is `left`.
    """
    ledger = situation.database.ledger
    known = situation.revisions.keys() | {revision.revision for revision in situation.plan.unknown} | {None, "base"}
    last_run = max((datetime.fromisoformat(entry.started_at) for entry in ledger.values()), default=None)
    failures = []
    for row in rows:
        failed_at = row["failed_at"].replace(microsecond=0)
        given_up = row["release"] != release and (last_run is None or failed_at >= last_run)
        if row["revision"] in known or given_up:
            entry = ledger.get(row["revision"])
            done_since = entry is not None and datetime.fromisoformat(entry.started_at) >= failed_at
            # Rows are put back once the revision is applied: that it was applied says nothing of them.
            over = not left if row["direction"] == "restore" else done_since
            failures.append(FailureRow(**row, over=over))
    return failures


def _word(situation: Situation, refusal: MigratorError | None, drift: list[str] | None) -> str:
    plan, edits = situation.plan, situation.edits
    if isinstance(refusal, HeldRevisionError):
        return "held"
    if refusal and plan.state is not SchemaState.INCOMPATIBLE:
        return "refused"
    if plan.state is SchemaState.AT_HEAD and (edits or drift):
        return "edited" if edits else "drifted"
    return plan.state.value


def _sentence(config: MigratorConfig, situation: Situation, drift: list[str] | None) -> str:
    """Of a schema on which a start does not refuse."""
    plan = situation.plan
    current = ", ".join(sorted(situation.database.versions)) or "no revision"
    if plan.state is SchemaState.BEHIND:
        what = "applies what is pending" if config.migrate_on_startup else "waits until another process has applied it"
        pending = f"{len(plan.pending)} revisions are" if len(plan.pending) > 1 else "1 revision is"
        return f"The schema is at {current}; {pending} pending, up to {plan.head}. A start {what}."
    if plan.state is SchemaState.AHEAD:
        return f"The schema is at {current}, newer than {plan.head}; this release can run on it."
    if situation.edits:
        return f"The schema is at head {plan.head}, but applied files are not what was applied."
    if drift:
        points = f"{len(drift)} point{'s' if len(drift) > 1 else ''}"
        return f"The schema is at head {plan.head}, but the live database differs in {points}."
    return f"The schema is at head {plan.head}" + (", and the live database does not differ." if drift == [] else ".")


async def _archive_bytes(connection: asyncpg.Connection, schema: str) -> int:
    size: int = await connection.fetchval(
        "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_catalog.pg_class AS c "
        "WHERE c.relnamespace = to_regnamespace(quote_ident($1)) AND c.relkind = 'r'",
        archive_schema(schema),
    )
    return size


def _format_status(report: StatusReport) -> str:
    """The report as lines for a terminal; what is empty is left out."""
    lines = [
        f"{report.state}: {report.sentence}",
        *_labelled("current", [", ".join(report.current) or "(none)"]),
        *_labelled("head", [report.head or "(none)"]),
        *_labelled("pending", report.pending),
        *_labelled("ahead", report.ahead),
        *_labelled("edited", report.edited),
        *_labelled("drift", report.drift or []),
        *_labelled("mend with", (sql.replace("\n", _NEXT_LINE) for sql in report.mends or [])),
        *_labelled("tuned", report.tuned or []),
    ]
    if report.not_compared:
        lines.append(f"  not compared: functions, triggers, privileges and the like, for {report.not_compared}")
    if report.lock_holder:
        lines += _labelled("lock", [report.lock_holder])
    if report.archive_bytes:
        lines += _labelled("archive", [f"{report.archive_bytes / 1_000_000:.1f} MB"])
    lines += _labelled("left there", report.left_in_archive)
    lines += _labelled("background", map(format_work, report.background))
    lines += _labelled("last runs", map(_run, report.history))
    lines += _labelled("failures", map(_failure, report.failures))
    return "\n".join(lines)


def _labelled(label: str, values: Iterable[str]) -> list[str]:
    return [f"  {'' if number else label:<10} {value}" for number, value in enumerate(values)]


def _run(row: LedgerRow) -> str:
    description = f" ({row.description})" if row.description else ""
    return (
        f"{row.started_at:%Y-%m-%d %H:%M:%S} {row.direction} {row.revision}{description} by release {row.release} in "
        f"{row.duration_ms} ms"
    )


def _failure(row: FailureRow) -> str:
    over = ", over since" if row.over else ""
    return (
        f"{row.failed_at:%Y-%m-%d %H:%M:%S} {row.direction} {row.revision} by release {row.release}{over}: {row.error}"
    )
