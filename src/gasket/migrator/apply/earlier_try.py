"""What an earlier try of a step has committed, and whether that is still there.

A step with an autocommit block is committed in parts. Each part is written down in its own transaction, so a later try
knows what it need not do again, an UPDATE included. Where the catalog says otherwise, it was changed since.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

import asyncpg

from gasket.migrator.errors import PartlyDoneError
from gasket.migrator.ledger.step_progress import Committed, forget_progress, read_progress
from gasket.migrator.sql.lexer import Name
from gasket.migrator.sql.reader import read
from gasket.migrator.sql.reading import (
    AddColumn,
    AddConstraint,
    Change,
    Create,
    Drop,
    Reading,
    Rename,
    TouchIndex,
)
from gasket.migrator.sql.render import Rendering, Statement
from gasket.postgres.quoting import quote_identifier

log = logging.getLogger("gasket.migrator")

_RELATIONS = frozenset({"table", "foreign table", "view", "materialized view", "sequence"})
_TYPES = frozenset({"type", "domain"})
_PRESENT = """
SELECT CASE $1
    WHEN 'relation' THEN to_regclass($2) IS NOT NULL
    WHEN 'type' THEN to_regtype($2) IS NOT NULL
    WHEN 'column' THEN EXISTS (SELECT FROM pg_catalog.pg_attribute
        WHERE attrelid = to_regclass($2) AND attname = $3 AND NOT attisdropped)
    ELSE EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conrelid = to_regclass($2) AND conname = $3)
END
"""

_Fact = tuple[str, Name, str]
"""What kind of thing, its qualified name, and a part of it or nothing."""


class EarlierTry:
    """The statements of one step that are done already. A statement is known by its text, and by how often it came."""

    def __init__(self, committed: Sequence[Committed] = ()) -> None:
        self.committed = committed
        self._left: dict[str, deque[Committed]] = {}
        self.rewind()

    def __bool__(self) -> bool:
        return bool(self.committed)

    def rewind(self) -> None:
        """The step's function runs from its beginning."""
        self._left = defaultdict(deque)
        for one in self.committed:
            if one.finished:
                self._left[_plain(one.statement)].append(one)

    def take(self, sql: str) -> Committed | None:
        """The statement as it was committed, or None: it is still to be run. The next call asks for the one after."""
        left = self._left.get(_plain(sql))
        return left.popleft() if left else None

    def has_begun(self, sql: str) -> bool:
        """Whether the statement was begun outside of a transaction."""
        return any(not one.finished and _plain(one.statement) == _plain(sql) for one in self.committed)

    def rest_of(self, rendering: Rendering) -> Rendering:
        """The statements that are still to be run, to try them out."""
        if not self or rendering.reason is not None:
            return rendering
        self.rewind()
        rest: list[Statement] = []
        for statement in rendering.statements:
            if self.take(statement.sql) is None and not self.has_begun(statement.sql):
                rest.append(statement)
        self.rewind()
        return Rendering(tuple(rest), rendering.reason)


async def find_earlier_try(connection: asyncpg.Connection, schema: str, revision: str, direction: str) -> EarlierTry:
    """What an earlier try has committed of the step; nothing where all of it was undone since. No transaction is open.

    Raises:
        PartlyDoneError: a part of it was undone, or cannot be gone on from.
    """
    committed = await read_progress(connection, schema, revision, downgrade=direction == "downgrade")
    if not committed:
        return EarlierTry()
    done = [reading for one in committed if one.finished for reading in read(one.statement)]
    temporary = [
        change.name[-1]
        for reading in done
        for change in reading.changes
        if isinstance(change, Create) and change.temporary
    ]
    facts = _expected(done, schema)
    wrong = [fact for fact, there in facts.items() if await _is_there(connection, fact) != there]
    if wrong and len(wrong) == len(facts):
        log.warning("revision %s: what an earlier try has done was undone since then; it begins anew", revision)
        await forget_progress(connection, schema, revision)
        return EarlierTry()
    if wrong:
        kind, name, part = wrong[0]
        what = f"{kind} {'.'.join((*name[1:], part) if part else name[1:])}"
        raise PartlyDoneError(
            revision=revision, direction=direction, reason=f"{what} is {'gone' if facts[wrong[0]] else 'there again'}"
        )
    if temporary:
        raise PartlyDoneError(
            revision=revision,
            direction=direction,
            reason=f"the rows of its temporary table {temporary[0]} are gone with the session",
        )
    statements = "1 statement" if len(committed) == 1 else f"{len(committed)} statements"
    log.warning("revision %s: going on after %s that an earlier try has begun", revision, statements)
    return EarlierTry(committed)


def _plain(sql: str) -> str:
    return " ".join(sql.split())


def _expected(readings: Iterable[Reading], schema: str) -> dict[_Fact, bool]:
    """What is to be there, and what not, after these statements, as far as their texts tell for certain."""
    facts: dict[_Fact, bool] = {}
    of_table: dict[_Fact, Name] = {}

    def full(name: Name) -> Name:
        return name[-2:] if len(name) > 1 else (schema, *name)

    def forget(name: Name, *kinds: str) -> None:
        for fact in [fact for fact in facts if fact[0] in kinds and name in (fact[1], of_table.get(fact))]:
            del facts[fact]

    def apply(change: Change) -> None:
        match change:
            case Create(kind=kind, name=name, temporary=False) if kind in _RELATIONS | _TYPES:
                facts["relation" if kind in _RELATIONS else "type", full(name), ""] = True
            case Drop(kind=kind, name=name, part=str(part)):
                forget(full(name), "constraint", "relation")
                facts["column", full(name), part] = False
            case Drop(kind=kind, name=name) if kind in _RELATIONS | _TYPES:
                forget(full(name), "column", "constraint", "relation")
                facts["relation" if kind in _RELATIONS else "type", full(name), ""] = False
            case Rename(kind=kind, name=name, to=to, part=None):
                forget(full(name), "column", "constraint", "relation", "type")
                if to and kind in _RELATIONS:
                    facts["relation", full(name), ""] = False
                    facts["relation", (*full(name)[:-1], to), ""] = True
            case Rename(kind=kind, name=name, to=str(to), part=str(part)) if kind in _RELATIONS:
                facts["column", full(name), part] = False
                facts["column", full(name), to] = True
            case AddColumn(table=table, column=column):
                facts["column", full(table), column] = True
            case AddConstraint(table=table, name=str(name)):
                facts["constraint", full(table), name] = True
            case TouchIndex(action="create" | "create unique", index=(*_, index), table=(*_,) as table):
                fact = ("relation", (*full(tuple(table))[:-1], index), "")
                facts[fact], of_table[fact] = True, full(tuple(table))
            case TouchIndex(action="drop", index=(*_,) as index):
                facts["relation", full(tuple(index)), ""] = False
            case TouchIndex(index=(*_,) as index):
                forget(full(tuple(index)), "relation")

    for reading in readings:
        if reading.not_told and not (reading.kind.startswith("alter table") or reading.writes_rows):
            facts.clear()  # CASCADE, a DO block, a function: it may have undone what came before it
        for action in reading.actions:
            if action.change is None:  # DROP CONSTRAINT, for one
                for touch in action.touches:
                    forget(full(touch.relation), "constraint", "relation")
                continue
            apply(action.change)
    return facts


async def _is_there(connection: asyncpg.Connection, fact: _Fact) -> bool:
    kind, name, part = fact
    quoted = ".".join(map(quote_identifier, name))
    return bool(await connection.fetchval(_PRESENT, kind, quoted, part))
