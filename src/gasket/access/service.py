"""Operations on access tokens. Nothing here commits."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from hashlib import sha256

from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from sqlalchemy import func, or_, select, update

from gasket.access.models import AccessToken
from gasket.access.roles import ROOT, Identity
from gasket.access.schemas import TokenCreate
from gasket.db import FOR_DELETION, Service, refusing
from gasket.errors import InvalidInputError, NameTakenError

TOKEN_PREFIX = "gst_"
_USE_NOTED_EVERY = timedelta(minutes=1)


class TokenService(Service[AccessToken]):
    """Access tokens: made, found by what a request bears, ended."""

    class Repository(SQLAlchemyAsyncRepository[AccessToken]):
        model_type = AccessToken

    repository_type = Repository
    noun = "token"

    async def issue(self, data: TokenCreate, *, maker: Identity) -> tuple[AccessToken, str]:
        """Make a token: its row, and the token itself, which is stored nowhere.

        Raises:
            InvalidInputError: it would have expired already.
            NameTakenError: another token has this name, or GASKET_ADMIN_TOKEN goes by it.
        """
        now = await self._now()
        if data.expires_at is not None and data.expires_at <= now:
            raise InvalidInputError("expires_at is in the past.", field="expires_at")
        secret = f"{TOKEN_PREFIX}{secrets.token_hex(24)}"
        row = AccessToken(
            name=data.name,
            role=data.role,
            digest=digest(secret),
            preview=f"{TOKEN_PREFIX}...{secret[-4:]}",
            created_by=maker.name,
            expires_at=data.expires_at,
            created_at=now,
        )
        if data.name == ROOT.name:  # `created_by` would not tell the two apart
            raise NameTakenError(f"{ROOT.name!r} is the name of GASKET_ADMIN_TOKEN.")
        taken = NameTakenError(f"There is a token named {data.name!r} already.")
        with refusing({"uq_access_tokens_name": taken}):
            return await self.repository.add(row), secret

    async def remove(self, token_id: int) -> None:
        """End a token: it works no more, and nothing of it remains.

        Raises:
            NotFoundError: there is no such token.
        """
        await self.discard(await self.fetch(token_id, lock=FOR_DELETION))

    async def identify(self, token: str) -> Identity | None:
        """Whose token this is; None: nobody's, or it has expired. Notes its use, at most once a minute."""
        mine = AccessToken.digest == digest(token)
        valid = or_(AccessToken.expires_at.is_(None), AccessToken.expires_at > func.now())
        unnoted = func.coalesce(AccessToken.last_used_at < func.now() - _USE_NOTED_EVERY, True)
        query = select(AccessToken.id, AccessToken.name, AccessToken.role, unnoted).where(mine, valid)
        row = (await self.session.execute(query)).one_or_none()
        if row is None:
            return None
        token_id, name, role, note = row
        if note:
            await self.session.execute(update(AccessToken).where(mine).values(last_used_at=func.now()))
        return Identity(name, role, token_id=token_id)

    async def _now(self) -> datetime:
        # The database's clock decides: replicas' clocks differ.
        now: datetime = (await self.session.execute(select(func.now()))).scalar_one()
        return now


def digest(token: str) -> str:
    """Hex SHA-256: what is stored, and what a request's token is looked up by. Random tokens need no salt."""
    return sha256(token.encode()).hexdigest()
