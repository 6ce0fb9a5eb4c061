"""usage records

Revises: 4d8f0a9c35be
Created: 2026-11-25 19:10:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "7d0c5e9a41b2"
down_revision: str | None = "4d8f0a9c35be"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# A new table: a release that lacks it does not ask for it.
backward_compatible: bool = True


def upgrade() -> None:
    op.create_table(
        "usage_records",
        sa.Column("request_id", sa.Uuid(), nullable=False, comment="Of version 7: in the order of time"),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("key_id", sa.Integer(), nullable=False),
        sa.Column("user_email", sa.Text(), nullable=False),
        sa.Column("profile_id", sa.Integer(), nullable=False),
        sa.Column("backend_id", sa.Integer(), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("first_byte_ms", sa.REAL(), nullable=True),
        sa.Column("duration_ms", sa.REAL(), nullable=False),
        sa.Column("bytes_in", sa.BigInteger(), nullable=False),
        sa.Column("bytes_out", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("estimated", sa.Boolean(), nullable=False, comment="The tokens are not the upstream's own count"),
        sa.Column("retries", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_usage_records"),
    )
    op.create_index("ix_usage_records_started_at", "usage_records", ["started_at"], postgresql_using="brin")


def downgrade() -> None:
    op.drop_table("usage_records")
