"""`/api/keys`."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from advanced_alchemy.filters import StatementFilter
from advanced_alchemy.service import OffsetPagination
from litestar import Controller, Request, delete, get, patch, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody, QueryParameter, SkipValidation
from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.access.authentication import identity_of
from gasket.backends.service import ProfileService
from gasket.db import MAX_ID
from gasket.errors import KeyLimitError, KeyStateError, NotFoundError
from gasket.http import problems
from gasket.inputs import list_filters
from gasket.keys.models import ApiKey, KeyState
from gasket.keys.schemas import KeyCreate, KeyIssued, KeyOut, KeyRevoke, KeyRotate, KeyUpdate
from gasket.keys.service import KeyService, of_user

Keys = NamedDependency[SkipValidation[KeyService]]


def provide_keys(db_session: NamedDependency[SkipValidation[AsyncSession]]) -> KeyService:
    """Litestar's provider of the service."""
    return KeyService(db_session, profiles=ProfileService(db_session))


def provide_key_filters(
    user: Annotated[str | None, QueryParameter(description="Keys of this address, in whatever case")] = None,
    profile: Annotated[int | None, QueryParameter(ge=1, le=MAX_ID, description="Keys of this profile")] = None,
    state_: Annotated[KeyState | None, QueryParameter(name="state", description="Keys in this state")] = None,
    orphaned: Annotated[
        bool | None,
        QueryParameter(
            description="Whether no group of the person who made the key for themselves opens its profile any more"
        ),
    ] = None,
) -> list[ColumnElement[bool]]:
    """The filters that only keys have."""
    filters: list[ColumnElement[bool]] = []
    if user is not None:
        filters.append(of_user(user))
    if profile is not None:
        filters.append(ApiKey.profile_id == profile)
    if state_ is not None:
        filters.append(ApiKey.state == state_)
    if orphaned is not None:
        filters.append(ApiKey.orphaned_at.is_not(None) if orphaned else ApiKey.orphaned_at.is_(None))
    return filters


_DEPENDENCIES = {
    "keys": Provide(provide_keys, sync_to_thread=False),
    "key_filters": Provide(provide_key_filters, sync_to_thread=False),
    "list_filters": list_filters(
        "id",
        "name",
        "user_email",
        "created_at",
        "expires_at",
        "revoked_at",
        "orphaned_at",
        search=frozenset({"name", "user_email", "key_preview"}),
        more=frozenset({"user", "profile", "state", "orphaned"}),
    ),
}


class KeyController(Controller):
    """Keys of the gateway's users."""

    path = "/keys"
    tags = ("keys",)
    dependencies = _DEPENDENCIES

    @get(summary="List keys", responses=problems())
    async def list_keys(
        self,
        keys: Keys,
        list_filters: NamedDependency[SkipValidation[list[StatementFilter]]],
        key_filters: NamedDependency[SkipValidation[list[ColumnElement[bool]]]],
    ) -> OffsetPagination[KeyOut]:
        """A page of the keys; `searchString` looks into names, addresses and previews."""
        rows, total = await keys.get_many_and_count(*key_filters, *list_filters)
        return keys.to_schema(rows, total, filters=list_filters, schema_type=KeyOut)

    @post(summary="Issue a key", responses=problems(NotFoundError, KeyLimitError))
    async def issue_key(self, keys: Keys, data: JSONBody[KeyCreate]) -> KeyIssued:
        """The key itself is in this response and nowhere else."""
        return key_issued(*await keys.issue(data))

    @get("/{key_id:int}", summary="Show a key", responses=problems(NotFoundError))
    async def show_key(self, keys: Keys, key_id: FromPath[int]) -> KeyOut:
        """One key, without the key itself."""
        return keys.to_schema(await keys.fetch(key_id), schema_type=KeyOut)

    @patch("/{key_id:int}", summary="Change a key", responses=problems(NotFoundError, KeyLimitError))
    async def change_key(self, keys: Keys, key_id: FromPath[int], data: JSONBody[KeyUpdate]) -> KeyOut:
        """Fields that are not given keep their value. A later expiry revives an expired key, if the limit has room."""
        return keys.to_schema(await keys.change(key_id, data), schema_type=KeyOut)

    @delete("/{key_id:int}", summary="Delete a key", responses=problems(NotFoundError))
    async def delete_key(self, keys: Keys, key_id: FromPath[int]) -> None:
        """The key is void at once, and nothing of it remains; revoke it to keep the record."""
        await keys.remove(key_id)

    @post("/{key_id:int}/revoke", status_code=200, summary="Revoke a key", responses=problems(NotFoundError))
    async def revoke_key(
        self,
        request: Request[Any, Any, State],
        keys: Keys,
        key_id: FromPath[int],
        data: JSONBody[KeyRevoke | None] = None,
    ) -> KeyOut:
        """The key is void at once. `revoked_by` is whose token the request bears; of several calls the first is kept on
        record."""
        return keys.to_schema(await keys.revoke(key_id, identity_of(request).name), schema_type=KeyOut)

    @post(
        "/{key_id:int}/restore",
        status_code=200,
        summary="Restore a key",
        responses=problems(NotFoundError, KeyStateError, KeyLimitError),
    )
    async def restore_key(self, keys: Keys, key_id: FromPath[int]) -> KeyOut:
        """Take a revocation back, unless the key has expired; it counts against the limit again."""
        return keys.to_schema(await keys.restore(key_id), schema_type=KeyOut)

    @post(
        "/{key_id:int}/rotate",
        status_code=200,
        summary="Rotate a key",
        responses=problems(NotFoundError, KeyStateError),
    )
    async def rotate_key(self, keys: Keys, key_id: FromPath[int], data: JSONBody[KeyRotate | None] = None) -> KeyIssued:
        """The new key is in this response and nowhere else. The old key is void at once, or works for `grace_seconds`
        more; a second rotation ends it before."""
        return key_issued(*await keys.rotate(key_id, timedelta(seconds=data.grace_seconds if data else 0)))


def key_issued(row: ApiKey, key: str) -> KeyIssued:
    """The answer that has the key itself."""
    return KeyIssued(key=key, **{field: getattr(row, field) for field in KeyOut.__struct_fields__})
