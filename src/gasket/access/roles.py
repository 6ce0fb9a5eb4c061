"""The roles, and which of them each route needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

TokenRole = Literal["admin", "operator", "viewer", "metrics"]
"""The roles that a token can have."""
Role = Literal["admin", "operator", "viewer", "metrics", "user"]
"""`user` is a person's alone."""

_ADMINS: frozenset[Role] = frozenset({"admin"})
_OPERATORS: frozenset[Role] = frozenset({"admin", "operator"})
_READERS: frozenset[Role] = frozenset({"admin", "operator", "viewer"})
_SCRAPERS: frozenset[Role] = frozenset({"admin", "operator", "viewer", "metrics"})
_VISITORS: frozenset[Role] = frozenset({"admin", "operator", "viewer", "user"})
_EVERYBODY: frozenset[Role] = frozenset({"admin", "operator", "viewer", "metrics", "user"})

ROUTES: Mapping[str, frozenset[Role]] = {
    "GET /metrics": _SCRAPERS,
    "GET /api/me": _EVERYBODY,
    "GET /api/me/profiles": _VISITORS,
    "GET /api/me/keys": _VISITORS,
    "POST /api/me/keys": _VISITORS,
    "GET /api/me/keys/{key_id}": _VISITORS,
    "POST /api/me/keys/{key_id}/revoke": _VISITORS,
    "POST /api/me/keys/{key_id}/restore": _VISITORS,
    "POST /api/me/keys/{key_id}/rotate": _VISITORS,
    "GET /api/me/usage": _VISITORS,
    "GET /api/sessions": _VISITORS,
    "DELETE /api/sessions/{session_id}": _VISITORS,
    "GET /api/tokens": _ADMINS,
    "POST /api/tokens": _ADMINS,
    "GET /api/tokens/{token_id}": _ADMINS,
    "DELETE /api/tokens/{token_id}": _ADMINS,
    "GET /api/backends": _READERS,
    "POST /api/backends": _ADMINS,
    "GET /api/backends/{backend_id}": _READERS,
    "PATCH /api/backends/{backend_id}": _ADMINS,
    "DELETE /api/backends/{backend_id}": _ADMINS,
    "POST /api/backends/{backend_id}/test": _OPERATORS,
    "POST /api/backends/{backend_id}/set-aside": _OPERATORS,
    "POST /api/backends/{backend_id}/take-back": _OPERATORS,
    "GET /api/profiles": _READERS,
    "POST /api/profiles": _ADMINS,
    "GET /api/profiles/{profile_id}": _READERS,
    "PATCH /api/profiles/{profile_id}": _ADMINS,
    "DELETE /api/profiles/{profile_id}": _ADMINS,
    "GET /api/keys": _READERS,
    "POST /api/keys": _ADMINS,
    "GET /api/keys/{key_id}": _READERS,
    "PATCH /api/keys/{key_id}": _ADMINS,
    "DELETE /api/keys/{key_id}": _ADMINS,
    "POST /api/keys/{key_id}/revoke": _OPERATORS,
    "POST /api/keys/{key_id}/restore": _ADMINS,
    "POST /api/keys/{key_id}/rotate": _ADMINS,
    "GET /api/usage": _READERS,
    "GET /api/audit": _ADMINS,
    "DELETE /api/users/{email}": _ADMINS,
    "GET /api/users/{email}/export": _ADMINS,
    "GET /api/migrations": _READERS,
    "GET /api/migrations/revisions": _READERS,
    "GET /api/migrations/revisions/{revision}": _READERS,
    "POST /api/migrations/plan": _OPERATORS,
    "POST /api/migrations/background/{work_id}/pause": _OPERATORS,
    "POST /api/migrations/background/{work_id}/resume": _OPERATORS,
    "GET /api/migrations/archives": _READERS,
    "GET /api/migrations/archives/{archive}/entries/{entry}": _ADMINS,
    "GET /schema/openapi.json": _EVERYBODY,
    "GET /schema/{path}": _EVERYBODY,
    "GET /schema": _EVERYBODY,
    "GET /ui": _READERS,
    "GET /ui/usage": _READERS,
    "GET /ui/usage.csv": _READERS,
    "GET /ui/reference": _VISITORS,
    "GET /ui/reference/{tag}": _VISITORS,
    "GET /ui/schema": _READERS,
    "GET /ui/schema/revisions/{revision}": _READERS,
    "GET /ui/schema/revisions/{revision}/sql": _READERS,
    "POST /ui/schema/plan": _OPERATORS,
    "POST /ui/schema/background/{work_id}/pause": _OPERATORS,
    "POST /ui/schema/background/{work_id}/resume": _OPERATORS,
    "GET /ui/schema/archives/{archive}/entries/{entry}": _ADMINS,
    "POST /ui/sign-out": _EVERYBODY,
    "GET /ui/backends": _READERS,
    "POST /ui/backends": _ADMINS,
    "GET /ui/backends/new": _ADMINS,
    "GET /ui/backends/{backend_id}": _READERS,
    "GET /ui/backends/{backend_id}/change": _ADMINS,
    "POST /ui/backends/{backend_id}": _ADMINS,
    "POST /ui/backends/{backend_id}/test": _OPERATORS,
    "POST /ui/backends/{backend_id}/set-aside": _OPERATORS,
    "POST /ui/backends/{backend_id}/take-back": _OPERATORS,
    "POST /ui/backends/{backend_id}/delete": _ADMINS,
    "GET /ui/profiles": _READERS,
    "POST /ui/profiles": _ADMINS,
    "GET /ui/profiles/new": _ADMINS,
    "GET /ui/profiles/{profile_id}": _READERS,
    "POST /ui/profiles/{profile_id}": _ADMINS,
    "POST /ui/profiles/{profile_id}/delete": _ADMINS,
    "GET /ui/keys": _READERS,
    "POST /ui/keys": _ADMINS,
    "GET /ui/keys/new": _ADMINS,
    "GET /ui/keys/{key_id}": _READERS,
    "POST /ui/keys/{key_id}": _ADMINS,
    "POST /ui/keys/{key_id}/revoke": _OPERATORS,
    "POST /ui/keys/{key_id}/restore": _ADMINS,
    "POST /ui/keys/{key_id}/rotate": _ADMINS,
    "POST /ui/keys/{key_id}/delete": _ADMINS,
    "GET /ui/my-keys": _VISITORS,
    "POST /ui/my-keys": _VISITORS,
    "GET /ui/my-keys/new": _VISITORS,
    "GET /ui/my-keys/{key_id}": _VISITORS,
    "POST /ui/my-keys/{key_id}/revoke": _VISITORS,
    "POST /ui/my-keys/{key_id}/restore": _VISITORS,
    "POST /ui/my-keys/{key_id}/rotate": _VISITORS,
    "GET /ui/access": _VISITORS,
    "GET /ui/access/tokens/new": _ADMINS,
    "POST /ui/access/tokens": _ADMINS,
    "POST /ui/access/tokens/{token_id}/end": _ADMINS,
    "POST /ui/access/sessions/{session_id}/end": _VISITORS,
    "GET /ui/audit": _ADMINS,
}
"""Method and path template, and who may. A route that is not here is for administrators alone."""

_OF_PEOPLE = ("/api/me/", "/ui/my-keys")
"""Below these paths is what belongs to somebody. A token has no keys of its own, whatever its role is."""


class Identity(msgspec.Struct, frozen=True):
    """Who sends a request, and as what. With a session it has the session's id and its CSRF token for forms."""

    name: str
    role: Role
    email: str | None = None
    token_id: int | None = None
    person_id: int | None = None
    session_id: int | None = None
    csrf_token: str | None = None

    @property
    def is_person(self) -> bool:
        """Whether it is somebody of the identity provider who has signed in."""
        return self.person_id is not None and self.session_id is not None

    @property
    def is_root(self) -> bool:
        """Whether GASKET_ADMIN_TOKEN is behind it."""
        return self.token_id is None and self.person_id is None

    def __repr__(self) -> str:
        return f"Identity(name={self.name!r}, role={self.role!r})"


ROOT = Identity("root", "admin")
"""Who has a token of GASKET_ADMIN_TOKEN."""


def is_of_people(path_template: str) -> bool:
    """Whether a route is for people alone, who have signed in at the identity provider."""
    return path_template.startswith(_OF_PEOPLE)


def may(identity: Identity, route: str) -> bool:
    """Whether this one may use a route of the table, such as `GET /ui/keys`."""
    return identity.role in ROUTES[route] and (identity.is_person or not is_of_people(route.partition(" ")[2]))


def allowed_roles(method: str, path_template: str) -> frozenset[Role]:
    """The roles that a route of Litestar's takes. OPTIONS tells methods alone (RFC 9110, 9.3.7)."""
    if method == "OPTIONS":
        return _EVERYBODY
    return ROUTES.get(f"{method} {path_template}", _ADMINS)
