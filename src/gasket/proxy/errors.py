"""What `/v1` answers by itself, in the shape of the OpenAI API ("Error codes" in its reference).

An exception's docstring is its message where none is given. `code` tells errors apart and never changes.

GatewayError                   500  internal
├── BadRequestError            400  invalid_json, invalid_body, invalid_path, invalid_headers, invalid_http,
│                                   model_required
├── KeyRefusedError            401  missing, malformed, invalid, revoked, expired
├── ForbiddenError             403  endpoint_not_allowed, model_not_allowed
├── NoSuchModelError           404  model_not_found, no_backends
├── SlowRequestError           408  request_timeout
├── TooLargeError              413  request_too_large
├── EncodedRequestError        415  unsupported_encoding
├── MediaTypeError             415  unsupported_media_type
├── LimitedError               429  rate_limit_exceeded, concurrency_limit_exceeded
├── HeadTooLargeError          431  headers_too_large
├── UpstreamFailedError        502  upstream_unreachable, upstream_failed
├── BusyError                  503  database_unavailable, overloaded, upstream_unavailable
│   └── StoppingError          503  shutting_down
└── UpstreamTimeoutError       504  upstream_timeout
"""

from __future__ import annotations

import math
from typing import ClassVar

import msgspec

from gasket.errors import GasketError

_INVALID = "invalid_request_error"
_SERVER = "server_error"


class GatewayError(GasketError):
    """The gateway could not pass the request on."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = _SERVER
    default_code: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        fields: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        super().__init__(message)
        self.fields = fields or []
        self.code = code or self.default_code
        self.param = param
        self.retry_after = retry_after

    def body(self) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}` as JSON."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The fields of a whole response with that body."""
        fields = [(b"content-type", b"application/json"), (b"content-length", str(len(self.body())).encode())]
        if self.retry_after is not None:
            fields.append((b"retry-after", str(max(1, math.ceil(self.retry_after))).encode()))
        if self.status == 401:
            fields.append((b"www-authenticate", b"Bearer"))
        return fields + self.fields


class BadRequestError(GatewayError):
    """The request cannot be understood."""

    status, kind, default_code = 400, _INVALID, "invalid_body"


class KeyRefusedError(GatewayError):
    """The API key is not valid."""

    status, kind, default_code = 401, _INVALID, "invalid_api_key"


class ForbiddenError(GatewayError):
    """This key may not do that."""

    status, kind, default_code = 403, _INVALID, "endpoint_not_allowed"


class NoSuchModelError(GatewayError):
    """No backend of this key has that model."""

    status, kind, default_code = 404, _INVALID, "model_not_found"


class SlowRequestError(GatewayError):
    """The request's body did not arrive in time."""

    status, kind, default_code = 408, _INVALID, "request_timeout"


class TooLargeError(GatewayError):
    """The request's body is too large."""

    status, kind, default_code = 413, _INVALID, "request_too_large"


class EncodedRequestError(GatewayError):
    """The request's body is compressed; send it as it is."""

    status, kind, default_code = 415, _INVALID, "unsupported_encoding"


class MediaTypeError(GatewayError):
    """This key may use certain models only: its requests are JSON in UTF-8, or multipart/form-data."""

    status, kind, default_code = 415, _INVALID, "unsupported_media_type"


class LimitedError(GatewayError):
    """This key has used what it may."""

    status, kind, default_code = 429, "rate_limit_error", "rate_limit_exceeded"


class HeadTooLargeError(GatewayError):
    """The request's header fields are too large."""

    status, kind, default_code = 431, _INVALID, "headers_too_large"


class UpstreamFailedError(GatewayError):
    """The backend failed."""

    status, default_code = 502, "upstream_failed"


class BusyError(GatewayError):
    """The gateway cannot take this request now; try again soon."""

    status, default_code = 503, "overloaded"

    def __init__(self, message: str | None = None, *, code: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, code=code, retry_after=retry_after)


class StoppingError(BusyError):
    """This replica is being stopped."""

    default_code = "shutting_down"


class UpstreamTimeoutError(GatewayError):
    """The backend did not answer in time."""

    status, default_code = 504, "upstream_timeout"


class ClientGoneError(GasketError):
    """The client has closed its connection; nobody is there to be answered."""
