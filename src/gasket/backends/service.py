"""What can be done with backends and profiles. Nothing here commits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from sqlalchemy import delete, func, insert, select, type_coerce, update
from sqlalchemy.types import Text

from gasket.backends.models import (
    BackendProfile,
    OpenAIBackend,
    ProfileBackend,
    key_ring,
    keys_of_profiles,
)
from gasket.backends.schemas import (
    BackendCreate,
    BackendUpdate,
    KeyRules,
    ProfileCreate,
    ProfileUpdate,
)
from gasket.db import FOR_CHANGE, FOR_DELETION, MAX_ID, Service, refusing
from gasket.errors import InUseError, InvalidInputError, NameTakenError


class BackendService(Service[OpenAIBackend]):
    """Backends and their credentials."""

    class Repository(SQLAlchemyAsyncRepository[OpenAIBackend]):
        model_type = OpenAIBackend

    repository_type = Repository
    noun = "backend"

    async def add(self, data: BackendCreate) -> OpenAIBackend:
        """Make a backend.

        Raises:
            NameTakenError: another one has this name.
        """
        with _unique_name("uq_openai_backends_name", "backend", data.name):
            return await self.repository.add(OpenAIBackend(**data.given()))

    async def change(self, backend_id: int, data: BackendUpdate) -> OpenAIBackend:
        """Change the given fields.

        Raises:
            NotFoundError: there is no such backend.
            NameTakenError: another one has the new name.
        """
        backend = await self.fetch(backend_id, lock=FOR_CHANGE)
        with _unique_name("uq_openai_backends_name", "backend", data.name):
            return await self.assign(backend, data.given())

    async def remove(self, backend_id: int) -> None:
        """Delete a backend.

        Raises:
            NotFoundError: there is no such backend.
            InUseError: it is in a profile.
        """
        backend = await self.fetch(backend_id, lock=FOR_DELETION)
        profiles = await self.session.scalars(
            select(BackendProfile.name)
            .join(ProfileBackend, ProfileBackend.profile_id == BackendProfile.id)
            .where(ProfileBackend.backend_id == backend_id)
            .order_by(BackendProfile.name)
        )
        if names := profiles.all():
            where = _count(len(names), "profile")
            raise InUseError(f"Backend {backend.name!r} is in {where} ({_some(names)}); take it out of them first.")
        await self.discard(backend)

    async def reencrypt(self) -> tuple[int, list[str]]:
        """Rewrite every credential with the first key: how many were, and the backends whose none opens.

        The rows stay locked until the transaction ends, so that no change of a credential is lost.
        """
        stored = type_coerce(OpenAIBackend.api_key, Text)
        rows = await self.session.execute(
            select(OpenAIBackend.id, OpenAIBackend.name, stored)
            .where(stored.is_not(None))
            .order_by(OpenAIBackend.id)
            .with_for_update(key_share=True)
        )
        rewritten, unreadable = 0, list[str]()
        for backend_id, name, token in rows.all():
            fresh = key_ring.reencrypt(token)
            if fresh is None:
                unreadable.append(name)
                continue
            await self.session.execute(
                update(OpenAIBackend)
                .where(OpenAIBackend.id == backend_id)
                .values(api_key=type_coerce(fresh, Text))
                .execution_options(synchronize_session=False)
            )
            rewritten += 1
        return rewritten, unreadable


class ProfileService(Service[BackendProfile]):
    """Profiles, and the order of their backends."""

    class Repository(SQLAlchemyAsyncRepository[BackendProfile]):
        model_type = BackendProfile

    repository_type = Repository
    noun = "profile"

    async def add(self, data: ProfileCreate) -> BackendProfile:
        """Make a profile.

        Raises:
            InvalidInputError: a backend does not exist, or an expiry is enforced that has no length.
            NameTakenError: another one has this name.
        """
        fields = data.given()
        backends = fields.pop("backends")
        _check_expiry_rule(data.enforce_expiry, data.default_expiry_days)
        with _unique_name("uq_backend_profiles_name", "profile", data.name):
            profile = await self.repository.add(BackendProfile(**fields))
        return await self._link(profile, backends)

    async def change(self, profile_id: int, data: ProfileUpdate) -> BackendProfile:
        """Change the given fields. Keys that exist keep their expiry, whatever the new rules are.

        Raises:
            NotFoundError: there is no such profile.
            InvalidInputError: a backend does not exist, or an expiry is enforced that has no length.
            NameTakenError: another one has the new name.
        """
        fields = data.given()
        backends = fields.pop("backends", None)
        profile = await self.fetch(profile_id, lock=FOR_CHANGE)
        _check_expiry_rule(
            fields.get("enforce_expiry", profile.enforce_expiry),
            fields.get("default_expiry_days", profile.default_expiry_days),
        )
        with _unique_name("uq_backend_profiles_name", "profile", data.name):
            profile = await self.assign(profile, fields)
        return profile if backends is None else await self._link(profile, backends)

    async def remove(self, profile_id: int) -> None:
        """Delete a profile.

        Raises:
            NotFoundError: there is no such profile.
            InUseError: it has keys, in whatever state.
        """
        profile = await self.fetch(profile_id, lock=FOR_DELETION)
        keys = await self.session.scalar(
            select(func.count()).select_from(keys_of_profiles).where(keys_of_profiles.c.profile_id == profile_id)
        )
        if keys:
            raise InUseError(f"Profile {profile.name!r} has {_count(keys, 'key')}; delete them first.")
        await self.discard(profile)

    async def key_rules(self, profile_id: int) -> KeyRules:
        """What the profile demands of its keys; until the transaction ends, nobody else changes or counts them.

        Raises:
            NotFoundError: there is no such profile.
        """
        profile = await self.fetch(profile_id, lock=FOR_CHANGE)
        now = (await self.session.execute(select(func.now()))).scalar_one()
        return KeyRules(
            profile_id=profile.id,
            profile_name=profile.name,
            default_expiry_days=profile.default_expiry_days,
            enforce_expiry=profile.enforce_expiry,
            max_keys_per_user=profile.max_keys_per_user,
            now=now,
        )

    async def _link(self, profile: BackendProfile, backends: Sequence[int]) -> BackendProfile:
        """Replace the profile's list of backends."""
        possible = [backend_id for backend_id in backends if 0 < backend_id <= MAX_ID]
        found = await self.session.scalars(
            select(OpenAIBackend.id).where(OpenAIBackend.id.in_(possible)).with_for_update(read=True, key_share=True)
        )
        if missing := sorted(set(backends) - set(found)):
            raise InvalidInputError(f"There is no backend {_some(missing)}.", field="backends")
        await self.session.execute(delete(ProfileBackend).where(ProfileBackend.profile_id == profile.id))
        if backends:
            places = [
                {"profile_id": profile.id, "backend_id": backend_id, "position": position}
                for position, backend_id in enumerate(backends)
            ]
            await self.session.execute(insert(ProfileBackend), places)
        await self.session.refresh(profile, ["links"])
        return profile


def _check_expiry_rule(enforce: bool, days: int | None) -> None:
    if enforce and days is None:
        raise InvalidInputError("enforce_expiry needs default_expiry_days.", field="enforce_expiry")


def _unique_name(constraint: str, noun: str, name: object) -> AbstractContextManager[None]:
    return refusing({constraint: NameTakenError(f"There is a {noun} named {name!r} already.")})


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _some(names: Sequence[object]) -> str:
    shown = ", ".join(map(str, names[:5]))
    return f"{shown}, ..." if len(names) > 5 else shown
