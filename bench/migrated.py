"""A database at Gasket's own head."""

from __future__ import annotations

from gasket import app, startup
from gasket.migrator.runner import bring_to_head
from gasket.settings import Settings


async def at_head(url: str) -> None:
    """Bring the database of this libpq URL there."""
    settings = Settings(database_url=url)
    await bring_to_head(app.migrator_config(settings, startup.Startup(settings)))
