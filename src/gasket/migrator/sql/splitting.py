"""Several statements in one text: asyncpg takes one at a time, unlike the drivers that most revisions are made for."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, TextClause, event, text

from gasket.migrator.sql.lexer import statements


def run_one_at_a_time(engine: Engine) -> None:
    """Let `op.execute("...; ...")` run each of its statements; a text with parameters stays as it is."""
    event.listen(engine, "before_execute", _run_all_but_the_last, retval=True)


def _run_all_but_the_last(
    connection: Connection, clause: Any, many: Any, parameters: Any, _options: object
) -> tuple[Any, Any, Any]:
    plain = isinstance(clause, TextClause) and not (many or parameters or clause._bindparams)
    if not plain or ";" not in clause.text.rstrip().rstrip(";"):
        return clause, many, parameters
    *before, last = statements(clause.text) or [""]
    for statement in before:
        connection.execute(text(statement))
    return text(last), many, parameters
