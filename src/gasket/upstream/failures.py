"""Why a backend gave no whole answer, in words for people.

UpstreamError
├── NotConnectedError      there is no connection: nothing was sent
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
    """A backend gave no whole answer. The message is what it did, to follow its name; `kind` is for counting."""

    kind: ClassVar[str] = "failed"


class NotConnectedError(UpstreamError):
    """There is no connection."""

    kind = "not_connected"

    @classmethod
    def because_of(cls, error: OSError | UnicodeError, host: str, port: int) -> NotConnectedError:
        """In words; the URL's credentials, if it had any, are no part of them."""
        return cls(_not_connected(error, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"))


class AnswerTimeoutError(UpstreamError):
    """It is silent for too long."""

    kind = "timeout"


class BrokenAnswerError(UpstreamError):
    """What came is not a whole answer."""

    kind = "broken_off"


def _not_connected(error: OSError | UnicodeError, where: str) -> str:
    reason = f" ({getattr(error, 'strerror', None) or error})"
    match error:
        case socket.gaierror() | UnicodeError():
            return f"cannot be found: the name {where} does not resolve{reason}"
        case ssl.SSLCertVerificationError():
            fault = _CERTIFICATE_FAULTS.get(error.verify_code, f"was refused ({error.verify_message})")
            return f"is not trusted: the certificate of {where} {fault}"
        case ssl.SSLError():
            return f"does not speak TLS at {where} ({error.reason}): http, perhaps, instead of https"
        case ConnectionRefusedError():
            return f"refuses connections: nothing listens at {where}"
        case TimeoutError():
            return "did not accept the connection within its connect_timeout"
        case OSError(errno=errno.EHOSTUNREACH | errno.ENETUNREACH | errno.EADDRNOTAVAIL):
            return f"cannot be reached: there is no way to {where}{reason}"
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            return f"cannot be asked: this replica has no file descriptor left{reason}"
    return f"cannot be reached at {where}{reason}"
