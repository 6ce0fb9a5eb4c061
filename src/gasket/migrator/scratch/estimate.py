"""What revisions do to tables as far as their text tells, for statements that cannot be watched. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gasket.migrator.scratch.effects import Effects, IndexBuild, Statement
from gasket.migrator.scratch.requirements import ANY_TABLE, Requirement, tables_written
from gasket.migrator.sql.lexer import Name
from gasket.migrator.sql.reader import read
from gasket.migrator.sql.reading import (
    AddColumn,
    AddConstraint,
    AlterColumn,
    Reading,
    Touch,
    TouchIndex,
    ValidateConstraint,
    names_made,
    touched_tables,
)
from gasket.migrator.sql.render import Statement as RenderedStatement
from gasket.postgres.quoting import quote_identifier


def estimate(statements: Iterable[RenderedStatement], schema: str, part_of: Mapping[str, str]) -> Effects:
    """The effects of one revision, and in words what the text of its statements does not tell."""
    effects = Effects()
    made: set[str] = set()
    for number, statement in enumerate(statements, start=1):
        effects.statements.append(Statement(statement.sql, statement.autocommit))
        readings = read(statement.sql, was=statement.was)
        for table, touch in touched_tables(readings, schema, part_of):
            if table not in made:
                _add(effects, table, touch)
                effects.unknown += [f"Statement {number} may {what} {table}." for what in _possible(touch)]
        made.update(names_made(readings, schema))
        untold = [phrase for reading in readings for phrase in reading.not_told]
        effects.unknown += [f"Statement {number}: its text does not tell {phrase}." for phrase in untold]
    return effects


def _possible(touch: Touch) -> list[str]:
    if touch.rewrites is None:
        return ["rewrite"]
    return ["read all of"] if touch.scans is None else []


def _add(effects: Effects, table: str, touch: Touch) -> None:
    effects.add_lock(table, touch.mode, estimated=True)
    if touch.rewrites:
        effects.add_rewrite(table)
    elif touch.scans:
        effects.add_scan(table)
    if touch.index is not None:
        effects.index_builds.append(IndexBuild(touch.index, table))


class ToldRequirements:
    """What statements ask of rows.

    It follows the pending statements in their order: a table that one of them makes has no rows yet.
    """

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._made: set[str] = set()
        self._written: set[str] = set()

    def add_to(self, effects: Effects, statement: int, readings: tuple[Reading, ...]) -> None:
        """Statement number `statement` of a revision, counted from 1."""
        for change in (change for reading in readings for change in reading.changes):
            match change:
                case AddColumn(table=table, not_null=True, has_default=False) if self._is_there(table):
                    effects.requirements.append(self._requirement(statement, "no rows", table, None))
                case (
                    AlterColumn(table=table, column=column, action="set not null")
                    | AddConstraint(table=table, not_null=str(column), valid=True)
                ) if self._is_there(table):
                    effects.requirements.append(self._requirement(statement, "not null", table, column))
                case (
                    AlterColumn(table=table, action="type")
                    | AddConstraint(table=table, valid=True)
                    | ValidateConstraint(table=table)
                    | TouchIndex(table=tuple(table), action="create unique")
                ) if self._is_there(table):
                    effects.unknown.append(
                        f"Statement {statement}: whether it fails on rows of {'.'.join(table)} is not known."
                    )
        self._made.update(names_made(readings, self._schema))
        self._written.update(tables_written(readings, self._schema))

    def _is_there(self, table: Name) -> bool:
        return table[-1] not in self._made

    def _requirement(self, statement: int, kind: str, table: Name, column: str | None) -> Requirement:
        written = {".".join(table), table[-1], ANY_TABLE} & self._written
        return Requirement(
            statement, kind, ".".join(map(quote_identifier, table)), (column,), after_writes=bool(written)
        )
