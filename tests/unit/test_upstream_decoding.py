"""Compressed bodies are decoded while they arrive."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gasket.upstream.decoding import MOST_AT_ONCE, Decoder
from gasket.upstream.failures import BrokenAnswerError

TEXT = json.dumps({"usage": {"prompt_tokens": 3}, "x": list(range(500))}).encode()


def raw(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


FORMS = [(b"gzip", gzip.compress), (b"x-gzip", gzip.compress), (b"deflate", zlib.compress), (b"deflate", raw)]


def decoded(decoder: Decoder, body: bytes, size: int) -> bytes:
    out = b""
    for start in range(0, len(body), size):
        decoder.put(body[start : start + size])
        while piece := decoder.take():
            assert len(piece) <= MOST_AT_ONCE
            out += piece
    return out


@pytest.mark.parametrize(("encoding", "compress"), FORMS)
@pytest.mark.parametrize("size", [1, 2, 7, 10**6])
@pytest.mark.parametrize("text", [TEXT, b"", b"a" * MOST_AT_ONCE, b"b" * (3 * MOST_AT_ONCE)])
def test_it_is_decoded_however_it_is_cut(encoding: bytes, compress: object, size: int, text: bytes) -> None:
    assert callable(compress)
    body = compress(text)
    decoder = Decoder(encoding)
    assert decoder.complete
    assert decoded(decoder, body, size) == text
    assert decoder.complete
    cut = Decoder(encoding)
    decoded(cut, body[:-1], size)
    assert not cut.complete


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_gzip_may_have_members_and_padding(size: int) -> None:
    decoder = Decoder(b"gzip")
    assert decoded(decoder, gzip.compress(b"a") + gzip.compress(b"b") + b"\0" * 9, size) == b"ab"
    assert decoder.complete


def test_a_few_bytes_that_stand_for_very_many_come_in_small_pieces() -> None:
    decoder = Decoder(b"gzip")
    decoder.put(gzip.compress(bytes(50_000_000)))
    assert len(decoder.take()) == MOST_AT_ONCE
    assert not decoder.complete


@given(st.binary(min_size=20, max_size=40))
def test_what_is_not_compressed_is_refused(body: bytes) -> None:
    decoder = Decoder(b"gzip")
    if body[:2] == b"\x1f\x8b":
        return
    decoder.put(body)
    with pytest.raises(BrokenAnswerError):
        decoder.take()


def test_what_was_flushed_is_not_held_back() -> None:
    stream = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    decoder = Decoder(b"gzip")
    for number in range(5):
        event = b"data: %d\n\n" % number
        decoder.put(stream.compress(event) + stream.flush(zlib.Z_SYNC_FLUSH))
        assert decoder.take() == event
        assert decoder.take() == b""
