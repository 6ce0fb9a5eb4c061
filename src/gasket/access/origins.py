"""Who acts in a request, as the audit has it."""

from __future__ import annotations

from litestar.types import HTTPScope

from gasket.access.roles import Identity
from gasket.http import SAFE_METHODS, request_id
from gasket.origin import ActorKind, Origin


def origin_of(scope: HTTPScope, identity: Identity | None) -> Origin | None:
    """Who changes something with this request; None where nobody is known or nothing can change."""
    if identity is None or scope["method"] in SAFE_METHODS:
        return None
    return origin_as(scope, identity, by_page=identity.session_id is not None)


def origin_as(scope: HTTPScope, identity: Identity, *, by_page: bool) -> Origin:
    """The same whatever the method, for what this identity does with the request."""
    client = scope.get("client")
    return Origin(
        actor=identity.email or identity.name,
        kind=_kind(identity),
        how="page" if by_page else "api",
        source=client[0] if client else None,
        request_id=request_id(scope),
    )


def _kind(identity: Identity) -> ActorKind:
    if identity.person_id is not None:
        return "person"
    return "root" if identity.is_root else "token"
