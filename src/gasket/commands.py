"""`litestar database ...` and `litestar backends ...` wherever Gasket is installed, without LITESTAR_APP.

Litestar's command line loads these at each of its starts, so nothing of Gasket is imported before one is called. Where
it finds an application by itself, that one's commands of the same names take the place of these.
"""

from __future__ import annotations

from typing import Any

import click
from litestar.cli._utils import LitestarEnv, LitestarGroup

APPLICATION = "gasket.app:create_app"


class GasketCommand(click.Command):
    """Becomes, once it is called, what the application's plugins have registered under its name."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """That of the real command, which click then goes on with. Litestar's commands expect `obj` to be the env."""
        env = LitestarEnv.from_env(APPLICATION)
        registered = LitestarGroup()
        for plugin in env.app.plugins.cli:
            plugin.on_cli_init(registered)
        command = registered.commands[str(self.name)]
        return command.make_context(info_name, args, parent, obj=env, **extra)


database = GasketCommand("database", help="Manage Gasket's schema.")
backends = GasketCommand("backends", help="Manage the backends' credentials.")
