"""The audit as it is stored. Triggers add the entries and let nobody change them; see docs/security.md."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Identity, Index, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from gasket.db import Base

_ROW = "The row without its secrets and digests"
_JSON = JSONB(none_as_null=True)


class AuditEntry(Base):
    """Something that was done, and by whom. `at` and `database_role` are the database's, whatever an INSERT says."""

    __tablename__ = "audit_log"
    __table_args__ = (Index(None, "at"), Index(None, "object_kind", "object_id"))

    id: Mapped[int] = mapped_column(BigInteger(), Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    actor: Mapped[str] = mapped_column(comment="Who: a name, an address, or a database role")
    actor_kind: Mapped[str]
    how: Mapped[str] = mapped_column(comment="api, page, command or sql")
    source: Mapped[str | None] = mapped_column(comment="An address; of a command the host's name")
    request_id: Mapped[str | None]
    action: Mapped[str]
    object_kind: Mapped[str | None]
    object_id: Mapped[str | None]
    table_name: Mapped[str | None] = mapped_column(comment="Where the row is that was changed")
    changed: Mapped[list[str] | None] = mapped_column(ARRAY(Text()), comment="Names of columns, of secret ones, too")
    before: Mapped[dict[str, Any] | None] = mapped_column(_JSON, comment=_ROW)
    after: Mapped[dict[str, Any] | None] = mapped_column(_JSON, comment=_ROW)
    database_role: Mapped[str] = mapped_column(
        server_default=text("SESSION_USER"), comment="Whose session it was, whatever the other columns say"
    )


class AuditOutbox(Base):
    """Entries that are not in the log of any replica yet."""

    __tablename__ = "audit_outbox"

    entry_id: Mapped[int] = mapped_column(BigInteger(), primary_key=True, autoincrement=False)
