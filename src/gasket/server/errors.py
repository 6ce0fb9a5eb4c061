"""Faults of a request as HTTP, and the error body: in the form of the OpenAI API, on every path.

An exception's docstring is its default message. `code` identifies the error and never changes.

GatewayError                   500  internal; `proxy/errors.py` has the others of its kind
├── BadRequestError            400  invalid_json, invalid_body, invalid_path, invalid_headers, invalid_http,
│                                   model_required
├── SlowRequestError           408  request_timeout
├── TooLargeError              413  request_too_large
├── TargetTooLongError         414  uri_too_long
├── EncodedRequestError        415  unsupported_encoding
└── HeadTooLargeError          431  headers_too_large
"""

from __future__ import annotations

import math
from typing import ClassVar

import msgspec

from gasket.errors import GasketError

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"


class GatewayError(GasketError):
    """The gateway could not forward the request."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = SERVER_ERROR
    default_code: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        fields: list[tuple[bytes, bytes]] | None = None,
        detail: str | None = None,
    ) -> None:
        """`detail` is the message for the log, where that may say more than the client is told."""
        super().__init__(message)
        self.detail = detail
        self.fields = fields or []
        self.code = code or self.default_code
        self.param = param
        self.retry_after = retry_after

    def body(self) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}` as JSON."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The header fields of the complete response."""
        fields = [(b"content-type", b"application/json"), (b"content-length", str(len(self.body())).encode())]
        if self.retry_after is not None:
            fields.append((b"retry-after", str(max(1, math.ceil(self.retry_after))).encode()))
        if self.status == 401:
            fields.append((b"www-authenticate", b"Bearer"))
        return fields + self.fields


class BadRequestError(GatewayError):
    """The request cannot be understood."""

    status, kind, default_code = 400, INVALID_REQUEST, "invalid_body"


class SlowRequestError(GatewayError):
    """The request's body did not arrive in time."""

    status, kind, default_code = 408, INVALID_REQUEST, "request_timeout"


class TooLargeError(GatewayError):
    """The request's body is too large."""

    status, kind, default_code = 413, INVALID_REQUEST, "request_too_large"


class TargetTooLongError(GatewayError):
    """The request's target, its path and query, is too long."""

    status, kind, default_code = 414, INVALID_REQUEST, "uri_too_long"


class EncodedRequestError(GatewayError):
    """The request's body is compressed; send it uncompressed."""

    status, kind, default_code = 415, INVALID_REQUEST, "unsupported_encoding"


class HeadTooLargeError(GatewayError):
    """The request's header fields are too large."""

    status, kind, default_code = 431, INVALID_REQUEST, "headers_too_large"
