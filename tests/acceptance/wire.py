"""What a test puts between programs and the server: a tap that reads along, and PgBouncer."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
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


@dataclass
class Tap:
    """What clients sent to the server, one entry a connection."""

    url: str
    sent: list[bytearray] = field(default_factory=list)

    @property
    def statements(self) -> list[list[str]]:
        """The SQL of each connection, in order: simple queries and parsed ones."""
        return [list(_statements(bytes(stream))) for stream in self.sent]


@asynccontextmanager
async def tapped(url: str) -> AsyncIterator[Tap]:
    """A local port that leads to the server of `url` and keeps what clients say."""
    target = Server.of(url)
    tap = Tap(url="")

    async def serve(client: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        record = bytearray()
        tap.sent.append(record)
        server, server_writer = await target.open()
        copying = asyncio.gather(_copy(client, server_writer, record), _copy(server, client_writer, None))
        serving.add(copying)
        with suppress(asyncio.CancelledError):
            await copying

    serving: set[asyncio.Future[Any]] = set()
    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        tap.url = target.url_through(listener.sockets[0].getsockname()[1])
        yield tap
    for copying in serving:
        copying.cancel()
    await asyncio.gather(*serving, return_exceptions=True)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, record: bytearray | None) -> None:
    try:
        while data := await source.read(65_536):
            if record is not None:
                record += data
            target.write(data)
            await target.drain()
    except ConnectionError:
        pass  # one of the two has gone, as they do
    finally:
        target.close()


def _statements(stream: bytes) -> Iterator[str]:
    position, started = 0, False
    while position + 8 <= len(stream):
        if not started:  # StartupMessage, or a request such as SSLRequest before it: no type byte
            length, code = struct.unpack_from("!ii", stream, position)
            started = code == _PROTOCOL
            position += length
            continue
        kind, [length] = stream[position : position + 1], struct.unpack_from("!i", stream, position + 1)
        body = stream[position + 5 : position + 1 + length]
        if kind == b"Q":
            yield body.rstrip(b"\0").decode()
        elif kind == b"P":
            yield body.split(b"\0")[1].decode()
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

    await until(connected, 10, lambda: f"a listener on port {port}:\n{log.read_text()}")
