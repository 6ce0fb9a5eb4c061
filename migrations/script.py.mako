<%!
import json


def written(value):
    """As the formatter of the sources writes it."""
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(json.dumps, value)) + ("," if len(value) == 1 else "") + ")"
    return json.dumps(value) if isinstance(value, str) else repr(value)
%>\
<%
merges = isinstance(down_revision, tuple)
revises = " " + (", ".join(down_revision) if merges else down_revision) if down_revision else ""
%>\
"""${message}

Revises:${revises}
Created: ${create_date}
"""

from __future__ import annotations

% if not merges or upgrades or downgrades:
import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
% endif
revision: str = ${written(up_revision)}
down_revision: ${"tuple[str, ...]" if merges else "str | None"} = ${written(down_revision)}
branch_labels: ${"str | tuple[str, ...] | None"} = ${written(branch_labels)}
depends_on: ${"str | tuple[str, ...] | None"} = ${written(depends_on)}

% if merges:
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
