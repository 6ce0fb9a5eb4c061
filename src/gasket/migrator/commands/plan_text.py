"""The plan in words, for a terminal; other forms use its sentences."""

from __future__ import annotations

from datetime import timedelta

from gasket.migrator.archive.inventory import count_rows
from gasket.migrator.background.time_estimate import PlannedWork
from gasket.migrator.commands.plan_forecast import Forecast, RevisionForecast
from gasket.migrator.revisions.rules.check import Finding
from gasket.migrator.scratch.effects import TableLock
from gasket.migrator.scratch.live_rows import Write
from gasket.migrator.sql.lexer import tokens
from gasket.migrator.sql.locks import LockMode

_WORTH_A_LINE = 100


def format_plan(plan: Forecast, *, sql: bool = False) -> str:
    """The plan as text; `sql` adds the statements."""
    count = len(plan.revisions)
    lines = [headline(plan)]
    lines += remarks(plan)
    for number, revision in enumerate(plan.revisions, start=1):
        lines += ["", *_format_revision(revision, f"{number} of {count}", sql=sql)]
    return "\n".join(lines)


def headline(plan: Forecast) -> str:
    """How much is pending, in one sentence."""
    count = len(plan.revisions)
    at = ", ".join(plan.current) or "base"
    if not count:
        return f"Nothing is pending. {plan.ahead}" if plan.ahead else f"Nothing is pending: the schema is at {at}."
    return f"{count} revision{'s are' if count > 1 else ' is'} pending after {at}."


def remarks(plan: Forecast) -> list[str]:
    """What is to be known of the plan as a whole: why it is not complete, and which revision failed."""
    lines = [f"Locks are estimated from the SQL. {plan.estimated}"] if plan.estimated else []
    if plan.failure:
        lines.append(f"Tried out on a scratch database: {plan.failure}. The live database was not touched.")
    return [*lines, *plan.notes]


def compatibility(revision: RevisionForecast) -> str:
    """Whether older releases can run on the schema after it."""
    return {
        True: "older releases can run on it",
        False: "older releases cannot run on it",
        None: "whether older releases can run on it is not decided",
    }[revision.backward_compatible]


def locks(revision: RevisionForecast) -> list[tuple[TableLock, str]]:
    """Its locks, each with what it blocks. A table's ROW EXCLUSIVE keeps no writer waiting; those on its rows do."""
    changed = {write.table for write in revision.writes if write.operation != "INSERT"}
    return [
        (
            lock,
            "blocks schema changes, and writes to the same rows"
            if lock.table in changed and lock.mode is LockMode.ROW_EXCLUSIVE
            else lock.blocks,
        )
        for lock in revision.locks
    ]


def size(lock: TableLock) -> tuple[str, str]:
    """The rows and the bytes of its live table; both empty for a table that has none yet, or cannot be looked at."""
    if lock.bytes is None:
        return "", ""
    return "rows not counted yet" if lock.rows is None else f"about {count_rows(lock.rows)}", _in_units(lock.bytes)


def facts(revision: RevisionForecast) -> list[str]:
    """What else it does, a line for each, without the findings of the rules."""
    lines = []
    if revision.concurrently:
        waits = ": it waits for every older transaction" if _builds_concurrently(revision) else ""
        lines.append(f"leaves its transaction{waits}, and can stop half done")
    lines += [f"rewrites {table}, with all its indexes" for table in revision.rewrites]
    lines += [f"reads all of {table}" for table in revision.scans if table not in revision.rewrites]
    lines += [
        f"builds {f'index {build.index}' if build.index else 'an index'} on {build.table}"
        for build in revision.index_builds
        if build.table not in revision.rewrites
    ]
    lines += [line for write in revision.writes if (line := _format_write(write))]
    lines += [found.sentence for found in revision.row_findings]
    lines += [
        f"statement {held.statement} ({held.kind.upper()}) was not tried out: {held.reason}"
        for held in revision.not_tried
    ]
    lines += revision.unknown
    lines += [f"needs the background work of {needed} to be complete" for needed in revision.needs_background]
    return lines + [f"leaves for after the start: {_format_work(work)}" for work in revision.background]


def _builds_concurrently(revision: RevisionForecast) -> bool:
    """Whether it says CONCURRENTLY, and not only leaves its transaction."""
    statements = [statement.sql for statement in revision.statements if statement.autocommit]
    return any(token.is_word("concurrently") for sql in statements for token in tokens(sql))


def _format_revision(revision: RevisionForecast, place: str, *, sql: bool) -> list[str]:
    lines = [f"{revision.revision} ({place}): {revision.description}"]
    lines.append(f"  {revision.file}; {compatibility(revision)}")
    lines += [f"  locks {_format_lock(lock, blocks)}" for lock, blocks in locks(revision)]
    lines += [f"  {fact}" for fact in facts(revision)]
    lines += [f"  finding: {format_finding(finding)}" for finding in revision.findings]
    if sql:
        for number, statement in enumerate(revision.statements, start=1):
            outside = " (outside of the transaction)" if statement.autocommit else ""
            lines += [f"  statement {number}{outside}", *(f"    {line}" for line in statement.sql.splitlines())]
    return lines


def format_finding(finding: Finding) -> str:
    """The rule, what it says, and why it was allowed."""
    return f"{finding.rule}: {finding.message}" + (f" (allowed: {finding.allowed})" if finding.allowed else "")


def _format_lock(lock: TableLock, blocks: str) -> str:
    text = f"{lock.table} {lock.mode}{' (estimated)' if lock.estimated else ''}, {blocks}"
    of_rows, of_bytes = size(lock)
    return f"{text}; {of_rows}, {of_bytes}" if of_bytes else f"{text}; it is not live yet, or cannot be looked at"


def _format_write(write: Write) -> str | None:
    """A handful of rows is not worth a line."""
    if write.rows is None:
        return f"writes rows of {write.table}; how many is not known"
    if write.rows < _WORTH_A_LINE:
        return None
    size = f", {_in_units(write.bytes)}" if write.bytes else ""
    locked = "; each is locked to the end of the revision" if write.operation != "INSERT" else ""
    return f"writes about {write.rows:,} rows of {write.table}{size}{locked}"


def _format_work(work: PlannedWork) -> str:
    text = f"{work.kind} of {work.table}"
    if work.rows is None:
        return f"{text}, which is not live yet"
    took = "" if work.seconds is None else f", about {timedelta(seconds=work.seconds)} (h:mm:ss)"
    return f"{text}, about {count_rows(work.rows)}{took}"


def _in_units(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
