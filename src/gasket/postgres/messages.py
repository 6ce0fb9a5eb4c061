"""What a server's error says, without what may be the value of a row.

PostgreSQL puts values into DETAIL, HINT and CONTEXT, and into the message itself: `invalid input syntax for type
integer: "..."`. No list says which messages do so, and they come in the language of `lc_messages`. So the text is kept
whole only where it cannot have a value. Elsewhere it keeps quoted parts only if the program has named them in its SQL.
The SQLSTATE and the fields for schema, table, column and constraint never have a value (PostgreSQL manual, "Error and
Notice Message Fields").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import asyncpg

CUT = '"..."'
"""Stands where a text was left out."""

# Classes of errors (PostgreSQL manual, "PostgreSQL Error Codes") that come of the connection, the transaction, the
# role, locks and resources. They name databases, roles and settings.
_WITHOUT_VALUES = ("08", "0L", "0P", "25", "28", "3D", "40", "53", "55", "57")
_OF_CONSTRAINTS = "23"
# Classes that are about objects, files and SQL: outside quotes they have the names of objects and types.
_OF_OBJECTS = ("0A", "23", "26", "2B", "34", "3F", "42", "44", "58")
_RAISED = ("exec_stmt_raise", "exec_stmt_assert")
"""The functions of the server's source in which PL/pgSQL's RAISE and ASSERT end; unlike the text, not translated."""
_RAISED_STATES = ("P0001", "P0004")
_ELSEWHERE = ("plperl.c", "plpy_elog.c", "pltcl.c", "dblink.c", "pgfdw_report_error")
"""Files and functions of the source that pass on texts of other languages and servers, under any SQLSTATE."""
_ANONYMOUS = "inline_code_block"
"""What PL/pgSQL calls the code of a DO statement, in every language."""

# The quotes of all languages that PostgreSQL speaks. A single one within a word is an apostrophe.
_QUOTES = '"`\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a\u300c\u300d\u300e\u300f'
_SINGLE = "'\u2018\u2019"
_QUOTED = re.compile(rf"[{_QUOTES}]\s?([^{_QUOTES}]+?)\s?[{_QUOTES}]")
_QUOTED_AT_ALL = re.compile(rf"(?:[{_QUOTES}]|(?<!\w)[{_SINGLE}]).*(?:[{_QUOTES}]|[{_SINGLE}](?!\w))", re.DOTALL)
_AFTER_COLON = re.compile(r"(?:\s?:(?:\s|$)|\uff1a).*", re.DOTALL)
_QUOTED_AFTER_COLON = re.compile(rf"\s?[:\uff1a]\s?[{_QUOTES}{_SINGLE}].*", re.DOTALL)
_NUMBER = re.compile(r"(\w\(\d+(?:,\s?\d+)?\))|(?<![\w$])[+-]?\d\S*")
"""With a group for the modifier of a type, which stays: `varchar(10)`."""
_STRINGS = r"\b[eE]'(?:[^'\\]|\\.|'')*(?:'|$)|'(?:[^']|'')*(?:'|$)"
_NO_NAMES = re.compile(rf"{_STRINGS}|--[^\n]*|/\*.*?\*/", re.DOTALL)
"""In SQL: string literals and comments."""
_LITERALS = re.compile(
    rf"(?P<name>\"[^\"]*\")|{_STRINGS}|\$(?P<tag>\w*)\$.*?(?:\$(?P=tag)\$|$)"
    r"|--[^\n]*|/\*.*?(?:\*/|$)|(?<![\w$])\d[\w.]*",
    re.DOTALL,
)
"""In SQL: literals and comments, and names in quotes, which stay. The text may end within any of them."""
_FUNCTION = re.compile(r"([\w$.\"]+)\(", re.ASCII)

_withheld: ContextVar[list[str] | None] = ContextVar("withheld", default=None)


@contextmanager
def collecting_values() -> Iterator[list[str]]:
    """Collect in a list what errors lose on their way into messages: for a person who has asked to see it."""
    found: list[str] = []
    token = _withheld.set(found)
    try:
        yield found
    finally:
        _withheld.reset(token)


def withhold(text: str) -> None:
    """Let `collecting_values` have a text that no message gets."""
    found = _withheld.get()
    if found is not None and text not in found:
        found.append(text)


def without_literals(sql: str) -> str:
    """SQL of another session with a question mark for each literal and comment: they may have values of rows."""
    return _LITERALS.sub(lambda found: found["name"] or "?", sql)


def message_without_values(error: asyncpg.PostgresError) -> str:
    """The server's message in one line, as far as it cannot have the value of a row; without detail, hint and context.

    The text of a RAISE stays if the program's own SQL has it: the code of a DO statement, or a function that the SQL
    names. A trigger's stays out.
    """
    withhold(_whole(error))
    text = "; ".join(line.strip() for line in str(error.args[0]).splitlines() if line.strip())
    state = error.sqlstate or ""
    if _is_raised(error):
        if _raised_by_own_sql(error):
            return text
        raiser = _raiser(error)
        name = f"function {raiser}" if raiser else "a function of the database"
        return f"{name} raised an error, whose text is left out, for it may have values of rows"
    if state.startswith(_WITHOUT_VALUES) or _is_of_connecting(error):
        return text
    if not (state.startswith(_OF_CONSTRAINTS) and (error.table_name or error.data_type_name)):
        text = _without_values(text, error, of_objects=state.startswith(_OF_OBJECTS))
    return text + _place(error, text)


def _without_values(text: str, error: asyncpg.PostgresError, *, of_objects: bool) -> str:
    if not of_objects:
        text = _AFTER_COLON.sub("", text)
        return _NUMBER.sub(lambda found: found[1] or "...", _QUOTED_AT_ALL.sub(CUT, text))
    text = _QUOTED_AFTER_COLON.sub("", text)
    known = _names(error)
    unknown = _QUOTED.sub(lambda found: "" if _is_known(found[1], known) else found[0], text)
    return _QUOTED_AT_ALL.sub(CUT, text) if _QUOTED_AT_ALL.search(unknown) else text


def _place(error: asyncpg.PostgresError, text: str) -> str:
    """What the error's fields say beyond its text."""
    fields = {"table": error.table_name, "column": error.column_name, "constraint": error.constraint_name}
    told = [f"{kind} {name}" for kind, name in fields.items() if name and name not in text]
    return f" ({', '.join(told)})" if told else ""


def _names(error: asyncpg.PostgresError) -> set[str]:
    """Of the objects that the error is about, and all words of the SQL that was sent but its literals."""
    fields = (error.schema_name, error.table_name, error.column_name, error.constraint_name, error.data_type_name)
    return {*_words(error), *filter(None, fields)}


def _words(error: asyncpg.PostgresError) -> set[str]:
    return set(re.findall(r"[\w$]+", _NO_NAMES.sub(" ", getattr(error, "query", None) or "")))


def _is_known(quoted: str, known: set[str]) -> bool:
    return quoted in known or all(part in known for part in quoted.split("."))


def _is_of_connecting(error: asyncpg.PostgresError) -> bool:
    """Whether the session has sent no SQL yet; then the text is about the parameters of the URL."""
    return getattr(error, "query", "") is None


def _is_raised(error: asyncpg.PostgresError) -> bool:
    raised = error.sqlstate in _RAISED_STATES or error.server_source_function in _RAISED
    return raised or error.server_source_function in _ELSEWHERE or error.server_source_filename in _ELSEWHERE


def _raised_by_own_sql(error: asyncpg.PostgresError) -> bool:
    if error.server_source_function not in _RAISED:
        return False
    innermost = (error.context or "").partition("\n")[0]
    return _ANONYMOUS in innermost or _raiser(error).rpartition(".")[2] in _words(error)


def _raiser(error: asyncpg.PostgresError) -> str:
    """The function that raised it, as the context has it; empty where it cannot be read."""
    found = _FUNCTION.search((error.context or "").partition("\n")[0])
    return found[1].replace('"', "") if found else ""


def _whole(error: asyncpg.PostgresError) -> str:
    told = {"DETAIL": error.detail, "HINT": error.hint, "CONTEXT": error.context}
    return "\n".join([str(error.args[0]), *(f"{name}: {text}" for name, text in told.items() if text)])
