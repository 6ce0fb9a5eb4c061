"""Request and response bodies: backends and profiles."""

from __future__ import annotations

import ssl
from collections.abc import Collection
from datetime import datetime
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gasket.backends.base_urls import without_endpoint
from gasket.backends.headers import check_headers, check_name, check_response_headers
from gasket.errors import InvalidInputError
from gasket.inputs import Input
from gasket.issuers import parse_issuer
from gasket.limits.schemas import RequestsAtOnce, RequestsPerMinute, TokensPerWindow, TokenWindow
from gasket.upstream.address import address_of
from gasket.upstream.routes import Route, proxy_of, tls_context

Name = Annotated[str, Meta(min_length=1, max_length=100, examples=["production"])]
BaseUrl = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=2000,
        description="What stands before `/chat/completions`: http or https, with a host, without credentials or "
        "fragment. A query in it is sent with every request",
        examples=["https://api.openai.com/v1"],
    ),
]
Credential = Annotated[
    str,
    Meta(min_length=1, max_length=4000, description="Sent in `credential_header`; write-only", examples=["sk-..."]),
]
CredentialHeader = Annotated[str, Meta(description="The header that has the credential", examples=["api-key"])]
CredentialScheme = Annotated[
    str,
    Meta(
        pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{0,50}$",
        description="Stands before the credential, with a space; empty: nothing does",
        examples=["Bearer", ""],
    ),
]
Headers = Annotated[
    dict[str, str],
    Meta(
        max_length=50,
        description="Sent with every request, in place of the client's headers of these names; the values are "
        "write-only. A map replaces the old one",
        examples=[{"anthropic-version": "2023-06-01"}],
    ),
]
ProxyUrl = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=2000,
        description="An HTTP proxy, with credentials if it wants any; they are never shown",
        examples=["http://user:password@proxy.example:3128"],
    ),
]
ClientCertificate = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=100_000,
        description="PEM: the certificate, its chain, and its key without a passphrase; write-only",
        examples=["-----BEGIN CERTIFICATE-----\n..."],
    ),
]
ResponseHeaders = Annotated[
    list[str],
    Meta(
        max_length=50,
        description="Names of the backend's headers that pass to clients, beside the usual ones",
        examples=[["x-served-by"]],
    ),
]
Description = Annotated[str, Meta(max_length=2000, examples=["For the data science team"])]
BackendIds = Annotated[list[int], Meta(max_length=100, description="In order of preference", examples=[[1, 2]])]
ModelNames = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=200)]],
    Meta(
        max_length=1000,
        description="Names of models; `*` at the end of one stands for any rest. Empty: every model",
        examples=[["gpt-5-mini", "llama*"]],
    ),
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
ModelName = Annotated[str, Meta(min_length=1, max_length=200, examples=["gpt-5-mini"])]
Weight = Annotated[int, Meta(ge=1, le=1_000_000, examples=[95])]
Priority = Annotated[int, Meta(ge=0, le=1000, description="A lower one is asked first")]
Routing = Literal["ordered", "weighted", "least_busy", "sticky"]
HowToRoute = Annotated[
    Routing,
    Meta(
        description="Which backend is asked first: in the profile's order; by weight; the one with the fewest requests "
        "at the moment; or the same one for the same end user or conversation",
        examples=["weighted"],
    ),
]
UserHeader = Annotated[
    str,
    Meta(
        max_length=100,
        pattern="^[A-Za-z0-9-]+$",
        description="The header that names the end user, who is kept in usage records; never sent to backends",
        examples=["x-end-user"],
    ),
]
_NOT_ABOUT_USERS = frozenset(
    {
        "accept",
        "api-key",
        "authorization",
        "connection",
        "cookie",
        "host",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "x-api-key",
        "x-goog-api-key",
        "x-request-id",
    }
)
"""Headers that bear secrets, or are about the request."""
BackendState = Literal["available", "set_aside", "trying"]
Stateful = Annotated[
    bool,
    Meta(
        description="Whether its keys may use files, batches, stored responses and the like, which all keys of the "
        "upstream's account share"
    ),
]
KeyLimit = Annotated[int, Meta(ge=1, le=1_000_000, description="Of active keys; null: unlimited", examples=[5])]
OpenToGroups = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=254)]],
    Meta(
        min_length=1,
        max_length=100,
        description="Groups of the identity provider whose people make keys for themselves; null: nobody does",
        examples=[["data-science"]],
    ),
]


class ModelRow(Input):
    """A model that a backend serves. Several rows may have one name."""

    name: Annotated[ModelName, Meta(description="What clients ask for")]
    backend_model: Annotated[ModelName, Meta(description="What the backend calls it; null: the same")] | None = None
    weight: Annotated[Weight, Meta(description="Share of the requests of this priority")] | None = None
    priority: Priority = 0


ModelRows = Annotated[
    list[ModelRow],
    Meta(
        min_length=1,
        max_length=1000,
        description="The only models that it serves; null: the backend is asked",
        examples=[[{"name": "small", "backend_model": "gpt-5-mini", "weight": 95}]],
    ),
]


class _BackendInput(Input):
    """The rules for a new and for a changed backend."""

    multiline: ClassVar[frozenset[str]] = frozenset({"client_certificate"})

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = self.given()
        if isinstance(url := fields.get("base_url"), str):
            _check_url(url)
        if isinstance(key := fields.get("api_key"), str) and not (key.isascii() and " " not in key):
            raise InvalidInputError("api_key must be of ASCII characters without spaces.", field="api_key")
        if "credential_header" in fields:
            check_name(fields["credential_header"], "credential_header")
        check_headers(fields.get("headers") or {})
        _check_route(fields.get("proxy_url"), fields.get("client_certificate"))
        check_response_headers(fields.get("response_headers", []))
        rows = [(row.name, row.backend_model or row.name) for row in fields.get("models") or []]
        if len(set(rows)) < len(rows):
            raise InvalidInputError("models has two rows with the same name and backend_model.", field="models")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class BackendCreate(_BackendInput):
    """A new backend."""

    name: Name
    base_url: BaseUrl
    api_key: Credential | None = None
    credential_header: CredentialHeader = "Authorization"
    credential_scheme: CredentialScheme = "Bearer"
    headers: Headers | None = None
    proxy_url: ProxyUrl | None = None
    client_certificate: ClientCertificate | None = None
    response_headers: ResponseHeaders = msgspec.field(default_factory=list)
    skip_tls_verify: bool = False
    max_concurrency: Concurrency | None = None
    connect_timeout: ConnectTimeout = 5.0
    first_byte_timeout: FirstByteTimeout = 600.0
    chunk_timeout: ChunkTimeout = 300.0
    models: ModelRows | None = None


class BackendUpdate(_BackendInput):
    """Changes of a backend: what is not given stays; `api_key: null` forgets the credential.

    Another scheme, host or port in `base_url`, and another proxy, want the credential, the headers and the certificate
    again.
    """

    name: Name | UnsetType = UNSET
    base_url: BaseUrl | UnsetType = UNSET
    api_key: Credential | UnsetType | None = UNSET
    credential_header: CredentialHeader | UnsetType = UNSET
    credential_scheme: CredentialScheme | UnsetType = UNSET
    headers: Headers | UnsetType | None = UNSET
    proxy_url: ProxyUrl | UnsetType | None = UNSET
    client_certificate: ClientCertificate | UnsetType | None = UNSET
    response_headers: ResponseHeaders | UnsetType = UNSET
    skip_tls_verify: bool | UnsetType = UNSET
    max_concurrency: Concurrency | UnsetType | None = UNSET
    connect_timeout: ConnectTimeout | UnsetType = UNSET
    first_byte_timeout: FirstByteTimeout | UnsetType = UNSET
    chunk_timeout: ChunkTimeout | UnsetType = UNSET
    models: ModelRows | UnsetType | None = UNSET


class BackendOut(msgspec.Struct, kw_only=True):
    """A backend. Its credential is never shown, only whether there is one and whether it can be used."""

    id: int
    name: str
    base_url: str
    has_api_key: bool
    credential_unreadable: Annotated[
        bool,
        Meta(description="No key in GASKET_SECRET_KEY opens what is stored: set api_key, and headers, again"),
    ]
    credential_header: str
    credential_scheme: str
    header_names: Annotated[list[str], Meta(description="Of `headers`, whose values are never shown")]
    proxy: Annotated[str | None, Meta(description="Of `proxy_url`, without its credentials")]
    has_client_certificate: bool
    response_headers: list[str]
    skip_tls_verify: bool
    max_concurrency: Annotated[int | None, Meta(description="Requests at once, of each replica; null: unlimited")]
    connect_timeout: Annotated[float, Meta(description="Seconds until the connection stands, TLS included")]
    first_byte_timeout: Annotated[float, Meta(description="Seconds until the answer begins")]
    chunk_timeout: Annotated[float, Meta(description="Seconds between two pieces of an answer")]
    models: Annotated[list[ModelRow] | None, Meta(description="The only ones that it serves; null: it is asked")]
    state: Annotated[
        BackendState,
        Meta(
            description="Whether requests go to it, as the replica that answers has it: `set_aside` by an operator or "
            "after failures in a row, `trying` while one request tries it again"
        ),
    ]
    state_since: Annotated[
        datetime | None, Meta(description="Since when it is in this state; null: since the replica started")
    ]
    set_aside_at: Annotated[
        datetime | None, Meta(description="When an operator has set it aside, for every replica; null: nobody has")
    ]
    models_set_aside: Annotated[
        list[str], Meta(description="Models of it that keep failing; requests for its other models go to it")
    ]
    created_at: datetime


class ProbeOut(msgspec.Struct, kw_only=True):
    """The result of asking a backend for its models."""

    ok: bool
    detail: Annotated[str, Meta(description="One sentence for people: what is wrong, if something is")]
    models: Annotated[list[str], Meta(description="As the backend lists them")]
    status: Annotated[int | None, Meta(description="The HTTP status of its answer; null if there was none")]
    base_url: Annotated[str | None, Meta(description="The base URL that works, where it is another one")]
    duration_ms: Annotated[int, Meta(description="How long it took, connecting included")]


class ClaimRule(Input):
    """A claim that a token of this issuer must have."""

    issuer: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=500,
            description="As the token has it in `iss`",
            examples=["https://token.actions.githubusercontent.com"],
        ),
    ]
    claim: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=200,
            pattern=r"^\S+$",
            description="Its name; a JSON Pointer, which begins with `/`, for one inside of another",
            examples=["repository", "/kubernetes.io/serviceaccount/name"],
        ),
    ]
    pattern: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=500,
            description="The whole value; `*` stands for any text. Of a list one value has to be it",
            examples=["acme/robot", "acme/*"],
        ),
    ]

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            parse_issuer(self.issuer)
        except ValueError as error:
            raise InvalidInputError(f"The issuer of a rule {error}.", field="claim_rules") from None


ClaimRules = Annotated[
    list[ClaimRule],
    Meta(
        max_length=100,
        description="Whose signed tokens (JWT) the profile takes in place of a key: a token to which all rules of its "
        "issuer apply. Without a rule for an issuer it takes none of its tokens",
        examples=[
            [
                {
                    "issuer": "https://token.actions.githubusercontent.com",
                    "claim": "repository",
                    "pattern": "acme/robot",
                }
            ]
        ],
    ),
]


class _ProfileInput(Input):
    """The rules for a new and for a changed profile."""

    multiline: ClassVar[frozenset[str]] = frozenset({"description"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("backends", "allowed_models", "open_to_groups"):
            values = self.given().get(field) or []
            if repeated := {value for value in values if values.count(value) > 1}:
                raise InvalidInputError(f"{field} names {sorted(repeated)[0]} more than once.", field=field)
        if any("*" in name[:-1] for name in self.given().get("allowed_models", [])):
            raise InvalidInputError("allowed_models may have a `*` at the end of a name only.", field="allowed_models")
        header = self.given().get("user_header")
        if header and (header.lower() in _NOT_ABOUT_USERS or header.lower().startswith("content-")):
            raise InvalidInputError("user_header names a header that is not about users.", field="user_header")


class ProfileCreate(_ProfileInput):
    """A new profile."""

    name: Name
    description: Description | None = None
    backends: BackendIds = msgspec.field(default_factory=list)
    allowed_models: ModelNames = msgspec.field(default_factory=list)
    default_expiry_days: ExpiryDays | None = None
    enforce_expiry: bool = False
    max_keys_per_user: KeyLimit | None = None
    open_to_groups: OpenToGroups | None = None
    requests_per_minute: RequestsPerMinute | None = None
    tokens_per_window: TokensPerWindow | None = None
    token_window: TokenWindow = 60
    max_concurrency: RequestsAtOnce | None = None
    allow_stateful_endpoints: Stateful = False
    routing: HowToRoute = "ordered"
    user_header: UserHeader | None = None
    claim_rules: ClaimRules = msgspec.field(default_factory=list)


class ProfileUpdate(_ProfileInput):
    """Changes of a profile: what is not given stays; a list replaces the one before."""

    name: Name | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET
    backends: BackendIds | UnsetType = UNSET
    allowed_models: ModelNames | UnsetType = UNSET
    default_expiry_days: ExpiryDays | UnsetType | None = UNSET
    enforce_expiry: bool | UnsetType = UNSET
    max_keys_per_user: KeyLimit | UnsetType | None = UNSET
    open_to_groups: OpenToGroups | UnsetType | None = UNSET
    requests_per_minute: RequestsPerMinute | UnsetType | None = UNSET
    tokens_per_window: TokensPerWindow | UnsetType | None = UNSET
    token_window: TokenWindow | UnsetType = UNSET
    max_concurrency: RequestsAtOnce | UnsetType | None = UNSET
    allow_stateful_endpoints: Stateful | UnsetType = UNSET
    routing: HowToRoute | UnsetType = UNSET
    user_header: UserHeader | UnsetType | None = UNSET
    claim_rules: ClaimRules | UnsetType = UNSET


class ProfileOut(msgspec.Struct, kw_only=True):
    """A profile."""

    id: int
    name: str
    description: str | None
    backends: Annotated[list[int], Meta(description="In order of preference")]
    allowed_models: Annotated[list[str], Meta(description="Empty: every model; `*` at the end: any rest")]
    default_expiry_days: int | None
    enforce_expiry: bool
    max_keys_per_user: int | None
    open_to_groups: Annotated[
        list[str] | None, Meta(description="Whose people make keys for themselves; null: nobody does")
    ]
    requests_per_minute: Annotated[int | None, Meta(description="Null: unlimited")]
    tokens_per_window: Annotated[int | None, Meta(description="Null: unlimited")]
    token_window: Annotated[int, Meta(description="Seconds")]
    max_concurrency: Annotated[int | None, Meta(description="Requests at once; null: unlimited")]
    allow_stateful_endpoints: Stateful
    routing: HowToRoute
    user_header: Annotated[str | None, Meta(description="The header that names the end user; null: none")]
    claim_rules: ClaimRules
    created_at: datetime


class KeyRules(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of a profile for its keys, and the database's time."""

    profile_id: int
    profile_name: str
    default_expiry_days: int | None
    enforce_expiry: bool
    max_keys_per_user: int | None
    open_to_groups: list[str] | None
    now: datetime

    def opens_to(self, groups: Collection[str]) -> bool:
        """Whether somebody with these groups makes keys here."""
        return not frozenset(self.open_to_groups or ()).isdisjoint(groups)


def _check_route(proxy_url: str | None, client_certificate: str | None) -> None:
    """Raise InvalidInputError unless a backend can be connected to in this way."""
    if proxy_url is not None:
        try:
            proxy_of(proxy_url)
        except ValueError:
            raise InvalidInputError(
                "proxy_url must be an http URL with a host, and nothing behind its port.", field="proxy_url"
            ) from None
    if client_certificate is not None:
        try:
            tls_context(Route(client_certificate=client_certificate))
        except (ssl.SSLError, ValueError):
            raise InvalidInputError(
                "client_certificate must be PEM, with a certificate and its key, which has no passphrase.",
                field="client_certificate",
            ) from None


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
    if "@" in parts.netloc or "#" in url:
        raise InvalidInputError(
            "base_url must not have credentials or a fragment; the credential goes into api_key.", field="base_url"
        )
    if without_endpoint(parts.path) != parts.path.rstrip("/"):
        raise InvalidInputError(
            "base_url must end before /chat/completions or another endpoint; leave that off.", field="base_url"
        )
