"""What key holders are told of a backend that fails: its name, and nothing of where it is."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import pytest

from gasket.proxy.answer import explain
from gasket.upstream.failures import NameNotResolvedError, NotConnectedError, UpstreamError
from tests.access import a_backend

HOST, PORT = "inside.example", 8443


def kinds(kind: type[UpstreamError]) -> Iterator[type[UpstreamError]]:
    """A kind of failure, and those below it."""
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


@pytest.mark.parametrize("kind", list(kinds(NotConnectedError)))
def test_no_kind_of_failure_to_connect_tells_its_message(kind: type[UpstreamError]) -> None:
    error = explain(kind(f"is at {HOST}:{PORT}"), a_backend(name="b1"))
    assert str(error).startswith("Backend 'b1' ")
    assert HOST not in str(error)
    assert str(PORT) not in error.body().decode()
    assert error.detail == f"Backend 'b1' is at {HOST}:{PORT}."


def distrusted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = 62, f"certificate is not valid for {HOST!r}"
    return error


@pytest.mark.parametrize(
    "cause",
    [
        socket.gaierror(-2, "Name or service not known"),
        distrusted(),
        ConnectionRefusedError(111, f"Connect call failed ({HOST!r}, {PORT})"),
        TimeoutError(),
        OSError(113, "No route to host"),
        OSError(24, "Too many open files"),
        OSError(f"Multiple exceptions: {HOST}:{PORT}, {HOST}:{PORT}"),
    ],
)
def test_whatever_the_system_says(cause: OSError) -> None:
    for kind in (NotConnectedError, NameNotResolvedError):
        error = explain(kind.because_of(cause, HOST, PORT), a_backend(name="b1"))
        assert HOST not in error.body().decode()
        assert str(PORT) not in error.body().decode()
