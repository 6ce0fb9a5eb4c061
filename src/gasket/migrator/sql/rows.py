"""Statements that read and write rows: SELECT, INSERT, UPDATE, DELETE, MERGE, COPY, WITH, TRUNCATE."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from msgspec.structs import replace

from gasket.migrator.sql.expressions import acts_outside, told_of_functions
from gasket.migrator.sql.lexer import Kind, Token, Words
from gasket.migrator.sql.locks import LockMode
from gasket.migrator.sql.reading import Action, Create, Reading, Setting, Touch, any_of

_WRITES = ("insert", "update", "delete", "merge")
_QUERIES = ("select", "values", "table", *_WRITES)


def read_query(words: Words) -> Reading:
    """SELECT, VALUES, TABLE, INSERT, UPDATE, DELETE or MERGE, with what stands before it in WITH."""
    if words.take("with"):
        return _with(words)
    if words.is_at("("):
        return read_query(words.inside())
    everything = words.rest()
    verb = words.word()
    if verb in _WRITES:
        return _write(verb, words)
    told = told_of_functions(everything)
    if _locks_rows(everything):
        told += ("which tables it locks for FOR UPDATE or FOR SHARE",)
    change = _select_into(words) if verb == "select" else None
    return Reading(
        verb,
        (Action(change, not_told=told),),
        writes_rows=None if told else False,
        outside_database=acts_outside(everything),
        setting=_set_config(everything),
    )


def read_copy(words: Words) -> Reading:
    """COPY; a file or a program is on the server, outside of the database."""
    if words.is_at("("):
        query = read_query(words.inside())
        return replace(query, kind="copy", outside_database=_to_server(words) or query.outside_database)
    table = words.name()
    words.inside()
    if words.take("from"):
        touch = Touch(table, LockMode.ROW_EXCLUSIVE, writes=True)
        return Reading("copy", (Action(None, (touch,)),), writes_rows=True, outside_database=words.is_at("program"))
    return Reading("copy", outside_database=_to_server(words))


def read_truncate(words: Words) -> Reading:
    """TRUNCATE gives each table an empty file, and reads none of its rows."""
    words.take("table")
    touches = []
    for part in Words(words.until("restart", "continue", "cascade", "restrict")).parts():
        part.take("only")
        touches.append(Touch(part.name(), LockMode.ACCESS_EXCLUSIVE, writes=True))
    told = ("which tables refer to it (CASCADE)",) if words.has("cascade") else ()
    return Reading("truncate", (Action(None, tuple(touches), told),), writes_rows=True)


def _with(words: Words) -> Reading:
    """Each of the named queries may write rows, as the main one may."""
    words.take("recursive")
    readings = []
    while words:
        words.identifier()
        words.inside()
        words.take("as")
        words.take_any("not", "materialized")
        readings.append(read_query(words.inside()))
        while words and not words.is_at(",", "(", *_QUERIES):  # SEARCH and CYCLE
            words.skip()
        if not words.take(","):
            break
    main = read_query(words)
    readings.append(main)
    return replace(
        main,
        actions=tuple(action for reading in readings for action in reading.actions),
        writes_rows=any_of(reading.writes_rows for reading in readings),
        outside_database=any_of(reading.outside_database for reading in readings),
    )


def _write(verb: str, words: Words) -> Reading:
    words.take_any("into", "from", "only")
    table = words.name()
    rest = words.rest()
    if verb == "insert":
        words.take_any("as")
        words.inside()  # the columns
        rest = words.rest()
    # An index may find the rows that a condition names.
    scans = False if verb == "insert" else None if verb == "merge" or words.has("where") else True
    touch = Touch(table, LockMode.ROW_EXCLUSIVE, scans=scans, writes=True)
    action = Action(None, (touch,), told_of_functions(rest))
    return Reading(verb, (action,), writes_rows=True, outside_database=acts_outside(rest))


def _select_into(words: Words) -> Create | None:
    words.until("into", "from")
    if not words.take("into"):
        return None
    temporary = words.take("temp") or words.take("temporary")
    words.take_any("unlogged", "table")
    return Create("table", words.name(), temporary)


def _locks_rows(words: Sequence[Token]) -> bool:
    """FOR UPDATE, FOR NO KEY UPDATE, FOR SHARE, FOR KEY SHARE."""
    return any(word.is_word("for") and after.is_word("update", "no", "share", "key") for word, after in pairwise(words))


def _set_config(words: Sequence[Token]) -> Setting | None:
    """Of set_config('name', 'value', is_local)."""
    for position, token in enumerate(words):
        if not token.is_word("set_config"):
            continue
        arguments = [part.next() for part in Words(words[position + 1 :]).inside().parts()]
        match arguments:
            case [Token(kind=Kind.STRING, text=name), _, Token() as is_local]:
                return Setting(name.lower(), local=is_local.is_word("true"))
    return None


def _to_server(words: Words) -> bool:
    """COPY ... TO a file or a program."""
    words.take("to")
    following = words.next()
    return words.is_at("program") or (following is not None and following.kind is Kind.STRING)
