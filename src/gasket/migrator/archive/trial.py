"""A downgrade tried out on the live database and taken back, to see what it would do.

Its statements run as they were rendered; Python a second time only where they could not be. Nothing in here may
commit: an autocommit block would end the transaction, and what was tried would stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, NoReturn

import msgspec
from alembic.runtime.migration import MigrationContext
from asyncpg import ActiveSQLTransactionError
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError

from gasket.migrator.archive.bystanders import read_bystanders, taken_along
from gasket.migrator.archive.faults import sqlstate
from gasket.migrator.archive.inventory import (
    After,
    Held,
    Inventory,
    Loss,
    Mark,
    Relation,
    find_changes,
    find_losses,
    look_after_step,
    read_inventory,
    read_marks,
)
from gasket.migrator.archive.savepoints import savepoint
from gasket.migrator.errors import NotArchivedError
from gasket.migrator.sql.reader import read, without_concurrently
from gasket.migrator.sql.reading import Reading, TouchIndex
from gasket.migrator.sql.render import Rendering
from gasket.postgres.driver import Batch

_SAVEPOINT = "gasket_trial"
# What the text of these does not tell is about locks, scans and rewrites; without CASCADE they drop nothing else.
_DROPS_WHAT_IT_NAMES = frozenset({"alter table", "create table", "drop table"})


class TrialStep(msgspec.Struct, frozen=True):
    """A downgrade to be tried out. `run_downgrade` is called only where the rendering gives a reason.

    `description` is the first line of the file's docstring, for people.
    """

    revision: str
    rendering: Rendering
    run_downgrade: Callable[[], None]
    description: str = ""

    @property
    def touches_only_indexes(self) -> bool:
        """Whether it only builds and drops indexes concurrently. It then loses nothing, and need not be tried out.

        Tried out, it would hold writers off for as long as the index takes.
        """
        return self.rendering.reason is None and all(
            statement.autocommit and all(map(_touches_an_index, read(statement.sql)))
            for statement in self.rendering.statements
        )


class Tried(msgspec.Struct, frozen=True):
    """What a step did when it was tried out. `before` are the relations that it had to do with, as they were.

    `in_parts`: the real one is committed in parts, by autocommit blocks. `losses` can be copied, `not_copied` cannot:
    in words, each with its relation, if it is of one. `held` is what it and the steps tried before it have locked,
    `written` are oids of relations whose rows are written anew, or gone.
    """

    in_parts: bool
    losses: tuple[Loss, ...]
    not_copied: tuple[tuple[Relation | None, str], ...]
    before: Inventory
    held: Held
    written: frozenset[int]

    @property
    def refusal(self) -> str | None:
        """Why what the step takes away cannot be archived; None where it can."""
        if not (self.losses and self.in_parts):
            return None
        return (
            f"it takes data of {', '.join(str(loss.relation) for loss in self.losses)} away and has an "
            "autocommit block, which commits the copy and lets writers in before the rest is done"
        )


def connection_of(context: MigrationContext) -> Connection:
    """The connection of a context that is not offline."""
    assert context.connection is not None
    return context.connection


@contextmanager
def _taken_back(connection: Connection) -> Iterator[None]:
    """A savepoint that is rolled back in every case; the locks taken in it are free again afterwards.

    And released, as by `savepoint`, for the same reason.
    """
    connection.exec_driver_sql(f"SAVEPOINT {_SAVEPOINT}")
    transaction = connection.get_transaction()
    try:
        yield
    finally:
        if transaction is not None and transaction.is_active:
            connection.exec_driver_sql(Batch(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}; RELEASE SAVEPOINT {_SAVEPOINT}"))
        else:  # the revision ended the transaction, and SQLAlchemy takes it for ended; the server must too
            connection.connection.rollback()


class Known(msgspec.Struct):
    """What the steps of one run need not find out again; after a step that failed nothing is known.

    `counted` are oids of relations of which this session may have changed rows, for the server goes on counting those
    for a while: of thousands of relations a step touches a few, and only a run's first step looks at all.
    `archive_is_made`: this role may write to its manifest. `values_wait`: some archive keeps values of rows that stay.
    """

    counted: frozenset[int] | None = None
    archive_is_made: bool = False
    values_wait: bool | None = None


def try_out(context: MigrationContext, schema: str, steps: Sequence[TrialStep], known: Known) -> list[Tried]:
    """Try steps out one after the other, and take them back. `known` is that of the run.

    Raises:
        NotArchivedError: one commits by itself.
        sqlalchemy.exc.DBAPIError: one fails, as the real one would, or a lock was not free in time.
    """
    connection = connection_of(context)
    seen: list[tuple[bool, After]] = []
    watched = any(_may_cascade(step.rendering) for step in steps)
    bystanders = [read_bystanders(connection) if watched else ()]
    readings = [reading for step in steps for reading in _readings(step.rendering)]
    named = {touch.relation[-1] for reading in readings for touch in reading.touches}
    with _taken_back(connection):
        # What is known of what was there. The rest is looked at when the steps are taken back.
        start = marks = read_marks(connection, known.counted, named)
        for step in steps:
            in_parts = _try_downgrade(context, step)
            after = look_after_step(connection, schema, marks)
            seen.append((in_parts, after))
            bystanders.append(read_bystanders(connection) if watched else ())
            marks = _marks_after(marks, after.held)
    # Until a step has locked a relation, it is as it is now; from then on as the step before has left it.
    held_by_any = frozenset[int]().union(*(after.held.oids for _, after in seen))
    known.counted = held_by_any.union(oid for oid, mark in start.items() if any(mark[1:]))
    relations, marks = read_inventory(connection, schema, held_by_any)
    marks = {oid: Mark(mark.file, 0, 0, 0) for oid, mark in marks.items()} | dict(start)
    tried: list[Tried] = []
    for step, (in_parts, after), (bystanders_before, bystanders_after) in zip(
        steps, seen, pairwise(bystanders), strict=True
    ):
        before, held = Inventory(relations, marks), after.held
        losses = find_losses(before, after)
        not_copied: list[tuple[Relation | None, str]] = [*find_changes(before, after, losses)]
        sql = "\n".join(statement.sql for statement in step.rendering.statements)
        if along := taken_along(bystanders_before, bystanders_after, after, sql):
            not_copied.append((None, along))
        written = frozenset(oid for oid in held.oids & marks.keys() if held.marks.get(oid) != marks[oid])
        tried.append(Tried(in_parts, losses, tuple(not_copied), before, held, written))
        unlocked = {oid: relation for oid, relation in relations.items() if oid not in held.exclusive}
        relations = unlocked | dict(after.relations)
        marks = _marks_after(marks, held)
    return tried


def _marks_after(before: Mapping[int, Mark], held: Held) -> dict[int, Mark]:
    """The marks after a step that holds `held`."""
    return {oid: mark for oid, mark in before.items() if oid not in held.oids} | dict(held.marks)


def _readings(rendering: Rendering) -> Iterator[Reading]:
    for statement in rendering.statements:
        yield from read(statement.sql)


def _may_cascade(rendering: Rendering) -> bool:
    """Whether something may go that no statement names: reading the whole catalog for it takes milliseconds."""
    return (
        rendering.reason is not None
        or any("cascade" in statement.sql.lower() for statement in rendering.statements)
        or any(reading.not_told and reading.kind not in _DROPS_WHAT_IT_NAMES for reading in _readings(rendering))
    )


def _try_downgrade(context: MigrationContext, step: TrialStep) -> bool:
    """Run it inside the savepoint that is open; True if the real one is committed in parts, by autocommit blocks."""
    connection = connection_of(context)
    if step.rendering.reason is not None:
        with _contained(context, step.revision) as blocks:
            step.run_downgrade()
        return bool(blocks)
    for statement in step.rendering.statements:
        if statement.autocommit:
            _try_alone(connection, statement.sql)
        else:
            connection.exec_driver_sql(statement.sql)
    return any(statement.autocommit for statement in step.rendering.statements)


def _touches_an_index(reading: Reading) -> bool:
    """CREATE, DROP or REINDEX of an index, CONCURRENTLY: for those PostgreSQL knows no CASCADE."""
    return reading.kind == "reindex" or any(
        isinstance(change, TouchIndex) and change.concurrently for change in reading.changes
    )


def _takes_no_data(reading: Reading) -> bool:
    """VACUUM and REINDEX, which PostgreSQL refuses in a transaction."""
    return reading.kind in ("vacuum", "reindex")


def _try_alone(connection: Connection, sql: str) -> None:
    """What cannot run in a transaction at all (VACUUM, REINDEX CONCURRENTLY, ...) takes no data away: left out."""
    try:
        with savepoint(connection):
            connection.exec_driver_sql(without_concurrently(sql))
    except DBAPIError as error:
        if sqlstate(error) != ActiveSQLTransactionError.sqlstate:
            raise


@contextmanager
def _contained(context: MigrationContext, revision: str) -> Iterator[list[str]]:
    """Keep a downgrade() of Python's inside the savepoint; the list has one item for each autocommit block entered."""
    connection, enter_block = connection_of(context), context.autocommit_block
    blocks: list[str] = []

    def no_block() -> nullcontext[None]:
        blocks.append(revision)
        return nullcontext()

    def refuse(*_event: object) -> NoReturn:
        raise NotArchivedError(
            revision=revision,
            reason="its downgrade() commits or rolls back by itself",
            mend="Leave transactions to Alembic.",
        )

    def rewrite(
        _connection: object, _cursor: object, sql: str, parameters: Any, _context: object, _many: bool
    ) -> tuple[str, Any]:
        readings = read(sql)
        if any(reading.transaction_control and not reading.is_savepoint for reading in readings):
            refuse()
        if blocks:
            sql = "SELECT" if any(map(_takes_no_data, readings)) else without_concurrently(sql)
        return sql, parameters

    context.autocommit_block = no_block  # type: ignore[method-assign,assignment]
    event.listen(connection, "before_cursor_execute", rewrite, retval=True)
    event.listen(connection, "commit", refuse)
    event.listen(connection, "rollback", refuse)
    try:
        yield blocks
    finally:
        event.remove(connection, "before_cursor_execute", rewrite)
        event.remove(connection, "commit", refuse)
        event.remove(connection, "rollback", refuse)
        context.autocommit_block = enter_block  # type: ignore[method-assign]
