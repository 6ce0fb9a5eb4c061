"""The Deployment of deploy/kubernetes, which a unit test holds equal to the chart's, started and probed."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.acceptance import pod
from tests.acceptance.installation import ADMIN_TOKEN, REPOSITORY, SECRET_KEY, Installation
from tests.acceptance.processes import Replica, free_port, until
from tests.acceptance.wire import tapped


def _deployment() -> Any:
    objects = yaml.safe_load_all((REPOSITORY / "deploy" / "kubernetes" / "gasket.yaml").read_text())
    return next(one for one in objects if one["kind"] == "Deployment")


def _image() -> dict[str, str]:
    """The variables of the Containerfile."""
    text = (REPOSITORY / "Containerfile").read_text().replace("\\\n", " ")
    given = re.findall(r"^ENV (.*)$", text, re.MULTILINE)[-1]
    pairs = (pair.split("=", 1) for pair in shlex.split(given))
    return {name: value for name, value in pairs if not value.startswith("$")}


@pytest.fixture
async def reachable_url(installation: Installation) -> AsyncIterator[str]:
    """The database over TCP: another account may not pass through the folder of the server's Unix socket."""
    async with tapped(installation.database_url) as tap:
        yield tap.url


async def test_the_deployment_starts_migrates_answers_its_probes_and_ends_in_time(
    installation: Installation, reachable_url: str, open_folder: Path
) -> None:
    deployment = _deployment()
    spec = deployment["spec"]["template"]["spec"]
    [container] = spec["containers"]
    port, log = free_port(), open_folder / "pod.log"
    log.touch()
    secrets = {
        "database-url": f"{reachable_url}\n",
        "admin-token": f"{ADMIN_TOKEN}\n",
        "secret-key": f"{SECRET_KEY}\n",
    }
    command, process = pod.start(deployment, image=_image(), secrets=secrets, port=port, log=log)
    replica = Replica(command, process, log, port)
    try:
        async with httpx.AsyncClient(base_url=replica.base_url, trust_env=False) as client:

            async def succeeds(probe: str) -> bool:
                told = container[probe]
                path, limit = told["httpGet"]["path"], told["timeoutSeconds"]
                assert replica.exit_code is None, str(replica)
                try:
                    answer = await client.get(path, timeout=limit)
                except httpx.TransportError:
                    return False
                return 200 <= answer.status_code < 400

            liveness = container["livenessProbe"]
            patience = liveness["periodSeconds"] * liveness.get("failureThreshold", 3)
            await until(lambda: succeeds("livenessProbe"), patience, lambda: f"alive: {replica}")
            await until(lambda: succeeds("readinessProbe"), 60, lambda: f"ready: {replica}")
            assert await installation.versions() == installation.project.shipped[-1:]
            if pod.can_isolate():
                assert_restricted(replica.pid, spec["securityContext"]["runAsUser"])
            with_token = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
            assert (await client.get("/api/keys", headers=with_token)).status_code == 200
            told = time.monotonic()
            os.kill(replica.pid, signal.SIGTERM)

            async def unready() -> bool:
                return not await succeeds("readinessProbe")

            await until(unready, patience, "readiness that fails")
            assert await succeeds("livenessProbe")
        code = await replica.exited(within=spec["terminationGracePeriodSeconds"])
        assert code == -signal.SIGTERM
        assert time.monotonic() - told < spec["terminationGracePeriodSeconds"]
        assert {json.loads(line)["level"] for line in replica.output.splitlines()} <= {"info"}, replica.output
    finally:
        await replica.stop()


def assert_restricted(pid: int, account: int) -> None:
    """Another user, without capabilities and without a way to get any."""
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(rf"^Uid:\s{account}\s{account}\s", status, re.MULTILINE)
    assert re.search(r"^CapEff:\s0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s1$", status, re.MULTILINE)
