"""The message to people, once a start or a command that changes the schema has ended.

A start at head sends none, and neither does one that a signal ends: the sender of the signal knows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gasket.migrator.apply.events import DONE
from gasket.migrator.config import MigratorConfig
from gasket.migrator.errors import MigratorError

if TYPE_CHECKING:
    from gasket.migrator.apply.steps import StepRecorder  # a start at head does without it

_START = "start"


class Outcome:
    """What the tries of one start or command have done. `begun`: a step was, whether it ended well or not."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.direction = "upgrade"
        self.begun = False

    @contextmanager
    def following(self, steps: StepRecorder) -> Iterator[None]:
        """Around the steps of one try."""
        try:
            yield
        finally:
            self.done += steps.applied
            self.direction = steps.direction
            self.begun = self.begun or bool(steps.applied) or steps.current is not None


@contextmanager
def outcome_told(config: MigratorConfig, command: str = _START) -> Iterator[Outcome]:
    """Tell of what is done inside, or of the error that ends it. `command` is as it was typed; a start has none."""
    outcome = Outcome()
    started = time.monotonic()
    who = "The start" if command == _START else f"`{command}`"

    def facts() -> dict[str, object]:
        return {"command": command, "direction": outcome.direction, "revisions": outcome.done}

    try:
        yield outcome
    except Exception as error:
        # What another error says is not made for people, and may have a user's values in it.
        sentence = str(error) if isinstance(error, MigratorError) else f"An unexpected error: {type(error).__name__}."
        kind, ended = ("failed", "failed to migrate") if outcome.begun else ("refused", "was refused")
        config.notify(
            f"migration.{kind}",
            f"{who} {ended}. {sentence}",
            {**facts(), "error": type(error).__name__, "message": sentence},
        )
        raise
    if outcome.done:
        seconds = time.monotonic() - started
        count, last = len(outcome.done), outcome.done[-1]
        revisions = f"{count} revisions, the last of them {last}" if count > 1 else f"revision {last}"
        config.notify(
            "migration.completed",
            f"{who} {DONE[outcome.direction]} {revisions}, in {seconds:.1f} s.",
            {**facts(), "seconds": round(seconds, 3)},
        )
