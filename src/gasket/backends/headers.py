"""Header fields that a backend asks for, and those that it may give to clients. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from gasket.errors import InvalidInputError
from gasket.upstream.connection import Fields

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_VALUE = re.compile(r"[!-~](?:[ -~]{0,3998}[!-~])?")

_ABOUT_THE_CONNECTION = {
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
}
_OF_THE_REQUEST = {"accept-encoding", "content-encoding", "content-type", "x-request-id"}
"""What Gasket says of each request itself, and reads its answers by."""
_OF_THE_GATEWAY = {
    "alt-svc",
    "clear-site-data",
    "content-security-policy",
    "content-security-policy-report-only",
    "nel",
    "public-key-pins",
    "refresh",
    "report-to",
    "reporting-endpoints",
    "set-cookie",
    "set-cookie2",
    "strict-transport-security",
    "www-authenticate",
    "x-lighttpd-send-file",
    "x-reproxy-url",
    "x-sendfile",
}
_OF_THE_GATEWAY_PREFIXES = ("access-control-", "x-accel-", "x-gasket-")
"""What commands a browser, or the proxy in front of Gasket."""

_map = msgspec.json.Decoder(dict[str, str])


def check_name(name: str, field: str) -> None:
    """Raise InvalidInputError unless a backend may be sent a header of this name (RFC 9110, 5.1)."""
    _check_shape(name, field)
    if name.lower() in _ABOUT_THE_CONNECTION | _OF_THE_REQUEST:
        raise InvalidInputError(f"{field} must not have {name!r}: Gasket sets that header itself.", field=field)


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise InvalidInputError unless a backend may be sent these headers. No message has a value."""
    for name, value in headers.items():
        check_name(name, "headers")
        if not _VALUE.fullmatch(value):
            raise InvalidInputError(
                f"headers: the value of {name!r} must be 1 to 4000 printable ASCII characters, with no space at its "
                "ends.",
                field="headers",
            )
    _check_once(headers, "headers")


def check_response_headers(names: Iterable[str]) -> None:
    """Raise InvalidInputError unless a backend may give clients headers of these names."""
    names = list(names)
    for name in names:
        _check_shape(name, "response_headers")
        lower = name.lower()
        own = lower in _ABOUT_THE_CONNECTION | _OF_THE_GATEWAY or lower.startswith(_OF_THE_GATEWAY_PREFIXES)
        if own:
            raise InvalidInputError(
                f"response_headers must not have {name!r}: it is about the connection, or commands the browser or the "
                "proxy in front of Gasket.",
                field="response_headers",
            )
    _check_once(names, "response_headers")


def check_no_conflict(credential_header: str, names: Iterable[str]) -> None:
    """Raise InvalidInputError where a header would be sent beside the credential under one name."""
    if credential_header.lower() in {name.lower() for name in names}:
        raise InvalidInputError(
            f"headers must not have {credential_header!r}: it holds the credential; see credential_header.",
            field="headers",
        )


def _check_shape(name: str, field: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{field}: a header's name has 1 to 100 letters, digits and characters like '-'.", field=field
        )


def _check_once(names: Iterable[str], field: str) -> None:
    seen = set[str]()
    for name in names:
        if name.lower() in seen:
            raise InvalidInputError(f"{field} has {name!r} more than once.", field=field)
        seen.add(name.lower())


def encode_headers(headers: Mapping[str, str]) -> str | None:
    """As they are stored, before encryption; None for none."""
    return msgspec.json.encode(headers).decode() if headers else None


def decode_headers(stored: str | None) -> dict[str, str]:
    """What `encode_headers` made. Nothing of what cannot be read."""
    try:
        return _map.decode(stored) if stored else {}
    except msgspec.MsgspecError:
        return {}


def request_fields(credential: str | None, header: str, scheme: str, headers: Mapping[str, str]) -> Fields:
    """The fields of every request to a backend, names in lower case: its credential, and its own headers."""
    fields = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    if credential:
        fields.append((header.lower().encode(), f"{scheme} {credential}".strip().encode()))
    return fields
