"""What a revision gets for its connection while it is rendered: it notes each statement and answers nothing.

Of SQLAlchemy's names these are not public: `Connection._run_ddl_visitor`, and `_sa_instance_state`, which `inspect`
looks for. `tests/migrator/unit/test_render.py` fails when they change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, NoReturn

from alembic.ddl.base import AlterColumn
from sqlalchemy import Connection, Dialect, Executable
from sqlalchemy.dialects.postgresql import CreateDomainType, CreateEnumType, DropDomainType, DropEnumType
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.functions import FunctionElement

from gasket.migrator.sql.lexer import shortened, statements
from gasket.migrator.sql.literals import Refusal, write_out
from gasket.migrator.sql.reader import may_control_transaction, read

# Options of a statement that change nothing of what it does.
_HARMLESS_OPTIONS = frozenset({"autocommit", "compiled_cache", "logging_token", "no_parameters"})
_DROP_TYPE = re.compile(r"\ADROP (?:TYPE|DOMAIN) ")


class Recorder:
    """The connection. Whatever is not here is refused.

    `statements` are SQL, whether in an autocommit block, and the type that an altered column had, if it is said.
    `reason` is why this list is not all that a run would do.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.statements: list[tuple[str, bool, str | None]] = []
        self.reason: str | None = None
        self.autocommit = False
        self._if_exists = False

    @property  # type: ignore[misc]  # mypy knows `__class__` as an attribute
    def __class__(self) -> type[Connection]:  # type: ignore[override]
        """For `isinstance`, so that SQLAlchemy and revisions take it for what a real run would give them."""
        return Connection

    @property
    def engine(self) -> Recorder:
        return self

    @property
    def name(self) -> str:
        return self.dialect.name

    def execute(
        self,
        statement: object,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        execution_options: Mapping[str, Any] | None = None,
    ) -> _NoResult:
        if not isinstance(statement, Executable):
            self.refuse(f"executes a {type(statement).__name__}, which is no statement")
        self.execution_options(**statement.get_execution_options(), **(execution_options or {}))
        if isinstance(statement, ExecutableDDLElement):
            self._add_ddl(statement)
        else:
            self._add_for_each(statement, [parameters] if isinstance(parameters, Mapping) else parameters or [{}])
        return _NoResult(self)

    def exec_driver_sql(
        self, statement: str, parameters: object = None, execution_options: Mapping[str, Any] | None = None
    ) -> _NoResult:
        self.execution_options(**(execution_options or {}))
        if parameters:
            self.refuse("gives exec_driver_sql parameters")
        self._add(statement)
        return _NoResult(self)

    def execution_options(self, **options: object) -> Recorder:
        if unknown := options.keys() - _HARMLESS_OPTIONS:
            self.refuse(f"sets execution options ({', '.join(sorted(unknown))})")
        return self

    def in_transaction(self) -> bool:
        return True

    def schema_for_object(self, element: Any) -> str | None:
        schema: str | None = element.schema
        return schema

    def _run_ddl_visitor(self, visitor: Callable[..., Any], element: Any, **options: Any) -> None:
        """`element.create(connection)` and `.drop(connection)`; a check that it exists becomes IF [NOT] EXISTS."""
        outer, self._if_exists = self._if_exists, bool(options.pop("checkfirst", False))
        try:
            visitor(dialect=self.dialect, connection=self, checkfirst=False, **options).traverse_single(element)
        finally:
            self._if_exists = outer

    def _add_for_each(self, statement: Executable, rows: Sequence[Mapping[str, Any]]) -> None:
        clause: Any = statement.select() if isinstance(statement, FunctionElement) else statement
        for row in rows:
            try:
                self._add(write_out(clause, row, self.dialect))
            except Refusal as error:
                self.refuse(str(error))

    def _add_ddl(self, element: ExecutableDDLElement) -> None:
        if self._if_exists:
            element = copy(element)
            for option in ("if_exists", "if_not_exists"):
                if hasattr(element, option):
                    setattr(element, option, True)
        sql = str(element.compile(dialect=self.dialect))
        # Each rendering begins without knowing which types there are: another revision may have made or dropped it.
        if isinstance(element, CreateEnumType | CreateDomainType):
            sql = _unless_it_exists(sql)
        elif isinstance(element, DropEnumType | DropDomainType):
            sql = _DROP_TYPE.sub(r"\g<0>IF EXISTS ", sql, count=1)
        was = None
        if isinstance(element, AlterColumn) and element.existing_type is not None:
            was = element.existing_type.compile(dialect=self.dialect)
        self._add(sql, was)

    def _add(self, sql: str, was: str | None = None) -> None:
        """A driver takes one statement at a time: a text of several is kept as several."""
        if not _is_storable(sql):
            self.refuse("has a character in its SQL that cannot be stored")
        for statement in statements(sql):
            self.statements.append((statement, self.autocommit, was))
            if may_control_transaction(statement) and any(r.transaction_control for r in read(statement)):
                self.refuse(f"controls the transaction ({statement})")

    def note(self, reason: str) -> None:
        """Keep the first reason, in one line that can be stored."""
        if self.reason is None:
            self.reason = shortened(reason.encode("utf-8", "replace").decode().replace("\x00", " "))

    def refuse(self, reason: str) -> NoReturn:
        self.note(reason)
        raise Refusal(reason)

    def refuse_run_async(self, *_args: object, **_options: object) -> NoReturn:
        self.refuse("calls op.run_async")

    def __getattr__(self, name: str) -> NoReturn:
        # What sqlalchemy.inspect() looks for first.
        self.refuse("inspects the database" if name == "_sa_instance_state" else f"uses .{name} of the connection")


class _NoResult:
    """What a statement returns. That something looks at it means that the revision reads the database."""

    __slots__ = ("_recorder",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def _refuse(self, *_args: object) -> NoReturn:
        self._recorder.refuse("uses the result of a statement")

    __bool__ = __contains__ = __enter__ = __eq__ = __getitem__ = __iter__ = __len__ = __ne__ = __next__ = _refuse

    def __getattr__(self, _name: str) -> NoReturn:
        self._refuse()


def _unless_it_exists(sql: str) -> str:
    tag = "$gasket$"
    while tag in sql:
        tag = f"{tag[:-1]}_$"
    return f"DO {tag} BEGIN {sql}; EXCEPTION WHEN duplicate_object THEN NULL; END {tag}"


def _is_storable(sql: str) -> bool:
    """Neither a text of PostgreSQL nor JSON takes NUL or half a surrogate pair."""
    try:
        sql.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in sql
