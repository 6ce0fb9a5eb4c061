"""Keys that people have for themselves: made by them, or by an administrator for their address."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from advanced_alchemy.filters import StatementFilter
from advanced_alchemy.service import OffsetPagination
from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.access.people import PersonService
from gasket.access.roles import Identity
from gasket.backends.service import ProfileService, opened_by
from gasket.db import FOR_CHANGE, FOR_SHARE, MAX_ID
from gasket.errors import ForbiddenError, InvalidInputError, KeyStateError, NotFoundError
from gasket.keys.models import ApiKey
from gasket.keys.schemas import KeyCreate, OpenProfile, OwnKeyCreate
from gasket.keys.service import KeyService, Owner, of_user


class OwnKeyService:
    """What a person may do with keys of their own. Nothing here commits.

    What leaves the person with a key that works (to make, restore or rotate one) needs a group that opens the profile.
    The groups are those of the last sign-in.
    """

    def __init__(self, session: AsyncSession, identity: Identity) -> None:
        if identity.person_id is None:
            raise ForbiddenError(f"{identity.name!r} is no person.")
        self._identity = identity
        self._person_id = identity.person_id
        self._profiles = ProfileService(session)
        self._people = PersonService(session)
        self.keys = KeyService(session, profiles=self._profiles)

    async def get_many_and_count(self, *filters: StatementFilter | ColumnElement[bool]) -> tuple[Sequence[ApiKey], int]:
        """Those of the person's keys that the filters choose, and how many there are without their page."""
        return await self.keys.get_many_and_count(self._own, *filters)

    async def fetch(self, key_id: int) -> ApiKey:
        """A key of the person.

        Raises:
            NotFoundError: there is none with this id, or it is somebody else's.
        """
        if 0 < key_id <= MAX_ID and (row := await self.keys.get_one_or_none(self._own, ApiKey.id == key_id)):
            return row
        raise NotFoundError(f"There is no key {key_id}.")

    async def ids(self) -> tuple[int, ...]:
        """Of all keys of the person."""
        return tuple(await self.keys.session.scalars(select(ApiKey.id).where(self._own)))

    async def open_profiles(self, *filters: StatementFilter) -> OffsetPagination[OpenProfile]:
        """A page of the profiles that a group of the person opens."""
        rows, total = await self._profiles.get_many_and_count(opened_by(await self.groups()), *filters)
        return self._profiles.to_schema(rows, total, filters=filters, schema_type=OpenProfile)

    async def groups(self) -> list[str]:
        """The person's groups at the last sign-in."""
        return (await self._people.fetch(self._person_id)).groups

    async def issue(self, data: OwnKeyCreate) -> tuple[ApiKey, str]:
        """Make a key for the person: its row, and the key itself, which is stored nowhere.

        Raises:
            ForbiddenError: the person has no address that counts.
            NotFoundError: there is no such profile, or it is not open to the person.
            InvalidInputError: the profile does not allow this expiry.
            KeyLimitError: the person has as many active keys as the profile allows.
        """
        # Shared: a sign-in that takes groups away waits, and then finds the new key.
        person = await self._people.fetch(self._person_id, lock=FOR_SHARE)
        wanted = _with_address(data, person.email)
        return await self.keys.issue(wanted, owner=Owner(person.id, person.groups))

    async def revoke(self, key_id: int) -> ApiKey:
        """Revoke a key of the person.

        Raises:
            NotFoundError: there is no such key.
        """
        await self.fetch(key_id)
        return await self.keys.revoke(key_id, self._identity.name)

    async def restore(self, key_id: int) -> ApiKey:
        """Take a revocation back that was the person's own.

        Raises:
            NotFoundError: there is no such key.
            KeyStateError: it has expired, somebody else has revoked it, or its profile is not open to the person.
            KeyLimitError: the person has as many active keys as the profile allows.
        """
        await self._require_open(await self.fetch(key_id))
        key = await self.keys.fetch(key_id, lock=FOR_CHANGE)  # an operator may have revoked it in this moment
        if key.revoked_at is not None and not self.has_revoked(key):
            raise KeyStateError(f"Key {key_id} was revoked by {key.revoked_by}; ask an administrator to restore it.")
        return await self.keys.restore(key_id)

    async def rotate(self, key_id: int, grace: timedelta) -> tuple[ApiKey, str]:
        """Replace a key of the person, as `KeyService.rotate` does.

        Raises:
            NotFoundError: there is no such key.
            KeyStateError: it is revoked or has expired, or its profile is not open to the person.
        """
        await self._require_open(await self.fetch(key_id))
        return await self.keys.rotate(key_id, grace)

    @property
    def _own(self) -> ColumnElement[bool]:
        """A person is known by the id at the provider, not by the address, which may become somebody else's. A key that
        an administrator has made has no more than the address."""
        mine = ApiKey.person_id == self._person_id
        if self._identity.email is None:
            return mine
        nobodys = and_(ApiKey.person_id.is_(None), ApiKey.issuer.is_(None))
        return or_(mine, and_(nobodys, of_user(self._identity.email)))

    async def opens(self, key: ApiKey) -> bool:
        """Whether a group of the person opens the key's profile."""
        return await self._profiles.exists(opened_by(await self.groups()), id=key.profile_id)

    def has_revoked(self, key: ApiKey) -> bool:
        """Whether it was the person who has revoked the key."""
        return key.revoked_at is not None and key.revoked_by == self._identity.name

    async def _require_open(self, key: ApiKey) -> None:
        """Raise KeyStateError unless a group of the person opens the key's profile, until the transaction ends."""
        person = await self._people.fetch(self._person_id, lock=FOR_SHARE)
        rules = await self._profiles.key_rules(key.profile_id)
        if not rules.opens_to(person.groups):
            raise KeyStateError(
                f"None of your groups opens the profile of key {key.id}, so you can only revoke it. Ask an "
                "administrator; a group that you have since joined counts after the next sign-in."
            )


def _with_address(data: OwnKeyCreate, email: str | None) -> KeyCreate:
    """The new key, under the address of its owner.

    Raises:
        ForbiddenError: it has no address that `/api/keys` takes.
        InvalidInputError: the expiry is out of range.
    """
    try:
        return KeyCreate(user_email=email or "", name=data.name, profile_id=data.profile_id, expires_at=data.expires_at)
    except InvalidInputError as error:
        if error.field != "user_email":
            raise
        raise ForbiddenError(
            "A key is kept under its user's address, and your identity provider tells none that is verified. "
            "Ask its administrator."
        ) from None
