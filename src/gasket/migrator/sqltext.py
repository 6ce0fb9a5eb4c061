"""Reading SQL just far enough to tell what kind of statement it is and what it names. Pure.

This is no parser. Where it matters what a statement does, it is run on a scratch database (`observe`); this is for
what cannot be run, and for names.
"""

from __future__ import annotations

import re

_PART = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
NAME = rf"{_PART}(?:\s?\.\s?{_PART})*"
"""A regular expression for a name in squeezed SQL, qualified or not (PostgreSQL manual, "Lexical Structure")."""

_IGNORED = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)
    |(?P<string>(?:\b[eE]'(?:\\.|''|[^'\\])*'|'(?:''|[^'])*'))
    |(?P<body>\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
    |(?P<quoted>"(?:""|[^"])*")
    |(?P<space>\s+)""",
    re.DOTALL | re.VERBOSE,
)
_TEMPORARY = re.compile(r"\bTEMP(?:ORARY)?\b", re.IGNORECASE)
_CREATE = re.compile(
    rf"\bCREATE (?:OR REPLACE )?(?P<how>(?:GLOBAL |LOCAL )?(?:TEMP |TEMPORARY |UNLOGGED )?)"
    rf"(?:TABLE|TYPE|DOMAIN|SEQUENCE|(?:RECURSIVE )?VIEW|MATERIALIZED VIEW|FOREIGN TABLE) "
    rf"(?:IF NOT EXISTS )?(?P<name>{NAME})"
    rf"|\bALTER (?:TABLE|TYPE|DOMAIN|SEQUENCE|VIEW|MATERIALIZED VIEW) (?:IF EXISTS )?(?:ONLY )?{NAME} "
    rf"RENAME TO (?P<new>{NAME})",
    re.IGNORECASE,
)


def squeeze(sql: str, *, keep_bodies: bool = False) -> str:
    """The SQL on one line, without comments and without what its string constants say.

    `keep_bodies` leaves the text between dollar quotes in: the statements of a DO block.
    """

    def replace(match: re.Match[str]) -> str:
        if match["string"]:
            return "''"
        if match["body"]:
            return squeeze(match["body"].strip("$"), keep_bodies=True) if keep_bodies else "''"
        return str(match["quoted"] or " ")

    # Twice, for a comment leaves its own space beside others.
    return re.sub(r" {2,}", " ", _IGNORED.sub(replace, sql)).strip(" ;")


def plain_name(name: str, schema: str) -> str:
    """The name as the catalog has it, without the schema if that is the given one."""
    parts = [
        part[1:-1].replace('""', '"') if part.startswith('"') else part.lower() for part in re.findall(_PART, name)
    ]
    return ".".join(parts[1:] if len(parts) > 1 and parts[0] == schema else parts)


def created_names(sql: str, schema: str) -> list[str]:
    """The tables, views, types and sequences that a statement makes in `schema`, or gives a new name there."""
    names = [
        plain_name(match["name"] or match["new"], schema)
        for match in _CREATE.finditer(squeeze(sql, keep_bodies=True))
        if not (match["how"] and _TEMPORARY.search(match["how"]))
    ]
    return [name for name in names if "." not in name]
