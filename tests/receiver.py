"""A server that takes webhooks: what it was sent, and answers that a test chooses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from openai import OpenAI

PATH = "/services/T0/a-token"


class Received(NamedTuple):
    """One POST."""

    path: str
    fields: dict[str, str]
    body: bytes

    @property
    def message(self) -> dict[str, Any]:
        """The body."""
        decoded: dict[str, Any] = json.loads(self.body)
        return decoded

    def verify(self, secret: str) -> None:
        """Check the signature with another program's code for Standard Webhooks; raises if it is wrong."""
        OpenAI(api_key="none").webhooks.verify_signature(self.body, self.fields, secret=secret)


class Receiver:
    """`answers` are the statuses of the next answers; after them it is 204.

    While `silent` is set, an answer waits until `speaks` is set.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}{PATH}"
        self.received: list[Received] = []
        self.answers: list[int] = []
        self.silent = threading.Event()
        self.speaks = threading.Event()

    @property
    def kinds(self) -> list[str]:
        """The types of what was received."""
        return [received.message["type"] for received in self.received]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a port of 127.0.0.1 that the system chooses."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.received.append(Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            if receiver.silent.is_set():
                receiver.speaks.wait(60)
            status = receiver.answers.pop(0) if receiver.answers else 204
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("location", f"{receiver.url}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Not to standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(server.server_port)
    serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    serving.start()
    try:
        yield receiver
    finally:
        receiver.speaks.set()
        server.shutdown()
        server.server_close()
        serving.join()
