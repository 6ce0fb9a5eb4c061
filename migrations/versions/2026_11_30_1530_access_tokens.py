"""access tokens

Revises: f0b7a94c2d18
Created: 2026-11-30 15:30:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "3c9e58d1a7f4"
down_revision: str | None = "f0b7a94c2d18"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# A new table, which a release that lacks it neither reads nor writes.
backward_compatible: bool = True


def upgrade() -> None:
    op.create_table(
        "access_tokens",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="Who it is, in the audit"),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column(
            "digest",
            sa.Text(),
            nullable=False,
            comment="Hex SHA-256 of the token; the token itself is stored nowhere",
        ),
        sa.Column("preview", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "role IN ('admin', 'operator', 'viewer', 'metrics')", name=op.f("ck_access_tokens_role_known")
        ),
        sa.PrimaryKeyConstraint("id", name="pk_access_tokens"),
        sa.UniqueConstraint("digest", name="uq_access_tokens_digest"),
        sa.UniqueConstraint("name", name="uq_access_tokens_name"),
    )


def downgrade() -> None:
    op.drop_table("access_tokens")
