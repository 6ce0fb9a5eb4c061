"""Server-sent events (WHATWG HTML, "Server-sent events") as bytes: whole ones go on as they came. Pure."""

from __future__ import annotations

import re

LONGEST_HELD = 64 * 1024
"""Bytes of an unfinished event that are held back; a longer one goes on in pieces."""

BORDERS = (b"\n\n", b"\n\r\n", b"\r\r")
"""With one of these an event ends."""

COMMENT = b": \n\n"
"""An event that says nothing: clients skip it."""

_FIELDS = (b"data", b"event", b"id", b"retry", b":")
_EVENT = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2,}")


class EventStream:
    """Cuts a stream of bytes at the borders of its events, so that one that breaks off never goes out in part."""

    __slots__ = ("_held", "clean")

    def __init__(self) -> None:
        self._held = b""
        self.clean = True
        """Whether what was handed out so far ends with a whole event."""

    def feed(self, chunk: bytes) -> bytes:
        """The bytes that can be passed on now: everything up to the end of the last event, unchanged."""
        if self._held:
            chunk = self._held + chunk
            self._held = b""
        if chunk.endswith(b"\n\n"):
            self.clean = True
            return chunk
        border = max(chunk.rfind(border) + len(border) if border in chunk else 0 for border in BORDERS)
        whole, rest = chunk[:border], chunk[border:]
        if len(rest) > LONGEST_HELD:
            self.clean = False
            return chunk
        self._held = rest
        if whole:
            self.clean = True
        return whole

    def rest(self) -> bytes:
        """The rest, once the stream has ended by itself."""
        held, self._held = self._held, b""
        if held:
            self.clean = False
        return held


def begin_like_events(first: bytes) -> bool | None:
    """Whether the first bytes of a body are those of events; None: there are too few of them to tell."""
    start = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    if any(start.startswith(field) for field in _FIELDS):
        return True
    return None if any(field.startswith(start) for field in _FIELDS) else False


def split_events(block: bytes) -> list[bytes]:
    """The events of a block of whole ones, each with the blank line that ends it."""
    if b"\r" not in block and b"\n\n\n" not in block:  # nearly always; the pattern takes a third of a stream's CPU
        *whole, rest = block.split(b"\n\n")
        events = [event + b"\n\n" for event in whole]
        return [*events, rest] if rest else events
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


def change_data(event: bytes, data: bytes, changed: bytes) -> bytes:
    """The event with other data than it has; its other fields stay. Neither may be empty."""
    if event.count(data) == 1:
        return event.replace(data, changed)
    lines = event.splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if _is_data(line))
    end = b"\r\n" if lines[first].endswith(b"\r\n") else lines[first][-1:]
    written = [b"data: " + line + end for line in changed.split(b"\n")]
    others = [[line] if not _is_data(line) else written if number == first else [] for number, line in enumerate(lines)]
    return b"".join(line for part in others for line in part)


def _is_data(line: bytes) -> bool:
    return line.startswith(b"data:") or line.rstrip(b"\r\n") == b"data"


def error_event(error: bytes, *, name: bytes = b"") -> bytes:
    """An error as the last event of a stream, behind a whole one. `name` is its type, where it needs one."""
    return (b"event: " + name + b"\n" if name else b"") + b"data: " + error + b"\n\n"
