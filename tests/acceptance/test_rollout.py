"""Replicas of two releases on one database, while the newer is rolled out."""

from __future__ import annotations

import httpx
import pytest

from tests.acceptance.installation import Installation, api
from tests.acceptance.processes import until


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
        async with httpx.AsyncClient(base_url=older.base_url, trust_env=False, verify=False) as client:
            ready = await client.get("/health/ready")
            alive = await client.get("/health")
        assert alive.status_code == 200
        return (ready.status_code, ready.json()["state"]) == (status, state)

    await until(answers, 5, f"{status} and {state} from the older release")
    async with api(older) as client:
        report = (await client.get("/migrations")).json()
    assert (report["state"], report["current"]) == (state, ["newer"])
    newest = report["history"][0]
    assert (newest["revision"], newest["release"]) == ("newer", "2.0")
