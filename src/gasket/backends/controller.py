"""`/api/backends` and `/api/profiles`."""

from __future__ import annotations

from advanced_alchemy.filters import StatementFilter
from advanced_alchemy.service import OffsetPagination
from litestar import Controller, delete, get, patch, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody, SkipValidation
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.backends.breaker import Breakers
from gasket.backends.models import OpenAIBackend
from gasket.backends.probe import probe
from gasket.backends.schemas import (
    BackendCreate,
    BackendOut,
    BackendUpdate,
    ProbeOut,
    ProfileCreate,
    ProfileOut,
    ProfileUpdate,
)
from gasket.backends.service import BackendService, ProfileService
from gasket.db import Transactions
from gasket.errors import InUseError, NameTakenError, NotFoundError
from gasket.http import problems
from gasket.inputs import list_filters
from gasket.upstream.client import UpstreamClient

Filters = NamedDependency[SkipValidation[list[StatementFilter]]]
Backends = NamedDependency[SkipValidation[BackendService]]
Profiles = NamedDependency[SkipValidation[ProfileService]]
States = NamedDependency[SkipValidation[Breakers]]
_SEEN = frozenset({"state", "state_since", "models_set_aside"})
"""What the replica has seen of a backend; the rest of `BackendOut` is stored."""


def provide_backends(db_session: NamedDependency[SkipValidation[AsyncSession]]) -> BackendService:
    """Litestar's provider of the service."""
    return BackendService(db_session)


def provide_profiles(db_session: NamedDependency[SkipValidation[AsyncSession]]) -> ProfileService:
    """Litestar's provider of the service."""
    return ProfileService(db_session)


_BACKEND_DEPENDENCIES = {
    "backends": Provide(provide_backends, sync_to_thread=False),
    "list_filters": list_filters("id", "name", "base_url", "created_at", search=frozenset({"name", "base_url"})),
}
_PROFILE_DEPENDENCIES = {
    "profiles": Provide(provide_profiles, sync_to_thread=False),
    "list_filters": list_filters("id", "name", "created_at", search=frozenset({"name", "description"})),
}


class BackendController(Controller):
    """Servers that speak the OpenAI API."""

    path = "/backends"
    tags = ("backends",)
    dependencies = _BACKEND_DEPENDENCIES

    @get(summary="List backends", responses=problems())
    async def list_backends(
        self, backends: Backends, breakers: States, list_filters: Filters
    ) -> OffsetPagination[BackendOut]:
        """A page of the backends; `searchString` looks into names and URLs."""
        rows, total = await backends.get_many_and_count(*list_filters)
        page = backends.to_schema(rows, total, filters=list_filters)
        items = [show_backend(row, breakers) for row in page.items]
        return OffsetPagination(items=items, limit=page.limit, offset=page.offset, total=page.total)

    @post(summary="Add a backend", responses=problems(NameTakenError))
    async def add_backend(self, backends: Backends, breakers: States, data: JSONBody[BackendCreate]) -> BackendOut:
        """The credential is stored encrypted and never shown again."""
        return show_backend(await backends.add(data), breakers)

    @get("/{backend_id:int}", summary="Show a backend", responses=problems(NotFoundError))
    async def get_backend(self, backends: Backends, breakers: States, backend_id: FromPath[int]) -> BackendOut:
        """One backend."""
        return show_backend(await backends.fetch(backend_id), breakers)

    @patch("/{backend_id:int}", summary="Change a backend", responses=problems(NotFoundError, NameTakenError))
    async def change_backend(
        self, backends: Backends, breakers: States, backend_id: FromPath[int], data: JSONBody[BackendUpdate]
    ) -> BackendOut:
        """Fields that are not given keep their value; `api_key: null` deletes the credential."""
        return show_backend(await backends.change(backend_id, data), breakers)

    @delete("/{backend_id:int}", summary="Delete a backend", responses=problems(NotFoundError, InUseError))
    async def delete_backend(self, backends: Backends, breakers: States, backend_id: FromPath[int]) -> None:
        """Only a backend that is in no profile can be deleted."""
        await backends.remove(backend_id)
        breakers.forget(backend_id)

    @post(
        "/{backend_id:int}/set-aside", status_code=200, summary="Set a backend aside", responses=problems(NotFoundError)
    )
    async def set_backend_aside(self, backends: Backends, breakers: States, backend_id: FromPath[int]) -> BackendOut:
        """No replica sends it requests any more, within seconds. Those under way go on."""
        return show_backend(await backends.set_aside(backend_id), breakers)

    @post(
        "/{backend_id:int}/take-back", status_code=200, summary="Take a backend back", responses=problems(NotFoundError)
    )
    async def take_backend_back(self, backends: Backends, breakers: States, backend_id: FromPath[int]) -> BackendOut:
        """Requests go to it again."""
        return show_backend(await backends.take_back(backend_id), breakers)

    @post("/{backend_id:int}/test", status_code=200, summary="Test a backend", responses=problems(NotFoundError))
    async def test_backend(
        self,
        transaction: NamedDependency[SkipValidation[Transactions]],
        upstream: NamedDependency[SkipValidation[UpstreamClient]],
        backend_id: FromPath[int],
    ) -> ProbeOut:
        """Connect to the backend, with its credential, and list its models; what is wrong is said in words."""
        async with transaction() as session:
            backend = await BackendService(session).fetch(backend_id)
        return await probe(backend, upstream)


def show_backend(backend: OpenAIBackend, breakers: Breakers) -> BackendOut:
    """A backend as the API shows it, with what this replica has seen of it."""
    stored = {name: getattr(backend, name) for name in BackendOut.__struct_fields__ if name not in _SEEN}
    by_operator = backend.set_aside_at is not None
    return BackendOut(
        state="set_aside" if by_operator else breakers.state(backend.id),
        state_since=backend.set_aside_at if by_operator else breakers.since(backend.id),
        models_set_aside=breakers.models_set_aside(backend.id),
        **stored,
    )


class ProfileController(Controller):
    """Profiles: what their keys may use."""

    path = "/profiles"
    tags = ("profiles",)
    dependencies = _PROFILE_DEPENDENCIES

    @get(summary="List profiles", responses=problems())
    async def list_profiles(self, profiles: Profiles, list_filters: Filters) -> OffsetPagination[ProfileOut]:
        """A page of the profiles; `searchString` looks into names and descriptions."""
        rows, total = await profiles.get_many_and_count(*list_filters)
        return profiles.to_schema(rows, total, filters=list_filters, schema_type=ProfileOut)

    @post(summary="Add a profile", responses=problems(NameTakenError))
    async def add_profile(self, profiles: Profiles, data: JSONBody[ProfileCreate]) -> ProfileOut:
        """Only the name has to be given. `backends` are ids in order of preference."""
        return profiles.to_schema(await profiles.add(data), schema_type=ProfileOut)

    @get("/{profile_id:int}", summary="Show a profile", responses=problems(NotFoundError))
    async def show_profile(self, profiles: Profiles, profile_id: FromPath[int]) -> ProfileOut:
        """One profile."""
        return profiles.to_schema(await profiles.fetch(profile_id), schema_type=ProfileOut)

    @patch("/{profile_id:int}", summary="Change a profile", responses=problems(NotFoundError, NameTakenError))
    async def change_profile(
        self, profiles: Profiles, profile_id: FromPath[int], data: JSONBody[ProfileUpdate]
    ) -> ProfileOut:
        """Fields that are not given keep their value; a list replaces the old one. Existing keys keep their expiry."""
        return profiles.to_schema(await profiles.change(profile_id, data), schema_type=ProfileOut)

    @delete("/{profile_id:int}", summary="Delete a profile", responses=problems(NotFoundError, InUseError))
    async def delete_profile(self, profiles: Profiles, profile_id: FromPath[int]) -> None:
        """Only a profile that has no keys can be deleted."""
        await profiles.remove(profile_id)
