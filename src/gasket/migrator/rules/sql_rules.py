"""The rules for what a revision's SQL does: to older releases that run on the schema, and to those who wait for it.

A table that the revision itself creates is nobody's yet: what is done to it harms nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from gasket.migrator.rules.rulebook import SQL_RULES
from gasket.migrator.sql.ddl import (
    AddColumn,
    AddConstraint,
    AlterColumn,
    Change,
    Create,
    Drop,
    Rename,
    TouchIndex,
    ValidateConstraint,
    read_changes,
    runs_concurrently,
)
from gasket.migrator.sql.lexer import Kind, Name, Token
from gasket.migrator.sql.render import Rendering, Statement
from gasket.migrator.sql.widening import rewrites, widens

# Functions of which PostgreSQL knows that they give all rows the same value; and types and words that take parentheses.
_SAME_FOR_ALL = frozenset(
    {"now", "transaction_timestamp", "statement_timestamp", "current_setting", "current_timestamp"}
)
_SAME_FOR_ALL |= {"timezone", "date_trunc", "make_interval", "make_date", "to_timestamp", "lower", "upper", "coalesce"}
_SAME_FOR_ALL |= {
    "nullif",
    "greatest",
    "least",
    "concat",
    "format",
    "md5",
    "cast",
    "array",
    "row",
    "jsonb_build_object",
}
_SAME_FOR_ALL |= {
    "jsonb_build_array",
    "json_build_object",
    "json_build_array",
    "to_jsonb",
    "char",
    "character",
    "varying",
}
_SAME_FOR_ALL |= {"varchar", "numeric", "decimal", "bit", "time", "timestamp", "timestamptz", "interval", "float"}
_SAME_FOR_ALL |= {"localtimestamp", "current_time", "localtime", "precision"}


def find_problems(rendering: Rendering, *, compatible: bool) -> list[tuple[str, str]]:
    """Rule and message of each problem of an `upgrade`; `compatible` is what its revision declares."""
    steps = [(statement, list(read_changes(statement.sql))) for statement in rendering.statements]
    found = [*_waiting(steps), *_order(steps)]
    if compatible:
        found += _Compatibility(steps).problems()
    if rendering.reason is not None:
        count = len(rendering.statements)
        found.append(
            ("not-readable", f"upgrade() can be read only up to its first {count} statements: it {rendering.reason}")
        )
    return [(rule, f"{_sentence(what)} {SQL_RULES[rule].why} {SQL_RULES[rule].instead}") for rule, what in found]


Steps = list[tuple[Statement, list[Change]]]
Found = Iterator[tuple[str, str]]


@dataclass(slots=True)
class _Made:
    """The names of what the revision has created so far, and of what it dropped to create anew."""

    names: list[Name] = field(default_factory=list)

    def note(self, change: Change) -> None:
        match change:
            case Create(name=name):
                self.names.append(name)
            case Rename(name=name, to=str(to), part=None) if name in self:
                self.names.append((*name[:-1], to))

    def __contains__(self, name: Name) -> bool:
        return any(_same(name, made) for made in self.names)


class _Compatibility:
    """Whether releases that lack the revision can run on the schema after it."""

    def __init__(self, steps: Steps) -> None:
        self._changes = [(statement, change) for statement, changes in steps for change in changes]
        self._made = _Made()
        # Columns that the revision adds: whether an INSERT without them fails.
        self._not_null: dict[tuple[Name, str], bool] = {}
        self._default: dict[tuple[Name, str], bool] = {}

    def problems(self) -> Found:
        for number, (statement, change) in enumerate(self._changes):
            if _subject(change) not in self._made:
                yield from self._of(statement, change, number)
            self._made.note(change)
        for (table, column), not_null in self._not_null.items():
            if not_null and not self._default[table, column]:
                yield "requires", f"adds {_dotted(table)}.{column}, NOT NULL and without a default"

    def _of(self, statement: Statement, change: Change, number: int) -> Found:
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
                self._default[table, column] = _has_default(change)
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
            isinstance(change, Create) and change.kind == drop.kind and _same(change.name, drop.name)
            for change in later
        )


def _order(steps: Steps) -> Found:
    """What has to be in revisions of its own."""
    made = _Made()
    not_valid: set[tuple[Name, str | None]] = set()
    for statement, changes in steps:
        for change in changes:
            made.note(change)
            match change:
                case AddConstraint(table=table, name=str(name), valid=False) if table not in made:
                    not_valid.add((table, name))
                case ValidateConstraint(table=table, name=name) if (table, name) in not_valid:
                    yield "validates-at-once", f"adds {name} of {_dotted(table)} NOT VALID and validates it"
        if runs_concurrently(statement.sql) and not statement.autocommit:
            yield "concurrently-in-transaction", f"runs {_short(statement)} in a transaction"
    concurrent = [step for step in steps if runs_concurrently(step[0].sql)]
    if concurrent:
        first, changes = concurrent[0]
        index = _index(changes)
        others = [
            s for s, c in steps if s is not first and not (s.autocommit and index is not None and _index(c) == index)
        ]
        if others:
            yield "concurrently-beside-others", f"runs {_short(first)} beside {_short(others[0])}"


def _waiting(steps: Steps) -> Found:
    """What makes others wait for long, on a table of some size."""
    made = _Made()
    for statement, changes in steps:
        for change in changes:
            if _subject(change) not in made:
                yield from _blocks(statement, change)
            made.note(change)


def _blocks(statement: Statement, change: Change) -> Found:
    match change:
        case TouchIndex(action="create" | "create unique", table=tuple(table)) if not runs_concurrently(statement.sql):
            yield "blocking-index", f"builds an index on {_dotted(table)}"
        case AddConstraint(kind="unique" | "primary" | "exclude", table=table, using_index=False):
            yield "blocking-index", f"adds a constraint to {_dotted(table)} that builds an index"
        case AddConstraint(kind="check" | "foreign" | "not null", table=table, valid=True):
            yield "blocking-constraint", f"adds a constraint to {_dotted(table)} and checks all rows for it"
        case AlterColumn(action="set not null"):
            yield (
                "blocking-constraint",
                f"makes {_dotted(change.table)}.{change.column} NOT NULL and checks all rows for it",
            )
        case AddColumn(table=table, column=column) if change.fills or _varies(change.default):
            yield "rewrites-table", f"adds {_dotted(table)}.{column} with a value that may differ from row to row"
        case AlterColumn(action="type") if statement.was is None or rewrites(statement.was, change.type):
            yield "rewrites-table", f"changes the type of {_dotted(change.table)}.{change.column}"


def _subject(change: Change) -> Name:
    match change:
        case Create(name=name) | Drop(name=name) | Rename(name=name):
            return name
        case TouchIndex(table=table):
            return table or ()
        case _:
            return change.table


def _index(changes: list[Change]) -> Name | None:
    """The one index that a statement is about."""
    match changes:
        case [TouchIndex(index=index)]:
            return index
    return None


def _has_default(column: AddColumn) -> bool:
    return column.fills or (bool(column.default) and column.default[0] != (Kind.WORD, "null"))


def _varies(default: tuple[Token, ...]) -> bool:
    """Whether an expression calls what is not known to be the same for all rows."""
    return any(
        word.kind in (Kind.WORD, Kind.NAME) and after == (Kind.SYMBOL, "(") and word.text not in _SAME_FOR_ALL
        for word, after in pairwise(default)
    )


def _same(name: Name, other: Name) -> bool:
    """Whether two names are of one object; one without a schema is in whichever is searched."""
    return name[-1:] == other[-1:] and (len(name) != len(other) or name == other)


def _dotted(name: Name) -> str:
    return ".".join(name)


def _short(statement: Statement) -> str:
    line = " ".join(statement.sql.split())
    return line if len(line) <= 60 else f"{line[:59]}…"


def _sentence(text: str) -> str:
    return f"It {text}." if not text.startswith("upgrade()") else f"{text}."
