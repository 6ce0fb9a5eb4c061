"""HTTP/1.1 at the level of bytes (RFC 9112): what a library would tidy up on the way is just what tests look at."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Headers = Iterable[tuple[str, str]]


@dataclass
class Message:
    """A request or an answer as it came. `whole` is False when the connection ended before the message did."""

    start: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    whole: bool = False

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.start.split(" ")[1])

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str | None]:
        """Status and `error.code` of an answer in OpenAI's shape."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert isinstance(error["message"], str), error
        assert error["message"], error
        return self.status, error["code"]

    @property
    def last_error(self) -> dict[str, str | None]:
        """The error that is the last event of a broken stream."""
        data = self.body.rstrip(b"\n").split(b"\n\n")[-1]
        assert data.startswith(b"data: "), self.body
        error: dict[str, str | None] = json.loads(data.removeprefix(b"data: "))["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        return error

    def all(self, name: str) -> list[str]:
        """The values of every field of this name."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def one(self, name: str) -> str:
        """The value of the field, which has to be there once."""
        [value] = self.all(name)
        return value


def compose(start: str, headers: Headers = (), body: bytes = b"") -> bytes:
    """A start line, header lines, an empty line and what follows; nothing is added."""
    lines = [start, *(f"{name}: {value}" for name, value in headers)]
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n" + body


def chunk(data: bytes) -> bytes:
    """One chunk; of no bytes, the end of the message."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def reset_when_closed(writer: asyncio.StreamWriter) -> None:
    """Let the end of this connection be RST in place of FIN: SO_LINGER of zero seconds (socket(7))."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def read_head(reader: asyncio.StreamReader, begun: bytes = b"") -> Message:
    """Start line and headers, of which the caller may have read the beginning.

    Raises:
        asyncio.IncompleteReadError: the connection ended before the empty line.
    """
    head = (begun + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    start, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    return Message(start, [_field(line) for line in lines])


async def read_body(reader: asyncio.StreamReader, message: Message, *, until_end: bool) -> Message:
    """Read the rest of the message into it; `until_end`: a body without a length lasts as long as the connection."""
    body = bytearray()
    try:
        if "chunked" in message.all("transfer-encoding"):
            await _read_chunks(reader, message, body)
        elif lengths := message.all("content-length"):
            await _read_exactly(reader, int(lengths[0]), body)
        elif until_end:
            while data := await reader.read(2**16):
                body += data
        message.whole = True
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # `whole` says it
    message.body = bytes(body)
    return message


async def _read_chunks(reader: asyncio.StreamReader, message: Message, body: bytearray) -> None:
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        await _read_exactly(reader, size, body)
        assert await reader.readexactly(2) == b"\r\n"
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        message.trailers.append(_field(line.decode("latin-1").removesuffix("\r\n")))


async def _read_exactly(reader: asyncio.StreamReader, size: int, body: bytearray) -> None:
    """As `readexactly`, but what has come before the connection ends is kept."""
    while size:
        data = await reader.read(min(size, 2**16))
        if not data:
            raise asyncio.IncompleteReadError(b"", size)
        body += data
        size -= len(data)


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.strip()
