"""A downgrade tried out on the live database and taken back, to see what it would do.

Its statements run as they were rendered; Python a second time only where they could not be. Nothing in here may
commit: an autocommit block would end the transaction, and what was tried would stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError

from gasket.migrator.archive.inventory import (
    Inventory,
    Losses,
    Marks,
    changed_rows,
    emptied,
    find_losses,
    locked_relations,
    read_marks,
    read_relations,
)
from gasket.migrator.errors import NotArchivedError
from gasket.migrator.sql.render import Rendering
from gasket.migrator.sql.sqltext import squeeze

_SAVEPOINT = "gasket_trial"
_ACTIVE_SQL_TRANSACTION = "25001"
_GAP = r"(?:\s|--[^\n]*\n|/\*.*?\*/)+"
# Each is the only form that PostgreSQL has for it.
_INDEX_CONCURRENTLY = re.compile(rf"\bINDEX{_GAP}CONCURRENTLY\b", re.IGNORECASE | re.DOTALL)
_DETACH_CONCURRENTLY = re.compile(rf"(\bDETACH{_GAP}PARTITION\b.*?){_GAP}CONCURRENTLY\b", re.IGNORECASE | re.DOTALL)
# These over squeezed SQL. DROP INDEX CONCURRENTLY knows no CASCADE, so none of the first takes data away.
_ONLY_INDEXES = re.compile(r"(?:(?:CREATE (?:UNIQUE )?|DROP )INDEX CONCURRENTLY|REINDEX)\b", re.IGNORECASE)
_NOT_IN_TRANSACTION = re.compile(r"(?:VACUUM|REINDEX)\b", re.IGNORECASE)
_TRANSACTION_CONTROL = re.compile(
    r"(?:BEGIN|START|COMMIT|END|ABORT|PREPARE TRANSACTION|ROLLBACK(?! (?:WORK |TRANSACTION )?TO\b))\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Tried:
    """What a step did when it was tried out. `before` are the relations that it had to do with, as they were.

    `in_parts`: the real one is committed in parts, by autocommit blocks. `locked` and `written` are oids, the latter of
    relations whose rows are written anew, or gone.
    """

    in_parts: bool
    losses: Losses
    before: Inventory
    locked: frozenset[int]
    written: frozenset[int]


def connection_of(context: MigrationContext) -> Connection:
    """The connection of a context that is not offline."""
    assert context.connection is not None
    return context.connection


def touches_only_indexes(rendering: Rendering) -> bool:
    """Whether it only builds and drops indexes concurrently. It then loses nothing, and need not be tried out.

    Tried out, it would hold writers off for as long as the index takes.
    """
    return rendering.reason is None and all(
        statement.autocommit and _ONLY_INDEXES.match(squeeze(statement.sql)) for statement in rendering.statements
    )


@contextmanager
def taken_back(connection: Connection) -> Iterator[None]:
    """A savepoint that is rolled back in every case; the locks taken in it are free again afterwards.

    And released: SQLAlchemy's own leaves a subtransaction open, and the rows that the real step then writes would not
    bear the number of its transaction, by which they are told from rows that somebody else changed.
    """
    connection.exec_driver_sql(f"SAVEPOINT {_SAVEPOINT}")
    transaction = connection.get_transaction()
    try:
        yield
    finally:
        if transaction is not None and transaction.is_active:
            connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
            connection.exec_driver_sql(f"RELEASE SAVEPOINT {_SAVEPOINT}")
        else:  # somebody ended the transaction, and SQLAlchemy takes it for ended; the server must too
            connection.connection.rollback()


def try_out(
    context: MigrationContext, schema: str, steps: Sequence[tuple[str, Rendering, Callable[[], None]]]
) -> list[Tried]:
    """Try steps out one after the other, and take them back; a step is a revision, its downgrade as SQL and as Python.

    Raises:
        NotArchivedError: one commits by itself.
        sqlalchemy.exc.DBAPIError: one fails, as the real one would, or a lock was not free in time.
    """
    connection = connection_of(context)
    seen: list[tuple[bool, Marks, Inventory, frozenset[int], frozenset[int]]] = []
    with taken_back(connection):
        marks = read_marks(connection)
        for revision, rendering, run_downgrade in steps:
            in_parts = _try_downgrade(context, revision, rendering, run_downgrade)
            before, marks = marks, read_marks(connection)
            locked = locked_relations(connection)
            relations = read_relations(connection, schema, locked | changed_rows(before, marks))
            after = Inventory(relations, marks)
            seen.append((in_parts, before, after, locked, emptied(connection, before, after)))
    # Until a step has locked a relation, it is as it is now; from then on as the step before has left it.
    touched = frozenset[int]().union(*(locked | after.relations.keys() for _, _, after, locked, _ in seen))
    present = read_relations(connection, schema, touched)
    tried: list[Tried] = []
    left, known = present, frozenset[int]()
    for in_parts, marks_before, after, locked, empty in seen:
        relations = {oid: relation for oid, relation in present.items() if oid not in known and oid in marks_before}
        relations |= {oid: relation for oid, relation in left.items() if oid in known}
        before_it = Inventory(relations, marks_before)
        losses = find_losses(before_it, after, locked=locked, empty=empty)
        written = frozenset(oid for oid, mark in marks_before.items() if after.marks.get(oid) != mark)
        tried.append(Tried(in_parts, losses, before_it, locked, written))
        left, known = after.relations, locked
    return tried


def _try_downgrade(
    context: MigrationContext, revision: str, rendering: Rendering, run_downgrade: Callable[[], None]
) -> bool:
    """Run it inside the savepoint that is open; True if the real one is committed in parts, by autocommit blocks."""
    connection = connection_of(context)
    if rendering.reason is not None:
        with _contained(context, revision) as blocks:
            run_downgrade()
        return bool(blocks)
    for statement in rendering.statements:
        if statement.autocommit:
            _try_alone(connection, statement.sql)
        else:
            connection.exec_driver_sql(statement.sql)
    return any(statement.autocommit for statement in rendering.statements)


def _without_concurrently(sql: str) -> str:
    return _DETACH_CONCURRENTLY.sub(r"\1", _INDEX_CONCURRENTLY.sub("INDEX", sql, count=1), count=1)


def _try_alone(connection: Connection, sql: str) -> None:
    """What cannot run in a transaction at all (VACUUM, REINDEX CONCURRENTLY, ...) takes no data away: left out."""
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(_without_concurrently(sql))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _ACTIVE_SQL_TRANSACTION:
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
        if _TRANSACTION_CONTROL.match(squeeze(sql)):
            refuse()
        if blocks:
            sql = "SELECT" if _NOT_IN_TRANSACTION.match(squeeze(sql)) else _without_concurrently(sql)
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
