"""API keys as they are stored: the digest of the key, never the key."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sqlalchemy import BigInteger, ForeignKey, Index, case, func, select, text
from sqlalchemy.orm import Mapped, column_property, mapped_column

from gasket.db import Base, Entity

KeyState = Literal["active", "revoked", "expired"]


class PreviousApiKey(Base):
    """The key that a rotation with a grace has replaced: at most one for each row of `api_keys`."""

    __tablename__ = "previous_api_keys"

    key_id: Mapped[int] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"), primary_key=True)
    digest: Mapped[str] = mapped_column("key_value", unique=True, comment="Hex SHA-256 of the key before the rotation")
    expires_at: Mapped[datetime] = mapped_column(comment="The end of its grace")
    last_used_at: Mapped[datetime | None] = mapped_column()


class ApiKey(Entity):
    """A key of one user under one profile.

    With an `issuer` it stands for a subject whose signed tokens the profile takes, and nobody has the key itself: so a
    subject has usage, limits and a state as a key has. `src/gasket/proxy/token_lookup.py` makes such rows.
    """

    __tablename__ = "api_keys"
    # Addresses are stored as they were given and compared as PostgreSQL's lower() folds them, on both sides
    # of every comparison: Python's casefold() differs from it, and no index could serve it.
    __table_args__ = (
        Index("ix_api_keys_profile_id_lower_user_email", "profile_id", text("lower(user_email)")),
        Index("ix_api_keys_lower_user_email", text("lower(user_email)")),
    )

    user_email: Mapped[str]
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(
        "key_value", unique=True, comment="Hex SHA-256 of the key; the key itself is stored nowhere"
    )
    key_preview: Mapped[str]
    profile_id: Mapped[int] = mapped_column(ForeignKey("backend_profiles.id", ondelete="CASCADE"))
    expires_at: Mapped[datetime | None] = mapped_column()
    revoked_at: Mapped[datetime | None] = mapped_column()
    revoked_by: Mapped[str | None]
    requests_per_minute: Mapped[int | None] = mapped_column(comment="Null: unlimited")
    tokens_per_window: Mapped[int | None] = mapped_column(BigInteger(), comment="Null: unlimited")
    token_window: Mapped[int] = mapped_column(server_default=text("60"), comment="Seconds")
    max_concurrency: Mapped[int | None] = mapped_column(comment="Requests at once; null: unlimited")
    last_used_at: Mapped[datetime | None] = mapped_column()
    issuer: Mapped[str | None] = mapped_column(
        comment="Of the subject's signed tokens, for which the row stands; null: it is a key"
    )
    person_id: Mapped[int | None] = mapped_column(
        ForeignKey("people.id", ondelete="SET NULL"), index=True, comment="Who made it for themselves; null: nobody did"
    )
    orphaned_at: Mapped[datetime | None] = mapped_column(
        comment="Since when no group of the person opens the profile; null: one does, or there is no person"
    )
    """Triggers keep it: `follow_groups` of people, and `follow_open_profile` of profiles."""

    # The database's clock decides, in lists, in counts and in answers alike: replicas' clocks differ.
    state: Mapped[KeyState] = column_property(
        case(
            (revoked_at.is_not(None), "revoked"),
            (expires_at <= func.now(), "expired"),
            else_="active",
        )
    )


_PREVIOUS = PreviousApiKey.key_id == ApiKey.id
ApiKey.previous_expires_at = column_property(select(PreviousApiKey.expires_at).where(_PREVIOUS).scalar_subquery())
ApiKey.previous_last_used_at = column_property(select(PreviousApiKey.last_used_at).where(_PREVIOUS).scalar_subquery())
