"""What the API takes and gives: backends and profiles."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gasket.errors import InvalidInputError
from gasket.inputs import Input
from gasket.limits.schemas import RequestsAtOnce, RequestsPerMinute, TokensPerWindow, TokenWindow
from gasket.upstream.address import address_of

Name = Annotated[str, Meta(min_length=1, max_length=100, examples=["production"])]
BaseUrl = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=2000,
        description="http or https, with a host, without credentials, query or fragment",
        examples=["https://api.openai.com/v1"],
    ),
]
Credential = Annotated[
    str,
    Meta(min_length=1, max_length=4000, description="Sent upstream as a bearer token; write-only", examples=["sk-..."]),
]
Description = Annotated[str, Meta(max_length=2000, examples=["For the data science team"])]
BackendIds = Annotated[list[int], Meta(max_length=100, description="In order of preference", examples=[[1, 2]])]
ModelNames = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=200)]],
    Meta(max_length=1000, description="Empty: every model", examples=[["gpt-5-mini"]]),
]
ExpiryDays = Annotated[int, Meta(ge=1, le=36_500, description="Of keys made without expires_at", examples=[90])]
Concurrency = Annotated[
    int,
    Meta(ge=1, le=100_000, description="Requests at once, of each replica; null: unlimited", examples=[64]),
]
Seconds = Annotated[float, Meta(ge=0.1, le=86_400)]
ConnectTimeout = Annotated[Seconds, Meta(description="Seconds until the connection stands, TLS included", examples=[5])]
FirstByteTimeout = Annotated[Seconds, Meta(description="Seconds until the answer begins", examples=[300])]
ChunkTimeout = Annotated[Seconds, Meta(description="Seconds between two pieces of an answer", examples=[60])]
BackendState = Literal["available", "set_aside", "trying"]
Stateful = Annotated[
    bool,
    Meta(
        description="Whether its keys may use files, batches, stored responses and the like, which all keys of the "
        "upstream's account share"
    ),
]
KeyLimit = Annotated[int, Meta(ge=1, le=1_000_000, description="Of active keys; null: unlimited", examples=[5])]


class _BackendInput(Input):
    """What holds for a backend whether it is made or changed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = self.given()
        if isinstance(url := fields.get("base_url"), str):
            _check_url(url)
        if isinstance(key := fields.get("api_key"), str) and not (key.isascii() and " " not in key):
            raise InvalidInputError("api_key must be of ASCII characters without spaces.", field="api_key")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class BackendCreate(_BackendInput):
    """A new backend."""

    name: Name
    base_url: BaseUrl
    api_key: Credential | None = None
    skip_tls_verify: bool = False
    max_concurrency: Concurrency | None = None
    connect_timeout: ConnectTimeout = 5.0
    first_byte_timeout: FirstByteTimeout = 300.0
    chunk_timeout: ChunkTimeout = 60.0


class BackendUpdate(_BackendInput):
    """Changes of a backend: what is not given stays; `api_key: null` forgets the credential."""

    name: Name | UnsetType = UNSET
    base_url: BaseUrl | UnsetType = UNSET
    api_key: Credential | UnsetType | None = UNSET
    skip_tls_verify: bool | UnsetType = UNSET
    max_concurrency: Concurrency | UnsetType | None = UNSET
    connect_timeout: ConnectTimeout | UnsetType = UNSET
    first_byte_timeout: FirstByteTimeout | UnsetType = UNSET
    chunk_timeout: ChunkTimeout | UnsetType = UNSET


class BackendOut(msgspec.Struct, kw_only=True):
    """A backend. Its credential is never shown, only whether there is one and whether it can be used."""

    id: int
    name: str
    base_url: str
    has_api_key: bool
    credential_unreadable: Annotated[
        bool, Meta(description="No key in GASKET_SECRET_KEY opens the stored credential: set api_key again")
    ]
    skip_tls_verify: bool
    max_concurrency: Annotated[int | None, Meta(description="Requests at once, of each replica; null: unlimited")]
    connect_timeout: Annotated[float, Meta(description="Seconds until the connection stands, TLS included")]
    first_byte_timeout: Annotated[float, Meta(description="Seconds until the answer begins")]
    chunk_timeout: Annotated[float, Meta(description="Seconds between two pieces of an answer")]
    state: Annotated[
        BackendState,
        Meta(
            description="Whether requests go to it, as the replica that answers has it: `set_aside` after failures in "
            "a row, `trying` while one request tries it again"
        ),
    ]
    created_at: datetime


class ProbeOut(msgspec.Struct, kw_only=True):
    """What came of asking a backend for its models."""

    ok: bool
    detail: Annotated[str, Meta(description="One sentence for people: what is wrong, if something is")]
    models: Annotated[list[str], Meta(description="As the backend lists them")]
    status: Annotated[int | None, Meta(description="The HTTP status of its answer; null if there was none")]
    duration_ms: Annotated[int, Meta(description="How long it took, connecting included")]


class _ProfileInput(Input):
    """What holds for a profile whether it is made or changed."""

    multiline: ClassVar[frozenset[str]] = frozenset({"description"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("backends", "allowed_models"):
            values = self.given().get(field, [])
            if repeated := {value for value in values if values.count(value) > 1}:
                raise InvalidInputError(f"{field} names {sorted(repeated)[0]} more than once.", field=field)


class ProfileCreate(_ProfileInput):
    """A new profile."""

    name: Name
    description: Description | None = None
    backends: BackendIds = msgspec.field(default_factory=list)
    allowed_models: ModelNames = msgspec.field(default_factory=list)
    default_expiry_days: ExpiryDays | None = None
    enforce_expiry: bool = False
    max_keys_per_user: KeyLimit | None = None
    requests_per_minute: RequestsPerMinute | None = None
    tokens_per_window: TokensPerWindow | None = None
    token_window: TokenWindow = 60
    max_concurrency: RequestsAtOnce | None = None
    allow_stateful_endpoints: Stateful = False


class ProfileUpdate(_ProfileInput):
    """Changes of a profile: what is not given stays; a list replaces the one before."""

    name: Name | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET
    backends: BackendIds | UnsetType = UNSET
    allowed_models: ModelNames | UnsetType = UNSET
    default_expiry_days: ExpiryDays | UnsetType | None = UNSET
    enforce_expiry: bool | UnsetType = UNSET
    max_keys_per_user: KeyLimit | UnsetType | None = UNSET
    requests_per_minute: RequestsPerMinute | UnsetType | None = UNSET
    tokens_per_window: TokensPerWindow | UnsetType | None = UNSET
    token_window: TokenWindow | UnsetType = UNSET
    max_concurrency: RequestsAtOnce | UnsetType | None = UNSET
    allow_stateful_endpoints: Stateful | UnsetType = UNSET


class ProfileOut(msgspec.Struct, kw_only=True):
    """A profile."""

    id: int
    name: str
    description: str | None
    backends: Annotated[list[int], Meta(description="In order of preference")]
    allowed_models: Annotated[list[str], Meta(description="Empty: every model")]
    default_expiry_days: int | None
    enforce_expiry: bool
    max_keys_per_user: int | None
    requests_per_minute: Annotated[int | None, Meta(description="Null: unlimited")]
    tokens_per_window: Annotated[int | None, Meta(description="Null: unlimited")]
    token_window: Annotated[int, Meta(description="Seconds")]
    max_concurrency: Annotated[int | None, Meta(description="Requests at once; null: unlimited")]
    allow_stateful_endpoints: Stateful
    created_at: datetime


class KeyRules(msgspec.Struct, frozen=True, kw_only=True):
    """What a profile demands of its keys, and the database's time."""

    profile_id: int
    profile_name: str
    default_expiry_days: int | None
    enforce_expiry: bool
    max_keys_per_user: int | None
    now: datetime


def _check_url(url: str) -> None:
    """Raise InvalidInputError unless a backend can have this URL; RFC 3986 says what its parts are."""
    try:
        parts = urlsplit(url)
        complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        address_of(url)
    except ValueError:
        complete = False
    if not complete or any(character.isspace() or character == "\\" for character in url):
        raise InvalidInputError("base_url must be an http or https URL with a host.", field="base_url")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise InvalidInputError(
            "base_url must not have credentials, a query or a fragment; the credential goes into api_key.",
            field="base_url",
        )
