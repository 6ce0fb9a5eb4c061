"""What a libpq URL says."""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

CONNECT_TIMEOUT = 10.0
"""Seconds for each host, where the URL has no `connect_timeout`."""

_TLS_MODES = ("require", "verify-ca", "verify-full")
_TLS_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_LARGEST = 2**31 - 1
LIVENESS = {
    "connect_timeout": _LARGEST,
    "keepalives": _LARGEST,
    "keepalives_idle": 32_767,
    "keepalives_interval": 32_767,
    "keepalives_count": 127,
    "tcp_user_timeout": _LARGEST,
}
"""Parameters of libpq that the driver does not know, with the largest value that Linux takes (tcp(7), `tcp.h`).

`gasket.postgres.connections` does what they say.
"""


class Liveness(msgspec.Struct, frozen=True):
    """How soon a connection is given up on which nothing is heard (PostgreSQL manual, "libpq", "Parameter Key Words").

    `user_timeout` is in milliseconds, as in libpq; the others are in seconds. 0 is the system's own value, and for
    `connect_timeout` no limit.
    """

    connect_timeout: float = CONNECT_TIMEOUT
    keepalives: bool = True
    idle: int = 15
    interval: int = 5
    count: int = 3
    user_timeout: int = 30_000


def read_liveness(url: str) -> Liveness:
    """What the URL says of it, and Gasket's own values for the rest.

    Raises:
        ValueError: one is not a whole number, or is too large.
    """
    given: dict[str, int] = {}
    for name, value in parse_qsl(urlsplit(url).query):
        if name in LIVENESS:
            try:
                given[name] = max(0, int(value))
            except ValueError:
                raise ValueError(f"must have {name} as a whole number") from None
            if given[name] > LIVENESS[name]:
                raise ValueError(f"must have {name} of at most {LIVENESS[name]}")
    default = Liveness()
    return Liveness(
        connect_timeout=given.get("connect_timeout", default.connect_timeout),
        keepalives=bool(given.get("keepalives", default.keepalives)),
        idle=given.get("keepalives_idle", default.idle),
        interval=given.get("keepalives_interval", default.interval),
        count=given.get("keepalives_count", default.count),
        user_timeout=given.get("tcp_user_timeout", default.user_timeout),
    )


def without_liveness(url: str) -> str:
    """The URL as the driver takes it, which would send the parameters that it does not know to the server."""
    rest, _, query = url.partition("?")
    kept = [option for option in query.split("&") if option.partition("=")[0] not in LIVENESS]
    return f"{rest}?{'&'.join(kept)}" if any(kept) else rest


def hosts_of(url: str) -> list[tuple[str, int | None]]:
    """The hosts in their order, each with its port if the URL names one; none where it leaves that to libpq."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    listed = parts.netloc.rpartition("@")[2] or query.get("host", "")
    ports = query.get("port", "").split(",")
    hosts: list[tuple[str, int | None]] = []
    for place, text in enumerate(listed.split(",") if listed else ()):
        host, port = _host_and_port(text)
        port = port or (ports[place] if len(ports) > 1 and place < len(ports) else ports[0])
        hosts.append((unquote(host), int(port) if port else None))
    return hosts


def address_of(url: str, *, hosts: Sequence[tuple[str, int | None]] | None = None) -> str:
    """`role@host:port/database` without the password; what the URL leaves out is what libpq takes instead.

    Several hosts are separated by commas; `hosts` are those to name instead of the URL's. The
    folder of a Unix socket stands in brackets, as an IPv6 address does.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    role = unquote(parts.username or "") or query.get("user") or os.environ.get("PGUSER") or _account()
    named = unquote(parts.path.lstrip("/")) or query.get("dbname") or query.get("database")
    database = named or os.environ.get("PGDATABASE") or role
    hosts = hosts or hosts_of(url) or [(os.environ.get("PGHOST") or "localhost", None)]
    default_port = os.environ.get("PGPORT") or "5432"
    shown = (f"{f'[{host}]' if set(':/') & set(host) else host}:{port or default_port}" for host, port in hosts)
    return f"{role}@{','.join(shown)}/{database}"


def demands_tls(url: str) -> bool:
    """Whether the URL, or libpq's variable, does without the server rather than without TLS."""
    given = dict(parse_qsl(urlsplit(url).query))
    return (given.get("sslmode") or os.environ.get("PGSSLMODE", "")) in _TLS_MODES


def unreadable_tls_file(url: str) -> str | None:
    """The TLS file of the URL, or of libpq's variable, that cannot be read: waiting would not help.

    The driver's error is the one of a server's socket that is missing, and does not name the file.
    """
    given = dict(parse_qsl(urlsplit(url).query))
    for name in _TLS_FILES:
        path = given.get(name) or os.environ.get(f"PG{name.upper()}")
        if path and not os.access(path, os.R_OK):
            return f"{name} is {path}, which is no file that can be read"
    return None


def _host_and_port(text: str) -> tuple[str, str]:
    """Of `host:port`; an IPv6 address stands in brackets, a socket's folder begins with a slash."""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        return host, port.removeprefix(":")
    if text.startswith("/"):
        return text, ""
    host, _, port = text.partition(":")
    return host, port


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without an entry in /etc/passwd, as in some containers
        return "(unknown)"
