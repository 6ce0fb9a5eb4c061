"""write v1 out

Revises: c7d24f9b1e63
Created: 2026-11-30 15:15:00+00:00
"""

from __future__ import annotations

from alembic import op

revision: str = "8a5be03d7c41"
down_revision: str | None = "c7d24f9b1e63"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None

# Releases before this one add `/v1` to a base URL that does not end in it, so both forms are the same to them. A row
# that such a release adds after this step may lack `/v1`; testing the backend says so.
backward_compatible: bool = True

# A path that ends in `/v1`: the host may have that name, too.
ENDS_IN_V1 = "base_url ~ '//.*/v1/*$'"
# Base URLs of another form, `https://host/inference`, are new with this step. So that they come back as they were when
# it is taken back and applied again, an empty fragment marks them meanwhile: no release sends fragments to a backend.
MARKED = "base_url LIKE '%#'"


def upgrade() -> None:
    op.execute(
        "UPDATE openai_backends SET base_url_before = base_url, base_url = rtrim(base_url, '/') || '/v1' "
        f"WHERE NOT ({ENDS_IN_V1} OR {MARKED})"
    )
    op.execute(f"UPDATE openai_backends SET base_url = rtrim(base_url, '#') WHERE {MARKED}")


def downgrade() -> None:
    op.execute(f"UPDATE openai_backends SET base_url = base_url || '#' WHERE NOT {ENDS_IN_V1}")
    op.execute(
        "UPDATE openai_backends SET base_url = base_url_before WHERE base_url = rtrim(base_url_before, '/') || '/v1'"
    )
