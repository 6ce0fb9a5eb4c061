"""The errors that `/v1` answers by itself, in the shape of the OpenAI API ("Error codes" in its reference).

Below `/v1/messages` it is in the shape of Anthropic's ("Errors" in its reference). What is wrong with a request as HTTP
is in `server/errors.py`.

GatewayError                   500  internal
├── KeyRefusedError            401  missing, malformed, invalid, revoked, expired
│   ├── UnknownKeyError        401  invalid_api_key
│   ├── TokenNotValidError     401  invalid_token
│   └── TokenNotWantedError    403  token_not_accepted, ambiguous_token
├── ForbiddenError             403  endpoint_not_allowed, model_not_allowed
├── NoSuchModelError           404  model_not_found, no_backends
├── WrongUrlError              404  unknown_url
├── UseHttpError               426  websocket_not_supported
├── MediaTypeError             415  unsupported_media_type
├── LimitedError               429  rate_limit_exceeded, concurrency_limit_exceeded, too_many_wrong_tokens
├── UpstreamFailedError        502  upstream_unreachable, upstream_failed, upstream_redirected, backend_denied
├── BusyError                  503  database_unavailable, schema_not_ready, overloaded, upstream_unavailable,
│   │                               issuer_unavailable
│   ├── MigratingError         503  migrating
│   └── StoppingError          503  shutting_down
├── UpstreamTimeoutError       504  upstream_timeout
└── LoopError                  508  loop_detected

ClientGoneError                     the client has closed its connection
"""

from __future__ import annotations

import msgspec

from gasket.errors import GasketError
from gasket.proxy.endpoints import speaks_anthropic
from gasket.server.errors import INVALID_REQUEST, SERVER_ERROR, GatewayError


class KeyRefusedError(GatewayError):
    """The API key is not valid."""

    status, kind, default_code = 401, INVALID_REQUEST, "invalid_api_key"


class UnknownKeyError(KeyRefusedError):
    """This API key does not exist."""


class TokenNotValidError(KeyRefusedError):
    """The signed token does not count. `guessed`: it may be anybody's invention."""

    default_code = "invalid_token"

    def __init__(self, message: str | None = None, *, guessed: bool = True) -> None:
        super().__init__(message)
        self.guessed = guessed


class TokenNotWantedError(KeyRefusedError):
    """No profile takes the signed token."""

    status, default_code = 403, "token_not_accepted"


class ForbiddenError(GatewayError):
    """This key may not do that."""

    status, kind, default_code = 403, INVALID_REQUEST, "endpoint_not_allowed"


class NoSuchModelError(GatewayError):
    """No backend of this key has that model."""

    status, kind, default_code = 404, INVALID_REQUEST, "model_not_found"


class WrongUrlError(GatewayError):
    """There is nothing at this path."""

    status, kind, default_code = 404, INVALID_REQUEST, "unknown_url"


class UseHttpError(GatewayError):
    """This gateway has no WebSockets: use HTTP. POST /v1/responses, with "stream": true, answers in events."""

    status, kind, default_code = 426, INVALID_REQUEST, "websocket_not_supported"

    def __init__(self) -> None:
        super().__init__(fields=[(b"upgrade", b"HTTP/1.1"), (b"connection", b"upgrade")])


class MediaTypeError(GatewayError):
    """The model decides where a request of this key goes: it must be JSON in UTF-8, or multipart/form-data."""

    status, kind, default_code = 415, INVALID_REQUEST, "unsupported_media_type"


class LimitedError(GatewayError):
    """This key has used what it may."""

    status, kind, default_code = 429, "rate_limit_error", "rate_limit_exceeded"


class UpstreamFailedError(GatewayError):
    """The backend failed."""

    status, default_code = 502, "upstream_failed"


class BusyError(GatewayError):
    """The gateway cannot take this request now; try again soon."""

    status, default_code = 503, "overloaded"

    def __init__(self, message: str | None = None, *, code: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, code=code, retry_after=retry_after)


class MigratingError(BusyError):
    """This replica is still starting: its database schema is not ready yet. Try again shortly."""

    default_code = "migrating"


class StoppingError(BusyError):
    """This replica is being stopped."""

    default_code = "shutting_down"


class UpstreamTimeoutError(GatewayError):
    """The backend did not answer in time."""

    status, default_code = 504, "upstream_timeout"


class LoopError(GatewayError):
    """This request came back to the gateway by way of one of its own backends."""

    status, kind, default_code = 508, INVALID_REQUEST, "loop_detected"


class ClientGoneError(GasketError):
    """The client has closed its connection, so there is no answer."""


_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(error: GatewayError, path: str, request_id: str) -> bytes:
    """The error as JSON, in the shape of the API that the path is of. `request_id` is ours."""
    if not speaks_anthropic(path):
        return error.body()
    return _anthropic_body(str(error), error.status, error.kind == INVALID_REQUEST, request_id)


def stand_in_body(message: str, status: int, path: str, request_id: str) -> bytes:
    """What takes the place of a backend's error that nobody can read, in the same shape."""
    fault_of_client = status < 500
    if speaks_anthropic(path):
        return _anthropic_body(message, status, fault_of_client, request_id)
    kind = LimitedError.kind if status == LimitedError.status else INVALID_REQUEST if fault_of_client else SERVER_ERROR
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": None}})


def _anthropic_body(message: str, status: int, fault_of_client: bool, request_id: str) -> bytes:
    other = "invalid_request_error" if fault_of_client else "api_error"
    said = {"type": _ANTHROPIC_KINDS.get(status, other), "message": message}
    return msgspec.json.encode({"type": "error", "error": said, "request_id": request_id})
