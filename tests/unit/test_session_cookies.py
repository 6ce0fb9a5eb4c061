"""The cookie of a session: where it counts, and what a page of another origin can do with it."""

from __future__ import annotations

from typing import Any

import pytest

from gasket.access.cookies import cleared_cookie, session_cookie, session_value
from gasket.access.csrf import csrf_token_of, require_same_origin
from gasket.access.roles import Identity
from gasket.errors import CsrfError


def scope_of(host: str = "gasket.example", scheme: str = "https", **fields: str) -> Any:
    headers = [(b"host", host.encode())]
    headers += [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    return {"type": "http", "scheme": scheme, "headers": headers}


LOOPBACK = ["localhost", "localhost:8000", "127.0.0.1:8000", "127.1.2.3", "[::1]:8000", "[::1]"]
ELSEWHERE = ["gasket.example", "10.0.0.5:8000", "localhost.example", "127.0.0.1.example:80", "notlocalhost", ""]


@pytest.mark.parametrize("host", LOOPBACK)
def test_on_loopback_the_cookie_is_bare(host: str) -> None:
    scope = scope_of(host, "http")
    header = session_cookie(scope, "value").to_header(header="")
    assert header.startswith("gasket=value;")
    assert "Secure" not in header
    assert session_value(scope_of(host, "http", cookie="gasket=value")) == "value"
    assert session_value(scope_of(host, "http", cookie="__Host-gasket=value")) is None


@pytest.mark.parametrize(("host", "scheme"), [(host, "http") for host in ELSEWHERE] + [("localhost", "https")])
def test_elsewhere_it_is_this_host_s_and_needs_tls(host: str, scheme: str) -> None:
    """Also behind a proxy that ends TLS: plain HTTP between the two tells nothing of the browser."""
    for header in (
        session_cookie(scope_of(host, scheme), "value").to_header(header=""),
        cleared_cookie(scope_of(host, scheme)).to_header(header=""),
    ):
        assert header.startswith("__Host-gasket=")
        assert {"Secure", "HttpOnly", "SameSite=lax", "Path=/"} <= {part.strip() for part in header.split(";")}
        assert "Domain" not in header
    assert session_value(scope_of(host, scheme, cookie="a=b; __Host-gasket=value; c=d")) == "value"
    assert session_value(scope_of(host, scheme, cookie="gasket=tossed")) is None


@pytest.mark.parametrize("field", ["forwarded", "x_forwarded_for", "x_forwarded_host", "x_forwarded_proto"])
def test_a_proxy_on_the_same_machine_is_no_loopback(field: str) -> None:
    scope = scope_of("127.0.0.1:8000", "http", **{field: "x"})
    assert session_cookie(scope, "value").key == "__Host-gasket"


def test_of_two_cookies_with_the_name_neither_counts() -> None:
    """Another port of the same machine may set a `gasket` of its own."""
    assert session_value(scope_of("localhost", "http", cookie="gasket=mine; gasket=tossed")) is None


@pytest.mark.parametrize(
    ("fetch", "counts"),
    [
        ({}, True),
        ({"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors"}, True),
        ({"sec_fetch_site": "none", "sec_fetch_mode": "navigate"}, True),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, True),  # a link that leads here
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "cors"}, False),
        ({"sec_fetch_site": "same-site", "sec_fetch_mode": "cors"}, False),
        ({"sec_fetch_site": "same-site", "sec_fetch_mode": "no-cors"}, False),
        ({"sec_fetch_site": "cross-site"}, False),
    ],
)
def test_a_script_of_another_origin_acts_without_the_session(fetch: dict[str, str], counts: bool) -> None:
    assert (session_value(scope_of(cookie="__Host-gasket=value", **fetch)) == "value") is counts


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"sec_fetch_site": "same-origin"}, True),
        ({"sec_fetch_site": "none"}, True),
        ({"sec_fetch_site": "same-site"}, False),
        ({"sec_fetch_site": "cross-site", "origin": "https://gasket.example"}, False),
        ({"origin": "https://gasket.example"}, True),
        ({"origin": "https://gasket.example:444"}, False),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://[gasket.example"}, False),
        ({"origin": "\xff"}, False),
        ({}, True),  # no browser
    ],
)
def test_a_form_that_signs_in_comes_from_our_own_page(fields: dict[str, str], allowed: bool) -> None:
    if allowed:
        require_same_origin(scope_of(**fields))
    else:
        with pytest.raises(CsrfError):
            require_same_origin(scope_of(**fields))


def test_the_csrf_token_tells_nothing_of_the_cookie_and_shows_nowhere() -> None:
    token = csrf_token_of("value")
    assert "value" not in token
    assert token != csrf_token_of("another")
    assert token not in repr(Identity("ada", "viewer", csrf_token=token))
