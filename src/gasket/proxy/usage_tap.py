"""Reads the tokens of an answer while it passes: from what the backend says of its usage, else estimated.

(OpenAI API reference: `usage` of chat completions, completions, embeddings and responses; `stream_options`.)
"""

from __future__ import annotations

import json

import msgspec

from gasket.proxy.endpoints import Endpoint
from gasket.proxy.events import event_data, split_events
from gasket.proxy.exchange import Exchange

_BYTES_OF_A_TOKEN = 4
"""What OpenAI gives as a rule of thumb for English text."""
_READ_WHOLE = 64 * 1024
_TAIL = 4 * 1024
_MOST_TOKENS = 10**12

_NAME = b'"usage"'
_NONE = (b'"usage":null', b'"usage": null')


class _Usage(msgspec.Struct):
    """The second pair of names is that of responses."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Inner(msgspec.Struct):
    usage: _Usage | None = None


class _Answer(msgspec.Struct):
    """An answer, or an event of one; an event of responses has the answer inside."""

    usage: _Usage | None = None
    response: _Inner | None = None
    choices: list[msgspec.Raw] | None = None


_answer = msgspec.json.Decoder(_Answer)
_usage = msgspec.json.Decoder(_Usage)


class UsageTap:
    """Looks at one answer. `hide`: Gasket asked for the usage and the client did not, so its event is taken out."""

    def __init__(self, endpoint: Endpoint, *, hide: bool = False) -> None:
        self._endpoint = endpoint
        self._hide = hide
        self._usage: _Usage | None = None
        self._events = 0
        self._body = b""

    def events(self, block: bytes) -> bytes:
        """Whole events on their way: what of them goes on."""
        self._events += block.count(b"data:")
        if _NAME not in block or (any(none in block for none in _NONE) and block.count(_NAME) == 1):
            return block
        events = split_events(block)
        kept = [event for event in events if not self._read_event(event)]
        return block if len(kept) == len(events) else b"".join(kept)

    def body(self, piece: bytes) -> None:
        """A piece of an answer that is no stream of events. Of a long one the end is enough: the usage stands there."""
        body = self._body + piece
        self._body = body if len(body) <= _READ_WHOLE else body[-_TAIL:]

    def settle(self, exchange: Exchange, *, whole: bool) -> None:
        """Write down what was found, or an estimate. `whole`: the answer came to its end."""
        if not self._endpoint.counts_tokens or exchange.status >= 400:
            return
        if self._usage is None and whole and not exchange.streamed:
            self._usage = _find(self._body, exchange.bytes_out)
        if self._usage is not None:
            exchange.prompt_tokens, exchange.completion_tokens = _count(self._usage)
            return
        exchange.estimated = True
        exchange.prompt_tokens = exchange.bytes_in // _BYTES_OF_A_TOKEN
        exchange.completion_tokens = self._events if exchange.streamed else exchange.bytes_out // _BYTES_OF_A_TOKEN

    def _read_event(self, event: bytes) -> bool:
        """Whether the event is nothing but the usage that Gasket asked for."""
        if _NAME not in event:
            return False
        try:
            found = _answer.decode(event_data(event))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        usage = found.usage or (found.response.usage if found.response else None)
        if usage is None:
            return False
        self._usage = usage
        return self._hide and found.usage is not None and found.choices == []


def _find(body: bytes, size: int) -> _Usage | None:
    """The usage of a JSON answer of which `body` is all, or the end."""
    try:
        if size <= _READ_WHOLE:
            found = _answer.decode(body)
            return found.usage or (found.response.usage if found.response else None)
        _, name, rest = body.rpartition(_NAME)
        if not name:
            return None
        value, _ = json.JSONDecoder().raw_decode(rest.decode(errors="replace").lstrip(" :\r\n\t"))
        return msgspec.convert(value, _Usage)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _count(usage: _Usage) -> tuple[int, int]:
    """Tokens of the request and of the answer, as a backend has them; what cannot be is cut off."""
    prompt = usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens or 0
    answer = usage.completion_tokens if usage.completion_tokens is not None else usage.output_tokens
    if answer is None:
        answer = (usage.total_tokens or prompt) - prompt
    return min(max(prompt, 0), _MOST_TOKENS), min(max(answer, 0), _MOST_TOKENS)
