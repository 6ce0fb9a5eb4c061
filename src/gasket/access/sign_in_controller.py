"""`/auth`: people sign in at the identity provider, and out."""

from __future__ import annotations

from typing import Any

from litestar import Controller, Request, get, post
from litestar.datastructures import CacheControlHeader, State
from litestar.di import NamedDependency
from litestar.params import SkipValidation
from litestar.response import Redirect

from gasket.access import csrf
from gasket.access.authentication import Authenticator
from gasket.access.cookies import cleared_cookie
from gasket.access.sign_in import Answer, SignIn

PATH = "/auth"

SignIns = NamedDependency[SkipValidation[SignIn]]


class SignInController(Controller):
    """What a browser asks for on its way to the identity provider and back."""

    path = PATH
    include_in_schema = False
    cache_control = CacheControlHeader(no_store=True)
    request_max_body_size = 10_000

    @get("/login")
    async def begin(self, request: Request[Any, Any, State], sign_in: SignIns) -> Redirect:
        """To the provider. `next` is the path of ours to which it goes afterwards."""
        return _redirect(await sign_in.begin(request.scope, following=request.query_params.get("next")))

    @get("/callback")
    async def finish(self, request: Request[Any, Any, State], sign_in: SignIns) -> Redirect:
        """Back from the provider."""
        return _redirect(await sign_in.finish(request.scope, request.query_params.dict()))

    @post("/logout")
    async def end(self, request: Request[Any, Any, State], sign_in: SignIns) -> Redirect:
        """The session ends, here and at the provider. Without a session there is nothing to end."""
        await csrf.check(request)
        authenticator: Authenticator = request.app.state.authenticator
        person = await authenticator.sign_out(request.scope)
        place = await sign_in.place_after_end(request.scope) if person else "/"
        return _redirect(Answer(place, [cleared_cookie(request.scope)]))


def _redirect(answer: Answer) -> Redirect:
    """303: whatever the method was, the browser goes on with GET (RFC 9110, 15.4.4)."""
    return Redirect(
        answer.location, status_code=303, cookies=answer.cookies, headers={"Referrer-Policy": "no-referrer"}
    )
