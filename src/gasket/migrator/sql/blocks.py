"""The statements of a DO block in PL/pgSQL. Which of them run is decided when the block runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from gasket.migrator.sql.expressions import acts_outside, told_of_functions
from gasket.migrator.sql.lexer import Kind, Token, Words, split, tokens
from gasket.migrator.sql.reading import Action, Reading, Setting, any_of

_EDGES = (";", "begin", "then", "else", "loop")
# Of those that SQL knows too, the words that mean something else in a block.
_OF_THE_BLOCK = ("end", "declare", "close", "fetch", "move")

_ReadStatement = Callable[[Sequence[Token]], Reading]


def read_do(words: Words, read: _ReadStatement) -> Reading:
    """DO; `read` reads one statement. The block does at most what its statements do."""
    language = _language(words.rest())
    if language != "plpgsql":
        return Reading(
            "do", (Action(not_told=(f"what a block in {language} does",)),), outside_database=None, writes_rows=None
        )
    body = next((token.text for token in words.rest() if token.kind is Kind.STRING), "")
    readings = [_read_part(part, read) for part in _parts(body)]
    actions = tuple(action for reading in readings for action in reading.actions)
    if any(action.touches for action in actions):
        actions += (Action(not_told=("which statements of the DO block run",)),)
    return Reading(
        "do",
        actions,
        outside_database=any_of(reading.outside_database for reading in readings),
        writes_rows=any_of(reading.writes_rows for reading in readings),
        setting=_left_by([reading.setting for reading in readings if reading.setting]),
    )


def acts_outside_when_run(body: str, read: _ReadStatement) -> bool:
    """Whether a statement in the body of a function acts outside of the database."""
    return any(_read_part(part, read).outside_database for part in _parts(body))


def _left_by(settings: Sequence[Setting]) -> Setting | None:
    """Of the settings that a block changes, one that it leaves on; else the last."""
    last = {setting.name: setting for setting in settings if not setting.local}
    left = (setting for setting in last.values() if not setting.resets)
    return next(left, settings[-1] if settings else None)


def _read_part(part: list[Token], read: _ReadStatement) -> Reading:
    if part[0].is_word("for"):
        part = part[1 + next((n for n, token in enumerate(part) if token.is_word("in")), 0) :] or part
    first = part[0]
    if first.is_word("execute"):
        return _read_execute(part, read)
    if first.is_word("perform"):
        return read([first._replace(text="select"), *part[1:]])
    if not first.is_word(*_OF_THE_BLOCK):
        reading = read(part)
        if reading.kind:
            return reading
    told = told_of_functions(part)
    return Reading(
        "", (Action(not_told=told),), writes_rows=None if told else False, outside_database=acts_outside(part)
    )


def _read_execute(part: list[Token], read: _ReadStatement) -> Reading:
    """EXECUTE: a text that is written out is read; one that is put together is not known."""
    literal = next((token.text for token in part if token.kind is Kind.STRING), "")
    readings = [read(statement) for statement in split(literal)]
    if len(part) == 2 and len(readings) == 1:
        return readings[0]
    outside = True if any(reading.outside_database for reading in readings) else None
    return Reading("execute", (Action(not_told=("what EXECUTE runs",)),), outside_database=outside, writes_rows=None)


def _parts(text: str) -> Iterator[list[Token]]:
    """The text of a block, cut wherever a statement may begin."""
    part = list[Token]()
    depth = cases = 0
    for token in tokens(text):
        depth += token.is_symbol("(") - token.is_symbol(")")
        if token.is_word("case") and part:  # an expression: its THEN and ELSE begin no statement
            cases += 1
        elif token.is_word("end") and cases:
            cases -= 1
        if depth <= 0 and not cases and (token.is_symbol(";") or token.is_word(*_EDGES)):
            if part:
                yield part
            part = []
        else:
            part.append(token)
    if part:
        yield part


def _language(words: Sequence[Token]) -> str:
    for word, after in pairwise(words):
        if word.is_word("language"):
            return after.text.lower()
    return "plpgsql"
