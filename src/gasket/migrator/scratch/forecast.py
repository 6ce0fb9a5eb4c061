"""What `litestar database plan` says: the pending revisions, what each does to which table, how large that is live."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import asyncpg
from alembic.config import Config
from alembic.script import ScriptDirectory

from gasket.migrator.connection import MigratorConfig, connect
from gasket.migrator.errors import (
    DatabaseRefusedError,
    DatabaseUnavailableError,
    MigrationFailedError,
    MigratorError,
)
from gasket.migrator.revisions import RevisionFile, Revisions
from gasket.migrator.scratch.database import scratch_database
from gasket.migrator.scratch.effects import Effects, IndexBuild, LockMode, Statement
from gasket.migrator.scratch.estimate import estimate
from gasket.migrator.scratch.observe import Observation, observe, parts, read_relations
from gasket.migrator.sql.render import render

_CLOSE_TIMEOUT = 2.0
_SIZES_WITHIN = "3s"

# A partitioned table's are those of its partitions. reltuples is -1 before the first ANALYZE.
_SIZES = """
SELECT CASE WHEN n.nspname = $1 THEN '' ELSE n.nspname || '.' END || c.relname AS name,
    CASE c.relkind WHEN 'p' THEN (SELECT sum(greatest(l.reltuples, 0)) FROM pg_partition_tree(c.oid) AS leaf
                                  JOIN pg_class AS l ON l.oid = leaf.relid WHERE leaf.isleaf)
        ELSE nullif(c.reltuples, -1) END::bigint AS rows,
    CASE c.relkind WHEN 'p' THEN (SELECT sum(pg_total_relation_size(leaf.relid)) FROM pg_partition_tree(c.oid) AS leaf)
        ELSE pg_total_relation_size(c.oid) END::bigint AS bytes
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm')
  AND CASE WHEN n.nspname = $1 THEN '' ELSE n.nspname || '.' END || c.relname = ANY ($2::text[])
"""


@dataclass(frozen=True, slots=True)
class Impact:
    """A lock on a table, and the table as it is live: `rows` is PostgreSQL's estimate, None where there is none yet.

    `bytes` are with indexes and TOAST, None for a table that is not live yet or could not be looked at.
    """

    table: str
    mode: LockMode
    blocks: str
    statement: int
    estimated: bool
    rows: int | None
    bytes: int | None


@dataclass(frozen=True, slots=True)
class RevisionForecast:
    """One pending revision. `rewrites` and `scans` are tables; `statement` in `locks` counts from 1.

    `estimated`: told from its SQL and not seen. `concurrently`: it leaves its transaction. `unknown` are sentences.
    """

    revision: str
    file: str
    description: str
    backward_compatible: bool | None
    estimated: bool
    concurrently: bool
    statements: tuple[Statement, ...]
    locks: tuple[Impact, ...]
    rewrites: tuple[str, ...]
    scans: tuple[str, ...]
    index_builds: tuple[IndexBuild, ...]
    unknown: tuple[str, ...]
    findings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forecast:
    """Everything that is pending. `estimated` says why it was not tried out, `failure` which revision failed there."""

    current: tuple[str, ...]
    revisions: tuple[RevisionForecast, ...]
    estimated: str | None = None
    failure: str | None = None
    notes: tuple[str, ...] = ()


async def forecast(
    config: MigratorConfig,
    revisions: Revisions,
    *,
    applied: Iterable[str],
    pending: Sequence[RevisionFile],
    findings: Mapping[str, Sequence[str]] | None = None,
) -> Forecast:
    """Try the pending revisions out on a scratch database, in order; where there is none, estimate.

    `applied` are the live database's versions, as far as there are files for them; `findings` those of the checks, by
    revision. The live database is only read.

    Raises:
        DatabaseUnavailableError, DatabaseRefusedError: the live database cannot be reached.
    """
    current = tuple(sorted(applied))
    if not pending:
        return Forecast(current=current, revisions=())
    observation, estimated, notes = await _try_out(config, revisions, current, pending[-1].revision)
    left = [file for file in pending if file.revision not in observation.effects]
    live = await connect(config, migrating=True)
    try:
        effects = observation.effects | (await _estimate(config, live, left) if left else {})
        sizes = await _sizes(live, config.schema, {lock.table for e in effects.values() for lock in e.locks})
        if sizes is None:
            notes = (
                *notes,
                "The sizes of the tables are not shown: one is locked, or the server is slow to tell them.",
            )
    finally:
        await live.close(timeout=_CLOSE_TIMEOUT)
    guessed = {file.revision for file in left}
    return Forecast(
        current=current,
        revisions=tuple(
            _revision(
                file, effects[file.revision], sizes or {}, estimated=file.revision in guessed, findings=findings or {}
            )
            for file in pending
        ),
        estimated=estimated,
        failure=observation.failure,
        notes=notes,
    )


def format_plan(plan: Forecast, *, sql: bool = False) -> str:
    """The plan as text; `sql` adds the statements."""
    if not plan.revisions:
        return f"Nothing is pending: the schema is at {', '.join(plan.current) or 'base'}."
    count = len(plan.revisions)
    lines = [f"{count} revision{'s are' if count > 1 else ' is'} pending after {', '.join(plan.current) or 'base'}."]
    if plan.estimated:
        lines.append(f"Locks are estimated from the SQL. {plan.estimated}")
    if plan.failure:
        lines.append(f"On the scratch database: {plan.failure}")
    lines += plan.notes
    for number, revision in enumerate(plan.revisions, start=1):
        lines += ["", *_format_revision(revision, f"{number} of {count}", sql=sql)]
    return "\n".join(lines)


def _format_revision(revision: RevisionForecast, place: str, *, sql: bool) -> list[str]:
    compatible = {
        True: "older releases can run on it",
        False: "older releases cannot run on it",
        None: "whether older releases can run on it is not decided",
    }[revision.backward_compatible]
    lines = [f"{revision.revision} ({place}): {revision.description}", f"  {revision.file}; {compatible}"]
    if revision.concurrently:
        lines.append("  leaves its transaction: it waits for every older transaction, and can stop half done")
    lines += [f"  locks {_format_lock(lock)}" for lock in revision.locks]
    lines += [f"  rewrites {table}, with all its indexes" for table in revision.rewrites]
    lines += [f"  reads all of {table}" for table in revision.scans if table not in revision.rewrites]
    lines += [
        f"  builds {f'index {build.index}' if build.index else 'an index'} on {build.table}"
        for build in revision.index_builds
        if build.table not in revision.rewrites
    ]
    lines += [f"  {sentence}" for sentence in revision.unknown]
    lines += [f"  finding: {finding}" for finding in revision.findings]
    if sql:
        for number, statement in enumerate(revision.statements, start=1):
            outside = " (outside of the transaction)" if statement.autocommit else ""
            lines += [f"  statement {number}{outside}", *(f"    {line}" for line in statement.sql.splitlines())]
    return lines


def _format_lock(lock: Impact) -> str:
    text = f"{lock.table} {lock.mode}{' (estimated)' if lock.estimated else ''}, {lock.blocks}"
    if lock.bytes is None:
        return f"{text}; not live yet, or not to be looked at"
    rows = "rows not counted yet" if lock.rows is None else f"about {lock.rows:,} rows"
    return f"{text}; {rows}, {_in_units(lock.bytes)}"


def _in_units(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


async def _try_out(
    config: MigratorConfig, revisions: Revisions, applied: Sequence[str], target: str
) -> tuple[Observation, str | None, tuple[str, ...]]:
    """What was seen, why it is not everything, and how the scratch database differs from live."""
    notes: tuple[str, ...] = ()
    try:
        async with scratch_database(config, revisions) as scratch:
            notes = scratch.notes
            return await observe(scratch, revisions, applied, target), None, notes
    except (DatabaseUnavailableError, DatabaseRefusedError):
        raise
    except MigrationFailedError as error:
        reason = f"The revisions that are applied cannot be built on a scratch database: {error}"
    except MigratorError as error:
        reason = str(error)
    return Observation({}, failure=None), reason, notes


async def _estimate(
    config: MigratorConfig, live: asyncpg.Connection, files: Iterable[RevisionFile]
) -> dict[str, Effects]:
    directory = ScriptDirectory.from_config(Config(str(config.ini)))
    part_of = parts(await read_relations(live, config.schema))
    effects = {}
    for file in files:
        rendering = render(directory.get_revision(file.revision).module.upgrade, metadata=config.metadata)
        statements = [Statement(statement.sql, statement.autocommit) for statement in rendering.statements]
        effects[file.revision] = estimate(statements, config.schema, part_of)
        if rendering.reason:
            effects[file.revision].unknown.append(
                f"It {rendering.reason}: what it does after the statements shown cannot be told without running it."
            )
    return effects


async def _sizes(
    live: asyncpg.Connection, schema: str, tables: set[str]
) -> dict[str, tuple[int | None, int | None]] | None:
    """Rows and bytes by name; None when a table is locked, for its size is read under a lock of its own."""
    try:
        async with live.transaction(readonly=True):
            await live.execute(f"SET LOCAL statement_timeout = '{_SIZES_WITHIN}'")
            rows = await live.fetch(_SIZES, schema, sorted(tables))
    except asyncpg.QueryCanceledError:
        return None
    return {row["name"]: (row["rows"], row["bytes"]) for row in rows}


def _revision(
    file: RevisionFile,
    effects: Effects,
    sizes: Mapping[str, tuple[int | None, int | None]],
    *,
    estimated: bool,
    findings: Mapping[str, Sequence[str]],
) -> RevisionForecast:
    impacts = []
    for lock in effects.locks:
        rows, size = sizes.get(lock.table, (None, None))
        impacts.append(Impact(lock.table, lock.mode, lock.mode.blocks, lock.statement, lock.estimated, rows, size))
    return RevisionForecast(
        revision=file.revision,
        file=file.path.name,
        description=_description(file),
        backward_compatible=file.backward_compatible,
        estimated=estimated,
        concurrently=effects.concurrently,
        statements=tuple(effects.statements),
        locks=tuple(impacts),
        rewrites=tuple(effects.rewrites),
        scans=tuple(effects.scans),
        index_builds=tuple(effects.index_builds),
        unknown=tuple(effects.unknown),
        findings=tuple(findings.get(file.revision, ())),
    )


def _description(file: RevisionFile) -> str:
    """The first line of the file's docstring."""
    text = ast.get_docstring(ast.parse(file.path.read_bytes())) or ""
    return text.partition("\n")[0]
