"""Usage as it is stored: a record for each request, for some time; and its totals by the hour and by the day, for ever.

Ids are plain numbers: usage outlives the keys, profiles and backends that it tells of.
"""

from __future__ import annotations

from datetime import date, datetime
from uuid import UUID

from sqlalchemy import REAL, BigInteger, Index, SmallInteger, text
from sqlalchemy.orm import Mapped, mapped_column

from gasket.db import Base

OF_PROMPT = "Part of prompt_tokens"
OF_COMPLETION = "Part of completion_tokens"
OF_BOTH = "Part of prompt_tokens and completion_tokens"


class UsageRecord(Base):
    """One request below `/v1`. Rows are added and, when old, deleted; none is ever changed."""

    __tablename__ = "usage_records"
    __table_args__ = (Index(None, "started_at", postgresql_using="brin"),)

    request_id: Mapped[UUID] = mapped_column(primary_key=True, comment="Of version 7: in the order of time")
    started_at: Mapped[datetime]
    key_id: Mapped[int]
    user_email: Mapped[str]
    profile_id: Mapped[int]
    backend_id: Mapped[int | None]
    model: Mapped[str | None]
    path: Mapped[str]
    status: Mapped[int]
    outcome: Mapped[str]
    first_byte_ms: Mapped[float | None] = mapped_column(REAL())
    duration_ms: Mapped[float] = mapped_column(REAL())
    bytes_in: Mapped[int] = mapped_column(BigInteger())
    bytes_out: Mapped[int] = mapped_column(BigInteger())
    prompt_tokens: Mapped[int] = mapped_column(BigInteger())
    completion_tokens: Mapped[int] = mapped_column(BigInteger())
    estimated: Mapped[bool] = mapped_column(comment="The tokens are not the upstream's own count")
    retries: Mapped[int]
    cached_tokens: Mapped[int] = mapped_column(BigInteger(), server_default=text("0"), comment=OF_PROMPT)
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger(), server_default=text("0"), comment=OF_COMPLETION)
    audio_tokens: Mapped[int] = mapped_column(BigInteger(), server_default=text("0"), comment=OF_BOTH)
    end_user: Mapped[str | None]


class UsageTotal(Base):
    """The sums of an hour. No number here is null, for the columns before `user_email` are the primary key."""

    __tablename__ = "usage_totals"

    hour: Mapped[datetime] = mapped_column(primary_key=True, comment="The beginning of an hour, UTC")
    key_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    profile_id: Mapped[int] = mapped_column(primary_key=True)
    backend_id: Mapped[int] = mapped_column(primary_key=True, comment="0: none")
    model: Mapped[str] = mapped_column(primary_key=True, comment="Empty: none, or the request failed")
    user_email: Mapped[str]
    requests: Mapped[int] = mapped_column(BigInteger())
    prompt_tokens: Mapped[int] = mapped_column(BigInteger())
    completion_tokens: Mapped[int] = mapped_column(BigInteger())
    cached_tokens: Mapped[int] = mapped_column(BigInteger(), server_default=text("0"), comment=OF_PROMPT)
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger(), server_default=text("0"), comment=OF_COMPLETION)
    audio_tokens: Mapped[int] = mapped_column(BigInteger(), server_default=text("0"), comment=OF_BOTH)


class UsageDay(Base):
    """The sums of one day of UTC, or of several, for one key, one user and so on: of the totals alone, by `DaySums`.

    Four days that follow each other have sums of their own, and so have 16 and 64. Such a block begins with a day whose
    number, counted from the year 1 on, is a multiple of its length.

    The sums of a block are good if it has a row of `all`, which has the oid of the very table that it is in, and none
    of its days has one of `changed`. A change to the totals of a day that is over adds a row of `changed`; triggers do
    that. Rows that an archive or a dump has put back have the oid of another table: while they were away, the totals
    may have changed without the triggers.
    """

    __tablename__ = "usage_days"

    by: Mapped[str] = mapped_column(
        primary_key=True, comment="all, key, user, profile, model or backend; changed: the day has to be summed again"
    )
    days: Mapped[int] = mapped_column(
        primary_key=True, autoincrement=False, comment="How many there are: 1, 4, 16 or 64"
    )
    day: Mapped[date] = mapped_column(primary_key=True, comment="The first one, of UTC")
    name: Mapped[str] = mapped_column(
        primary_key=True, comment="An id, an address in lower case, or a model; of all, the oid of this table"
    )
    requests: Mapped[int] = mapped_column(BigInteger(), server_default=text("0"))
    prompt_tokens: Mapped[int] = mapped_column(BigInteger(), server_default=text("0"))
    completion_tokens: Mapped[int] = mapped_column(BigInteger(), server_default=text("0"))
    cached_tokens: Mapped[int] = mapped_column(BigInteger(), server_default=text("0"))
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger(), server_default=text("0"))
    audio_tokens: Mapped[int] = mapped_column(BigInteger(), server_default=text("0"))


class UsageSlot(Base):
    """How many requests of five minutes took how long. It is for looking at the last days; old rows are deleted."""

    __tablename__ = "usage_slots"

    slot: Mapped[datetime] = mapped_column(primary_key=True, comment="The beginning of five minutes")
    bucket: Mapped[int] = mapped_column(
        SmallInteger(),
        primary_key=True,
        autoincrement=False,
        comment="Of durations: 8 times the binary logarithm of milliseconds, rounded down",
    )
    requests: Mapped[int] = mapped_column(BigInteger())
    failed: Mapped[int] = mapped_column(BigInteger(), comment="Part of requests")
    tokens: Mapped[int] = mapped_column(BigInteger(), comment="Of prompts and completions")
