"""longer timeouts

Revises: a3f60b82c917
Created: 2026-11-30 15:05:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "5e91d7c4b08a"
down_revision: str | None = "a3f60b82c917"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# Only the defaults of new rows: every release writes these columns itself.
backward_compatible: bool = True


def upgrade() -> None:
    op.alter_column("openai_backends", "first_byte_timeout", server_default=sa.text("600"))
    op.alter_column("openai_backends", "chunk_timeout", server_default=sa.text("300"))


def downgrade() -> None:
    op.alter_column("openai_backends", "chunk_timeout", server_default=sa.text("60"))
    op.alter_column("openai_backends", "first_byte_timeout", server_default=sa.text("300"))
