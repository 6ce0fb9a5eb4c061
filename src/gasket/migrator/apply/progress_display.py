"""What a command line shows while it migrates: plain log lines, or at a terminal a progress display."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gasket import logs
from gasket.log_lines import JSON

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

_WAITING = ("locks_taken", "lock_awaited")
_REFRESHED_PER_SECOND = 8


def log_plainly(log_format: str | None) -> None:
    """Write log lines to standard error, unless logging is configured already; the format is as for `formatter`."""
    if not logs.configure(log_format):
        return
    logging.getLogger("alembic").setLevel(logging.INFO)
    logging.getLogger("alembic.runtime").setLevel(logging.WARNING)  # it says of each step what Gasket says, too
    logging.getLogger("alembic.util.messaging").setLevel(logging.CRITICAL)  # it repeats what is printed anyway


@contextmanager
def progress_shown(log_format: str | None) -> Iterator[None]:
    """Show the events of what runs inside: as a display where standard error is a terminal, else as log lines.

    With the format `json` they are log lines at a terminal, too.
    """
    at_a_terminal = sys.stderr is not None and sys.stderr.isatty()
    if logging.getLogger().handlers or log_format == JSON or not at_a_terminal:
        log_plainly(log_format)
        try:
            yield
        finally:
            logs.flush()  # before the error is printed that may have ended it
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
    outlet = logs.Outlet(display.emit, _tell)
    handler = logs.OutletHandler(outlet)
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        with Live(
            get_renderable=display.render, console=console, transient=True, refresh_per_second=_REFRESHED_PER_SECOND
        ):
            try:
                yield
            finally:
                outlet.flush()
        console.print(display.summary(), highlight=False)
    finally:
        logging.captureWarnings(False)
        ours.setLevel(before)
        root.removeHandler(handler)


def _tell(dropped: int) -> logging.LogRecord:
    text = f"{dropped} messages were dropped, because the terminal took none"
    return logging.makeLogRecord({"msg": text, "levelno": logging.WARNING})


class _Display(logging.Handler):
    """Keeps a line for every step that is done and every message; below them, what is going on."""

    def __init__(self, console: Console, progress: Progress) -> None:
        super().__init__()
        self._console = console
        self._progress = progress
        self._task = progress.add_task("looking", total=None)
        self._notice = ""
        self._done = 0
        self._works = 0
        self._elapsed = 0.0

    def render(self) -> RenderableType:
        """The live part."""
        from rich.console import Group
        from rich.text import Text

        return Group(self._progress, Text(self._notice, style="yellow")) if self._notice else self._progress

    def summary(self) -> str:
        """The last line, of a run that did not fail."""
        if not self._done:
            return "Background work has ended." if self._works else "Nothing to do."
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
        elif event in ("background_begun", "background_progress"):
            self._progress.update(
                self._task,
                description=f"{facts['kind']} of {facts['table']}",
                total=facts["rows_estimated"],
                completed=facts["rows_done"],
            )
        elif event == "background_ended":
            self._works += 1
            self._print(record.getMessage())
        elif event is None:
            self._print(record.getMessage().rstrip("\n"), style="yellow" if record.levelno >= logging.WARNING else "")

    def _print(self, line: str, style: str = "") -> None:
        self._console.print(line, style=style, markup=False, highlight=False)
