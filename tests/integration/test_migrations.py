"""The rules that every migration of this repository keeps; `test_stairway.py` climbs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from gasket.migrator.revisions import read_revisions

ROOT = Path(__file__).parents[2]
REVISIONS = read_revisions(ROOT / "migrations")


@pytest.fixture
def alembic_config(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.delenv("GASKET_MIGRATION_DATABASE_URL", raising=False)
    monkeypatch.delenv("GASKET_DATABASE_SCHEMA", raising=False)
    return Config(str(ROOT / "alembic.ini"))


def test_there_is_one_head() -> None:
    assert len(REVISIONS.heads) == 1


def test_file_names_are_dated_in_the_order_of_the_chain() -> None:
    names = [file.path.name for file in REVISIONS.in_order(REVISIONS)]
    assert names == sorted(names)
    assert all(name[:4].isdigit() for name in names)


def test_every_author_has_decided_on_compatibility() -> None:
    assert [file.path.name for file in REVISIONS.values() if file.backward_compatible is None] == []


def test_the_models_equal_what_the_migrations_build(alembic_config: Config) -> None:
    command.upgrade(alembic_config, "head")
    command.check(alembic_config)
