from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from gasket.upstream import UpstreamClient, endpoint, failure_in_words
from tests.tls import certificate, context_of

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def client() -> AsyncIterator[UpstreamClient]:
    client = UpstreamClient()
    yield client
    await client.close()


@asynccontextmanager
async def server(handler: Handler, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """The base URL of a server of this process."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    running = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    port = running.sockets[0].getsockname()[1]
    async with running:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"


def answering(answer: bytes, heard: list[bytes] | None = None) -> Handler:
    """Reads the head of a request, writes these bytes, and closes."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if heard is not None:
            heard.append(head)
        writer.write(answer)
        await writer.drain()

    return handler


async def ask(
    client: UpstreamClient, base_url: str, *, skip_tls_verify: bool = False, seconds: float = 10
) -> tuple[int, bytes]:
    response = await client.send(
        "GET",
        endpoint(base_url, "models"),
        headers={},
        timeouts=aiohttp.ClientTimeout(connect=seconds, sock_read=seconds),
        skip_tls_verify=skip_tls_verify,
    )
    async with response:
        return response.status, await response.read()


async def why_not(client: UpstreamClient, base_url: str, *, seconds: float = 10) -> str:
    with pytest.raises((aiohttp.ClientError, OSError)) as failure:
        await ask(client, base_url, seconds=seconds)
    return failure_in_words(failure.value, "main")


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        ("https://host", "https://host/v1/models"),
        ("https://host/", "https://host/v1/models"),
        ("https://host/v1", "https://host/v1/models"),
        ("https://host/v1/", "https://host/v1/models"),
        ("https://host/v1//", "https://host/v1/models"),
        ("https://host/openai/v1", "https://host/openai/v1/models"),
        ("https://host/prefix", "https://host/prefix/v1/models"),
        ("https://host/prefix-v1", "https://host/prefix-v1/v1/models"),
        ("https://host/v1/prefix", "https://host/v1/prefix/v1/models"),
        ("http://host:8000", "http://host:8000/v1/models"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1/models"),
        ("HTTPS://EXAMPLE.com/V1", "https://example.com/V1/v1/models"),
        ("https://host/a%20b", "https://host/a%20b/v1/models"),
        ("https://bücher.example/ä", "https://xn--bcher-kva.example/%C3%A4/v1/models"),
    ],
)
def test_an_endpoint_has_v1_once(base_url: str, expected: str) -> None:
    assert str(endpoint(base_url, "models")) == expected


@pytest.mark.parametrize(
    "base_url", ["https://a..b", f"https://{'a' * 64}.com", "https://ü..b", "https://[1]", "https://:x"]
)
def test_what_can_be_no_host_is_refused(base_url: str) -> None:
    with pytest.raises(ValueError, match="."):
        endpoint(base_url, "models")


def test_the_path_is_sent_as_it_is_given() -> None:
    url = endpoint("https://host", "models/a%2Fb%20c?limit=1&x=%C3%A4+b")
    assert url.raw_path_qs == "/v1/models/a%2Fb%20c?limit=1&x=%C3%A4+b"


async def test_nothing_is_added_followed_decompressed_or_kept(client: UpstreamClient) -> None:
    heard: list[bytes] = []
    moved = (
        b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nSet-Cookie: a=b\r\nContent-Encoding: gzip\r\n"
        b"Content-Length: 4\r\n\r\nbody"
    )
    async with server(answering(moved, heard)) as base_url:
        for _ in range(2):
            assert await ask(client, base_url) == (302, b"body")
        host = base_url.removeprefix("http://")
    assert heard == [f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()] * 2


async def test_the_environment_has_no_say(client: UpstreamClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    async with server(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as base_url:
        assert await ask(client, base_url) == (204, b"")


async def test_it_can_be_closed_unused_and_twice() -> None:
    client = UpstreamClient()
    await client.close()
    async with server(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as base_url:
        await ask(client, base_url)
    await client.close()
    await client.close()


class TestFailures:
    async def test_a_name_that_does_not_resolve(self, client: UpstreamClient) -> None:
        said = await why_not(client, "http://nowhere.invalid")
        assert said.startswith("Backend 'main' cannot be found: the name nowhere.invalid:80 does not resolve (")

    async def test_nothing_listens(self, client: UpstreamClient) -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        said = await why_not(client, f"http://127.0.0.1:{port}")
        assert said == f"Backend 'main' refuses connections: nothing listens at 127.0.0.1:{port}."

    async def test_the_network_has_no_way(self, client: UpstreamClient) -> None:
        """255.255.255.255 is nobody's, and no TCP goes there."""
        assert "cannot be reached" in await why_not(client, "http://255.255.255.255:9")

    async def test_it_accepts_no_connection_in_time(self, client: UpstreamClient) -> None:
        """A full backlog: the kernel answers no further SYN."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            address = listener.getsockname()
            waiting = [socket.socket() for _ in range(4)]
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(address)
            said = await why_not(client, f"http://127.0.0.1:{address[1]}", seconds=0.3)
            for one in waiting:
                one.close()
        assert said == "Backend 'main' did not accept the connection within its connect_timeout."

    async def test_it_does_not_answer_in_time(self, client: UpstreamClient) -> None:
        async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with server(silent) as base_url:
            assert await why_not(client, base_url, seconds=0.2) == "Backend 'main' did not answer in time."
            await client.close()

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (b"", "closed the connection without an answer"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "does not answer in HTTP/1.1"),
            (b"\x00\xff" * 50 + b"\r\n\r\n", "does not answer in HTTP/1.1"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "broke off in the middle of its answer"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal", "broke off in the middle of its answer"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "does not answer in HTTP/1.1"),
        ],
    )
    async def test_what_it_answers_is_no_whole_answer(self, client: UpstreamClient, answer: bytes, said: str) -> None:
        async with server(answering(answer)) as base_url:
            assert await why_not(client, base_url) == f"Backend 'main' {said}."

    async def test_an_unknown_failure_is_named_by_its_kind_alone(self) -> None:
        assert (
            failure_in_words(RuntimeError("sk-secret"), "main") == "Backend 'main' could not be asked (RuntimeError)."
        )

    def test_a_url_with_a_password_is_not_shown(self) -> None:
        said = failure_in_words(aiohttp.InvalidURL("http://user:hunter2@host"), "main")
        assert said == "Backend 'main' has a base_url that cannot be asked."


class TestTLS:
    async def test_http_where_https_is_expected(self, client: UpstreamClient) -> None:
        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()

        async with server(plain) as base_url:
            said = await why_not(client, base_url.replace("http:", "https:"))
        assert "does not speak TLS at 127.0.0.1:" in said
        assert "http, perhaps, instead of https" in said

    async def test_a_self_signed_certificate_is_refused_unless_it_is_not_looked_at(
        self, client: UpstreamClient, tmp_path: Path
    ) -> None:
        tls = context_of(certificate(tmp_path))
        async with server(answering(b"HTTP/1.1 204 No Content\r\n\r\n"), tls=tls) as base_url:
            host = base_url.removeprefix("https://")
            said = await why_not(client, base_url)
            assert said == f"Backend 'main' is not trusted: the certificate of {host} is self-signed."
            assert await ask(client, base_url, skip_tls_verify=True) == (204, b"")
            assert "is self-signed" in await why_not(client, base_url), "what was not looked at is trusted from then on"

    @pytest.mark.parametrize(
        ("name", "days", "said"),
        [
            ("127.0.0.1", (-2, -1), "has expired"),
            ("127.0.0.1", (1, 2), "is not valid yet"),
            ("127.0.0.2", (-1, 1), "is for another address"),
        ],
    )
    async def test_what_a_trusted_authority_does_not_vouch_for(
        self, tmp_path: Path, name: str, days: tuple[int, int], said: str
    ) -> None:
        """The client's own contexts trust what the system trusts; this one trusts the test's certificate, too."""
        path = certificate(tmp_path, name, *days)
        trusting = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=path))
        async with (
            server(answering(b""), tls=context_of(path)) as base_url,
            aiohttp.ClientSession(connector=trusting) as s,
        ):
            with pytest.raises(aiohttp.ClientConnectorCertificateError) as failure:
                await s.get(base_url)
        assert failure_in_words(failure.value, "main").endswith(f"{said}.")
