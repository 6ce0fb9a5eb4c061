"""PostgreSQL's SQL cut into tokens, comments left out (manual, "Lexical Structure").

It cuts, it does not parse: enough to tell a keyword from a text, a quoted name or the body of a function that looks
like one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple


class Kind(Enum):
    """What a token is."""

    WORD = auto()
    """A keyword or an unquoted name, in lower case."""
    NAME = auto()
    """A quoted name, without its quotes."""
    STRING = auto()
    """A text between quotes or dollar quotes, without them; its escapes are left as they are."""
    NUMBER = auto()
    PARAMETER = auto()
    SYMBOL = auto()
    """One character; but two for `::`."""


class Token(NamedTuple):
    """A token and its text."""

    kind: Kind
    text: str


_TOKEN = re.compile(
    r"""
      (?P<blank> \s+ | --[^\n]* )
    | (?P<comment> /\* )
    | [eE]'(?P<escaped> (?: [^'\\] | \\. | '' )* )'
    | (?: [uU]& | [bBxXnN] )?'(?P<text> (?: [^'] | '' )* )'
    | \$(?P<tag> (?: [^\W\d] \w* )? )\$(?P<dollar> .*? )\$(?P=tag)\$
    | (?: [uU]& )?"(?P<name> (?: [^"] | "" )* )"
    | (?P<word> [^\W\d] [\w$]* )
    | (?P<number> \.?\d [\w.]* )
    | \$(?P<parameter> \d+ )
    | (?P<symbol> :: | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")


def tokens(sql: str) -> Iterator[Token]:
    """The tokens of `sql`. A quote without an end is a symbol."""
    position = 0
    while match := _TOKEN.match(sql, position):
        position = match.end()
        match match.lastgroup:
            case "blank":
                pass
            case "comment":
                position = _end_of_comment(sql, position)
            case "word":
                yield Token(Kind.WORD, match["word"].lower())
            case "name":
                yield Token(Kind.NAME, match["name"].replace('""', '"'))
            case "escaped" | "text" | "dollar" as group:
                yield Token(Kind.STRING, match[group])
            case "number":
                yield Token(Kind.NUMBER, match["number"])
            case "parameter":
                yield Token(Kind.PARAMETER, match["parameter"])
            case _:
                yield Token(Kind.SYMBOL, match["symbol"])


def first_word(sql: str) -> str:
    """The keyword that a statement begins with, in lower case, or nothing."""
    first = next(tokens(sql), None)
    return first.text if first is not None and first.kind is Kind.WORD else ""


def _end_of_comment(sql: str, position: int) -> int:
    """Comments nest, unlike in the SQL standard's minimum and in C."""
    depth = 1
    while depth and (edge := _COMMENT_EDGE.search(sql, position)):
        depth += 1 if edge[0] == "/*" else -1
        position = edge.end()
    return len(sql) if depth else position
