"""Settings about identity providers: the issuer's URL, groups, scopes."""

from __future__ import annotations

from urllib.parse import urlsplit

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def parse_issuer(value: str) -> str:
    """The URL of an issuer, as it stands in its tokens (OpenID Connect Discovery 1.0, 3).

    Raises:
        ValueError: it is none. Without TLS an issuer may only be on this machine.
    """
    try:
        parts = urlsplit(value)
        host = parts.hostname or ""
        valid = bool(host) and parts.port != 0 and not parts.query and not parts.fragment and "@" not in parts.netloc
    except ValueError:
        valid, host = False, ""
    tls = valid and parts.scheme == "https"
    if not (tls or (valid and parts.scheme == "http" and host in _LOOPBACK)) or not value.isascii():
        raise ValueError(
            "must be the https URL of an issuer, as in https://login.example/realms/staff, without a query; "
            "http is for localhost alone"
        )
    return value


def parse_issuers(value: str) -> tuple[str, ...]:
    """The URLs of issuers, comma-separated.

    Raises:
        ValueError: one is none, as `parse_issuer` says.
    """
    return tuple(dict.fromkeys(parse_issuer(part.strip()) for part in value.split(",") if part.strip()))


def parse_scopes(value: str) -> str:
    """Scopes, separated by spaces; `openid` is always one of them.

    Raises:
        ValueError: one has a character that no scope may have (RFC 6749, 3.3).
    """
    scopes = value.split()
    if not all(scope.isascii() and scope.isprintable() and not set('"\\') & set(scope) for scope in scopes):
        raise ValueError("must be scopes, separated by spaces, as in `openid email profile`")
    return " ".join(dict.fromkeys(["openid", *scopes]))


def parse_names(value: str) -> frozenset[str]:
    """Names, comma-separated.

    Raises:
        ValueError: one has characters that are not printable.
    """
    names = frozenset(name.strip() for name in value.split(",") if name.strip())
    if not all(name.isprintable() for name in names):
        raise ValueError("must be names of printable characters, comma-separated")
    return names


def parse_name(value: str) -> str:
    """A name of printable characters.

    Raises:
        ValueError: it has others, or too many.
    """
    if not value.isprintable() or len(value) > 254:
        raise ValueError("must be at most 254 printable characters")
    return value
