"""Access tokens, people and sessions as they are stored: the digest of a secret, never the secret."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ARRAY, CheckConstraint, ForeignKey, Index, Text, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from gasket.access.roles import Role, TokenRole
from gasket.db import Entity


class AccessToken(Entity):
    """A token for `/api` and `/metrics`, with a name and one role."""

    __tablename__ = "access_tokens"
    __table_args__ = (CheckConstraint("role IN ('admin', 'operator', 'viewer', 'metrics')", name="role_known"),)

    name: Mapped[str] = mapped_column(unique=True, comment="Who it is, in the audit")
    role: Mapped[TokenRole] = mapped_column(Text())
    digest: Mapped[str] = mapped_column(
        unique=True, comment="Hex SHA-256 of the token; the token itself is stored nowhere"
    )
    preview: Mapped[str]
    created_by: Mapped[str]
    expires_at: Mapped[datetime | None] = mapped_column()
    last_used_at: Mapped[datetime | None] = mapped_column()


class Person(Entity):
    """Somebody of the identity provider who has signed in, as the provider told at the last sign-in."""

    __tablename__ = "people"
    __table_args__ = (UniqueConstraint("issuer", "subject"),)

    issuer: Mapped[str]
    subject: Mapped[str]
    name: Mapped[str]
    email: Mapped[str | None]
    groups: Mapped[list[str]] = mapped_column(ARRAY(Text()), server_default=text("'{}'"))
    signed_in_at: Mapped[datetime] = mapped_column(server_default=func.now())


class BrowserSession(Entity):
    """Somebody who has signed in with a browser. A row without `token_id`, `person_id` and `root_proof` is nobody's."""

    __tablename__ = "browser_sessions"
    __table_args__ = (
        CheckConstraint("role IN ('admin', 'operator', 'viewer', 'user')", name="role_known"),
        Index("ix_browser_sessions_last_seen_at", "last_seen_at"),
    )

    digest: Mapped[str] = mapped_column(
        unique=True, comment="Hex SHA-256 of the cookie; the cookie itself is stored nowhere"
    )
    name: Mapped[str]
    role: Mapped[Role] = mapped_column(Text())
    email: Mapped[str | None]
    token_id: Mapped[int | None] = mapped_column(
        ForeignKey("access_tokens.id", ondelete="CASCADE"), index=True, comment="The token that began it"
    )
    person_id: Mapped[int | None] = mapped_column(ForeignKey("people.id", ondelete="CASCADE"), index=True)
    root_proof: Mapped[str | None] = mapped_column(
        comment="Of GASKET_ADMIN_TOKEN that began it: its HMAC-SHA-256 under the cookie"
    )
    address: Mapped[str | None] = mapped_column(comment="From where it was begun; null: a Unix socket")
    last_seen_at: Mapped[datetime] = mapped_column(server_default=func.now(), comment="It may lag a minute behind")
