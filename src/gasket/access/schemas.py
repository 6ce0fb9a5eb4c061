"""Request and response bodies: access tokens, sessions, and who somebody is."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from gasket.access.roles import Role, TokenRole
from gasket.inputs import Input, Moment

TokenName = Annotated[str, Meta(min_length=1, max_length=100, examples=["prometheus"])]


class TokenCreate(Input):
    """A new token. Without `expires_at` it never expires."""

    name: TokenName
    role: TokenRole
    expires_at: Moment | None = None


class TokenOut(msgspec.Struct, kw_only=True):
    """A token, without the token itself."""

    id: int
    name: str
    role: TokenRole
    preview: Annotated[str, Meta(examples=["gst_...3f9a"])]
    created_by: Annotated[str, Meta(description="The name of the token that made it; `root`: GASKET_ADMIN_TOKEN")]
    expires_at: Annotated[datetime | None, Meta(description="Null: never")]
    last_used_at: Annotated[datetime | None, Meta(description="It may lag a minute behind")]
    created_at: datetime


class TokenIssued(TokenOut, kw_only=True):
    """A token together with the token itself, which is shown this once."""

    token: Annotated[str, Meta(examples=["gst_0123456789abcdef0123456789abcdef0123456789abcdef"])]

    def __repr__(self) -> str:
        return f"TokenIssued(id={self.id}, preview={self.preview!r})"


class Me(msgspec.Struct, kw_only=True):
    """Who sends a request, and as what."""

    name: str
    role: Role
    email: str | None


class SessionOut(msgspec.Struct, kw_only=True):
    """A browser that is signed in."""

    id: int
    name: str
    role: Role
    email: str | None
    address: Annotated[str | None, Meta(description="From where it was begun; null: a Unix socket")]
    last_seen_at: Annotated[datetime, Meta(description="It may lag a minute behind")]
    expires_at: Annotated[datetime, Meta(description="When it ends without a further request")]
    created_at: datetime
    current: Annotated[bool, Meta(description="Whether it is the session of this very request")]
