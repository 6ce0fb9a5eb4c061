"""The SQL that makes a live object what it is expected to be, where its definition says that. Pure.

Nothing that holds rows is dropped, and no column changes its type: a person decides what that does to the rows.
"""

from __future__ import annotations

import re

from gasket.migrator.catalog.difference import Entry
from gasket.postgres.quoting import quote_identifier

_TABLE_RIGHTS = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER", "MAINTAIN"})
_COLUMN = re.compile(r"(?P<type>.*?)(?P<not_null> NOT NULL)?(?: DEFAULT (?P<default>.*))?", re.DOTALL)
_OF_A_DOMAIN = re.compile(r"\bVALUE\b")
# What stands behind the statement in the definition of an index or a trigger, where that alone does not make it.
_NOT_BY_CREATE = (" INVALID", " DISABLED", " ENABLED REPLICA", " ENABLED ALWAYS")


def mending_sql(entry: Entry) -> str | None:
    """One or more statements; None where none is known."""
    match entry.kind:
        case "function" | "procedure":
            return f"{entry.expected.rstrip()};" if entry.expected else None
        case "index":
            return _made_anew(entry, f"DROP INDEX {entry.name};")
        case "trigger":
            return _made_anew(entry, f"DROP TRIGGER {_part(entry)} ON {entry.owner};")
        case "policy":
            expected = f"CREATE POLICY {_part(entry)} ON {entry.owner} AS {entry.expected}"
            return _replaced(entry, f"DROP POLICY {_part(entry)} ON {entry.owner};", expected)
        case "constraint":
            return _constraint(entry)
        case "column":
            return _column(entry)
        case "privileges":
            return _privileges(entry)
    return None


def _part(entry: Entry) -> str:
    """The name within the table: of what belongs to one, the name begins with that of the table."""
    return entry.name.removeprefix(f"{entry.owner}.")


def _replaced(entry: Entry, drop: str, create: str) -> str:
    if entry.expected is None:
        return drop
    return f"{create.rstrip(';')};" if entry.live is None else f"{drop} {create.rstrip(';')};"


def _made_anew(entry: Entry, drop: str) -> str | None:
    """For an index or a trigger: its definition is the statement that makes it."""
    if entry.expected is not None and entry.expected.endswith(_NOT_BY_CREATE):
        return None
    return _replaced(entry, drop, entry.expected or "")


def _constraint(entry: Entry) -> str | None:
    if entry.name.endswith(" NOT NULL") or _OF_A_DOMAIN.search(f"{entry.expected} {entry.live}"):
        return None
    drop = f"ALTER TABLE {entry.owner} DROP CONSTRAINT {_part(entry)};"
    return _replaced(entry, drop, f"ALTER TABLE {entry.owner} ADD CONSTRAINT {_part(entry)} {entry.expected}")


def _column(entry: Entry) -> str | None:
    """NOT NULL and the default; of another type, or of a generated column, None."""
    if entry.live is None or entry.expected is None or "GENERATED " in f"{entry.live} {entry.expected}":
        return None
    live, expected = _COLUMN.fullmatch(entry.live), _COLUMN.fullmatch(entry.expected)
    if live is None or expected is None or live["type"] != expected["type"]:
        return None
    changes = []
    if live["default"] != expected["default"]:
        changes.append(f"SET DEFAULT {expected['default']}" if expected["default"] else "DROP DEFAULT")
    if live["not_null"] != expected["not_null"]:
        changes.append("SET NOT NULL" if expected["not_null"] else "DROP NOT NULL")
    return f"ALTER TABLE {entry.owner} " + ", ".join(f"ALTER COLUMN {_part(entry)} {c}" for c in changes) + ";"


def _privileges(entry: Entry) -> str | None:
    """Of tables and views; rights on other objects have names that the entry does not tell apart."""
    whole, role = f"{entry.owner} to ", entry.name.rpartition(" to ")[2]
    rights = (entry.expected or entry.live or "").split(", ")
    if not entry.name.startswith(whole) or not _TABLE_RIGHTS.issuperset(rights) or role == "its owner":
        return None
    to = "PUBLIC" if role == "PUBLIC" else quote_identifier(role)
    if entry.expected is None:
        return f"REVOKE {', '.join(rights)} ON {entry.owner} FROM {to};"
    return f"GRANT {', '.join(rights)} ON {entry.owner} TO {to};"
