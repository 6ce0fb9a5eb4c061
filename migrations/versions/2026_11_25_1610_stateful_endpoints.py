"""stateful endpoints

Revises: eafbcc704314
Created: 2026-11-25 16:10:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "d3121a6501f0"
down_revision: str | None = "eafbcc704314"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# A column with a default that stays: a release that lacks it neither reads nor writes it.
backward_compatible: bool = True


def upgrade() -> None:
    op.add_column(
        "backend_profiles",
        sa.Column("allow_stateful_endpoints", sa.Boolean(), server_default=sa.false(), nullable=False),
    )


def downgrade() -> None:
    op.drop_column("backend_profiles", "allow_stateful_endpoints")
