"""What the text of a statement tells about it: the value that `gasket.migrator.sql.reader.read` returns.

What the text does not tell is None, and `not_told` names it in words: a DO block decides at run time which of its
statements run, a function does what its own text says, CASCADE drops what the catalog knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from gasket.migrator.sql.lexer import Name
from gasket.migrator.sql.locks import LockMode


class Create(msgspec.Struct, frozen=True):
    """`kind` is `table`, `view`, `type` and so on. A temporary one ends with the session.

    `columns` are the names and types of a table's columns, () where the text does not tell all of them.
    """

    kind: str
    name: Name
    temporary: bool = False
    columns: tuple[tuple[str, str], ...] = ()


class Drop(msgspec.Struct, frozen=True):
    """An object, or with `part` a column of it."""

    kind: str
    name: Name
    part: str | None = None


class Rename(msgspec.Struct, frozen=True):
    """An object, or with `part` a column, an attribute or a value of it; `to` is None for a move to another schema."""

    kind: str
    name: Name
    to: str | None
    part: str | None = None


class AddColumn(msgspec.Struct, frozen=True):
    """`type` is written on one line. `has_default`: an INSERT without the column gets a value.

    `varies`: the rows that are there get values that differ from row to row. None: not told.
    """

    table: Name
    column: str
    type: str
    not_null: bool
    has_default: bool
    varies: bool | None = False


class AlterColumn(msgspec.Struct, frozen=True):
    """`action` is `type`, `set not null`, `drop not null`, `set default` or `drop default`."""

    table: Name
    column: str
    action: str
    type: str = ""


class AddConstraint(msgspec.Struct, frozen=True):
    """`not_null` is the column of a constraint that says IS NOT NULL and no more."""

    table: Name
    name: str | None
    valid: bool = True
    not_null: str | None = None


class ValidateConstraint(msgspec.Struct, frozen=True):
    """The rows that were there when the constraint was added are checked now."""

    table: Name
    name: str


class AddValue(msgspec.Struct, frozen=True):
    """A value of an enum. PostgreSQL refuses to use it before the transaction that adds it has ended."""

    type: Name


class TouchIndex(msgspec.Struct, frozen=True):
    """CREATE, DROP, REINDEX and ALTER of an index, and COMMENT on it.

    `action` is `create`, `create unique`, `drop`, `reindex`, `alter` or `comment`. `index` is None when the statement
    gives no name, `table` when it does not say on which table the index is.
    """

    action: str
    index: Name | None
    table: Name | None = None
    concurrently: bool = False


_IN_SCHEMA = frozenset({"table", "foreign table", "view", "materialized view", "sequence", "type", "domain"})

Change = Create | Drop | Rename | AddColumn | AlterColumn | AddConstraint | ValidateConstraint | AddValue | TouchIndex


class Touch(msgspec.Struct, frozen=True):
    """A relation that the statement locks, together with its partitions and children.

    ACCESS SHARE locks, those of what is merely read, are left out. `scans` and `rewrites`: the whole table is read, or
    written anew with all its indexes, under the lock; None: the text does not tell. `index` is an index that is built
    over its rows, "" when PostgreSQL chooses the name. `writes`: rows are inserted, updated or deleted.
    """

    relation: Name
    mode: LockMode
    scans: bool | None = False
    rewrites: bool | None = False
    index: str | None = None
    writes: bool | None = False


class Action(msgspec.Struct, frozen=True):
    """One thing that a statement does. An ALTER TABLE has an action for each of its parts.

    `not_told` are phrases for what the text does not tell.
    """

    change: Change | None = None
    touches: tuple[Touch, ...] = ()
    not_told: tuple[str, ...] = ()

    @classmethod
    def locking(cls, relation: Name, mode: LockMode) -> Action:
        """Of which no more is told than its lock."""
        return cls(touches=(Touch(relation, mode),))


class Setting(msgspec.Struct, frozen=True):
    """A setting of the session that the statement changes: `role`, `search_path`, `all`, ...

    `resets`: it goes back to what it was when the session began. `local`: it ends with the transaction.
    """

    name: str
    resets: bool = False
    local: bool = False


class Reading(msgspec.Struct, frozen=True):
    """What one statement does, as far as its text tells.

    `kind` are its first words: `alter table`, `create index`, `insert`, `do`.
    `transaction_control`: it begins, ends, prepares or marks a transaction (BEGIN, COMMIT, SAVEPOINT, ...).
    `needs_autocommit`: PostgreSQL refuses it inside of a transaction.
    `outside_database`: its effect is in the cluster, on the server's disk or on another server, and not (only) in the
    database that it runs in: roles, databases, tablespaces, ALTER SYSTEM, subscriptions. None: not told.
    `writes_rows`: it inserts, updates, deletes or copies rows, or empties a table. None: not told.
    """

    kind: str
    actions: tuple[Action, ...] = ()
    transaction_control: bool = False
    needs_autocommit: bool = False
    outside_database: bool | None = False
    writes_rows: bool | None = False
    setting: Setting | None = None

    @property
    def is_savepoint(self) -> bool:
        """Transaction control that leaves the transaction open: SAVEPOINT, RELEASE, ROLLBACK TO."""
        return self.kind in ("savepoint", "release", "rollback to")

    @property
    def changes(self) -> tuple[Change, ...]:
        """What it changes in the schema."""
        return tuple(action.change for action in self.actions if action.change is not None)

    @property
    def touches(self) -> tuple[Touch, ...]:
        """What it locks."""
        return tuple(touch for action in self.actions for touch in action.touches)

    @property
    def not_told(self) -> tuple[str, ...]:
        """Phrases for what its text does not tell, each once."""
        return tuple(dict.fromkeys(phrase for action in self.actions for phrase in action.not_told))


def names_made(readings: Iterable[Reading], schema: str) -> list[str]:
    """The tables, views, types, domains and sequences that come to be in `schema`, or get a new name there."""
    names = []
    for change in (change for reading in readings for change in reading.changes):
        match change:
            case Create(kind=kind, name=name, temporary=False) if kind in _IN_SCHEMA:
                pass
            case Rename(kind=kind, name=(*place, _), to=str(to), part=None) if kind in _IN_SCHEMA:
                name = (*place, to)
            case _:
                continue
        if name[:-1] in ((), (schema,)):
            names.append(name[-1])
    return names


def touched_tables(
    readings: Iterable[Reading], schema: str, part_of: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Touch]]:
    """What statements lock, by the names of the tables; those of `schema` without it.

    `part_of` says of which table an index or a sequence is a part.
    """
    for touch in (touch for reading in readings for touch in reading.touches):
        parts = touch.relation
        name = ".".join(parts[1:] if len(parts) > 1 and parts[0] == schema else parts)
        yield (part_of or {}).get(name, name), touch


def any_of(answers: Iterable[bool | None]) -> bool | None:
    """True when one is, None when none is and one is not known."""
    found = list(answers)
    return True if True in found else None if None in found else False
