"""How a backend is connected to: through a proxy, with a client certificate, with or without a look at its own."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from base64 import b64encode
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from gasket.upstream.failures import NotConnectedError

_LARGEST_HEAD = 64 * 1024
_DEFAULT_PORT = 80
_WRONG_CREDENTIALS = 407
_NO_PROXY = "not an http URL with a host and nothing behind its port"
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")


class Proxy(NamedTuple):
    """An HTTP proxy. `authorization` is its Proxy-Authorization (RFC 9110, 11.7.2); empty: none. No repr shows it."""

    host: str
    port: int
    authorization: bytes

    def __repr__(self) -> str:
        return f"Proxy({self.host}:{self.port})"


class Route(NamedTuple):
    """The way to a backend. `client_certificate`, which no repr shows, is PEM: the chain, and its key in plain text."""

    skip_tls_verify: bool = False
    proxy: Proxy | None = None
    client_certificate: str | None = None

    def __repr__(self) -> str:
        return f"Route(skip_tls_verify={self.skip_tls_verify}, proxy={self.proxy})"


DIRECT = Route()


@lru_cache(maxsize=1024)
def proxy_of(url: str) -> Proxy:
    """The proxy of `http://user:password@host:port`.

    Raises:
        ValueError: it is not such a URL. The message has nothing of it.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode("ascii"), parts.port
    except ValueError:  # it shows what stands in the port's place: a part of the password, where that has a slash
        raise ValueError(_NO_PROXY) from None
    if parts.scheme != "http" or not host or port == 0 or parts.path.strip("/") or parts.query:
        raise ValueError(_NO_PROXY)
    credentials = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}" if parts.username else ""
    return Proxy(
        host=host,
        port=port or _DEFAULT_PORT,
        authorization=b"Basic " + b64encode(credentials.encode()) if credentials else b"",
    )


def route_of(skip_tls_verify: bool, proxy_url: str | None, client_certificate: str | None) -> Route:
    """The way to a backend, from the fields of its row."""
    return Route(skip_tls_verify, proxy_of(proxy_url) if proxy_url else None, client_certificate)


def tls_context(route: Route) -> ssl.SSLContext:
    """What TLS to a backend takes.

    Raises:
        ssl.SSLError, ValueError: the client certificate is none, or its key is of another one or needs a passphrase.
    """
    context = ssl.create_default_context()
    if route.skip_tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if route.client_certificate is not None:
        _load(context, route.client_certificate.encode())
    return context


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """OpenSSL reads certificates from files only: this one is in memory, where nobody else can open it."""
    descriptor = os.memfd_create("client-certificate")
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=b"")


async def open_tunnel(sock: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    """Ask the proxy at the other end for a connection to this host and port (RFC 9110, 9.3.6).

    Raises:
        NotConnectedError: it does not make one.
        OSError: the connection to the proxy is gone.
    """
    loop = asyncio.get_running_loop()
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    head = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n".encode()
    if proxy.authorization:
        head += b"Proxy-Authorization: " + proxy.authorization + b"\r\n"
    await loop.sock_sendall(sock, head + b"\r\n")

    answer = b""
    while b"\r\n\r\n" not in answer:  # behind it nothing comes before we speak TLS
        piece = await loop.sock_recv(sock, 4096)
        answer += piece
        if not piece or len(answer) > _LARGEST_HEAD:
            raise NotConnectedError("cannot be reached: its proxy gave no answer in HTTP")
    line = _STATUS_LINE.match(answer)
    if line is None:
        raise NotConnectedError("cannot be reached: its proxy gave no answer in HTTP")
    status = int(line[1])
    if status == _WRONG_CREDENTIALS:
        raise NotConnectedError("cannot be reached: its proxy wants other credentials (407)")
    if not 200 <= status < 300:
        raise NotConnectedError(f"cannot be reached: its proxy answered {status}")
