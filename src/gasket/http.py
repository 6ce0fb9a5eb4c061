"""Errors as `application/problem+json` (RFC 9457), their documentation, and the bearer guard of `/api`.

Every problem has a `type` that never changes, `urn:gasket:problem:<name>`; `title` and `detail` are for
people. Where single values are at fault, `errors` names them.

The guard reads `app.state.admin_tokens`, a tuple of `SecretBytes`.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import msgspec
from advanced_alchemy.utils.text import camelize
from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.datastructures.secret_values import SecretBytes
from litestar.enums import ParamType
from litestar.exceptions import (
    HTTPException,
    InternalServerException,
    MethodNotAllowedException,
    NotFoundException,
)
from litestar.handlers import BaseRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from litestar.types import ExceptionHandlersMap, Message, Scope
from litestar.utils import normalize_path

from gasket import db
from gasket.errors import (
    ConflictError,
    DatabaseAwayError,
    DatabaseBusyError,
    GasketError,
    InUseError,
    InvalidInputError,
    KeyLimitError,
    KeyStateError,
    NameTakenError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
)

API_PREFIX = "/api"
SECURITY_SCHEME = "adminToken"

API_DESCRIPTION = """\
The administration of the gateway. Every request bears an admin token: `Authorization: Bearer <token>`.

Errors are `application/problem+json` (RFC 9457). `type` tells them apart and never changes; `title` and
`detail` are for people; where single values are at fault, `errors` names them. A 503 bears `Retry-After`.
"""

_log = logging.getLogger("gasket.http")
_MEDIA_TYPE = "application/problem+json"
_RETRY_AFTER_SECONDS = "2"
_NO_BODY = "'data'"
"""All that Litestar says where a handler wants a body and there is none: the KeyError of its parameter."""
_CLIENT_GONE = 499
"""Read by nobody but the log and the metrics, which have it of `/v1`, too; it is nginx's."""
_CLIENT_LEFT = "client disconnected prematurely"
"""What Litestar says, as a fault of the server, where a client leaves before its body is complete."""
_NOT_LOGGED = ("/health", "/metrics")

_NAMES: dict[type[GasketError], tuple[HTTPStatus, str]] = {
    UnauthorizedError: (HTTPStatus.UNAUTHORIZED, "unauthorized"),
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
}
"""The public names of our errors. They outlive the classes' names: never change one."""

_HTTP_NAMES = {400: "invalid-input", 401: "unauthorized", 413: "too-large", 503: "unavailable"}


class FieldError(msgspec.Struct, frozen=True):
    """One value that is at fault: a field of the body, or a parameter."""

    field: str
    message: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[FieldError, ...] = ()


def describe(error: Exception) -> Problem:
    """The problem that an error of any kind is to the client. What is our own fault has no detail."""
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
        case InternalServerException(detail=detail) if detail == _CLIENT_LEFT:
            return _problem(_CLIENT_GONE, "client-gone", "The client left before its request was complete.")
        case HTTPException() if error.status_code != HTTPStatus.INTERNAL_SERVER_ERROR:
            name = _HTTP_NAMES.get(error.status_code, f"http-{error.status_code}")
            errors = _field_errors(error.extra)
            detail = "; ".join(f"{entry.field}: {entry.message}" for entry in errors) or error.detail
            return _problem(error.status_code, name, detail, errors)
        case RecursionError():  # JSON's decoder gives up so
            return _problem(400, "invalid-input", "The request is nested too deeply.")
        case ExceptionGroup(exceptions=(Exception() as inner,)):
            return describe(inner)
    if meaning := db.explain(error):
        return describe(meaning)
    return _problem(500, "internal", "Something went wrong on our side; the log of this replica says what.")


def _problem(status: int, name: str, detail: str, errors: tuple[FieldError, ...] = ()) -> Problem:
    title = name.replace("-", " ").capitalize()
    return Problem(type=f"urn:gasket:problem:{name}", title=title, status=int(status), detail=detail, errors=errors)


def _field_errors(extra: object) -> tuple[FieldError, ...]:
    """Litestar's list of failed validations, under the names that clients know."""
    if not isinstance(extra, list):
        return ()
    return tuple(FieldError(_public_name(entry), _public_message(entry)) for entry in extra)


def _public_name(entry: Mapping[str, Any]) -> str:
    key = str(entry.get("key", ""))
    if entry.get("source") == ParamType.QUERY:
        return camelize(key)  # the function's name for it; Advanced Alchemy's convention makes it public
    return "body" if key == "data" else key


def _public_message(entry: Mapping[str, Any]) -> str:
    message = str(entry.get("message", ""))
    return "A JSON body is needed." if message == _NO_BODY else message


def respond(request: Request[Any, Any, State], error: Exception) -> Response[Problem]:
    """The response to an error; what is our own fault is logged."""
    unrouted = isinstance(error, NotFoundException | MethodNotAllowedException)
    if unrouted and _is_api(request) and not is_admin(request):
        error = UnauthorizedError()  # routing comes before the guard: a stranger must not learn what is there
    problem = describe(error)
    headers = dict(getattr(error, "headers", None) or {})
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    elif problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = _RETRY_AFTER_SECONDS
        _log.warning("%s %s: %s %s", request.method, _shown(request.scope), problem.detail, error.__cause__ or "")
    elif problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("%s %s failed", request.method, _shown(request.scope), exc_info=error)
    return Response(problem, status_code=problem.status, media_type=_MEDIA_TYPE, headers=headers)


async def log_response(message: Message, scope: Scope) -> None:
    """Litestar's hook before each message of a response: one line for each request, except those of probes."""
    if message["type"] == "http.response.start" and not scope["path"].startswith(_NOT_LOGGED):
        _log.info("%s %s %d", scope.get("method"), _shown(scope), message["status"])


def _shown(scope: Scope) -> str:
    """The path, for the log. The server has decoded it: a stranger's words must not end the line, nor reach a terminal
    as control sequences.
    """
    return quote(scope["path"])


EXCEPTION_HANDLERS: ExceptionHandlersMap = {Exception: respond}


def _is_api(request: Request[Any, Any, State]) -> bool:
    return f"{normalize_path(request.scope['path'])}/".startswith(f"{API_PREFIX}/")


def is_admin(connection: ASGIConnection[Any, Any, Any, State]) -> bool:
    """Whether the request bears one of the admin tokens, compared as bytes and in constant time (RFC 6750)."""
    scheme, _, given = connection.headers.get("authorization", "").partition(" ")
    token = given.strip().encode()
    known: tuple[SecretBytes, ...] = connection.app.state.admin_tokens
    matches = [hmac.compare_digest(token, secret.get_secret()) for secret in known]
    return scheme.lower() == "bearer" and any(matches)


def require_admin(connection: ASGIConnection[Any, Any, Any, State], _handler: BaseRouteHandler) -> None:
    """Litestar's guard for everything below `/api`."""
    if not is_admin(connection):
        raise UnauthorizedError


def problems(*errors: type[GasketError]) -> Mapping[int, ResponseSpec]:
    """The documentation of what a route may answer instead: these errors, and those that any route may have."""
    by_status: dict[int, list[Problem]] = {}
    for error in (*errors, InvalidInputError, UnauthorizedError, DatabaseAwayError, DatabaseBusyError, Exception):
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
