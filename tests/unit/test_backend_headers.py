from __future__ import annotations

import pytest

from gasket.backends.headers import (
    check_headers,
    check_name,
    check_response_headers,
    decode_headers,
    encode_headers,
    request_fields,
)
from gasket.errors import InvalidInputError
from tests.access import a_backend


@pytest.mark.parametrize(
    "name",
    ["", "a b", "a:b", "ä", "a\n", "Host", "content-length", "Transfer-Encoding", "connection", "Via", "Content-Type"],
)
def test_what_no_backend_is_sent(name: str) -> None:
    with pytest.raises(InvalidInputError, match="credential_header"):
        check_name(name, "credential_header")
    with pytest.raises(InvalidInputError, match="headers"):
        check_headers({name: "x"})


@pytest.mark.parametrize("value", ["", " x", "x ", "a\r\nb: c", "a\tb", "ä", "x" * 4001])
def test_a_value_that_is_none_is_not_in_the_message(value: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        check_headers({"x-secret": value})
    assert "'x-secret'" in str(refused.value)
    assert value.strip() == "" or value not in str(refused.value).replace("'x-secret'", "")


def test_a_name_stands_once_in_whatever_case() -> None:
    with pytest.raises(InvalidInputError, match="more than once"):
        check_headers({"X-One": "1", "x-one": "2"})
    with pytest.raises(InvalidInputError, match="more than once"):
        check_response_headers(["X-One", "x-one"])


@pytest.mark.parametrize(
    "name",
    [
        "X-Accel-Redirect",
        "x-accel-anything",
        "Set-Cookie",
        "Alt-Svc",
        "Strict-Transport-Security",
        "Clear-Site-Data",
        "Access-Control-Allow-Origin",
        "X-Gasket-Request-Id",
        "X-Sendfile",
        "WWW-Authenticate",
        "Content-Length",
        "Transfer-Encoding",
    ],
)
def test_what_no_backend_may_say_to_a_client(name: str) -> None:
    with pytest.raises(InvalidInputError, match="response_headers"):
        check_response_headers(["x-served-by", name])


def test_headers_are_stored_and_read_again() -> None:
    headers = {"X-Tenant": 'a "quoted" value', "b": "c"}
    assert decode_headers(encode_headers(headers)) == headers
    assert encode_headers({}) is None
    for unreadable in (None, "", "no JSON", "[1]"):
        assert decode_headers(unreadable) == {}


@pytest.mark.parametrize(
    ("header", "scheme", "expected"),
    [
        ("Authorization", "Bearer", (b"authorization", b"Bearer key")),
        ("api-key", "", (b"api-key", b"key")),
        ("X-Auth", "Token", (b"x-auth", b"Token key")),
    ],
)
def test_how_a_credential_is_sent(header: str, scheme: str, expected: tuple[bytes, bytes]) -> None:
    assert request_fields("key", header, scheme, {}) == [expected]
    assert request_fields(None, header, scheme, {"X-One": "1"}) == [(b"x-one", b"1")]


def test_a_backends_own_headers_take_the_place_of_the_clients() -> None:
    client = [(b"x-one", b"theirs"), (b"x-two", b"theirs"), (b"x-auth", b"theirs")]
    headers = encode_headers({"X-One": "ours"})
    backend = a_backend(credential="key", credential_header="X-Auth", credential_scheme="", headers=headers)
    assert backend.fields_with(client) == [(b"x-two", b"theirs"), (b"x-one", b"ours"), (b"x-auth", b"key")]
    assert a_backend(credential="key").fields_with(client) == [*client, (b"authorization", b"Bearer key")]
    assert "ours" not in repr(backend)
    assert "key" not in repr(backend)
    assert "ours" not in repr(backend.model_source)
