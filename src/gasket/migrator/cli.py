"""What the migrator changes about `litestar database`.

Advanced Alchemy's commands stay; they are changed in place, on its group itself, because the order in which
Litestar asks plugins for commands is not defined.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click
from advanced_alchemy.extensions.litestar.cli import database_group
from alembic.util import CommandError

_ADAPTED = "gasket_adapted"


def adapt_database_commands() -> None:
    """Make refusals one line, `-1` an argument, and closed standard input no trap. Twice is once."""
    for name, command in database_group.commands.items():
        if command.callback is None or hasattr(command.callback, _ADAPTED):
            continue
        if name in ("upgrade", "downgrade"):
            # "-1" and "+1" are revisions, not options.
            command.context_settings["ignore_unknown_options"] = True
        callback = _CHANGED.get(name, _as_it_is)(command.callback)
        command.callback = _refuse_in_one_line(callback)
        setattr(command.callback, _ADAPTED, True)


def _refuse_in_one_line(callback: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def run(*args: Any, **options: Any) -> Any:
        try:
            return callback(*args, **options)
        except CommandError as refusal:
            click.echo(f"Error: {refusal}", err=True)
            sys.exit(1)

    return run


def _as_it_is(callback: Callable[..., Any]) -> Callable[..., Any]:
    return callback


def _without_question_unless_terminal(callback: Callable[..., Any]) -> Callable[..., Any]:
    """An upgrade is what every start does anyway, so a Job without a terminal need not confirm it."""

    @functools.wraps(callback)
    def upgrade(*args: Any, no_prompt: bool, **options: Any) -> Any:
        return callback(*args, no_prompt=no_prompt or not _at_a_terminal(), **options)

    return upgrade


def _never_unasked(callback: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def downgrade(*args: Any, no_prompt: bool, sql: bool, **options: Any) -> Any:
        if not (no_prompt or sql or _at_a_terminal()):
            raise CommandError(
                "A downgrade removes tables or columns, and there is no terminal to ask at; nothing was changed. "
                "Add --no-prompt to confirm it."
            )
        return callback(*args, no_prompt=no_prompt or sql, sql=sql, **options)

    return downgrade


def _at_a_terminal() -> bool:
    """Whether somebody can be asked. Python has no `sys.stdin` at all where standard input is closed."""
    return sys.stdin is not None and sys.stdin.isatty()


def _refused(_callback: Callable[..., Any]) -> Callable[..., Any]:
    def drop_all(*_args: Any, **_options: Any) -> None:
        raise CommandError(
            "drop-all would drop tables behind the ledger's back, without the migration lock; nothing was changed. "
            "Run: litestar database downgrade base"
        )

    return drop_all


_CHANGED: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "upgrade": _without_question_unless_terminal,
    "downgrade": _never_unasked,
    "drop-all": _refused,
}
