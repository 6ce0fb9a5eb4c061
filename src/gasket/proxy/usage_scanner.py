"""Finds the `usage` of a JSON answer of any size while it passes in pieces. Of the answer nothing else is kept. Pure.

Between two keys of interest only quotes, braces and brackets are looked at, in a few passes of C over each piece: 70 MB
of embeddings take about 0.1 s.
"""

from __future__ import annotations

import json
import re
from array import array
from itertools import accumulate
from typing import Any

from gasket.proxy.members import structure
from gasket.proxy.usage_counts import UNREADABLE

_LONGEST_USAGE = 16 * 1024
_NAMES = (b"usage", b"response", b"message", b"choices")
# A quote behind a backslash is within a string; any other with one of these names behind it begins a string. The engine
# is quick where what it looks for begins with a quote.
_KEY = re.compile(rb'"(?<!\\")(%b)"\s*+:\s*+' % b"|".join(_NAMES))
_LONGEST_PART = 64


def _beginnings(name: bytes) -> bytes:
    """A pattern for what the name may be cut off to at the end of a piece."""
    pattern = rb'(?:"\s*+:?\s*+)?'
    for letter in reversed(name):
        pattern = rb"(?:%c%b)?" % (letter, pattern)
    return pattern


_CUT_OFF = re.compile(rb'(?:(?<!\\)"(?:%b)|\\)\Z' % b"|".join(map(_beginnings, _NAMES)))
_STEPS = bytes.maketrans(b"{}", b"\x01\xff")
_DEPTHS = {b"": 1, b"response": 2, b"message": 2, b"choices": 3}
"""How deep `usage` stands: in the answer itself, in an answer inside, in a choice."""

_decode = json.JSONDecoder().raw_decode


class UsageScanner:
    """Is fed an answer; or events, each of which is JSON between a few other bytes."""

    __slots__ = ("_depth", "_held", "_inner", "_own", "_parent", "_within", "spans")

    def __init__(self) -> None:
        self._held = b""
        self._depth = 0
        self._within = 0
        """1: the bytes so far end within a string."""
        self._parent = b""
        """The member of the outermost object that the bytes so far end in, if it is one that may have a `usage`."""
        self._own: dict[str, Any] | None = None
        self._inner: dict[str, Any] | None = None
        self.spans: list[tuple[int, int]] = []
        """Where the answer's own `usage`, from its key to the end of its value, stands in what was fed last."""

    @property
    def found(self) -> dict[str, Any] | None:
        """The answer's own `usage`; else that of the answer inside, or of a choice."""
        return self._own if self._own is not None else self._inner

    @property
    def done(self) -> bool:
        """Whether an answer has told all that it will."""
        return self._own is not None

    def feed(self, piece: bytes) -> None:
        """Look at the next bytes."""
        data = self._held + piece if self._held else piece
        self._held = b""
        at = 0
        while (key := _KEY.search(data, at)) is not None:
            self._pass(data[at : key.start()])
            self._within = 0
            at = key.end()
            if at == len(data) or (key[1] == b"usage" and self._counts and (at := self._read(data, key)) < 0):
                if len(data) - key.start() <= _LONGEST_USAGE:
                    self._held = data[key.start() :]
                    return
                at = key.end()
            elif key[1] != b"usage" and self._depth == 1 and data[at] in b"{[":
                self._parent = key[1]
        cut_off = _CUT_OFF.search(data, max(at, len(data) - _LONGEST_PART))
        if cut_off is not None and (cut_off[0] != b"\\" or _ends_within_an_escape(data)):
            self._held = cut_off[0]
        self._pass(data[at : len(data) - len(self._held)])

    @property
    def _counts(self) -> bool:
        return self._depth == _DEPTHS[self._parent]

    def _read(self, data: bytes, key: re.Match[bytes]) -> int:
        """The place behind a value; negative if it is not all there yet."""
        start = key.end()
        if data[start] != ord("{"):
            return start
        try:
            # In Latin-1 each byte is a character, so places are the same.
            value, end = _decode(data[start : start + _LONGEST_USAGE].decode("latin-1"))
        except UNREADABLE:
            return -1
        if not self._parent:
            self._own = value
            self.spans.append((key.start(), start + end))
        elif self._inner is None or self._parent != b"choices":
            self._inner = value
        return start + end

    def _pass(self, part: bytes) -> None:
        """Follow how deep the JSON is, over whole escapes."""
        outside = structure(part)
        if b'"' in outside:
            strings = outside.split(b'"')
            outside = b"".join(strings[self._within :: 2])
            self._within ^= len(strings) - 1 & 1
        elif self._within:
            return
        if not outside:
            return
        if self._parent and self._depth + min(accumulate(array("b", outside.translate(_STEPS)))) <= 1:
            self._parent = b""
        self._depth = max(self._depth + 2 * outside.count(b"{") - len(outside), 0)


def without_usage(data: bytes) -> bytes:
    """The same object without its own `usage`, every other byte as it was."""
    scanner = UsageScanner()
    scanner.feed(data)
    for start, end in reversed(scanner.spans):
        before, behind = data[:start].rstrip(), data[end:]
        if before.endswith(b","):
            before = before[:-1]
        elif behind.lstrip().startswith(b","):
            before, behind = data[:start], behind.lstrip()[1:].lstrip()
        data = before + behind
    return data


def _ends_within_an_escape(data: bytes) -> bool:
    """Whether the last backslash escapes what comes next."""
    return bool((len(data) - len(data.rstrip(b"\\"))) % 2)
