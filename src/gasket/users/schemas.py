"""The answers of `/api/users`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class Erased(msgspec.Struct, kw_only=True):
    """What took the place of an address, and where."""

    pseudonym: Annotated[str, Meta(description="What stands where the address stood")]
    keys_revoked: int
    changed: Annotated[dict[str, int], Meta(description="Rows by table, without tables in which nothing was found")]
    left: Annotated[
        list[str],
        Meta(description="Archived tables that may have the address and that this database role may not change"),
    ]
