"""The log lines of steps, of locks and of background work, whose facts are fields of the record, too.

The same facts go to the listener of `facts`, as the structs below. Each record has an `event`: `step_begun`,
`step_done`, `locks_taken`, `locks_awaited`, `lock_awaited`, `background_begun`, `background_progress` or
`background_ended`. A formatter that writes JSON finds beside it `direction`, `revision`, `number`, `total` and `title`
of the step, or the `archive` that is put back, and `elapsed`, `duration`, `idle`, `limit` and `pause` in seconds,
`tries`, and `blockers` or `holder` as text. Those of background work have its number as `work`, and `revision`, `kind`,
`table`, `state`, `rows_done`, `rows_estimated` and `percent`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from gasket.migrator.apply.lock_holder import HolderWatch
from gasket.migrator.facts import tell
from gasket.migrator.ledger.background import State, Work
from gasket.postgres.blockers import Blocker

log = logging.getLogger("gasket.migrator")


DOING = {"upgrade": "applying", "downgrade": "taking back", "stamp": "recording"}
DONE = {"upgrade": "applied", "downgrade": "took back", "stamp": "recorded"}


class Step(msgspec.Struct, frozen=True):
    """The `number`th of `total` revisions of one run. `title` is the first line of its file's docstring."""

    direction: str
    revision: str
    number: int
    total: int
    title: str = ""

    @property
    def facts(self) -> dict[str, object]:
        """All of it, for the record of a log line."""
        return msgspec.structs.asdict(self)

    def __str__(self) -> str:
        return f"revision {self.revision} ({self.number} of {self.total})"


class Restoring(msgspec.Struct, frozen=True):
    """`archive restore` at work, by the archive's number."""

    archive: int

    @property
    def facts(self) -> dict[str, object]:
        """All of it, for the record of a log line."""
        return {"direction": "restore", "archive": self.archive}

    def __str__(self) -> str:
        return f"archive {self.archive}"


class StepBegun(msgspec.Struct, frozen=True):
    """`pid` is the session's that applies it."""

    step: Step
    pid: int


class StepDone(msgspec.Struct, frozen=True):
    """It is committed."""

    step: Step


class LocksTaken(msgspec.Struct, frozen=True):
    """A try found a lock taken; the next one begins in `pause` seconds."""

    blockers: Sequence[Blocker]
    pause: float


class LockAwaited(msgspec.Struct, frozen=True):
    """Another session migrates; `watch` follows it."""

    watch: HolderWatch


class RevisionsPending(msgspec.Struct, frozen=True):
    """This session has the lock, and begins to apply them."""

    count: int


def step_begun(step: Step, *, pid: int, elapsed: float) -> None:
    """`elapsed` is since the first step of the run began; `pid` is the session's that applies it."""
    tell(StepBegun(step, pid))
    log.info(
        "%s %s%s",
        DOING[step.direction],
        step,
        f": {step.title}" if step.title else "",
        extra={"event": "step_begun", **step.facts, "elapsed": elapsed},
    )


def step_done(step: Step, *, duration: float, elapsed: float) -> None:
    """It is committed."""
    tell(StepDone(step))
    log.info(
        "%s %s in %.2f s",
        DONE[step.direction],
        step,
        duration,
        extra={"event": "step_done", **step.facts, "duration": duration, "elapsed": elapsed},
    )


def locks_taken(
    step: Step | Restoring | None,
    *,
    tries: int,
    elapsed: float,
    limit: float,
    blockers: Sequence[Blocker],
    pause: float,
) -> None:
    """A try found a lock taken: of a step, of `archive restore`, or, without either, on the migrator's own tables."""
    tell(LocksTaken(tuple(blockers), pause))
    shown = [str(blocker) for blocker in blockers]
    log.warning(
        "%s: locks are taken (try %d, %.1f of at most %.0f s)%s; trying again in %.1f s",
        step or "the migrator's own tables",
        tries,
        elapsed,
        limit,
        ": " + "; ".join(shown) if shown else "",
        pause,
        extra={
            "event": "locks_taken",
            **(step.facts if step else {}),
            "tries": tries,
            "elapsed": elapsed,
            "limit": limit,
            "blockers": shown,
            "pause": pause,
        },
    )


def waiting_on(step: Step, blockers: Sequence[Blocker]) -> None:
    """A statement that must not be cut short waits for them."""
    shown = "; ".join(map(str, blockers))
    log.warning(
        "%s: waiting without a limit for %s. To go on sooner, end that transaction",
        step,
        shown,
        extra={"event": "locks_awaited", **step.facts, "blockers": [str(blocker) for blocker in blockers]},
    )


def lock_awaited(watch: HolderWatch, *, limit: float, holder: str) -> None:
    """Another session holds the migration lock; its last progress is at most `limit` seconds ago."""
    elapsed, idle = watch.waited, watch.idle
    log.info(
        "waiting for the migration lock for %.0f s; without progress of its holder for %.0f of at most %.0f s: %s",
        elapsed,
        idle,
        limit,
        holder,
        extra={"event": "lock_awaited", "elapsed": elapsed, "idle": idle, "limit": limit, "holder": holder},
    )


def background_begun(work: Work) -> None:
    """This process works on it from now on."""
    tell(work)
    log.info("%s: begun%s", work, _how_far(work), extra={"event": "background_begun", **_facts(work)})


def background_progress(work: Work, *, elapsed: float) -> None:
    """It goes on; `elapsed` is since this process has begun with it."""
    tell(work)
    log.info(
        "%s: under way%s",
        work,
        _how_far(work),
        extra={"event": "background_progress", **_facts(work), "elapsed": elapsed},
    )


def background_ended(work: Work, *, elapsed: float) -> None:
    """It is complete, has failed, or was stopped by a command."""
    tell(work)
    log.log(
        logging.ERROR if work.state is State.FAILED else logging.INFO,
        "%s: %s%s%s",
        work,
        work.state,
        _how_far(work),
        f". {work.error}" if work.error else "",
        extra={"event": "background_ended", **_facts(work), "elapsed": elapsed},
    )


def _how_far(work: Work) -> str:
    if work.rows_estimated is None:
        return ""
    estimated = f" of about {max(work.rows_estimated, work.rows_done):,}"
    return f", {work.rows_done:,}{estimated} rows changed"


def _facts(work: Work) -> dict[str, object]:
    return {
        "work": work.id,
        "revision": work.revision,
        "kind": work.kind,
        "table": work.table_name,
        "state": work.state.value,
        "rows_done": work.rows_done,
        "rows_estimated": work.rows_estimated,
        "percent": work.percent,
    }
