"""What Alembic runs for every command; whichever handle is used, the work is done by the one runner."""

from __future__ import annotations

from alembic import context

from gasket.installation import migrator_config
from gasket.migrator.runner import run_environment

run_environment(context, migrator_config)
