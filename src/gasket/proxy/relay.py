"""Passes an answer on, byte for byte, as it comes."""

from __future__ import annotations

import time
from collections.abc import Coroutine, Iterable
from typing import Any

from litestar.types import Message, Send

from gasket.deadlines import Deadlines
from gasket.proxy.answer import Answer, explain
from gasket.proxy.endpoints import speaks_anthropic
from gasket.proxy.errors import ClientGoneError, error_body
from gasket.proxy.errors_in_success import NAMES_ERROR, READ_AHEAD_WITHIN, ErrorInSuccess, error_in_events
from gasket.proxy.events import COMMENT, EventStream, begin_like_events, error_event, event_data
from gasket.proxy.exchange import Exchange, Outcome
from gasket.proxy.headers import downstream
from gasket.proxy.usage_tap import UsageTap
from gasket.server.errors import GatewayError
from gasket.upstream.client import Response
from gasket.upstream.connection import Fields
from gasket.upstream.failures import BrokenAnswerError, UpstreamError

STALLED_AFTER = 300.0
LAST_SEND_TIMEOUT = 1.0
"""Seconds for which a client may read nothing: while it is answered, and for the last word to it."""

COMMENT_AFTER = 15.0
FIRST_COMMENT_AFTER = COMMENT_AFTER - READ_AHEAD_WITHIN
"""Seconds of silence in a stream after which the client gets a comment: proxies and clients give up a silent one.
Before the first one the answer was read ahead, and the client has waited for as long as that."""

_EVENT_STREAM = b"text/event-stream"
_NO_BUFFERING = (b"x-accel-buffering", b"no")
_DONE = b"[DONE]"
_WITHOUT_CONTENT = (204, 304)
_MESSAGE_STOP = b'"message_stop"'
_HAS_LAST_WORD = ("/chat/completions", "/completions", "/messages")
"""Endpoints whose streams end with `[DONE]`, or with the event `message_stop`."""
_OBJECT_OR_LIST = (b"{", b"[")


class Relay:
    """One answer on its way to the client. `extra` are fields that every answer of the replica gets."""

    def __init__(
        self, exchange: Exchange, answer: Answer, send: Send, *, tap: UsageTap, deadlines: Deadlines, extra: Fields
    ) -> None:
        self._exchange = exchange
        self._answer = answer
        self._send = send
        self._tap = tap
        self._deadlines = deadlines
        self._extra = extra
        self._events: EventStream | None = None
        self._said_last_word = False
        self._clean = True
        """Whether what the client got so far ends with a whole event."""

    async def run(self) -> None:
        """Pass everything on.

        Raises:
            UpstreamFailedError, UpstreamTimeoutError: the answer broke off. `break_off` is what the client is due then.
        """
        exchange, response = self._exchange, self._answer.response
        whole = False
        try:
            first = b""
            if self._says_events(response):
                self._events = EventStream()
            elif exchange.asks_for_stream and response.status < 300 and not response.codings:
                first = await self._recognize(response)
            await self._start(response)
            exchange.status, exchange.first_byte = response.status, time.monotonic()
            if not first and not response.has_arrived:
                await self._body(b"", more=True)  # the server sends the head now
            if self._events is None:
                await self._pass_on(response, first)
            else:
                await self._pass_events_on(response, self._events, first)
            whole = True
        except UpstreamError as error:
            self._answer.broke_off(error)
            if exchange.outcome is Outcome.OK:  # else it has told of its failure before
                exchange.note_failure(self._answer.backend, error.kind)
            raise explain(error, self._answer.backend) from error
        finally:
            if exchange.first_byte is not None:
                # After `[DONE]` many a client leaves at once, and what is missing then is no part of the answer.
                exchange.streamed = self._events is not None
                self._tap.settle(exchange, whole=whole or self._said_last_word)

    def _says_events(self, response: Response) -> bool:
        """Whether it is a stream of events by its type, which somebody here can read."""
        content_type = response.field(b"content-type").strip().lower()
        return content_type.startswith(_EVENT_STREAM) and not response.codings

    async def _recognize(self, response: Response) -> bytes:
        """Find out whether the answer is a stream of events, where the type does not say it although the client asked
        for a stream: the first bytes do, which are returned.
        """
        first = b""
        while (events := begin_like_events(first)) is None and not response.at_end:
            first += await response.piece()
        self._events = EventStream() if events else None
        return first

    async def break_off(self, reason: GatewayError) -> None:
        """An answer that is cut short never looks whole: of events the last is an error. Any other is left without its
        end, at which the server breaks the connection; so is a stream in the middle of an event, which would look whole
        with anything behind it.
        """
        if self._events is not None and self._clean and self._exchange.first_byte is not None:
            path = self._exchange.path
            error = error_body(reason, path, self._exchange.request_id)
            last = error_event(error, name=b"error" if speaks_anthropic(path) else b"")
            event: Message = {"type": "http.response.body", "body": last, "more_body": False}
            await _send_in_time(self._send, event, self._deadlines, LAST_SEND_TIMEOUT)

    async def _start(self, response: Response) -> None:
        exchange = self._exchange
        fields = downstream(
            response.fields,
            request_id=exchange.request_id,
            client_request_id=exchange.client_request_id,
            more=self._answer.backend.response_headers,
        )
        if self._events is not None or response.status in _WITHOUT_CONTENT:
            # Of events one may be taken out, or an error put at the end: then the length is another one. Where there is
            # no content, 304 may name the length it would have (RFC 9110, 8.6), and the server would wait for that.
            fields = [field for field in fields if field[0] != b"content-length"]
        if self._events is not None:
            fields.append(_NO_BUFFERING)
            if not response.field(b"content-type"):
                fields.append((b"content-type", _EVENT_STREAM))
        if exchange.grant is not None:  # the client needs our limits, not those of our account upstream
            fields = [field for field in fields if not field[0].startswith(b"x-ratelimit-")] + exchange.grant.fields
        fields += self._extra
        start: Message = {"type": "http.response.start", "status": response.status, "headers": fields}
        await _send_in_time(self._send, start, self._deadlines, STALLED_AFTER)

    async def _pass_on(self, response: Response, first: bytes) -> None:
        more = True
        while more:
            chunk, first = first or response.arrived() or await response.piece(), b""
            more = not response.at_end
            self._exchange.bytes_out += len(chunk)
            self._tap.body(chunk)
            await self._body(chunk, more=more)

    async def _pass_events_on(self, response: Response, events: EventStream, first: bytes) -> None:
        first = first or response.arrived() or await self._next_piece(response, FIRST_COMMENT_AFTER)
        if first.lstrip()[:1] in _OBJECT_OR_LIST:
            self._events = None  # it only says that it is a stream
            await self._pass_on(response, first)
            return
        piece = first
        while piece:
            if whole := events.feed(piece):
                await self._events_out(whole, events)
            piece = await self._next_piece(response, COMMENT_AFTER)
        rest = events.rest()  # the end of the stream ends its last line, too
        ended = self._said_last_word or event_data(rest) == _DONE
        if not response.delimited and self._exchange.path in _HAS_LAST_WORD and not ended:
            # Nothing but the end of the connection told its length (RFC 9112, 6.3, rule 8), and that came too soon.
            raise BrokenAnswerError("broke off in the middle of its answer")
        if rest:
            await self._events_out(rest, events)
        await self._body(b"", more=False)

    async def _next_piece(self, response: Response, patience: float) -> bytes:
        """The next bytes. While they do not come the client gets comments, unless it is in the middle of an event."""
        while (piece := await response.piece_or_silence(patience)) is None:
            patience = COMMENT_AFTER
            if self._clean:
                self._exchange.bytes_out += len(COMMENT)
                await self._body(COMMENT, more=True)
        return piece

    async def _events_out(self, block: bytes, events: EventStream) -> None:
        end = block[-32:]
        self._said_last_word = _DONE in end or _MESSAGE_STOP in end
        if NAMES_ERROR in block and (error := error_in_events(block)) is not None:
            self._note_error(error)
        if block := self._tap.events(block):
            self._exchange.bytes_out += len(block)
            await self._body(block, more=True)
            self._clean = events.clean

    def _note_error(self, error: ErrorInSuccess) -> None:
        """Of an error in the middle of a stream the client gets the event, and the log this. Where the status says it
        already there is nothing to tell, nor of what a GET shows: that may have failed long ago.
        """
        exchange, backend = self._exchange, self._answer.backend
        if exchange.outcome is Outcome.OK and exchange.status < 400 and exchange.method != "GET":
            exchange.outcome = Outcome.UPSTREAM_FAILED
            exchange.error = f"Backend {backend.name!r} sent an error in its stream: {error.message[:1000]}"
            exchange.note_failure(backend, "error_in_success")
            self._answer.note_error(error)

    def _body(self, body: bytes, *, more: bool) -> Coroutine[Any, Any, None]:
        message: Message = {"type": "http.response.body", "body": body, "more_body": more}
        return _send_in_time(self._send, message, self._deadlines, STALLED_AFTER)


async def send_whole(
    send: Send, status: int, fields: Iterable[tuple[bytes, bytes]], body: bytes, *, deadlines: Deadlines, within: float
) -> None:
    """An answer of the gateway's own.

    Raises:
        ClientGoneError: the client read nothing for `within` seconds.
    """
    start: Message = {"type": "http.response.start", "status": status, "headers": list(fields)}
    await _send_in_time(send, start, deadlines, within)
    await _send_in_time(send, {"type": "http.response.body", "body": body, "more_body": False}, deadlines, within)


async def _send_in_time(send: Send, message: Message, deadlines: Deadlines, within: float) -> None:
    """A client that does not read for so long, in seconds, has left, whatever its connection says. Also the head of an
    answer may wait: for the client to read the answer before it on the connection.
    """
    try:
        await deadlines.in_time(send(message), within)
    except TimeoutError:
        raise ClientGoneError from None
