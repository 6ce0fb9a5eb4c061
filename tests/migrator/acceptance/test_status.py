"""`litestar database status` says what a start would do, whatever stands in its way."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.acceptance.installation import Installation, api

STATUS = ("gasket", "database", "status", "--json")


async def _tables_without_a_version(installation: Installation) -> None:
    await (await installation.look()).execute("CREATE TABLE api_keys (id integer)")


async def _a_broken_rule(installation: Installation) -> None:
    path = installation.project.add_table("undecided")
    path.write_text(path.read_text().replace("backward_compatible: bool = True", "backward_compatible: bool"))


async def _a_file_that_cannot_be_loaded(installation: Installation) -> None:
    path = installation.project.add_table("unloadable")
    path.write_text(path.read_text().replace("import sqlalchemy as sa", "import sqlalchemy_of_tomorrow as sa"))


async def _an_edit_below_what_is_pending(installation: Installation) -> None:
    edited = installation.project.add_table("edited")
    await installation.migrate()
    edited.write_text(edited.read_text().replace("sa.Integer()", "sa.BigInteger()"))
    installation.project.add_table("newer")


async def _a_head_that_was_taken_back(installation: Installation) -> None:
    await installation.migrate()
    await installation.run("alembic", "downgrade", "-1")


async def _a_newer_schema(installation: Installation) -> None:
    newer = installation.project.add_table("newer", backward_compatible=False)
    await installation.migrate()
    newer.unlink()


async def _two_heads(installation: Installation) -> None:
    installation.project.add_table("left")
    installation.project.add_revision("right", down_revision=installation.project.shipped[-1])


async def _a_malformed_file(installation: Installation) -> None:
    path = installation.project.add_table("malformed")
    path.write_text(path.read_text().replace('revision: str = "malformed"', "revision: str"))


Obstacle = Callable[[Installation], Awaitable[None]]


@pytest.mark.parametrize(
    ("obstacle", "state"),
    [
        (_tables_without_a_version, "refused"),
        (_a_broken_rule, "refused"),
        (_a_file_that_cannot_be_loaded, "refused"),
        (_an_edit_below_what_is_pending, "refused"),
        (_a_head_that_was_taken_back, "held"),
        (_a_newer_schema, "incompatible"),
    ],
)
async def test_status_says_of_a_refusal_what_the_start_says(
    installation: Installation, obstacle: Obstacle, state: str
) -> None:
    await obstacle(installation)
    done = await installation.run(*STATUS)
    assert done.exit_code == 0, done.output
    said: dict[str, Any] = json.loads(done.output)
    assert said["state"] == state
    introduction, refusal = said["sentence"].split(". ", 1)
    assert introduction == "A start refuses"
    assert refusal in await installation.replica().refused()


@pytest.mark.parametrize("obstacle", [_two_heads, _a_malformed_file])
async def test_files_that_do_not_fit_together_have_no_status_but_the_refusal(
    installation: Installation, obstacle: Obstacle
) -> None:
    await obstacle(installation)
    done = await installation.run(*STATUS)
    assert done.exit_code == 1
    assert done.line.removeprefix("Error: ") in await installation.replica().refused()


async def test_told_not_to_migrate_a_start_waits_and_the_status_says_so(installation: Installation) -> None:
    await _a_head_that_was_taken_back(installation)
    said = json.loads((await installation.run(*STATUS, settings={"GASKET_MIGRATE_ON_STARTUP": "false"})).output)
    assert said["state"] == "behind"
    assert "A start waits until another process has applied it." in said["sentence"]


async def test_a_replica_says_it_of_a_schema_that_changed_under_it(installation: Installation) -> None:
    replica = installation.replica()
    await replica.ready()
    await (await installation.look()).execute("DROP TABLE alembic_version")
    async with api(replica) as client:
        said = (await client.get("/migrations")).json()
    assert said["state"] == "refused"
    assert "gasket database adopt REVISION" in said["sentence"]
