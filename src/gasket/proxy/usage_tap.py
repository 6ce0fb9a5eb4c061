"""Reads the tokens of an answer while it passes: from what the backend says of its usage, else estimated.

(OpenAI API reference: `stream_options`.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from gasket.proxy.endpoints import Endpoint
from gasket.proxy.estimates import DataMeter, estimate_answer, estimate_request
from gasket.proxy.events import BORDERS, LONGEST_HELD, change_data, event_data, split_events
from gasket.proxy.exchange import Exchange
from gasket.proxy.usage_counts import UNREADABLE, Count, count_of, larger, read_answer, usage_of
from gasket.proxy.usage_scanner import UsageScanner, without_usage

_READ_WHOLE = 64 * 1024

_NAME = b'"usage"'
_TOLD = re.compile(rb'"usage"(?!\s*+:\s*+null)')
"""Some backends say in every event that there is none. Anything else may stand behind it, also the end of a `data`."""
_OBJECT_OR_NOTHING_YET = (b"{", b"")
_NOTHING = (b"", b"null", b"[]", b"{}", b'""')
_OF_EVERY_EVENT = frozenset(
    {"id", "object", "created", "model", "usage", "system_fingerprint", "service_tier", "provider", "obfuscation"}
)
"""What an event that has nothing but the usage may have, too: no client misses it."""

_read_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class UsageTap:
    """Looks at one answer, if its endpoint is metered.

    `hide`: Gasket asked for the usage and the client did not, so it is taken out. `request` is the request's body, for
    an estimate of its tokens.
    """

    def __init__(self, endpoint: Endpoint, *, hide: bool = False, request: bytes = b"") -> None:
        self._endpoint = endpoint
        self._hide = hide
        self._request = request
        self._said: Count | None = None
        self._events = 0
        self._begun = b""
        """A plain answer, as long as it is short."""
        self._scanner: UsageScanner | None = None
        """Of a plain answer that is long, or of an event that is being passed on in pieces."""
        self._data: DataMeter | None = None
        self._ignored = not endpoint.metered

    def events(self, block: bytes) -> bytes:
        """Whole events on their way, or a piece of one that is too long to be held: what of them goes on."""
        self._events += block.count(b"data:")
        if self._scanner is not None or (len(block) > LONGEST_HELD and not block.endswith(BORDERS)):
            return self._pieces(block)
        if _NAME not in block or (told := _TOLD.search(block)) is None:
            return block
        # Of a fast stream all events may be in one block, and only its last ones are of interest.
        border = -1 if b"\r" in block else block.rfind(b"\n\n", 0, told.start())
        start = 0 if border < 0 else border + 2
        return block[:start] + b"".join(map(self._read_event, split_events(block[start:])))

    def body(self, piece: bytes) -> None:
        """A piece of an answer that is no stream of events.

        What does not begin as JSON's objects do, such as sound, is not looked at.
        """
        if self._scanner is not None:
            self._scan(self._scanner, piece)
        elif not self._ignored:
            body = self._begun + piece
            if not self._begun and body.lstrip()[:1] not in _OBJECT_OR_NOTHING_YET:
                self._ignored = True
            elif len(body) <= _READ_WHOLE:
                self._begun = body
            else:
                self._begun, self._scanner = b"", UsageScanner()
                self._scan(self._scanner, body)

    def settle(self, exchange: Exchange, *, whole: bool) -> None:
        """Write down what was found, or an estimate. `whole`: the answer came to its end.

        Of a stream that did not, a count of fewer tokens than events is no final one: some backends say one in their
        first event, or in each, and the rest came after it.
        """
        if not self._endpoint.metered or exchange.status >= 400:
            return
        if whole or exchange.streamed:
            self._read_rest()
        estimates = self._endpoint.estimates_tokens
        said = self._said
        if said is not None and (whole or not estimates or said.completion >= self._events):
            exchange.prompt_tokens, exchange.completion_tokens = said.prompt, said.completion
        elif estimates:
            exchange.estimated = True
            exchange.prompt_tokens = (said.prompt if said is not None else 0) or estimate_request(
                exchange.bytes_in, self._request
            )
            if self._endpoint.generates:
                exchange.completion_tokens = self._events if exchange.streamed else self._estimated_answer(exchange)
        else:
            return
        if said is not None:
            exchange.cached_tokens, exchange.reasoning_tokens, exchange.audio_tokens = said[2:]

    def _scan(self, scanner: UsageScanner, piece: bytes) -> None:
        if not scanner.done:
            scanner.feed(piece)
            if self._endpoint.estimates_tokens and self._endpoint.generates:
                self._data = self._data or DataMeter()
                self._data.feed(piece)

    def _estimated_answer(self, exchange: Exchange) -> int:
        data = self._data or DataMeter()
        data.feed(self._begun)
        return estimate_answer(exchange.bytes_out, data)

    def _pieces(self, block: bytes) -> bytes:
        events = split_events(block)
        ends = block.endswith(BORDERS)
        for number, event in enumerate(events, start=1):
            whole = ends or number < len(events)
            if self._scanner is None and (whole or len(event) <= LONGEST_HELD):
                events[number - 1] = self._read_event(event)
                continue
            self._scanner = self._scanner or UsageScanner()
            self._scanner.feed(event)
            if whole:
                self._note(self._scanner.found)
                self._scanner = None
        return b"".join(events)

    def _read_event(self, event: bytes) -> bytes:
        """What of an event goes on."""
        if _NAME not in event or _TOLD.search(event) is None:
            return event
        data = event_data(event)
        try:
            answer = read_answer(data)
        except UNREADABLE:
            return event
        self._note(usage_of(answer))
        if not self._hide or answer.usage is None:
            return event
        return b"" if _is_nothing_else(data) else change_data(event, data, without_usage(data))

    def _read_rest(self) -> None:
        """At the end of the answer."""
        if self._scanner is not None:
            self._note(self._scanner.found)
        elif self._begun:
            try:
                self._note(usage_of(read_answer(self._begun)))
            except UNREADABLE:
                return

    def _note(self, usage: Mapping[str, Any] | None) -> None:
        count = None if usage is None else count_of(usage, generates=self._endpoint.generates)
        if count is not None:
            said = self._said
            self._said = larger(said, count) if said is not None and self._endpoint.tells_parts else count


def _is_nothing_else(data: bytes) -> bool:
    """Whether an event has nothing but its usage, and what every event has."""
    return all(
        name in _OF_EVERY_EVENT or b"".join(bytes(value).split()) in _NOTHING
        for name, value in _read_members(data).items()
    )
