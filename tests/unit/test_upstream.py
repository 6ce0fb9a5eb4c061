from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gasket.upstream.address import address_of
from gasket.upstream.client import Timeouts, UpstreamClient
from gasket.upstream.failures import UpstreamError
from gasket.upstream.routes import Route
from tests.tls import certificate, context_of

PATIENT = Timeouts(10, 10, 10)
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
    client: UpstreamClient, base_url: str, *, skip_tls_verify: bool = False, timeouts: Timeouts = PATIENT
) -> tuple[int, bytes]:
    address = address_of(base_url)
    response = await client.send(
        "GET",
        address,
        address.target("/models"),
        fields=[],
        timeouts=timeouts,
        route=Route(skip_tls_verify=skip_tls_verify),
    )
    try:
        return response.status, await response.read(1_000_000)
    finally:
        response.close()


async def why_not(client: UpstreamClient, base_url: str, *, timeouts: Timeouts = PATIENT) -> str:
    with pytest.raises(UpstreamError) as failure:
        await ask(client, base_url, timeouts=timeouts)
    return str(failure.value)


def url_of(base_url: str, path: str = "/models") -> str:
    address = address_of(base_url)
    return f"{'https' if address.tls else 'http'}://{address.authority.decode()}{address.target(path).decode()}"


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        ("https://host", "https://host/models"),
        ("https://host/", "https://host/models"),
        ("https://host/v1", "https://host/v1/models"),
        ("https://host/v1/", "https://host/v1/models"),
        ("https://host/v1//", "https://host/v1/models"),
        ("https://host/openai/v1", "https://host/openai/v1/models"),
        ("https://host/inference", "https://host/inference/models"),
        ("https://host/api/paas/v4/", "https://host/api/paas/v4/models"),
        ("https://host/v1beta/openai", "https://host/v1beta/openai/models"),
        ("https://host/openai/deployments/x?api-version=1", "https://host/openai/deployments/x/models?api-version=1"),
        ("https://host/v1/?a=ä&b=%20", "https://host/v1/models?a=%C3%A4&b=%20"),
        ("http://host:8000", "http://host:8000/models"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1/models"),
        ("HTTPS://EXAMPLE.com/V1", "https://example.com/V1/models"),
        ("https://host/a%20b", "https://host/a%20b/models"),
        ("https://bücher.example/ä", "https://xn--bcher-kva.example/%C3%A4/models"),
    ],
)
def test_a_base_url_is_what_stands_before_an_endpoint(base_url: str, expected: str) -> None:
    assert url_of(base_url) == expected


@pytest.mark.parametrize(
    "base_url", ["https://a..b", f"https://{'a' * 64}.com", "https://ü..b", "https://[1]", "https://:x"]
)
def test_what_can_be_no_host_is_refused(base_url: str) -> None:
    with pytest.raises(ValueError, match="."):
        address_of(base_url)


def test_the_path_is_sent_as_it_is_given() -> None:
    target = address_of("https://host/v1").target("/models/a%2Fb%20c?limit=1&x=%C3%A4+b")
    assert target == b"/v1/models/a%2Fb%20c?limit=1&x=%C3%A4+b"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("/files?limit=2", "/x/files?api-version=1&limit=2"),
        ("/files?api-version=9&limit=2&api%2Dversion=8", "/x/files?api-version=1&limit=2"),
        ("/files?&limit", "/x/files?api-version=1&limit"),
        ("/files", "/x/files?api-version=1"),
    ],
)
def test_the_query_of_a_base_url_is_in_every_request(asked: str, expected: str) -> None:
    assert address_of("https://host/x?api-version=1").target(asked).decode() == expected


async def test_requests_say_what_they_came_through() -> None:
    seen: list[bytes] = []
    client = UpstreamClient(pseudonym=b"gasket-1")
    async with server(answering(b"HTTP/1.1 204 No Content\r\n\r\n", seen)) as base_url:
        await ask(client, base_url)
    await client.close()
    assert b"\r\nvia: 1.1 gasket-1\r\n" in seen[0]


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
    assert heard == [f"GET /models HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()] * 2


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
        assert said.startswith("cannot be found: the name nowhere.invalid does not resolve (")

    async def test_nothing_listens(self, client: UpstreamClient) -> None:
        with socket.socket() as mute:  # bound, so that nobody else is given the port
            mute.bind(("127.0.0.1", 0))
            port = mute.getsockname()[1]
            said = await why_not(client, f"http://127.0.0.1:{port}")
        assert said == f"refuses connections: nothing listens at 127.0.0.1:{port}"

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
            said = await why_not(client, f"http://127.0.0.1:{address[1]}", timeouts=Timeouts(0.3, 10, 10))
            for one in waiting:
                one.close()
        assert said == "did not accept the connection within its connect_timeout"

    async def test_it_does_not_answer_in_time(self, client: UpstreamClient) -> None:
        async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with server(silent) as base_url:
            assert await why_not(client, base_url, timeouts=Timeouts(10, 0.2, 10)) == "did not answer in time"
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
            assert await why_not(client, base_url) == said


class TestTLS:
    async def test_http_where_https_is_expected(self, client: UpstreamClient) -> None:
        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()

        async with server(plain) as base_url:
            said = await why_not(client, base_url.replace("http:", "https:"))
        assert "does not speak TLS at 127.0.0.1:" in said
        assert "it may be http instead of https" in said

    async def test_a_self_signed_certificate_is_refused_unless_it_is_not_looked_at(
        self, client: UpstreamClient, tmp_path: Path
    ) -> None:
        tls = context_of(certificate(tmp_path))
        async with server(answering(b"HTTP/1.1 204 No Content\r\n\r\n"), tls=tls) as base_url:
            host = base_url.removeprefix("https://")
            said = await why_not(client, base_url)
            assert said == f"is not trusted: the certificate of {host} is self-signed"
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
        self,
        client: UpstreamClient,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        days: tuple[int, int],
        said: str,
    ) -> None:
        path = certificate(tmp_path, name, *days)
        monkeypatch.setenv("SSL_CERT_FILE", str(path))  # OpenSSL's: whom to trust
        async with server(answering(b""), tls=context_of(path)) as base_url:
            assert (await why_not(client, base_url)).endswith(said)
