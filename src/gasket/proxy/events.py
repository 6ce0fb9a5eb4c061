"""Server-sent events (WHATWG HTML, "Server-sent events") as bytes: whole ones go on as they came. Pure."""

from __future__ import annotations

import re

LONGEST_HELD = 64 * 1024
"""Bytes of an unfinished event that are held back; a longer one goes on in pieces."""

_BORDERS = (b"\n\n", b"\n\r\n", b"\r\r")
_EVENT = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2,}")


class EventStream:
    """Cuts a stream of bytes at the borders of its events, so that one that breaks off never goes out in part."""

    __slots__ = ("_held", "clean")

    def __init__(self) -> None:
        self._held = b""
        self.clean = True
        """Whether what was handed out so far ends with a whole event."""

    def feed(self, chunk: bytes) -> bytes:
        """What can go on now: everything up to the last border. Nothing is changed or lost."""
        if self._held:
            chunk = self._held + chunk
            self._held = b""
        if chunk.endswith(b"\n\n"):
            self.clean = True
            return chunk
        border = max(chunk.rfind(border) + len(border) if border in chunk else 0 for border in _BORDERS)
        whole, rest = chunk[:border], chunk[border:]
        if len(rest) > LONGEST_HELD:
            self.clean = False
            return chunk
        self._held = rest
        if whole:
            self.clean = True
        return whole

    def rest(self) -> bytes:
        """What is left when the stream has ended by itself."""
        held, self._held = self._held, b""
        if held:
            self.clean = False
        return held


def split_events(block: bytes) -> list[bytes]:
    """The events of a block of whole ones, each with the blank line that ends it."""
    events, start = [], 0
    for border in _EVENT.finditer(block):
        events.append(block[start : border.end()])
        start = border.end()
    if start < len(block):
        events.append(block[start:])
    return events


def event_data(event: bytes) -> bytes:
    """The value of the event's `data` fields, lines joined by a line feed; a name without a colon is a field, too."""
    lines = event.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:") or line == b"data")


def error_event(error: bytes) -> bytes:
    """An error as the last event of a stream, behind a whole one."""
    return b"data: " + error + b"\n\n"
