"""What is not tried out on a scratch database, because it would change the cluster around it.

Roles, databases, tablespaces and their settings belong to all databases of a server. Files, programs and other servers
lie beyond it. Two things tell such a statement:

- its text, and so it is not run. It may also name a function whose own text tells it, or a table with a trigger that
  calls that. Function and trigger are made, for they are compared. The trigger is switched off until the end: a
  cascade, a partition or an older function fires it too, and no text tells that;
- PostgreSQL's locks: who writes to a catalog that the databases share holds ROW EXCLUSIVE on it to the end of the
  transaction, and who writes to a foreign table one on that. So what a function or a trigger does is found too, and
  rolled back to a savepoint, at the other server as well. What cannot run in a transaction (CREATE DATABASE, ALTER
  SYSTEM) cannot run in a function either, and its text tells it.

A statement that fails because it names what was not made for this reason (GRANT ... TO a role), or because another
server does not answer, is left out as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import Connection, event
from sqlalchemy.engine.interfaces import DBAPICursor, ExecutionContext
from sqlalchemy.util import await_only

from gasket.migrator.apply.steps import StepRecorder
from gasket.migrator.ledger.tables import VERSION_TABLE
from gasket.migrator.sql.lexer import Kind, tokens
from gasket.migrator.sql.reader import made_routines, read
from gasket.migrator.sql.reading import Change, Create, Reading, Rename, any_of
from gasket.postgres.errors import is_lost

_OUTSIDE = "its effect is outside of the scratch database"
_SHARED = (
    *("pg_authid", "pg_auth_members", "pg_database", "pg_db_role_setting", "pg_parameter_acl", "pg_replication_origin"),
    *("pg_shdescription", "pg_shseclabel", "pg_subscription", "pg_tablespace"),
)
_WRITTEN = """
SELECT string_agg(c.relname, ', ' ORDER BY c.relname)
FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_class AS c ON c.oid = l.relation
WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation'
  AND (l.database = 0 AND l.mode = 'RowExclusiveLock' AND c.relname = ANY ($1)
       OR l.database <> 0 AND c.relkind = 'f' AND (l.mode = 'RowExclusiveLock'
           OR l.mode = 'AccessExclusiveLock' AND $2::oid[] IS NOT NULL AND (l.relation <> ALL ($2) OR EXISTS (
               WITH RECURSIVE up(oid) AS (
                   SELECT c.oid
                   UNION SELECT i.inhparent FROM pg_catalog.pg_inherits AS i JOIN up ON i.inhrelid = up.oid)
               SELECT FROM up JOIN pg_catalog.pg_class AS named ON named.oid = up.oid
               WHERE named.relname = ANY ($3)))))
"""
# Foreign tables that an earlier statement of the transaction has made or altered: only TRUNCATE writes under this lock.
_ALTERED = """
SELECT coalesce(array_agg(l.relation), '{}')
FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_class AS c ON c.oid = l.relation
WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND c.relkind = 'f'
"""
_OUTSIDE_TRIGGERS = """
SELECT t.oid, t.tgrelid::regclass::text AS table, c.relname AS relation, quote_ident(t.tgname) AS name,
    t.tgenabled::text AS state
FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
WHERE p.proname = ANY ($1) AND t.tgenabled <> 'D' ORDER BY t.tgparentid <> 0, t.oid
"""
_TRIGGERS = """
SELECT oid, tgrelid::regclass::text AS table, quote_ident(tgname) AS name
FROM pg_catalog.pg_trigger WHERE oid = ANY ($1) ORDER BY tgparentid <> 0, oid
"""
_ENABLE = {"O": "ENABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA"}
"""By `tgenabled`."""
_SAVEPOINT = "gasket_statement"
# What a name that is not there is told with: undefined object, table, column, function, schema; and SET ROLE's.
_NOT_THERE = frozenset({"42704", "42P01", "42703", "42883", "3F000", "22023"})
_NO_CONNECTION = "08"
_ENDS_A_TRANSACTION = "2D000"
_QUERIES = frozenset({"select", "table", "values", "with"})
_FIRES_TRIGGERS = frozenset({"insert", "update", "delete", "merge", "copy", "truncate"})
_CALLS_NOTHING = frozenset(
    ["comment", "grant", "revoke"]
    + [f"{verb} {kind}" for verb in ("create", "alter", "drop") for kind in ("function", "procedure", "routine")]
    + [f"{verb} {kind}" for verb in ("create", "drop") for kind in ("trigger", "view")]
    + ["alter trigger", "drop rule", "drop policy"]
)
"""Statements that name a function and do not call it."""
_QUOTED = re.compile(r'["\u00ab\u201c\u201e](.+?)["\u00bb\u201c\u201d]')  # as PostgreSQL quotes in its languages

_Run = Callable[[], None]
# What Alembic and SQLAlchemy ask for themselves.
_NOT_THE_REVISIONS = re.compile(rf"\s*SELECT\s+pg_catalog\.|.*\b{VERSION_TABLE}\b", re.DOTALL)


class HeldBack(msgspec.Struct, frozen=True):
    """A statement of a revision that was not tried out, and why. `kind` is its first words: `create role`."""

    revision: str
    kind: str
    sql: str
    reason: str


class Guard:
    """Stands before the statements of one session; `held_back` are those of revisions that it did not let through.

    `cluster_changes` are sentences on what was changed around the database all the same. `not_there` are names that
    statements may use and that the scratch database cannot have.
    """

    def __init__(self, not_there: Iterable[str] = ()) -> None:
        self.held_back: list[HeldBack] = []
        self.cluster_changes: list[str] = []
        self._names = set(not_there)
        self._outside_names: set[str] = set()
        self._fires_outside: set[str] = set()
        self._mentions: dict[str, set[str]] = {}  # the names in each function and view that was made
        self._views: set[str] = set()
        self._switched_off: dict[int, str] = {}  # triggers, and their states before
        self._last: HeldBack | None = None

    def start(self, steps: StepRecorder, connection: Connection) -> None:
        """From now on every statement passes by."""
        driver = connection.connection.driver_connection
        assert isinstance(driver, asyncpg.Connection)
        self._steps, self._driver = steps, driver
        event.listen(connection.dialect, "do_execute", self._execute)
        event.listen(connection.dialect, "do_executemany", self._execute_many)
        event.listen(connection, "rollback", self._forget)

    def take_last(self) -> HeldBack | None:
        """The statement that has just been executed, if it was held back."""
        last, self._last = self._last, None
        return last

    def _forget(self, _connection: object) -> None:
        """The step is tried again."""
        self.held_back = [held for held in self.held_back if held.revision != self._steps.current]

    def _execute(self, cursor: DBAPICursor, sql: str, parameters: Any, context: ExecutionContext) -> bool:
        """SQLAlchemy's event. True: it is done."""
        return self._guarded(cursor, sql, partial(context.dialect.do_execute, cursor, sql, parameters, context))

    def _execute_many(self, cursor: DBAPICursor, sql: str, parameters: Any, context: ExecutionContext) -> bool:
        """The same for rows given together, as `op.bulk_insert` does."""
        return self._guarded(cursor, sql, partial(context.dialect.do_executemany, cursor, sql, parameters, context))

    def _guarded(self, cursor: DBAPICursor, sql: str, run: _Run) -> bool:
        self._last = None
        readings = read(sql) if is_of_a_revision(sql, self._steps) else ()
        if not readings or any(_manages_the_transaction(reading) for reading in readings):
            return False
        reason: str | None = _OUTSIDE
        if not any_of(reading.outside_database for reading in readings):
            reason = self._uses_outside_code(sql, readings) or self._run(run, sql, readings)
        if reason and self._steps.in_revision:  # else a check of its background work, which is left out then
            self._hold_back(cursor, sql, readings[0].kind, reason)
        return True

    def _uses_outside_code(self, sql: str, readings: Sequence[Reading]) -> str | None:
        """Whether it runs a function that was made to act outside; what it makes to do so is remembered."""
        changes = [change for reading in readings for change in reading.changes]
        self._remember(sql, changes)
        if all(reading.kind in _CALLS_NOTHING for reading in readings):
            return None
        names = set(_names(sql)) if self._outside_names else set[str]()
        used, fires = names & self._outside_names, names & self._fires_outside
        if used:
            return f"it uses {min(used)}, and {_OUTSIDE}"
        if fires and any(map(_runs_code, readings)):
            return f"it may fire a trigger of {min(fires)}, and {_OUTSIDE}"
        return None

    def _remember(self, sql: str, changes: Sequence[Change]) -> None:
        """The names of what acts outside. Whoever names one of them does so too, though it may have been made before.

        None is forgotten: another function may have the same name.
        """
        for change in changes:
            if isinstance(change, Rename) and change.to and not change.part:
                for names in (self._outside_names, self._fires_outside):
                    names |= {change.to} if change.name[-1] in names else set()
                if change.name[-1] in self._mentions:
                    self._mentions[change.to] = self._mentions[change.name[-1]]
        creates = [change for change in changes if isinstance(change, Create)]
        routines = made_routines(sql) if creates else {}
        views = {create.name[-1] for create in creates if create.kind == "view"}
        self._views |= views
        for name in routines.keys() | views:
            self._mentions[name] = self._mentions.get(name, set()) | set(_names(sql))
        self._outside_names |= {name for name, outside in routines.items() if outside}
        while more := set(self._name_them()) - self._outside_names:
            self._outside_names |= more

    def _name_them(self) -> Iterator[str]:
        """Functions that name what acts outside or a table that fires it, and views that name what acts outside."""
        for name, names in self._mentions.items():
            fires = name not in self._views and names & self._fires_outside
            if fires or names & self._outside_names:
                yield name

    def _run(self, run: _Run, sql: str, readings: Sequence[Reading]) -> str | None:
        """Run the statement; if it was taken back, why."""
        if self._driver.is_in_transaction():
            return self._run_in_savepoint(run, sql, readings)
        makes_code = bool(self._outside_names) or any(map(_runs_code, readings))
        if any(reading.needs_autocommit for reading in readings) or not makes_code:
            return self._run_alone(run)
        return self._run_in_transaction(run, sql, readings)

    def _run_in_savepoint(self, run: _Run, sql: str, readings: Sequence[Reading]) -> str | None:
        await_only(self._driver.execute(f"SAVEPOINT {_SAVEPOINT}"))
        reason = self._run_and_look(run, sql, readings)
        if reason:
            await_only(self._driver.execute(f"ROLLBACK TO {_SAVEPOINT}"))
        await_only(self._driver.execute(f"RELEASE {_SAVEPOINT}"))
        return reason

    def _run_in_transaction(self, run: _Run, sql: str, readings: Sequence[Reading]) -> str | None:
        """In an autocommit block what a function does would stay."""
        await_only(self._driver.execute("BEGIN"))
        reason = None
        try:
            reason = self._run_and_look(run, sql, readings)
        except Exception as error:
            if getattr(error, "sqlstate", None) != _ENDS_A_TRANSACTION:
                raise
            await_only(self._driver.execute("ROLLBACK"))
            return self._run_alone(run) or self._switch_triggers_off()
        finally:
            if self._driver.is_in_transaction():
                await_only(
                    self._driver.execute("ROLLBACK" if reason else "COMMIT")
                )  # COMMIT of a failed one rolls back
        return reason

    def _run_and_look(self, run: _Run, sql: str, readings: Sequence[Reading]) -> str | None:
        switched_off = self._switched_off.copy()
        reason: str | None = _OUTSIDE  # an error takes it back as well
        try:
            reason = self._try(run, sql, readings)
        finally:
            if reason:
                self._switched_off = switched_off
        return reason

    def _try(self, run: _Run, sql: str, readings: Sequence[Reading]) -> str | None:
        altered, names = None, set[str]()
        if any(_runs_code(reading) and reading.kind != "import" for reading in readings):
            names = names.union(*self._mentions.values())
            if "truncate" in names or "truncate" in sql.lower():
                names.update(_names(sql))
                altered = await_only(self._driver.fetchval(_ALTERED))
        elif self._switched_off and "trigger" in sql.lower():  # it may switch one on or off
            self.switch_triggers_on()
        return self._run_alone(run) or self._switch_triggers_off() or self._written(altered, names)

    def _switch_triggers_off(self) -> str | None:
        """Those that act outside; where one cannot be, what is said of the statement that made it."""
        if not self._outside_names:
            return None
        triggers = await_only(self._driver.fetch(_OUTSIDE_TRIGGERS, list(self._outside_names)))
        self._fires_outside |= {trigger["relation"] for trigger in triggers}
        self._remember("", ())
        for trigger in triggers:
            try:
                await_only(self._driver.execute(f"ALTER TABLE {trigger['table']} DISABLE TRIGGER {trigger['name']}"))
            except asyncpg.PostgresError as error:
                if is_lost(error):
                    raise
                return f"it makes a trigger of {trigger['relation']}, and {_OUTSIDE}"
            self._switched_off[trigger["oid"]] = trigger["state"]
        return None

    def switch_triggers_on(self) -> None:
        """Those that were switched off are as the revisions made them."""
        for trigger in await_only(self._driver.fetch(_TRIGGERS, list(self._switched_off))):
            enable = _ENABLE[self._switched_off[trigger["oid"]]]
            await_only(self._driver.execute(f"ALTER TABLE {trigger['table']} {enable} TRIGGER {trigger['name']}"))
        self._switched_off.clear()

    def _run_alone(self, run: _Run) -> str | None:
        try:
            run()
        except Exception as error:
            reason = self._no_answer(error) or self._not_there(error)
            if reason is None:
                raise
            return reason
        return None

    def _written(self, altered: list[int] | None, names: set[str]) -> str | None:
        """What is said of a statement that has written to catalogs of all databases, or to other servers' tables.

        `altered` are tables whose lock is not TRUNCATE's unless they are in `names`; None: it is not of any.
        """
        tables = await_only(self._driver.fetchval(_WRITTEN, list(_SHARED), altered, list(names)))
        return f"it writes to {tables}, and {_OUTSIDE}" if tables else None

    def _no_answer(self, error: Exception) -> str | None:
        """Whether it fails for another server that does not answer."""
        of_another = (getattr(error, "sqlstate", None) or "").startswith(_NO_CONNECTION) and not is_lost(error)
        return "it needs another server, which does not answer" if of_another else None

    def _not_there(self, error: Exception) -> str | None:
        """Whether it fails for a name that is not there for a reason."""
        if getattr(error, "sqlstate", None) not in _NOT_THERE:
            return None
        quoted = set(_QUOTED.findall(str(error)))
        missing = sorted(quoted & self._names)
        return f"it needs {missing[0]}, which is not made in the scratch database" if missing else None

    def _hold_back(self, cursor: DBAPICursor, sql: str, kind: str, reason: str) -> None:
        revision = self._steps.current
        assert revision is not None
        self._last = HeldBack(revision, kind, sql.strip(), reason)
        self.held_back.append(self._last)
        self._names.update(_names(sql))
        if kind in _QUERIES:  # whoever asks for its result gets none
            cursor.execute("SELECT NULL WHERE false", ())


def is_of_a_revision(sql: str, steps: StepRecorder) -> bool:
    """Whether a revision under way has sent it, and not Alembic or SQLAlchemy for themselves."""
    return steps.current is not None and not _NOT_THE_REVISIONS.match(sql)


def _manages_the_transaction(reading: Reading) -> bool:
    """SAVEPOINT would end with ours, and SET TRANSACTION is refused inside of one."""
    sets_transaction = reading.kind == "set" and (reading.setting is None or reading.setting.name == "transaction")
    return reading.transaction_control or sets_transaction


def _runs_code(reading: Reading) -> bool:
    """It calls what its text does not tell, or fires triggers."""
    return reading.outside_database is None or reading.writes_rows is not False or reading.kind in _FIRES_TRIGGERS


def _names(sql: str) -> Iterator[str]:
    """The names in a statement, and in the texts in it: a DO block is one."""
    for token in tokens(sql):
        if token.is_identifier:
            yield token.text
        elif token.kind is Kind.STRING:
            yield from (inner.text for inner in tokens(token.text) if inner.is_identifier)
