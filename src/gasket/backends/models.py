"""Backends, profiles, and the encryption of the credentials that backends ask for."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from advanced_alchemy.types import EncryptedText
from advanced_alchemy.types.encrypted_string import EncryptionBackend
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from gasket.backends.headers import decode_headers
from gasket.backends.schemas import ModelRow, Routing
from gasket.db import Base, Entity
from gasket.upstream.routes import proxy_of


class KeyRing:
    """The Fernet keys of this process: the first encrypts, all decrypt. Shows none of them in its repr."""

    def __init__(self) -> None:
        self._fernet: MultiFernet | None = None
        self._signing: tuple[bytes, ...] = ()

    def load(self, keys: Sequence[str]) -> None:
        """Take these keys in place of those before; none means that nothing is encrypted or opened."""
        self._fernet = MultiFernet([Fernet(key) for key in keys]) if keys else None
        self._signing = tuple(urlsafe_b64decode(key) for key in keys)

    @property
    def loaded(self) -> bool:
        """Whether there are keys at all."""
        return self._fernet is not None

    def encrypt(self, secret: str) -> str:
        """A Fernet token made with the first key."""
        if self._fernet is None:
            raise RuntimeError("the key ring is empty: GASKET_SECRET_KEY was not loaded")
        return self._fernet.encrypt(secret.encode()).decode()

    def decrypt(self, token: str) -> str | None:
        """The secret, or None when no key opens the token."""
        try:
            return self._fernet.decrypt(token.encode()).decode() if self._fernet else None
        except InvalidToken:
            return None

    def sign(self, text: str) -> list[str]:
        """Hex HMAC-SHA-256 under each key, the first key's first; none where the ring is empty."""
        return [hmac.digest(key, text.encode(), "sha256").hex() for key in self._signing]

    def reencrypt(self, token: str) -> str | None:
        """The same secret under the first key, or None when no key opens the token."""
        secret = self.decrypt(token)
        return None if secret is None else self.encrypt(secret)


key_ring = KeyRing()
"""Loaded once, by `create_app`. One ring for the process, as its environment is one."""


class Unreadable(str):
    """Stands in the model for a credential that no key opens; empty, so that it can never be sent."""

    __slots__ = ()


UNREADABLE = Unreadable()


class MultiFernetBackend(EncryptionBackend):
    """Advanced Alchemy's door to the key ring; its own backend takes one key and shows it in its repr."""

    def init_engine(self, key: bytes | str) -> None:
        """Nothing: the keys come from the ring, never through the column's type."""

    def encrypt(self, value: Any) -> str:
        return key_ring.encrypt(value)

    def decrypt(self, value: Any) -> str:
        secret = key_ring.decrypt(value)
        return UNREADABLE if secret is None else secret


class EncryptedCredential(EncryptedText):
    """Text in the database, a Fernet token; the plain credential, or `UNREADABLE`, in the model."""

    cache_ok = True

    def __init__(self) -> None:
        super().__init__(key="", backend=MultiFernetBackend)

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """`text`: what Advanced Alchemy asks asyncpg's dialect for comes back as `varchar`."""
        return Text()


SECRETS = ("api_key", "headers", "proxy_url", "client_certificate")
"""A backend's encrypted columns."""


class OpenAIBackend(Entity):
    """A server that speaks the OpenAI API."""

    __tablename__ = "openai_backends"
    __table_args__ = (
        CheckConstraint("max_concurrency > 0", name="max_concurrency_positive"),
        CheckConstraint("connect_timeout > 0 AND connect_timeout <= 86400", name="connect_timeout_bounded"),
        CheckConstraint("first_byte_timeout > 0 AND first_byte_timeout <= 86400", name="first_byte_timeout_bounded"),
        CheckConstraint("chunk_timeout > 0 AND chunk_timeout <= 86400", name="chunk_timeout_bounded"),
    )

    name: Mapped[str] = mapped_column(unique=True)
    base_url: Mapped[str]
    api_key: Mapped[str | None] = mapped_column(
        EncryptedCredential(),
        comment="Fernet token under GASKET_SECRET_KEY; never the credential itself",
    )
    headers: Mapped[str | None] = mapped_column(
        EncryptedCredential(),
        comment="A JSON object, as a Fernet token under GASKET_SECRET_KEY; never the values themselves",
    )
    credential_header: Mapped[str] = mapped_column(server_default=text("'Authorization'"))
    credential_scheme: Mapped[str] = mapped_column(
        server_default=text("'Bearer'"), comment="Stands before the credential; empty: nothing does"
    )
    proxy_url: Mapped[str | None] = mapped_column(
        EncryptedCredential(), comment="Fernet token under GASKET_SECRET_KEY; the URL may have credentials"
    )
    client_certificate: Mapped[str | None] = mapped_column(
        EncryptedCredential(), comment="PEM with its key, as a Fernet token under GASKET_SECRET_KEY"
    )
    response_headers: Mapped[list[str]] = mapped_column(
        ARRAY(Text()),
        server_default=text("'{}'"),
        comment="Names of headers that pass to clients beside the usual ones",
    )
    base_url_before: Mapped[str | None] = mapped_column(
        comment="What base_url was before a migration wrote /v1 out in it; null: it did not"
    )
    skip_tls_verify: Mapped[bool] = mapped_column(server_default=false())
    set_aside_at: Mapped[datetime | None] = mapped_column(
        comment="Since when an operator lets no request go to it; null: requests go to it"
    )
    max_concurrency: Mapped[int | None] = mapped_column(comment="Requests at once of a replica; null: unlimited")
    connect_timeout: Mapped[float] = mapped_column(Double(), server_default=text("5"), comment="Seconds")
    first_byte_timeout: Mapped[float] = mapped_column(Double(), server_default=text("600"), comment="Seconds")
    chunk_timeout: Mapped[float] = mapped_column(Double(), server_default=text("300"), comment="Seconds")

    model_rows: Mapped[list[BackendModel]] = relationship(
        order_by="BackendModel.position", lazy="selectin", viewonly=True
    )

    @property
    def models(self) -> list[ModelRow] | None:
        """The models that it serves, in the order in which they were given; None: it is asked."""
        fields = ModelRow.__struct_fields__
        return [ModelRow(**{name: getattr(row, name) for name in fields}) for row in self.model_rows] or None

    @property
    def has_api_key(self) -> bool:
        """Whether a credential is stored, readable or not."""
        return self.api_key is not None

    @property
    def header_names(self) -> list[str]:
        """The names of the headers that it is sent; none where they cannot be read."""
        return list(decode_headers(self.headers))

    @property
    def proxy(self) -> str | None:
        """The proxy's URL without credentials, if there is one that can be read."""
        if not self.proxy_url:
            return None
        host, port, _ = proxy_of(self.proxy_url)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def has_client_certificate(self) -> bool:
        """Whether one is stored, readable or not."""
        return self.client_certificate is not None

    @property
    def credential_unreadable(self) -> bool:
        """Whether a secret is stored that no key of the ring opens."""
        return any(getattr(self, name) is UNREADABLE for name in SECRETS)


class BackendModel(Base):
    """A model that a backend serves, under the name that clients know."""

    __tablename__ = "backend_models"
    __table_args__ = (CheckConstraint("weight > 0", name="weight_positive"),)

    backend_id: Mapped[int] = mapped_column(ForeignKey("openai_backends.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(comment="What clients ask for")
    backend_model: Mapped[str] = mapped_column(comment="What the backend calls it")
    weight: Mapped[int | None] = mapped_column(comment="Share within one priority; null: none is given")
    priority: Mapped[int] = mapped_column(comment="A lower one is asked first")


class _ClaimRules(TypeDecorator[list[dict[str, str]]]):
    """None at all where another program has written what are no rules, as to the gateway, whose log tells of them."""

    impl = JSONB
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> list[dict[str, str]]:
        return value if isinstance(value, list) and all(map(_is_rule, value)) else []

    def compare_values(self, x: Any, y: Any) -> bool:
        return False  # [] may stand for what cannot be read, so [] that is assigned has to be written


def _is_rule(value: object) -> bool:
    parts = ("issuer", "claim", "pattern")
    return isinstance(value, dict) and all(isinstance(value.get(part), str) for part in parts)


class BackendProfile(Entity):
    """What keys of one kind may use: backends in order of preference, models, and limits."""

    __tablename__ = "backend_profiles"
    __table_args__ = (
        CheckConstraint("default_expiry_days > 0", name="default_expiry_days_positive"),
        CheckConstraint("max_keys_per_user > 0", name="max_keys_per_user_positive"),
        CheckConstraint("NOT enforce_expiry OR default_expiry_days IS NOT NULL", name="enforced_expiry_has_days"),
    )

    name: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str | None]
    allowed_models: Mapped[list[str]] = mapped_column(
        ARRAY(Text()), server_default=text("'{}'"), comment="Empty: every model"
    )
    default_expiry_days: Mapped[int | None]
    enforce_expiry: Mapped[bool] = mapped_column(server_default=false())
    max_keys_per_user: Mapped[int | None] = mapped_column(comment="Null: unlimited")
    open_to_groups: Mapped[list[str] | None] = mapped_column(
        ARRAY(Text()), comment="Whose people make keys for themselves; null: nobody"
    )
    allow_stateful_endpoints: Mapped[bool] = mapped_column(server_default=false())
    routing: Mapped[Routing] = mapped_column(Text(), server_default=text("'ordered'"))
    user_header: Mapped[str | None] = mapped_column(comment="The header that names the end user")
    claim_rules: Mapped[list[dict[str, str]]] = mapped_column(
        _ClaimRules(),
        server_default=text("'[]'"),
        comment="Whose signed tokens it takes: a list of objects with issuer, claim and pattern",
    )

    requests_per_minute: Mapped[int | None] = mapped_column(comment="Null: unlimited")
    tokens_per_window: Mapped[int | None] = mapped_column(BigInteger(), comment="Null: unlimited")
    token_window: Mapped[int] = mapped_column(server_default=text("60"), comment="Seconds")
    max_concurrency: Mapped[int | None] = mapped_column(comment="Requests at once; null: unlimited")

    links: Mapped[list[ProfileBackend]] = relationship(
        order_by="ProfileBackend.position", lazy="selectin", viewonly=True
    )

    @property
    def backends(self) -> list[int]:
        """The backends' ids, in order of preference."""
        return [link.backend_id for link in self.links]


class ProfileBackend(Base):
    """A backend's place in a profile."""

    __tablename__ = "profile_backends"
    __table_args__ = (UniqueConstraint("profile_id", "position"),)

    profile_id: Mapped[int] = mapped_column(ForeignKey("backend_profiles.id", ondelete="CASCADE"), primary_key=True)
    backend_id: Mapped[int] = mapped_column(ForeignKey("openai_backends.id"), primary_key=True, index=True)
    position: Mapped[int]


keys_of_profiles = Table("api_keys", MetaData(), Column("profile_id", Integer), Column("issuer", Text))
"""The keys are another room's; here it matters only how many a profile has. A `Table`, because the engine
puts the schema's name before nothing less."""
