"""Ways to a backend: through a proxy of this process, and with a client certificate."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gasket.networks import BackendNetworks
from gasket.upstream.address import address_of
from gasket.upstream.client import Timeouts, UpstreamClient
from gasket.upstream.failures import BackendDeniedError, NotConnectedError, UpstreamError
from gasket.upstream.routes import Route, proxy_of, route_of
from tests.acceptance.upstream import End, Upstream, json_answer, serving
from tests.tls import certificate, context_of

TIMEOUTS = Timeouts(5, 5, 5)


class ProxyServer:
    """A forward proxy: it joins what CONNECT asks for, and answers requests in absolute form itself."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        """To CONNECT."""
        self.heads: list[bytes] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://us%40er:hunter2@127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                if head.startswith(b"CONNECT "):
                    writer.write(self.answer)
                    if b" 200 " in self.answer:
                        host, _, port = head.split()[1].decode().rpartition(":")
                        await join(reader, writer, host, int(port))
                    break
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        writer.close()


async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    there, back = await asyncio.open_connection(host, port)

    async def copy(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                to.write(data)
                await to.drain()
        to.close()

    await asyncio.gather(copy(reader, back), copy(there, writer))


@asynccontextmanager
async def proxying(answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> AsyncIterator[ProxyServer]:
    proxy = ProxyServer(answer)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()


@asynccontextmanager
async def client(**options: Any) -> AsyncIterator[UpstreamClient]:
    made = UpstreamClient(**options)
    try:
        yield made
    finally:
        await made.close()


async def ask(upstream: UpstreamClient, base_url: str, route: Route, timeouts: Timeouts = TIMEOUTS) -> bytes:
    """The body of the answer to a request."""
    address = address_of(base_url)
    target = address.target("/chat/completions")
    response = await upstream.send("POST", address, target, fields=[], body=b"{}", timeouts=timeouts, route=route)
    try:
        return await response.read(1000)
    finally:
        response.close()


async def test_plain_requests_go_to_the_proxy_in_absolute_form() -> None:
    async with proxying() as proxy, client() as upstream:
        route = Route(proxy=proxy_of(proxy.url))
        for _ in range(2):
            assert await ask(upstream, "http://inside.test:8000/v1?a=b", route) == b"hi"
        lines = proxy.heads[0].split(b"\r\n")
        assert lines[0] == b"POST http://inside.test:8000/v1/chat/completions?a=b HTTP/1.1"
        assert b"host: inside.test:8000" in lines
        assert b"proxy-authorization: Basic dXNAZXI6aHVudGVyMg==" in lines
        assert await ask(upstream, "http://inside.test/v1", Route(proxy=proxy_of(f"http://127.0.0.1:{proxy.port}")))
        assert b"proxy-authorization" not in proxy.heads[2]


async def through_a_tunnel(folder: Path) -> None:
    async with serving(tls=context_of(certificate(folder))) as backend, proxying() as proxy, client() as upstream:
        route = route_of(True, proxy.url, None)
        for _ in range(2):
            assert b"hello" in await ask(upstream, f"{backend.origin}/v1", route)
        [head] = proxy.heads
        authority = backend.origin.removeprefix("https://").encode()
        assert head == (
            b"CONNECT %b HTTP/1.1\r\nHost: %b\r\nProxy-Authorization: Basic dXNAZXI6aHVudGVyMg==\r\n\r\n"
            % (authority, authority)
        )
        assert [seen.target for seen in backend.requests] == ["/v1/chat/completions"] * 2
        assert all("proxy-authorization" not in dict(seen.message.headers) for seen in backend.requests)
        with pytest.raises(NotConnectedError, match="self-signed"):
            await ask(upstream, f"{backend.origin}/v1", route._replace(skip_tls_verify=False))


def test_tls_goes_through_the_proxy_unseen(tmp_path: Path) -> None:
    asyncio.run(through_a_tunnel(tmp_path))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(through_a_tunnel(tmp_path))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "its proxy wants other credentials"),
        (b"HTTP/1.1 403 Forbidden\r\nA: b\r\n\r\n", "its proxy answered 403"),
        (b"HTTP/1.1 302\r\n\r\n", "its proxy answered 302"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no answer in HTTP"),
        (b"HTTP/1.1\r\n\r\n", "no answer in HTTP"),
        (b"HTTP/1.1 abc x\r\n\r\n", "no answer in HTTP"),
        (b"", "no answer in HTTP"),
        (b"x" * 70_000, "no answer in HTTP"),
    ],
)
async def test_a_proxy_that_makes_no_connection(answer: bytes, words: str) -> None:
    async with proxying(answer) as proxy, client() as upstream:
        with pytest.raises(NotConnectedError, match=words):
            await ask(upstream, "https://inside.test/v1", Route(proxy=proxy_of(proxy.url)))


async def test_a_proxy_that_is_away_or_silent() -> None:
    async with client() as upstream, serving(answers=[(End.NEVER,)]) as silent:
        route = Route(proxy=proxy_of(silent.origin))
        with pytest.raises(NotConnectedError, match="within its connect_timeout"):
            await ask(upstream, "https://inside.test/v1", route, Timeouts(0.3, 5, 5))
        with pytest.raises(NotConnectedError, match="nothing listens at 127.0.0.1:1"):
            await ask(upstream, "http://inside.test/v1", Route(proxy=proxy_of("http://127.0.0.1:1")))


@pytest.mark.parametrize(
    ("rules", "base_url", "denied"),
    [
        ("deny 127.0.0.1/32, allow *", "http://inside.test", "127.0.0.1"),
        ("deny inside.test, allow *", "http://inside.test", "inside.test"),
        ("deny 10.0.0.0/8, allow *", "http://10.1.2.3", "10.1.2.3"),
        ("allow 127.0.0.0/8", "http://inside.test", "inside.test"),
        ("", "http://169.254.169.254", "169.254.169.254"),
    ],
)
async def test_networks_count_for_the_proxy_and_for_what_is_behind_it(rules: str, base_url: str, denied: str) -> None:
    async with proxying() as proxy, client(networks=BackendNetworks.parse(rules)) as upstream:
        with pytest.raises(BackendDeniedError, match=f"denies {denied}$"):
            await ask(upstream, base_url, Route(proxy=proxy_of(proxy.url)))
        assert proxy.heads == []


async def test_names_behind_a_proxy_may_be_allowed() -> None:
    rules = BackendNetworks.parse("allow 127.0.0.0/8, allow *.test")
    async with proxying() as proxy, client(networks=rules) as upstream:
        assert await ask(upstream, "http://inside.test", Route(proxy=proxy_of(proxy.url))) == b"hi"


@asynccontextmanager
async def asking_for_certificates(folder: Path) -> AsyncIterator[tuple[Upstream, str]]:
    """A server that serves those with a certificate only, and one that it takes, with its key."""
    path = certificate(folder)
    context = context_of(path)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(path)
    async with serving(tls=context, answers=[json_answer({"hello": "you"})]) as upstream:
        yield upstream, path.read_text()


async def test_a_client_certificate(tmp_path: Path) -> None:
    async with asking_for_certificates(tmp_path) as (backend, pem), client() as upstream:
        with_it = Route(skip_tls_verify=True, client_certificate=pem)
        assert await ask(upstream, f"{backend.origin}/v1", with_it) == b'{"hello": "you"}'
        with pytest.raises(UpstreamError):
            await ask(upstream, f"{backend.origin}/v1", Route(skip_tls_verify=True))
        assert len(backend.requests) == 1, "a kept connection is not used for another route"
        async with proxying() as proxy:
            both = with_it._replace(proxy=proxy_of(proxy.url))
            assert await ask(upstream, f"{backend.origin}/v1", both) == b'{"hello": "you"}'
            assert len(proxy.heads) == 1


@pytest.mark.parametrize(
    "url",
    ["https://a", "http://", "http://a:0", "http://a:x", "http://a/x", "http://a?x", "socks5://a", "http://[", ""],
)
def test_what_is_no_proxy(url: str) -> None:
    with pytest.raises(ValueError, match="."):
        proxy_of(url)


def test_secrets_of_a_route_are_not_shown() -> None:
    route = route_of(False, "http://user:hunter2@proxy.test:3128", "-----BEGIN PRIVATE KEY-----")
    assert repr(route) == "Route(skip_tls_verify=False, proxy=Proxy(proxy.test:3128))"
    with pytest.raises(ValueError, match="not an http URL") as refused:
        proxy_of("http://user:hunt/er2@proxy.test:3128")
    assert "hunt" not in str(refused.value)
