"""Files that are not what was applied: nothing is built on them, whoever comes second; and what `accept` does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import alembic.command
import asyncpg
import pytest
from alembic.config import Config

from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.commands.accept import accept
from gasket.migrator.commands.rollback import rollback
from gasket.migrator.errors import EditedRevisionError, TargetError
from gasket.migrator.gate.schema_state import SchemaState
from gasket.migrator.head import bring_to_head
from tests.migrator.project import GATE, Project, is_true, ledger

AT_GATE = "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
BOTH = """
SELECT count(*) = 2 FROM pg_stat_activity
WHERE application_name LIKE 'gasket-migrate%' AND datname = current_database()
"""


def table(kind: str) -> str:
    return f'op.execute("CREATE TABLE t1 (n {kind})")'


async def test_who_gets_the_lock_second_does_not_build_on_another_file(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection
) -> None:
    """Both look at an empty database; the first one holds the lock for as long as the gate is closed."""
    await observer.execute(GATE)
    first, second = Project(tmp_path / "first"), Project(tmp_path / "second")
    first.add('op.execute("SELECT gate.wait()"); ' + table("integer"))
    second.add(table("text"))
    second.add()
    holding = asyncio.create_task(bring_to_head(first.config(database_url)))
    await is_true(observer, AT_GATE)
    waiting = asyncio.create_task(bring_to_head(second.config(database_url, lock_wait=60)))
    await is_true(observer, BOTH)
    await observer.execute("DELETE FROM gate.closed")
    await holding
    with pytest.raises(EditedRevisionError, match=r"r1 was edited since .* r2 would be applied"):
        await waiting
    assert await ledger(observer) == [("r1", "upgrade")]


async def test_an_edited_downgrade_does_not_run_before_it_is_accepted(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection
) -> None:
    project = Project(tmp_path)
    project.add()
    path = project.add()
    await bring_to_head(project.config(database_url))
    path.write_text(path.read_text().replace("DROP TABLE t2", "DROP TABLE t2, t1"))
    config = Config(str(project.ini), attributes={"read_config": lambda: project.config(database_url)})
    with pytest.raises(EditedRevisionError, match=r"its downgrade\(\) is not what was applied; .*database accept r2"):
        await asyncio.to_thread(alembic.command.downgrade, config, "-1")
    path.write_text(path.read_text().replace("DROP TABLE t2, t1", "DROP TABLE IF EXISTS t2"))
    await accept(project.config(database_url), "r2")
    await asyncio.to_thread(alembic.command.downgrade, config, "-1")
    assert (await ledger(observer))[-1] == ("r2", "downgrade")


async def test_an_edit_below_what_is_taken_back_is_no_matter(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection
) -> None:
    project = Project(tmp_path)
    path = project.add()
    project.add()
    await bring_to_head(project.config(database_url))
    path.write_text(path.read_text() + "\nmore = 1\n")
    config = Config(str(project.ini), attributes={"read_config": lambda: project.config(database_url)})
    await asyncio.to_thread(alembic.command.downgrade, config, "r1")
    with pytest.raises(EditedRevisionError, match="r1 was edited"):
        await asyncio.to_thread(alembic.command.downgrade, config, "base")
    assert (await ledger(observer))[-1] == ("r2", "downgrade")


async def test_an_older_release_rolls_back_with_the_way_back_that_was_accepted(
    tmp_path: Path, database_url: str, observer: asyncpg.Connection
) -> None:
    older, newer = Project(tmp_path / "older"), Project(tmp_path / "newer")
    older.add()
    newer.add()
    path = newer.add(downgrade='op.execute("DROP TABLE nosuch")')
    await bring_to_head(newer.config(database_url))
    path.write_text(path.read_text().replace("nosuch", "t2"))
    await accept(newer.config(database_url), "r2")
    assert await rollback(older.config(database_url), None, StepOptions()) == ["r2"]
    assert await observer.fetchval("SELECT to_regclass('t2')") is None


async def test_after_an_accept_the_original_file_is_as_good(
    tmp_path: Path, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    project = Project(tmp_path)
    project.add()
    path = project.add()
    await bring_to_head(project.config(database_url))
    original = path.read_text()
    path.write_text(original + "\nmore = 1\n")
    await accept(project.config(database_url), "r2")
    for text in (original, original + "\nmore = 1\n", original + "\n# a comment\n"):
        path.write_text(text)
        caplog.clear()
        assert (await bring_to_head(project.config(database_url))).state is SchemaState.AT_HEAD
        assert "was edited" not in caplog.text
        with pytest.raises(TargetError, match="there is nothing to accept"):
            await accept(project.config(database_url), "r2")
    path.write_text(original + "\nmore = 2\n")
    project.add()
    with pytest.raises(EditedRevisionError):
        await bring_to_head(project.config(database_url))


@pytest.mark.parametrize(
    ("revision", "refusal"),
    [
        ("r1", "does what was applied or accepted: there is nothing to accept; nothing was changed"),
        ("r2", "Revision r2 is not applied"),
        ("nosuch", "There is no revision nosuch; nothing was changed"),
        ("head", "head is not the id of one revision; nothing was changed"),
        ("-1", "-1 is not the id of one revision"),
    ],
)
async def test_what_cannot_be_accepted(tmp_path: Path, database_url: str, revision: str, refusal: str) -> None:
    project = Project(tmp_path)
    project.add()
    await bring_to_head(project.config(database_url))
    project.add()
    with pytest.raises(TargetError, match=refusal):
        await accept(project.config(database_url), revision)
