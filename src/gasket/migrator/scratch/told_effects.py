"""What revisions do to tables as far as their text tells, for statements that cannot be watched. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

from gasket.migrator.scratch.effects import Effects, IndexBuild, Statement
from gasket.migrator.scratch.requirements import ANY_TABLE, Requirement, tables_written
from gasket.migrator.sql.lexer import Name
from gasket.migrator.sql.reader import read
from gasket.migrator.sql.reading import (
    AddColumn,
    AddConstraint,
    AlterColumn,
    Change,
    Reading,
    Touch,
    TouchIndex,
    ValidateConstraint,
    names_made,
    touched_tables,
)
from gasket.migrator.sql.render import Rendering
from gasket.migrator.sql.render import Statement as RenderedStatement
from gasket.postgres.quoting import quote_identifier


def estimate(renderings: Mapping[str, Rendering], schema: str, part_of: Mapping[str, str]) -> dict[str, Effects]:
    """The effects of each revision, and in words what the text of its statements does not tell.

    `renderings` are of the pending revisions, in their order. `part_of` is as for `touched_tables`.
    """
    made: set[str] = set()
    written: set[str] = set()
    found = {}
    for revision, rendering in renderings.items():
        effects = found[revision] = Effects()
        statements = [(statement, read(statement.sql, was=statement.was)) for statement in rendering.statements]
        _add_touches(effects, statements, schema, part_of)
        for number, (_statement, readings) in enumerate(statements, start=1):
            for change in (change for reading in readings for change in reading.changes):
                _add_requirement(effects, number, change, made, written)
            made.update(names_made(readings, schema))
            written.update(tables_written(readings, schema))
        if rendering.reason:
            effects.unknown.append(
                f"It {rendering.reason}: what it does after the statements shown cannot be told without running it."
            )
    return found


def _add_touches(
    effects: Effects,
    statements: Iterable[tuple[RenderedStatement, Sequence[Reading]]],
    schema: str,
    part_of: Mapping[str, str],
) -> None:
    made: set[str] = set()
    for number, (statement, readings) in enumerate(statements, start=1):
        effects.statements.append(Statement(statement.sql, statement.autocommit))
        for table, touch in touched_tables(readings, schema, part_of):
            if table not in made:
                add_touch(effects, table, touch)
                effects.unknown += [f"Statement {number} may {what} {table}." for what in _possible(touch)]
        made.update(names_made(readings, schema))
        untold = [phrase for reading in readings for phrase in reading.not_told]
        effects.unknown += [f"Statement {number}: its text does not tell {phrase}." for phrase in untold]


def _possible(touch: Touch) -> list[str]:
    if touch.rewrites is None:
        return ["rewrite"]
    return ["read all of"] if touch.scans is None else []


def add_touch(effects: Effects, table: str, touch: Touch) -> None:
    """What the last statement does to a table, as far as its text tells."""
    effects.add_lock(table, touch.mode, estimated=True)
    if touch.rewrites:
        effects.add_rewrite(table)
    elif touch.scans:
        effects.add_scan(table)
    if touch.index is not None:
        effects.index_builds.append(IndexBuild(touch.index, table))


def _add_requirement(effects: Effects, statement: int, change: Change, made: Set[str], written: Set[str]) -> None:
    """What a change asks of rows: of none where the table is among those that pending statements have `made`."""
    match change:
        case AddColumn(table=table, not_null=True, has_default=False) if table[-1] not in made:
            effects.requirements.append(_requirement(statement, "no rows", table, None, written))
        case (
            AlterColumn(table=table, column=column, action="set not null")
            | AddConstraint(table=table, not_null=str(column), valid=True)
        ) if table[-1] not in made:
            effects.requirements.append(_requirement(statement, "not null", table, column, written))
        case (
            AlterColumn(table=table, action="type")
            | AddConstraint(table=table, valid=True)
            | ValidateConstraint(table=table)
            | TouchIndex(table=tuple(table), action="create unique")
        ) if table[-1] not in made:
            effects.unknown.append(
                f"Statement {statement}: whether it fails on rows of {'.'.join(table)} is not known."
            )


def _requirement(statement: int, kind: str, table: Name, column: str | None, written: Set[str]) -> Requirement:
    after_writes = not written.isdisjoint({".".join(table), table[-1], ANY_TABLE})
    return Requirement(statement, kind, ".".join(map(quote_identifier, table)), (column,), after_writes=after_writes)
