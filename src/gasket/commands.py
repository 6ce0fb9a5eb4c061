"""`litestar database ...`, `... backends ...` and `... users ...` wherever Gasket is installed, without LITESTAR_APP.

Litestar's command line loads these at each of its starts, so nothing else of Gasket is imported before one is called.
Where it finds an application by itself, that one's commands of the same names take the place of these.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Any

import click

APPLICATION = "gasket.app:create_app"


class DeferredCommand(click.Command):
    """Becomes, once it is called, the command that `load` returns. Litestar's expect `obj` to be their environment."""

    def __init__(self, name: str, load: Callable[[], tuple[click.Command, Any]], *, help: str) -> None:
        super().__init__(name, help=help)
        self._load = load

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """That of the real command, which click then goes on with."""
        command, environment = self._load()
        return command.make_context(info_name, args, parent, obj=environment, **extra)


def load_database() -> click.Group:
    """The group `database`. It needs no application."""
    group: click.Group = pkgutil.resolve_name("gasket.schema_commands:database")
    return group


def _load(name: str) -> tuple[click.Command, Any]:
    from litestar.cli._utils import LitestarEnv, LitestarGroup  # imported by Litestar's command line only

    environment = LitestarEnv.from_env(APPLICATION)
    registered = LitestarGroup()
    for plugin in environment.app.plugins.cli:
        plugin.on_cli_init(registered)
    return registered.commands[name], environment


database = DeferredCommand("database", lambda: (load_database(), None), help="Manage Gasket's schema.")
backends = DeferredCommand("backends", lambda: _load("backends"), help="Manage the backends' credentials.")
users = DeferredCommand("users", lambda: _load("users"), help="Erase people.")
