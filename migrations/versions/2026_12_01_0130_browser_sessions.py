"""browser sessions

Revises: 3c9e58d1a7f4
Created: 2026-12-01 01:30:00+00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "8d24b6f01c9a"
down_revision: str | None = "3c9e58d1a7f4"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# A new table, which a release that lacks it neither reads nor writes.
backward_compatible: bool = True


def upgrade() -> None:
    op.create_table(
        "browser_sessions",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column(
            "digest",
            sa.Text(),
            nullable=False,
            comment="Hex SHA-256 of the cookie; the cookie itself is stored nowhere",
        ),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("token_id", sa.Integer(), nullable=True, comment="The token that began it"),
        sa.Column(
            "root_proof",
            sa.Text(),
            nullable=True,
            comment="Of GASKET_ADMIN_TOKEN that began it: its HMAC-SHA-256 under the cookie",
        ),
        sa.Column("address", sa.Text(), nullable=True, comment="From where it was begun; null: a Unix socket"),
        sa.Column(
            "last_seen_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="It may lag a minute behind",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "role IN ('admin', 'operator', 'viewer', 'user')", name=op.f("ck_browser_sessions_role_known")
        ),
        sa.ForeignKeyConstraint(
            ["token_id"],
            ["access_tokens.id"],
            name="fk_browser_sessions_token_id_access_tokens",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_browser_sessions"),
        sa.UniqueConstraint("digest", name="uq_browser_sessions_digest"),
    )
    op.create_index("ix_browser_sessions_last_seen_at", "browser_sessions", ["last_seen_at"])
    op.create_index("ix_browser_sessions_token_id", "browser_sessions", ["token_id"])


def downgrade() -> None:
    op.drop_table("browser_sessions")
