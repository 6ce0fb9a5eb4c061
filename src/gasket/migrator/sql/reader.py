"""The one reader of SQL: `read` says of each statement what its text tells.

Every decision that depends on the text of a statement goes through here: the rules, the plan, the trial of a
downgrade, the leftovers of an index build, the stored SQL. PostgreSQL judges it: a test runs a corpus of statements on
a server and compares what is observed with what is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

from msgspec.structs import replace

from gasket.migrator.sql.blocks import acts_outside_when_run, read_do
from gasket.migrator.sql.expressions import acts_outside
from gasket.migrator.sql.lexer import Kind, Token, Words, split
from gasket.migrator.sql.locks import LockMode
from gasket.migrator.sql.object_statements import read_alter, read_comment, read_create, read_drop, read_reindex
from gasket.migrator.sql.reading import Action, Create, Reading, Setting, Touch, TouchIndex
from gasket.migrator.sql.rows import read_copy, read_query, read_truncate

_AE = LockMode.ACCESS_EXCLUSIVE
_SUE = LockMode.SHARE_UPDATE_EXCLUSIVE

_TRANSACTION = ("abort", "begin", "commit", "end", "release", "rollback", "savepoint", "start")
_CONTROLS = re.compile(rf"\b(?:{'|'.join(_TRANSACTION)}|prepare)\b", re.IGNORECASE)
_QUERIES = ("select", "values", "table", "with", "insert", "update", "delete", "merge")
_WITHOUT_EFFECT = ("checkpoint", "close", "deallocate", "declare", "fetch", "listen", "load", "move", "notify", "show")
_CLUSTER_OBJECTS = ("database", "tablespace", "parameter")
_OPAQUE = {"call": "what the procedure does", "execute": "what the prepared statement does"}
_OPAQUE |= {"import": "which tables it makes", "prepare": "what the statement does when it is executed"}
_NOT_KNOWN = Reading("", (Action(not_told=("what it does",)),), outside_database=None, writes_rows=None)


def read(sql: str, *, was: str | None = None) -> tuple[Reading, ...]:
    """What each statement of `sql` does, in their order; `was` is the type that an altered column has before it."""
    return tuple(_read(statement, was) for statement in split(sql))


def may_control_transaction(sql: str) -> bool:
    """False where no statement of `sql` can be transaction control, for which reading it takes much longer."""
    return _CONTROLS.search(sql) is not None


def without_concurrently(sql: str) -> str:
    """The same statement for a transaction, where PostgreSQL refuses CONCURRENTLY."""
    [*found] = split(sql)
    if len(found) != 1 or not _read(found[0]).needs_autocommit:
        return sql
    for token in found[0]:
        if token.is_word("concurrently"):
            return sql[: token.start].rstrip() + sql[token.end :]
    return sql


def built_index(sql: str) -> TouchIndex | None:
    """What the statement builds; None where it is not one CREATE INDEX CONCURRENTLY with a name and a table."""
    changes = [change for reading in read(sql) for change in reading.changes]
    match changes:
        case [TouchIndex(action="create" | "create unique", index=(*_,), table=(*_,), concurrently=True) as index]:
            return index
    return None


def made_routines(sql: str) -> dict[str, bool]:
    """The functions and procedures that it makes, by name without schema: whether one acts outside of the database.

    As far as its own text tells what it does when it is called.
    """
    made: dict[str, bool] = {}
    for statement in split(sql):
        for change in _read(statement).changes:
            if isinstance(change, Create) and change.kind in ("function", "procedure"):
                bodies = (token.text for token in statement if token.kind is Kind.STRING)
                outside = acts_outside(statement) or any(acts_outside_when_run(body, _read) for body in bodies)
                made[change.name[-1]] = outside or made.get(change.name[-1], False)
    return made


def _read(statement: Sequence[Token], was: str | None = None) -> Reading:
    words = Words(statement)
    if words.is_at("("):
        return read_query(words)
    first = words.word()
    if first in _QUERIES:
        return read_query(Words(statement))
    if first in _TRANSACTION or (first == "prepare" and words.is_at("transaction")):
        words.take_any("work", "transaction")
        kind = "rollback to" if first == "rollback" and words.is_at("to") else first
        return Reading(kind, transaction_control=True, needs_autocommit=words.is_at("prepared"))
    if first in (*_WITHOUT_EFFECT, "unlisten"):
        return Reading(first)
    if first in _OPAQUE:
        return replace(_NOT_KNOWN, kind=first, actions=(Action(not_told=(_OPAQUE[first],)),))
    readers: dict[str, Callable[[Words], Reading]] = {
        "alter": partial(read_alter, was=was),
        "analyze": _analyze,
        "cluster": _cluster,
        "comment": read_comment,
        "copy": read_copy,
        "create": read_create,
        "discard": _discard,
        "do": partial(read_do, read=_read),
        "drop": read_drop,
        "explain": _explain,
        "grant": partial(_grant, kind="grant"),
        "lock": _lock,
        "reassign": _reassign,
        "refresh": _refresh,
        "reindex": read_reindex,
        "reset": _reset,
        "revoke": partial(_grant, kind="revoke"),
        "security": read_comment,
        "set": _set,
        "truncate": read_truncate,
        "vacuum": _vacuum,
    }
    return readers[first](words) if first in readers else _NOT_KNOWN


def _reassign(_words: Words) -> Reading:
    """What a role owns in the cluster goes with it."""
    return Reading("reassign owned", outside_database=True)


def _grant(words: Words, kind: str) -> Reading:
    """Without ON it is the membership in a role."""
    words.until("on")
    on_database = words.take("on")
    return Reading(kind, outside_database=not on_database or words.is_at(*_CLUSTER_OBJECTS))


def _lock(words: Words) -> Reading:
    words.take("table")
    tables = Words(words.until("in", "nowait"))
    mode = " ".join(token.text for token in words.until("mode", "nowait")).upper() if words.take("in") else ""
    return Reading("lock", tuple(_touching(part, LockMode(mode) if mode else _AE) for part in tables.parts()))


def _cluster(words: Words) -> Reading:
    words.inside()
    words.take("verbose")
    if not words:
        return Reading("cluster", (Action(not_told=("which tables were clustered before",)),), needs_autocommit=True)
    table = words.name()
    if words.take("on"):  # an old form: CLUSTER index ON table
        table = words.name()
    return Reading("cluster", (Action(touches=(Touch(table, _AE, rewrites=True),)),))


def _vacuum(words: Words) -> Reading:
    full = words.inside().has("full")
    while words.is_at("full", "freeze", "verbose", "analyze", "analyse"):
        full = words.word() == "full" or full
    actions = tuple(_vacuumed(part, full=full) for part in words.parts())
    all_of_them = Action(not_told=("which tables are in the database",))
    return Reading("vacuum", actions or (all_of_them,), needs_autocommit=True)


def _vacuumed(part: Words, *, full: bool) -> Action:
    part.take("only")
    touch = Touch(part.name(), _AE, rewrites=True) if full else Touch(part.name(), _SUE, scans=None)
    return Action(touches=(touch,))


def _analyze(words: Words) -> Reading:
    words.inside()
    words.take("verbose")
    actions = tuple(_touching(part, _SUE) for part in words.parts())
    return Reading("analyze", actions or (Action(not_told=("which tables are in the database",)),))


def _refresh(words: Words) -> Reading:
    words.take("materialized", "view")
    concurrently = words.take("concurrently")
    name = words.name()
    if concurrently:
        touch = Touch(name, LockMode.EXCLUSIVE, scans=None, writes=None)
    else:
        touch = Touch(name, _AE, rewrites=True, writes=not words.has("with", "no", "data"))
    action = Action(touches=(touch,), not_told=("what its query does",))
    return Reading("refresh materialized view", (action,), writes_rows=touch.writes)


def _explain(words: Words) -> Reading:
    """EXPLAIN ANALYZE runs the statement."""
    options = words.inside()
    runs = options.has("analyze")
    while words.is_at("analyze", "verbose"):
        runs = words.word() == "analyze" or runs
    inner = _read(words.rest())
    return replace(inner, kind="explain") if runs else Reading("explain")


def _set(words: Words) -> Reading:
    local = words.take("local")
    words.take("session")
    if words.is_at("transaction", "constraints", "characteristics"):
        return Reading("set", setting=Setting("transaction") if words.is_at("characteristics") else None)
    name = _setting(words)
    words.take_any("to", "=")
    return Reading("set", setting=Setting(name, resets=words.is_at("default", "none"), local=local))


def _reset(words: Words) -> Reading:
    return Reading("reset", setting=Setting(_setting(words), resets=True))


def _setting(words: Words) -> str:
    if words.take("authorization") or words.take("session", "authorization"):
        return "session authorization"
    if words.take("time", "zone"):
        return "timezone"
    return "client_encoding" if words.take("names") else ".".join(words.name())


def _discard(words: Words) -> Reading:
    everything = words.is_at("all")
    return Reading("discard", needs_autocommit=everything, setting=Setting("all", resets=True) if everything else None)


def _touching(part: Words, mode: LockMode) -> Action:
    part.take("only")
    return Action.locking(part.name(), mode)
