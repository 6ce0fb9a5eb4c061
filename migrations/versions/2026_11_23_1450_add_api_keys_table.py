"""add api keys table

Revises: 67536f9b57c6
Created: 2026-11-23 14:50:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "689f3f5b9163"
down_revision: str | None = "67536f9b57c6"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# A new table: a release that lacks it does not ask for it.
backward_compatible: bool = True


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Integer(), sa.Identity(), nullable=False),
        sa.Column("user_email", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "key_value",
            sa.Text(),
            nullable=False,
            comment="Hex SHA-256 of the key; the key itself is stored nowhere",
        ),
        sa.Column("key_preview", sa.Text(), nullable=False),
        sa.Column("profile_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["profile_id"],
            ["backend_profiles.id"],
            name="fk_api_keys_profile_id_backend_profiles",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("key_value", name="uq_api_keys_key_value"),
    )
    op.create_index("ix_api_keys_profile_id_lower_user_email", "api_keys", ["profile_id", sa.text("lower(user_email)")])
    op.create_index("ix_api_keys_lower_user_email", "api_keys", [sa.text("lower(user_email)")])


def downgrade() -> None:
    op.drop_table("api_keys")
