"""What each pending revision does to the tables, found by running it on a scratch database.

Locks are seen in `pg_locks` after each statement, for they are held to the end of the transaction; a statement of an
autocommit block has given its locks back by then, so those are told from its text. A rewritten table has another file.
What is read and what is built PostgreSQL says itself: its counters of scans, which may be given away at the end of a
transaction, and its messages at `client_min_messages = debug1`, which are not translated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import asyncpg
import msgspec
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event
from sqlalchemy.util import await_only

from gasket.migrator.apply.session import MigrationSession
from gasket.migrator.apply.steps import StepRecorder
from gasket.migrator.ledger.tables import OWN_TABLES_PREFIX, VERSION_TABLE
from gasket.migrator.runner import upgrade_in_process
from gasket.migrator.scratch.database import Scratch
from gasket.migrator.scratch.effects import Effects, IndexBuild, NotTried, Statement
from gasket.migrator.scratch.not_tried import Guard, is_of_a_revision
from gasket.migrator.scratch.rehearsal import REVISION_ERRORS, build
from gasket.migrator.scratch.requirements import SeenRequirements
from gasket.migrator.scratch.told_effects import add_touch
from gasket.migrator.sql.locks import LockMode
from gasket.migrator.sql.reader import read
from gasket.migrator.sql.reading import Touch, touched_tables

# `name` is without the schema if that is $1. `part_of` is the table that an index or a column's sequence belongs to.
_RELATIONS = """
SELECT c.oid::bigint, c.relkind::text AS kind, pg_relation_filenode(c.oid)::bigint AS file,
    coalesce(pg_stat_get_xact_numscans(c.oid), 0) AS scans,
    CASE WHEN n.nspname = $1 THEN '' ELSE n.nspname || '.' END || c.relname AS name,
    coalesce(i.indrelid, (SELECT d.refobjid FROM pg_depend AS d
        WHERE c.relkind = 'S' AND d.classid = 'pg_class'::regclass AND d.objid = c.oid
          AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')))::bigint AS part_of
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_index AS i ON i.indexrelid = c.oid LEFT JOIN pg_class AS t ON t.oid = i.indrelid
WHERE c.relkind IN ('r', 'p', 'm', 'f', 'v', 'i', 'I', 'S')
  AND NOT starts_with(n.nspname, 'pg_') AND n.nspname <> 'information_schema'
  AND NOT (n.nspname = $1 AND (coalesce(t.relname, c.relname) = $2 OR starts_with(coalesce(t.relname, c.relname), $3)))
"""
_LOCKS = """
SELECT relation::bigint, array_agg(mode) AS modes FROM pg_locks
WHERE pid = pg_backend_pid() AND locktype = 'relation' AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
GROUP BY relation
"""
_OF_CONSTRAINT = "SELECT conrelid::bigint FROM pg_constraint WHERE contype = 'f' AND conname = $1"

_VERIFYING = re.compile(r'verifying table "(.+)"')
_BUILDING = re.compile(r'building index "(.+)" on table "(.+?)"')
_VALIDATING = re.compile(r'validating foreign key constraint "(.+)"')
_PARAMETERS_SHOWN = 200


class _Relation(msgspec.Struct, frozen=True):
    """`file` changes when the contents are written anew; `part_of` is the oid of the table it is a part of."""

    name: str
    kind: str
    file: int | None
    scans: int
    part_of: int | None


class Observation(msgspec.Struct, frozen=True):
    """The effects of each revision that went through, and why the next one did not.

    `notes` say how the scratch database differs from the live one, and what was changed around it.
    """

    effects: dict[str, Effects]
    failure: str | None
    notes: tuple[str, ...] = ()


async def observe(scratch: Scratch, scripts: ScriptDirectory, applied: Iterable[str], target: str) -> Observation:
    """Build the `applied` revisions on the scratch database, then run what `target` needs beyond, one after the other.

    `scripts` are the files as Alembic sees them.

    Raises:
        One of REVISION_ERRORS: the applied revisions cannot be built there.
    """
    watcher: _Watcher | None = None
    failure: str | None = None

    def watched(session: MigrationSession, connection: Connection) -> None:
        nonlocal watcher
        watcher = _Watcher(session.steps, connection, scratch.guard, scratch.config.schema)
        watcher.start()
        upgrade_in_process(session, connection, target)

    try:
        await build(scratch, scripts, applied, watched)
    except REVISION_ERRORS as error:
        if watcher is None:
            raise
        failure = error.what
    assert watcher is not None
    return Observation(watcher.complete(), failure, (*scratch.notes, *scratch.guard.cluster_changes))


async def _read_relations(connection: asyncpg.Connection, schema: str) -> dict[int, _Relation]:
    """Every relation but PostgreSQL's and the migrator's own, by oid."""
    rows = await connection.fetch(_RELATIONS, schema, VERSION_TABLE, OWN_TABLES_PREFIX)
    return {row["oid"]: _Relation(row["name"], row["kind"], row["file"], row["scans"], row["part_of"]) for row in rows}


async def read_parts(connection: asyncpg.Connection, schema: str) -> dict[str, str]:
    """The name of the table for the name of each index and sequence of it."""
    return _parts(await _read_relations(connection, schema))


def _parts(relations: dict[int, _Relation]) -> dict[str, str]:
    return {r.name: relations[r.part_of].name for r in relations.values() if r.part_of in relations}


class _Watcher:
    """Looks before each revision and after each statement; the look after one is the look before the next."""

    def __init__(self, steps: StepRecorder, connection: Connection, guard: Guard, schema: str) -> None:
        self._guard = guard
        self._effects: dict[str, Effects] = {}
        self._steps = steps
        self._built = len(steps.applied)
        self._schema = schema
        self._connection = connection
        driver_connection = connection.connection.driver_connection
        assert isinstance(driver_connection, asyncpg.Connection)
        self._driver = driver_connection
        self._messages: list[str] = []
        self._revision: str | None = None
        self._known: dict[int, _Relation] = {}
        self._before: dict[int, _Relation] = {}
        self._requirements = SeenRequirements(self._driver, schema)
        self._row_locked: set[str] = set()

    def start(self) -> None:
        await_only(self._driver.execute("SET client_min_messages = debug1"))
        self._driver.add_log_listener(lambda _connection, message: self._messages.append(message.message))
        event.listen(self._connection, "before_cursor_execute", self._look_before)
        event.listen(self._connection, "after_cursor_execute", self._look_after)
        event.listen(self._connection, "rollback", self._forget)

    def complete(self) -> dict[str, Effects]:
        """Of the revisions that went through, those without a statement too."""
        return {revision: self._effects.get(revision, Effects()) for revision in self._steps.applied[self._built :]}

    def _forget(self, _connection: object) -> None:
        """What was rolled back has done nothing, and may be tried again."""
        if self._steps.current is not None:
            self._effects.pop(self._steps.current, None)
        self._revision = None

    def _look_before(self, _c: object, _cursor: object, statement: str, *_rest: object) -> None:
        if self._is_watched(statement) and self._steps.current != self._revision:
            self._revision = self._steps.current
            self._known = self._before = await_only(_read_relations(self._driver, self._schema))
            await_only(self._requirements.look())
            self._row_locked = set()
        self._messages.clear()

    def _look_after(self, _c: object, _cursor: object, statement: str, parameters: object, *_rest: object) -> None:
        if not self._is_watched(statement):
            return
        assert self._revision is not None
        effects = self._effects.setdefault(self._revision, Effects())
        in_transaction = self._driver.is_in_transaction()
        effects.statements.append(Statement(_with_parameters(statement, parameters), autocommit=not in_transaction))
        if held := self._guard.take_last():
            effects.not_tried.append(NotTried(len(effects.statements), held.kind, held.reason))
            for name, touch in self._told_by(statement):
                add_touch(effects, name, touch)
            return
        now = await_only(_read_relations(self._driver, self._schema))
        self._note_locks(effects, statement, in_transaction)
        effects.requirements += await_only(self._requirements.after(len(effects.statements), read(statement)))
        # It makes an empty file and builds empty indexes: neither is a rewrite.
        if statement.split(maxsplit=1)[0].upper() != "TRUNCATE":
            self._note_changes(effects, now)
            self._note_messages(effects)
        self._before = now

    def _is_watched(self, statement: str) -> bool:
        return self._steps.in_revision and is_of_a_revision(statement, self._steps)

    def _note_locks(self, effects: Effects, statement: str, in_transaction: bool) -> None:
        if not in_transaction:
            for name, touch in self._told_by(statement):
                effects.add_lock(name, touch.mode, estimated=True)
            return
        for row in await_only(self._driver.fetch(_LOCKS)):
            if table := self._table(row["relation"]):
                mode = max((LockMode.of_pg_locks(mode) for mode in row["modes"]), key=lambda mode: mode.strength)
                effects.add_lock(table.name, mode, estimated=False)
                self._note_row_lock(effects, row["relation"], row["modes"])

    def _told_by(self, statement: str) -> Iterator[tuple[str, Touch]]:
        """What its text tells of the tables that are there before the revision."""
        names = {relation.name for relation in self._known.values()}
        touched = touched_tables(read(statement), self._schema, _parts(self._known))
        return ((name, touch) for name, touch in touched if name in names)

    def _note_row_lock(self, effects: Effects, oid: int, modes: Sequence[str]) -> None:
        """Of a table itself: nextval() takes the same lock on a sequence."""
        relation = self._known[oid]
        is_row_lock = "RowExclusiveLock" in modes and relation.kind in ("r", "p", "f")
        if is_row_lock and relation.name not in self._row_locked:
            self._row_locked.add(relation.name)
            effects.row_locks.append((len(effects.statements), relation.name))

    def _note_changes(self, effects: Effects, now: dict[int, _Relation]) -> None:
        for oid, known in self._known.items():
            before, after = self._before.get(oid), now.get(oid)
            if known.kind not in ("r", "m") or not before or not after:
                continue
            if after.file != before.file:
                effects.add_rewrite(known.name)
            if after.scans > before.scans:
                effects.add_scan(known.name)

    def _note_messages(self, effects: Effects) -> None:
        by_name = {
            b.name.rpartition(".")[2]: self._known[oid].name for oid, b in self._before.items() if oid in self._known
        }
        for message in self._messages:
            if (match := _VERIFYING.match(message)) and match[1] in by_name:
                effects.add_scan(by_name[match[1]])
            elif (match := _BUILDING.match(message)) and match[2] in by_name:
                effects.index_builds.append(IndexBuild(match[1], by_name[match[2]]))
            elif match := _VALIDATING.match(message):
                for row in await_only(self._driver.fetch(_OF_CONSTRAINT, match[1])):
                    if table := self._table(row["conrelid"]):
                        effects.add_scan(table.name)

    def _table(self, oid: int) -> _Relation | None:
        """The relation, or the table it is a part of; None for one that the revision made itself."""
        relation = self._known.get(oid)
        return self._known.get(relation.part_of, relation) if relation and relation.part_of else relation


def _with_parameters(statement: str, parameters: Any) -> str:
    if not parameters:
        return statement.strip()
    shown = repr(parameters)
    if len(shown) > _PARAMETERS_SHOWN:
        shown = f"{shown[:_PARAMETERS_SHOWN]} ..."
    return f"{statement.strip()} -- with {shown}"
