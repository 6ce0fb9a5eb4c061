"""Signing in and out. What is here needs nobody who is signed in already."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from litestar import Response, get, post

from gasket.access.authentication import Authenticator
from gasket.access.cookies import cleared_cookie, session_cookie
from gasket.access.csrf import require_same_origin
from gasket.access.one_time_code import OneTimeCode
from gasket.access.roles import ROOT
from gasket.access.sign_in import HOME
from gasket.access.sign_in_controller import PATH as PROVIDER_PATH
from gasket.access.sign_in_controller import SignIns
from gasket.errors import ForbiddenError, GuessingError, UnauthorizedError
from gasket.http import describe
from gasket.ui.forms import Form, read_form
from gasket.ui.pages import PageRequest, page, to, visitor

PATH = "/ui/sign-in"

_NOT_VALID = "This token is not valid: it is mistyped, has expired, or was ended."
_CODE_IS_VOID = "This link was used, or is older than ten minutes. Sign in with a token; a new start prints a new link."


@get(PATH)
async def sign_in_page(request: PageRequest) -> Response[Any]:
    """The form. A code of a link is only carried on: whoever previews the link must not use it up."""
    query = request.query_params
    next_path = page_path(query.get("next"))
    if visitor(request):
        return to(next_path)
    return _form(request, Form(), next_path, code=query.get("code", ""))


@post(PATH)
async def sign_in(request: PageRequest) -> Response[Any]:
    """Begin a session, with an access token or with the code of a link."""
    require_same_origin(request.scope)
    form = await read_form(request)
    next_path = page_path(form.values.get("next"))
    authenticator: Authenticator = request.app.state.authenticator
    scope: Any = request.scope
    try:
        if code := form.values.get("code"):
            value = await _begin_with_code(request, code)
        else:
            value = await authenticator.sign_in(scope, form.values.get("token", ""))
    except (UnauthorizedError, ForbiddenError, GuessingError) as error:
        words = _NOT_VALID if type(error) is UnauthorizedError else str(error)
        refused = Form(error=words) if code else Form(errors={"token": words})
        return _form(request, refused, next_path, status=describe(error).status)
    answer = to(next_path)
    answer.set_cookie(session_cookie(request.scope, value))
    return answer


@post("/ui/sign-out", status_code=200)
async def sign_out(request: PageRequest, sign_in: SignIns) -> Response[Any]:
    """End the session, and the provider's, if it offers that. Behind the guard, so another site cannot send the form.

    A page leads on to the provider: the policy lets no form do so, nor what answers one.
    """
    authenticator: Authenticator = request.app.state.authenticator
    scope: Any = request.scope
    person = await authenticator.sign_out(scope)
    place = await sign_in.place_after_end(scope) if person else HOME
    answer: Response[Any] = to(PATH) if place == HOME else page(request, "signed_out.html", place=place)
    answer.set_cookie(cleared_cookie(request.scope))
    return answer


async def _begin_with_code(request: PageRequest, code: str) -> str:
    one_time_code: OneTimeCode = request.app.state.one_time_code
    if not one_time_code.use(code):
        raise ForbiddenError(_CODE_IS_VOID)
    authenticator: Authenticator = request.app.state.authenticator
    scope: Any = request.scope
    return await authenticator.begin_session(scope, ROOT, root_token=authenticator.root_tokens[0])


def _form(request: PageRequest, form: Form, next_path: str, *, code: str = "", status: int = 200) -> Response[Any]:
    login = f"{PROVIDER_PATH}/login?{urlencode({'next': next_path})}" if request.app.state.has_provider else None
    return page(request, "sign_in.html", status=status, form=form, next_path=next_path, code=code, login=login)


def page_path(path: str | None) -> str:
    """Where to go on after the sign-in: a path of a page of ours, else the first page."""
    if path and path.isprintable() and "\\" not in path:
        alone = path.partition("?")[0].partition("#")[0]
        if alone != PATH and (alone == "/ui" or alone.startswith("/ui/")):
            return path
    return "/ui"
