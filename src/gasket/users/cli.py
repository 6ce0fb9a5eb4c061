"""`gasket users ...`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import click
from litestar.plugins import CLIPlugin
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gasket.db import create_sessions, told_by_command
from gasket.errors import GasketError, SettingsError
from gasket.migrator.errors import MigratorError
from gasket.origin import acting, origin_of_command
from gasket.users.addresses import Sign
from gasket.users.erasure import Eraser
from gasket.users.schemas import Erased


class UsersCLI(CLIPlugin):
    """Adds `users` to Litestar's command line.

    `start_database` is entered around the command; `show_target` says first, in one line, which database it changes.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        schema: str,
        sign: Sign,
        start_database: Callable[[], AbstractContextManager[object]] = nullcontext,
        show_target: Callable[[], object] = lambda: None,
    ) -> None:
        self._engine = engine
        self._schema = schema
        self._sign = sign
        self._start_database = start_database
        self._show_target = show_target

    def on_cli_init(self, cli: click.Group) -> None:
        """Register the commands."""
        group = click.Group("users", help="Erase people.")
        parameters: list[click.Parameter] = [
            click.Argument(["email"]),
            click.Option(["--no-prompt"], is_flag=True, help="Do not ask."),
        ]
        group.add_command(click.Command("erase", help=_HELP, params=parameters, callback=self._erase))
        cli.add_command(group)

    def _erase(self, email: str, no_prompt: bool) -> None:
        try:
            self._show_target()
            _ask(no_prompt=no_prompt)
            with self._start_database():
                if not self._sign(""):
                    raise SettingsError("GASKET_SECRET_KEY is not set; the pseudonym is derived from its keys.")
                erased = asyncio.run(self._run(email))
        except (GasketError, MigratorError) as error:  # the latter looks at the database first
            raise click.ClickException(str(error)) from None
        except SQLAlchemyError as error:
            raise click.ClickException(
                f"{told_by_command(error)}. What was changed before stays. Mend the cause and run the command again."
            ) from None
        click.echo("\n".join(_told(erased)))
        if erased.left:
            raise SystemExit(1)

    async def _run(self, email: str) -> Erased:
        origin = origin_of_command()
        try:
            with acting(origin):
                return await Eraser(create_sessions(self._engine).begin, self._schema, self._sign, origin).erase(email)
        finally:
            await self._engine.dispose()


def _ask(*, no_prompt: bool) -> None:
    if no_prompt:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.ClickException("There is no terminal at which to ask; nothing was changed. Add --no-prompt.")
    click.confirm("Erase this person? Keys are revoked for good, and the address cannot be put back.", abort=True)


def _told(erased: Erased) -> list[str]:
    """What was changed, one table a line."""
    lines = [f"{erased.pseudonym} stands in the place of the address; {erased.keys_revoked} keys were revoked."]
    lines += [f"  {table}: {rows} rows" for table, rows in erased.changed.items()]
    if not erased.changed:
        lines.append("  There was nothing of this address.")
    if erased.left:
        lines.append("This database role may not change, so the address may still be in:")
        lines += [f"  archived table {table}" for table in erased.left]
        lines.append("Run the command with the DATABASE_URL of the role that owns these, or drop the archive.")
    return lines


_HELP = """Erase the person with the address EMAIL, whatever the case of its letters.

Keys are revoked; tokens of that name and sessions end. In keys, usage, the audit and archives a pseudonym takes the
place of the address. The same address always gets the same pseudonym, as long as GASKET_SECRET_KEY has the same keys.
It may be run again, and then changes what has come since."""
