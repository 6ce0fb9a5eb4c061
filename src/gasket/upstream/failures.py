"""Why a backend gave no complete answer, in words for people.

UpstreamError
├── NotConnectedError      there is no connection: nothing was sent
│   ├── NameNotResolvedError   no name server answered: that is no fault of the backend
│   └── BackendDeniedError     GASKET_BACKEND_NETWORKS denies its address
├── AnswerTimeoutError     connected, and silent for too long
└── BrokenAnswerError      the connection or the answer broke off, or is not HTTP
"""

from __future__ import annotations

import errno
import socket
import ssl
from typing import ClassVar

# OpenSSL's X509_V_ERR_* (x509_vfy.h).
_CERTIFICATE_FAULTS = {
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed",
    19: "is of a self-signed authority that is not trusted",
    20: "is of an authority that is not trusted",
    62: "is for another host name",
    64: "is for another address",
}


class UpstreamError(Exception):
    """A backend gave no complete answer. The message follows the backend's name; `kind` is for metrics.

    The message is for administrators: it may name hosts, ports and certificates.
    """

    kind: ClassVar[str] = "failed"
    told: ClassVar[str | None] = None
    """What key holders are told in the message's place, where that names any of these."""


class NotConnectedError(UpstreamError):
    """The backend cannot be reached; nothing was sent."""

    kind = "not_connected"
    told = "cannot be connected to"

    @classmethod
    def because_of(cls, error: OSError | UnicodeError, host: str, port: int) -> NotConnectedError:
        """The error in words, without the credentials of the URL."""
        return cls(_not_connected(error, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"))


class NameNotResolvedError(NotConnectedError):
    """No name server said where the backend is; it may well be there."""

    kind = "not_resolved"
    told = "cannot be found: no name server answered"


class BackendDeniedError(NotConnectedError):
    """The installation allows no connection to the backend's address."""

    kind = "denied"
    told = "may not be connected to: GASKET_BACKEND_NETWORKS denies its address"


class AnswerTimeoutError(UpstreamError):
    """The backend is connected and silent for too long."""

    kind = "timeout"


class BrokenAnswerError(UpstreamError):
    """The connection or the answer broke off, or is not HTTP."""

    kind = "broken_off"


def without_address(error: UpstreamError) -> str:
    """The message without host and port, for where these are secret too."""
    match error.__cause__:
        case socket.gaierror() | UnicodeError():
            return "has a name that does not resolve"
        case ssl.SSLCertVerificationError() as cause:
            return f"is not trusted: its certificate {_CERTIFICATE_FAULTS.get(cause.verify_code, 'was refused')}"
        case ssl.SSLError():
            return "does not speak TLS; it may be http instead of https"
        case ConnectionRefusedError():
            return "refuses connections"
    return error.told or str(error)


def _not_connected(error: OSError | UnicodeError, where: str) -> str:
    reason = f" ({getattr(error, 'strerror', None) or error})"
    match error:
        case socket.gaierror() | UnicodeError():
            return f"cannot be found: the name {where} does not resolve{reason}"
        case ssl.SSLCertVerificationError():
            fault = _CERTIFICATE_FAULTS.get(error.verify_code, f"was refused ({error.verify_message})")
            return f"is not trusted: the certificate of {where} {fault}"
        case ssl.SSLError():
            return f"does not speak TLS at {where} ({error.reason}); it may be http instead of https"
        case ConnectionRefusedError():
            return f"refuses connections: nothing listens at {where}"
        case TimeoutError():
            return "did not accept the connection within its connect_timeout"
        case OSError(errno=errno.EHOSTUNREACH | errno.ENETUNREACH | errno.EADDRNOTAVAIL):
            return f"cannot be reached: there is no route to {where}{reason}"
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            return f"cannot be asked: this replica has no file descriptor left{reason}"
    return f"cannot be reached at {where}{reason}"
