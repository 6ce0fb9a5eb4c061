"""Who wants to pass the gate, and what for."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Caller(StrEnum):
    """Every path to the schema."""

    START = "start"
    """A start's look, without the lock: the first one, and those until DATABASE_URL shows what was migrated.

    What costs a query of its own and matters only to who applies is left to WAITER.
    """
    WAITER = "waiter"
    """The same start once it holds the lock, at its first try and at every fresh one after a lost connection."""
    FOLLOWER = "follower"
    """A start that does not migrate by itself: it waits for another one."""
    UPGRADE = "upgrade"
    DOWNGRADE = "downgrade"
    ROLLBACK = "rollback"
    STAMP = "stamp"
    ENSURE_VERSION = "ensure-version"
    ACCEPT = "accept"
    ADOPT = "adopt"
    PLAN = "plan"
    STATUS = "status"
    """What a start would come to."""
    CURRENT = "current"
    COMPARE = "compare"
    """`check` and `revision --autogenerate`: the live tables against the models."""


class Request(msgspec.Struct, frozen=True):
    """`targets` are revisions as they were typed.

    `discard_data`: nothing is archived. `force`: as the command's option says.
    """

    caller: Caller
    targets: tuple[str, ...] = ()
    discard_data: bool = False
    force: bool = False

    @property
    def target(self) -> str | None:
        """The revision that was named; only a stamp names several."""
        return self.targets[0] if self.targets else None


APPLYING = frozenset({Caller.START, Caller.WAITER, Caller.UPGRADE, Caller.PLAN, Caller.STATUS})
"""They apply what is pending, or say what would come of it."""
TO_HEAD = APPLYING | {Caller.FOLLOWER}
"""Those, and the start that waits until another one has applied it."""
GOING_BACK = frozenset({Caller.DOWNGRADE, Caller.ROLLBACK})
STAMPING = frozenset({Caller.STAMP, Caller.ADOPT})
WRITING = GOING_BACK | STAMPING | {Caller.ENSURE_VERSION, Caller.ACCEPT}
"""They write whatever is pending."""
