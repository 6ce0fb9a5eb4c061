"""backends set aside by an operator

Revises: c5708e3fa216
Created: 2026-12-01 02:15:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "d41c7b90a6e2"
down_revision: str | None = "c5708e3fa216"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# A nullable column: a release that lacks it neither reads nor writes it, and goes on sending requests to the backend.
backward_compatible: bool = True


def upgrade() -> None:
    op.add_column(
        "openai_backends",
        sa.Column(
            "set_aside_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Since when an operator lets no request go to it; null: requests go to it",
        ),
    )


def downgrade() -> None:
    op.drop_column("openai_backends", "set_aside_at")
