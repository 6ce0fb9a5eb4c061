"""backend profiles

Revises: cab3c15ef1e1
Created: 2026-11-23 14:45:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "67536f9b57c6"
down_revision: str | None = "cab3c15ef1e1"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# New tables: a release that lacks them does not ask for them.
backward_compatible: bool = True


def upgrade() -> None:
    op.create_table(
        "backend_profiles",
        sa.Column("id", sa.Integer(), sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column(
            "allowed_models",
            postgresql.ARRAY(sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="Empty: every model",
        ),
        sa.Column("default_expiry_days", sa.Integer(), nullable=True),
        sa.Column("enforce_expiry", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("max_keys_per_user", sa.Integer(), nullable=True, comment="Null: unlimited"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("default_expiry_days > 0", name=op.f("ck_backend_profiles_default_expiry_days_positive")),
        sa.CheckConstraint("max_keys_per_user > 0", name=op.f("ck_backend_profiles_max_keys_per_user_positive")),
        sa.CheckConstraint(
            "NOT enforce_expiry OR default_expiry_days IS NOT NULL",
            name=op.f("ck_backend_profiles_enforced_expiry_has_days"),
        ),
        sa.PrimaryKeyConstraint("id", name="pk_backend_profiles"),
        sa.UniqueConstraint("name", name="uq_backend_profiles_name"),
    )
    op.create_table(
        "profile_backends",
        sa.Column("profile_id", sa.Integer(), nullable=False),
        sa.Column("backend_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["profile_id"],
            ["backend_profiles.id"],
            name="fk_profile_backends_profile_id_backend_profiles",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["backend_id"], ["openai_backends.id"], name="fk_profile_backends_backend_id_openai_backends"
        ),
        sa.PrimaryKeyConstraint("profile_id", "backend_id", name="pk_profile_backends"),
        sa.UniqueConstraint("profile_id", "position", name="uq_profile_backends_profile_id_position"),
    )
    op.create_index("ix_profile_backends_backend_id", "profile_backends", ["backend_id"])


def downgrade() -> None:
    op.drop_table("profile_backends")
    op.drop_table("backend_profiles")
