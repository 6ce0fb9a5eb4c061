"""backend routes

Revises: d92f6a18c3b5
Created: 2026-11-30 15:25:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "f0b7a94c2d18"
down_revision: str | None = "d92f6a18c3b5"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# Nullable columns: a release that lacks them neither reads nor writes them.
backward_compatible: bool = True

COMMENTS = {
    "proxy_url": "Fernet token under GASKET_SECRET_KEY; the URL may have credentials",
    "client_certificate": "PEM with its key, as a Fernet token under GASKET_SECRET_KEY",
}


def upgrade() -> None:
    for name, comment in COMMENTS.items():
        op.add_column("openai_backends", sa.Column(name, sa.Text(), nullable=True, comment=comment))


def downgrade() -> None:
    for name in reversed(COMMENTS):
        op.drop_column("openai_backends", name)
