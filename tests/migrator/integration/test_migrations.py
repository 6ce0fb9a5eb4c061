"""This repository's migrations build what the models say."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

ROOT = Path(__file__).parents[3]


@pytest.fixture
def alembic_config(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.delenv("GASKET_MIGRATION_DATABASE_URL", raising=False)
    monkeypatch.delenv("GASKET_DATABASE_SCHEMA", raising=False)
    return Config(str(ROOT / "alembic.ini"))


def test_the_models_equal_what_the_migrations_build(alembic_config: Config) -> None:
    command.upgrade(alembic_config, "head")
    command.check(alembic_config)
