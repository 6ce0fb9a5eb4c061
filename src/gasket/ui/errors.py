"""Errors as pages."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from litestar import Response
from litestar.exceptions import MethodNotAllowedException, NotFoundException
from litestar.response import Redirect

from gasket import db, http
from gasket.access.authentication import is_known
from gasket.errors import ForbiddenError, GuessingError, SchemaNotReadyError, UnauthorizedError
from gasket.ui.navigation import links_for
from gasket.ui.pages import PageRequest, page, to, visitor
from gasket.ui.sign_in import PATH as SIGN_IN

_REFRESH = 5

_log = logging.getLogger("gasket.http")


def show_error(request: PageRequest, error: Exception) -> Response[Any]:
    """The page of an error; who is not signed in is led to the page for that."""
    unrouted = isinstance(error, NotFoundException | MethodNotAllowedException)
    if unrouted and not is_known(request):
        error = http.refusal(request)  # which pages exist is not public
    if isinstance(error, UnauthorizedError):
        return _sign_in(request)
    if isinstance(error, ForbiddenError) and request.url.path == "/ui" and (links := links_for(visitor(request), "")):
        return to(links[0].path)  # who may not see the overview has another first page
    problem = http.describe(error, method=request.method)
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        level = logging.WARNING if problem.status == HTTPStatus.SERVICE_UNAVAILABLE else logging.ERROR
        cause = None if level == logging.WARNING else error
        _log.log(level, "%s (request id %s)", problem.detail, http.request_id(request.scope), exc_info=cause)
    # What a form has sent is not sent a second time.
    passes = problem.status == HTTPStatus.SERVICE_UNAVAILABLE and request.method == "GET"
    answer = page(
        request,
        "error.html",
        status=problem.status,
        refresh=_REFRESH if passes else None,
        problem=problem,
        of_schema=isinstance(db.explain(error) or error, SchemaNotReadyError),
        request_id=http.request_id(request.scope),
    )
    if isinstance(error, GuessingError):
        answer.headers.update(error.headers)
    return answer


def _sign_in(request: PageRequest) -> Redirect:
    """Where to go on afterwards is in the query. What a form sent is lost, so that leads to its page."""
    if request.method not in ("GET", "HEAD"):
        return to(SIGN_IN)
    query = request.scope["query_string"].decode("latin-1")
    path = request.scope["path"] + (f"?{query}" if query else "")
    return Redirect(f"{SIGN_IN}?{urlencode({'next': path})}" if path != "/ui" else SIGN_IN, status_code=303)
