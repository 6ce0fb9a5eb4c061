"""What a command line shows while it migrates: plain log lines, or at a terminal a progress display."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

_WAITING = ("locks_taken", "lock_awaited")
_REFRESHED_PER_SECOND = 8


def log_plainly() -> None:
    """Log lines to standard error, unless whoever runs us has configured logging already."""
    if logging.getLogger().handlers:
        return
    logging.basicConfig(format="%(levelname)s [%(name)s] %(message)s")
    logging.getLogger("alembic").setLevel(logging.INFO)
    logging.getLogger("alembic.util.messaging").setLevel(logging.CRITICAL)  # it repeats what is printed anyway
    logging.getLogger("gasket").setLevel(logging.INFO)


@contextmanager
def progress_shown() -> Iterator[None]:
    """Show the events of what runs inside: as a display where standard error is a terminal, else as log lines."""
    if logging.getLogger().handlers or sys.stderr is None or not sys.stderr.isatty():
        log_plainly()
        yield
        return
    # Not at the top: a start, which imports this module but has no terminal to draw on, would pay some 60 ms.
    from rich.console import Console
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn("line"), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    display = _Display(console, Progress(*columns, TimeElapsedColumn(), console=console))
    root, ours = logging.getLogger(), logging.getLogger("gasket")
    before = ours.level
    root.addHandler(display)
    ours.setLevel(logging.INFO)
    try:
        with Live(
            get_renderable=display.render, console=console, transient=True, refresh_per_second=_REFRESHED_PER_SECOND
        ):
            yield
        console.print(display.summary(), highlight=False)
    finally:
        ours.setLevel(before)
        root.removeHandler(display)


class _Display(logging.Handler):
    """Keeps a line for every step that is done and every message; below them, what is going on."""

    def __init__(self, console: Console, progress: Progress) -> None:
        super().__init__()
        self._console = console
        self._progress = progress
        self._task = progress.add_task("looking", total=None)
        self._notice = ""
        self._done = 0
        self._elapsed = 0.0

    def render(self) -> RenderableType:
        """The live part."""
        from rich.console import Group
        from rich.text import Text

        return Group(self._progress, Text(self._notice, style="yellow")) if self._notice else self._progress

    def summary(self) -> str:
        """The last line, of a run that did not fail."""
        if not self._done:
            return "Nothing to do."
        return f"{self._done} revision{'s' if self._done > 1 else ''} in {self._elapsed:.1f} s"

    def emit(self, record: logging.LogRecord) -> None:
        """Called for every record of every logger."""
        facts: dict[str, Any] = record.__dict__
        event = facts.get("event")
        self._notice = record.getMessage() if event in _WAITING else ""
        if event == "step_begun":
            self._progress.update(
                self._task,
                description=f"{facts['direction']} {facts['revision']}",
                total=facts["total"],
                completed=facts["number"] - 1,
            )
        elif event == "step_done":
            self._done, self._elapsed = facts["number"], facts["elapsed"]
            self._progress.update(self._task, completed=self._done)
            step = f"{facts['number']} of {facts['total']}: {facts['direction']} {facts['revision']}"
            self._print(f"{step}, {facts['duration']:.2f} s")
        elif event is None:
            self._print(record.getMessage(), style="yellow" if record.levelno >= logging.WARNING else "")

    def _print(self, line: str, style: str = "") -> None:
        self._console.print(line, style=style, markup=False, highlight=False)
