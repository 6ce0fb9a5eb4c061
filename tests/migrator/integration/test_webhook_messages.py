"""What people are told of a start and of commands: one message, whatever the number of tries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import asyncpg
import pytest

from gasket.migrator.apply.steps import StepOptions
from gasket.migrator.commands.rollback import rollback
from gasket.migrator.errors import MigrationFailedError, SchemaAheadError
from gasket.migrator.head import bring_to_head
from gasket.migrator.webhook_messages import outcome_told
from tests.migrator.project import Project


class Told:
    def __init__(self) -> None:
        self.messages: list[tuple[str, str, Mapping[str, object]]] = []

    def __call__(self, kind: str, text: str, data: Mapping[str, object]) -> None:
        self.messages.append((kind, text, data))

    def take(self) -> tuple[str, str, Mapping[str, object]]:
        """The only message since the last call."""
        [message] = self.messages
        self.messages.clear()
        return message


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


async def test_a_start_tells_what_it_has_applied_and_nothing_at_head(
    project: Project, database_url: str, observer: asyncpg.Connection
) -> None:
    told = Told()
    await observer.execute("CREATE SEQUENCE tries")
    project.add()
    lost = "SELECT pg_terminate_backend(pg_backend_pid()) WHERE nextval('public.tries') = 1"
    project.add(f'op.execute("{lost}")')
    config = project.config(database_url, notify=told)
    await bring_to_head(config)
    kind, text, data = told.take()
    assert kind == "migration.completed"
    assert text.startswith("The start applied 2 revisions, the last of them r2, in ")
    assert (data["command"], data["direction"], data["revisions"]) == ("start", "upgrade", ["r1", "r2"])
    await bring_to_head(config)
    assert told.messages == []


async def test_a_failure_and_a_refusal_are_told_with_their_sentence(project: Project, database_url: str) -> None:
    told = Told()
    project.add()
    path = project.add('op.execute("SELECT 1 / 0")')
    config = project.config(database_url, notify=told)
    with pytest.raises(MigrationFailedError) as failure:
        await bring_to_head(config)
    kind, text, data = told.take()
    assert (kind, text) == ("migration.failed", f"The start failed to migrate. {failure.value}")
    assert (data["revisions"], data["error"]) == (["r1"], "MigrationFailedError")
    with pytest.raises(MigrationFailedError):
        await bring_to_head(config)
    kind, _, data = told.take()
    assert (kind, data["revisions"]) == ("migration.failed", []), "something was begun"

    path.write_text(path.read_text().replace("SELECT 1 / 0", "CREATE TABLE t2 ()").replace("True", "False"))
    await bring_to_head(config)
    told.take()
    path.unlink()
    with pytest.raises(SchemaAheadError) as refusal:
        await bring_to_head(config)
    assert told.take()[:2] == ("migration.refused", f"The start was refused. {refusal.value}")

    await rollback(config, None, StepOptions(command="gasket db rollback"))
    kind, text, data = told.take()
    assert kind == "migration.completed"
    assert text.startswith("`gasket db rollback` took back revision r2, in ")


def test_what_an_unexpected_error_says_is_not_passed_on(project: Project) -> None:
    told = Told()
    with pytest.raises(RuntimeError), outcome_told(project.config("postgresql://h/db", notify=told), "start"):
        raise RuntimeError("hunter22")
    assert told.take()[1] == "The start was refused. An unexpected error: RuntimeError."
