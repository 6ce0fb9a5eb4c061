"""What a test puts between programs and the server: a tap that reads along and can be shut, and PgBouncer."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.acceptance.processes import free_port, until

_PROTOCOL = 196_608  # 3.0: PostgreSQL manual, "Message Formats", StartupMessage


@dataclass(frozen=True)
class Server:
    """Where a libpq URL leads; `host` is a folder for a Unix socket."""

    host: str
    port: int
    user: str
    password: str
    database: str

    @classmethod
    def of(cls, url: str) -> Server:
        """Read one URL with one host."""
        parts = urlsplit(url)
        options = parse_qs(parts.query)
        return cls(
            host=options.get("host", [parts.hostname or "127.0.0.1"])[0],
            port=int(options.get("port", [str(parts.port or 5432)])[0]),
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            database=unquote(parts.path.lstrip("/")),
        )

    @property
    def is_socket(self) -> bool:
        """Whether it is reached over a Unix socket."""
        return self.host.startswith("/")

    def url_through(self, port: int) -> str:
        """The URL of the same database and role through something on a local TCP port, not encrypted."""
        password = f":{quote(self.password, safe='')}" if self.password else ""
        who = f"{quote(self.user, safe='')}{password}"
        return f"postgresql://{who}@127.0.0.1:{port}/{self.database}?sslmode=disable"

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to it."""
        if self.is_socket:
            return await asyncio.open_unix_connection(f"{self.host}/.s.PGSQL.{self.port}")
        return await asyncio.open_connection(self.host, self.port)


class Tap:
    """A local port that leads to a server, keeps what clients sent, one entry a connection, and can be shut."""

    def __init__(self, target: Server) -> None:
        self._target = target
        self._listener: asyncio.Server | None = None
        self._port = free_port()  # none that anybody may be given between `cut` and `open`
        self._copying: set[asyncio.Future[Any]] = set()
        self._answering = asyncio.Event()
        self._answering.set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._held: list[bytearray] = []
        self.sent: list[bytearray] = []

    @property
    def url(self) -> str:
        """The way through this port."""
        return self._target.url_through(self._port)

    @property
    def statements(self) -> list[list[str]]:
        """The SQL of each connection, in order: simple queries and parsed ones."""
        return [list(_statements(bytes(stream))) for stream in self.sent]

    async def open(self) -> None:
        """Listen; after `cut`, on the same port as before."""
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def cut(self) -> None:
        """End every connection, and refuse new ones until `open`."""
        if self._listener is not None:
            self._listener.close()
        self._listener = None
        ending = list(self._copying)
        for copying in ending:
            copying.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def hold(self) -> None:
        """Keep the results of statements back until `release`: they are made, and arrive later."""
        self._answering.clear()

    def stall(self) -> None:
        """Pass nothing on any more, in either direction: connections stay open, and new ones are taken."""
        self._flowing.clear()

    def release(self) -> None:
        """Let the results go on."""
        self._answering.set()

    def held(self, application: str) -> int:
        """On how many connections whose `application_name` begins so a result is kept back."""
        name = b"application_name\0" + application.encode()
        return sum(name in record for record in self._held)

    async def _serve(self, client: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        record = bytearray()
        self.sent.append(record)
        listener = self._listener
        server, server_writer = await self._target.open()
        if listener is None or self._listener is not listener:  # cut while it was being opened
            server_writer.close()
            client_writer.close()
            return
        copying = asyncio.gather(
            _copy(client, server_writer, lambda data: self._recorded(record, data)),
            _copy(server, client_writer, lambda _: self._held_back(record)),
        )
        self._copying.add(copying)
        with suppress(asyncio.CancelledError):
            await copying
        self._copying.discard(copying)

    async def _recorded(self, record: bytearray, data: bytes) -> None:
        await self._flowing.wait()
        record.extend(data)

    async def _held_back(self, record: bytearray) -> None:
        await self._flowing.wait()
        if not self._answering.is_set() and _executes(bytes(record)):
            self._held.append(record)
            await self._answering.wait()
            self._held.remove(record)


async def _copy(
    source: asyncio.StreamReader,
    target: asyncio.StreamWriter,
    first: Callable[[bytes], None] | Callable[[bytes], Awaitable[None]],
) -> None:
    """Pass bytes on until one of the two has gone; `first` is given them before the other side."""
    try:
        while data := await source.read(65_536):
            if (waiting := first(data)) is not None:
                await waiting
            target.write(data)
            await target.drain()
    except ConnectionError:
        pass  # as they do
    finally:
        target.close()


@asynccontextmanager
async def tapped(url: str) -> AsyncIterator[Tap]:
    """A tap before the server of `url`."""
    tap = Tap(Server.of(url))
    await tap.open()
    try:
        yield tap
    finally:
        await tap.cut()


def _statements(stream: bytes) -> Iterator[str]:
    """The SQL that a client sent."""
    for kind, body in _messages(stream):
        if kind == b"Q":
            yield body.rstrip(b"\0").decode()
        elif kind == b"P":
            yield body.split(b"\0")[1].decode()


def _executes(stream: bytes) -> bool:
    """Whether what a client sent last is to be executed, and not only to be prepared."""
    kinds = [kind for kind, _ in _messages(stream) if kind != b"S"]
    return kinds[-1:] in ([b"E"], [b"Q"])


def _messages(stream: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What a client sent after its StartupMessage: type byte and body (PostgreSQL manual, "Message Formats")."""
    position, started = 0, False
    while position + 8 <= len(stream) or (started and position + 5 <= len(stream)):
        if not started:  # StartupMessage, or a request such as SSLRequest before it: no type byte
            length, code = struct.unpack_from("!ii", stream, position)
            started = code == _PROTOCOL
            position += length
            continue
        kind, [length] = stream[position : position + 1], struct.unpack_from("!i", stream, position + 1)
        yield kind, stream[position + 5 : position + 1 + length]
        position += 1 + length


@contextmanager
def pgbouncer_process(url: str, folder: Path, *, users: dict[str, str]) -> Iterator[tuple[int, Path]]:
    """PgBouncer in transaction mode before the server of `url`; yields its port and its log.

    Two server connections a database: sessions really are handed around. As root it runs as whoever owns the
    server's socket folder, since only that account may pass through it.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    assert program is not None
    server, port = Server.of(url), free_port()
    folder.mkdir()
    accounts = {server.user: server.password, **users}
    (folder / "users.txt").write_text("".join(f'"{name}" "{password}"\n' for name, password in accounts.items()))
    ini = folder / "pgbouncer.ini"
    ini.write_text(
        f"[databases]\n* = host={server.host} port={server.port}\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\npool_mode = transaction\n"
        f"default_pool_size = 2\nmax_client_conn = 200\nauth_type = trust\nauth_file = {folder}/users.txt\n"
    )
    account: tuple[int | None, int | None] = (None, None)
    if os.geteuid() == 0:
        owner = os.stat(server.host) if server.is_socket else os.stat(folder)
        uid, gid = (owner.st_uid, owner.st_gid) if owner.st_uid else (65_534, 65_534)
        account = uid, gid
        for path in (folder, *folder.iterdir()):
            os.chown(path, uid, gid)
    log = folder / "pgbouncer.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, str(ini)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            user=account[0],
            group=account[1],
        )
    try:
        yield port, log
    finally:
        process.kill()
        process.wait(10)


async def listens(port: int, log: Path) -> None:
    """Wait until something listens on the port."""

    async def connected() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    await until(connected, 30, lambda: f"a listener on port {port}:\n{log.read_text()}")
