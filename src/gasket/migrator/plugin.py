"""The migrator as a Litestar plugin: it migrates before the first request, and answers for the schema after."""

from __future__ import annotations

import time

from click import Group
from litestar import Litestar
from litestar.config.app import AppConfig
from litestar.di import Provide
from litestar.plugins import CLIPlugin, InitPlugin

from gasket.migrator.cli import adapt_database_commands
from gasket.migrator.connection import MigratorConfig
from gasket.migrator.controller import readiness
from gasket.migrator.runner import bring_to_head
from gasket.migrator.signals import until_signalled
from gasket.migrator.status import SchemaMonitor


class MigratorPlugin(InitPlugin, CLIPlugin):
    """Adds the `on_startup` handler, `/health/ready`, and what `litestar database` lacks.

    The application places `gasket.migrator.controller.migrations_route` itself, behind its own guard.
    `seconds_at_start` is how long a start took until the schema was right: looking, waiting for others, applying.
    """

    def __init__(self, config: MigratorConfig) -> None:
        self._config = config
        self.monitor = SchemaMonitor(config)
        self.seconds_at_start = 0.0

    def leave(self) -> None:
        """Say from now on that this replica is not ready: it is being stopped."""
        self.monitor.leave()

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Register handlers and routes; nothing touches the database yet."""
        app_config.on_startup.append(self._bring_to_head)
        app_config.on_shutdown.append(self.monitor.close)
        app_config.dependencies["schema_monitor"] = Provide(self._provide_monitor, sync_to_thread=False)
        app_config.signature_types.append(SchemaMonitor)
        app_config.route_handlers.append(readiness)
        return app_config

    def on_cli_init(self, cli: Group) -> None:
        """Adapt `litestar database`."""
        adapt_database_commands(self._config)

    async def _bring_to_head(self, _app: Litestar) -> None:
        started = time.monotonic()
        await until_signalled(bring_to_head(self._config), pass_on=True)
        self.seconds_at_start = time.monotonic() - started

    def _provide_monitor(self) -> SchemaMonitor:
        return self.monitor
