"""Decodes bodies that are compressed although `identity` was asked for (RFC 9110, 8.4.1), while they arrive."""

from __future__ import annotations

import zlib

from gasket.upstream.failures import BrokenAnswerError

MOST_AT_ONCE = 64 * 1024
"""Bytes that one step gives: a few bytes of input may stand for a thousand times as many."""
ENCODINGS = frozenset({b"gzip", b"x-gzip", b"deflate"})
"""Those that can be decoded. The standard library has no others."""

_GZIP_BITS, _ZLIB_BITS, _RAW_BITS = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
_NEXT_MEMBER = b"\x1f\x8b"


class Decoder:
    """One body in gzip (RFC 1952) or deflate (RFC 1950; some servers send it as in RFC 1951, without a header)."""

    __slots__ = ("_encoding", "_full", "_rest", "_stream")

    def __init__(self, encoding: bytes) -> None:
        self._encoding = encoding
        self._stream: zlib._Decompress | None = None
        self._rest = b""
        self._full = False
        """Whether the last step gave as much as it may, so that there may be more without further input."""

    @property
    def complete(self) -> bool:
        """Whether the body may end here."""
        return not self._full and not self._rest and (self._stream is None or self._stream.eof)

    @property
    def has_more(self) -> bool:
        """Whether `take` may give more without `put`."""
        return self._full

    def put(self, data: bytes) -> None:
        """The next bytes of the body, as they arrived."""
        self._rest += data

    def take(self) -> bytes:
        """What the bytes so far stand for, at most 64 KiB at a time; empty when there is no more.

        Raises:
            BrokenAnswerError: the bytes are not compressed as the answer says.
        """
        while self._rest or self._full:
            if self._stream is None or self._stream.eof:
                if self._stream is not None and not _NEXT_MEMBER.startswith(self._rest[:2]):
                    self._rest = b""  # padding
                if len(self._rest) < 2:
                    return b""
                self._stream = zlib.decompressobj(self._bits())
            try:
                decoded = self._stream.decompress(self._rest, MOST_AT_ONCE)
            except zlib.error:
                raise BrokenAnswerError("sends an answer that is not compressed as it says") from None
            self._rest = self._stream.unconsumed_tail or self._stream.unused_data
            self._full = len(decoded) == MOST_AT_ONCE and not self._stream.eof
            if decoded:
                return decoded
        return b""

    def _bits(self) -> int:
        if self._encoding != b"deflate":
            return _GZIP_BITS
        method, check = self._rest[0] & 0x0F, int.from_bytes(self._rest[:2], "big") % 31
        return _ZLIB_BITS if method == zlib.DEFLATED and check == 0 else _RAW_BITS
