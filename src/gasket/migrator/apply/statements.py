"""Each statement of a revision on its way to the server.

In the step's transaction nothing may end that transaction, or a part of the step would stay when the rest fails. In an
autocommit block each statement stands alone: what found a lock taken has done nothing and is tried again, as a step is.
What is committed before the step is recorded is written down, and left out by a later try.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import asyncpg
import msgspec
from alembic.runtime.migration import MigrationContext
from asyncpg.transaction import Transaction
from sqlalchemy import Connection, event
from sqlalchemy.exc import ResourceClosedError
from sqlalchemy.util import await_only

from gasket.migrator.apply.attempts import Attempts
from gasket.migrator.apply.earlier_try import EarlierTry
from gasket.migrator.apply.events import Step
from gasket.migrator.apply.finished import is_compared, is_untouched, what_is_left
from gasket.migrator.errors import NotForRevisionsError, PartlyDoneError
from gasket.migrator.ledger.step_progress import Committed, forget_begun, write_progress
from gasket.migrator.sql.lexer import shortened, tokens
from gasket.migrator.sql.locks import LockMode
from gasket.migrator.sql.reader import may_control_transaction, read
from gasket.migrator.sql.reading import Reading
from gasket.postgres.errors import DRIVER_ERRORS

log = logging.getLogger("gasket.migrator")

_DONE_AGAIN = frozenset(
    {"analyze", "checkpoint", "discard", "explain", "fetch", "lock", "release", "reset", "rollback to", "savepoint"}
)
_DONE_AGAIN |= {"set", "show"}
_ROLLBACK_LIMIT = 2.0
_NOT_IN_TRANSACTION = ("25001", "2D000")  # active_sql_transaction, invalid_transaction_termination
_QUERIES = frozenset({"select", "table", "values"})


class StepUnderWay(msgspec.Struct):
    """What is known of a step while it is under way. It goes with the step, so the next one begins with nothing of it.

    `started` is of the monotonic clock. `transaction` is the number of the one in which the try has begun. `partly`: an
    autocommit block was entered. `kept`: a statement was committed by that, or may have left a part of its work behind.
    `earlier` is what an earlier try of the step has done.
    """

    place: Step
    started: float
    earlier: EarlierTry = msgspec.field(default_factory=EarlierTry)
    transaction: str | None = None
    partly: bool = False
    kept: bool = False

    @property
    def leaves_a_part(self) -> bool:
        """Whether a part of it may stay though it has failed: of this try, or of an earlier one.

        False also where an autocommit block was entered and had nothing to commit.
        """
        return self.partly and (self.kept or bool(self.earlier))


_Execute = Callable[[str], None]
_Way = Callable[[StepUnderWay, Any, str, _Execute], None]


def transaction_controlled(what: str) -> NotForRevisionsError:
    """A revision begins, ends or rolls back a transaction by itself, with `what`."""
    return NotForRevisionsError(f"it runs {what} by itself: leave transactions to Alembic")


class Statements:
    """Follows the statements of one Alembic context."""

    def __init__(self, connection: asyncpg.Connection, schema: str, attempts: Attempts) -> None:
        self._connection = connection
        self._schema = schema
        self._attempts = attempts
        self._command = ""
        self._step: StepUnderWay | None = None
        self._in_block = False
        self._switching = False
        self._uncommitted: list[tuple[str, int]] = []
        self._savepoints: dict[str, int] = {}
        self._unanswered: str | None = None

    @property
    def in_revision(self) -> bool:
        """Whether a revision's own function runs."""
        return self._step is not None

    def watch(self, context: MigrationContext, *, command: str, after_block: Callable[[], None]) -> None:
        """See all that runs over the context's connection; `after_block` is called when an autocommit block ends.

        `command` is what the progress says was run.
        """
        self._command = command
        connection = context.connection
        assert connection is not None
        event.listen(connection.engine, "do_execute", self._execute)
        event.listen(connection.engine, "do_executemany", self._execute_many)
        event.listen(connection, "commit", functools.partial(self._refuse_ending, "COMMIT"))
        event.listen(connection, "rollback", functools.partial(self._refuse_ending, "ROLLBACK"))
        enter_block: Callable[[], Any] = context.autocommit_block

        @functools.wraps(enter_block)
        @contextmanager
        def watched() -> Iterator[None]:
            if self._step is not None:  # their transaction is about to be committed
                stays = [(sql, count) for sql, count in self._uncommitted if not all(map(_is_done_again, read(sql)))]
                if stays:
                    await_only(self._write_progress(self._step, stays))
                    self._step.kept = True
                self._uncommitted = []
                self._step.partly = True
            self._switching = True
            try:
                with enter_block():
                    self._in_block, self._switching = True, False
                    try:
                        yield
                    finally:
                        self._in_block, self._switching = False, True
            finally:
                self._switching = False
            after_block()

        context.autocommit_block = watched  # type: ignore[method-assign]

    @contextmanager
    def of(self, step: StepUnderWay) -> Iterator[None]:
        """What runs in here are the statements of the revision's own function."""
        self._step = step
        self._uncommitted = []
        self._savepoints = {}
        self._unanswered = None
        step.earlier.rewind()
        try:
            yield
        except ResourceClosedError as error:  # SQLAlchemy's, of a statement without rows
            if self._unanswered is None:
                raise
            raise PartlyDoneError(
                revision=step.place.revision,
                direction=step.place.direction,
                reason=f"it asks for what this statement returned to the try before: {shortened(self._unanswered)}",
            ) from error
        finally:
            self._step = None

    def _refuse_ending(self, what: str, _connection: Connection) -> None:
        if self._step is not None and not self._in_block and not self._switching:
            raise transaction_controlled(what)

    def _execute(self, cursor: Any, sql: str, parameters: Any, context: Any) -> bool:
        return self._run(context, sql, lambda left: context.dialect.do_execute(cursor, left, parameters, context))

    def _execute_many(self, cursor: Any, sql: str, parameters: Any, context: Any) -> bool:
        return self._run(context, sql, lambda left: context.dialect.do_executemany(cursor, left, parameters, context))

    def _run(self, context: Any, sql: str, execute: _Execute) -> bool:
        """Whether the statement was dealt with here; else SQLAlchemy runs it."""
        step = self._step
        if step is None or self._switching:
            return False
        way: _Way | None = self._run_in_transaction
        if self._in_block or step.earlier or may_control_transaction(sql):  # else it need not be read, which takes time
            way = self._find_way(step, sql, self._read_allowed(sql))
        if way is None:
            return False
        way(step, context, sql, execute)
        return True

    def _read_allowed(self, sql: str) -> Sequence[Reading]:
        """Read the statement, and refuse what begins or ends the step's transaction."""
        readings = read(sql)
        for reading in readings:
            if reading.transaction_control and not reading.is_savepoint and reading.kind != "do":
                raise transaction_controlled(reading.kind.upper())
        if not self._in_block and any(reading.is_savepoint for reading in readings):
            self._follow_savepoint(readings[0].kind, sql)
        return readings

    def _find_way(self, step: StepUnderWay, sql: str, readings: Sequence[Reading]) -> _Way | None:
        """How the statement is run; None: as SQLAlchemy does. The order is the rule: the first that fits."""
        # Nothing of it stays, so every try needs it afresh, and no note is made of it.
        if all(map(_is_done_again, readings)):
            return self._run_again if self._in_block else None
        # The catalog says how far it came, also where an earlier try has begun it: a note could say less.
        if self._in_block and is_compared(readings):
            return self._run_compared
        # An earlier try has committed it, and it would be done twice.
        if done := step.earlier.take(sql):
            answers = any(reading.kind in _QUERIES for reading in readings) or "returning" in sql.lower()
            return functools.partial(self._skip, done, answers)
        # It is committed, and noted, with the step or with all that comes before the next autocommit block.
        if not self._in_block:
            return self._run_in_transaction
        # There is no transaction in which it could be noted, or it may end that one.
        if any(reading.needs_autocommit or _may_commit(reading, sql) for reading in readings):
            return self._run_alone
        return self._run_recorded

    def _run_in_transaction(self, _step: StepUnderWay, context: Any, sql: str, execute: _Execute) -> None:
        execute(sql)
        self._uncommitted.append((sql, context.cursor.rowcount))

    def _run_again(self, step: StepUnderWay, _context: Any, sql: str, execute: _Execute) -> None:
        self._attempts.run_statement(step.place, lambda: execute(sql))

    def _skip(
        self, done: Committed, answers: bool, step: StepUnderWay, context: Any, sql: str, _execute: _Execute
    ) -> None:
        """The revision gets the row count of the try that has run it, but no rows."""
        if answers:
            self._unanswered = sql
        _tell_done(step, sql)
        context._rowcount = done.row_count  # SQLAlchemy has no public way

    def _run_recorded(self, step: StepUnderWay, context: Any, sql: str, execute: _Execute) -> None:
        self._attempts.run_statement(step.place, lambda: self._try_recorded(step, context, sql, execute))

    def _try_recorded(self, step: StepUnderWay, context: Any, sql: str, execute: _Execute) -> None:
        """In a transaction with the note that it is done; without one where PostgreSQL says that it cannot be."""
        transaction = self._connection.transaction()
        await_only(transaction.start())
        try:
            execute(sql)
            await_only(self._write_progress(step, [(sql, context.cursor.rowcount)]))
        except BaseException as error:
            await_only(self._roll_back(transaction))
            if getattr(error, "sqlstate", None) not in _NOT_IN_TRANSACTION:
                raise
        else:
            await_only(transaction.commit())
            step.kept = True
            return
        self._run_alone(step, context, sql, execute)

    async def _roll_back(self, transaction: Transaction) -> None:
        """Within 2 s, or the connection is given up: where it is silent, a task that is cancelled would wait on."""
        try:
            async with asyncio.timeout(_ROLLBACK_LIMIT):
                await transaction.rollback()
        except DRIVER_ERRORS:
            self._connection.terminate()

    def _run_alone(self, step: StepUnderWay, context: Any, sql: str, execute: _Execute) -> None:
        """What can be noted only once it has ended: a try that dies in between runs it again.

        VACUUM FULL of one table waits in short tries: all readers queue behind it. What would do a part of its work
        again at each try has no limit: VACUUM FULL of several tables, and what may commit in between.
        """
        step.kept = True
        readings = read(sql)
        touches = [touch for reading in readings for touch in reading.touches]
        blocked = {touch.relation for touch in touches if touch.mode is LockMode.ACCESS_EXCLUSIVE}
        if len(blocked) == 1 and not any(_may_commit(reading, sql) for reading in readings):
            self._attempts.run_statement(step.place, lambda: execute(sql))
        else:
            with self._attempts.no_lock_timeout(step.place):
                execute(sql)
        await_only(self._write_progress(step, [(sql, context.cursor.rowcount)]))

    def _run_compared(self, step: StepUnderWay, _context: Any, sql: str, execute: _Execute) -> None:
        """What PostgreSQL refuses in a transaction: a note says that it has begun, the catalog how far it came."""
        begun, revision = step.earlier.has_begun(sql), step.place.revision
        left = await_only(what_is_left(self._connection, self._schema, revision, sql, begun=begun))
        if left is None:
            _tell_done(step, sql)
            return
        if not begun:
            await_only(self._write_progress(step, [(sql, -1)], finished=False))
        kept_before, step.kept = step.kept, True
        with self._attempts.no_lock_timeout(step.place):  # cut short it would leave a part of its work behind
            try:
                execute(left)
            except Exception:
                if not (begun or self._connection.is_closed()) and await_only(
                    is_untouched(self._connection, self._schema, sql)
                ):
                    await_only(forget_begun(self._connection, self._schema, revision, sql))
                    step.kept = kept_before
                raise

    def _follow_savepoint(self, kind: str, sql: str) -> None:
        """What is rolled back to a savepoint is not committed with the rest."""
        name = [token.text for token in tokens(sql) if not token.is_symbol(";")][-1]
        if kind == "savepoint":
            self._savepoints[name] = len(self._uncommitted)
        elif kind == "rollback to":
            del self._uncommitted[self._savepoints.get(name, 0) :]

    async def _write_progress(
        self, step: StepUnderWay, statements: list[tuple[str, int]], *, finished: bool = True
    ) -> None:
        await write_progress(
            self._connection,
            self._schema,
            revision=step.place.revision,
            downgrade=step.place.direction == "downgrade",
            command=self._command,
            statements=statements,
            finished=finished,
        )


def _tell_done(step: StepUnderWay, sql: str) -> None:
    log.warning(
        "revision %s: skipped a statement that an earlier try has finished: %s", step.place.revision, shortened(sql)
    )


def _is_done_again(reading: Reading) -> bool:
    """What a later try runs again: it sets up the session, or reads, and changes nothing that stays."""
    reads = reading.kind in _QUERIES and reading.writes_rows is False and not reading.changes
    return reading.kind in _DONE_AGAIN or reads


def _may_commit(reading: Reading, sql: str) -> bool:
    """Whether it may have committed a part of its work when it fails (PostgreSQL manual, "Transaction Management")."""
    return reading.kind == "call" or (reading.kind == "do" and "commit" in sql.lower())
