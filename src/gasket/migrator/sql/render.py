"""What `upgrade()` or `downgrade()` of a revision would do, as a list of SQL statements, without a database.

The function is called once, as in a real run and not as with `--sql`, over a connection that notes each statement
and refuses to answer: a revision that reads the database, or takes its transaction into its own hands, cannot be
replayed from a list, and the reason is kept. What a function does beside SQL happens when it is rendered; and a
clock, the environment or chance that it asks cannot be noticed.

Of Alembic's names `_proxy` of `alembic.op` and of `alembic.context` is not public; `tests/migrator/unit/test_render.py`
fails when it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from types import ModuleType
from typing import Any, NoReturn

import alembic.context
import alembic.op
import msgspec
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Dialect, MetaData
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

from gasket.migrator.sql.reader import read
from gasket.migrator.sql.recorder import Recorder


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement. `autocommit`: it has to run outside of a transaction.

    `was` is the type that a column had before ALTER ... TYPE, where the revision names it; it is not stored.
    """

    sql: str
    autocommit: bool = False
    was: str | None = field(default=None, compare=False)


class Rendering(msgspec.Struct, frozen=True):
    """`reason` says why the statements cannot be replayed, as what "it" does; None when they can.

    With a reason, `statements` are those up to the point where it came up.
    """

    statements: tuple[Statement, ...]
    reason: str | None = None

    @property
    def transaction_control(self) -> str | None:
        """The statement that would end, begin or mark a transaction; rendering ends with it."""
        last = self.statements[-1].sql if self.reason and self.statements else ""
        return last if any(reading.transaction_control for reading in read(last)) else None


def render(function: Callable[[], object], *, metadata: MetaData | None = None) -> Rendering:
    """Call a revision's `upgrade` or `downgrade` and note its statements; never raises what it raises.

    `metadata` is what `context.configure` gets as `target_metadata`: its naming convention names constraints.
    May be called in the middle of a run of Alembic: `alembic.op` and `alembic.context` are as before afterwards.
    """
    context = copy(_blank_context(metadata))
    recorder = Recorder(context.dialect)
    context.impl = copy(context.impl)
    context.impl.memo = {}
    context.connection = context.impl.connection = recorder  # type: ignore[assignment]
    operations = Operations(context)
    operations.run_async = recorder.refuse_run_async  # type: ignore[method-assign]
    try:
        with _instead(alembic.op, operations), _instead(alembic.context, _NoEnvironment(recorder)):
            function()
    except Exception as error:  # of a refusal the reason is noted already
        recorder.note(f"raises {type(error).__name__}: {error}")
    return Rendering(tuple(Statement(*noted) for noted in recorder.statements), recorder.reason)


def replay(context: MigrationContext, statements: Iterable[Statement]) -> None:
    """Run rendered statements on the connection of `context`, those in a row that need it outside a transaction."""
    for autocommit, group in groupby(statements, key=lambda statement: statement.autocommit):
        with context.autocommit_block() if autocommit else nullcontext():
            assert context.connection is not None
            for statement in group:
                context.connection.exec_driver_sql(statement.sql)


def to_json(rendering: Rendering) -> str:
    """For a jsonb column: `{"sql": [...], "autocommit": [indexes]}`, or `{"reason": "..."}` alone."""
    stored: dict[str, object] = {"reason": rendering.reason}
    if rendering.reason is None:
        stored = {"sql": [statement.sql for statement in rendering.statements]}
        if outside := [number for number, statement in enumerate(rendering.statements) if statement.autocommit]:
            stored["autocommit"] = outside
    return msgspec.json.encode(stored).decode()


def from_json(stored: str) -> Rendering:
    """The inverse of `to_json`; keys that a newer release has added are left alone."""
    read: dict[str, Any] = msgspec.json.decode(stored)
    outside = set(read.get("autocommit", ()))
    statements = [Statement(sql, number in outside) for number, sql in enumerate(read.get("sql", ()))]
    return Rendering(tuple(statements), read.get("reason"))


class _NoEnvironment:
    """Stands in for `alembic.context`, which would lead to the live connection."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def is_offline_mode(self) -> bool:
        return False

    def __getattr__(self, name: str) -> NoReturn:
        self._recorder.refuse(f"uses alembic.context.{name}")


class _RecordingContext(MigrationContext):
    @contextmanager
    def autocommit_block(self) -> Iterator[None]:
        recorder: Any = self.connection
        recorder.autocommit = True
        try:
            yield
        finally:
            recorder.autocommit = False


@lru_cache(maxsize=8)
def _blank_context(metadata: MetaData | None) -> _RecordingContext:
    """To be copied: making one costs more than rendering with it, and logs three lines."""
    dialect: Dialect = PGDialect_asyncpg()  # type: ignore[no-untyped-call]  # SQLAlchemy's
    return _RecordingContext(dialect, None, {"target_metadata": metadata, "transaction_per_migration": True})


@contextmanager
def _instead(module: ModuleType, proxy: object) -> Iterator[None]:
    """Let the functions of `alembic.op` or `alembic.context` lead to `proxy`; Alembic's own way does not nest."""
    names = vars(module)
    had, outer = "_proxy" in names, names.get("_proxy")
    names["_proxy"] = proxy
    try:
        yield
    finally:
        if had:
            names["_proxy"] = outer
        else:
            del names["_proxy"]
