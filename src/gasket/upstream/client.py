"""Sends requests to backends over connections that are kept for a few seconds and used again."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

from gasket.deadlines import Deadlines
from gasket.upstream.address import Address
from gasket.upstream.connection import Connection, Fields
from gasket.upstream.failures import BrokenAnswerError, NotConnectedError

_KEPT_FOR = 4.0
"""Seconds, less than any server keeps an idle connection: what is used again must not be closing on the other side."""
_LOOKED_THROUGH_EVERY = 1.0
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})


class Timeouts(NamedTuple):
    """Seconds: to connect, TLS included; to the head of the answer; between two pieces of its body."""

    connect: float
    first_byte: float
    between_pieces: float


class Response:
    """An answer whose head is there. Close it in every case: a complete one costs nothing, any other its connection."""

    __slots__ = ("_connection", "_within", "fields", "status")

    def __init__(self, connection: Connection, within: float) -> None:
        self._connection = connection
        self._within = within
        self.status = connection.status
        self.fields = connection.fields
        """Names are in lower case."""

    @property
    def delimited(self) -> bool:
        """Whether the answer itself tells where it ends."""
        return self._connection.delimited

    @property
    def at_end(self) -> bool:
        """Whether nothing is to come any more."""
        return self._connection.at_end

    def field(self, name: bytes) -> bytes:
        """The first value of a field; empty if there is none."""
        return next((value for known, value in self.fields if known == name), b"")

    async def piece(self) -> bytes:
        """What has come, empty at the end.

        Raises:
            AnswerTimeoutError, BrokenAnswerError: after what came before that was handed out.
        """
        return await self._connection.piece(self._within)

    async def read(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            ValueError: it has more than `limit` bytes.
            AnswerTimeoutError, BrokenAnswerError: as they say.
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
        """Nobody wants more of it. Once: afterwards the connection may carry somebody else's request."""
        self._connection.finish()


class WholeResponse(Response):
    """One that was read to its end before: it holds no connection."""

    __slots__ = ("_body",)

    def __init__(self, status: int, fields: Fields, body: bytes) -> None:
        self.status = status
        self.fields = fields
        self._body = body

    @property
    def delimited(self) -> bool:
        """It is here."""
        return True

    @property
    def at_end(self) -> bool:
        """As `Response`."""
        return not self._body

    async def piece(self) -> bytes:
        """As `Response`, without waiting."""
        body, self._body = self._body, b""
        return body

    def close(self) -> None:
        """There is nothing to let go of."""


class UpstreamClient:
    """The connections of this process to all backends, in the event loop that first asks.

    It sends what it is given and hands over what comes: no redirects followed, nothing decompressed, no cookies, no
    proxy or credential of the environment. How many requests run at once is for others to limit.
    """

    def __init__(self) -> None:
        self._deadlines = Deadlines()
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
        skip_tls_verify: bool = False,
    ) -> Response:
        """The answer, of which only the head has been waited for. `fields` have neither Host nor Content-Length.

        What may be repeated (RFC 9110, 9.2.2) is sent once more when a kept connection turns out to be closed.

        Raises:
            NotConnectedError, AnswerTimeoutError, BrokenAnswerError: as they say.
        """
        pool = _Pool(address.host, address.port, address.tls, skip_tls_verify)
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

    def _take(self, pool: _Pool) -> Connection | None:
        connections = self._idle.get(pool)
        while connections:
            connection, _ = connections.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self, pool: _Pool, within: float) -> Connection:
        loop = asyncio.get_running_loop()

        def made() -> Connection:
            return Connection(loop, self._deadlines, lambda connection: self._keep(pool, connection))

        try:
            async with asyncio.timeout(within):
                _, connection = await loop.create_connection(
                    made,
                    pool.host,
                    pool.port,
                    ssl=self._tls(pool),
                    server_hostname=pool.host if pool.tls else None,
                )
        except (OSError, UnicodeError) as error:  # a timeout and what TLS finds are OSErrors, too
            raise NotConnectedError.because_of(error, pool.host, pool.port) from error
        return connection

    def _keep(self, pool: _Pool, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        self._idle.setdefault(pool, []).append((connection, loop.time() + _KEPT_FOR))
        if self._sweeping is None:
            self._sweeping = loop.call_later(_LOOKED_THROUGH_EVERY, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what has been idle for too long, and forget what the other side has closed."""
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
        self._sweeping = loop.call_later(_LOOKED_THROUGH_EVERY, self._sweep, loop) if self._idle else None

    def _tls(self, pool: _Pool) -> ssl.SSLContext | None:
        if not pool.tls:
            return None
        return self._unverified if pool.skip_verify else self._verified

    @cached_property
    def _verified(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    @cached_property
    def _unverified(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context


class _Pool(NamedTuple):
    """What connections must have in common to stand for one another."""

    host: str
    port: int
    tls: bool
    skip_verify: bool


async def _exchange(connection: Connection, method: str, head: bytes, body: bytes, timeouts: Timeouts) -> Response:
    connection.send(head, body, without_body=method == "HEAD")
    try:
        await connection.head(timeouts.first_byte)
    except BaseException:
        connection.close()
        raise
    return Response(connection, timeouts.between_pieces)


def _head(method: str, address: Address, target: bytes, fields: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    """The request line and the fields (RFC 9112, 3)."""
    lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method.encode("ascii"), target, address.authority)]
    lines += [b"%b: %b\r\n" % field for field in fields]
    if body or method in ("POST", "PUT", "PATCH"):
        lines.append(b"content-length: %d\r\n" % len(body))
    lines.append(b"\r\n")
    return b"".join(lines)
