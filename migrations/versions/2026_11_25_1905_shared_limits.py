"""shared limits

Revises: 0b1e6c1d7f42
Created: 2026-11-25 19:05:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "4d8f0a9c35be"
down_revision: str | None = "0b1e6c1d7f42"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# New tables: a release that lacks them does not ask for them.
backward_compatible: bool = True


def upgrade() -> None:
    op.create_table(
        "limit_windows",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False, comment="requests or tokens"),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "kind", "starts_at", name="pk_limit_windows"),
    )
    op.create_index("ix_limit_windows_ends_at", "limit_windows", ["ends_at"])
    op.create_table(
        "limit_slots",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("replica", sa.Uuid(), nullable=False, comment="All zeros: locked by who takes places"),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("subject", "replica", name="pk_limit_slots"),
    )


def downgrade() -> None:
    op.drop_table("limit_slots")
    op.drop_table("limit_windows")
