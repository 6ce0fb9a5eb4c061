"""PostgreSQL's SQL cut into tokens and into statements (PostgreSQL manual, "Lexical Structure").

It cuts, it does not parse: it tells a keyword from a string, from a quoted name and from the body of a function, and
lets a reader walk along them. Comments are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import NamedTuple

Name = tuple[str, ...]
"""The parts of a name: ("table",) or ("schema", "table")."""

_NAME_BYTES = 63  # NAMEDATALEN - 1: PostgreSQL cuts longer names off


class Kind(Enum):
    """What a token is."""

    WORD = auto()
    """A keyword or an unquoted name, in lower case."""
    NAME = auto()
    """A quoted name, without its quotes."""
    STRING = auto()
    """A text between quotes or dollar quotes, without them; its backslashes are left as they are."""
    NUMBER = auto()
    PARAMETER = auto()
    SYMBOL = auto()
    """One character; but two for `::` and `:=`."""


class Token(NamedTuple):
    """A token, its text, and where it stands in the SQL."""

    kind: Kind
    text: str
    start: int
    end: int

    def is_symbol(self, text: str) -> bool:
        return self.kind is Kind.SYMBOL and self.text == text

    def is_word(self, *texts: str) -> bool:
        return self.kind is Kind.WORD and self.text in texts

    @property
    def is_identifier(self) -> bool:
        return self.kind in (Kind.WORD, Kind.NAME)


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
    | (?P<symbol> :: | := | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_MAY_SPLIT = re.compile(r";|--|/\*")  # of a text without these cutting it into tokens would find one statement
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_KINDS = {
    "word": Kind.WORD,
    "name": Kind.NAME,
    "escaped": Kind.STRING,
    "text": Kind.STRING,
    "dollar": Kind.STRING,
    "number": Kind.NUMBER,
    "parameter": Kind.PARAMETER,
    "symbol": Kind.SYMBOL,
}


def is_same_name(name: Name, other: Name) -> bool:
    """Whether two names are of one object; one without a schema is in any schema that is searched."""
    return name[-1:] == other[-1:] and (len(name) != len(other) or name == other)


def tokens(sql: str) -> Iterator[Token]:
    """The tokens of `sql`. A quote without an end is a symbol."""
    position = 0
    while match := _TOKEN.match(sql, position):
        start, position = match.span()
        group = match.lastgroup or "symbol"
        if group == "blank":
            continue
        if group == "comment":
            position = _end_of_comment(sql, position)
            continue
        text = match[group]
        if group == "word":
            text = _cut_off(_folded(text))
        elif group in ("text", "escaped"):
            text = text.replace("''", "'")
        elif group == "name":
            text = _cut_off(text.replace('""', '"'))
        yield Token(_KINDS[group], text, start, position)


def statements(sql: str) -> list[str]:
    """The statements of a text, without the semicolons between them.

    A text of one statement, its semicolon and its comments included, is returned as it is.
    """
    if sql.strip() and not _MAY_SPLIT.search(sql):
        return [sql.strip()]
    found = [sql[group[0].start : group[-1].end] for group in split(sql)]
    return [sql.strip()] if len(found) == 1 else found


def split(sql: str) -> Iterator[list[Token]]:
    """The tokens of each statement. The body of a function in standard SQL is a part of its statement."""
    statement = list[Token]()
    depth = blocks = 0
    for token in tokens(sql):
        if token.is_symbol(";") and depth <= 0 and not blocks:
            if statement:
                yield statement
            statement, depth = [], 0
            continue
        depth += _step(token)
        begins_body = token.is_word("atomic") and bool(statement) and statement[-1].is_word("begin")
        if begins_body or (blocks and token.is_word("case")):
            blocks += 1
        elif blocks and token.is_word("end"):
            blocks -= 1
        statement.append(token)
    if statement:
        yield statement


def shortened(text: str, length: int = 200) -> str:
    """A statement or a reason for a log line or an error: one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


class Words:
    """The tokens of one statement, and a position in them."""

    def __init__(self, words: Sequence[Token]) -> None:
        self._words = words
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._words)

    def rest(self) -> Sequence[Token]:
        """The tokens that are not consumed yet."""
        return self._words[self._at :]

    def next(self) -> Token | None:
        """The token that comes next, not consumed."""
        return self._words[self._at] if self else None

    def is_at(self, *words: str) -> bool:
        """Whether one of these keywords or symbols comes next."""
        token = self.next()
        return token is not None and token.kind in (Kind.WORD, Kind.SYMBOL) and token.text in words

    def take(self, *expected: str) -> bool:
        """Consume these words and symbols, if they come next."""
        following = self._words[self._at : self._at + len(expected)]
        if tuple(t.text for t in following if t.kind in (Kind.WORD, Kind.SYMBOL)) != expected:
            return False
        self._at += len(expected)
        return True

    def take_any(self, *expected: str) -> bool:
        """Consume as many of these words as come next, in any order."""
        start = self._at
        while any(self.take(word) for word in expected):
            pass
        return self._at > start

    def skip(self) -> None:
        """Consume one token."""
        self._at += 1

    def word(self) -> str:
        """Consume a keyword; empty when there is none."""
        return self._one_of(Kind.WORD)

    def identifier(self) -> str:
        """Consume one part of a name; empty when there is none."""
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

    def inside(self) -> Words:
        """Consume the parentheses that come next; what is between them, empty when none come next."""
        if not self.is_at("("):
            return Words(())
        start, depth = self._at, 1
        self._at += 1
        while self and depth:
            depth += _step(self._words[self._at])
            self._at += 1
        return Words(self._words[start + 1 : self._at - 1])

    def parts(self) -> Iterator[Words]:
        """What is left, cut at the commas outside of parentheses."""
        depth, part = 0, list[Token]()
        for token in self.rest():
            depth += _step(token)
            if token.is_symbol(",") and not depth:
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


def _folded(word: str) -> str:
    """PostgreSQL folds ASCII letters alone when the database's encoding has more than one byte a character."""
    return word.lower() if word.isascii() else "".join(c.lower() if c.isascii() else c for c in word)


def _cut_off(name: str) -> str:
    encoded = name.encode("utf-8", "replace")
    return name if len(encoded) <= _NAME_BYTES else encoded[:_NAME_BYTES].decode("utf-8", "ignore")


def _step(token: Token) -> int:
    """How much deeper in parentheses or brackets the text is after this token."""
    if token.kind is not Kind.SYMBOL:
        return 0
    return (token.text in "([") - (token.text in ")]")


def _end_of_comment(sql: str, position: int) -> int:
    """Comments nest, unlike in C."""
    depth = 1
    while depth and (edge := _COMMENT_EDGE.search(sql, position)):
        depth += 1 if edge[0] == "/*" else -1
        position = edge.end()
    return len(sql) if depth else position
