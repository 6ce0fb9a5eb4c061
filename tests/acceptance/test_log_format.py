"""One format on one stream: what a replica and a command say, from their first line to their last."""

from __future__ import annotations

import json
import signal

import httpx

from tests.acceptance.installation import Installation


async def test_every_line_is_json_with_the_same_fields(installation: Installation) -> None:
    installation.project.add_table("newer")
    replica = installation.replica(cold=True)
    await replica.ready()
    async with httpx.AsyncClient(base_url=replica.base_url, trust_env=False) as client:
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/api/keys")).status_code == 401
    await replica.says("gasket.requests")
    replica.signal(signal.SIGTERM)
    await replica.exited(within=20)
    lines = [json.loads(line) for line in replica.output.splitlines()]
    assert all(line.keys() >= {"time", "level", "logger"} for line in lines)
    assert {line["logger"] for line in lines} >= {"uvicorn", "gasket", "gasket.migrator", "gasket.requests"}
    [step] = [line for line in lines if line.get("event") == "step_done" and line["revision"] == "newer"]
    assert (step["direction"], step["number"]) == ("upgrade", step["total"])


async def test_a_command_keeps_its_result_off_the_log(installation: Installation) -> None:
    """Its log lines are JSON; the preview that it prints is for people."""
    await installation.migrate()
    done = await installation.run("gasket", "database", "downgrade", "--no-prompt", "-1")
    assert done.exit_code == 0, done.output
    events = [json.loads(line).get("event") for line in done.output.splitlines() if line.startswith("{")]
    assert "step_done" in events
