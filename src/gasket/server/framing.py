"""How much of a chunked body may be something else than its payload (RFC 9112, 7.1). Pure."""

from __future__ import annotations

from gasket.server.errors import BadRequestError, HeadTooLargeError

_FREE_FRAMING = 64 * 1024
_FRAMING_RATIO = 2
"""What is not payload may be so many bytes, and twice the payload. Chunks of three bytes stay below that; an encoder
of JSON that writes each token by itself sends larger ones."""
_LARGEST_EXTENSIONS = 16 * 1024
"""Bytes of all chunk extensions and trailer fields."""
_CHUNK_FRAMING = 12
"""Bytes that the largest chunk needs beside its payload; what is above it counts as extensions."""


class Framing:
    """How much of one body has arrived: bytes, bytes of payload, and pieces."""

    __slots__ = ("chunked", "payload", "pieces", "received")

    def __init__(self) -> None:
        self.begin()
        self.chunked = False

    def begin(self) -> None:
        """A chunked body follows."""
        self.chunked = True
        self.received = self.payload = self.pieces = 0

    def check(self, received: int) -> None:
        """Count the bytes that have arrived; their payload has been counted.

        Raises:
            HeadTooLargeError: there are too many bytes of extensions or trailer fields.
            BadRequestError: the chunks are too small.
        """
        self.received += received
        framing = self.received - self.payload
        if framing - _CHUNK_FRAMING * self.pieces > _LARGEST_EXTENSIONS:
            raise HeadTooLargeError("The body has too many bytes of chunk extensions or trailer fields.")
        if framing > _FREE_FRAMING + _FRAMING_RATIO * self.payload:
            raise BadRequestError("The body's chunks are too small: most of it is framing.", code="invalid_http")
