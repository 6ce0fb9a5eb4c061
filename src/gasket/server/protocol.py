"""One connection: HTTP/1.1 (RFC 9112) on httptools, one request at a time.

It replaces uvicorn's own protocol, and differs from it:

- `Upgrade` is ignored (RFC 9110, 7.8). httptools stops parsing at the head of such a request and treats its body as
  another protocol. A server that goes on parsing takes the body for the next request.
- A head is limited in size and time. A connection without a request is limited in time in every state.
- Bytes that a client sends before it has its answer are discarded, and the connection ends with the answer (RFC 9112,
  9.3.2). So the connection is always read, and a client that leaves is noticed.
- An answer before the end of the request's body ends the connection, and nothing more of the body is parsed.
- One connection gets little of each turn of the event loop: one read of the socket, and few chunks.
- uvicorn's `--proxy-headers` and `--forwarded-allow-ips`, which believe every program on this machine, have no effect.
- An HTTP/1.0 client gets no chunks, and trailer fields are dropped (RFC 9110, 6.5.1).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from gasket.request_ids import new_request_id
from gasket.server.connections import Connections
from gasket.server.errors import GatewayError, SlowRequestError
from gasket.server.parser import Head, RequestParser
from gasket.server.reading import Reading
from gasket.server.request import Fields, Request, status_line

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

log = logging.getLogger("gasket.server")

_MOST_DISCARDED = 32 * 2**20
"""Bytes from the client that are buffered unread: while it waits for its answer, and after a refusal."""
_LARGE_READ = 16 * 1024
"""Bytes after which the other connections get their turn: libuv would read up to 32 times 256 KiB in a row."""
_EMPTY_LINES = 64
"""Bytes that may be nothing but empty lines; more are a head that does not begin."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: the connection ends with RST instead of FIN (socket(7))."""


class Connection(asyncio.Protocol):
    """One connection. uvicorn creates it with the arguments of its own protocols."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        application = config.loaded_app
        if isinstance(application, ProxyHeadersMiddleware):  # GASKET_TRUSTED_PROXIES says whom to believe
            application = application.app
        self._application = application
        self._root_path = config.root_path
        self._raw_root_path = self._root_path.encode("ascii")
        self._server = server_state
        self._state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._connections = Connections.from_state(app_state)
        self._connections.tasks = server_state.tasks  # uvicorn waits for these at its end
        self._parser = RequestParser(self)
        self._request: Request | None = None
        """The request whose body or answer is not complete yet."""
        self._closing = False
        self._ends_within = 0.0
        """Seconds, once it is closing."""
        self._unparsed = b""
        self._discarded = 0
        self._writing = asyncio.Event()
        self._writing.set()
        self.congested = False
        """See `Wire`: the opposite of `_writing`, for which nobody can wait."""

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        self._reading = Reading(self._loop, self._transport, self._parse_on)
        self._server.connections.add(self)  # type: ignore[arg-type]  # uvicorn lists its own protocols
        self._connections.open.add(self)
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "server": _address(transport.get_extra_info("sockname")),
            "client": _address(transport.get_extra_info("peername")),
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
            "root_path": self._root_path,
        }
        self._connections.deadlines.set(self, self._connections.first_byte_timeout)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._connections.open.discard(self)
        self._connections.deadlines.clear(self)
        self._closing = True
        if self._request is not None:
            self._request.disconnect()
            self._request = None
        self.congested = False
        self._writing.set()
        self._unparsed = b""
        self._reading.forget()
        self._parser.forget()

    def data_received(self, data: bytes) -> None:
        if len(data) > _LARGE_READ:
            self._reading.end_turn()
        request = self._request
        if self._closing:
            self._discard(data)
            return
        between = not self._parser.pending if request is None else request.body_complete
        if between and len(data) <= _EMPTY_LINES and not data.strip(b"\r\n"):
            return  # RFC 9112, 2.2: a server ignores empty lines before a request
        if request is not None and request.body_complete:
            request.keep_alive = False
            self._discard(data)
            return
        begun = self._parser.pending
        try:
            self._unparsed = self._parser.feed(data)
        except GatewayError as error:
            if self._request is not None and self._request.body_complete:
                self._request.keep_alive = False  # the error is in bytes that were sent ahead
            else:
                self._refuse(error)
        else:
            if self._unparsed:
                self._reading.end_turn()
            if self._parser.pending and not begun and self._request is None:
                self._limit_time()

    def _parse_on(self) -> None:
        unparsed, self._unparsed = self._unparsed, b""
        if unparsed and not self._closing:
            self.data_received(unparsed)

    def _discard(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > _MOST_DISCARDED:
            self._transport.abort()

    def pause_writing(self) -> None:
        self.congested = True
        self._writing.clear()
        self._limit_time()

    def resume_writing(self) -> None:
        self.congested = False
        self._writing.set()
        self._limit_time()

    # Called by uvicorn.

    def shutdown(self) -> None:
        """The server shuts down: close, or close after the running request."""
        if self._request is None or self._request.answered or self._closing:
            self.close()
        else:
            self._request.keep_alive = False

    # Called by the time limits.

    def time_is_up(self) -> None:
        """See `Limited`."""
        if self._closing or self.congested:
            self._transport.abort()
        elif self._request is None and self._parser.pending:
            self._refuse(SlowRequestError("The request's head did not arrive in time."))
        else:
            self.close()

    def cut_off(self) -> None:
        """See `Open`."""
        self._transport.abort()

    def _limit_time(self) -> None:
        """Set the limit for what the connection waits for now."""
        request, limits = self._request, self._connections
        if self._closing:
            limits.deadlines.set(self, self._ends_within)
        elif self.congested:
            limits.deadlines.set(self, limits.stall_timeout)
        elif request is None:
            limits.deadlines.set(self, limits.head_timeout if self._parser.pending else limits.idle_timeout)
        else:
            limits.deadlines.clear(self)

    # Called by the request.

    def write(self, data: bytes) -> None:
        """See `Wire`."""
        self._transport.write(data)

    async def drained(self) -> None:
        """See `Wire`."""
        await self._writing.wait()

    def pause_reading(self) -> None:
        """See `Wire`."""
        self._reading.pause()

    def resume_reading(self) -> None:
        """See `Wire`."""
        self._reading.resume()

    def own_fields(self) -> Fields:
        """See `Wire`."""
        return self._server.default_headers

    def answered(self) -> None:
        """See `Wire`."""
        self._server.total_requests += 1
        request = self._request
        assert request is not None
        if not (request.keep_alive and request.body_complete):
            self._hang_up(still_sending=not request.body_complete)
            return
        self.resume_reading()
        self._request = None
        self._discarded = 0
        self._limit_time()

    def broken_off(self, *, looks_complete: bool) -> None:
        """See `Wire`."""
        if looks_complete and (raw := self._transport.get_extra_info("socket")) is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()
        else:
            self.close()

    # Called by the parser.

    @property
    def busy(self) -> bool:
        """See `Receiver`."""
        return self._request is not None

    def on_head(self, head: Head) -> None:
        """See `Receiver`."""
        path = head.raw_path.decode("ascii")
        scope = {
            **self._scope,
            "http_version": head.version,
            "method": head.method,
            "path": self._root_path + (unquote(path) if "%" in path else path),
            "raw_path": self._raw_root_path + head.raw_path,
            "query_string": head.query,
            "headers": head.fields,
            "state": self._state.copy(),
        }
        self._request = request = Request(
            self,
            scope,
            keep_alive=head.keep_alive and not self._connections.shutting_down,
            expects_continue=head.expects_continue,
        )
        self._limit_time()
        task = self._loop.create_task(request.run(self._application))
        tasks = self._server.tasks
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def on_body(self, body: bytes) -> None:
        """See `Receiver`."""
        assert self._request is not None
        self._request.take(body)

    def on_end(self, *, keep_alive: bool) -> None:
        """See `Receiver`."""
        request = self._request
        assert request is not None
        request.keep_alive = request.keep_alive and keep_alive
        request.end()

    # Ending it.

    def close(self) -> None:
        """Close the connection when the client has all that was written."""
        self._closing = True
        self._ends_within = self._connections.head_timeout
        self._transport.close()
        self._limit_time()

    def _hang_up(self, *, still_sending: bool) -> None:
        """Close it, but discard what the client is still sending, for a short time: a closed socket would answer that
        with a reset, which could reach the client before the answer (RFC 9112, 9.6).
        """
        self.resume_reading()
        if still_sending and self._transport.can_write_eof():
            self._closing = True
            self._unparsed = b""
            self._ends_within = self._connections.linger_timeout
            self._transport.write_eof()
            self._limit_time()
        else:
            self.close()

    def _refuse(self, error: GatewayError) -> None:
        """Answer bytes that are not a request; the application does not see them."""
        request = self._request
        if self._closing:
            return
        if request is not None:
            request.disconnect()
            if request.started:
                self.close()
                return
        request_id = new_request_id()
        log.info("%s from %s: %s (request id %s)", error.status, self._scope["client"], error, request_id)
        if self._parser.for_gateway:
            fields, body = error.headers(), error.body()
        else:
            body = f"{error}\n".encode()
            fields = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        own = [(name, request_id.encode()) for name in (b"x-gasket-request-id", b"x-request-id")]
        fields = [*self._server.default_headers, *fields, *own, (b"connection", b"close")]
        lines = [b"%b: %b" % field for field in fields]
        self._transport.write(status_line(error.status) + b"\r\n".join([*lines, b"", body]))
        self._hang_up(still_sending=True)


def _address(name: Sequence[Any] | str | None) -> tuple[str, int | None] | None:
    """Host and port, or the path of a Unix socket."""
    if isinstance(name, str):
        return (name, None) if name else None
    return (str(name[0]), int(name[1])) if name else None
