"""What an upgrade would do: the pending revisions, what each does to which table, and how large that is live."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from types import ModuleType

import asyncpg
import msgspec
from alembic.script import ScriptDirectory
from msgspec.structs import replace

from gasket.migrator.background import Backfill, Declaration
from gasket.migrator.background.declared import declared_works
from gasket.migrator.background.time_estimate import PlannedWork, plan_works
from gasket.migrator.config import MigratorConfig
from gasket.migrator.connecting import connected, looking
from gasket.migrator.errors import DatabaseRefusedError, DatabaseUnavailableError, MigratorError
from gasket.migrator.gate.callers import Caller, Request
from gasket.migrator.gate.checks import pass_gate
from gasket.migrator.ledger.background import UNFINISHED, read_works
from gasket.migrator.ledger.read import are_there
from gasket.migrator.ledger.tables import BACKGROUND
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.revisions.files import RevisionFile, Revisions
from gasket.migrator.revisions.loading import load_scripts
from gasket.migrator.revisions.rules.check import Finding, allowed_findings, check_revision, verdict_on
from gasket.migrator.revisions.rules.rulebook import SQL_RULES
from gasket.migrator.scratch.database import scratch_database
from gasket.migrator.scratch.effects import Effects, IndexBuild, NotTried, Statement, TableLock
from gasket.migrator.scratch.live_rows import LiveRows, RowFinding, Write
from gasket.migrator.scratch.observe import Observation, observe, read_parts
from gasket.migrator.scratch.rehearsal import REVISION_ERRORS
from gasket.migrator.scratch.told_effects import estimate
from gasket.migrator.sql.reader import built_index
from gasket.migrator.sql.render import render

_SIZES_WITHIN = "3s"
_NO_SIZES = "The sizes of the tables are not shown: one is locked, or the server is slow to tell them."
_LARGE_INDEX = "large-index"
_LARGE = 1_000_000
"""Rows of a table from which on an index is better built after the start."""

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


class RevisionForecast(msgspec.Struct, frozen=True):
    """One pending revision. `rewrites` and `scans` are tables; `statement` in `locks` counts from 1.

    `estimated`: told from its SQL and not seen. `concurrently`: it leaves its transaction. `unknown` are sentences.
    `row_findings` are rows that are in the way of a statement, or not known to be; `writes` are estimates. `not_tried`
    are statements that were left out of the trial, because they change more than the database. `background` is work for
    the time after the start, `needs_background` are the revisions whose work has to be complete before.
    """

    revision: str
    file: str
    description: str
    backward_compatible: bool | None
    estimated: bool
    concurrently: bool
    statements: tuple[Statement, ...]
    locks: tuple[TableLock, ...]
    rewrites: tuple[str, ...]
    scans: tuple[str, ...]
    index_builds: tuple[IndexBuild, ...]
    row_findings: tuple[RowFinding, ...]
    writes: tuple[Write, ...]
    unknown: tuple[str, ...]
    not_tried: tuple[NotTried, ...]
    findings: tuple[Finding, ...]
    background: tuple[PlannedWork, ...]
    needs_background: tuple[str, ...]


class Forecast(msgspec.Struct, frozen=True):
    """Everything that is pending. `estimated` says why it was not tried out, `failure` which revision failed there.

    `ahead` says what this release can do with a schema that is newer.
    """

    current: tuple[str, ...]
    revisions: tuple[RevisionForecast, ...]
    estimated: str | None = None
    failure: str | None = None
    notes: tuple[str, ...] = ()
    ahead: str | None = None

    @property
    def fails(self) -> bool:
        """Whether an upgrade would surely fail: on the scratch database, or on rows that are live now."""
        in_the_way = (finding.certain for revision in self.revisions for finding in revision.row_findings)
        return self.failure is not None or any(in_the_way)


async def forecast_pending(config: MigratorConfig) -> Forecast:
    """Try everything that is pending out on a scratch database, in order; where there is none, estimate.

    The live database is only read.

    Raises:
        MigratorError: an upgrade would be refused, or the live database cannot be reached.
    """
    revisions = configured_revisions(config.ini)
    async with looking(config, migrating=True) as connection:
        situation = await pass_gate(connection, config, revisions, Request(Caller.PLAN), migrating=True)
    pending = situation.plan.pending
    if not pending:
        current = tuple(sorted(situation.database.versions))
        return Forecast(current=current, revisions=(), ahead=situation.ahead(config.release))
    applied = situation.database.versions & revisions.keys()
    return await _forecast(config, revisions, tuple(sorted(applied)), pending)


async def _forecast(
    config: MigratorConfig, revisions: Revisions, applied: tuple[str, ...], pending: Sequence[RevisionFile]
) -> Forecast:
    scripts = load_scripts(config.ini)
    modules = {file.revision: scripts.get_revision(file.revision).module for file in pending}
    findings = {file.revision: _find(config, file, modules[file.revision]) for file in pending}
    declared = {revision: declared_works(module) for revision, module in modules.items()}

    observation, estimated = await _try_out(config, revisions, scripts, applied, pending[-1].revision)
    guessed = {revision: module for revision, module in modules.items() if revision not in observation.effects}

    async with connected(config, migrating=True) as live:
        effects = observation.effects | await _estimate(config, live, guessed)
        changed = await _changed_before(live, config.schema, pending, declared)
        rows = await _look_at_rows(live, config.schema, effects, changed)
        works = {
            revision: await plan_works(live, config.schema, ones, share=config.background_share)
            for revision, ones in declared.items()
        }
        sizes = await _sizes(live, config.schema, {lock.table for e in effects.values() for lock in e.locks})
    return Forecast(
        current=applied,
        revisions=tuple(
            _revision(
                file,
                effects[file.revision],
                sizes or {},
                rows[file.revision],
                works[file.revision],
                estimated=file.revision in guessed,
                findings=findings[file.revision],
            )
            for file in pending
        ),
        estimated=estimated,
        failure=observation.failure,
        notes=observation.notes if sizes is not None else (*observation.notes, _NO_SIZES),
    )


def _find(config: MigratorConfig, file: RevisionFile, module: ModuleType) -> list[Finding]:
    return check_revision(file, module.upgrade, downgrade=module.downgrade, metadata=config.metadata)


async def _try_out(
    config: MigratorConfig, revisions: Revisions, scripts: ScriptDirectory, applied: Sequence[str], target: str
) -> tuple[Observation, str | None]:
    """What was seen, and why it is not everything."""
    notes: tuple[str, ...] = ()
    try:
        async with scratch_database(config, revisions) as scratch:
            notes = scratch.notes
            return await observe(scratch, scripts, applied, target), None
    except (DatabaseUnavailableError, DatabaseRefusedError):
        raise
    except REVISION_ERRORS as error:
        reason = (
            f"The revisions that are applied cannot be built on a scratch database: {error.what}; the live database "
            "was not changed"
        )
    except MigratorError as error:
        reason = str(error)
    return Observation({}, failure=None, notes=notes), reason


async def _estimate(
    config: MigratorConfig, live: asyncpg.Connection, modules: Mapping[str, ModuleType]
) -> dict[str, Effects]:
    if not modules:
        return {}
    part_of = await read_parts(live, config.schema)
    renderings = {revision: render(module.upgrade, metadata=config.metadata) for revision, module in modules.items()}
    return estimate(renderings, config.schema, part_of)


async def _look_at_rows(
    live: asyncpg.Connection, schema: str, effects: Mapping[str, Effects], changed: Mapping[str, Set[str]]
) -> dict[str, tuple[list[RowFinding], list[Write]]]:
    """By revision: what is in the way, and what is written. A lost connection ends the plan, and nothing else does.

    `changed` is as `_changed_before` has it.
    """
    rows = LiveRows(live, schema)
    looks = {}
    for revision, found in effects.items():
        requirements = [
            replace(one, after_writes=one.after_writes or _plain(one.table, schema) in changed[revision])
            for one in found.requirements
        ]
        looks[revision] = (await rows.findings(requirements, found.statements), await rows.writes(found))
    return looks


async def _changed_before(
    live: asyncpg.Connection,
    schema: str,
    pending: Iterable[RevisionFile],
    declared: Mapping[str, Iterable[Declaration]],
) -> dict[str, frozenset[str]]:
    """By revision: the tables with rows that background work has yet to change before the revision is applied."""
    tables: dict[str, set[str]] = {}
    if all(await are_there(live, schema, BACKGROUND)):
        for work in await read_works(live, schema, states=UNFINISHED):
            tables.setdefault(work.revision, set()).add(_plain(work.table_name, schema))
    for revision, works in declared.items():
        tables[revision] = {_plain(one.table, schema) for one in works if isinstance(one, Backfill)}
    changed: set[str] = set()
    found = {}
    for file in pending:
        changed.update(*(tables.get(needed, ()) for needed in verdict_on(file).needs_background))
        found[file.revision] = frozenset(changed)
    return found


def _plain(table: str, schema: str) -> str:
    """A table's name without quotes, and without the schema if that is ours."""
    return table.replace('"', "").removeprefix(f"{schema}.")


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
    of_rows: tuple[Sequence[RowFinding], Sequence[Write]],
    background: tuple[PlannedWork, ...],
    *,
    estimated: bool,
    findings: Iterable[Finding],
) -> RevisionForecast:
    locks = []
    for lock in effects.locks:
        rows, size = sizes.get(lock.table, (None, None))
        locks.append(replace(lock, rows=rows, bytes=size))
    return RevisionForecast(
        revision=file.revision,
        file=file.path.name,
        description=file.read_description(),
        backward_compatible=file.backward_compatible,
        estimated=estimated,
        concurrently=effects.concurrently,
        statements=tuple(effects.statements),
        locks=tuple(locks),
        rewrites=tuple(effects.rewrites),
        scans=tuple(effects.scans),
        index_builds=tuple(effects.index_builds),
        row_findings=tuple(of_rows[0]),
        writes=tuple(of_rows[1]),
        unknown=tuple(effects.unknown),
        not_tried=tuple(effects.not_tried),
        findings=(*findings, *_large_indexes(file, effects, sizes)),
        background=background,
        needs_background=verdict_on(file).needs_background,
    )


def _large_indexes(
    file: RevisionFile, effects: Effects, sizes: Mapping[str, tuple[int | None, int | None]]
) -> Iterator[Finding]:
    """CREATE INDEX CONCURRENTLY in a revision, on a table that is large live."""
    rule = SQL_RULES[_LARGE_INDEX]
    for statement in effects.statements:
        index = built_index(statement.sql)
        if index is None or index.table is None:
            continue
        table = ".".join(index.table)
        rows, _ = sizes.get(table, (None, None))
        if rows is not None and rows >= _LARGE:
            message = f"It builds an index on {table}, which has about {rows:,} rows. {rule.why} {rule.instead}"
            allowed = allowed_findings(file).get(_LARGE_INDEX)
            yield Finding(_LARGE_INDEX, file.revision, file.path.name, message, allowed, rule.warning)
