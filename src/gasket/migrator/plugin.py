"""The migrator as a Litestar plugin: it migrates before the first request, and answers for the schema after."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from click import Group
from litestar import Litestar
from litestar.config.app import AppConfig
from litestar.di import Provide
from litestar.plugins import CLIPlugin, InitPlugin

from gasket.migrator.background.worker import BackgroundWorker
from gasket.migrator.commands.cli import DatabaseCommands, Decorate
from gasket.migrator.config import MigratorConfig
from gasket.migrator.controller import readiness
from gasket.migrator.drift_watch import DriftWatch
from gasket.migrator.facts import told_to
from gasket.migrator.head import bring_to_head
from gasket.migrator.monitor import SchemaMonitor
from gasket.migrator.operations import SchemaOperations
from gasket.migrator.signals import until_signalled
from gasket.migrator.starting import Starting


class MigratorPlugin(InitPlugin, CLIPlugin):
    """Adds the `on_startup` handler, `/health/ready`, and what `gasket database` lacks.

    The application places `gasket.migrator.controller.migrations_routes` itself, behind its own guard.
    `read_alembic_configs` and `decorate` are as for `DatabaseCommands`. `seconds_at_start` is how long a start took
    until the schema was right: looking, waiting for others, applying. `starting` tells of a start that is under way.
    """

    def __init__(
        self,
        config: MigratorConfig,
        read_alembic_configs: Callable[[], list[Any]] = list,
        decorate: Decorate | None = None,
    ) -> None:
        self._config = config
        self.read_alembic_configs = read_alembic_configs
        self._decorate = decorate
        self.monitor = SchemaMonitor(config)
        self.operations = SchemaOperations(config, self.monitor)
        self._worker = BackgroundWorker(config, self.monitor.open_work)
        self.drift = DriftWatch(config)
        self.starting = Starting(config)
        self.seconds_at_start = 0.0

    def leave(self) -> None:
        """Say from now on that this replica is not ready, and leave background work to others: it is being stopped."""
        self.monitor.leave()
        self._worker.leave()

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Register handlers and routes; nothing touches the database yet."""
        app_config.on_startup.append(self._bring_to_head)
        app_config.on_shutdown += [self._worker.stop, self.drift.stop, self.monitor.close]
        app_config.dependencies["schema_monitor"] = Provide(lambda: self.monitor, sync_to_thread=False)
        app_config.dependencies["schema_operations"] = Provide(lambda: self.operations, sync_to_thread=False)
        app_config.signature_types += [SchemaMonitor, SchemaOperations]
        app_config.route_handlers.append(readiness)
        return app_config

    def on_cli_init(self, cli: Group) -> None:
        """Offer the group `database`, which has Advanced Alchemy's commands, too."""
        cli.add_command(DatabaseCommands(lambda: self._config, self.read_alembic_configs, self._decorate))

    async def _bring_to_head(self, _app: Litestar) -> None:
        started = time.monotonic()
        with told_to(self.starting.hear):
            await until_signalled(bring_to_head(self._config), pass_on=True)
        self.seconds_at_start = time.monotonic() - started
        self.monitor.start()
        self._worker.start()
        self.drift.start()
