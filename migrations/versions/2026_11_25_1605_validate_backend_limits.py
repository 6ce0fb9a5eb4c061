"""validate backend limits

Revises: 53b6b9d12251
Created: 2026-11-25 16:05:00+00:00
"""

from __future__ import annotations

from alembic import op

revision: str = "eafbcc704314"
down_revision: str | None = "53b6b9d12251"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# The constraints hold for new rows already, and a release that lacks their columns writes only the defaults.
backward_compatible: bool = True

CONDITIONS = {
    "ck_openai_backends_max_concurrency_positive": "max_concurrency > 0",
    "ck_openai_backends_connect_timeout_bounded": "connect_timeout > 0 AND connect_timeout <= 86400",
    "ck_openai_backends_first_byte_timeout_bounded": "first_byte_timeout > 0 AND first_byte_timeout <= 86400",
    "ck_openai_backends_chunk_timeout_bounded": "chunk_timeout > 0 AND chunk_timeout <= 86400",
}


def upgrade() -> None:
    for name in CONDITIONS:
        op.execute(f"ALTER TABLE openai_backends VALIDATE CONSTRAINT {name}")


def downgrade() -> None:
    # PostgreSQL has no way back from VALID: the constraints are made anew as they were.
    for name, condition in CONDITIONS.items():
        op.drop_constraint(op.f(name), "openai_backends")
        op.create_check_constraint(op.f(name), "openai_backends", condition, postgresql_not_valid=True)
