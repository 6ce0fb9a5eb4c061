"""The group `database`: the migrator's commands, and Alembic's others as Advanced Alchemy has them.

Of the migrator's commands, the one that is called is imported; Advanced Alchemy when one of its own is called. So a
command costs what it needs itself, and a server that offers all of them imports none.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable
from typing import Any

import click

from gasket.migrator.command_line import called_as
from gasket.migrator.commands.advanced_alchemy import in_our_words
from gasket.migrator.commands.show_values import add_show_values, values_shown
from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import MigratorError
from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.signals import exiting_on_signals
from gasket.postgres.tracebacks import print_tracebacks_without_values

_OWN = {
    "accept": "accept:accept_command",
    "adopt": "adopt:adopt_command",
    "archive": "archive:archive_commands",
    "background": "background:background_commands",
    "downgrade": "downgrade:downgrade_command",
    "drop-all": "drop_all:drop_all_command",
    "merge": "merge:merge_command",
    "plan": "plan:plan_command",
    "rollback": "rollback:rollback_command",
    "stamp": "stamp:stamp_command",
    "status": "status:status_command",
    "upgrade": "upgrade:upgrade_command",
}
"""Where each command is made, of a MigratorConfig; they take the place of Advanced Alchemy's of the same name."""

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
_REQUIRE_TARGET = "gasket.migrator.gate.named_revision:require_target"
_NAMING_THE_FILE = "gasket.migrator.revisions.loading:naming_the_file"
_OTHERS = "advanced_alchemy.extensions.litestar.cli:database_group"

Decorate = Callable[[MigratorConfig, click.Command], click.Command]
"""Returns the command that is called in the place of one of the migrator's."""


class DatabaseCommands(click.Group):
    """The group. `read_config` and `read_alembic_configs` are asked once a command needs what they return.

    The latter returns what Advanced Alchemy's commands find as `configs` in the context. Each of the migrator's own
    commands passes through `decorate`.
    """

    def __init__(
        self,
        read_config: Callable[[], MigratorConfig],
        read_alembic_configs: Callable[[], list[Any]],
        decorate: Decorate | None = None,
    ) -> None:
        super().__init__("database", help="Manage the schema.", context_settings=_CONTEXT)
        self._read_config = read_config
        self._read_alembic_configs = read_alembic_configs
        self._decorate = decorate

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """The names of all, in the order of the alphabet."""
        return sorted({*_OWN, *_others().commands})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the command of that name."""
        if name in _OWN:
            make: Callable[[MigratorConfig], click.Command] = pkgutil.resolve_name(f"{__package__}.{_OWN[name]}")
            config = self._read_config()
            own = make(config)
            return add_show_values(self._decorate(config, own) if self._decorate else own)
        command = _others().get_command(ctx, name)
        return in_our_words(command) if command else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Advanced Alchemy's commands take their configuration from the context."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and name not in _OWN:
            ctx.obj = {"configs": self._read_alembic_configs()}
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a refusal is one line and exit code 1."""
        from alembic.util import CommandError  # a server offers this group, and does without Alembic

        naming_the_file = pkgutil.resolve_name(_NAMING_THE_FILE)
        print_tracebacks_without_values()
        try:
            with values_shown(), exiting_on_signals(), called_as(ctx.command_path), naming_the_file():
                return self._invoke(ctx)
        except (CommandError, MigratorError) as refusal:
            click.echo(f"Error: {refusal}", err=True)
            sys.exit(1)

    def _invoke(self, ctx: click.Context) -> Any:
        """Alembic's errors of files that cannot be read do not say which; to read them ourselves does.

        And of a revision that is not there they do not say which is the nearest.
        """
        from alembic.script.revision import ResolutionError  # as above
        from alembic.util import CommandError

        try:
            return super().invoke(ctx)
        except (OSError, ImportError):
            configured_revisions(self._read_config().ini)
            raise
        except CommandError as error:
            if isinstance(error.__cause__, ResolutionError):
                ini = self._read_config().ini
                revisions = configured_revisions(ini)
                pkgutil.resolve_name(_REQUIRE_TARGET)(error.__cause__.argument, revisions, revisions, ini)
            raise


def _others() -> click.Group:
    group: click.Group = pkgutil.resolve_name(_OTHERS)
    return group
