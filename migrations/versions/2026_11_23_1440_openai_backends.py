"""openai backends

Revises:
Created: 2026-11-23 14:40:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "cab3c15ef1e1"
down_revision: str | None = None
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# A new table: a release that lacks it does not ask for it.
backward_compatible: bool = True


def upgrade() -> None:
    op.create_table(
        "openai_backends",
        sa.Column("id", sa.Integer(), sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("base_url", sa.Text(), nullable=False),
        sa.Column(
            "api_key",
            sa.Text(),
            nullable=True,
            comment="Fernet token under GASKET_SECRET_KEY; never the credential itself",
        ),
        sa.Column("skip_tls_verify", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_openai_backends"),
        sa.UniqueConstraint("name", name="uq_openai_backends_name"),
    )


def downgrade() -> None:
    op.drop_table("openai_backends")
