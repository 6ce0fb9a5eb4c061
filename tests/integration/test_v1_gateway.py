"""`/v1` as an ASGI application, before a backend of this process."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gasket.backends.breaker import FAILURES, Breakers
from gasket.limits.limiter import Limiter
from gasket.limits.store import LimitStore
from gasket.proxy.access import Access
from gasket.proxy.directory import KeyDirectory
from gasket.proxy.dispatch import Dispatcher
from gasket.proxy.events import COMMENT
from gasket.proxy.exchange import Exchange
from gasket.proxy.gateway import Gateway
from gasket.proxy.model_lists import ModelLists
from gasket.upstream.client import UpstreamClient
from tests.acceptance.processes import until
from tests.access import a_backend, a_profile, an_access

KEY = b"gsk_" + b"0" * 48
EVENT = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
DONE = b"data: [DONE]\n\n"


class Client:
    """One request, as the server hands it over, and what is sent for it."""

    def __init__(self, *, length: int | None = None) -> None:
        self.coming: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[Any] = []
        fields = [(b"authorization", b"Bearer " + KEY)]
        if length is not None:
            fields.append((b"content-length", b"%d" % length))
        self.scope: Any = {
            "type": "http",
            "method": "POST",
            "raw_path": b"/v1/chat/completions",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "headers": fields,
        }

    def put(self, body: bytes, *, more: bool = False) -> None:
        self.coming.put_nowait({"type": "http.request", "body": body, "more_body": more})

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def fields(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def error(self) -> str | None:
        code: str = json.loads(self.body)["error"]["code"]
        return code

    @property
    def whole(self) -> bool:
        """Whether the answer came to its end."""
        return not self.sent[-1].get("more_body", True)


Start = Callable[..., Awaitable[tuple[Gateway, list[Exchange]]]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Call it with what the backend answers to each request for a gateway before it, and for what is noted of each.

    At an event it waits for that; keyword arguments are the backend's.
    """
    client, servers = UpstreamClient(), []

    async def make(*answer: bytes | asyncio.Event, **backend: Any) -> tuple[Gateway, list[Exchange]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0))
            for step in answer:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    writer.write(step)
                    await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        servers.append(server)
        port = server.sockets[0].getsockname()[1]
        only = a_backend(**{"base_url": f"http://127.0.0.1:{port}", **backend})
        access = an_access(a_profile(only, allow_stateful_endpoints=True))

        async def find(_digest: str) -> Access:
            return access

        noted: list[Exchange] = []
        nowhere = LimitStore("postgresql://127.0.0.1:1/x", schema="public", application_name="x")
        gateway = Gateway(
            KeyDirectory(find, ttl=60),
            Dispatcher(client, Breakers()),
            ModelLists(client),
            Limiter(nowhere),
            largest_body=1000,
            most_in_bodies=1500,
            most_requests=10,
            key_share=50,
            observers=[noted.append],
        )
        return gateway, noted

    yield make
    await client.close()
    for server in servers:
        server.close()
        await server.wait_closed()


def an_answer(body: bytes, *, content_type: bytes, length: int | None = None) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (content_type, len(body) if length is None else length) + body


class TestLengthOfAStream:
    """A server that answers with events may say how long they are; what the client gets may have another length."""

    async def test_an_event_is_taken_out(self, start: Start) -> None:
        gateway, _ = await start(an_answer(EVENT + USAGE + DONE, content_type=b"text/event-stream"))
        client = Client()
        client.put(b'{"stream":true}')
        await gateway(client.scope, client.coming.get, client.send)
        assert b"content-length" not in client.fields
        assert client.body == EVENT + DONE
        assert client.whole

    async def test_an_error_is_put_at_the_end(self, start: Start) -> None:
        gateway, _ = await start(an_answer(EVENT + b"data: {", content_type=b"text/event-stream", length=999))
        client = Client()
        client.put(b'{"stream":true}')
        await gateway(client.scope, client.coming.get, client.send)
        assert b"content-length" not in client.fields
        assert client.body.startswith(EVENT + b'data: {"error":')
        assert client.whole

    async def test_of_any_other_answer_it_stays(self, start: Start) -> None:
        gateway, _ = await start(an_answer(b"{}", content_type=b"application/json"))
        client = Client()
        client.put(b"{}")
        await gateway(client.scope, client.coming.get, client.send)
        assert client.fields[b"content-length"] == b"2"
        assert client.body == b"{}"


@asynccontextmanager
async def under_way(gateway: Gateway, client: Client) -> AsyncIterator[asyncio.Task[None]]:
    """A request that runs."""
    task: asyncio.Task[None] = asyncio.ensure_future(gateway(client.scope, client.coming.get, client.send))
    for _ in range(10):
        await asyncio.sleep(0)
    assert gateway.under_way == 1
    yield task
    async with asyncio.timeout(30):
        await task
    assert gateway.under_way == 0


class Unread(Client):
    """One whose connection takes no more once `room` messages have been sent."""

    def __init__(self, *, room: int) -> None:
        super().__init__()
        self.put(b'{"stream":true}')
        self.room = room
        self.full = asyncio.Event()

    async def send(self, message: Any) -> None:
        if len(self.sent) >= self.room:
            self.full.set()
            await asyncio.Event().wait()
        await super().send(message)


PLAIN = an_answer(b"{}", content_type=b"application/json")


class TestAClientThatReadsNothing:
    @pytest.mark.parametrize("room", [0, 1], ids=["not the head", "the head only"])
    @pytest.mark.parametrize(
        ("answer", "backend"),
        [(PLAIN, 1), (an_answer(EVENT + DONE, content_type=b"text/event-stream"), 1), (b"", None)],
        ids=["plain", "events", "our own"],
    )
    async def test_it_has_left(
        self, start: Start, monkeypatch: pytest.MonkeyPatch, answer: bytes, backend: int | None, room: int
    ) -> None:
        """The head waits, too, where the client has not read what it got before over the same connection."""
        monkeypatch.setattr("gasket.proxy.relay.STALLED_AFTER", 0.05)
        monkeypatch.setattr("gasket.proxy.gateway.STALLED_AFTER", 0.05)
        gateway, noted = await start(answer, max_concurrency=1)
        for _ in range(2):  # the backend's place is free again
            client = Unread(room=room)
            async with asyncio.timeout(30):
                await gateway(client.scope, client.coming.get, client.send)
            assert (noted[-1].status, noted[-1].outcome, len(client.sent)) == (499, "client_gone", room)
            assert (noted[-1].first_byte is not None) == bool(room and backend)
        assert gateway.under_way == 0

    @pytest.mark.parametrize("room", [0, 1], ids=["not the head", "the head only"])
    @pytest.mark.parametrize("answer", [PLAIN, b""], ids=["the backend's", "our own"])
    async def test_it_does_not_keep_a_replica_from_stopping(
        self, start: Start, monkeypatch: pytest.MonkeyPatch, answer: bytes, room: int
    ) -> None:
        monkeypatch.setattr("gasket.proxy.gateway.LAST_SEND_TIMEOUT", 0.05)
        gateway, _ = await start(answer)
        client = Unread(room=room)
        async with under_way(gateway, client):
            await client.full.wait()
            gateway.stop()
        assert len(client.sent) == room

    async def test_without_a_head_it_is_told_so_in_an_answer_and_not_in_an_event(self, start: Start) -> None:
        gateway, _ = await start(an_answer(EVENT, content_type=b"text/event-stream"))
        client = Unread(room=0)
        async with under_way(gateway, client):
            await client.full.wait()
            client.room = 2
            gateway.stop()
        assert (client.status, client.error, client.whole) == (503, "shutting_down", True)


def a_stream(*headers: bytes, body: bytes = EVENT + USAGE + DONE) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"Connection: close", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def asked(
    gateway: Gateway,
    body: bytes = b'{"stream":true}',
    path: str = "/v1/chat/completions",
    headers: Sequence[tuple[bytes, bytes]] = (),
    method: str = "POST",
) -> Client:
    client = Client()
    client.scope["headers"] += headers
    client.scope |= {"method": method, "raw_path": path.encode(), "path": path}
    client.put(body)
    async with asyncio.timeout(30):
        await gateway(client.scope, client.coming.get, client.send)
    return client


class TestWhatIsAStream:
    @pytest.mark.parametrize(
        "content_type",
        [
            None,
            b"text/event-stream",
            b"Text/Event-Stream",
            b"text/event-stream;charset=UTF-8",
            b"text/plain",
            b"application/json",
        ],
    )
    async def test_it_is_known_by_its_request_and_its_first_bytes(
        self, start: Start, content_type: bytes | None
    ) -> None:
        fields = [] if content_type is None else [b"Content-Type: " + content_type]
        gateway, noted = await start(a_stream(*fields))
        client = await asked(gateway)
        assert client.body == EVENT + DONE
        assert client.fields[b"content-type"] == (content_type or b"text/event-stream")
        assert b"content-length" not in client.fields
        assert (noted[0].streamed, noted[0].prompt_tokens, noted[0].estimated) == (True, 3, False)

    async def test_its_first_bytes_may_come_one_by_one(self, start: Start) -> None:
        body = b": hi\n\n" + EVENT + USAGE + DONE
        gate = asyncio.Event()
        head = a_stream(body=body)[: -len(body)]
        gateway, noted = await start(head + body[:1], gate, body[1:])
        asyncio.get_running_loop().call_later(0.05, gate.set)
        client = await asked(gateway)
        assert client.body == b": hi\n\n" + EVENT + DONE
        assert noted[0].streamed

    @pytest.mark.parametrize("content_type", [b"text/event-stream", b"application/json", b""])
    async def test_json_is_none_whatever_it_says(self, start: Start, content_type: bytes) -> None:
        body = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}'
        gateway, noted = await start(a_stream(b"Content-Type: " + content_type, body=body))
        client = await asked(gateway)
        assert client.body == body
        assert (noted[0].streamed, noted[0].prompt_tokens, noted[0].estimated) == (False, 3, False)

    async def test_without_a_wish_for_one_text_is_text(self, start: Start) -> None:
        gateway, noted = await start(a_stream(b"Content-Type: text/plain"))
        client = await asked(gateway, b"{}")
        assert client.body == EVENT + USAGE + DONE
        assert not noted[0].streamed

    async def test_one_that_never_says_what_it_is_is_a_failure_before_its_head(self, start: Start) -> None:
        gateway, noted = await start(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nda")
        client = await asked(gateway)
        assert (client.status, client.error) == (502, "upstream_failed")
        assert noted[0].outcome == "upstream_failed"


class TestASilentStream:
    HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 999\r\n\r\n"

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gasket.proxy.errors_in_success.READ_AHEAD_WITHIN", 0.05)
        monkeypatch.setattr("gasket.proxy.relay.FIRST_COMMENT_AFTER", 0.1)
        monkeypatch.setattr("gasket.proxy.relay.COMMENT_AFTER", 0.1)

    @pytest.mark.parametrize("before", [b"", EVENT, EVENT + b"data: {"], ids=["nothing", "an event", "half of one"])
    async def test_the_client_gets_comments_between_events(self, start: Start, before: bytes) -> None:
        go_on = asyncio.Event()
        rest = b'"usage": null}\n\n' if before.endswith(b"{") else EVENT
        gateway, noted = await start(self.HEAD + before, go_on, rest)
        client = Client()
        client.put(b'{"stream":true}')
        async with under_way(gateway, client):
            await until(lambda: client.body.count(COMMENT) == 3, 5, "three comments")
            go_on.set()
        whole = (before + rest)[: len(EVENT)] if before != EVENT else EVENT
        assert client.body.replace(COMMENT, b"").startswith(whole)
        assert client.body.startswith(EVENT + 3 * COMMENT if before else 3 * COMMENT)
        assert noted[0].failures != ()

    async def test_never_inside_of_one(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gasket.proxy.events.LONGEST_HELD", 50)
        go_on = asyncio.Event()
        long = b"data: " + b"x" * 100
        gateway, _ = await start(self.HEAD + long, go_on, b"y\n\n", go_on)
        client = Client()
        client.put(b'{"stream":true}')
        async with under_way(gateway, client):
            await until(lambda: len(client.sent) == 2, 5, "the first piece")
            await asyncio.sleep(0.5)
            assert client.body == long
            go_on.set()
        assert client.body.startswith(long + b"y\n\n")

    async def test_it_ends_when_chunk_timeout_is_over(self, start: Start) -> None:
        never = asyncio.Event()
        gateway, noted = await start(self.HEAD + EVENT, never, chunk_timeout=1.5)
        client = await asked(gateway)
        never.set()
        assert 2 <= client.body.count(COMMENT) <= 15
        assert b'"code":"upstream_timeout"' in client.body.split(COMMENT)[-1]
        assert noted[0].outcome == "timeout"

    async def test_a_plain_answer_gets_none(self, start: Start) -> None:
        go_on = asyncio.Event()
        gateway, _ = await start(an_answer(b"{", content_type=b"application/json", length=2), go_on, b"}")
        asyncio.get_running_loop().call_later(0.4, go_on.set)
        assert (await asked(gateway, b"{}")).body == b"{}"


def flushed(*pieces: bytes) -> list[bytes]:
    """The pieces in gzip, each as far as it can be read by itself."""
    stream = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    parts = [stream.compress(piece) + stream.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
    return [*parts[:-1], parts[-1] + stream.flush()]


class TestACompressedAnswer:
    HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n"

    async def test_a_stream_is_decoded_while_it_comes(self, start: Start) -> None:
        first, last = flushed(EVENT, USAGE + DONE)
        go_on = asyncio.Event()
        gateway, noted = await start(self.HEAD + first, go_on, last)
        client = Client()
        client.put(b'{"stream":true}')
        async with under_way(gateway, client):
            await until(lambda: client.body == EVENT, 5, "the first event")
            go_on.set()
        assert client.body == EVENT + DONE
        assert b"content-encoding" not in client.fields
        assert (noted[0].prompt_tokens, noted[0].estimated, noted[0].outcome) == (3, False, "ok")

    async def test_a_plain_one_is_decoded_too(self, start: Start) -> None:
        body = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1},"x":"' + b"y" * 200_000 + b'"}'
        packed = zlib.compress(body)
        gateway, noted = await start(a_stream(b"Content-Encoding: deflate", body=packed))
        client = await asked(gateway, b"{}")
        assert client.body == body
        assert {b"content-encoding", b"content-length"}.isdisjoint(client.fields)
        assert (noted[0].prompt_tokens, noted[0].estimated, client.whole) == (3, False, True)

    async def test_one_that_is_a_thousand_times_as_large_lets_others_run(self, start: Start) -> None:
        packed = gzip.compress(b"\0" * 20_000_000)
        gateway, _ = await start(a_stream(b"Content-Encoding: gzip", body=packed))
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        running = asyncio.create_task(others())
        client = await asked(gateway, b"{}")
        running.cancel()
        pieces = len(client.sent) - 1
        assert pieces > 300
        assert turns > pieces

    @pytest.mark.parametrize("cut", [1, 9])
    async def test_one_that_breaks_off_is_not_whole(self, start: Start, cut: int) -> None:
        packed = gzip.compress(EVENT * 50 + DONE)[:-cut]
        gateway, noted = await start(self.HEAD + packed)
        client = await asked(gateway)
        assert b'"code":"upstream_failed"' in client.body
        assert noted[0].outcome == "upstream_failed"
        plain = await asked((await start(a_stream(b"Content-Encoding: gzip", body=packed)))[0], b"{}")
        assert not plain.whole

    async def test_what_nobody_can_decode_passes_unread(self, start: Start) -> None:
        gateway, noted = await start(a_stream(b"Content-Type: text/event-stream", b"Content-Encoding: br"))
        client = await asked(gateway, headers=[(b"accept-encoding", b"gzip, br;q=0.5")])
        assert client.body == EVENT + USAGE + DONE
        assert client.fields[b"content-encoding"] == b"br"
        assert client.fields[b"content-length"] == b"%d" % len(client.body)
        assert noted[0].estimated

    @pytest.mark.parametrize("coding", [b"br", b"gzip, br", b"gzip\r\nContent-Encoding: gzip", b"zstd"])
    async def test_what_the_client_cannot_decode_either_is_an_error(self, start: Start, coding: bytes) -> None:
        gateway, noted = await start(a_stream(b"Content-Encoding: " + coding))
        client = await asked(gateway, headers=[(b"accept-encoding", b"br;q=0.0, *")] if b"br" in coding else [])
        assert client.status == 502
        assert b"Content-Encoding" in client.body
        assert (noted[0].outcome, noted[0].completion_tokens) == ("upstream_failed", 0)


class TestErrorsOfMessages:
    """In the shape that clients of Anthropic's API read."""

    async def test_before_an_answer(self, start: Start) -> None:
        gateway, noted = await start()
        gateway.stop()
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            client = await asked(gateway, b"{}", path)
            error = {"type": "overloaded_error", "message": "This replica is being stopped."}
            assert client.status == 503
            assert json.loads(client.body) == {"type": "error", "error": error, "request_id": noted[-1].request_id}
            assert client.fields[b"content-length"] == b"%d" % len(client.body)
            assert client.fields[b"request-id"] == noted[-1].request_id.encode()
        assert (await asked(gateway, b"{}", "/v1/messagesx")).fields[b"content-type"] == b"application/json"

    async def test_in_the_middle_of_a_stream(self, start: Start) -> None:
        begun = b'event: ping\ndata: {"type": "ping"}\n\n'
        gateway, noted = await start(
            a_stream(b"Content-Type: text/event-stream", body=begun).replace(b"Length: ", b"Length: 9")
        )
        client = await asked(gateway, path="/v1/messages")
        assert client.body.startswith(begun + b"event: error\ndata: ")
        error = json.loads(client.body.removeprefix(begun + b"event: error\ndata: "))
        assert (error["type"], error["error"]["type"]) == ("error", "api_error")
        assert noted[0].outcome == "upstream_failed"

    async def test_a_stream_without_a_length_ends_with_its_last_event(self, start: Start) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        stop = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
        for body, outcome in ((stop, "ok"), (EVENT, "upstream_failed")):
            gateway, noted = await start(head + body)
            await asked(gateway, path="/v1/messages")
            assert noted[0].outcome == outcome


class TestAnEventThatHasGoneOutInPart:
    """Nothing may come behind it: a client would take both for one event, or the half one for a whole one."""

    HALF = b"data: " + b"x" * 100

    @pytest.fixture(autouse=True)
    def no_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gasket.proxy.events.LONGEST_HELD", 50)
        monkeypatch.setattr("gasket.proxy.errors_in_success._MOST_READ_AHEAD", 20)

    async def test_then_the_answer_has_no_end(self, start: Start) -> None:
        gateway, noted = await start(an_answer(EVENT + self.HALF, content_type=b"text/event-stream", length=999))
        client = Client()
        client.put(b'{"stream":true}')
        await gateway(client.scope, client.coming.get, client.send)
        assert client.body == EVENT + self.HALF
        assert not client.whole
        assert noted[0].outcome == "upstream_failed"

    @pytest.mark.parametrize(
        ("pieces", "says"), [([HALF, b"\n\n"], False), ([EVENT, HALF], True)], ids=["its end", "half of it"]
    )
    async def test_what_counts_is_what_the_client_has(self, start: Start, pieces: list[bytes], says: bool) -> None:
        """The next piece was on its way when the replica stopped."""
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 999\r\n\r\n"
        go_on = asyncio.Event()
        gateway, _ = await start(head + pieces[0], go_on, pieces[1])
        client = Unread(room=2)
        async with under_way(gateway, client):
            await until(lambda: len(client.sent) == 2, 5, "the first piece")
            go_on.set()
            await client.full.wait()
            client.room = 99
            gateway.stop()
        assert client.body.startswith(pieces[0])
        assert (b"shutting_down" in client.body) == client.whole == says


async def test_where_a_backend_is_and_what_a_profile_is_called_is_for_the_log(start: Start) -> None:
    gateway, noted = await start(b"HTTP/1.1 200 OK\r\n\r\n", name="b1", base_url="http://127.0.0.1:1")
    client = Client()
    client.put(b"{}")
    await gateway(client.scope, client.coming.get, client.send)
    assert (client.status, client.error) == (502, "upstream_unreachable")
    assert json.loads(client.body)["error"]["message"] == "Backend 'b1' cannot be connected to."
    assert noted[0].error == "Backend 'b1' refuses connections: nothing listens at 127.0.0.1:1."
    assert client.fields[b"x-request-id"] == noted[0].request_id.encode()


class TestTheShareOfAKey:
    async def test_of_requests(self, start: Start) -> None:
        go_on = asyncio.Event()
        gateway, noted = await start(go_on, PLAIN)
        clients = [Client() for _ in range(6)]
        running = []
        for client in clients[:5]:
            client.put(b"{}")
            running.append(asyncio.ensure_future(gateway(client.scope, client.coming.get, client.send)))
        await asyncio.sleep(0)
        await gateway(clients[5].scope, clients[5].coming.get, clients[5].send)
        assert (clients[5].status, clients[5].error) == (429, "concurrency_limit_exceeded")
        assert b"retry-after" in clients[5].fields
        assert noted[0].outcome == "limited"
        go_on.set()
        await asyncio.gather(*running)
        assert {client.status for client in clients[:5]} == {200}

    async def test_of_bytes(self, start: Start) -> None:
        """Two bodies of the largest size have room; but not both of one key."""
        gateway, _ = await start(PLAIN)
        slow, other = Client(), Client()
        slow.put(b'{"x":"' + b"x" * 600, more=True)
        other.put(b'{"x":"' + b"x" * 600 + b'"}')
        async with under_way(gateway, slow):
            await gateway(other.scope, other.coming.get, other.send)
            assert (other.status, other.error) == (429, "concurrency_limit_exceeded")
            slow.put(b'"}')
        assert slow.status == 200
        other = Client()
        other.put(b'{"x":"' + b"x" * 900 + b'"}')
        await gateway(other.scope, other.coming.get, other.send)
        assert other.status == 200


class TestStop:
    async def test_a_client_that_is_still_sending_is_told_at_once(self, start: Start) -> None:
        """Its body may take minutes; the server waits for every request before it ends."""
        gateway, noted = await start(b"")
        client = Client(length=10)
        async with under_way(gateway, client):
            client.put(b"{", more=True)
            await asyncio.sleep(0.01)
            gateway.stop()
        assert (client.status, client.error) == (503, "shutting_down")
        assert b"retry-after" in client.fields
        assert noted[0].outcome == "shutdown"

    async def test_a_request_that_comes_after_it_is_not_begun(self, start: Start) -> None:
        """Over a connection that is still open."""
        gateway, _ = await start(an_answer(b"{}", content_type=b"application/json"))
        gateway.stop()
        client = Client()
        client.put(b"{}")
        await gateway(client.scope, client.coming.get, client.send)
        assert (client.status, client.error) == (503, "shutting_down")

    async def test_what_the_server_cancels_at_its_end_was_no_success(self, start: Start) -> None:
        gateway, noted = await start(b"")
        client = Client()
        with pytest.raises(asyncio.CancelledError):
            async with under_way(gateway, client) as task:
                task.cancel()
        assert (noted[0].status, noted[0].outcome) == (503, "shutdown")
        assert gateway.under_way == 0

    async def test_a_slow_client_is_one_while_nothing_stops(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gasket.proxy.bodies._PIECE_TIMEOUT", 0.05)
        gateway, _ = await start(b"")
        client = Client()
        await gateway(client.scope, client.coming.get, client.send)
        assert (client.status, client.error) == (408, "request_timeout")


class TestRoomForBodies:
    """1500 bytes here, and 1000 for one."""

    async def test_it_is_given_back_when_a_request_ends_however_it_ends(self, start: Start) -> None:
        gateway, noted = await start(an_answer(b"{}", content_type=b"application/json"))
        for body, status in ((b"{%b}", 200), (b"no JSON %b", 400), (b'{"stream":1,"x":"%b"}', 400)) * 2:
            client = Client()
            client.put(body % (b" " * 900))
            await gateway(client.scope, client.coming.get, client.send)
            assert client.status == status
        assert noted[-1].bytes_in > 900

    async def test_who_comes_when_it_is_full_is_told_to_come_again(self, start: Start) -> None:
        gateway, _ = await start(an_answer(b"{}", content_type=b"application/json"))
        slow, client, again = Client(), Client(), Client()
        async with under_way(gateway, slow):
            slow.put(b"{" + b" " * 900, more=True)
            await asyncio.sleep(0.01)
            client.put(b"{%b}" % (b" " * 900))
            await gateway(client.scope, client.coming.get, client.send)
            assert (client.status, client.error) == (503, "overloaded")
            assert b"retry-after" in client.fields
            slow.put(b"}")
        assert slow.status == 200
        again.put(b"{%b}" % (b" " * 900))
        await gateway(again.scope, again.coming.get, again.send)
        assert again.status == 200


async def test_a_body_that_no_second_look_can_read_is_no_fault_of_ours(start: Start) -> None:
    gateway, _ = await start(b"")
    client = Client()
    client.put(b'{"stream":true,"\xff":1}')
    await gateway(client.scope, client.coming.get, client.send)
    assert (client.status, client.error) == (400, "invalid_json")


async def test_a_fault_of_the_gateways_own_has_an_id_too(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    gateway, noted = await start(b"")

    async def receive() -> Any:
        raise ZeroDivisionError

    client = Client()
    await gateway(client.scope, receive, client.send)
    assert (client.status, client.error) == (500, "internal")
    assert client.fields[b"x-gasket-request-id"].decode() == noted[0].request_id
    assert "ZeroDivisionError" in caplog.text
    assert "ZeroDivisionError" not in client.body.decode()


class TestAnErrorThatNobodyCanRead:
    """One in an encoding that neither Gasket nor the client decodes keeps what a client acts on: its status."""

    HEAD = (
        b"HTTP/1.1 %b\r\nContent-Type: text/plain\r\nContent-Encoding: br\r\nRetry-After: 7\r\n"
        b"Content-Length: 3\r\n\r\nbr!"
    )

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (b"429 Too Many Requests", "rate_limit_error"),
            (b"400 Bad Request", "invalid_request_error"),
            (b"500 Oh", "server_error"),
        ],
    )
    async def test_its_status_passes_without_its_words(self, start: Start, status: bytes, kind: str) -> None:
        gateway, noted = await start(self.HEAD % status)
        client = await asked(gateway, b"{}")
        assert client.status == int(status[:3])
        assert client.fields[b"retry-after"] == b"7"
        assert b"content-encoding" not in client.fields
        assert client.fields[b"content-type"] == b"application/json"
        assert client.fields[b"content-length"] == b"%d" % len(client.body)
        error = json.loads(client.body)["error"]
        assert error["type"] == kind
        assert "'br'" in error["message"]
        assert (noted[0].status, noted[0].outcome) == (client.status, "ok")
        assert client.whole

    async def test_in_the_shape_of_messages(self, start: Start) -> None:
        gateway, noted = await start(self.HEAD % b"429 Too Many Requests")
        client = await asked(gateway, b"{}", "/v1/messages")
        body = json.loads(client.body)
        assert (client.status, body["type"], body["error"]["type"]) == (429, "error", "rate_limit_error")
        assert body["request_id"] == noted[0].request_id

    async def test_a_client_that_can_read_it_gets_it(self, start: Start) -> None:
        gateway, _ = await start(self.HEAD % b"429 Too Many Requests")
        client = await asked(gateway, b"{}", headers=[(b"accept-encoding", b"br")])
        assert (client.status, client.body, client.fields[b"content-encoding"]) == (429, b"br!", b"br")


class TestAnErrorInTheMiddleOfAStream:
    ERRORS = (
        b'data: {"error": {"message": "overloaded", "type": "server_error", "code": null}}\n\n',
        b'data: {"error":{"code":502,"message":"overloaded"},"choices":[{"delta":{},"finish_reason":"error"}]}\n\n',
        b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "overloaded"}}\n\n',
        b'data: {"type":"error","code":"server_error","message":"overloaded","param":null}\n\n',
        b'data: {"type":"response.failed","response":{"status":"failed","error":{"message":"overloaded"}}}\n\n',
    )

    @pytest.mark.parametrize("error", ERRORS)
    @pytest.mark.parametrize("behind", [b"", DONE])
    async def test_it_is_told_apart_and_passes_as_it_came(self, start: Start, error: bytes, behind: bytes) -> None:
        gateway, noted = await start(a_stream(body=EVENT + EVENT + error + behind))
        client = await asked(gateway)
        assert client.body == EVENT + EVENT + error + behind
        assert (noted[0].status, noted[0].outcome) == (200, "upstream_failed")
        assert noted[0].error is not None
        assert noted[0].error.endswith("sent an error in its stream: overloaded")
        assert [kind for _, kind in noted[0].failures] == ["error_in_success"]
        assert noted[0].completion_tokens > 0

    async def test_a_stream_that_breaks_off_behind_it_does_not_hide_it(self, start: Start) -> None:
        gateway, noted = await start(an_answer(EVENT + self.ERRORS[0], content_type=b"text/event-stream", length=9999))
        client = await asked(gateway)
        assert client.body.startswith(EVENT + self.ERRORS[0])
        assert noted[0].outcome == "upstream_failed"
        assert noted[0].error is not None
        assert noted[0].error.endswith("sent an error in its stream: overloaded")
        assert [kind for _, kind in noted[0].failures] == ["error_in_success"]

    @pytest.mark.parametrize(
        "event",
        [
            b'data: {"choices":[{"delta":{"content":"hi"}}],"error":null}\n\n',
            b'data: {"choices":[{"delta":{"content":"{\\"error\\": 1}"}}]}\n\n',
            b'data: {"choices":[{"delta":{"tool":{"error": "of a tool"}}}]}\n\n',
            b'data: not JSON with "error": 1\n\n',
            b'data: {"error": ' + b"[" * 10_000 + b"\n\n",
        ],
    )
    async def test_what_only_looks_like_one_is_none(self, start: Start, event: bytes) -> None:
        gateway, noted = await start(a_stream(body=EVENT + event + DONE))
        await asked(gateway)
        assert (noted[0].outcome, noted[0].error, noted[0].failures) == ("ok", None, ())

    @pytest.mark.parametrize(
        "error",
        [
            b'{"error":{"message":"too long","code":400}}',
            b'{"error":{"message":"too long","type":"invalid_request_error","code":null}}',
            b'{"type":"error","error":{"type":"invalid_request_error","message":"too long"}}',
            b'{"type":"error","code":"context_length_exceeded","message":"too long","param":"input"}',
            b'{"type":"response.failed","response":{"error":{"code":"invalid_prompt","message":"too long"}}}',
        ],
    )
    async def test_a_request_that_is_to_blame_sets_nothing_aside(self, start: Start, error: bytes) -> None:
        gateway, noted = await start(a_stream(body=EVENT + b"data: " + error + b"\n\n"))
        assert [(await asked(gateway)).status for _ in range(2 * FAILURES)] == [200] * 2 * FAILURES
        assert {exchange.outcome for exchange in noted} == {"upstream_failed"}

    async def test_any_other_sets_the_model_aside(self, start: Start) -> None:
        gateway, _ = await start(a_stream(body=EVENT + self.ERRORS[0]))
        assert [(await asked(gateway)).status for _ in range(FAILURES + 1)] == [*[200] * FAILURES, 503]

    async def test_a_status_that_says_it_is_enough(self, start: Start) -> None:
        answer = a_stream(b"Content-Type: text/event-stream", body=EVENT + self.ERRORS[0])
        gateway, noted = await start(answer.replace(b"200 OK", b"400 Bad Request"))
        assert [(await asked(gateway)).status for _ in range(2 * FAILURES)] == [400] * 2 * FAILURES
        assert {(exchange.outcome, exchange.failures) for exchange in noted} == {("ok", ())}

    async def test_what_a_get_shows_failed_before(self, start: Start) -> None:
        gateway, noted = await start(a_stream(b"Content-Type: text/event-stream", body=EVENT + self.ERRORS[-1]))
        for _ in range(2 * FAILURES):
            client = await asked(gateway, b"", "/v1/responses/resp_1", method="GET")
            assert client.body == EVENT + self.ERRORS[-1]
        assert {(exchange.outcome, exchange.failures) for exchange in noted} == {("ok", ())}

    async def test_a_client_that_leaves_at_it_hides_it_not(self, start: Start) -> None:
        never = asyncio.Event()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        gateway, noted = await start(head + EVENT + self.ERRORS[0], never)
        client = Client()
        client.put(b'{"stream": true}')
        answering = asyncio.ensure_future(gateway(client.scope, client.coming.get, client.send))
        await until(lambda: len(client.sent) > 1 and self.ERRORS[0] in client.body, 30, "the event of the error")
        client.coming.put_nowait({"type": "http.disconnect"})
        await answering
        never.set()
        assert (noted[0].status, noted[0].outcome) == (200, "upstream_failed")
