"""Forged requests: a page of another site lets a browser send something, and the browser adds the cookie.

Every changing request with a session's cookie needs the session's CSRF token, which only our own pages know (OWASP,
"Cross-Site Request Forgery Prevention", synchronizer token pattern).
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Any

from litestar.connection import ASGIConnection, Request
from litestar.datastructures import State
from litestar.enums import RequestEncodingType

from gasket.errors import CsrfError

HEADER = "X-CSRF-Token"
FIELD = "csrf_token"

_EXPECTED = "gasket_csrf_token"


def csrf_token_of(session_value: str) -> str:
    """The token of the session with this cookie. It tells nothing about the cookie, and need not be stored."""
    return sha256(f"csrf {session_value}".encode()).hexdigest()


def expect_token(state: dict[str, Any], token: str) -> None:
    """Note that this request has a session's cookie and changes something: it is good for nothing before `check`."""
    state[_EXPECTED] = token


def is_unchecked(state: dict[str, Any]) -> bool:
    """Whether the request still has to be checked."""
    return _EXPECTED in state


async def check(connection: ASGIConnection[Any, Any, Any, State]) -> None:
    """Let the request act with its session if it has the CSRF token, in the header or in a form that is URL-encoded.

    Raises:
        CsrfError: it has none, or a wrong one.
    """
    state: dict[str, Any] = connection.scope["state"]
    expected = state.get(_EXPECTED)
    if expected is None:
        return
    given = connection.headers.get(HEADER)
    if given is None and isinstance(connection, Request):
        given = await _from_form(connection)
    if given is None or not hmac.compare_digest(given.encode(), expected.encode()):
        raise CsrfError
    del state[_EXPECTED]


async def _from_form(request: Request[Any, Any, State]) -> str | None:
    if request.content_type[0] != RequestEncodingType.URL_ENCODED:
        return None
    form = await request.form()
    given = form.get(FIELD)
    return given if isinstance(given, str) else None


def require_same_origin(scope: Any) -> None:
    """For the form that signs in, before there is a session: refuse one that a page of another origin sends.

    Otherwise that page could sign its visitor in under a name of its own (login CSRF).

    Raises:
        CsrfError: the browser says that the request comes from elsewhere.
    """
    fields = dict(scope["headers"])
    site = fields.get(b"sec-fetch-site")
    if site is not None:  # of browsers since 2023, on TLS and loopback (Fetch Metadata, W3C)
        same = site in (b"same-origin", b"none")
    else:
        origin = fields.get(b"origin")
        same = origin is None or origin.partition(b"://")[2] == fields.get(b"host")
    if not same:
        raise CsrfError("This form must be sent from Gasket's own page.")
