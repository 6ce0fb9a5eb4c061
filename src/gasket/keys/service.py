"""Operations on API keys. Nothing here commits."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from datetime import datetime, timedelta
from hashlib import sha256

import msgspec
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from msgspec import UNSET, UnsetType
from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.backends.schemas import KeyRules
from gasket.backends.service import ProfileService
from gasket.db import FOR_CHANGE, FOR_DELETION, Service
from gasket.errors import InvalidInputError, KeyLimitError, KeyStateError, NotFoundError
from gasket.keys.models import ApiKey, PreviousApiKey
from gasket.keys.schemas import KeyCreate, KeyUpdate

MOST_AT_ONCE = 1000
"""Orphaned keys that one statement revokes."""
REVOKED_ORPHAN = "GASKET_ORPHANED_KEYS_DAYS"
"""Who has revoked them: the setting says why."""


class Owner(msgspec.Struct, frozen=True):
    """A person of the identity provider who makes a key for themselves, with the groups of the last sign-in."""

    person_id: int
    groups: Collection[str]


class KeyService(Service[ApiKey]):
    """API keys and their lifecycle.

    Every change that can raise the number of active keys locks the profile first (`ProfileService.key_rules`), then
    the key. So limits hold across replicas, and there is no deadlock.
    """

    class Repository(SQLAlchemyAsyncRepository[ApiKey]):
        model_type = ApiKey

    repository_type = Repository
    noun = "key"

    def __init__(self, session: AsyncSession, *, profiles: ProfileService) -> None:
        super().__init__(session)
        self._profiles = profiles

    async def issue(self, data: KeyCreate, *, owner: Owner | None = None) -> tuple[ApiKey, str]:
        """Make a key: its row, and the key itself, which is stored nowhere. `owner` makes it for themselves.

        Raises:
            NotFoundError: there is no such profile, or it is not open to the owner.
            InvalidInputError: the profile does not allow this expiry.
            KeyLimitError: the user has as many active keys as the profile allows.
        """
        rules = await self._profiles.key_rules(data.profile_id)
        if owner is not None and not rules.opens_to(owner.groups):
            raise NotFoundError(f"There is no profile {data.profile_id}.")
        expires_at = first_expiry(data.expires_at, rules)
        person_id = owner.person_id if owner else None
        await self._check_limit(rules, data.user_email, person_id)
        secret = new_key()
        key = ApiKey(
            user_email=data.user_email,
            name=data.name,
            digest=digest(secret),
            key_preview=preview(secret),
            profile_id=rules.profile_id,
            expires_at=expires_at,
            created_at=rules.now,
            requests_per_minute=data.requests_per_minute,
            tokens_per_window=data.tokens_per_window,
            token_window=data.token_window,
            max_concurrency=data.max_concurrency,
            person_id=person_id,
        )
        return await self.repository.add(key), secret

    async def change(self, key_id: int, data: KeyUpdate) -> ApiKey:
        """Change the given fields.

        Raises:
            NotFoundError: there is no such key.
            InvalidInputError: the profile does not allow this expiry.
            KeyLimitError: a later expiry would revive the key, and there is no room for it.
        """
        if data.expires_at is UNSET:
            key = await self.fetch(key_id, lock=FOR_CHANGE)
        else:
            key, rules = await self._fetch_with_rules(key_id)
            check_expiry(data.expires_at, rules, created_at=key.created_at)
            if key.state == "expired" and key.issuer is None:
                await self._check_limit(rules, key.user_email, key.person_id)
        return await self.assign(key, data.given())

    async def remove(self, key_id: int) -> None:
        """Delete a key.

        Raises:
            NotFoundError: there is no such key.
        """
        await self.discard(await self.fetch(key_id, lock=FOR_DELETION))

    async def revoke(self, key_id: int, revoked_by: str) -> ApiKey:
        """Revoke a key, and the one before it. Of several calls the first is kept on record.

        Raises:
            NotFoundError: there is no such key.
        """
        key = await self.fetch(key_id, lock=FOR_CHANGE)
        if key.revoked_at is not None:
            return key
        await self._end_previous(key)
        return await self.assign(key, {"revoked_at": func.now(), "revoked_by": revoked_by})

    async def restore(self, key_id: int) -> ApiKey:
        """Take a revocation back. A key that is active stays as it is; an orphaned one counts its days anew.

        Raises:
            NotFoundError: there is no such key.
            KeyStateError: it has expired.
            KeyLimitError: the user has as many active keys as the profile allows.
        """
        key, rules = await self._fetch_with_rules(key_id)
        if key.expires_at is not None and key.expires_at <= rules.now:
            raise KeyStateError(f"Key {key_id} has expired; give it a later expires_at first.")
        if key.revoked_at is None:
            return key
        if key.issuer is None:
            await self._check_limit(rules, key.user_email, key.person_id)
        orphaned_at = None if key.orphaned_at is None else rules.now
        return await self.assign(key, {"revoked_at": None, "revoked_by": None, "orphaned_at": orphaned_at})

    async def rotate(self, key_id: int, grace: timedelta) -> tuple[ApiKey, str]:
        """Replace the key itself; the row keeps its id and its expiry. The key before works as long as `grace`, and the
        one before that ends at once.

        Raises:
            NotFoundError: there is no such key.
            KeyStateError: it is revoked or has expired, or stands for a subject with signed tokens.
        """
        key = await self.fetch(key_id, lock=FOR_CHANGE)
        if key.issuer is not None:
            raise KeyStateError(f"Key {key_id} stands for a subject whose tokens {key.issuer} signs; rotate those.")
        if key.state != "active":
            raise KeyStateError(f"Key {key_id} is {key.state}; only an active key can be rotated.")
        await self._end_previous(key)
        if grace:
            self.session.add(PreviousApiKey(key_id=key.id, digest=key.digest, expires_at=func.now() + grace))
        secret = new_key()
        return await self.assign(key, {"digest": digest(secret), "key_preview": preview(secret)}), secret

    async def _end_previous(self, key: ApiKey) -> None:
        """The key before the last rotation works no more."""
        await self.session.execute(delete(PreviousApiKey).where(PreviousApiKey.key_id == key.id))

    async def _fetch_with_rules(self, key_id: int) -> tuple[ApiKey, KeyRules]:
        rules = await self._profiles.key_rules((await self.fetch(key_id)).profile_id)
        return await self.fetch(key_id, lock=FOR_CHANGE), rules

    async def revoke_orphaned(self, *, days: int, at_once: int = MOST_AT_ONCE) -> bool:
        """Revoke one batch of the keys that have been orphaned for so long; whether there may be more.

        Replicas that do so at the same time take different ones.
        """
        over = and_(ApiKey.orphaned_at <= func.now() - timedelta(days=days), ApiKey.revoked_at.is_(None))
        batch = select(ApiKey.id).where(over).order_by(ApiKey.id).limit(at_once)
        ids = (await self.session.scalars(batch.with_for_update(skip_locked=True, key_share=True))).all()
        if ids:
            await self.session.execute(delete(PreviousApiKey).where(PreviousApiKey.key_id.in_(ids)))
            revoked = update(ApiKey).where(ApiKey.id.in_(ids)).values(revoked_at=func.now(), revoked_by=REVOKED_ORPHAN)
            await self.session.execute(revoked.execution_options(synchronize_session=False))
        return len(ids) == at_once

    async def _check_limit(self, rules: KeyRules, user_email: str, person_id: int | None) -> None:
        """Raise KeyLimitError unless one more key may be active; the profile's lock is held.

        All keys of the address count, and all of the person, whose address may have been another one.
        """
        if rules.max_keys_per_user is None:
            return
        theirs = of_user(user_email)
        if person_id is not None:
            theirs = or_(theirs, ApiKey.person_id == person_id)
        active = await self.count(
            ApiKey.profile_id == rules.profile_id, theirs, ApiKey.state == "active", ApiKey.issuer.is_(None)
        )
        if active >= rules.max_keys_per_user:
            raise KeyLimitError(
                f"{user_email} has {active} active keys under profile {rules.profile_name!r}, which allows "
                f"{rules.max_keys_per_user}. Revoke one, or raise max_keys_per_user."
            )


def of_user(email: str) -> ColumnElement[bool]:
    """Keys of this address, whatever the case of its letters; see `ApiKey` on how they are folded."""
    return func.lower(ApiKey.user_email) == func.lower(email)


def new_key() -> str:
    """A new key: 192 random bits."""
    return f"gsk_{secrets.token_hex(24)}"


def digest(key: str) -> str:
    """Hex SHA-256: what is stored, and what a request's key is looked up by. Random keys need no salt."""
    return sha256(key.encode()).hexdigest()


def preview(key: str) -> str:
    """A shortened form, by which people recognise the key."""
    return f"gsk_...{key[-4:]}"


def check_expiry(expires_at: datetime | UnsetType | None, rules: KeyRules, *, created_at: datetime) -> None:
    """Raise InvalidInputError unless the rules allow a key made at `created_at` to expire at this time."""
    if isinstance(expires_at, datetime) and expires_at <= rules.now:
        raise InvalidInputError("expires_at is in the past.", field="expires_at")
    if not rules.enforce_expiry or rules.default_expiry_days is None:
        return
    latest = created_at + timedelta(days=rules.default_expiry_days)
    if not isinstance(expires_at, datetime) or expires_at > latest:
        raise InvalidInputError(
            f"expires_at may be {latest.isoformat()} at the latest: profile {rules.profile_name!r} enforces "
            f"{rules.default_expiry_days} days after the key was made.",
            field="expires_at",
        )


def first_expiry(requested: datetime | UnsetType | None, rules: KeyRules) -> datetime | None:
    """When a new key expires: as requested, else as the profile has it."""
    if isinstance(requested, UnsetType):
        days = rules.default_expiry_days
        return None if days is None else rules.now + timedelta(days=days)
    check_expiry(requested, rules, created_at=rules.now)
    return requested
