"""Replicas of two releases on one database, while the newer is rolled out and while it is taken back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from tests.acceptance.installation import REPOSITORY, Installation, api
from tests.acceptance.processes import Replica, environment, until
from tests.acceptance.traffic import traffic_on

EARLIER_RELEASES = {
    "before /v1": "6ed765796743307369bbdba16a4868840b558ae9",
    "before roles and pages": "9eed9a5d8f8b77a038d628f405b8400ae4d4f3cb",
}
"""The newest commits that lack these."""


@pytest.fixture(scope="session", params=EARLIER_RELEASES)
def earlier_tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an earlier release is deployed from: code, migrations and ini as that commit has them."""
    command = ["git", "archive", EARLIER_RELEASES[request.param], "src", "migrations", "alembic.ini"]
    archive = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False, timeout=60)
    if archive.returncode:
        said = archive.stderr.decode(errors="replace").strip()
        reason = f"the earlier release cannot be built without the repository's whole history: {said}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("earlier")
    subprocess.run(["tar", "--extract", "--directory", folder], input=archive.stdout, check=True, timeout=60)
    metadata = folder / "src" / "gasket-0.1.dist-info" / "METADATA"  # or this tree's would name entry points it lacks
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: gasket\nVersion: 0.1\n")
    asked = subprocess.run(
        [sys.executable, "-c", "import gasket.app; print(gasket.app.__file__)"],
        env=environment(folder) | {"PYTHONPATH": str(folder / "src")},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert Path(asked.stdout.strip()).is_relative_to(folder), f"what runs is not the earlier release: {asked.stdout}"
    return folder


@pytest.fixture
async def earlier(install: Callable[..., Awaitable[Installation]], earlier_tree: Path) -> Installation:
    """Release 1.0, of that commit."""
    installation: Installation = await install(tree=earlier_tree)
    installation.settings["GASKET_RELEASE"] = "1.0"
    return installation


@pytest.fixture
async def later(install: Callable[..., Awaitable[Installation]], earlier: Installation) -> Installation:
    """Release 2.0 on the same database, of this tree, which has the earlier one's revisions and more on top.

    A column of a table that is in use, filled in the background before a later revision, and an index on it that is
    built concurrently, whatever else is new.
    """
    installation = await install(earlier.database_url)
    installation.settings["GASKET_RELEASE"] = "2.0"
    project = installation.project
    assert project.shipped[: len(earlier.project.shipped)] == earlier.project.shipped
    project.add_revision(
        "add_region",
        'op.add_column("openai_backends", sa.Column("region", sa.Text(), nullable=True))\n'
        'op.alter_column("openai_backends", "region", server_default="eu")',
        'op.drop_column("openai_backends", "region")',
    )
    project.add_revision(
        "fill_region",
        downgrade='op.execute("SELECT 1")',
        declares="from gasket.migrator.background import Backfill\n\n"
        'background = [Backfill(table="openai_backends", set="region = \'eu\'", where="region IS NULL")]\n',
    )
    project.add_revision(
        "require_region",
        "op.execute(\"COMMENT ON COLUMN openai_backends.region IS 'always there'\")",
        'op.execute("COMMENT ON COLUMN openai_backends.region IS NULL")',
        declares='needs_background = ["fill_region"]\n',
    )
    project.add_revision(
        "index_region",
        "with op.get_context().autocommit_block():\n"
        '    op.create_index("ix_region", "openai_backends", ["region"], postgresql_concurrently=True)',
        'with op.get_context().autocommit_block():\n    op.drop_index("ix_region", postgresql_concurrently=True)',
    )
    return installation


async def test_a_rolling_deploy_from_an_earlier_commit_and_the_way_back_fail_no_request(
    earlier: Installation, later: Installation
) -> None:
    first = await _started(earlier, "at_head")
    assert await earlier.versions() == earlier.project.shipped[-1:]
    async with traffic_on(first) as traffic:
        await traffic.goes_on()
        second = await _started(later, "at_head")
        look = await earlier.look()
        assert await look.fetchval("SELECT state FROM migration_background") == "complete"
        assert await look.fetchval("SELECT count(*) FROM openai_backends WHERE region IS NULL") == 0
        traffic.rotation += second
        await _say(first, "ahead")
        for replica in first:
            await traffic.goes_on()
            await traffic.take_out(replica)
        await traffic.goes_on()

        # And back: the older release serves on the newer schema first, then brings it back under the traffic.
        third = await _started(earlier, "ahead")
        traffic.rotation += third
        for replica in second:
            await traffic.goes_on()
            await traffic.take_out(replica)
        await traffic.goes_on()
        done = await earlier.run("litestar", "--app", "gasket.app:create_app", "database", "rollback", "--no-prompt")
        assert done.exit_code == 0, done.output
        await _say(third, "at_head")
        await traffic.goes_on()
    assert traffic.failures == []
    assert await earlier.versions() == earlier.project.shipped[-1:]
    newer = later.project.revisions()[len(earlier.project.shipped) :]
    assert (await earlier.ledger())[-len(newer) :] == [(revision, "downgrade") for revision in reversed(newer)]
    assert {replica for replica in (*first, *second, *third) if not traffic.answered[replica]} == set()
    for table in ("openai_backends", "backend_profiles", "api_keys"):
        rows = await look.fetch(f"SELECT name FROM {table}")
        assert {row["name"] for row in rows} == traffic.made, table


async def _started(installation: Installation, state: str) -> list[Replica]:
    replicas = [installation.replica(), installation.replica()]
    answers = await asyncio.gather(*(replica.ready() for replica in replicas))
    assert [answer["state"] for answer in answers] == [state, state]
    return replicas


async def _say(replicas: list[Replica], state: str) -> None:
    """Wait until all of them see the schema so: an answer may be a second old."""

    async def all_of_them() -> bool:
        return [(await replica.ready())["state"] for replica in replicas] == [state] * len(replicas)

    await until(all_of_them, 30, f"{state} from every replica")


@pytest.mark.parametrize(("compatible", "status", "state"), [(True, 200, "ahead"), (False, 503, "incompatible")])
async def test_an_older_release_serves_on_unless_it_cannot(
    installation: Installation, compatible: bool, status: int, state: str
) -> None:
    older = installation.replica({"GASKET_RELEASE": "1.0"})
    await older.ready()
    newer_file = installation.project.add_table("newer", backward_compatible=compatible)
    newer = installation.replica({"GASKET_RELEASE": "2.0"})
    await newer.ready()
    newer_file.unlink()  # the older one was deployed without it

    async def answers() -> bool:
        async with httpx.AsyncClient(base_url=older.base_url, trust_env=False, verify=False, timeout=30) as client:
            ready = await client.get("/health/ready")
            alive = await client.get("/health")
        assert alive.status_code == 200
        return (ready.status_code, ready.json()["state"]) == (status, state)

    await until(answers, 20, f"{status} and {state} from the older release")
    async with api(older) as client:
        report = (await client.get("/migrations")).json()
    assert (report["state"], report["current"]) == (state, ["newer"])
    newest = report["history"][0]
    assert (newest["revision"], newest["release"]) == ("newer", "2.0")
