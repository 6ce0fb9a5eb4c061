"""What Alembic runs for every command; whichever handle is used, the work is done by the one runner."""

from __future__ import annotations

import os

from alembic import context

from gasket import models
from gasket.app import migrator_config
from gasket.migrator.runner import run_environment
from gasket.settings import read_settings
