"""The rule for a rename that is written as a drop and an add, as `--autogenerate` writes it: the values are lost.

The SQL of a drop does not tell the type of what it drops; the `downgrade` that makes it again does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from gasket.migrator.sql.lexer import Name, is_same_name
from gasket.migrator.sql.reading import AddColumn, Create, Drop, Reading
from gasket.migrator.sql.widening import is_same_type

_Columns = dict[str, str]


class _Direction(msgspec.Struct):
    """What `upgrade` or `downgrade` drops and makes: each with the position of the statement, in their order."""

    readings: Sequence[Reading]
    dropped: list[tuple[int, Drop]] = msgspec.field(default_factory=list)
    added: list[tuple[int, AddColumn]] = msgspec.field(default_factory=list)
    created: list[tuple[int, Create]] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        for at, change in ((at, change) for at, reading in enumerate(self.readings) for change in reading.changes):
            match change:
                case Drop(kind="table"):
                    self.dropped.append((at, change))
                case AddColumn():
                    self.added.append((at, change))
                case Create(kind="table", temporary=False):
                    self.created.append((at, change))

    def makes(self, table: Name) -> bool:
        return any(is_same_name(create.name, table) for _, create in self.created)

    def type_of(self, table: Name, column: str) -> str | None:
        """The type with which it adds the column."""
        added = (add for _, add in self.added if is_same_name(add.table, table) and add.column == column)
        return next((add.type for add in added), None)

    def columns_of(self, table: Name) -> _Columns:
        """The columns with which it creates the table; empty where it does not tell."""
        return next((dict(create.columns) for _, create in self.created if is_same_name(create.name, table)), {})

    def fills(self, table: Name, after: int, before: int) -> bool:
        """Whether a statement between these two writes rows of the table, or may do so."""
        return any(
            reading.writes_rows is None
            or any(touch.writes is not False and is_same_name(touch.relation, table) for touch in reading.touches)
            for reading in self.readings[after + 1 : before]
        )


def find_drop_and_add(upgrade: Sequence[Reading], downgrade: Sequence[Reading]) -> Iterator[str]:
    """What `upgrade` drops and makes again under another name: "drops column t.a and adds t.b, ...".

    A copy between the add and the drop keeps the values, so nothing is found then.
    """
    up, down = _Direction(upgrade), _Direction(downgrade)
    for at, drop in up.dropped:
        if drop.part is None:
            yield from _of_table(at, drop.name, up, down)
        elif not up.makes(drop.name) and up.type_of(drop.name, drop.part) is None:
            yield from _of_column(at, drop.name, drop.part, up, down)


def _of_column(dropped_at: int, table: Name, column: str, up: _Direction, down: _Direction) -> Iterator[str]:
    was = down.type_of(table, column)
    for number, (at, add) in enumerate(up.added):
        fits = is_same_name(add.table, table) and (was is None or is_same_type(was, add.type))
        if fits and not up.fills(table, at, dropped_at):
            del up.added[number]  # each column is the new name of one
            of_type = (
                f"both {add.type}" if was else f"{add.type}, and downgrade() does not tell the type of the old one"
            )
            rename = f'op.alter_column("{table[-1]}", "{column}", new_column_name="{add.column}"{_schema(table)})'
            yield f"drops column {'.'.join(table)}.{column} and adds {add.column}, {of_type}; `{rename}` renames it"
            return


def _of_table(dropped_at: int, table: Name, up: _Direction, down: _Direction) -> Iterator[str]:
    was = down.columns_of(table)
    for number, (at, create) in enumerate(up.created):
        renamed = not is_same_name(create.name, table)
        if was and renamed and _are_same(was, dict(create.columns)) and not up.fills(create.name, at, dropped_at):
            del up.created[number]
            rename = f'op.rename_table("{table[-1]}", "{create.name[-1]}"{_schema(table)})'
            made = ".".join(create.name)
            yield f"drops table {'.'.join(table)} and creates {made} with the same columns; `{rename}` renames it"
            return


def _are_same(columns: _Columns, others: _Columns) -> bool:
    return columns.keys() == others.keys() and all(is_same_type(columns[name], others[name]) for name in columns)


def _schema(name: Name) -> str:
    return f', schema="{name[-2]}"' if len(name) > 1 else ""
