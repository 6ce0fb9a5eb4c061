"""The example of docs/migration-recipes.md that spans two releases: what the document shows is what runs here."""

from __future__ import annotations

import re
from pathlib import Path

import asyncpg
import pytest

from gasket.migrator.commands.background import finish
from gasket.migrator.head import bring_to_head
from gasket.migrator.ledger.background import read_works
from tests.migrator.project import Project

DOCUMENT = Path(__file__).parents[3] / "docs" / "migration-recipes.md"
HEADER = """import sqlalchemy as sa
from alembic import op

revision = {revision!r}
down_revision = {down!r}
backward_compatible = {compatible}

"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def examples() -> list[str]:
    """The Python blocks of the section."""
    section = DOCUMENT.read_text().partition("\n## A column that every row has to fill\n")[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def write(project: Project, example: str, revision: str) -> None:
    down = project.chain[-1] if project.chain else None
    header = HEADER.format(revision=revision, down=down, compatible=True)
    (project.versions / f"2026_{len(project.chain) + 1:04d}.py").write_text(header + example)
    project.chain.append(revision)


async def test_a_column_is_added_filled_and_made_not_null_over_two_releases(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    add, check, validate = examples()
    config = project.config(database_url)
    project.add('op.execute("CREATE TABLE api_keys (id int PRIMARY KEY)")', 'op.execute("DROP TABLE api_keys")')
    await bring_to_head(config)
    await observer.execute("INSERT INTO api_keys SELECT generate_series(1, 1000)")
    write(project, add, "5ac776fa6b6c")
    await bring_to_head(config)
    await observer.execute("INSERT INTO api_keys VALUES (1001)")  # by an older release
    assert await observer.fetchval("SELECT count(*) FROM api_keys WHERE tier IS NULL") == 1000

    write(project, check, "7de1c52b90aa")
    write(project, validate, "90b1f6d2c413")
    await bring_to_head(config)
    [work] = await read_works(observer, "public")
    assert (work.state, work.rows_done) == ("complete", 1000)
    with pytest.raises(asyncpg.NotNullViolationError):
        await observer.execute("INSERT INTO api_keys VALUES (1002, NULL)")
    assert await finish(config, None) == []
