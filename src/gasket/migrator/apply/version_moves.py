"""Alembic's version moves in the statement that writes the ledger: they cannot differ, and it is a round trip less.

Of Alembic's names `_exec` is not public; `tests/migrator/integration/test_alembic_names.py` fails when it changes.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Update

_ONE_ROW = SimpleNamespace(rowcount=1)


class VersionMoves:
    """Leaves out Alembic's UPDATE of its version from one revision to the next.

    Where branches begin, end or meet, Alembic writes its table itself.
    """

    def __init__(self) -> None:
        self._move: tuple[str, str] | None = None
        self._comes_next = False

    def watch(self, context: MigrationContext) -> None:
        """Watch the UPDATEs of this context."""
        execute = context.impl._exec

        @functools.wraps(execute)
        def executed(construct: Any, *arguments: Any, **options: Any) -> Any:
            if self._comes_next and isinstance(construct, Update):
                self._comes_next = False
                return _ONE_ROW
            return execute(construct, *arguments, **options)

        context.impl._exec = executed  # type: ignore[method-assign]

    def defer(self, step: Any) -> None:
        """Leave out that of this RevisionStep or StampStep: Alembic asks it for the versions, then runs the UPDATE."""
        find_move = step.update_version_num

        def found(heads: set[str]) -> tuple[str, str]:
            self._move, self._comes_next = find_move(heads), True
            return self._move

        step.update_version_num = found

    def take(self) -> tuple[str, str] | None:
        """The move that is still to be made: from which version to which."""
        move, self._move = self._move, None
        return move
