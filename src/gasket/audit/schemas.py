"""The parameters and answers of `/api/audit`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

_Row = Annotated[dict[str, Any] | None, Meta(description="The row, or what else is known, without secrets and digests")]


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries: those from `start` on and before `end` that have all of what is given, older than `before`."""

    who: str | None = None
    object_kind: str | None = None
    object_id: str | None = None
    action: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    before: int | None = None


class AuditEntryOut(msgspec.Struct, kw_only=True):
    """Something that was done, and by whom."""

    id: int
    at: datetime
    actor: Annotated[str, Meta(description="Of a token its name, of a person the address", examples=["root"])]
    actor_kind: Annotated[
        str,
        Meta(
            description="root, token, person, subject (of a signed token), os_user, replica, role (of the "
            "database) or unknown",
            examples=["root"],
        ),
    ]
    how: Annotated[str, Meta(description="api, page, command or sql", examples=["api"])]
    source: Annotated[
        str | None, Meta(description="The client's address, of a command the host's name; null: a Unix socket")
    ]
    request_id: str | None
    action: Annotated[
        str,
        Meta(
            description="create, change, delete or truncate of an object; look, export, pause, resume, "
            "refused_sign_in, command, retention, erasure",
            examples=["change"],
        ),
    ]
    object_kind: Annotated[
        str | None,
        Meta(
            description="backend, profile, key, token, session, archive, background, schema, person or audit",
            examples=["key"],
        ),
    ]
    object_id: str | None
    table_name: Annotated[str | None, Meta(description="The table whose row was changed")]
    changed: Annotated[
        list[str] | None, Meta(description="Names of the columns that were changed, of secret ones, too")
    ]
    before: _Row
    after: _Row
    database_role: Annotated[str, Meta(description="Whose database session it was")]


class AuditPage(msgspec.Struct, kw_only=True):
    """Some entries, the newest first."""

    items: list[AuditEntryOut]
    next: Annotated[int | None, Meta(description="The `cursor` of the next page; null: this is the last one")]
