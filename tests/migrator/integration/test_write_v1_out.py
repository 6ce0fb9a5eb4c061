"""The migration that writes `/v1` out in base URLs: what it writes, and what its downgrade takes back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from alembic.config import Config

BEFORE, AFTER = "c7d24f9b1e63", "8a5be03d7c41"
WRITTEN = {
    "http://host": "http://host/v1",
    "http://host:8000/": "http://host:8000/v1",
    "https://host/prefix": "https://host/prefix/v1",
    "https://host/prefix-v1//": "https://host/prefix-v1/v1",
    "http://v1": "http://v1/v1",
    "https://host/v1": "https://host/v1",
    "https://host/openai/v1/": "https://host/openai/v1/",
}
NEW = ["https://new.example", "https://new.example/v1beta/openai", "https://new.example/x?api-version=1"]


@pytest.fixture
def alembic_config(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("DATABASE_URL", database_url)
    return Config(str(Path(__file__).parents[3] / "alembic.ini"))


def base_urls(database_url: str, *statements: str) -> list[str]:
    """All base URLs in the order of their ids, once these statements were executed."""

    async def ask() -> list[str]:
        connection = await asyncpg.connect(database_url, timeout=10)
        try:
            for statement in statements:
                await connection.execute(statement)
            return [row[0] for row in await connection.fetch("SELECT base_url FROM openai_backends ORDER BY id")]
        finally:
            await connection.close()

    return asyncio.run(ask())


def inserting(urls: list[str]) -> str:
    return "INSERT INTO openai_backends (name, base_url) VALUES " + ", ".join(f"('{url}', '{url}')" for url in urls)


@pytest.mark.parametrize("below", [BEFORE, "b7c41e0d52f6"])
def test_only_what_it_wrote_is_taken_back_and_nothing_is_lost(
    alembic_config: Config, database_url: str, below: str
) -> None:
    command.upgrade(alembic_config, BEFORE)
    base_urls(database_url, inserting(list(WRITTEN)))
    command.upgrade(alembic_config, AFTER)
    assert base_urls(database_url) == list(WRITTEN.values())

    added = base_urls(database_url, inserting(NEW))
    command.downgrade(alembic_config, below)
    assert base_urls(database_url)[: len(WRITTEN)] == list(WRITTEN)
    command.upgrade(alembic_config, AFTER)
    assert base_urls(database_url) == added == [*WRITTEN.values(), *NEW]

    # A row that was changed since is not one that the migration wrote.
    changed = base_urls(
        database_url, "UPDATE openai_backends SET base_url = 'http://else/v1' WHERE name = 'http://host'"
    )
    command.downgrade(alembic_config, below)
    assert base_urls(database_url)[0] == "http://else/v1"
    command.upgrade(alembic_config, AFTER)
    assert base_urls(database_url) == changed
