"""`gasket backends ...`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import click
from litestar.plugins import CLIPlugin
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gasket.backends.models import key_ring
from gasket.backends.service import BackendService
from gasket.db import create_sessions, told_by_command
from gasket.errors import GasketError, SettingsError
from gasket.migrator.errors import MigratorError
from gasket.origin import acting, origin_of_command


class BackendsCLI(CLIPlugin):
    """Adds `backends` to Litestar's command line.

    `start_database` is entered around each command; `show_target` says first, in one line, which database it changes.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        start_database: Callable[[], AbstractContextManager[object]] = nullcontext,
        show_target: Callable[[], object] = lambda: None,
    ) -> None:
        self._engine = engine
        self._start_database = start_database
        self._show_target = show_target

    def on_cli_init(self, cli: click.Group) -> None:
        """Register the commands."""
        group = click.Group("backends", help="Manage the backends' credentials.")
        group.command("reencrypt", help=_HELP)(self._reencrypt)
        cli.add_command(group)

    def _reencrypt(self) -> None:
        try:
            self._show_target()
            with self._start_database():
                if not key_ring.loaded:
                    raise SettingsError("GASKET_SECRET_KEY is not set; without its keys no credential can be opened.")
                rewritten, unreadable = asyncio.run(_reencrypt(self._engine))
        except (GasketError, MigratorError) as error:  # the latter looks at the database first
            raise click.ClickException(str(error)) from None
        except SQLAlchemyError as error:
            raise click.ClickException(f"{told_by_command(error)}. No credential was rewritten.") from None
        click.echo(f"{rewritten} credentials are now encrypted with the first key of GASKET_SECRET_KEY.")
        if unreadable:
            click.echo(f"{len(unreadable)} could be opened with none of the keys, and stay as they are:", err=True)
            for name in unreadable:
                click.echo(f"  {name}", err=True)
            raise SystemExit(1)


_HELP = """Rewrite every stored credential with the first key of GASKET_SECRET_KEY.

To replace a key: put the new one first ("new,old") on every replica, run this, then take the old one away.
It is one transaction: should it fail, nothing was rewritten. Credentials that none of the keys opens are named
and left as they are, and the command ends with 1; set those anew. The headers of a backend are a credential, too."""


async def _reencrypt(engine: AsyncEngine) -> tuple[int, list[str]]:
    try:
        with acting(origin_of_command()):
            async with create_sessions(engine).begin() as session:
                return await BackendService(session).reencrypt()
    finally:
        await engine.dispose()
