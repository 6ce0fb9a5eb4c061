"""${message}

Revises: ${down_revision | comma,n}
Created: ${create_date}
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision: str = ${repr(up_revision)}
down_revision: ${"str | None" if not isinstance(down_revision, tuple) else "tuple[str, ...]"} = ${repr(down_revision)}
branch_labels: ${"str | tuple[str, ...] | None"} = ${repr(branch_labels)}
depends_on: ${"str | tuple[str, ...] | None"} = ${repr(depends_on)}

% if isinstance(down_revision, tuple):
backward_compatible: bool = True
% else:
# Decide, by adding "= True" or "= False": can EVERY release that lacks this revision run on the schema after it?
# New tables and nullable columns: True. Dropping, renaming or narrowing what an older release uses: False.
backward_compatible: bool
% endif


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
