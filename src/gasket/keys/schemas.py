"""Request and response bodies: API keys."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gasket.errors import InvalidInputError
from gasket.inputs import Input, Moment
from gasket.keys.models import KeyState
from gasket.limits.schemas import RequestsAtOnce, RequestsPerMinute, TokensPerWindow, TokenWindow

KeyName = Annotated[str, Meta(min_length=1, max_length=100, examples=["laptop"])]
# An address of at most 254 characters (RFC 5321, 4.5.3.1.3). Whether it exists is not ours to know.
Email = Annotated[str, Meta(min_length=3, max_length=254, examples=["ada@example.com"])]


class _KeyInput(Input):
    """The rules for a new and for a changed key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = self.given()
        if isinstance(email := fields.get("user_email"), str):
            _check_email(email)
        if isinstance(moment := fields.get("expires_at"), datetime):
            try:
                moment.astimezone(UTC)
            except OverflowError:
                raise InvalidInputError("expires_at is out of range.", field="expires_at") from None


class KeyCreate(_KeyInput):
    """A new key. Without `expires_at` the profile's default_expiry_days decides; null is "never"."""

    user_email: Email
    name: KeyName
    profile_id: int
    expires_at: Moment | UnsetType | None = UNSET
    requests_per_minute: RequestsPerMinute | None = None
    tokens_per_window: TokensPerWindow | None = None
    token_window: TokenWindow = 60
    max_concurrency: RequestsAtOnce | None = None


class KeyUpdate(_KeyInput):
    """Changes of a key: what is not given stays; `expires_at: null` is "never"."""

    name: KeyName | UnsetType = UNSET
    expires_at: Moment | UnsetType | None = UNSET
    requests_per_minute: RequestsPerMinute | UnsetType | None = UNSET
    tokens_per_window: TokensPerWindow | UnsetType | None = UNSET
    token_window: TokenWindow | UnsetType = UNSET
    max_concurrency: RequestsAtOnce | UnsetType | None = UNSET


class OwnKeyCreate(Input):
    """A new key of one's own. Without `expires_at` the profile's default_expiry_days decides; null is "never"."""

    name: KeyName
    profile_id: int
    expires_at: Moment | UnsetType | None = UNSET


class OpenProfile(msgspec.Struct, kw_only=True):
    """A profile in which one may make keys of one's own."""

    id: int
    name: str
    description: str | None
    allowed_models: Annotated[list[str], Meta(description="Empty: every model; `*` at the end: any rest")]
    default_expiry_days: int | None
    enforce_expiry: bool
    max_keys_per_user: Annotated[int | None, Meta(description="Of active keys; null: unlimited")]


class KeyRevoke(Input):
    """Earlier clients say here who revokes the key. It is ignored: the request's token says that."""

    # Litestar's form of `deprecated`: of msgspec's own it takes no notice.
    revoked_by: Annotated[str, Meta(max_length=254, extra_json_schema={"extra": {"deprecated": True}})] | None = None


class KeyRotate(Input):
    """How a key is rotated: the one before works for so many seconds more."""

    grace_seconds: Annotated[
        int, Meta(ge=0, le=2_592_000, description="Seconds; 0: the key before is void at once", examples=[3600])
    ] = 0


class KeyOut(msgspec.Struct, kw_only=True):
    """A key, without the key itself."""

    id: int
    user_email: str
    name: str
    key_preview: Annotated[str, Meta(examples=["gsk_...3f9a"])]
    profile_id: int
    state: KeyState
    expires_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None
    requests_per_minute: Annotated[int | None, Meta(description="Null: unlimited")]
    tokens_per_window: Annotated[int | None, Meta(description="Null: unlimited")]
    token_window: Annotated[int, Meta(description="Seconds")]
    max_concurrency: Annotated[int | None, Meta(description="Requests at once; null: unlimited")]
    issuer: Annotated[
        str | None, Meta(description="Of the signed tokens of `user_email`, for which it stands; null: it is a key")
    ]
    last_used_at: Annotated[datetime | None, Meta(description="Of the last request; it may lag two minutes behind")]
    previous_expires_at: Annotated[
        datetime | None, Meta(description="Until when the key before the last rotation works or has worked; null: none")
    ]
    previous_last_used_at: Annotated[
        datetime | None, Meta(description="Of its last request since the rotation; it may lag two minutes behind")
    ]
    orphaned_at: Annotated[
        datetime | None,
        Meta(
            description="Since when no group of the person who made it for themselves opens its profile; null: one "
            "does, or nobody made it for themselves"
        ),
    ]
    created_at: datetime


class KeyIssued(KeyOut, kw_only=True):
    """A key together with the key itself, which is shown this once."""

    key: Annotated[str, Meta(examples=["gsk_0123456789abcdef0123456789abcdef0123456789abcdef"])]

    def __repr__(self) -> str:
        return f"KeyIssued(id={self.id}, key_preview={self.key_preview!r})"


def _check_email(email: str) -> None:
    local, _, domain = email.rpartition("@")
    plausible = local and domain and "@" not in local and not any(map(str.isspace, email))
    if not plausible or domain.startswith(".") or domain.endswith(".") or any(c in '<>,;:"' for c in email):
        raise InvalidInputError("user_email must be an address such as ada@example.com.", field="user_email")
