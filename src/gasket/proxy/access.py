"""The rights of a key, as the gateway keeps them in memory: a few immutable objects, shared between keys."""

from __future__ import annotations

import re
from functools import cached_property

import msgspec

from gasket.backends.headers import decode_headers, request_fields
from gasket.backends.probe import ModelSource
from gasket.limits.subjects import NO_LIMITS, Limits
from gasket.upstream.address import Address, address_of
from gasket.upstream.client import Timeouts
from gasket.upstream.connection import Fields
from gasket.upstream.routes import Route, route_of

# What may stand in place of the `*`: a list, a path or an escape could name a second model there, or another one.
_REST = r"(?!(?<=\.)\.|(?<=/)/)(?!.*(?:\.\.|//))[A-Za-z0-9._:/@+=-]*"


class ServedModel(msgspec.Struct, frozen=True, array_like=True):
    """A row of a backend's models. Without a weight it keeps its place in the order."""

    name: str
    backend_model: str
    weight: int | None
    priority: int


class Backend(msgspec.Struct, frozen=True, kw_only=True, dict=True, weakref=True):
    """A backend's row. Times are in seconds; the credential shows in no repr."""

    id: int
    name: str
    base_url: str
    credential: str | None
    credential_header: str
    credential_scheme: str
    headers: str | None
    """As `encode_headers` makes them."""
    credential_unreadable: bool
    response_headers: tuple[bytes, ...]
    """Names in lower case: what passes to clients beside the usual ones."""
    skip_tls_verify: bool
    proxy_url: str | None
    client_certificate: str | None
    max_concurrency: int | None
    connect_timeout: float
    first_byte_timeout: float
    chunk_timeout: float
    set_aside: bool = False
    """By an operator: it gets no requests."""
    models: tuple[ServedModel, ...] = ()
    """The only models that it serves; empty: it is asked."""

    def __repr__(self) -> str:
        return f"Backend(id={self.id}, name={self.name!r})"

    @cached_property
    def address(self) -> Address:
        """Where it is."""
        return address_of(self.base_url)

    @cached_property
    def timeouts(self) -> Timeouts:
        """In the form of the upstream client. A whole answer has no limit."""
        return Timeouts(self.connect_timeout, self.first_byte_timeout, self.chunk_timeout)

    @cached_property
    def route(self) -> Route:
        """How it is connected to."""
        return route_of(self.skip_tls_verify, self.proxy_url, self.client_certificate)

    @cached_property
    def served(self) -> dict[str, list[ServedModel]]:
        """Its models by the names that clients know."""
        served: dict[str, list[ServedModel]] = {}
        for row in self.models:
            served.setdefault(row.name, []).append(row)
        return served

    @cached_property
    def own_fields(self) -> Fields:
        """The header fields of every request to it: its credential, if it has one, and its own headers."""
        headers = decode_headers(self.headers)
        return request_fields(self.credential, self.credential_header, self.credential_scheme, headers)

    @cached_property
    def _replaced(self) -> frozenset[bytes]:
        """The client's fields that it is not sent. Authorization is none of them: no client's ever gets here."""
        return frozenset(name for name, _ in self.own_fields) - {b"authorization"}

    def fields_with(self, fields: Fields) -> Fields:
        """The header fields of a request to it, with the client's."""
        if self._replaced:
            fields = [field for field in fields if field[0] not in self._replaced]
        return fields + self.own_fields

    @cached_property
    def model_source(self) -> ModelSource:
        """As its models are asked for."""
        return ModelSource(
            base_url=self.base_url,
            fields=self.own_fields,
            has_credential=bool(self.credential),
            connect_timeout=self.connect_timeout,
            route=self.route,
        )


class Profile(msgspec.Struct, frozen=True, kw_only=True, dict=True, weakref=True):
    """A profile's row with its backends, in order of preference."""

    id: int
    name: str
    allowed_models: frozenset[str]
    """Names, and beginnings of names that end in `*`. Empty: every model."""
    allow_stateful_endpoints: bool
    limits: Limits
    backends: tuple[Backend, ...]
    routing: str = "ordered"
    user_header: bytes | None = None
    """The header that names the end user, in lower case."""

    def allows(self, model: str) -> bool:
        """Whether a key of this profile may use the model."""
        if not self.allowed_models or model in self.allowed_models:
            return True
        return self._beginnings is not None and self._beginnings.fullmatch(model) is not None

    @cached_property
    def backends_in_use(self) -> tuple[Backend, ...]:
        """Those that no operator has set aside."""
        return tuple(backend for backend in self.backends if not backend.set_aside)

    @cached_property
    def restricts_models(self) -> bool:
        """Whether it matters which model a request names: for the profile, or for a backend that has rows."""
        return bool(self.allowed_models) or any(backend.models for backend in self.backends)

    @cached_property
    def _beginnings(self) -> re.Pattern[str] | None:
        """One pattern for all of them; None if there are none."""
        beginnings = sorted(re.escape(name[:-1]) for name in self.allowed_models if name.endswith("*"))
        return re.compile(f"(?:{'|'.join(beginnings)}){_REST}") if beginnings else None


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """A valid key: whose it is, and what it may do. There are many of these: nothing is kept that can be shared."""

    key_id: int
    user_email: str
    profile: Profile
    limits: Limits
    expires_at: float | None
    """By this process's monotonic clock, in seconds; None: never."""
    previous_digest: str | None = None
    """Hex SHA-256 of the key, if a rotation has replaced it."""
    subject_digest: str | None = None
    """Of a signed token: what its subject's row has as the digest of its key."""

    @property
    def limited(self) -> list[tuple[str, Limits]]:
        """The key and the profile, as far as they have limits, each with its limits."""
        if self.limits is NO_LIMITS and self.profile.limits is NO_LIMITS:
            return []  # of most requests
        both = (("key", self.key_id, self.limits), ("profile", self.profile.id, self.profile.limits))
        return [(f"{kind}:{number}", limits) for kind, number, limits in both if limits.any]
