"""Keys, profiles and backends as the gateway has them in memory, for tests that need some and no database."""

from __future__ import annotations

from typing import Any

from gasket.limits.subjects import NO_LIMITS
from gasket.proxy.access import Access, Backend, Profile


def a_backend(**fields: Any) -> Backend:
    """A backend that nothing is special about, but what is given."""
    plain: dict[str, Any] = {
        "id": 1,
        "name": "b",
        "base_url": "http://b",
        "credential": None,
        "credential_header": "Authorization",
        "credential_scheme": "Bearer",
        "headers": None,
        "credential_unreadable": False,
        "response_headers": (),
        "skip_tls_verify": False,
        "proxy_url": None,
        "client_certificate": None,
        "max_concurrency": None,
        "connect_timeout": 5.0,
        "first_byte_timeout": 5.0,
        "chunk_timeout": 5.0,
    }
    return Backend(**plain | fields)


def a_profile(*backends: Backend, **fields: Any) -> Profile:
    """A profile that allows everything, with these backends."""
    plain: dict[str, Any] = {
        "id": 1,
        "name": "p",
        "allowed_models": frozenset(),
        "allow_stateful_endpoints": False,
        "limits": NO_LIMITS,
    }
    return Profile(**plain | fields, backends=backends)


def an_access(profile: Profile, **fields: Any) -> Access:
    """What a key of this profile may do: all that the profile allows, for ever."""
    plain: dict[str, Any] = {"key_id": 1, "user_email": "ada@example.com", "limits": NO_LIMITS, "expires_at": None}
    return Access(**plain | fields, profile=profile)
