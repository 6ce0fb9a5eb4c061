"""A scripted upstream: a real server that answers as a test says, down to the byte, and keeps what it was asked."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tests.acceptance.http11 import Headers, Message, chunk, compose, read_body, read_head, reset_when_closed
from tests.acceptance.processes import until


class End(Enum):
    """How an answer may end, other than whole."""

    FIN = "the connection is closed"
    RST = "the connection is reset"
    NEVER = "nothing more comes, until the client goes away"


Step = bytes | float | asyncio.Event | End
Answer = tuple[Step, ...]
"""What happens, in order: bytes go out as they are, a number is a pause in seconds, an event is waited for. After the
last step the connection takes the next request."""


@dataclass
class Seen:
    """One request as the upstream read it. Times are the loop's."""

    message: Message
    at: float
    sent: int = 0
    closed_at: float | None = None
    """When the client closed the connection while this request was the last one on it."""

    @property
    def method(self) -> str:
        """The first word of the request line."""
        return self.message.start.split(" ")[0]

    @property
    def target(self) -> str:
        """Path and query, as they came."""
        return self.message.start.split(" ")[1]

    async def left(self, within: float = 20.0) -> float:
        """Wait until the client has closed the connection; returns when it did."""
        await until(lambda: self.closed_at is not None, within, lambda: f"the end of {self.message.start}")
        assert self.closed_at is not None
        return self.closed_at


def answer(body: bytes = b"", *, status: int = 200, headers: Headers = (), length: bool = True) -> Answer:
    """An answer with Content-Length, or without any sign of where it ends."""
    fields = [*headers, ("Content-Length", str(len(body)))] if length else [*headers]
    return (compose(f"HTTP/1.1 {status} Whatever", fields, body),)


def json_answer(content: Any, *, status: int = 200, headers: Headers = ()) -> Answer:
    """An answer in JSON."""
    return answer(json.dumps(content).encode(), status=status, headers=[("Content-Type", "application/json"), *headers])


def failure(status: int, code: str | None = None, *, headers: Headers = ()) -> Answer:
    """An error as OpenAI's servers write it."""
    error = {"message": f"scripted {status}", "type": "scripted", "param": None, "code": code}
    return json_answer({"error": error}, status=status, headers=headers)


def chunked(*steps: Step, status: int = 200, headers: Headers = (), whole: bool = True) -> Answer:
    """An answer in which each step of bytes is one chunk; not `whole`: the last chunk is left to the caller."""
    head = compose(f"HTTP/1.1 {status} Whatever", [*headers, ("Transfer-Encoding", "chunked")])
    pieces = [chunk(step) if isinstance(step, bytes) else step for step in steps]
    return (head, *pieces, chunk(b"")) if whole else (head, *pieces)


def stream(*steps: Step, headers: Headers = (), whole: bool = True) -> Answer:
    """Server-sent events: as `chunked`, with their media type."""
    return chunked(*steps, headers=[("Content-Type", "text/event-stream; charset=utf-8"), *headers], whole=whole)


def event(content: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + (content.encode() if isinstance(content, str) else json.dumps(content).encode()) + b"\n\n"


DONE = event("[DONE]")
_CHAT = {"id": "chatcmpl-1", "created": 1}


def completion(text: str, model: str = "model-a") -> dict[str, Any]:
    """A chat completion."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    return {**_CHAT, "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}


def delta(text: str, model: str = "model-a") -> bytes:
    """One event of a streamed chat completion."""
    choice = {"index": 0, "finish_reason": None, "delta": {"content": text}}
    return event({**_CHAT, "object": "chat.completion.chunk", "model": model, "choices": [choice]})


def models(*names: str) -> Answer:
    """What `GET /v1/models` answers."""
    return json_answer(
        {"object": "list", "data": [{"id": n, "object": "model", "created": 1, "owned_by": "us"} for n in names]}
    )


@dataclass
class Upstream:
    """A server on a port of its own."""

    port: int = 0
    tls: ssl.SSLContext | None = None
    early: Answer = ()
    """What it answers to a request of which it reads nothing but the head."""
    listing: Answer = field(default_factory=lambda: models("model-a", "model-b"))
    """The answer to `GET .../models`; such requests are kept apart from the others, in `listings`."""
    requests: list[Seen] = field(default_factory=list)
    listings: list[Seen] = field(default_factory=list)
    connections: int = 0
    """How many it has accepted."""
    answers: list[Answer] = field(default_factory=lambda: [json_answer(completion("hello"))])

    @property
    def origin(self) -> str:
        """Its URL, without a path."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def plays(self, *answers: Answer) -> None:
        """From now on one request gets the first, the next one the second, and the last answer is for all others."""
        self.answers = list(answers)

    async def asked(self, count: int = 1, within: float = 30.0) -> Seen:
        """Wait until it has read this many requests in all; returns the latest."""
        await until(lambda: len(self.requests) >= count, within, lambda: f"{count} requests, not {len(self.requests)}")
        return self.requests[-1]

    async def blocked(self, within: float = 60.0) -> list[int]:
        """Wait until it cannot get rid of any more bytes; returns how many went out for each request."""

        def sent() -> list[int]:
            return [seen.sent for seen in self.requests]

        async def stands_still() -> bool:
            before = sent()
            await asyncio.sleep(0.3)
            return before == sent()

        await until(stands_still, within, "an upstream that nobody reads from")
        return sent()

    def _answer(self, seen: Seen) -> Answer:
        if seen.method == "GET" and seen.target.partition("?")[0].endswith("/models"):
            self.listings.append(seen)
            return self.listing
        self.requests.append(seen)
        return self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        loop = asyncio.get_running_loop()
        try:
            begun = await _next_byte(reader)
            while begun:
                message = await read_head(reader, begun)
                if self.early and message.start.startswith("POST"):
                    await _play(self.early, Seen(message, loop.time()), writer)
                    break
                seen = Seen(await read_body(reader, message, until_end=False), loop.time())
                # A client that does not pipeline sends nothing while it is being answered: what comes is its next
                # request, or the end of the connection.
                following = asyncio.create_task(_next_byte(reader))
                playing = asyncio.create_task(_play(self._answer(seen), seen, writer))
                try:
                    await asyncio.wait({following, playing}, return_when=asyncio.FIRST_COMPLETED)
                    if not following.done() and not playing.result():
                        break
                    begun = await following
                finally:
                    playing.cancel()
                    following.cancel()
                    await asyncio.wait({following, playing})
                if not begun:
                    seen.closed_at = loop.time()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away while it was asking
        finally:
            writer.close()


async def _next_byte(reader: asyncio.StreamReader) -> bytes:
    """One byte, or none when the client has closed or reset the connection."""
    try:
        return await reader.read(1)
    except ConnectionError:
        return b""


async def _play(steps: Answer, seen: Seen, writer: asyncio.StreamWriter) -> bool:
    """Whether the connection can take another request."""
    for step in steps:
        match step:
            case bytes():
                writer.write(step)
                with suppress(ConnectionError):
                    await writer.drain()
                seen.sent += len(step)
            case float() | int():
                await asyncio.sleep(step)
            case asyncio.Event():
                await step.wait()
            case End.RST:
                reset_when_closed(writer)
                writer.transport.abort()
                return False
            case End.FIN:
                return False
            case End.NEVER:
                await asyncio.Event().wait()
    return True


@asynccontextmanager
async def serving(**script: Any) -> AsyncIterator[Upstream]:
    """A server for as long as the context lasts; the keyword arguments are those of `Upstream`."""
    upstream = Upstream(**script)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.CancelledError):
            await upstream._serve(reader, writer)
        tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", upstream.port, backlog=2048, ssl=upstream.tls)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
