"""`/api/tokens`, `/api/sessions` and `/api/me`."""

from __future__ import annotations

from typing import Any

from advanced_alchemy.filters import StatementFilter
from advanced_alchemy.service import OffsetPagination
from litestar import Controller, Request, delete, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody, SkipValidation
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.access.authentication import identity_of
from gasket.access.models import AccessToken, BrowserSession
from gasket.access.roles import Identity
from gasket.access.schemas import Me, SessionOut, TokenCreate, TokenIssued, TokenOut
from gasket.access.service import TokenService
from gasket.access.sessions import IDLE, LONGEST, SessionService, is_live, visible_to
from gasket.errors import NameTakenError, NotFoundError
from gasket.http import problems
from gasket.inputs import list_filters

Tokens = NamedDependency[SkipValidation[TokenService]]
Sessions = NamedDependency[SkipValidation[SessionService]]


def provide_tokens(db_session: NamedDependency[SkipValidation[AsyncSession]]) -> TokenService:
    """Litestar's provider of the service."""
    return TokenService(db_session)


def provide_sessions(db_session: NamedDependency[SkipValidation[AsyncSession]]) -> SessionService:
    """Litestar's provider of the service."""
    return SessionService(db_session)


@get("/me", summary="Who am I?", tags=["tokens"], responses=problems())
async def me(request: Request[Any, Any, State]) -> Me:
    """The name and the role of the token that the request bears, or of who is signed in."""
    identity = identity_of(request)
    return Me(name=identity.name, role=identity.role, email=identity.email)


_DEPENDENCIES = {
    "tokens": Provide(provide_tokens, sync_to_thread=False),
    "list_filters": list_filters(
        "id",
        "name",
        "role",
        "created_at",
        "expires_at",
        "last_used_at",
        search=frozenset({"name", "preview", "created_by"}),
    ),
}


class TokenController(Controller):
    """Tokens for the administration."""

    path = "/tokens"
    tags = ("tokens",)
    dependencies = _DEPENDENCIES

    @get(summary="List tokens", responses=problems())
    async def list_tokens(
        self, tokens: Tokens, list_filters: NamedDependency[SkipValidation[list[StatementFilter]]]
    ) -> OffsetPagination[TokenOut]:
        """A page of the tokens. Those of `GASKET_ADMIN_TOKEN` are not among them."""
        rows, total = await tokens.get_many_and_count(*list_filters)
        return tokens.to_schema(rows, total, filters=list_filters, schema_type=TokenOut)

    @post(summary="Make a token", responses=problems(NameTakenError))
    async def issue_token(
        self, request: Request[Any, Any, State], tokens: Tokens, data: JSONBody[TokenCreate]
    ) -> TokenIssued:
        """The token itself is in this response and nowhere else."""
        return _issued(*await tokens.issue(data, maker=identity_of(request)))

    @get("/{token_id:int}", summary="Show a token", responses=problems(NotFoundError))
    async def show_token(self, tokens: Tokens, token_id: FromPath[int]) -> TokenOut:
        """One token, without the token itself."""
        return tokens.to_schema(await tokens.fetch(token_id), schema_type=TokenOut)

    @delete("/{token_id:int}", summary="End a token", responses=problems(NotFoundError))
    async def end_token(self, tokens: Tokens, token_id: FromPath[int]) -> None:
        """The token is void within two seconds on every replica, and nothing of it remains."""
        await tokens.remove(token_id)


def _issued(row: AccessToken, token: str) -> TokenIssued:
    return TokenIssued(token=token, **{field: getattr(row, field) for field in TokenOut.__struct_fields__})


_SESSION_DEPENDENCIES = {
    "sessions": Provide(provide_sessions, sync_to_thread=False),
    "list_filters": list_filters(
        "id",
        "name",
        "role",
        "created_at",
        "last_seen_at",
        search=frozenset({"name", "email", "address"}),
    ),
}


class SessionController(Controller):
    """Browsers that are signed in."""

    path = "/sessions"
    tags = ("sessions",)
    dependencies = _SESSION_DEPENDENCIES

    @get(summary="List sessions", responses=problems())
    async def list_sessions(
        self,
        request: Request[Any, Any, State],
        sessions: Sessions,
        list_filters: NamedDependency[SkipValidation[list[StatementFilter]]],
    ) -> OffsetPagination[SessionOut]:
        """A page of the sessions that have not ended: an administrator sees everybody's, others see their own."""
        identity = identity_of(request)
        rows, total = await sessions.get_many_and_count(is_live(), visible_to(identity), *list_filters)
        page = sessions.to_schema(rows, total, filters=list_filters)
        items = [session_out(row, identity) for row in rows]
        return OffsetPagination(items=items, limit=page.limit, offset=page.offset, total=page.total)

    @delete("/{session_id:int}", summary="End a session", responses=problems(NotFoundError))
    async def end_session(
        self, request: Request[Any, Any, State], sessions: Sessions, session_id: FromPath[int]
    ) -> None:
        """Whoever has its cookie is signed out, within two seconds on every replica."""
        await sessions.remove(session_id, by=identity_of(request))


_COMPUTED = {"expires_at", "current"}


def session_out(row: BrowserSession, viewer: Identity) -> SessionOut:
    """A session as `viewer` is shown it."""
    stored = {field: getattr(row, field) for field in SessionOut.__struct_fields__ if field not in _COMPUTED}
    expires_at = min(row.last_seen_at + IDLE, row.created_at + LONGEST)
    return SessionOut(**stored, expires_at=expires_at, current=row.id == viewer.session_id)
