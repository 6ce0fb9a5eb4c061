"""What a key may do, as the gateway keeps it in memory: a few immutable objects, shared between keys."""

from __future__ import annotations

from functools import cached_property

import msgspec

from gasket.limits.subjects import Limits
from gasket.upstream.address import Address, address_of
from gasket.upstream.client import Timeouts
from gasket.upstream.connection import Fields


class Backend(msgspec.Struct, frozen=True, kw_only=True, dict=True, weakref=True):
    """A backend's row. Times are in seconds; the credential shows in no repr."""

    id: int
    name: str
    base_url: str
    credential: str | None
    credential_unreadable: bool
    skip_tls_verify: bool
    max_concurrency: int | None
    connect_timeout: float
    first_byte_timeout: float
    chunk_timeout: float

    def __repr__(self) -> str:
        return f"Backend(id={self.id}, name={self.name!r})"

    @cached_property
    def address(self) -> Address:
        """Where it is."""
        return address_of(self.base_url)

    @cached_property
    def timeouts(self) -> Timeouts:
        """As the client wants them. A whole answer has no limit."""
        return Timeouts(self.connect_timeout, self.first_byte_timeout, self.chunk_timeout)

    @cached_property
    def own_fields(self) -> Fields:
        """What it is sent with every request: its credential, if it has one."""
        return [] if self.credential is None else [(b"authorization", f"Bearer {self.credential}".encode())]


class Profile(msgspec.Struct, frozen=True, kw_only=True, weakref=True):
    """A profile's row with its backends, in order of preference."""

    id: int
    name: str
    allowed_models: frozenset[str]
    """Empty: every model."""
    allow_stateful_endpoints: bool
    limits: Limits
    backends: tuple[Backend, ...]

    def allows(self, model: str) -> bool:
        """Whether a key of this profile may use the model."""
        return not self.allowed_models or model in self.allowed_models


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """A valid key: whose it is, and what it may do. There are many of these: nothing is kept that can be shared."""

    key_id: int
    user_email: str
    profile: Profile
    limits: Limits
    expires_at: float | None
    """By this process's monotonic clock, in seconds; None: never."""

    @property
    def limited(self) -> list[tuple[str, Limits]]:
        """Who has to allow a request, the key, its profile or nobody, with what they allow."""
        both = (("key", self.key_id, self.limits), ("profile", self.profile.id, self.profile.limits))
        return [(f"{kind}:{number}", limits) for kind, number, limits in both if limits.any]
