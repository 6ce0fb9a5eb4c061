"""The cookie of a session: its name, its attributes, and when it counts (RFC 6265bis, "Cookies").

`__Host-gasket` can be set by this host alone, over TLS, for all of its paths. Browsers keep no such cookie from a plain
`http://localhost`, so there it is `gasket`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from litestar.datastructures import Cookie

from gasket.errors import SignInError
from gasket.peers import read_address

PREFIX = "__Host-"
NAME = "gasket"

_HOST = re.compile(r"[A-Za-z0-9._-]+(?::\d{1,5})?|\[[0-9A-Fa-f:.]+\](?::\d{1,5})?")
_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"})
_FOREIGN = frozenset({b"cross-site", b"same-site"})

Fields = Iterable[tuple[bytes, bytes]]


def session_cookie(scope: Any, value: str) -> Cookie:
    """The cookie for the response that begins a session. The browser forgets it with the session, after 24 hours."""
    return make_cookie(scope, NAME, value, max_age=24 * 3600)


def cleared_cookie(scope: Any) -> Cookie:
    """The cookie for the response that ends a session."""
    return make_cookie(scope, NAME, "", max_age=0)


def session_value(scope: Any) -> str | None:
    """The value of the request's session cookie, if it counts.

    It does not count for the script of another origin (Fetch Metadata, W3C), whatever CORS allows that script to do.
    """
    fields = dict(scope["headers"])
    if fields.get(b"sec-fetch-site") in _FOREIGN and fields.get(b"sec-fetch-mode") != b"navigate":
        return None
    return cookie_value(scope, NAME)


def make_cookie(scope: Any, name: str, value: str, *, max_age: int) -> Cookie:
    """A cookie that no script reads, and no other host sets. `max_age` is in seconds."""
    bare = _is_loopback(scope)
    return Cookie(
        key=name if bare else PREFIX + name,
        value=value,
        max_age=max_age,
        path="/",
        secure=not bare,
        httponly=True,
        samesite="lax",
    )


def cookie_value(scope: Any, name: str) -> str | None:
    """The value of the cookie of this name, without the prefix. Two of a name are none: one of them is not ours."""
    wanted = name if _is_loopback(scope) else PREFIX + name
    values = [value for found, value in _pairs(scope["headers"]) if found == wanted]
    return values[0] if len(values) == 1 and values[0] else None


def own_url(scope: Any) -> str:
    """`https://host`, as the browser has it in its address bar; on loopback it may be `http`.

    The host is the browser's word. A provider sends nobody to one that it does not know.

    Raises:
        SignInError: there is no host, or none that a URL could have.
    """
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    if not _HOST.fullmatch(host):
        raise SignInError("The request does not say which host it is for.")
    return f"{'http' if _is_loopback(scope) else 'https'}://{host}"


def _pairs(fields: Fields) -> Iterable[tuple[str, str]]:
    for name, line in fields:
        if name == b"cookie":
            for pair in line.decode("latin-1").split(";"):
                found, _, value = pair.partition("=")
                yield found.strip(), value.strip()


def _is_loopback(scope: Any) -> bool:
    """Whether the browser speaks plain HTTP with its own machine: no proxy between them, and TLS before none."""
    if scope.get("scheme") != "http":
        return False
    host = b""
    for name, value in scope["headers"]:
        if name in _FORWARDED:
            return False
        if name == b"host":
            host = value
    name = host.decode("latin-1")
    if name.rpartition(":")[0] == "localhost" or name == "localhost":
        return True
    address = read_address(name)
    return address is not None and address.is_loopback
