"""Where a backend is, of its base URL."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, urlsplit

_PORTS = {"http": 80, "https": 443}


class Address(NamedTuple):
    """A server, and what all paths of the API begin with there. `authority` is the value of the field Host."""

    host: str
    port: int
    tls: bool
    authority: bytes
    prefix: bytes

    def target(self, path: str) -> bytes:
        """The request target of a path that follows `/v1`, query included, as it stands in the request line."""
        return self.prefix + path.encode("ascii")


@lru_cache(maxsize=4096)
def address_of(base_url: str) -> Address:
    """A base URL may end in `/v1` or not, and have a path in front of that.

    Raises:
        ValueError: it is not an http or https URL, or its host cannot be a name.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"{base_url!r} is not an http or https URL with a host")
    host = parts.hostname.encode("idna").decode("ascii")
    authority = f"[{host}]" if ":" in host else host
    prefix = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
    return Address(
        host=host,
        port=parts.port or _PORTS[parts.scheme],
        tls=parts.scheme == "https",
        authority=(f"{authority}:{parts.port}" if parts.port else authority).encode("ascii"),
        prefix=(prefix if prefix.endswith("/v1") else f"{prefix}/v1").encode("ascii"),
    )
