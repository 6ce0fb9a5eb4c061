"""Asking before something that takes away: at a terminal, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sized

import click

from gasket.migrator.alembic_command import rest_of
from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.command_line import database_command
from gasket.migrator.commands.preview import preview_downgrade
from gasket.migrator.commands.running import run, show_target
from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import NotConfirmedError
from gasket.migrator.gate.callers import Caller

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
    config: MigratorConfig,
    caller: Caller,
    revision: str | None,
    *,
    no_prompt: bool,
    no_archive: bool,
    discard_data: bool,
) -> StepOptions:
    """Show what a downgrade or a rollback would do, and ask; a second time where rows would be lost.

    Raises:
        NotConfirmedError: there is no terminal, or the answer was no.
        MigratorError: as `preview_downgrade`.
    """
    if no_prompt and no_archive and not discard_data:
        raise NotConfirmedError(
            "--no-archive loses the rows that go, and --no-prompt says not to ask; nothing was changed. "
            "Add --discard-data to confirm that."
        )
    require_answer(no_prompt=no_prompt)
    target = show_target(config)
    tried = not no_prompt  # which is for a question alone
    shown = run(config, lambda: preview_downgrade(config, caller, revision, tried=tried))
    click.echo(shown.text(archived=not no_archive))
    if shown.steps:
        consequence = target.consequence([step.revision for step in shown.steps])
        if no_prompt and target.replicas:
            click.echo(consequence)
        ask(f"Take {count(shown.steps)} back on {target.address}? {consequence}", no_prompt=no_prompt)
        if no_archive:
            ask("These rows will be lost, not archived. Are you sure?", no_prompt=no_prompt)
    typed = rest = str(caller)
    if revision:
        typed, rest = f"{caller} {revision}", f"{caller} {rest_of(revision)}"
    return StepOptions(
        discard_data=no_archive,
        without_archive=database_command(f"{rest} --no-archive"),
        command=database_command(typed),
    )


def count(revisions: Sized) -> str:
    """`1 revision`, `2 revisions`."""
    return f"{len(revisions)} revision{'s' if len(revisions) != 1 else ''}"


def require_answer(*, no_prompt: bool) -> None:
    """Before anything is shown that nobody could be asked about.

    Raises:
        NotConfirmedError: there is no terminal, and the command may not do without.
    """
    if not (no_prompt or at_a_terminal()):
        raise NotConfirmedError(_NOBODY_TO_ASK)


def ask(question: str, *, no_prompt: bool) -> None:
    """Go on only after a yes.

    Raises:
        NotConfirmedError: there is no terminal, or the answer was no.
    """
    if no_prompt:
        return
    require_answer(no_prompt=no_prompt)
    try:
        confirmed = click.confirm(question)
    except click.Abort:  # Ctrl-C, or the end of the input
        click.echo()
        confirmed = False
    if not confirmed:
        raise NotConfirmedError("Not confirmed; nothing was changed.")


def at_a_terminal() -> bool:
    """Whether a person can be asked."""
    return sys.stdin is not None and sys.stdin.isatty()
