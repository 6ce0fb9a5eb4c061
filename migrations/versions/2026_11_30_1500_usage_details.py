"""usage details

Revises: 19e6a3d5f870
Created: 2026-11-30 15:00:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "a3f60b82c917"
down_revision: str | None = "19e6a3d5f870"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# Columns with a default that stays: a release that lacks them neither reads nor writes them.
backward_compatible: bool = True

COLUMNS = {
    "cached_tokens": "Part of prompt_tokens",
    "reasoning_tokens": "Part of completion_tokens",
    "audio_tokens": "Part of prompt_tokens and completion_tokens",
}


def upgrade() -> None:
    for table in ("usage_records", "usage_totals"):
        for name, comment in COLUMNS.items():
            op.add_column(
                table, sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment=comment)
            )


def downgrade() -> None:
    for table in ("usage_totals", "usage_records"):
        for name in reversed(COLUMNS):
            op.drop_column(table, name)
