"""CREATE TABLE and the parts of ALTER TABLE, with the statements that share its forms: ALTER VIEW, ALTER SEQUENCE, ...

The lock of each part is that of the PostgreSQL manual, "ALTER TABLE"; a test asks PostgreSQL whether it is right.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from gasket.migrator.sql.expressions import varies
from gasket.migrator.sql.lexer import Kind, Name, Token, Words
from gasket.migrator.sql.locks import LockMode
from gasket.migrator.sql.reading import (
    Action,
    AddColumn,
    AddConstraint,
    AlterColumn,
    Create,
    Drop,
    Rename,
    Touch,
    ValidateConstraint,
)
from gasket.migrator.sql.widening import is_built_in, rewrites

_AE = LockMode.ACCESS_EXCLUSIVE
_SRE = LockMode.SHARE_ROW_EXCLUSIVE
_SUE = LockMode.SHARE_UPDATE_EXCLUSIVE

_CONSTRAINTS = ("constraint", "primary", "unique", "check", "foreign", "exclude", "not")
_AFTER_TYPE = frozenset({"check", "collate", "compression", "constraint", "default", "generated", "not", "null"})
_AFTER_TYPE |= {"primary", "references", "storage", "unique"}
_SERIAL = frozenset({"serial", "bigserial", "smallserial", "serial2", "serial4", "serial8"})
_STRONG_OPTIONS = frozenset({"security_barrier", "security_invoker", "check_option", "user_catalog_table"})
_OTHER_ENDS = "which other tables its foreign keys lock"


def read_create_table(change: Create, words: Words) -> Action:
    """CREATE TABLE, from what follows the name; `change` is what is known of it by then."""
    touches = [touch for touch in _references(words) if touch.relation != change.name]
    told: tuple[str, ...] = ()
    if words.take("partition", "of"):
        parent = words.name()
        touches.append(Touch(parent, _AE))
        told = (f"whether {_dotted(parent)} has a default partition and foreign keys",)
    elif not words.has("inherits"):
        change = replace(change, columns=_columns(Words(words.rest()).inside()))
    words.until("inherits")
    if words.take("inherits"):
        touches += [Touch(part.name(), _SUE) for part in words.inside().parts()]
    return Action(change, tuple(touches), told)


def read_part(kind: str, table: Name, words: Words, was: str | None) -> Action:
    """One part of ALTER TABLE ("add column ..."); `kind` is of the relation, `was` the type of a column before it."""
    match words.word():
        case "rename":
            return _rename(kind, table, words)
        case "set" | "reset" as verb:
            return _set(kind, table, words, verb)
        case "add" if kind in ("table", "foreign table"):
            return _add(table, words)
        case "add" | "drop" | "alter" as verb if kind == "type":
            return _attribute(table, words, verb)
        case "drop" if words.take("constraint"):
            return Action(touches=(Touch(table, _AE),), not_told=(_OTHER_ENDS,))
        case "drop":
            words.take("column")
            words.take("if", "exists")
            return Action(Drop(kind, table, words.identifier()), (Touch(table, _AE),), (_OTHER_ENDS,))
        case "alter" if words.take("constraint"):
            return _alter_constraint(table, words)
        case "alter":
            words.take("column")
            return _alter_column(table, words.identifier(), words, was)
        case "validate":
            words.take("constraint")
            change = ValidateConstraint(table, words.identifier())
            return Action(change, (Touch(table, _SUE, scans=True),), (_OTHER_ENDS,))
        case "attach" if words.take("partition"):
            return _attach(table, words)
        case "detach" if words.take("partition"):
            return _detach(table, words)
        case "enable" | "disable":
            words.take_any("always", "replica")
            return Action.locking(table, _SRE if words.is_at("trigger") else _AE)
        case "cluster":
            return Action.locking(table, _SUE)
        case "inherit":
            return Action(touches=(Touch(table, _AE), Touch(words.name(), _SUE)))
        case _:  # OWNER TO, NO INHERIT, OF, NOT OF, REPLICA IDENTITY, FORCE ROW LEVEL SECURITY, OPTIONS, ...
            return Action.locking(table, _AE)


def _columns(definitions: Words) -> tuple[tuple[str, str], ...]:
    """() when the query of AS or another table (LIKE) tells of them."""
    parts = [part for part in definitions.parts() if not part.is_at(*_CONSTRAINTS)]
    found = tuple(("", "") if part.is_at("like") else _read_column(part) for part in parts)
    return found if all(type_ for _, type_ in found) else ()


def _type_name(words: Sequence[Token]) -> str:
    """A type on one line: `character varying(20)`, `numeric(10,2)`, `text[]`."""
    text = ""
    for token in words:
        apart = text[-1:].isalnum() and token.kind is not Kind.SYMBOL
        apart = apart or (text.endswith(")") and token.kind is Kind.WORD)
        text += f" {token.text}" if apart else token.text
    return text


def _read_column(words: Words) -> tuple[str, str]:
    """Name and type of a column, from its definition."""
    return words.identifier(), _type_name(words.until(*_AFTER_TYPE))


def _references(words: Words) -> tuple[Touch, ...]:
    """The tables that foreign keys in these definitions refer to."""
    tables = []
    tokens = words.rest()
    for position, token in enumerate(tokens):
        if token.is_word("references"):
            tables.append(Words(tokens[position + 1 :]).name())
    return tuple(Touch(table, _SRE) for table in dict.fromkeys(tables))


def _constraint(table: Name, name: str | None, words: Words) -> Action:
    """A table constraint that is added, from its first keyword on."""
    kind = words.word()
    valid = not (words.has("not", "enforced") or words.has("not", "valid"))
    if kind == "foreign":
        own = Touch(table, _SRE, scans=valid)
        return Action(AddConstraint(table, name, valid), (own, *_references(words)))
    if kind in ("unique", "primary", "exclude"):
        if words.has("using", "index"):
            checks_nulls = None if kind == "primary" else False
            return Action(AddConstraint(table, name), (Touch(table, _AE, scans=checks_nulls),))
        return Action(AddConstraint(table, name), (Touch(table, _AE, scans=True, index=name or ""),))
    if kind == "not":
        words.take("null")
        change = AddConstraint(table, name, valid, words.identifier())
        return Action(change, (Touch(table, _AE, scans=None if valid else False),))
    change = AddConstraint(table, name, valid, _column_that_is_not_null(words))
    return Action(change, (Touch(table, _AE, scans=valid),))


def _rename(kind: str, name: Name, words: Words) -> Action:
    mode = _SUE if kind == "index" else _AE
    touches = () if kind in ("type", "domain") else (Touch(name, mode),)
    if words.take("to"):
        return Action(Rename(kind, name, words.identifier()), touches)
    if words.take("constraint"):
        return Action(None, touches)
    if words.take("value"):
        return Action(Rename(kind, name, None, part="a value"), touches)
    words.take("attribute" if kind == "type" else "column")
    part = words.identifier()
    words.take("to")
    return Action(Rename(kind, name, words.identifier(), part), touches)


def _set(kind: str, table: Name, words: Words, verb: str) -> Action:
    if words.take("schema"):
        return Action(Rename(kind, table, None), (Touch(table, _AE),))
    if words.is_at("("):
        strong = kind == "view" or any(token.text in _STRONG_OPTIONS for token in words.inside().rest())
        return Action.locking(table, _AE if strong else _SUE)
    if verb == "set" and words.take("without"):
        return Action.locking(table, _SUE if words.is_at("cluster") else _AE)
    if words.is_at("logged", "unlogged", "tablespace", "access"):
        # Nothing is written anew when the table is that already.
        return Action(
            touches=(Touch(table, _AE, rewrites=None),), not_told=(f"whether {_dotted(table)} is so already",)
        )
    return Action.locking(table, _AE)


def _add(table: Name, words: Words) -> Action:
    if words.is_at(*_CONSTRAINTS):
        name = words.identifier() if words.take("constraint") else None
        return _constraint(table, name, words)
    words.take("column")
    words.take("if", "not", "exists")
    column, type_ = _read_column(words)
    return _add_column(table, column, type_, words)


def _add_column(table: Name, column: str, type_: str, words: Words) -> Action:
    """Rows get the default without being written when it is the same for all (manual, "ALTER TABLE", Notes)."""
    default = _default(words)
    has_value = bool(default) and not default[0].is_word("null")
    generated = words.has("generated")
    identity = words.has("as", "identity")
    stored = generated and words.has("stored")
    virtual = generated and not stored and not identity
    same_for_all = type_ not in _SERIAL and not identity and not stored
    varying = varies(default) if same_for_all else True
    anew, not_told = varying, list[str]()
    if varying is None:
        not_told.append(f"whether the default of {column} differs from row to row")
    elif not (varying or virtual or is_built_in(type_)):
        anew = None
        not_told.append(f"whether {type_} is a domain with a constraint")
    filled = has_value or generated or type_ in _SERIAL
    not_null = words.has("not", "null") or words.has("primary")
    enforced = not words.has("not", "enforced")
    refers = _references(words)
    checks_values = words.has("check") or (bool(refers) and has_value)
    checks_nulls = not_null and (virtual or not filled)
    builds = words.has("unique") or words.has("primary")
    scans = builds or checks_nulls or (checks_values and enforced)
    touch = Touch(table, _AE, scans=scans, rewrites=anew, index="" if builds else None)
    change = AddColumn(table, column, type_, not_null, filled, varying)
    return Action(change, (touch, *refers), tuple(not_told))


def _default(words: Words) -> tuple[Token, ...]:
    probe = Words(words.rest())
    probe.until("default")
    return probe.until(*_AFTER_TYPE - {"null"}) if probe.take("default") else ()


def _alter_column(table: Name, column: str, words: Words, was: str | None) -> Action:
    if words.take("set", "data", "type") or words.take("type"):
        return _alter_type(table, column, words, was)
    if words.take("set", "not", "null"):
        return Action(
            AlterColumn(table, column, "set not null"),
            (Touch(table, _AE, scans=None),),
            (f"whether a valid constraint says already that {column} is not null",),
        )
    for action in ("drop not null", "set default", "drop default"):
        if words.take(*action.split()):
            return Action(AlterColumn(table, column, action), (Touch(table, _AE),))
    if words.take("set", "expression"):
        return Action(touches=(Touch(table, _AE, rewrites=None),), not_told=(f"whether {column} is stored",))
    weak = words.take("set", "statistics") or words.take("set", "(") or words.take("reset", "(")
    return Action.locking(table, _SUE if weak else _AE)


def _alter_type(table: Name, column: str, words: Words, was: str | None) -> Action:
    now = _type_name(words.until("using", "collate", "cascade"))
    computed = words.take("using") and not _is_cast_of(column, words)
    anew = True if computed else rewrites(was, now)
    change = AlterColumn(table, column, "type", now)
    told = [_OTHER_ENDS]
    if anew is None and was:
        told.append(f"whether a value of type {was} is a value of {now} as it is")
    elif anew is None:
        told.append(f"of which type {column} is before it is {now}")
    # The indexes of a table that is not written anew may be built again, and its constraints be checked again.
    return Action(change, (Touch(table, _AE, rewrites=anew, scans=False if anew else None),), tuple(told))


def _is_cast_of(column: str, words: Words) -> bool:
    """Whether the expression is the column itself, or `column::type`."""
    expression = [token for token in words.rest() if token.text not in ("(", ")")]
    return bool(expression) and expression[0].text == column and all(t.is_symbol("::") for t in expression[1:2])


def _alter_constraint(table: Name, words: Words) -> Action:
    words.identifier()
    scans = words.has("enforced") and not words.has("not", "enforced")
    return Action(touches=(Touch(table, _AE, scans=scans),), not_told=(_OTHER_ENDS,))


def _attach(parent: Name, words: Words) -> Action:
    child = words.name()
    told = (
        f"whether a valid constraint of {_dotted(child)} says already what its partition allows",
        f"whether {_dotted(parent)} has a default partition, foreign keys and indexes",
    )
    return Action(touches=(Touch(parent, _SUE), Touch(child, _AE, scans=None)), not_told=told)


def _detach(parent: Name, words: Words) -> Action:
    child = words.name()
    concurrently = words.take("concurrently") or words.take("finalize")
    told = (f"whether {_dotted(parent)} has a default partition and foreign keys",)
    return Action(touches=(Touch(parent, _SUE if concurrently else _AE), Touch(child, _AE)), not_told=told)


def _attribute(type_: Name, words: Words, verb: str) -> Action:
    """Of a composite type. PostgreSQL refuses when a table has a column of it, and changes typed tables by CASCADE."""
    words.take("attribute")
    words.take("if", "exists")
    name = words.identifier()
    told = ("which tables are of this type",) if words.has("cascade") else ()
    if verb == "drop":
        return Action(Drop("type", type_, name), not_told=told)
    if verb == "alter" and (words.take("set", "data", "type") or words.take("type")):
        return Action(AlterColumn(type_, name, "type", _type_name(words.until("collate", "cascade"))), not_told=told)
    return Action(not_told=told)


def _column_that_is_not_null(words: Words) -> str | None:
    inner = [token for token in words.rest() if token.text not in ("(", ")")]
    if [token.text for token in inner[1:4]] != ["is", "not", "null"]:
        return None
    ends_there = len(inner) == 4 or inner[4].is_word("not", "no")
    return inner[0].text if ends_there else None


def _dotted(name: Name) -> str:
    return ".".join(name)
