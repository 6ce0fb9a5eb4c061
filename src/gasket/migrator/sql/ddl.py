"""What a statement changes in the schema, read from its tokens: as far as the rules for revisions ask.

Forms of the PostgreSQL manual, "SQL Commands". What is not known here changes nothing that is asked for; what a
function does when it is called, or a text that is executed, is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gasket.migrator.sql.lexer import Kind, Name, Token, Words, tokens


@dataclass(frozen=True, slots=True)
class Create:
    """`kind` is `table`, `view`, `type` and so on."""

    kind: str
    name: Name


@dataclass(frozen=True, slots=True)
class Drop:
    """An object, or with `part` a column of it."""

    kind: str
    name: Name
    part: str | None = None


@dataclass(frozen=True, slots=True)
class Rename:
    """An object, or with `part` a column, an attribute or a value of it; `to` is None where it gets another schema."""

    kind: str
    name: Name
    to: str | None
    part: str | None = None


@dataclass(frozen=True, slots=True)
class AddColumn:
    """`default` are the tokens of the expression, none where there is none; `fills` says that rows get a value made."""

    table: Name
    column: str
    type: str
    not_null: bool
    default: tuple[Token, ...]
    fills: bool


@dataclass(frozen=True, slots=True)
class AlterColumn:
    """`action` is `type`, `set not null`, `drop not null`, `set default` or `drop default`."""

    table: Name
    column: str
    action: str
    type: str = ""


@dataclass(frozen=True, slots=True)
class AddConstraint:
    """`kind` is its keyword; `not_null` the column that a CHECK is about when it says just that."""

    table: Name
    name: str | None
    kind: str
    valid: bool = True
    using_index: bool = False
    not_null: str | None = None


@dataclass(frozen=True, slots=True)
class ValidateConstraint:
    """The rows that were there when the constraint was added are checked now."""

    table: Name
    name: str


@dataclass(frozen=True, slots=True)
class TouchIndex:
    """CREATE, DROP, REINDEX, ALTER of and COMMENT on an index; `index` is None where it has no name of its own."""

    action: str
    index: Name | None
    table: Name | None = None


Change = Create | Drop | Rename | AddColumn | AlterColumn | AddConstraint | ValidateConstraint | TouchIndex

# Words of CREATE before the kind, and kinds of two words.
_MODIFIERS = ("or", "replace", "global", "local", "temp", "temporary", "unlogged", "recursive", "constraint")
_TWO_WORDS = {"materialized": "view", "foreign": "table", "event": "trigger"}
_NAMED = frozenset({"aggregate", "domain", "extension", "foreign table", "function", "materialized view", "procedure"})
_NAMED |= {"routine", "schema", "sequence", "table", "type", "view"}
_WITH_COLUMNS = frozenset({"table", "foreign table", "type"})
_CONSTRAINTS = frozenset({"constraint", "primary", "unique", "check", "foreign", "exclude", "not"})
_AFTER_TYPE = frozenset({"check", "collate", "compression", "constraint", "default", "generated", "not", "null"})
_AFTER_TYPE |= {"primary", "references", "storage", "unique"}
_BLOCK_EDGES = frozenset({";", "begin", "then", "else", "loop"})
_SERIAL = frozenset({"serial", "bigserial", "smallserial", "serial2", "serial4", "serial8"})


def read_changes(sql: str) -> Iterator[Change]:
    """The changes of one statement; of a DO block those that stand in its text."""
    return _read(Words(list(tokens(sql))))


def runs_concurrently(sql: str) -> bool:
    """Whether PostgreSQL refuses the statement in a transaction because it says CONCURRENTLY."""
    words = [token.text for token in tokens(sql) if token.kind is Kind.WORD]
    return "concurrently" in words and words[0] in {"create", "drop", "reindex", "alter"}


def type_name(words: Sequence[Token]) -> str:
    """A type on one line: `character varying(20)`, `numeric(10,2)`, `text[]`."""
    text = ""
    for token in words:
        apart = text[-1:].isalnum() and token.kind is not Kind.SYMBOL
        apart = apart or (text.endswith(")") and token.kind is Kind.WORD)
        text += f" {token.text}" if apart else token.text
    return text


def _read(words: Words) -> Iterator[Change]:
    match words.word():
        case "create":
            yield from _create(words)
        case "drop":
            yield from _drop(words)
        case "alter":
            yield from _alter(words)
        case "reindex":
            yield from _reindex(words)
        case "comment" if words.take("on", "index"):
            yield TouchIndex("comment", words.name())
        case "do":
            for token in words.rest():
                if token.kind is Kind.STRING:
                    yield from _block(token.text)


def _block(text: str) -> Iterator[Change]:
    """The statements of a block in PL/pgSQL, wherever one may begin."""
    statement = list[Token]()
    for token in [*tokens(text), Token(Kind.SYMBOL, ";")]:
        if token.kind in (Kind.WORD, Kind.SYMBOL) and token.text in _BLOCK_EDGES:
            yield from _read(Words(statement))
            statement = []
        else:
            statement.append(token)


def _create(words: Words) -> Iterator[Change]:
    while any(words.take(modifier) for modifier in _MODIFIERS):
        pass
    unique = words.take("unique")
    kind = _kind(words)
    if kind == "index":
        words.take("concurrently")
        words.take("if", "not", "exists")
        index = None if words.take("on") else words.name()
        if index is not None:
            words.take("on")
        words.take("only")
        yield TouchIndex("create unique" if unique else "create", index, words.name())
    elif kind in _NAMED:
        words.take("if", "not", "exists")
        yield Create(kind, words.name())


def _drop(words: Words) -> Iterator[Change]:
    kind = _kind(words)
    words.take("concurrently")
    words.take("if", "exists")
    for part in words.parts():
        if kind == "index":
            yield TouchIndex("drop", part.name())
        elif kind in _NAMED:
            yield Drop(kind, part.name())


def _reindex(words: Words) -> Iterator[Change]:
    words.skip_parentheses()
    kind = words.word()
    words.take("concurrently")
    name = words.name()
    yield TouchIndex("reindex", name) if kind == "index" else TouchIndex("reindex", None, name)


def _alter(words: Words) -> Iterator[Change]:
    kind = _kind(words)
    words.take("if", "exists")
    words.take("only")
    name = words.name()
    words.take("*")
    words.skip_parentheses()  # the arguments of a function
    if kind == "index":
        yield TouchIndex("alter", name)
    elif kind in _NAMED:
        for action in words.parts():
            yield from _action(kind, name, action)


def _action(kind: str, name: Name, action: Words) -> Iterator[Change]:
    match action.word():
        case "rename":
            yield from _rename(kind, name, action)
        case "set" if action.take("schema"):
            yield Rename(kind, name, None)
        case "add" if kind in ("table", "foreign table"):
            yield from _add(name, action)
        case "drop" if kind in _WITH_COLUMNS and not action.take("constraint"):
            action.take("attribute" if kind == "type" else "column")
            action.take("if", "exists")
            yield Drop(kind, name, action.identifier())
        case "alter" if kind in _WITH_COLUMNS:
            action.take("attribute" if kind == "type" else "column")
            yield from _alter_column(name, action.identifier(), action)
        case "validate" if action.take("constraint"):
            yield ValidateConstraint(name, action.identifier())


def _rename(kind: str, name: Name, action: Words) -> Iterator[Change]:
    if action.take("to"):
        yield Rename(kind, name, action.identifier())
    elif not action.take("constraint"):
        if action.take("value"):
            yield Rename(kind, name, None, part="a value")
            return
        action.take("attribute" if kind == "type" else "column")
        part = action.identifier()
        action.take("to")
        yield Rename(kind, name, action.identifier(), part)


def _add(table: Name, action: Words) -> Iterator[Change]:
    following = action.rest()[:1]
    if following and following[0].kind is Kind.WORD and following[0].text in _CONSTRAINTS:
        name = action.identifier() if action.take("constraint") else None
        yield _constraint(table, name, action)
        return
    action.take("column")
    action.take("if", "not", "exists")
    column = action.identifier()
    type_ = type_name(action.until(*_AFTER_TYPE))
    default = _default(action)
    yield AddColumn(
        table,
        column,
        type_,
        not_null=action.has("not", "null") or action.has("primary"),
        default=default,
        fills=type_ in _SERIAL or action.has("generated"),
    )
    for kind in ("check", "unique", "primary"):
        if action.has(kind):
            yield AddConstraint(table, None, kind)
    if default and action.has("references"):  # else all are null, and PostgreSQL knows it
        yield AddConstraint(table, None, "foreign")


def _default(action: Words) -> tuple[Token, ...]:
    probe = Words(action.rest())
    probe.until("default")
    return probe.until(*_AFTER_TYPE - {"null"}) if probe.take("default") else ()


def _constraint(table: Name, name: str | None, action: Words) -> AddConstraint:
    kind = action.word()
    not_null = None
    if kind == "check":
        inner = [token for token in action.rest() if token not in ((Kind.SYMBOL, "("), (Kind.SYMBOL, ")"))]
        if [token.text for token in inner[1:4]] == ["is", "not", "null"]:
            ends_there = len(inner) == 4 or inner[4].text == "not"
            not_null = inner[0].text if ends_there else None
    elif kind == "not":
        action.take("null")
        kind, not_null = "not null", action.identifier()
    return AddConstraint(
        table,
        name,
        kind,
        valid=not action.has("not", "valid"),
        using_index=action.has("using", "index"),
        not_null=not_null,
    )


def _alter_column(table: Name, column: str, action: Words) -> Iterator[Change]:
    if action.take("set", "data", "type") or action.take("type"):
        yield AlterColumn(table, column, "type", type_name(action.until("using", "collate", "cascade")))
        return
    verb = action.word()
    for what in (("not", "null"), ("default",)):
        if verb in ("set", "drop") and action.take(*what):
            yield AlterColumn(table, column, " ".join((verb, *what)))


def _kind(words: Words) -> str:
    kind = words.word()
    if kind in _TWO_WORDS and words.take(_TWO_WORDS[kind]):
        return f"{kind} {_TWO_WORDS[kind]}"
    return kind
