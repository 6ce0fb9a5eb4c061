"""`/api/me/keys` and `/api/me/profiles`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from advanced_alchemy.filters import StatementFilter
from advanced_alchemy.service import OffsetPagination
from litestar import Controller, Request, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody, SkipValidation
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.access.authentication import identity_of
from gasket.errors import KeyLimitError, KeyStateError, NotFoundError
from gasket.http import problems
from gasket.inputs import list_filters
from gasket.keys.controller import key_issued
from gasket.keys.own import OwnKeyService
from gasket.keys.schemas import KeyIssued, KeyOut, KeyRevoke, KeyRotate, OpenProfile, OwnKeyCreate

OwnKeys = NamedDependency[SkipValidation[OwnKeyService]]


def provide_own_keys(
    request: Request[Any, Any, State], db_session: NamedDependency[SkipValidation[AsyncSession]]
) -> OwnKeyService:
    """Litestar's provider of the service."""
    return OwnKeyService(db_session, identity_of(request))


_DEPENDENCIES = {
    "own_keys": Provide(provide_own_keys, sync_to_thread=False),
    "list_filters": list_filters(
        "id",
        "name",
        "created_at",
        "expires_at",
        "revoked_at",
        search=frozenset({"name", "key_preview"}),
    ),
}


class OwnKeyController(Controller):
    """Keys of who asks: a person who has signed in at the identity provider."""

    path = "/me/keys"
    tags = ("me",)
    dependencies = _DEPENDENCIES

    @get(summary="List own keys", responses=problems())
    async def list_own_keys(
        self, own_keys: OwnKeys, list_filters: NamedDependency[SkipValidation[list[StatementFilter]]]
    ) -> OffsetPagination[KeyOut]:
        """A page of the keys that one has made, or an administrator for one's address."""
        rows, total = await own_keys.get_many_and_count(*list_filters)
        return own_keys.keys.to_schema(rows, total, filters=list_filters, schema_type=KeyOut)

    @post(summary="Make a key of one's own", responses=problems(NotFoundError, KeyLimitError))
    async def issue_own_key(self, own_keys: OwnKeys, data: JSONBody[OwnKeyCreate]) -> KeyIssued:
        """In a profile that one's groups open. The key itself is in this response and nowhere else."""
        return key_issued(*await own_keys.issue(data))

    @get("/{key_id:int}", summary="Show an own key", responses=problems(NotFoundError))
    async def show_own_key(self, own_keys: OwnKeys, key_id: FromPath[int]) -> KeyOut:
        """One key, without the key itself."""
        return own_keys.keys.to_schema(await own_keys.fetch(key_id), schema_type=KeyOut)

    @post("/{key_id:int}/revoke", status_code=200, summary="Revoke an own key", responses=problems(NotFoundError))
    async def revoke_own_key(
        self, own_keys: OwnKeys, key_id: FromPath[int], data: JSONBody[KeyRevoke | None] = None
    ) -> KeyOut:
        """The key is void at once."""
        return own_keys.keys.to_schema(await own_keys.revoke(key_id), schema_type=KeyOut)

    @post(
        "/{key_id:int}/restore",
        status_code=200,
        summary="Restore an own key",
        responses=problems(NotFoundError, KeyStateError, KeyLimitError),
    )
    async def restore_own_key(self, own_keys: OwnKeys, key_id: FromPath[int]) -> KeyOut:
        """Take one's own revocation back, while one's groups open the profile. It counts against the limit again."""
        return own_keys.keys.to_schema(await own_keys.restore(key_id), schema_type=KeyOut)

    @post(
        "/{key_id:int}/rotate",
        status_code=200,
        summary="Rotate an own key",
        responses=problems(NotFoundError, KeyStateError),
    )
    async def rotate_own_key(
        self, own_keys: OwnKeys, key_id: FromPath[int], data: JSONBody[KeyRotate | None] = None
    ) -> KeyIssued:
        """While one's groups open the profile. The old key is void at once, or works for `grace_seconds` more."""
        return key_issued(*await own_keys.rotate(key_id, timedelta(seconds=data.grace_seconds if data else 0)))


@get(
    "/me/profiles",
    summary="List the profiles that are open to me",
    tags=["me"],
    responses=problems(),
    dependencies={
        "own_keys": Provide(provide_own_keys, sync_to_thread=False),
        "list_filters": list_filters("id", "name", search=frozenset({"name", "description"})),
    },
)
async def list_open_profiles(
    own_keys: OwnKeys, list_filters: NamedDependency[SkipValidation[list[StatementFilter]]]
) -> OffsetPagination[OpenProfile]:
    """A page of the profiles in which one may make keys of one's own: a group of the last sign-in opens them."""
    return await own_keys.open_profiles(*list_filters)
