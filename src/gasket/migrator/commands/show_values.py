"""The option `--show-values`: what errors of the database say in full, which no message, log or table has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from gasket.postgres.messages import collecting_values


def add_show_values(command: click.Command) -> click.Command:
    """The same command with the option; of a group, each of its commands."""
    if isinstance(command, click.Group):
        for one in command.commands.values():
            add_show_values(one)
    else:
        command.params.append(
            click.Option(
                ["--show-values"],
                is_flag=True,
                expose_value=False,
                callback=_remember,
                help="Show what the database says in full if something fails. It may have values of rows.",
            )
        )
    return command


@contextmanager
def values_shown() -> Iterator[None]:
    """Around a command: with the option, what its errors lost is printed to standard error at its end."""
    with collecting_values() as withheld:
        try:
            yield
        finally:
            context = click.get_current_context()
            if withheld and context.find_root().meta.get(_ASKED):
                click.echo("The database said, with values of rows where it has them:", err=True)
                for text in withheld:
                    click.echo("\n".join(f"  {line}" for line in text.splitlines()), err=True)


_ASKED = "gasket.show_values"


def _remember(context: click.Context, _option: click.Parameter, value: bool) -> None:
    context.meta[_ASKED] = value
