"""The group `database` for the installation that the environment describes, without an application."""

from __future__ import annotations

import pkgutil
from typing import Any

from gasket.installation import migrator_config
from gasket.migrator.commands.cli import DatabaseCommands
from gasket.recorded_commands import recorded

_APPLICATION = "gasket.app:create_app"
_PLUGIN = "gasket.migrator.plugin:MigratorPlugin"


def _read_alembic_configs() -> list[Any]:
    """Those of the application: Advanced Alchemy's commands need one."""
    app = pkgutil.resolve_name(_APPLICATION)()
    configs: list[Any] = app.plugins.get(pkgutil.resolve_name(_PLUGIN)).read_alembic_configs()
    return configs


database = DatabaseCommands(migrator_config, _read_alembic_configs, recorded)
