"""Reading SQL just far enough to tell what kind of statement it is and what it names. Pure.

This is no parser. Where it matters what a statement does, it is run on a scratch database (`observe`); this is for
what cannot be run, and for names.
"""

from __future__ import annotations

import re

from gasket.migrator.connection import quote_identifier
from gasket.migrator.sql.lexer import Kind, first_word, tokens

_PART = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
NAME = rf"{_PART}(?:\.{_PART})*"
"""A regular expression for a name in squeezed SQL, qualified or not."""

_RELATIONS = r"TABLE|FOREIGN TABLE|SEQUENCE|(?:RECURSIVE )?VIEW|MATERIALIZED VIEW"
_CREATED = re.compile(
    rf"CREATE (?:OR REPLACE )?(?:UNLOGGED )?(?:{_RELATIONS}|TYPE|DOMAIN) (?:IF NOT EXISTS )?(?P<name>{NAME})"
    rf"|ALTER (?:{_RELATIONS}|TYPE|DOMAIN) (?:IF EXISTS )?(?:ONLY )?{NAME} RENAME TO (?P<new>{NAME})",
    re.IGNORECASE,
)


def squeeze(sql: str) -> str:
    """The statement on one line, single spaces between its tokens, without comments and without what its texts say."""
    line = ""
    for kind, text in tokens(sql):
        match kind:
            case Kind.NAME:
                word = quote_identifier(text)
            case Kind.STRING:
                word = "''"
            case Kind.PARAMETER:
                word = f"${text}"
            case _:
                word = text
        touching = not line or word in {".", ",", ")"} or line[-1] in ".("
        line += word if touching else f" {word}"
    return line.rstrip("; ")


def plain_name(name: str, schema: str) -> str:
    """The name as the catalog has it, without the schema if that is the given one."""
    parts = [
        part[1:-1].replace('""', '"') if part.startswith('"') else part.lower() for part in re.findall(_PART, name)
    ]
    return ".".join(parts[1:] if len(parts) > 1 and parts[0] == schema else parts)


def created_names(sql: str, schema: str) -> list[str]:
    """The tables, views, types and sequences that a statement makes in `schema`, or gives a new name there.

    Of a DO statement those that its body makes.
    """
    bodies = [text for kind, text in tokens(sql) if kind is Kind.STRING] if first_word(sql) == "do" else []
    found = [match for text in [sql, *bodies] for match in _CREATED.finditer(squeeze(text))]
    names = [plain_name(match["name"] or match["new"], schema) for match in found]
    return [name for name in names if "." not in name]
