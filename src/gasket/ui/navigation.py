"""The names of the pages in `nav`, in their order."""

from __future__ import annotations

import msgspec

from gasket.access.roles import Identity, may

PAGES = (
    ("Overview", "/ui"),
    ("Schema", "/ui/schema"),
    ("Backends", "/ui/backends"),
    ("Profiles", "/ui/profiles"),
    ("Keys", "/ui/keys"),
    ("Usage", "/ui/usage"),
    ("My keys", "/ui/my-keys"),
    ("Access", "/ui/access"),
    ("Audit", "/ui/audit"),
    ("API reference", "/ui/reference"),
)
"""Name and path."""


class Link(msgspec.Struct, frozen=True):
    """A link in `nav`; `current`: the page shown is this one or belongs to it."""

    name: str
    path: str
    current: bool


def links_for(identity: Identity | None, path: str) -> list[Link]:
    """The pages that this one may see; none for an unknown visitor."""
    if identity is None:
        return []
    return [
        Link(name, target, path == target or (target != "/ui" and path.startswith(f"{target}/")))
        for name, target in PAGES
        if may(identity, f"GET {target}")
    ]
