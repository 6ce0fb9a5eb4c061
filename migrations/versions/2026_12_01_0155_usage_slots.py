"""usage by five minutes

Revises: a64e0d93b17c
Created: 2026-12-01 01:55:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "b7f0c2d95e13"
down_revision: str | None = "a64e0d93b17c"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# A new table, which a release that lacks it neither reads nor writes.
backward_compatible: bool = True


def upgrade() -> None:
    op.create_table(
        "usage_slots",
        sa.Column(
            "slot",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="The beginning of five minutes",
        ),
        sa.Column(
            "bucket",
            sa.SmallInteger(),
            autoincrement=False,
            nullable=False,
            comment="Of durations: 8 times the binary logarithm of milliseconds, rounded down",
        ),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False, comment="Part of requests"),
        sa.Column("tokens", sa.BigInteger(), nullable=False, comment="Of prompts and completions"),
        sa.PrimaryKeyConstraint("slot", "bucket", name="pk_usage_slots"),
    )


def downgrade() -> None:
    op.drop_table("usage_slots")
