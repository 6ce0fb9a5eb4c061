"""usage totals

Revises: 7d0c5e9a41b2
Created: 2026-11-25 19:15:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "c84f1b7e02d6"
down_revision: str | None = "7d0c5e9a41b2"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# A new table: a release that lacks it does not ask for it.
backward_compatible: bool = True


def upgrade() -> None:
    op.create_table(
        "usage_totals",
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False, comment="The beginning of an hour, UTC"),
        sa.Column("key_id", sa.Integer(), nullable=False),
        sa.Column("profile_id", sa.Integer(), nullable=False),
        sa.Column("backend_id", sa.Integer(), nullable=False, comment="0: none"),
        sa.Column("model", sa.Text(), nullable=False, comment="Empty: none, or the request failed"),
        sa.Column("user_email", sa.Text(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        # The hour comes first: it is by time that the sums are asked for.
        sa.PrimaryKeyConstraint("hour", "key_id", "profile_id", "backend_id", "model", name="pk_usage_totals"),
    )


def downgrade() -> None:
    op.drop_table("usage_totals")
