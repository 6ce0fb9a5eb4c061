"""Asking before something that takes away: at a terminal, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from gasket.migrator.errors import NotConfirmedError
from gasket.migrator.preview import Preview
from gasket.migrator.steps import StepOptions

_NOBODY_TO_ASK = (
    "This has to be confirmed, and there is no terminal to ask at; nothing was changed. Add --no-prompt to confirm it."
)


def confirmations(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that takes revisions back."""
    for option, text in (
        ("--discard-data", "With --no-archive and --no-prompt: yes, the rows are lost."),
        ("--no-archive", "Do not keep the rows that go."),
        ("--no-prompt", "Do not ask."),
    ):
        command = click.option(option, is_flag=True, help=text)(command)
    return command


def confirm(
    preview: Callable[[], Preview], *, command: str, no_prompt: bool, no_archive: bool, discard_data: bool
) -> StepOptions:
    """Show what would happen, and ask; a second time where rows would be lost. `command` is what would go on.

    Raises:
        NotConfirmedError: there is nobody to ask, or the answer was no.
    """
    if no_prompt and no_archive and not discard_data:
        raise NotConfirmedError(
            "--no-archive loses the rows that go, and --no-prompt says not to ask; nothing was changed. "
            "Add --discard-data to confirm that."
        )
    if not (no_prompt or at_a_terminal()):
        raise NotConfirmedError(_NOBODY_TO_ASK)
    shown = preview()
    click.echo(shown.text(archived=not no_archive))
    if shown.steps:
        ask("Go on?", no_prompt=no_prompt)
        if no_archive:
            ask("These rows will be lost, not archived. Are you sure?", no_prompt=no_prompt)
    return StepOptions(discard_data=no_archive, without_archive=f"litestar database {command} --no-archive")


def ask(question: str, *, no_prompt: bool) -> None:
    """Go on only after a yes.

    Raises:
        NotConfirmedError: there is nobody to ask, or the answer was no.
    """
    if no_prompt:
        return
    if not at_a_terminal():
        raise NotConfirmedError(_NOBODY_TO_ASK)
    if not click.confirm(question):
        raise NotConfirmedError("Not confirmed; nothing was changed.")


def at_a_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin is not None and sys.stdin.isatty()
