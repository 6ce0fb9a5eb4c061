"""PostgreSQL's SQL cut into tokens, comments left out (manual, "Lexical Structure").

It cuts, it does not parse: enough to tell a keyword from a text, a quoted name or the body of a function that looks
like one, and to walk along them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import NamedTuple

Name = tuple[str, ...]
"""The parts of a name: ("table",) or ("schema", "table")."""


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


class Words:
    """The tokens of a statement, and how far along them one is."""

    def __init__(self, words: Sequence[Token]) -> None:
        self._words = words[:-1] if words and words[-1] == (Kind.SYMBOL, ";") else words
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._words)

    def rest(self) -> Sequence[Token]:
        """What is not consumed yet."""
        return self._words[self._at :]

    def take(self, *expected: str) -> bool:
        """Consume these words and symbols, if they come next."""
        following = self._words[self._at : self._at + len(expected)]
        if tuple(t.text for t in following if t.kind in (Kind.WORD, Kind.SYMBOL)) != expected:
            return False
        self._at += len(expected)
        return True

    def word(self) -> str:
        """Consume a keyword; nothing where there is none."""
        return self._one_of(Kind.WORD)

    def identifier(self) -> str:
        """Consume one part of a name; nothing where there is none."""
        return self._one_of(Kind.WORD, Kind.NAME)

    def name(self) -> Name:
        """Consume a name with all its parts."""
        parts = [self.identifier()]
        while self.take("."):
            parts.append(self.identifier())
        return tuple(parts)

    def until(self, *stops: str) -> tuple[Token, ...]:
        """Consume up to one of these keywords outside of parentheses, or everything."""
        depth, start = 0, self._at
        while self:
            token = self._words[self._at]
            depth += _step(token)
            if not depth and token.kind is Kind.WORD and token.text in stops:
                break
            self._at += 1
        return tuple(self._words[start : self._at])

    def skip_parentheses(self) -> None:
        """Consume what is in the parentheses that come next, if any do."""
        depth = 0
        while self and (depth or self._words[self._at] == (Kind.SYMBOL, "(")):
            depth += _step(self._words[self._at])
            self._at += 1

    def parts(self) -> Iterator[Words]:
        """What is left, cut at the commas outside of parentheses."""
        depth, part = 0, list[Token]()
        for token in self.rest():
            depth += _step(token)
            if token == (Kind.SYMBOL, ",") and not depth:
                yield Words(part)
                part = []
            else:
                part.append(token)
        if part:
            yield Words(part)

    def has(self, *expected: str) -> bool:
        """Whether these keywords stand in what is left, one after the other, outside of parentheses."""
        probe = Words(self.rest())
        while probe:
            probe.until(expected[0])
            if probe.take(*expected):
                return True
            probe.word()
        return False

    def _one_of(self, *kinds: Kind) -> str:
        if self and self._words[self._at].kind in kinds:
            self._at += 1
            return self._words[self._at - 1].text
        return ""


def _step(token: Token) -> int:
    """How much deeper in parentheses or brackets the text is after this token."""
    if token.kind is not Kind.SYMBOL:
        return 0
    return (token.text in "([") - (token.text in ")]")


def _end_of_comment(sql: str, position: int) -> int:
    """Comments nest, unlike in the SQL standard's minimum and in C."""
    depth = 1
    while depth and (edge := _COMMENT_EDGE.search(sql, position)):
        depth += 1 if edge[0] == "/*" else -1
        position = edge.end()
    return len(sql) if depth else position
