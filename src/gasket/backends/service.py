"""Operations on backends and profiles. Nothing here commits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from msgspec import UNSET
from sqlalchemy import ColumnElement, delete, func, insert, or_, select, type_coerce, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import Text

from gasket.backends.headers import check_no_conflict, decode_headers, encode_headers
from gasket.backends.models import (
    SECRETS,
    BackendModel,
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
    ModelRow,
    ProfileCreate,
    ProfileUpdate,
)
from gasket.db import FOR_CHANGE, FOR_DELETION, MAX_ID, Service, is_any_of, refusing
from gasket.errors import InUseError, InvalidInputError, NameTakenError
from gasket.upstream.address import address_of


class BackendService(Service[OpenAIBackend]):
    """Backends and their credentials."""

    class Repository(SQLAlchemyAsyncRepository[OpenAIBackend]):
        model_type = OpenAIBackend

    repository_type = Repository
    noun = "backend"

    async def names(self, ids: Collection[int] | None = None) -> dict[int, str]:
        """The names by the ids, all or those with these ids, in the order of the names. Nothing else is read."""
        return await _names(self.session, OpenAIBackend, ids)

    async def in_use(self) -> tuple[list[int], int]:
        """The ids of those that no operator has set aside, and how many backends there are in all."""
        rows = (await self.session.execute(select(OpenAIBackend.id, OpenAIBackend.set_aside_at))).all()
        return [row.id for row in rows if row.set_aside_at is None], len(rows)

    async def add(self, data: BackendCreate) -> OpenAIBackend:
        """Make a backend.

        Raises:
            NameTakenError: another one has this name.
            InvalidInputError: a header would be sent beside the credential under one name.
        """
        check_no_conflict(data.credential_header, data.headers or {})
        fields = _stored(data.given())
        models = fields.pop("models")
        with _unique_name("uq_openai_backends_name", "backend", data.name):
            backend = await self.repository.add(OpenAIBackend(**fields))
        return await self._list(backend, models)

    async def change(self, backend_id: int, data: BackendUpdate) -> OpenAIBackend:
        """Change the given fields.

        Raises:
            NotFoundError: there is no such backend.
            NameTakenError: another one has the new name.
            InvalidInputError: it leads to another server, and a secret is not given again; or a header would be sent
                beside the credential under one name.
        """
        fields = _stored(data.given())
        models = fields.pop("models", UNSET)
        backend = await self.fetch(backend_id, lock=FOR_CHANGE)
        _require_secrets(backend, fields)
        check_no_conflict(
            str(fields.get("credential_header", backend.credential_header)),
            decode_headers(fields.get("headers", backend.headers)),
        )
        with _unique_name("uq_openai_backends_name", "backend", data.name):
            backend = await self.assign(backend, fields)
        return backend if models is UNSET else await self._list(backend, models)

    async def set_aside(self, backend_id: int) -> OpenAIBackend:
        """Let no request go to it from now on, until `take_back`. Those under way go on; a second call changes nothing.

        Raises:
            NotFoundError: there is no such backend.
        """
        backend = await self.fetch(backend_id, lock=FOR_CHANGE)
        if backend.set_aside_at is not None:
            return backend
        now = (await self.session.execute(select(func.now()))).scalar_one()
        return await self.assign(backend, {"set_aside_at": now})

    async def take_back(self, backend_id: int) -> OpenAIBackend:
        """Let requests go to it again.

        Raises:
            NotFoundError: there is no such backend.
        """
        return await self.assign(await self.fetch(backend_id, lock=FOR_CHANGE), {"set_aside_at": None})

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

    async def _list(self, backend: OpenAIBackend, models: Sequence[ModelRow] | None) -> OpenAIBackend:
        """Replace the backend's list of models."""
        await self.session.execute(delete(BackendModel).where(BackendModel.backend_id == backend.id))
        if models:
            rows = [
                {
                    "backend_id": backend.id,
                    "position": position,
                    "name": row.name,
                    "backend_model": row.backend_model or row.name,
                    "weight": row.weight,
                    "priority": row.priority,
                }
                for position, row in enumerate(models)
            ]
            await self.session.execute(insert(BackendModel), rows)
        await self.session.refresh(backend, ["model_rows"])
        return backend

    async def reencrypt(self) -> tuple[int, list[str]]:
        """Rewrite every credential, and all headers, with the first key.

        Returns how many of both were rewritten, and the backends of which no key opens one. The rows stay locked until
        the transaction ends, so that no change of a credential is lost.
        """
        columns = [type_coerce(getattr(OpenAIBackend, name), Text) for name in SECRETS]
        rows = await self.session.execute(
            select(OpenAIBackend.id, OpenAIBackend.name, *columns)
            .where(or_(*(column.is_not(None) for column in columns)))
            .order_by(OpenAIBackend.id)
            .with_for_update(key_share=True)
        )
        rewritten, unreadable = 0, list[str]()
        for backend_id, name, *tokens in rows.all():
            stored = {column: token for column, token in zip(SECRETS, tokens, strict=True) if token is not None}
            fresh = {column: key_ring.reencrypt(token) for column, token in stored.items()}
            opened = {column: type_coerce(token, Text) for column, token in fresh.items() if token is not None}
            if len(opened) < len(stored):
                unreadable.append(name)
            if opened:
                await self.session.execute(
                    update(OpenAIBackend)
                    .where(OpenAIBackend.id == backend_id)
                    .values(opened)
                    .execution_options(synchronize_session=False)
                )
            rewritten += len(opened)
        return rewritten, unreadable


class ProfileService(Service[BackendProfile]):
    """Profiles, and the order of their backends."""

    class Repository(SQLAlchemyAsyncRepository[BackendProfile]):
        model_type = BackendProfile

    repository_type = Repository
    noun = "profile"

    async def names(self, ids: Collection[int] | None = None, *, limit: int | None = None) -> dict[int, str]:
        """As `BackendService.names`; at most `limit` of them."""
        return await _names(self.session, BackendProfile, ids, limit)

    async def add(self, data: ProfileCreate) -> BackendProfile:
        """Make a profile.

        Raises:
            InvalidInputError: a backend does not exist, or an expiry is enforced that has no length.
            NameTakenError: another one has this name.
        """
        fields = _profile_fields(data)
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
        fields = _profile_fields(data)
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
        """Delete a profile, with the subjects whose tokens it has taken.

        Raises:
            NotFoundError: there is no such profile.
            InUseError: it has keys, in whatever state.
        """
        profile = await self.fetch(profile_id, lock=FOR_DELETION)
        keys = await self.session.scalar(
            select(func.count())
            .select_from(keys_of_profiles)
            .where(keys_of_profiles.c.profile_id == profile_id, keys_of_profiles.c.issuer.is_(None))
        )
        if keys:
            raise InUseError(f"Profile {profile.name!r} has {_count(keys, 'key')}; delete them first.")
        await self.discard(profile)

    async def key_rules(self, profile_id: int) -> KeyRules:
        """What the profile demands of its keys; no other transaction changes or counts them until this one ends.

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
            open_to_groups=profile.open_to_groups,
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


async def _names(
    session: AsyncSession,
    model: type[OpenAIBackend | BackendProfile],
    ids: Collection[int] | None,
    limit: int | None = None,
) -> dict[int, str]:
    wanted = select(model.id, model.name).order_by(model.name).limit(limit)
    if ids is not None:
        wanted = wanted.where(is_any_of(model.id, ids))
    return {row.id: row.name for row in await session.execute(wanted)}


def _profile_fields(data: ProfileCreate | ProfileUpdate) -> dict[str, Any]:
    """The given fields of a profile as its row has them."""
    fields = data.given()
    if "claim_rules" in fields:
        fields["claim_rules"] = msgspec.to_builtins(fields["claim_rules"])
    return fields


def opened_by(groups: Sequence[str]) -> ColumnElement[bool]:
    """Profiles in which people with one of these groups make keys for themselves."""
    opened: ColumnElement[bool] = BackendProfile.open_to_groups.overlap(groups)
    return opened


def _stored(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a backend as its row has them."""
    return fields | {"headers": encode_headers(fields["headers"] or {})} if "headers" in fields else fields


def _require_secrets(backend: OpenAIBackend, fields: Mapping[str, object]) -> None:
    """Raise InvalidInputError if a secret that was meant for one server would go to another one, or through one."""
    moved = "base_url" in fields and _leads_to(backend.base_url) != _leads_to(str(fields["base_url"]))
    rerouted = fields.get("proxy_url") is not None and fields["proxy_url"] != backend.proxy_url
    if not moved and not rerouted:
        return
    changed = "base_url" if moved else "proxy_url"
    for name in ("api_key", "headers", "client_certificate"):
        if getattr(backend, name) is not None and name not in fields:
            raise InvalidInputError(
                f"{changed} leads to another server, for which the stored {name} may not be meant. "
                f"Nothing was changed; give {name} together with {changed}, or null to forget it.",
                field=name,
            )


def _leads_to(base_url: str) -> object:
    try:
        return address_of(base_url).origin
    except ValueError:  # it was not stored through this API
        return base_url


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
