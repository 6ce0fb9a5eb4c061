"""CREATE, DROP and ALTER of whatever is in a database, and COMMENT ON it (PostgreSQL manual, "SQL Commands")."""

from __future__ import annotations

from collections.abc import Iterator

from gasket.migrator.sql.lexer import Name, Words
from gasket.migrator.sql.locks import LockMode
from gasket.migrator.sql.reading import Action, AddValue, Create, Drop, Reading, Rename, Touch, TouchIndex
from gasket.migrator.sql.table_statements import read_create_table, read_part

_AE = LockMode.ACCESS_EXCLUSIVE
_SRE = LockMode.SHARE_ROW_EXCLUSIVE
_SUE = LockMode.SHARE_UPDATE_EXCLUSIVE

# Words of CREATE before the kind, and the second word of the kinds that have two.
_MODIFIERS = ("or", "replace", "global", "local", "temp", "temporary", "unlogged", "recursive", "constraint", "trusted")
_TWO_WORDS = {
    "access": ("method",),
    "default": ("privileges",),
    "event": ("trigger",),
    "foreign": ("table", "data"),
    "large": ("object",),
    "materialized": ("view",),
    "operator": ("class", "family"),
    "procedural": ("language",),
    "text": ("search",),
    "user": ("mapping",),
}
_RELATIONS = frozenset({"table", "foreign table", "view", "materialized view", "sequence"})
_NAMED = _RELATIONS | {"aggregate", "domain", "extension", "function", "procedure", "routine", "schema", "type"}
_ON_TABLE = frozenset({"trigger", "rule", "policy"})
# What CREATE makes for a table: the word before the name of the table, and how that is locked.
_BELONG_TO_TABLE = {"trigger": ("on", _SRE), "policy": ("on", _AE), "rule": ("to", _AE), "statistics": ("from", _SUE)}
_IN_CLUSTER = frozenset({"database", "group", "role", "subscription", "tablespace", "user", "system", "parameter"})


def read_create(words: Words) -> Reading:
    before = {token.text for token in words.rest()[:4]}
    words.take_any(*_MODIFIERS)
    unique = words.take("unique")
    kind = _kind(words)
    if kind in _IN_CLUSTER:
        makes_slot = kind == "subscription" and not _without_slot(words)
        alone = kind in ("database", "tablespace") or makes_slot
        return Reading(f"create {kind}", outside_database=True, needs_autocommit=alone)
    if kind == "index":
        return _create_index(words, unique=unique)
    return Reading(f"create {kind}", tuple(_create(kind, words, before)))


def read_drop(words: Words) -> Reading:
    kind = _kind(words)
    concurrently = words.take("concurrently")
    words.take("if", "exists")
    if kind in _IN_CLUSTER or kind == "owned":
        alone = kind in ("database", "tablespace")
        return Reading(f"drop {kind}", outside_database=True, needs_autocommit=alone)
    if kind in _ON_TABLE:
        words.identifier()
        words.take("on")
        return Reading(f"drop {kind}", (Action.locking(words.name(), _AE),))
    actions = tuple(_drop(kind, part, concurrently=concurrently) for part in words.parts())
    return Reading(f"drop {kind}", actions, needs_autocommit=concurrently)


def read_alter(words: Words, was: str | None) -> Reading:
    """`was` is the type of the column that gets another one, when it is known."""
    kind = _kind(words)
    if kind in _IN_CLUSTER:
        alone = kind == "system" or (kind == "database" and words.has("tablespace"))
        return Reading(f"alter {kind}", outside_database=True, needs_autocommit=alone)
    if words.take("all", "in", "tablespace"):
        return Reading(f"alter {kind}", (Action(not_told=("which relations are in the tablespace",)),))
    words.take("if", "exists")
    if kind in _ON_TABLE:
        words.identifier()
        words.take("on")
        return Reading(f"alter {kind}", (Action.locking(words.name(), _AE),))
    if kind == "publication":
        return Reading("alter publication", tuple(_published(words)))
    words.take("only")
    name = words.name()
    words.take("*")
    words.inside()  # the arguments of a function
    concurrently = kind == "table" and words.is_at("detach") and words.has("concurrently")
    return Reading(f"alter {kind}", tuple(_alter(kind, name, words, was)), needs_autocommit=concurrently)


def read_comment(words: Words) -> Reading:
    """COMMENT ON and SECURITY LABEL ... ON."""
    words.until("on")
    words.take("on")
    kind = _kind(words)
    if kind == "column":
        return Reading("comment", (Action.locking(words.name()[:-1], _SUE),))
    if kind == "index":
        return Reading("comment", (Action(TouchIndex("comment", name := words.name()), (Touch(name, _SUE),)),))
    if kind in _RELATIONS:
        return Reading("comment", (Action.locking(words.name(), _SUE),))
    return Reading("comment", outside_database=kind in _IN_CLUSTER)


def read_reindex(words: Words) -> Reading:
    options = words.inside()
    kind = words.word()
    concurrently = words.take("concurrently") or options.has("concurrently")
    whole = kind in ("schema", "database", "system")
    if whole:
        return Reading("reindex", (Action(not_told=(f"which tables are in the {kind}",)),), needs_autocommit=True)
    name = words.name()
    of_index = kind == "index"
    touch = Touch(name, _SUE if concurrently else _AE, scans=True, index=name[-1] if of_index else "")
    change = TouchIndex("reindex", name if of_index else None, None if of_index else name, concurrently)
    return Reading("reindex", (Action(change, (touch,)),), needs_autocommit=concurrently)


def _create_index(words: Words, *, unique: bool) -> Reading:
    concurrently = words.take("concurrently")
    words.take("if", "not", "exists")
    index = None if words.take("on") else words.name()
    if index is not None:
        words.take("on")
    words.take("only")
    table = words.name()
    change = TouchIndex("create unique" if unique else "create", index, table, concurrently)
    mode = _SUE if concurrently else LockMode.SHARE
    touch = Touch(table, mode, scans=True, index=index[-1] if index else "")
    return Reading("create index", (Action(change, (touch,)),), needs_autocommit=concurrently)


def _create(kind: str, words: Words, before: set[str]) -> Iterator[Action]:
    if kind in _NAMED:
        words.take("if", "not", "exists")
        name = words.name()
        change = Create(kind, name, temporary=bool(before & {"temp", "temporary"}) and kind in _RELATIONS)
        if kind in ("table", "foreign table"):
            yield read_create_table(change, words)
        elif kind == "view" and "replace" in before:
            yield Action(change, (Touch(name, _AE),))
        elif kind == "extension":
            yield Action(change, not_told=(f"what the script of extension {name[-1]} does",))
        else:
            yield Action(change)
    elif kind in _BELONG_TO_TABLE:
        before_table, mode = _BELONG_TO_TABLE[kind]
        words.until(before_table)
        words.take(before_table)
        yield Action.locking(words.name(), mode)
    elif kind == "publication":
        words.identifier()
        yield from _published(words)


def _drop(kind: str, part: Words, *, concurrently: bool) -> Action:
    name = part.name()
    told = ("what depends on it and is dropped with it (CASCADE)",) if part.has("cascade") else ()
    if kind == "index":
        mode = _SUE if concurrently else _AE
        return Action(TouchIndex("drop", name, None, concurrently), (Touch(name, mode),), told)
    if kind == "statistics":
        told = ("of which table they are",)
    if kind not in _NAMED:
        return Action(not_told=told)
    if kind == "table":
        told = ("which other tables its foreign keys lock", *told)
    return Action(Drop(kind, name), (Touch(name, _AE),) if kind in _RELATIONS else (), told)


def _alter(kind: str, name: Name, words: Words, was: str | None) -> Iterator[Action]:
    match kind:
        case "index":
            yield Action(TouchIndex("alter", name), (_of_index(name, words),))
        case "sequence":
            strong = words.is_at("rename", "owner", "set") and not words.has("owned")
            action = read_part(kind, name, words, None) if words.is_at("rename", "set") else Action()
            yield Action(action.change, (Touch(name, _AE if strong else _SRE),))
        case "table" | "foreign table" | "view" | "materialized view" | "type":
            for part in words.parts():
                yield _part(kind, name, part, was)
        case _ if kind in _NAMED and words.take("rename", "to"):
            yield Action(Rename(kind, name, words.identifier()))
        case _ if kind in _NAMED and words.take("set", "schema"):
            yield Action(Rename(kind, name, None))
        case "domain" if words.is_at("add", "validate") or words.has("set", "not", "null"):
            yield Action(not_told=("which tables have a column of it, and are read whole",))
        case "extension":
            yield Action(not_told=(f"what the script of extension {name[-1]} does",))


def _part(kind: str, name: Name, part: Words, was: str | None) -> Action:
    if kind != "type":
        return read_part(kind, name, part, was)
    if part.is_at("owner"):
        return Action()
    if part.take("add", "value"):
        return Action(AddValue(name))
    action = read_part(kind, name, part, None)
    return Action(action.change, not_told=action.not_told)


def _of_index(name: Name, words: Words) -> Touch:
    if words.take("set", "tablespace"):
        return Touch(name, _AE, rewrites=None)
    if words.take("attach", "partition") or words.is_at("depends", "no"):
        return Touch(name, _AE)
    return Touch(name, _SUE)


def _published(words: Words) -> Iterator[Action]:
    """The tables that are named after TABLE."""
    words.until("table")
    if words.take("table"):
        for part in words.parts():
            part.take("table")
            part.take("only")
            yield Action.locking(part.name(), _SUE)


def _kind(words: Words) -> str:
    kind = words.word()
    for second in _TWO_WORDS.get(kind, ()):
        if words.take(second):
            return f"{kind} {second}"
    return kind


def _without_slot(words: Words) -> bool:
    """Whether it says `create_slot = false`."""
    texts = [token.text.lower() for token in words.rest()]
    return "create_slot" in texts and "false" in texts[texts.index("create_slot") :][:3]
