"""The HTTP client to the backends: one pool of connections for the process, and failures in words."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import AsyncIterable
from functools import lru_cache

import aiohttp
from aiohttp.typedefs import LooseHeaders
from yarl import URL

_KEEP_ALIVE = 4.0
"""Seconds, less than any server keeps an idle connection: what is reused must not be closing on the other side."""
_DNS_TTL = 10
_READ_BUFFER = 65_536
"""Bytes; when twice as many wait to be read, the backend is not listened to."""

# aiohttp's own values for these would be added to what the client of the gateway did not say.
_NOT_ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")

# OpenSSL's X509_V_ERR_* (x509_vfy.h).
_CERTIFICATE_FAULTS = {
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed",
    19: "is of a self-signed authority that is not trusted",
    20: "is of an authority that is not trusted",
    62: "is for another host name",
    64: "is for another address",
}


class UpstreamClient:
    """Connections to all backends. They are made in the event loop that first asks, and `close` ends them.

    It sends what it is given and hands over what comes: it follows no redirect, decompresses nothing, keeps no cookie,
    and takes no proxy or credential from the environment. How many requests run at once is for others to limit.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def send(
        self,
        method: str,
        url: URL,
        *,
        headers: LooseHeaders,
        timeouts: aiohttp.ClientTimeout,
        body: bytes | AsyncIterable[bytes] | None = None,
        skip_tls_verify: bool = False,
    ) -> aiohttp.ClientResponse:
        """The answer, of which only the head has been read. Whoever calls closes it, or reads it to its end.

        A GET, HEAD, PUT or DELETE on a kept connection that turns out to be closed is sent once more on a new one
        (RFC 9112, 9.3.1), nothing else ever is.

        Raises:
            aiohttp.ClientError, TimeoutError, OSError: see `failure_in_words`.
        """
        return await self._open().request(
            method,
            url,
            headers=headers,
            data=body,
            timeout=timeouts,
            ssl=not skip_tls_verify,
            allow_redirects=False,
        )

    async def close(self) -> None:
        """End all connections. Harmless if there never was one."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0, limit_per_host=0, keepalive_timeout=_KEEP_ALIVE, ttl_dns_cache=_DNS_TTL
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                raise_for_status=False,
                requote_redirect_url=False,
                read_bufsize=_READ_BUFFER,
                skip_auto_headers=_NOT_ADDED,
                timeout=aiohttp.ClientTimeout(total=None),
                trust_env=False,
            )
        return self._session


@lru_cache(maxsize=4096)
def endpoint(base_url: str, path: str) -> URL:
    """`<base URL>/v1/<path>`, whether the base URL ends in `/v1` or not. `path` is sent as it is given.

    Raises:
        ValueError: the base URL is not one, or its host cannot be a name.
    """
    url = URL(base_url)
    (url.raw_host or "").encode("idna")  # or else the resolver does so, and fails with what is not an OSError
    base = str(url).rstrip("/")
    if not base.endswith("/v1"):
        base += "/v1"
    return URL(f"{base}/{path}", encoded=True)


def failure_in_words(error: BaseException, backend_name: str) -> str:
    """Why a backend gave no whole answer: one sentence, without its credential."""
    return f"Backend {backend_name!r} {_what_failed(error)}."


def _what_failed(error: BaseException) -> str:
    match error:
        case aiohttp.ClientConnectorDNSError() | socket.gaierror():
            return f"cannot be found: the name {_host(error)} does not resolve{_reason(error)}"
        case aiohttp.ClientConnectorCertificateError(certificate_error=fault):
            return f"is not trusted: the certificate of {_host(error)} {_certificate_fault(fault)}"
        case aiohttp.ClientConnectorSSLError() | ssl.SSLError():
            return f"does not speak TLS at {_host(error)}{_reason(error)}: http, perhaps, instead of https"
        case aiohttp.ClientConnectorError():
            return _not_connected(error)
        case aiohttp.ConnectionTimeoutError():
            return "did not accept the connection within its connect_timeout"
        case TimeoutError():
            return "did not answer in time"
        case aiohttp.ClientPayloadError():
            return "broke off in the middle of its answer"
        case aiohttp.ServerDisconnectedError():
            return "closed the connection without an answer"
        case aiohttp.ClientResponseError():
            return "does not answer in HTTP/1.1"
        case aiohttp.InvalidURL():
            return "has a base_url that cannot be asked"
        case OSError():
            return f"broke off the connection{_reason(error)}"
    return f"could not be asked ({type(error).__name__})"


def _not_connected(error: aiohttp.ClientConnectorError) -> str:
    match error.os_error:
        case ConnectionRefusedError():
            return f"refuses connections: nothing listens at {_host(error)}"
        case OSError(errno=errno.EHOSTUNREACH | errno.ENETUNREACH | errno.EADDRNOTAVAIL):
            return f"cannot be reached: there is no way to {_host(error)}{_reason(error)}"
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            return f"cannot be asked: this replica has no file descriptor left{_reason(error)}"
    return f"cannot be reached at {_host(error)}{_reason(error)}"


def _certificate_fault(fault: Exception) -> str:
    code = getattr(fault, "verify_code", None)
    message = getattr(fault, "verify_message", "") or "was not accepted"
    return _CERTIFICATE_FAULTS.get(code or 0, f"was refused ({message})")


def _host(error: BaseException) -> str:
    """`host:port` as far as the error knows; a URL's user and password are never part of it."""
    if not isinstance(error, aiohttp.ClientConnectorError):
        return "its host"
    host = f"[{error.host}]" if ":" in error.host else error.host
    return f"{host}:{error.port}"


def _reason(error: BaseException) -> str:
    """The system's word for it, in parentheses."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    reason = getattr(cause, "reason", None) or getattr(cause, "strerror", None)
    return f" ({reason})" if reason else ""
