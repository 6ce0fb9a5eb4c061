"""`upgrade --sql` and `downgrade --sql`: revisions printed as a script that psql runs unchanged.

Alembic's own printing loses something in silence: a bound parameter, a tab, the character after a `%`. So the
statements are rendered as for the ledger, and Alembic prints what is around them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial, wraps
from itertools import groupby
from pathlib import Path
from typing import Any

from alembic.runtime.migration import MigrationContext, RevisionStep, StampStep
from alembic.script import Script
from alembic.util import CommandError
from sqlalchemy import MetaData

from gasket.migrator.command_line import database_command
from gasket.migrator.sql.lexer import tokens
from gasket.migrator.sql.render import render


def print_rendered(context: MigrationContext, metadata: MetaData | None) -> None:
    """Let the steps that `context` is going to print be printed as they are rendered."""
    find_steps = context._migrations_fn
    assert find_steps is not None

    def printed(heads: tuple[str, ...], ctx: MigrationContext) -> Iterator[RevisionStep | StampStep]:
        for step in find_steps(heads, ctx):
            if isinstance(step, RevisionStep):
                work = partial(_print, ctx, step.revision, step.migration_fn, metadata)
                step.migration_fn = wraps(step.migration_fn)(work)  # Alembic asks for its name
            yield step

    context._migrations_fn = printed  # type: ignore[assignment]


def _as_line_of_script(sql: str) -> str:
    """The statement with one semicolon, which no comment swallows."""
    found = list(tokens(sql))
    while found and found[-1].is_symbol(";"):
        found.pop()
    return f"{sql[found[0].start : found[-1].end]};" if found else ""


def _print(
    context: MigrationContext, script: Script, migrate: Callable[..., None], metadata: MetaData | None, **arguments: Any
) -> None:
    rendering = render(partial(migrate, **arguments), metadata=metadata)
    if rendering.reason and b"is_offline_mode" in Path(script.path).read_bytes():
        migrate(**arguments)  # it prints its SQL itself
        return
    if rendering.reason:
        raise CommandError(
            f"Revision {script.revision} cannot be printed as SQL: it {rendering.reason}. "
            f"Run it on a database, or look at it with: {database_command('plan --sql')}"
        )
    for autocommit, group in groupby(rendering.statements, key=lambda statement: statement.autocommit):
        with context.autocommit_block() if autocommit else nullcontext():
            for statement in group:
                context.impl.static_output(_as_line_of_script(statement.sql))
