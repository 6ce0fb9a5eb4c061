"""Sends requests to backends, over connections that are kept for a few seconds and used again."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, NamedTuple

from aiohappyeyeballs import AddrInfoType, start_connection

from gasket.deadlines import Deadlines
from gasket.networks import BackendNetworks
from gasket.upstream.address import Address
from gasket.upstream.connection import Connection, Fields
from gasket.upstream.decoding import ENCODINGS, Decoder
from gasket.upstream.failures import BackendDeniedError, BrokenAnswerError, NameNotResolvedError, NotConnectedError
from gasket.upstream.names import Names
from gasket.upstream.routes import DIRECT, Proxy, Route, open_tunnel, tls_context

_IDLE_TIMEOUT = 4.0
"""Seconds for which an idle connection is kept. Less than servers keep theirs, so that one is rarely closed in use."""
_SWEEP_INTERVAL = 1.0
_MOST_CONTEXTS = 1000
_NEXT_ADDRESS_AFTER = 0.25
"""Seconds after which the next address is tried, too: RFC 8305's "Connection Attempt Delay"."""
_NOT_DECODED = frozenset({204, 206, *range(300, 400)})
"""Statuses of answers that have no body, or a part of one, which cannot be decoded by itself, or none to pass on."""
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})


class Timeouts(NamedTuple):
    """Seconds: to connect, TLS included; to the head of the answer; between two pieces of its body."""

    connect: float
    first_byte: float
    between_pieces: float


class Response:
    """An answer whose head has arrived. Always close it; that keeps the connection only if the answer is complete."""

    __slots__ = ("_connection", "_within", "codings", "fields", "status")

    def __init__(self, connection: Connection, within: float) -> None:
        self._connection = connection
        self._within = within
        self.status = connection.status
        self.fields = connection.fields
        """The header fields, with names in lower case."""
        self.codings = _codings(connection.fields) if connection.encoded else []
        """The content codings that the body has, in the order in which they were applied (RFC 9110, 8.4)."""

    @property
    def delimited(self) -> bool:
        """Whether the answer itself says where it ends."""
        return self._connection.delimited

    @property
    def at_end(self) -> bool:
        """Whether the whole body has been read."""
        return self._connection.at_end

    @property
    def has_arrived(self) -> bool:
        """Whether `piece` would return without waiting."""
        return self._connection.has_arrived

    def field(self, name: bytes) -> bytes:
        """The first value of a field; empty if there is none."""
        for known, value in self.fields:
            if known == name:
                return value
        return b""

    def arrived(self) -> bytes:
        """The bytes that have arrived; empty if there are none, or at the end."""
        return self._connection.take()

    def piece(self) -> Coroutine[Any, Any, bytes]:
        """The bytes that have arrived, at least one; empty at the end.

        Raises:
            AnswerTimeoutError, BrokenAnswerError: when all bytes that arrived before it were returned.
        """
        return self._connection.piece(self._within)

    def unread(self, piece: bytes) -> None:
        """Put back what was read last: `piece` returns it next."""
        if piece:
            self._connection.put_back(piece)

    def piece_or_silence(self, patience: float) -> Coroutine[Any, Any, bytes | None]:
        """As `piece`; None when nothing has arrived for `patience` seconds."""
        return self._connection.piece_or_silence(self._within, patience)

    async def read(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            ValueError: it has more than `limit` bytes.
            AnswerTimeoutError, BrokenAnswerError: it does not arrive.
        """
        pieces = []
        size = 0
        while piece := await self.piece():
            size += len(piece)
            if size > limit:
                raise ValueError(f"the answer has more than {limit} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Release the connection. Call it once: afterwards the connection may serve another request."""
        self._connection.finish()


class WholeResponse(Response):
    """An answer that was read to its end before. It holds no connection."""

    __slots__ = ("_body",)

    def __init__(self, status: int, fields: Fields, body: bytes) -> None:
        self.status = status
        self.fields = fields
        self.codings = _codings(fields)
        self._body = body

    @property
    def delimited(self) -> bool:
        """It is complete."""
        return True

    @property
    def at_end(self) -> bool:
        """As `Response`."""
        return not self._body

    @property
    def has_arrived(self) -> bool:
        """All of it has."""
        return True

    def arrived(self) -> bytes:
        """All of it."""
        body, self._body = self._body, b""
        return body

    async def piece_or_silence(self, patience: float) -> bytes | None:
        """As `Response`, without waiting."""
        return self.arrived()

    async def piece(self) -> bytes:
        """As `Response`, without waiting."""
        return self.arrived()

    def unread(self, piece: bytes) -> None:
        """As `Response`."""
        self._body = piece + self._body

    def close(self) -> None:
        """It holds no connection."""


class DecodedResponse(Response):
    """An answer whose body was compressed, although it was not asked to be. Nothing is held back for that."""

    __slots__ = ("_decoded", "_decoder", "_inner")

    def __init__(self, inner: Response, encoding: bytes) -> None:
        self._inner = inner
        self._decoder = Decoder(encoding)
        self._decoded = b""
        self.codings = []
        self.status = inner.status
        self.fields = [field for field in inner.fields if field[0] not in (b"content-encoding", b"content-length")]

    @property
    def delimited(self) -> bool:
        """As `Response`."""
        return self._inner.delimited

    @property
    def at_end(self) -> bool:
        """As `Response`."""
        return not self._decoded and self._decoder.complete and self._inner.at_end

    @property
    def has_arrived(self) -> bool:
        """As `Response`, as far as it is decoded."""
        return bool(self._decoded) or self.at_end

    def arrived(self) -> bytes:
        """As `Response`, as far as it is decoded."""
        decoded, self._decoded = self._decoded, b""
        return decoded

    def unread(self, piece: bytes) -> None:
        """As `Response`."""
        self._decoded = piece

    async def piece(self) -> bytes:
        """As `Response`; at most 64 KiB at a time."""
        return await self._next(self._inner.piece) or b""

    async def piece_or_silence(self, patience: float) -> bytes | None:
        """As `Response`."""
        return await self._next(partial(self._inner.piece_or_silence, patience))

    async def _next(self, read: Callable[[], Awaitable[bytes | None]]) -> bytes | None:
        if self._decoder.has_more:
            await asyncio.sleep(0)  # a few bytes may stand for gigabytes: others get a turn between two pieces
        while not (decoded := self._decoded or self._decoder.take()):
            arrived = await read()
            if arrived is None:
                return None
            if not arrived:
                if not self._decoder.complete:
                    raise BrokenAnswerError("broke off in the middle of its answer")
                return b""
            self._decoder.put(arrived)
        self._decoded = b""
        return decoded

    def close(self) -> None:
        """As `Response`."""
        self._inner.close()


class UpstreamClient:
    """The connections of this process to all backends, in one event loop.

    It forwards bytes unchanged: no redirects, no cookies, no proxy or credential from the environment. Only what is
    compressed in spite of the request is decoded. The callers limit the number of requests.
    """

    def __init__(
        self, *, pseudonym: bytes = b"", networks: BackendNetworks | None = None, names: Names | None = None
    ) -> None:
        """`pseudonym` is what this installation calls itself in Via (RFC 9110, 7.6.3); empty: there is none."""
        self.pseudonym = pseudonym
        self._via: Fields = [(b"via", b"1.1 " + pseudonym)] if pseudonym else []
        self._deadlines = Deadlines()
        self._networks = networks or BackendNetworks()
        self._names = names or Names()
        self._contexts: dict[Route, ssl.SSLContext] = {}
        self._idle: dict[_Pool, list[tuple[Connection, float]]] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    async def send(
        self,
        method: str,
        address: Address,
        target: bytes,
        *,
        fields: Iterable[tuple[bytes, bytes]],
        body: bytes = b"",
        timeouts: Timeouts,
        route: Route = DIRECT,
    ) -> Response:
        """The answer, as soon as its head has arrived. `fields` must not have Host or Content-Length.

        When a kept connection turns out to be closed, an idempotent request (RFC 9110, 9.2.2) is sent again.

        Raises:
            NotConnectedError: the backend cannot be reached.
            AnswerTimeoutError: it is silent for too long.
            BrokenAnswerError: the connection ended, or the answer is not HTTP.
        """
        pool = _Pool(address.host, address.port, address.tls, route)
        fields = [*fields, *self._via]
        if route.proxy is not None and not address.tls:
            target, fields = _through_proxy(address, target, fields, route.proxy)
        head = _head(method, address, target, fields, body)
        connection = self._take(pool)
        if connection is not None:
            try:
                return await _exchange(connection, method, head, body, timeouts)
            except BrokenAnswerError:
                if method not in _IDEMPOTENT or connection.status:
                    raise
        return await _exchange(await self._connect(pool, timeouts.connect), method, head, body, timeouts)

    async def close(self) -> None:
        """End all idle connections."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for connections in self._idle.values():
            for connection, _ in connections:
                connection.close()
        self._idle.clear()
        await self._names.close()

    def _take(self, pool: _Pool) -> Connection | None:
        connections = self._idle.get(pool)
        while connections:
            connection, _ = connections.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self, pool: _Pool, within: float) -> Connection:
        loop = asyncio.get_running_loop()

        def create() -> Connection:
            return Connection(loop, self._deadlines, lambda connection: self._keep(pool, connection))

        proxy = pool.route.proxy
        host, port = (pool.host, pool.port) if proxy is None else (proxy.host, proxy.port)
        if proxy is not None and not self._networks.allows_name(pool.host):
            raise BackendDeniedError(f"may not be connected to: GASKET_BACKEND_NETWORKS denies {pool.host}")
        addresses: tuple[str, ...] = ()
        try:
            async with asyncio.timeout(within):
                addresses = await self._names.addresses(host)
                allowed = self._networks.allowed(host, addresses)
                if not allowed:
                    raise BackendDeniedError(f"may not be connected to: GASKET_BACKEND_NETWORKS denies {host}")
                sock = await _open_socket(allowed, port)
                if proxy is not None and pool.tls:
                    await _open_tunnel(sock, proxy, pool)
                _, connection = await loop.create_connection(
                    create, sock=sock, ssl=self._tls(pool), server_hostname=pool.host if pool.tls else None
                )
        except TimeoutError as error:
            if not addresses:
                raise NameNotResolvedError(f"cannot be found: no name server answered for {host} in time") from error
            raise NotConnectedError.because_of(error, host, port) from error
        except (OSError, UnicodeError) as error:  # a TLS error is an OSError, too
            raise NotConnectedError.because_of(error, host, port) from error
        return connection

    def _keep(self, pool: _Pool, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        self._idle.setdefault(pool, []).append((connection, loop.time() + _IDLE_TIMEOUT))
        if self._sweeping is None:
            self._sweeping = loop.call_later(_SWEEP_INTERVAL, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close connections that are idle for too long, and forget those that the backend has closed."""
        now = loop.time()
        for pool, connections in list(self._idle.items()):
            kept = [entry for entry in connections if entry[1] > now and entry[0].usable]
            for connection, until in connections:
                if until <= now and connection.usable:
                    connection.close()
            if kept:
                self._idle[pool] = kept
            else:
                del self._idle[pool]
        self._sweeping = loop.call_later(_SWEEP_INTERVAL, self._sweep, loop) if self._idle else None

    def _tls(self, pool: _Pool) -> ssl.SSLContext | None:
        """The context is kept: it takes longer to make than a connection."""
        if not pool.tls:
            return None
        key = pool.route._replace(proxy=None)
        if key not in self._contexts:
            if len(self._contexts) >= _MOST_CONTEXTS:
                self._contexts.clear()
            self._contexts[key] = tls_context(key)
        return self._contexts[key]


class _Pool(NamedTuple):
    """Connections with the same values can serve the same requests."""

    host: str
    port: int
    tls: bool
    route: Route


async def _open_tunnel(sock: socket.socket, proxy: Proxy, pool: _Pool) -> None:
    try:
        await open_tunnel(sock, proxy, pool.host, pool.port)
    except BaseException:
        sock.close()
        raise


def _through_proxy(address: Address, target: bytes, fields: Fields, proxy: Proxy) -> tuple[bytes, Fields]:
    """The absolute form of the target (RFC 9112, 3.2.2), and the fields with the proxy's own."""
    own = [(b"proxy-authorization", proxy.authorization)] if proxy.authorization else []
    return b"http://" + address.authority + target, [*fields, *own]


async def _open_socket(addresses: tuple[str, ...], port: int) -> socket.socket:
    """A connection to the first address that accepts one, of whichever family (RFC 8305, "Happy Eyeballs")."""
    infos: list[AddrInfoType] = []
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        place = (address, port, 0, 0) if family is socket.AF_INET6 else (address, port)
        infos.append((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place))
    return await start_connection(infos, happy_eyeballs_delay=_NEXT_ADDRESS_AFTER)


async def _exchange(connection: Connection, method: str, head: bytes, body: bytes, timeouts: Timeouts) -> Response:
    connection.send(head, body, without_body=method == "HEAD")
    try:
        await connection.head(timeouts.first_byte)
    except BaseException:
        connection.close()
        raise
    response = Response(connection, timeouts.between_pieces)
    match response.codings:
        case [encoding] if encoding in ENCODINGS and response.status not in _NOT_DECODED:
            return DecodedResponse(response, encoding)
    return response


def _codings(fields: Fields) -> list[bytes]:
    values = b",".join(value for name, value in fields if name == b"content-encoding").lower()
    return [coding for value in values.split(b",") if (coding := value.strip()) not in (b"", b"identity")]


def _head(method: str, address: Address, target: bytes, fields: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    """The request line and the fields (RFC 9112, 3)."""
    lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method.encode("ascii"), target, address.authority)]
    lines += [b"%b: %b\r\n" % field for field in fields]
    if body or method in ("POST", "PUT", "PATCH"):
        lines.append(b"content-length: %d\r\n" % len(body))
    lines.append(b"\r\n")
    return b"".join(lines)
