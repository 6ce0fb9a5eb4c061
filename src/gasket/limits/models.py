"""The tables through which replicas share their counts."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, Index
from sqlalchemy.orm import Mapped, mapped_column

from gasket.db import Base


class LimitWindow(Base):
    """The count of all replicas in one window of time, for one subject (`key:5`, `profile:2`)."""

    __tablename__ = "limit_windows"
    __table_args__ = (Index("ix_limit_windows_ends_at", "ends_at"),)

    subject: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True, comment="requests or tokens")
    starts_at: Mapped[datetime] = mapped_column(primary_key=True)
    ends_at: Mapped[datetime]
    used: Mapped[int] = mapped_column(BigInteger())


class LimitSlot(Base):
    """How many of a subject's places one replica has; they are free again when it does not renew them in time."""

    __tablename__ = "limit_slots"

    subject: Mapped[str] = mapped_column(primary_key=True)
    replica: Mapped[UUID] = mapped_column(primary_key=True, comment="All zeros: locked by who takes places")
    slots: Mapped[int]
    expires_at: Mapped[datetime]
