"""Errors as `application/problem+json` (RFC 9457), and their documentation.

Every problem has a `type` that never changes, `urn:gasket:problem:<name>`; `title` and `detail` are for people.
`errors` names the values that are wrong.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import msgspec
from advanced_alchemy.utils.text import camelize
from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.enums import ParamType
from litestar.exceptions import (
    HTTPException,
    InternalServerException,
    MethodNotAllowedException,
    NotFoundException,
)
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from litestar.types import ExceptionHandlersMap, Message, Scope
from litestar.utils import normalize_path

from gasket import db
from gasket.errors import (
    ConflictError,
    CsrfError,
    DatabaseAwayError,
    DatabaseBusyError,
    ForbiddenError,
    GasketError,
    GuessingError,
    IdentityProviderAwayError,
    InUseError,
    InvalidInputError,
    KeyLimitError,
    KeyStateError,
    NameTakenError,
    NotFoundError,
    SchemaNotReadyError,
    SignInError,
    UnauthorizedError,
    UnavailableError,
)
from gasket.postgres import errors as postgres_errors
from gasket.request_ids import checked_request_id, new_request_id

API_PREFIX = "/api"
SECURITY_SCHEME = "adminToken"
SESSION_SCHEME = "session"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110, 9.2.1)."""
REFUSAL = "gasket_refusal"
"""In a request's state: the error that says why it is not known who sends it."""

API_DESCRIPTION = """\
The administration of the gateway. Every request needs a token whose role may do this: `Authorization: Bearer <token>`.
A token that the identity provider has signed does, too: its groups give the role.
A browser that is signed in sends its session's cookie instead, and with a change the session's CSRF token.

Errors are `application/problem+json` (RFC 9457). `type` identifies the kind of error and never changes; `title` and
`detail` are for people; `errors` names the values that are wrong. A 503 has `Retry-After`.
"""

_log = logging.getLogger("gasket.http")
_MEDIA_TYPE = "application/problem+json"
_RETRY_AFTER_SECONDS = "2"
_MISSING_BODY_MESSAGE = "'data'"
"""Litestar's message for a missing body: the KeyError of the handler's parameter."""
_CLIENT_GONE = 499
"""nginx's status for a client that left. Only the log and the metrics see it, as with `/v1`."""
_CLIENT_LEFT_MESSAGE = "client disconnected prematurely"
"""Litestar's message, with status 500, for a client that leaves before its body is complete."""
_REQUEST_ID = "gasket_request_id"
_NOT_LOGGED = ("/health", "/metrics")

_NAMES: dict[type[GasketError], tuple[HTTPStatus, str]] = {
    UnauthorizedError: (HTTPStatus.UNAUTHORIZED, "unauthorized"),
    ForbiddenError: (HTTPStatus.FORBIDDEN, "forbidden"),
    CsrfError: (HTTPStatus.FORBIDDEN, "csrf"),
    GuessingError: (HTTPStatus.TOO_MANY_REQUESTS, "guessing"),
    SignInError: (HTTPStatus.BAD_REQUEST, "sign-in"),
    InvalidInputError: (HTTPStatus.BAD_REQUEST, "invalid-input"),
    NotFoundError: (HTTPStatus.NOT_FOUND, "not-found"),
    ConflictError: (HTTPStatus.CONFLICT, "conflict"),
    NameTakenError: (HTTPStatus.CONFLICT, "name-taken"),
    InUseError: (HTTPStatus.CONFLICT, "in-use"),
    KeyStateError: (HTTPStatus.CONFLICT, "key-state"),
    KeyLimitError: (HTTPStatus.CONFLICT, "key-limit"),
    UnavailableError: (HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"),
    DatabaseAwayError: (HTTPStatus.SERVICE_UNAVAILABLE, "database-away"),
    DatabaseBusyError: (HTTPStatus.SERVICE_UNAVAILABLE, "database-busy"),
    SchemaNotReadyError: (HTTPStatus.SERVICE_UNAVAILABLE, "schema-not-ready"),
    IdentityProviderAwayError: (HTTPStatus.SERVICE_UNAVAILABLE, "identity-provider-away"),
}
"""The public names of the errors. Clients rely on them: never change one."""

_HTTP_NAMES = {
    400: "invalid-input",
    401: "unauthorized",
    404: "not-found",
    409: "conflict",
    413: "too-large",
    503: "unavailable",
}


class FieldError(msgspec.Struct, frozen=True):
    """A value that is wrong: a field of the body, or a parameter."""

    field: str
    message: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error in the form of RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[FieldError, ...] = ()


def describe(error: Exception, *, method: str = "POST") -> Problem:
    """The problem that the client gets for an error of any kind. A fault of Gasket's own has no detail.

    `method` is the request's: only where it may change something is there a change that may have been made.
    """
    match error:
        case InvalidInputError(field=str(field)):
            return _problem(400, "invalid-input", str(error), (FieldError(field, str(error)),))
        case GasketError():
            for kind in type(error).__mro__:
                if kind in _NAMES:
                    return _problem(*_NAMES[kind], str(error))
        case MethodNotAllowedException():
            return _problem(405, "method-not-allowed", "This path does not have this method.")
        case NotFoundException():
            return _problem(404, "not-found", "There is nothing at this path.")
        case InternalServerException(detail=detail) if detail == _CLIENT_LEFT_MESSAGE:
            return _problem(_CLIENT_GONE, "client-gone", "The client left before its request was complete.")
        case HTTPException() if error.status_code != HTTPStatus.INTERNAL_SERVER_ERROR:
            name = _HTTP_NAMES.get(error.status_code, f"http-{error.status_code}")
            errors = _field_errors(error.extra)
            detail = "; ".join(f"{entry.field}: {entry.message}" for entry in errors) or error.detail
            return _problem(error.status_code, name, detail, errors)
        case RecursionError():  # msgspec's decoder raises it
            return _problem(400, "invalid-input", "The request is nested too deeply.")
        case ExceptionGroup(exceptions=(Exception() as inner,)):
            return describe(inner, method=method)
    if meaning := db.explain(error, changes=method not in SAFE_METHODS):
        return describe(meaning)
    return _problem(500, "internal", "Gasket failed to handle this request; the log of this replica says why.")


def _problem(status: int, name: str, detail: str, errors: tuple[FieldError, ...] = ()) -> Problem:
    title = name.replace("-", " ").capitalize()
    return Problem(type=f"urn:gasket:problem:{name}", title=title, status=int(status), detail=detail, errors=errors)


def _field_errors(extra: object) -> tuple[FieldError, ...]:
    """Litestar's list of failed validations, with the public names of the fields."""
    if not isinstance(extra, list):
        return ()
    return tuple(FieldError(_public_name(entry), _public_message(entry)) for entry in extra)


def _public_name(entry: Mapping[str, Any]) -> str:
    key = str(entry.get("key", ""))
    if entry.get("source") == ParamType.QUERY:
        return camelize(key)  # `key` is the name of the handler's parameter
    return "body" if key == "data" else key


def _public_message(entry: Mapping[str, Any]) -> str:
    message = str(entry.get("message", ""))
    return "A JSON body is needed." if message == _MISSING_BODY_MESSAGE else message


def respond(request: Request[Any, Any, State], error: Exception) -> Response[Problem]:
    """The response to an error. A fault of Gasket's own is logged with its stack trace."""
    unrouted = isinstance(error, NotFoundException | MethodNotAllowedException)
    if unrouted and _is_api(request):
        # Routing comes before the guard, and which paths exist is not public.
        error = request.scope["state"].get(REFUSAL, error)
    problem = describe(error, method=request.method)
    headers = dict(getattr(error, "headers", None) or {})
    shown = f"{request.method} {_shown(request.scope)}"
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    elif problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = _RETRY_AFTER_SECONDS
        cause = postgres_errors.describe(error.__cause__) if error.__cause__ else ""
        _log.warning("%s (request id %s): %s %s", shown, request_id(request.scope), problem.detail, cause)
    elif problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("%s failed (request id %s)", shown, request_id(request.scope), exc_info=error)
    return Response(problem, status_code=problem.status, media_type=_MEDIA_TYPE, headers=headers)


async def log_response(message: Message, scope: Scope) -> None:
    """Litestar's hook before each message of a response.

    Each response gets an `x-request-id`, and each request a log line with the same id, unless it is a probe's.
    """
    if message["type"] == "http.response.start":
        this = request_id(scope)
        message["headers"] = [*message["headers"], (b"x-request-id", this.encode())]
        if not scope["path"].startswith(_NOT_LOGGED):
            client = scope.get("client")
            sender = client[0] if client else "a Unix socket"
            words = "%s %s %d from %s (request id %s)"
            _log.info(words, scope.get("method"), _shown(scope), message["status"], sender, this)


def request_id(scope: Scope) -> str:
    """The client's own, if it has one that can be shown, else ours; the same whenever it is asked for."""
    state = scope.setdefault("state", {})
    if _REQUEST_ID not in state:
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        state[_REQUEST_ID] = checked_request_id(given) or new_request_id()
    found: str = state[_REQUEST_ID]
    return found


def _shown(scope: Scope) -> str:
    """The path, encoded for the log: decoded, it could contain line ends and control sequences of a terminal.

    Without the address of a person who is erased.
    """
    return quote(_ADDRESS.sub(r"\1...", scope["path"]))


_ADDRESS = re.compile(rf"^({API_PREFIX}/users/)[^/]+", re.IGNORECASE)

EXCEPTION_HANDLERS: ExceptionHandlersMap = {Exception: respond}


def _is_api(request: Request[Any, Any, State]) -> bool:
    return f"{normalize_path(request.scope['path'])}/".startswith(f"{API_PREFIX}/")


def refusal(connection: ASGIConnection[Any, Any, Any, State]) -> Exception:
    """Why it is not known who sends the request."""
    error: Exception = connection.scope["state"].get(REFUSAL) or UnauthorizedError()
    return error


def problems(*errors: type[GasketError]) -> Mapping[int, ResponseSpec]:
    """The documentation of a route's error responses: these errors, and those that every route may have."""
    by_status: dict[int, list[Problem]] = {}
    of_any_route = (
        InvalidInputError,
        UnauthorizedError,
        ForbiddenError,
        CsrfError,
        GuessingError,
        DatabaseAwayError,
        DatabaseBusyError,
        SchemaNotReadyError,
        Exception,
    )
    for error in (*errors, *of_any_route):
        problem = describe(error())
        by_status.setdefault(problem.status, []).append(problem)
    return {status: _response_spec(by_status[status]) for status in sorted(by_status)}


def _response_spec(examples: list[Problem]) -> ResponseSpec:
    return ResponseSpec(
        data_container=Problem,
        generate_examples=False,
        media_type=_MEDIA_TYPE,
        description=" or ".join(problem.title for problem in examples),
        examples=[
            Example(id=problem.type.rpartition(":")[2], summary=problem.title, value=msgspec.to_builtins(problem))
            for problem in examples
        ],
    )
