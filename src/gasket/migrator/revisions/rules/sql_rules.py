"""The rules for what a revision's SQL does: to older releases that run on the schema, and to those who wait for it.

A table that the revision itself creates has no readers or writers yet, so no rule holds for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from gasket.migrator.revisions.rules.drop_and_add import find_drop_and_add
from gasket.migrator.revisions.rules.rulebook import SQL_RULES
from gasket.migrator.revisions.rules.source import needs_autocommit
from gasket.migrator.sql.lexer import Name, is_same_name, shortened, tokens
from gasket.migrator.sql.locks import LockMode
from gasket.migrator.sql.reader import read
from gasket.migrator.sql.reading import (
    Action,
    AddColumn,
    AddConstraint,
    AddValue,
    AlterColumn,
    Change,
    Create,
    Drop,
    Reading,
    Rename,
    Setting,
    Touch,
    TouchIndex,
    ValidateConstraint,
)
from gasket.migrator.sql.render import Rendering, Statement
from gasket.migrator.sql.widening import widens


def find_problems(
    rendering: Rendering, *, compatible: bool, downgrade: Rendering | None = None
) -> list[tuple[str, str]]:
    """Rule and message of each problem of an `upgrade`; `compatible` is what its revision declares.

    `downgrade` tells the types of what `upgrade` drops.
    """
    steps = _steps(rendering)
    readings = _readings(steps)
    back = _readings(_steps(downgrade)) if downgrade else []
    found = [*_waiting(steps), *_order(steps)]
    found += (("drop-and-add", what) for what in find_drop_and_add(readings, back))
    found += (("session-setting", what) for what in _settings_left(readings))
    if compatible:
        found += _Compatibility(steps).problems()
    if rendering.reason is not None:
        count = len(rendering.statements)
        found.append(
            ("not-readable", f"upgrade() can be read only up to its first {count} statements: it {rendering.reason}")
        )
    return [(rule, f"{_sentence(what)} {SQL_RULES[rule].why} {SQL_RULES[rule].instead}") for rule, what in found]


_Steps = list[tuple[Statement, tuple[Reading, ...]]]
_Found = Iterator[tuple[str, str]]


def _steps(rendering: Rendering) -> _Steps:
    return [(statement, read(statement.sql, was=statement.was)) for statement in rendering.statements]


def _readings(steps: _Steps) -> list[Reading]:
    return [reading for _, of_statement in steps for reading in of_statement]


class _Made(msgspec.Struct):
    """The names of what the revision has created so far, and of what it dropped to create anew."""

    names: list[Name] = msgspec.field(default_factory=list)

    def note(self, change: Change) -> None:
        match change:
            case Create(name=name):
                self.names.append(name)
            case Rename(name=name, to=str(to), part=None) if name in self:
                self.names.append((*name[:-1], to))

    def __contains__(self, name: Name) -> bool:
        return any(is_same_name(name, made) for made in self.names)


class _Compatibility:
    """Whether releases that lack the revision can run on the schema after it."""

    def __init__(self, steps: _Steps) -> None:
        self._changes = [
            (statement, change) for statement, readings in steps for reading in readings for change in reading.changes
        ]
        self._made = _Made()
        # Columns that the revision adds: whether an INSERT without them fails.
        self._not_null: dict[tuple[Name, str], bool] = {}
        self._default: dict[tuple[Name, str], bool] = {}

    def problems(self) -> _Found:
        for number, (statement, change) in enumerate(self._changes):
            if _subject(change) not in self._made:
                yield from self._of(statement, change, number)
            self._made.note(change)
        for (table, column), not_null in self._not_null.items():
            if not_null and not self._default[table, column]:
                yield "requires", f"adds {_dotted(table)}.{column}, NOT NULL and without a default"

    def _of(self, statement: Statement, change: Change, number: int) -> _Found:
        match change:
            case Drop(kind=kind, name=name, part=None) if not self._comes_back(change, number):
                yield "drops", f"drops {kind} {_dotted(name)}"
            case Drop(name=name, part=str(column)) if (name, column) not in self._not_null:
                yield "drops", f"drops column {_dotted(name)}.{column}"
            case Rename(kind=kind, name=name, to=to, part=None):
                yield "renames", f"renames {kind} {_dotted(name)}" if to else f"moves {kind} {_dotted(name)}"
            case Rename(name=name, part=str(part)) if (name, part) not in self._not_null:
                yield "renames", f"renames {part} of {_dotted(name)}"
            case AddColumn(table=table, column=column):
                self._not_null[table, column] = change.not_null
                self._default[table, column] = change.has_default
            case AlterColumn(table=table, column=column) if (table, column) in self._not_null:
                self._follow(change)
            case AlterColumn(action="type"):
                if statement.was is None or not widens(statement.was, change.type):
                    was = f"from {statement.was} " if statement.was else ""
                    yield (
                        "narrows",
                        f"changes the type of {_dotted(change.table)}.{change.column} {was}to {change.type}",
                    )
            case AlterColumn(action="set not null"):
                yield "requires", f"makes {_dotted(change.table)}.{change.column} NOT NULL"
            case AlterColumn(action="drop default"):
                yield "requires", f"drops the default of {_dotted(change.table)}.{change.column}"
            case AddConstraint(table=table, not_null=str(column)) if (table, column) not in self._not_null:
                yield "requires", f"checks that {_dotted(table)}.{column} is not null"

    def _follow(self, change: AlterColumn) -> None:
        state = self._not_null if change.action.endswith("null") else self._default
        if change.action != "type":
            state[change.table, change.column] = change.action.startswith("set")

    def _comes_back(self, drop: Drop, number: int) -> bool:
        """A view or a function is exchanged by dropping it; a table would lose its rows, and maybe columns."""
        later = (change for _, change in self._changes[number + 1 :])
        return drop.kind != "table" and any(
            isinstance(change, Create) and change.kind == drop.kind and is_same_name(change.name, drop.name)
            for change in later
        )


def _order(steps: _Steps) -> _Found:
    """What has to be in revisions of its own."""
    made = _Made()
    not_valid: set[tuple[Name, str | None]] = set()
    alone: _Steps = []
    for statement, readings in steps:
        for change in _changes(readings):
            made.note(change)
            match change:
                case AddConstraint(table=table, name=str(name), valid=False) if table not in made:
                    not_valid.add((table, name))
                case ValidateConstraint(table=table, name=name) if (table, name) in not_valid:
                    yield "validates-at-once", f"adds {name} of {_dotted(table)} NOT VALID and validates it"
        if statement.autocommit and any(map(_needs_transaction, readings)):
            yield "autocommit-block", f"runs {_short(statement)} in an autocommit block"
        if any(reading.needs_autocommit for reading in readings):
            alone.append((statement, readings))
            if not statement.autocommit:
                yield "concurrently-in-transaction", f"runs {_short(statement)} in a transaction"
    if alone:
        first, readings = alone[0]
        index = _index(readings)
        others = [
            s for s, r in steps if s is not first and not (s.autocommit and index is not None and _index(r) == index)
        ]
        if others:
            yield "concurrently-beside-others", f"runs {_short(first)} beside {_short(others[0])}"


def _waiting(steps: _Steps) -> _Found:
    """What makes others wait for long, on a table of some size."""
    made = _Made()
    for statement, readings in steps:
        for action in (action for reading in readings for action in reading.actions):
            for touch in action.touches:
                if touch.relation not in made and touch.writes and _is_unbounded(readings, statement):
                    yield "writes-all-rows", f"runs {_short(statement)}"
                if touch.relation not in made and touch.mode.strength >= LockMode.SHARE.strength:
                    yield from _blocks(action, touch)
            if action.change is not None:
                made.note(action.change)


def _is_unbounded(readings: tuple[Reading, ...], statement: Statement) -> bool:
    """Whether it is an UPDATE or DELETE without WHERE, or of all rows whose column is NULL, as a new one is."""
    if [reading.kind for reading in readings] not in (["update"], ["delete"]):
        return False
    words = [token.text for token in tokens(statement.sql) if not token.is_symbol(";")]
    if "where" not in words:
        return True
    condition = words[words.index("where") + 1 :]
    return condition[-2:] == ["is", "null"] and not {"and", "or"} & set(condition)


def _blocks(action: Action, touch: Touch) -> _Found:
    """Work on all rows of a table while writers wait."""
    change, table = action.change, _dotted(touch.relation)
    if touch.index is not None:
        by_constraint = isinstance(change, AddConstraint | AddColumn)
        yield (
            "blocking-index",
            f"adds a constraint to {table} that builds an index" if by_constraint else (f"builds an index on {table}"),
        )
    if touch.rewrites is not False:
        yield from _rewrites(change, table, known=touch.rewrites is True)
    elif touch.scans is not False and touch.index is None and touch.writes is False:
        yield from _scans(change, table)


def _rewrites(change: Change | None, table: str, *, known: bool) -> _Found:
    match change:
        case AddColumn(varies=False):  # of a type that may be a domain: most are not
            return
        case AddColumn(column=column):
            yield "rewrites-table", f"adds {table}.{column} with a value that may differ from row to row"
        case AlterColumn(column=column) if known:
            yield "rewrites-table", f"changes the type of {table}.{column}"
        case AlterColumn(column=column):
            yield "rewrites-table", f"changes the type of {table}.{column}, and does not say from which"
        case _:
            yield "rewrites-table", f"writes {table} anew" if known else f"writes {table} anew, unless it is so already"


def _scans(change: Change | None, table: str) -> _Found:
    match change:
        case AddColumn(not_null=True, has_default=False):  # it fails on the first row
            return
        case AlterColumn(action="type"):  # only a constraint on the column is checked again
            return
        case AlterColumn(column=column):
            yield "blocking-constraint", f"makes {table}.{column} NOT NULL and checks all rows for it"
        case AddConstraint() | AddColumn():
            yield "blocking-constraint", f"adds a constraint to {table} and checks all rows for it"
        case _:
            yield "blocking-constraint", f"checks all rows of {table}"


def _subject(change: Change) -> Name:
    match change:
        case Create(name=name) | Drop(name=name) | Rename(name=name) | AddValue(type=name):
            return name
        case TouchIndex(table=table):
            return table or ()
        case _:
            return change.table


def _settings_left(readings: Iterable[Reading]) -> Iterator[str]:
    """What the session has after these statements and did not have before: "leaves role set"."""
    left = dict[str, Setting]()
    for setting in (reading.setting for reading in readings if reading.setting):
        if setting.name == "all":
            left.clear()
            yield "resets all settings of the session"
        elif setting.resets:
            left.pop(setting.name, None)
        elif not setting.local:
            left[setting.name] = setting
    yield from (f"leaves {name} set for the session" for name in left)


def _changes(readings: tuple[Reading, ...]) -> Iterator[Change]:
    return (change for reading in readings for change in reading.changes)


def _needs_transaction(reading: Reading) -> bool:
    """Whether it changes something, may do so in a transaction, and is not about an index that is built alone."""
    about_index = any(isinstance(change, TouchIndex) for change in reading.changes)
    changes = bool(reading.changes or reading.touches)
    return changes and not about_index and not needs_autocommit(reading)


def _index(readings: tuple[Reading, ...]) -> Name | None:
    """The one index that a statement is about."""
    match list(_changes(readings)):
        case [TouchIndex(index=index)]:
            return index
    return None


def _dotted(name: Name) -> str:
    return ".".join(name)


def _short(statement: Statement) -> str:
    return shortened(statement.sql, 60)


def _sentence(text: str) -> str:
    return f"It {text}." if not text.startswith("upgrade()") else f"{text}."
