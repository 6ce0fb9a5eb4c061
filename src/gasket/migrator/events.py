"""What a migration tells while it goes on: log records, whose facts are fields of the record, too.

Each has an `event`: `step_begun`, `step_done`, `locks_taken` or `lock_awaited`. A formatter that writes JSON finds
beside it `direction`, `revision`, `number` and `total` of the step, `elapsed`, `duration`, `limit` and `pause` in
seconds, `tries`, and `blockers` or `holder` as text.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

log = logging.getLogger("gasket.migrator")


@dataclass(frozen=True, slots=True)
class Step:
    """The `number`th of `total` revisions of one run."""

    direction: str
    revision: str
    number: int
    total: int

    def __str__(self) -> str:
        return f"revision {self.revision} ({self.number} of {self.total})"


def step_begun(step: Step, *, elapsed: float) -> None:
    """`elapsed` is since the first step of the run began."""
    log.info(
        "%s of %s begins, %.1f s after the first",
        step.direction,
        step,
        elapsed,
        extra={"event": "step_begun", **asdict(step), "elapsed": elapsed},
    )


def step_done(step: Step, *, duration: float, elapsed: float) -> None:
    """It is committed."""
    log.info(
        "%s of %s is done in %.2f s, %.1f s in all",
        step.direction,
        step,
        duration,
        elapsed,
        extra={"event": "step_done", **asdict(step), "duration": duration, "elapsed": elapsed},
    )


def locks_taken(
    step: Step | None, *, tries: int, elapsed: float, limit: float, blockers: Sequence[str], pause: float
) -> None:
    """A try of the step, or where that is None of work on the migrator's own tables, found a lock taken."""
    log.warning(
        "%s: locks are taken (try %d, %.1f of at most %.0f s)%s; trying again in %.1f s",
        step or "the migrator's own tables",
        tries,
        elapsed,
        limit,
        ": " + "; ".join(blockers) if blockers else "",
        pause,
        extra={
            "event": "locks_taken",
            **(asdict(step) if step else {}),
            "tries": tries,
            "elapsed": elapsed,
            "limit": limit,
            "blockers": list(blockers),
            "pause": pause,
        },
    )


def lock_awaited(*, elapsed: float, limit: float, holder: str) -> None:
    """Somebody else holds the migration lock."""
    log.info(
        "waiting for the migration lock (%.0f of at most %.0f s): %s",
        elapsed,
        limit,
        holder,
        extra={"event": "lock_awaited", "elapsed": elapsed, "limit": limit, "holder": holder},
    )
