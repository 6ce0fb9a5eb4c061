"""A database at Gasket's own head."""

from __future__ import annotations

from gasket.installation import Installation
from gasket.migrator.head import bring_to_head
from gasket.settings import Settings


async def at_head(url: str) -> None:
    """Bring the database of this libpq URL there."""
    await bring_to_head(Installation(Settings(database_url=url)).migrator_config())
