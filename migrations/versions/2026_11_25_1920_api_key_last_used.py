"""api key last used

Revises: c84f1b7e02d6
Created: 2026-11-25 19:20:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "19e6a3d5f870"
down_revision: str | None = "c84f1b7e02d6"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# A nullable column: a release that lacks it neither reads nor writes it. The trigger that tells replicas of changed
# keys does not name it, so that a key that is used wakes nobody.
backward_compatible: bool = True


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("api_keys", "last_used_at")
