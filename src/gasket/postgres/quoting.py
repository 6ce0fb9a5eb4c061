"""Names as SQL text."""

from __future__ import annotations

from collections.abc import Sequence


def quote_identifier(name: str) -> str:
    """A name as SQL text (PostgreSQL manual, "Identifiers and Key Words")."""
    return '"' + name.replace('"', '""') + '"'


def quote_name(name: Sequence[str], schema: str) -> str:
    """A name of one or more parts as SQL text, in `schema` where it has no schema of its own."""
    return ".".join(map(quote_identifier, name if len(name) > 1 else (schema, *name)))
