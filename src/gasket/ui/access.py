"""Access: tokens for the administration, and the browsers that are signed in."""

from __future__ import annotations

from collections.abc import Sequence

from advanced_alchemy.filters import OrderBy
from litestar import Controller, get, post
from litestar.params import FromPath
from litestar.response import Redirect, Template

from gasket.access.authentication import identity_of
from gasket.access.controller import session_out
from gasket.access.models import AccessToken
from gasket.access.roles import allowed_roles
from gasket.access.schemas import TokenCreate
from gasket.access.service import TokenService
from gasket.access.sessions import SessionService, is_live, visible_to
from gasket.http import describe
from gasket.ui.forms import REFUSED, Form, convert, moment, read_form
from gasket.ui.lists import listing
from gasket.ui.pages import PageRequest, Session, Transaction, page, to

ROLES = (
    ("viewer", "viewer: sees everything but tokens and the audit"),
    ("operator", "operator: also revokes keys and tests backends"),
    ("admin", "admin: may do everything"),
    ("metrics", "metrics: reads /metrics alone"),
)
_SESSIONS_PAGE = "sessions"


class AccessPages(Controller):
    """Both lists on one page, and the form for a new token."""

    path = "/ui/access"

    @get()
    async def show(self, request: PageRequest, db_session: Session) -> Template:
        """Tokens are for administrators; sessions are everybody's own, and administrators see all."""
        identity = identity_of(request)
        tokens_wanted = listing(request, _SESSIONS_PAGE)
        tokens: Sequence[AccessToken] = []
        token_count = 0
        if identity.role in allowed_roles("GET", "/api/tokens"):
            tokens, token_count = await TokenService(db_session).get_many_and_count(
                *tokens_wanted.filters("name", "preview", "created_by")
            )
        sessions_wanted = listing(request, tokens_wanted.parameter, parameter=_SESSIONS_PAGE)
        sessions, session_count = await SessionService(db_session).get_many_and_count(
            is_live(), visible_to(identity), *sessions_wanted.filters(order="last_seen_at"), OrderBy("id")
        )
        return page(
            request,
            "access.html",
            tokens=tokens,
            listing=tokens_wanted,
            pager=tokens_wanted.pager(token_count, "token"),
            sessions=[session_out(row, identity) for row in sessions],
            sessions_pager=sessions_wanted.pager(session_count, "session"),
            form=Form(tokens_wanted.query),
        )

    @get("/tokens/new")
    async def new_token(self, request: PageRequest) -> Template:
        """The form."""
        return _new(request, Form({"role": "viewer"}))

    @post("/tokens")
    async def issue(self, request: PageRequest, transaction: Transaction) -> Template:
        """The token itself is on this page and nowhere else, so this does not lead on to another one."""
        form = await read_form(request)
        try:
            expires_at = moment(form.values.get("expires_at", ""))
            fields = {name: form.values.get(name, "") for name in ("name", "role")} | {"expires_at": expires_at}
            async with transaction() as session:
                row, secret = await TokenService(session).issue(
                    convert(fields, TokenCreate), maker=identity_of(request)
                )
        except REFUSED as error:
            return _new(request, form.refused(error), describe(error).status)
        return page(request, "token_issued.html", token=row, secret=secret)

    @post("/tokens/{token_id:int}/end")
    async def end_token(self, transaction: Transaction, token_id: FromPath[int]) -> Redirect:
        """It is void within two seconds on every replica."""
        async with transaction() as session:
            await TokenService(session).remove(token_id)
        return to(self.path)

    @post("/sessions/{session_id:int}/end")
    async def end_session(self, request: PageRequest, transaction: Transaction, session_id: FromPath[int]) -> Redirect:
        """Whoever has its cookie is signed out, within two seconds on every replica."""
        async with transaction() as session:
            await SessionService(session).remove(session_id, by=identity_of(request))
        return to(self.path)


def _new(request: PageRequest, form: Form, status: int = 200) -> Template:
    return page(request, "token_new.html", status=status, form=form, roles=ROLES)
