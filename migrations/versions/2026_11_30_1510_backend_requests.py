"""backend requests

Revises: b7c41e0d52f6
Created: 2026-11-30 15:10:00+00:00
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "c7d24f9b1e63"
down_revision: str | None = "b7c41e0d52f6"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# Nullable columns, and columns with a default that stays: a release that lacks them neither reads nor writes them.
backward_compatible: bool = True


def upgrade() -> None:
    columns: tuple[sa.Column[Any], ...] = (
        sa.Column(
            "headers",
            sa.Text(),
            nullable=True,
            comment="A JSON object, as a Fernet token under GASKET_SECRET_KEY; never the values themselves",
        ),
        sa.Column("credential_header", sa.Text(), server_default=sa.text("'Authorization'"), nullable=False),
        sa.Column(
            "credential_scheme",
            sa.Text(),
            server_default=sa.text("'Bearer'"),
            nullable=False,
            comment="Stands before the credential; empty: nothing does",
        ),
        sa.Column(
            "response_headers",
            postgresql.ARRAY(sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="Names of headers that pass to clients beside the usual ones",
        ),
        sa.Column(
            "base_url_before",
            sa.Text(),
            nullable=True,
            comment="What base_url was before a migration wrote /v1 out in it; null: it did not",
        ),
    )
    for column in columns:
        op.add_column("openai_backends", column)


def downgrade() -> None:
    for name in ("base_url_before", "response_headers", "credential_scheme", "credential_header", "headers"):
        op.drop_column("openai_backends", name)
