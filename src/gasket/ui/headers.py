"""The header fields of every answer under `/ui`, and of the page of a start."""

from __future__ import annotations

from collections.abc import Mapping

SECURITY: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; object-src 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}
"""What a browser must not do with a page of Gasket's: https://owasp.org/www-project-secure-headers/."""

SECURITY_FIELDS = [(name.encode(), value.encode()) for name, value in SECURITY.items()]
"""As ASGI has them."""
