"""Sessions of browsers. Nothing here commits."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from datetime import timedelta
from hashlib import sha256
from typing import Any, cast

from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from litestar.datastructures.secret_values import SecretBytes
from sqlalchemy import ColumnElement, CursorResult, and_, delete, false, func, or_, select, true, update

from gasket.access.csrf import csrf_token_of
from gasket.access.models import AccessToken, BrowserSession
from gasket.access.roles import Identity
from gasket.access.service import digest
from gasket.db import Service
from gasket.errors import ForbiddenError, NotFoundError

IDLE = timedelta(hours=8)
LONGEST = timedelta(hours=24)

MOST_AT_ONCE = 5000
"""Sessions that one statement deletes."""

_SEEN_NOTED_EVERY = timedelta(minutes=1)


class SessionService(Service[BrowserSession]):
    """Sessions: begun at a sign-in, found by the value of the cookie, ended."""

    class Repository(SQLAlchemyAsyncRepository[BrowserSession]):
        model_type = BrowserSession

    repository_type = Repository
    noun = "session"

    async def begin(
        self,
        identity: Identity,
        *,
        address: str | None,
        root_token: SecretBytes | None = None,
        replaces: str | None = None,
    ) -> str:
        """Begin a session: the value of its cookie, 256 random bits.

        `address` is the browser's, None behind a Unix socket. `root_token` is the one of GASKET_ADMIN_TOKEN with which
        `root` signs in. `replaces` is the cookie that the browser had before: that session ends.

        Raises:
            ForbiddenError: the identity has the role `metrics`, for which there is no page.
        """
        if identity.role == "metrics":
            raise ForbiddenError(f"{identity.name!r} has the role metrics, which is for /metrics alone.")
        if replaces:
            await self.end(replaces)
        value = secrets.token_urlsafe(32)
        row = BrowserSession(
            digest=digest(value),
            name=identity.name,
            role=identity.role,
            email=identity.email,
            token_id=identity.token_id,
            person_id=identity.person_id,
            root_proof=_proof(value, root_token) if root_token else None,
            address=address,
        )
        await self.repository.add(row)
        return value

    async def identify(self, value: str, root_tokens: Iterable[SecretBytes]) -> Identity | None:
        """Whose session has this cookie; None: it has ended. Notes that it is in use, at most once a minute.

        A session ends with the token that began it. `root_tokens` are those of GASKET_ADMIN_TOKEN now.
        """
        mine = BrowserSession.digest == digest(value)
        unnoted = BrowserSession.last_seen_at < func.now() - _SEEN_NOTED_EVERY
        query = (
            select(BrowserSession, unnoted)
            .outerjoin(AccessToken, AccessToken.id == BrowserSession.token_id)
            .where(mine, is_live(), _is_backed())
        )
        row = (await self.session.execute(query)).one_or_none()
        if row is None:
            return None
        found, note = row
        if found.root_proof and not any(hmac.compare_digest(_proof(value, t), found.root_proof) for t in root_tokens):
            return None
        if note:
            # Requests that come at once wait for each other here; those that waited need not write again.
            await self.session.execute(update(BrowserSession).where(mine, unnoted).values(last_seen_at=func.now()))
        return Identity(
            found.name,
            found.role,
            email=found.email,
            token_id=found.token_id,
            person_id=found.person_id,
            session_id=found.id,
            csrf_token=csrf_token_of(value),
        )

    async def end(self, value: str) -> bool:
        """End the session with this cookie, if there is one; whether it was a person's."""
        mine = BrowserSession.digest == digest(value)
        ended = await self.session.execute(delete(BrowserSession).where(mine).returning(BrowserSession.person_id))
        return ended.scalar_one_or_none() is not None

    async def remove(self, session_id: int, *, by: Identity) -> None:
        """End the session with this id.

        Raises:
            NotFoundError: there is none, or it is somebody else's and `by` is no administrator.
        """
        row = await self.fetch(session_id)
        if by.role != "admin" and not await self.count(BrowserSession.id == row.id, visible_to(by)):
            raise NotFoundError(f"There is no session {session_id}.")
        await self.discard(row)

    async def follow(self, person: Identity) -> None:
        """Let all sessions of a person be as the provider says at the newest sign-in. Mostly they are so already."""
        theirs = BrowserSession.person_id == person.person_id
        now = {"name": person.name, "email": person.email, "role": person.role}
        others = or_(*(getattr(BrowserSession, name).is_distinct_from(value) for name, value in now.items()))
        changed = update(BrowserSession).where(theirs, others).values(now)
        await self.session.execute(changed.execution_options(synchronize_session=False))

    async def end_of_person(self, person_id: int) -> None:
        """End all sessions of a person."""
        await self.session.execute(delete(BrowserSession).where(BrowserSession.person_id == person_id))

    async def delete_over(self, *, at_once: int = MOST_AT_ONCE) -> bool:
        """Delete one batch of the sessions that are over; whether there may be more.

        Replicas that do so at the same time take different ones.
        """
        batch = select(BrowserSession.id).where(~is_live()).order_by(BrowserSession.id).limit(at_once)
        over = batch.with_for_update(skip_locked=True).cte("over_sessions")
        # The ids stay in the database: to have thousands of them here holds requests up for 20 ms and more.
        statement = delete(BrowserSession).where(BrowserSession.id == over.c.id)
        deleted = await self.session.execute(statement.execution_options(synchronize_session=False))
        return cast(CursorResult[Any], deleted).rowcount == at_once


def is_live() -> ColumnElement[bool]:
    """Sessions that are neither idle for too long nor too old."""
    return and_(
        BrowserSession.last_seen_at > func.now() - IDLE,
        BrowserSession.created_at > func.now() - LONGEST,
    )


def visible_to(identity: Identity) -> ColumnElement[bool]:
    """Sessions that this one may see and end: administrators everybody's, others those of the token or the person."""
    if identity.role == "admin":
        return true()
    if identity.person_id is not None:
        return BrowserSession.person_id == identity.person_id
    if identity.token_id is not None:
        return BrowserSession.token_id == identity.token_id
    return false()


def _is_backed() -> ColumnElement[bool]:
    """What began the session is still good, as far as the database knows. A row with nothing behind it is not."""
    of_token = and_(
        AccessToken.id.is_not(None), or_(AccessToken.expires_at.is_(None), AccessToken.expires_at > func.now())
    )
    return or_(BrowserSession.root_proof.is_not(None), BrowserSession.person_id.is_not(None), of_token)


def _proof(value: str, root_token: SecretBytes) -> str:
    """Ties a session to a token of GASKET_ADMIN_TOKEN. Without the cookie nobody can guess the token from it."""
    return hmac.new(value.encode(), root_token.get_secret(), sha256).hexdigest()
