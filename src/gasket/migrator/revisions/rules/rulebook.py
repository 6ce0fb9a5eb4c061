"""The rules that every revision keeps: their names, why, and what to do instead.

A finding of `FILE_RULES` refuses the revision. One of `SQL_RULES` never stops an upgrade; `make gate` fails on it, a
warning as well, unless the revision allows it.
"""

from __future__ import annotations

import msgspec


class _Rule(msgspec.Struct, frozen=True):
    """`why` it harms, and what to do instead; `warning` is its level in `plan --format sarif`."""

    why: str
    instead: str
    warning: bool = False


_NOT_COMPATIBLE = (
    "Say `backward_compatible = False`: older releases then refuse to start, rather than fail at work. Or allow it, "
    "with the reason why no release that may still run uses it."
)

SQL_RULES = {
    "drops": _Rule("A release that lacks this revision may still use it, and fails.", _NOT_COMPATIBLE),
    "renames": _Rule(
        "A release that lacks this revision still uses the old name, and fails.",
        "Say `backward_compatible = False`; or add the new one beside it, and keep both written for as long as older "
        "releases may run.",
    ),
    "narrows": _Rule(
        "A release that lacks this revision still writes and reads the old type, and may fail.",
        "Give `existing_type=` where the new type holds all values of the old; else say `backward_compatible = False`, "
        "or add a column of the new type beside it.",
    ),
    "requires": _Rule(
        "An INSERT of a release that lacks this revision leaves it out or writes NULL, and fails.",
        "Give a new column a `server_default=` that stays; else say `backward_compatible = False`.",
    ),
    "validates-at-once": _Rule(
        "The lock of NOT VALID is held to the end of the transaction, through the scan that NOT VALID was to spare.",
        "Move VALIDATE CONSTRAINT into the next revision.",
    ),
    "concurrently-beside-others": _Rule(
        "A step that leaves its transaction is not taken back as a whole when it fails: what came before it stays.",
        "Give it a revision of its own.",
    ),
    "concurrently-in-transaction": _Rule(
        "PostgreSQL refuses it in a transaction.",
        "Write `with op.get_context().autocommit_block():` around it.",
    ),
    "autocommit-block": _Rule(
        "What an autocommit block has done stays when the revision fails, and a downgrade in one cannot keep rows in "
        "the archive.",
        "Take `with op.get_context().autocommit_block():` out. PostgreSQL needs it for CONCURRENTLY, for ALTER TYPE "
        "... ADD VALUE, and for what it refuses in a transaction.",
        warning=True,
    ),
    "blocking-index": _Rule(
        "Nobody can write to the table while it is built.",
        "Build it with `postgresql_concurrently=True` in an autocommit block, in a revision of its own; a unique or "
        "primary key constraint then takes it over with ADD CONSTRAINT ... USING INDEX.",
        warning=True,
    ),
    "blocking-constraint": _Rule(
        "The table is locked while all its rows are read.",
        "Add it NOT VALID (`postgresql_not_valid=True`), and VALIDATE CONSTRAINT in the next revision. Before SET NOT "
        "NULL do so with CHECK (... IS NOT NULL): SET NOT NULL then takes the check's word.",
        warning=True,
    ),
    "rewrites-table": _Rule(
        "The whole table is rewritten, and readers wait for that.",
        "Add a column without a default, set the default for new rows, and give old rows their value with a "
        "`Backfill`. For a new type give `existing_type=`: some types need no rewrite.",
        warning=True,
    ),
    "writes-all-rows": _Rule(
        "Every row stays locked to the end of the revision, and the start takes as long as that.",
        "Declare it as background work: `background = [Backfill(table=..., set=..., where=...)]`. A revision that "
        "needs it to be complete says so with `needs_background`.",
        warning=True,
    ),
    "large-index": _Rule(
        "The start takes as long as the build.",
        "Declare it as background work: `background = [IndexBuild(...)]`.",
        warning=True,
    ),
    "drop-and-add": _Rule(
        "The values of the rows are lost.",
        "Write the rename, in both directions. If it is none, allow it, with the reason why the values are not needed.",
        warning=True,
    ),
    "session-setting": _Rule(
        "What comes after it runs with another role, search path or limit: the migrator's own statements of the step, "
        "and the later revisions of a script that `upgrade --sql` prints.",
        "Write SET LOCAL, which ends with the transaction. In an autocommit block write RESET <name> at the end.",
        warning=True,
    ),
    "not-readable": _Rule(
        "What follows was not checked.",
        "Check it by hand; if it does what another rule is about, say so here.",
        warning=True,
    ),
}
"""What can be found in the SQL of a revision, and allowed by it."""

FILE_RULES = {
    "not-python": "a revision is a Python file",
    "both-directions": "a revision defines upgrade() and downgrade()",
    "undecided": "its author has decided whether every older release can run on the schema after it",
    "transaction-control": "a revision leaves its transaction to Alembic",
    "empty-downgrade": "what upgrade() does, downgrade() takes back",
    "needs-background": "a revision says by name whose background work it needs",
    "allowed-findings": "what is allowed is allowed by name, with a reason",
}
"""What a file alone shows."""
