"""What is left of a server's message, in whichever language it comes."""

from __future__ import annotations

import logging
import re
import sys

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError, StatementError

from gasket.log_lines import formatter
from gasket.postgres.errors import describe
from gasket.postgres.messages import without_literals
from gasket.postgres.tracebacks import format_exception, print_tracebacks_without_values

SECRET = "alice-4711"


def server_error(state: str, message: str, query: str = "", **fields: str) -> asyncpg.PostgresError:
    error: asyncpg.PostgresError = asyncpg.PostgresError.new({"C": state, "M": message, **fields}, query)
    return error


@pytest.mark.parametrize(
    ("state", "message", "left"),
    [
        ("22P02", "ungültige Eingabesyntax für Typ integer: »{}«", "ungültige Eingabesyntax für Typ integer"),
        ("22P02", "syntaxe en entrée invalide pour le type integer : « {} »", "syntaxe en entrée invalide .* integer"),
        ("22P02", 'integer型の入力構文が不正です: "{}"', "integer型の入力構文が不正です"),
        ("22P02", "无效的类型 integer 输入语法：“{}”", "无效的类型 integer 输入语法"),  # noqa: RUF001  # Chinese
        ("22P02", "неверный синтаксис для типа integer: „{}“", "неверный синтаксис .* integer"),
        ("22P02", "「{}」は不正です", '"..."は不正です'),
        ("22008", "valeur de l'heure en dehors des limites : {}", "valeur de l'heure en dehors des limites"),
        ("22003", "Wert »{}« ist außerhalb des Bereichs für Typ bigint", 'Wert "..." ist außerhalb .* bigint'),
        ("22P02", "value '{}' of an extension", 'value "..." of an extension'),
        ("42P01", "la relation « {} » n'existe pas", 'la relation "..." n\'existe pas'),
        ("42601", "Syntaxfehler in tsquery: »{}« »users«", "Syntaxfehler in tsquery"),
        ("XX000", 'parse error near "{}" at 4711', 'parse error near "..." at ...'),
        ("ZZ999", "of nobody knows whom: {}", "of nobody knows whom"),
    ],
)
def test_no_language_shows_a_value(state: str, message: str, left: str) -> None:
    described = describe(server_error(state, message.format(SECRET)))
    assert re.fullmatch(rf"{left} \[SQLSTATE {state}\]", described)


@pytest.mark.parametrize("name", ["orders", "app.orders"])
def test_a_name_of_the_sql_stays_in_every_language(name: str) -> None:
    query = f"SELECT 'alice' FROM {name} -- bob"
    for message in ('relation "{}" does not exist', "la relation « {} » n'existe pas", "Relation »{}« fehlt"):
        assert name in describe(server_error("42P01", message.format(name), query))
        for value in ("alice", "bob"):
            assert value not in describe(server_error("42P01", message.format(value), query))


def test_detail_hint_and_context_are_left_out() -> None:
    fields = {"D": f"Key (email)=({SECRET}) exists.", "H": f"Not {SECRET}.", "W": f'SQL statement "{SECRET}"'}
    error = server_error("23505", 'duplicate key value violates unique constraint "one"', n="one", t="people", **fields)
    assert describe(error) == ('duplicate key value violates unique constraint "one" (table people) [SQLSTATE 23505]')


@pytest.mark.parametrize(
    ("context", "query", "stays"),
    [
        ("PL/pgSQL function inline_code_block line 1 at RAISE", "DO ...", True),
        ("PL/pgSQL-Funktion inline_code_block Zeile 1 bei RAISE", "DO ...", True),
        ("PL/pgSQL function app.check_all(integer) line 1 at RAISE", "SELECT check_all(1)", True),
        ("PL/pgSQL function guard() line 1 at RAISE\nPL/pgSQL function inline_code_block line 1", "DO ...", False),
        ("PL/pgSQL関数guard()の1行目 - RAISE", "UPDATE people SET email = NULL", False),
        ("", "UPDATE people SET email = NULL", False),
    ],
)
@pytest.mark.parametrize("state", ["P0001", "23505", "08006", "ZZ999"])
def test_only_the_own_sql_may_say_what_it_likes(context: str, query: str, stays: bool, state: str) -> None:
    error = server_error(state, f"no {SECRET}", query, W=context, R="exec_stmt_raise", F="pl_exec.c")
    assert (SECRET in describe(error)) is stays


@pytest.mark.parametrize("source", [{"F": "plpy_elog.c"}, {"F": "dblink.c"}, {"R": "pgfdw_report_error"}])
def test_texts_of_other_languages_and_servers_are_left_out(source: dict[str, str]) -> None:
    context = "PL/pgSQL function inline_code_block line 1 at SQL statement"
    assert SECRET not in describe(server_error("53100", f"no {SECRET}", W=context, **source))


def test_an_argument_that_the_driver_refuses_is_left_out() -> None:
    error = asyncpg.DataError(f"invalid input for query argument $1: {SECRET!r} (an integer is required)")
    assert describe(error) == "invalid input for query argument $1 [SQLSTATE 22000]"


@pytest.mark.parametrize(
    ("sql", "shown"),
    [
        (
            "UPDATE people SET email = 'alice', n = 47.1 WHERE t1.id = 4711",
            "UPDATE people SET email = ?, n = ? WHERE t1.id = ?",
        ),
        ("SELECT 'it''s alice', E'it\\'s', $$alice$$, $a$ $$ $a$, x", "SELECT ?, ?, ?, ?, x"),
        ("SELECT \"a 'b\", 'alice", 'SELECT "a \'b", ?'),
        ("SELECT $x$alice", "SELECT ?"),
        ("SELECT 1 -- alice", "SELECT ? ?"),
        ("SELECT /* alice", "SELECT ?"),
        ("SELECT $1, $2", "SELECT $1, $2"),
    ],
)
def test_sql_of_others_is_shown_without_literals(sql: str, shown: str) -> None:
    assert without_literals(sql) == shown


def test_a_traceback_has_no_value_at_any_place_of_its_chain() -> None:
    detail = {"D": f"Key (email)=({SECRET}) exists."}
    sql = f"INSERT INTO people VALUES ('{SECRET}')"

    def fail() -> None:
        try:
            try:
                raise server_error("23505", "duplicate key", **detail)
            except asyncpg.PostgresError as error:
                raise DBAPIError(sql, [SECRET], error) from error
        except DBAPIError as error:
            raise ExceptionGroup("both", [error, StatementError("no", sql, [SECRET], KeyError("x"))]) from None

    with pytest.raises(ExceptionGroup) as caught:
        fail()
    told = format_exception(caught.value)
    assert SECRET not in told
    assert told.count("[SQLSTATE 23505]") == 2
    assert "in fail" in told
    assert "ExceptionGroup: both" in told


def test_an_error_that_ends_a_command_is_printed_without_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    print_tracebacks_without_values()
    error = server_error("23505", "duplicate key", D=f"Key (email)=({SECRET}) exists.")
    sys.excepthook(type(error), error, None)
    told = capsys.readouterr().err
    assert "duplicate key [SQLSTATE 23505]" in told
    assert SECRET not in told


def test_log_lines_have_tracebacks_without_values() -> None:
    error = DBAPIError("INSERT", None, server_error("23505", "duplicate key", D=f"Key (email)=({SECRET}) exists."))
    for name in ("json", "text"):
        record = logging.LogRecord("gasket", logging.ERROR, "x", 1, "failed", (), (type(error), error, None))
        record.exc_text = f"another handler's, with {SECRET}"
        line = formatter(name).format(record)
        assert SECRET not in line
        assert "duplicate key [SQLSTATE 23505]" in line
