"""Reads the tokens of an answer while it passes: from what the backend says of its usage, else estimated.

(OpenAI API reference: `usage` of chat completions, completions, embeddings and responses; `stream_options`.)
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from gasket.proxy.endpoints import Endpoint, Kind
from gasket.proxy.events import event_data, split_events
from gasket.proxy.exchange import Exchange
from gasket.usage.entry import MOST_TOKENS

_BYTES_OF_A_TOKEN = 4
"""What OpenAI gives as a rule of thumb for English text."""
_READ_WHOLE = 64 * 1024
_TAIL = 4 * 1024

_NAME = b'"usage"'
_NONE = (b'"usage":null', b'"usage": null')
_OBJECT_OR_NOTHING_YET = (b"{", b"")
_NO_CHOICES = (b"", b"null", b"[]")
_UNREADABLE = (ValueError, RecursionError)
"""What parsers raise; msgspec's errors are ValueErrors, too."""
_ABSENT = msgspec.Raw()

_Count = tuple[int, int]
"""Tokens of the request and of the answer."""


class _Usage(msgspec.Struct):
    """The second pair of names is that of responses. Of any type: one odd number does not make the rest unreadable."""

    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None
    input_tokens: Any = None
    output_tokens: Any = None


class _Answer(msgspec.Struct):
    """An answer, or an event of one; an event of responses has the answer inside."""

    usage: _Usage | None = None
    response: msgspec.Raw = _ABSENT
    choices: msgspec.Raw = _ABSENT


_answer = msgspec.json.Decoder(_Answer)


class UsageTap:
    """Looks at one answer, unless it is of a stateful endpoint: whoever reads a stored response uses nothing.

    `hide`: Gasket asked for the usage and the client did not, so its event is taken out.
    """

    def __init__(self, endpoint: Endpoint, *, hide: bool = False) -> None:
        self._endpoint = endpoint
        self._hide = hide
        self._said: _Count | None = None
        self._events = 0
        self._body: bytes | None = b"" if endpoint.kind is Kind.STATELESS else None
        """None: it is not looked at."""

    def events(self, block: bytes) -> bytes:
        """Whole events on their way: what of them goes on."""
        self._events += block.count(b"data:")
        if _NAME not in block or (any(none in block for none in _NONE) and block.count(_NAME) == 1):
            return block
        events = split_events(block)
        kept = [event for event in events if not self._read_event(event)]
        return block if len(kept) == len(events) else b"".join(kept)

    def body(self, piece: bytes) -> None:
        """A piece of an answer that is no stream of events. Of a long one the end is enough: the usage stands there.
        What does not begin as JSON's objects do, such as sound, is not looked at.
        """
        if self._body is None:
            return
        body = self._body + piece
        if not self._body and body.lstrip()[:1] not in _OBJECT_OR_NOTHING_YET:
            self._body = None
        else:
            self._body = body if len(body) <= _READ_WHOLE else body[-_TAIL:]

    def settle(self, exchange: Exchange, *, whole: bool) -> None:
        """Write down what was found, or an estimate. `whole`: the answer came to its end.

        Of a stream that did not, a count of fewer tokens than events is no final one: some backends say one in their
        first event, or in each, and the rest came after it.
        """
        if self._endpoint.kind is not Kind.STATELESS or exchange.status >= 400:
            return
        if self._said is None and whole and self._body:
            self._said = _find(self._body, exchange.bytes_out)
        estimates = self._endpoint.estimates_tokens
        if self._said is not None and (whole or not estimates or self._said[1] >= self._events):
            exchange.prompt_tokens, exchange.completion_tokens = self._said
        elif estimates:
            exchange.estimated = True
            prompt = self._said[0] if self._said is not None else 0
            exchange.prompt_tokens = prompt or exchange.bytes_in // _BYTES_OF_A_TOKEN
            exchange.completion_tokens = self._events if exchange.streamed else exchange.bytes_out // _BYTES_OF_A_TOKEN

    def _read_event(self, event: bytes) -> bool:
        """Whether the event is nothing but the usage that Gasket asked for."""
        if _NAME not in event:
            return False
        try:
            found = _answer.decode(event_data(event))
        except _UNREADABLE:  # also a piece of an event that is too long to be held: a picture, or all of a long text
            self._said = _last_count(event) or self._said
            return False
        self._said = _own_count(found) or self._said
        return self._hide and found.usage is not None and b"".join(bytes(found.choices).split()) in _NO_CHOICES


def _find(body: bytes, size: int) -> _Count | None:
    """The count of a JSON answer of which `body` is all, or the end."""
    if size > _READ_WHOLE:
        return _last_count(body)
    try:
        return _own_count(_answer.decode(body))
    except _UNREADABLE:
        return None


def _last_count(part: bytes) -> _Count | None:
    """What the last `usage` in a part of some JSON says."""
    _, name, rest = part.rpartition(_NAME)
    try:
        value, _ = json.JSONDecoder().raw_decode(rest.decode(errors="replace").lstrip(" :\r\n\t"))
        return _count(msgspec.convert(value, _Usage)) if name else None
    except _UNREADABLE:
        return None


def _own_count(answer: _Answer) -> _Count | None:
    """What the answer itself says, and nothing that it is about."""
    if answer.usage is not None:
        return _count(answer.usage)
    if answer.response is _ABSENT:
        return None
    try:
        inner = _answer.decode(answer.response).usage
    except _UNREADABLE:
        return None
    return None if inner is None else _count(inner)


def _count(usage: _Usage) -> _Count | None:
    """As a backend says it: what cannot be is cut off, and without any number it has said nothing."""
    prompt = _number(usage.prompt_tokens, usage.input_tokens)
    answer = _number(usage.completion_tokens, usage.output_tokens)
    total = _number(usage.total_tokens)
    if prompt is None and answer is None and total is None:
        return None
    prompt = prompt or 0
    if answer is None:
        answer = (total or prompt) - prompt
    return min(max(prompt, 0), MOST_TOKENS), min(max(answer, 0), MOST_TOKENS)


def _number(*values: Any) -> int | None:
    """The first of these that is a whole number; `12.0` is one, and `true` is not."""
    for value in values:
        if type(value) is int or (type(value) is float and value.is_integer()):
            return int(value)
    return None
