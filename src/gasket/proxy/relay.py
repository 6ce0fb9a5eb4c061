"""Passes an answer on, byte for byte, as it comes."""

from __future__ import annotations

import time
from collections.abc import Coroutine, Iterable
from typing import Any

from litestar.types import Message, Send

from gasket.deadlines import Deadlines
from gasket.proxy.dispatch import Answer, explain
from gasket.proxy.errors import ClientGoneError, GatewayError
from gasket.proxy.events import EventStream, error_event, event_data
from gasket.proxy.exchange import Exchange
from gasket.proxy.headers import downstream
from gasket.proxy.usage_tap import UsageTap
from gasket.upstream.client import Response
from gasket.upstream.connection import Fields
from gasket.upstream.failures import BrokenAnswerError, UpstreamError

STALLED_AFTER = 300.0
FAREWELL = 1.0
"""Seconds for which a client may read nothing: while it is answered, and for the last word to it."""

_EVENT_STREAM = b"text/event-stream"
_NO_BUFFERING = (b"x-accel-buffering", b"no")
_DONE = b"[DONE]"
_WITHOUT_CONTENT = (204, 304)
_ENDS_WITH_DONE = ("/chat/completions", "/completions")


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
        self._events = EventStream() if answer.response.field(b"content-type").startswith(_EVENT_STREAM) else None
        self._ended_with_done = False
        self._clean = True
        """Whether what the client got so far ends with a whole event."""

    async def run(self) -> None:
        """Pass everything on.

        Raises:
            UpstreamFailedError, UpstreamTimeoutError: the answer broke off. `break_off` is what the client is due then.
        """
        exchange, response = self._exchange, self._answer.response
        await self._start(response)
        exchange.status, exchange.first_byte = response.status, time.monotonic()
        exchange.streamed = self._events is not None
        whole = False
        try:
            if self._events is None:
                await self._pass_on(response)
            else:
                await self._pass_events_on(response, self._events)
            whole = True
        except UpstreamError as error:
            self._answer.broke_off()
            exchange.note_failure(self._answer.backend, error.kind)
            raise explain(error, self._answer.backend) from error
        finally:
            # After `[DONE]` many a client leaves at once, and what is missing then is no part of the answer.
            self._tap.settle(exchange, whole=whole or self._ended_with_done)

    async def break_off(self, reason: GatewayError) -> None:
        """An answer that is cut short never looks whole: of events the last is an error. Any other is left without its
        end, at which the server breaks the connection; so is a stream in the middle of an event, which would look whole
        with anything behind it.
        """
        if self._events is not None and self._clean and self._exchange.first_byte is not None:
            event: Message = {"type": "http.response.body", "body": error_event(reason.body()), "more_body": False}
            await _send_in_time(self._send, event, self._deadlines, FAREWELL)

    async def _start(self, response: Response) -> None:
        exchange = self._exchange
        fields = downstream(
            response.fields, request_id=exchange.request_id, client_request_id=exchange.client_request_id
        )
        if self._events is not None or response.status in _WITHOUT_CONTENT:
            # Of events one may be taken out, or an error put at the end: then the length is another one. Where there is
            # no content, 304 may name the length it would have (RFC 9110, 8.6), and the server would wait for that.
            fields = [field for field in fields if field[0] != b"content-length"]
        if self._events is not None:
            fields.append(_NO_BUFFERING)
        if exchange.grant is not None:  # the client has to do with our limits, not with those of our account upstream
            fields = [field for field in fields if not field[0].startswith(b"x-ratelimit-")] + exchange.grant.fields
        fields += self._extra
        start: Message = {"type": "http.response.start", "status": response.status, "headers": fields}
        await _send_in_time(self._send, start, self._deadlines, STALLED_AFTER)

    async def _pass_on(self, response: Response) -> None:
        more = True
        while more:
            chunk = await response.piece()
            more = not response.at_end
            self._exchange.bytes_out += len(chunk)
            self._tap.body(chunk)
            await self._body(chunk, more=more)

    async def _pass_events_on(self, response: Response, events: EventStream) -> None:
        while piece := await response.piece():
            if whole := events.feed(piece):
                await self._events_out(whole, events)
        rest = events.rest()  # the end of the stream ends its last line, too
        ended = self._ended_with_done or event_data(rest) == _DONE
        if not response.delimited and self._exchange.path in _ENDS_WITH_DONE and not ended:
            # Nothing but the end of the connection told its length (RFC 9112, 6.3, rule 8), and that came too soon.
            raise BrokenAnswerError("broke off in the middle of its answer")
        if rest:
            await self._events_out(rest, events)
        await self._body(b"", more=False)

    async def _events_out(self, block: bytes, events: EventStream) -> None:
        self._ended_with_done = _DONE in block[-32:]
        if block := self._tap.events(block):
            self._exchange.bytes_out += len(block)
            await self._body(block, more=True)
            self._clean = events.clean

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
        with deadlines.limit(within):
            await send(message)
    except TimeoutError:
        raise ClientGoneError from None
