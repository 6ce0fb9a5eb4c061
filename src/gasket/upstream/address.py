"""The address of a backend, from its base URL."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote_plus, urlsplit

_PORTS = {"http": 80, "https": 443}
_QUERY_CHARACTERS = "/?:@!$&'()*+,;=%"


class Address(NamedTuple):
    """A server, and what stands before the API's paths there. `authority` is the value of the field Host."""

    host: str
    port: int
    tls: bool
    authority: bytes
    prefix: bytes
    query: bytes = b""
    """The query of the base URL. Every request has it."""

    @property
    def origin(self) -> tuple[str, int, bool]:
        """Where it leads, whatever the path: scheme, host and port."""
        return self.host, self.port, self.tls

    def target(self, path: str) -> bytes:
        """The target in the request line, for a path (with its query) that follows `/v1` at the gateway.

        A parameter of the base URL replaces the request's parameter of that name: the operator chose it.
        """
        if not self.query:
            return self.prefix + path.encode("ascii")
        path, _, asked = path.partition("?")
        chosen = {_name(parameter) for parameter in self.query.decode("ascii").split("&")}
        kept = [parameter for parameter in asked.split("&") if parameter and _name(parameter) not in chosen]
        query = "&".join([self.query.decode("ascii"), *kept])
        return self.prefix + f"{path}?{query}".encode("ascii")


def _name(parameter: str) -> str:
    return unquote_plus(parameter.partition("=")[0])


@lru_cache(maxsize=4096)
def address_of(base_url: str) -> Address:
    """The address of a base URL: what stands before `/chat/completions`, and a query that every request has.

    Raises:
        ValueError: it is not an http or https URL, or its host is not a valid name.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"{base_url!r} is not an http or https URL with a host")
    host = parts.hostname.encode("idna").decode("ascii")
    authority = f"[{host}]" if ":" in host else host
    return Address(
        host=host,
        port=parts.port or _PORTS[parts.scheme],
        tls=parts.scheme == "https",
        authority=(f"{authority}:{parts.port}" if parts.port else authority).encode("ascii"),
        prefix=quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~").encode("ascii"),
        query=quote(parts.query, safe=_QUERY_CHARACTERS).encode("ascii"),
    )


def request_target(url: str) -> bytes:
    """The path and the query of a URL, as they are written."""
    parts = urlsplit(url)
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.path or '/'}{query}".encode("ascii")
