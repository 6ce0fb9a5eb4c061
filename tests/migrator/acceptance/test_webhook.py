"""What a receiver of webhooks is sent by replicas and commands, and that a silent one keeps nobody waiting."""

from __future__ import annotations

import signal
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.gateway import gateway_on
from tests.acceptance.installation import Installation
from tests.acceptance.processes import until
from tests.acceptance.upstream import failure
from tests.receiver import Receiver, receiving

SECRET = f"whsec_{b64encode(b'the secret of both sides').decode()}"
FLUSH_LIMIT = 5.0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def settings(receiver: Receiver, tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "webhook-url"
    path.write_text(f"{receiver.url}\n")
    return {"GASKET_WEBHOOK_URL_FILE": str(path), "GASKET_WEBHOOK_SECRET": SECRET}


async def test_a_migration_its_failure_and_a_refusal_are_told(
    installation: Installation, receiver: Receiver, settings: dict[str, str]
) -> None:
    await installation.migrate()
    assert receiver.received == []
    installation.project.add_table("first")
    broken = installation.project.add_revision("broken", "raise RuntimeError('not today')", backward_compatible=False)

    said = await installation.replica(settings).refused()
    assert receiver.kinds == ["migration.failed"]
    [failed] = receiver.received
    failed.verify(SECRET)
    assert failed.message["data"]["revisions"] == ["first"]
    assert "failed to migrate" in failed.message["text"]
    assert "not today" in failed.message["text"]

    broken.write_text(broken.read_text().replace("raise RuntimeError('not today')", "pass"))
    done = await installation.run("gasket", "db", "upgrade", "--no-prompt", settings=settings)
    assert done.exit_code == 0, done.output
    assert receiver.kinds[1:] == ["migration.completed"]
    assert "`gasket db upgrade head` applied revision broken" in receiver.received[1].message["text"]

    broken.unlink()
    said += await installation.replica(settings).refused()
    assert receiver.kinds[2:] == ["migration.refused"]
    assert receiver.url not in said + done.output
    assert "a-token" not in said + done.output


async def test_a_backend_that_is_set_aside_is_told(
    installation: Installation, receiver: Receiver, settings: dict[str, str]
) -> None:
    await installation.migrate()
    async with gateway_on(installation, installation.replica(settings)) as gateway:
        tenant = await gateway.tenant()
        [upstream] = tenant.upstreams
        upstream.plays(*[failure(502)] * 5)
        for _ in range(5):
            await tenant.ask()
        await until(lambda: receiver.kinds == ["backend.set_aside"], 20, lambda: f"the message: {receiver.kinds}")
    [told] = receiver.received
    told.verify(SECRET)
    assert told.message["data"]["model"] == "model-a"


async def test_a_receiver_that_is_silent_delays_no_start_and_an_end_for_five_seconds(
    installation: Installation, receiver: Receiver, settings: dict[str, str]
) -> None:
    receiver.silent.set()
    replica = installation.replica(settings)
    await replica.ready()
    await until(lambda: receiver.kinds == ["migration.completed"], 10, "the message")
    started = time.monotonic()
    replica.signal(signal.SIGTERM)
    await replica.exited(within=20)
    assert time.monotonic() - started > FLUSH_LIMIT - 0.5
    assert "the webhook has not taken every message within 5 s" in replica.output
