"""From its first second on a replica answers: what it waits for and what it applies, and 503 to everything else."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.acceptance.gateway import request, wire
from tests.acceptance.http11 import Message
from tests.acceptance.installation import ADMIN_TOKEN, Installation
from tests.acceptance.processes import Replica, until


@asynccontextmanager
async def client_of(replica: Replica) -> AsyncIterator[httpx.AsyncClient]:
    """Of a replica whose port is open."""
    async with httpx.AsyncClient(base_url=replica.base_url, trust_env=False, verify=False, timeout=10) as client:

        async def answers() -> bool:
            try:
                return (await client.get("/health")).status_code == 200
            except httpx.ConnectError:
                assert replica.exit_code is None, str(replica)
                return False

        await until(answers, 30, lambda: f"the open port of {replica}")
        yield client


async def readiness(client: httpx.AsyncClient) -> dict[str, Any]:
    """What `/health/ready` says of a replica that is not ready."""
    answer = await client.get("/health/ready")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    body: dict[str, Any] = answer.json()
    assert body["ready"] is False
    return body


async def gauges(client: httpx.AsyncClient) -> dict[str, str]:
    text = (await client.get("/metrics", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})).text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: value for name, _, value in lines}


async def test_who_migrates_and_who_waits_tell_it_in_every_shape(installation: Installation) -> None:
    installation.project.add_table("first_step")
    installation.project.add_pause("long_step")
    await installation.pause(60)
    holder = installation.replica()
    pid = await installation.pausing()
    waiter = installation.replica()
    await waiter.says("waiting for the migration lock")
    async with client_of(holder) as at_work, client_of(waiter) as waiting:
        said = await readiness(at_work)
        total = len(installation.project.revisions())
        assert said["state"] == "migrating"
        assert (said["revision"], said["description"]) == ("long_step", "long_step")
        assert (said["number"], said["total"]) == (total, total)
        assert said["elapsed"] >= 0
        assert f"applying revision {total} of {total}, long_step, for " in said["detail"]
        found = await gauges(at_work)
        assert found['gasket_schema_state{state="migrating"}'] == "1.0"
        assert (found["gasket_start_number"], found["gasket_start_revisions"]) == (f"{total}.0", f"{total}.0")
        assert (await at_work.get("/metrics")).status_code == 401

        said = await readiness(waiting)
        assert said["state"] == "waiting"
        assert said["holder"]["pid"] == pid
        assert said["holder"]["application"].startswith("gasket-migrate")
        assert f"held by pid {pid}" in said["detail"]
        assert "test_control" not in str(said)  # no statement: this is open to all
        assert (await gauges(waiting))['gasket_schema_state{state="waiting"}'] == "1.0"

        await assert_not_served(at_work)
    await installation.go_on()
    await asyncio.gather(holder.ready(), waiter.ready())
    await installation.assert_migrated_once()


async def assert_not_served(client: httpx.AsyncClient) -> None:
    openai = await client.post("/v1/chat/completions", json={"model": "m"}, headers={"Authorization": "Bearer gsk_x"})
    assert openai.json()["error"]["code"] == "migrating"
    anthropic = await client.post("/v1/messages", json={})
    assert anthropic.json()["error"]["type"] == "overloaded_error"
    problem = await client.get("/api/keys", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
    assert problem.json()["type"] == "urn:gasket:problem:schema-not-ready"
    assert problem.headers["content-type"] == "application/problem+json"
    page = await client.get("/", headers={"Accept": "text/html,*/*"})
    assert 'http-equiv="refresh"' in page.text
    assert "applying revision" in page.text
    assert "<progress" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'self'; ")
    for answer in (openai, anthropic, problem, page, await client.get("/schema/openapi.json")):
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "date" in answer.headers


async def test_what_holds_a_revision_up_is_named(installation: Installation) -> None:
    installation.project.add_table("wanted")
    await installation.migrate()
    installation.project.add_revision("changed", 'op.execute("ALTER TABLE wanted ADD COLUMN more int")')
    psql = await installation.connect(server_settings={"application_name": "psql"})
    await psql.execute("BEGIN; SELECT * FROM wanted")
    replica = installation.replica()
    await replica.says("locks are taken")
    async with client_of(replica) as client:
        seen: list[dict[str, Any]] = []

        async def named() -> bool:
            seen.append(await readiness(client))
            return bool(seen[-1]["blockers"])

        await until(named, 20, lambda: f"the blocker in {seen[-1]}")
    [blocker] = seen[-1]["blockers"]
    assert (blocker["pid"], blocker["application"]) == (psql.get_server_pid(), "psql")
    assert f"held by pid {psql.get_server_pid()} (psql)" in seen[-1]["detail"]
    await psql.close()
    await replica.ready()


async def test_an_index_build_tells_how_far_it_is(installation: Installation) -> None:
    installation.project.add_table("large")
    await installation.migrate()
    look = await installation.look()
    await look.execute("INSERT INTO large SELECT generate_series(1, 6000)")
    await look.execute(
        "CREATE FUNCTION slow(id int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN "
        "IF NOT pg_try_advisory_xact_lock_shared(1) THEN PERFORM pg_sleep(0.005); END IF; RETURN id; END $$"
    )
    await look.execute("SELECT pg_advisory_lock(1)")  # while it is held, each of 27 blocks takes more than a second
    installation.project.add_revision("indexed", 'op.execute("CREATE INDEX ON large (public.slow(id))")')
    replica = installation.replica()
    seen: list[dict[str, Any]] = []
    async with client_of(replica) as client:

        async def estimated() -> bool:
            seen.append(await readiness(client))
            return seen[-1]["eta"] is not None

        await until(estimated, 20, lambda: f"an estimate in {seen[-3:]}")
    assert all(said["percent"] is None or 0 < said["percent"] < 100 for said in seen)
    assert seen[-1]["percent"] is not None
    assert seen[-1]["eta"] > 0
    assert "CREATE INDEX: building index" in seen[-1]["detail"]
    await look.execute("SELECT pg_advisory_unlock(1)")
    await replica.ready()


async def test_a_database_that_is_away_is_waited_for_in_sight(installation: Installation) -> None:
    replica = installation.replica({"DATABASE_URL": "postgresql://gasket:hunter2secret@127.0.0.1:1/gasket"})
    async with client_of(replica) as client:
        seen: list[dict[str, Any]] = []

        async def told() -> bool:
            seen.append(await readiness(client))
            return "waiting for the database" in seen[-1]["detail"]

        await until(told, 10, lambda: str(seen[-1:]))
        assert seen[-1]["state"] == "waiting"
    replica.signal(signal.SIGTERM)
    await replica.refused(within=5)


async def test_a_refusal_after_the_port_was_open_closes_it(installation: Installation) -> None:
    installation.project.add_pause("long_step")
    installation.project.add_revision("broken", 'op.execute("SELECT 1/0")')
    await installation.pause(60)
    replica = installation.replica()
    await installation.pausing()
    async with client_of(replica) as client:
        await readiness(client)
    await installation.go_on()
    said = await replica.refused()
    assert "Revision broken failed" in said or "revision broken" in said.lower()


async def test_no_connection_is_refused_and_no_request_lost_from_the_first_answer_to_the_last(
    installation: Installation,
) -> None:
    installation.project.add_pause("long_step")
    await installation.pause(60)
    replica = installation.replica()
    await installation.pausing()
    statuses: list[int] = []
    hammering = True

    async def hammer() -> None:
        while hammering:
            async with wire(replica) as connection:
                await connection.send(request(ADMIN_TOKEN, "/api/keys", None))
                statuses.append((await connection.answer()).status)

    async with client_of(replica) as client:
        await readiness(client)
    halves = [await half_sent(replica) for _ in range(5)]
    hammers = [asyncio.create_task(hammer()) for _ in range(8)]
    await until(lambda: len(statuses) > 50, 20, "answers before")
    await installation.go_on()
    await until(lambda: statuses.count(200) > 50, 60, lambda: f"answers after: {replica}")
    hammering = False
    await asyncio.gather(*hammers)
    first = statuses.index(200)
    assert set(statuses[:first]) == {503}
    assert set(statuses[first + 8 :]) == {200}
    for connection, writer in halves:
        writer.write(b"Authorization: Bearer " + ADMIN_TOKEN.encode() + b"\r\nConnection: close\r\n\r\n")
        assert (await asyncio.wait_for(connection.readline(), 10)).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def half_sent(replica: Replica) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection with half a head on it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(replica.base_url).port)
    writer.write(b"GET /api/keys HTTP/1.1\r\nHost: gasket.test\r\n")
    await writer.drain()
    return reader, writer


async def test_the_body_that_is_half_sent_gets_its_answer(installation: Installation) -> None:
    installation.project.add_pause("long_step")
    await installation.pause(60)
    replica = installation.replica()
    await installation.pausing()
    async with client_of(replica) as client:
        await readiness(client)
    async with wire(replica) as connection:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gasket.test\r\nContent-Length: 100000\r\n\r\n"
        await connection.send(head + b"x" * 100)
        answer: Message = await connection.answer()
        assert answer.status == 503
    await installation.go_on()
    await replica.ready()


@pytest.mark.soak
async def test_kubernetes_kills_no_replica_while_one_migrates_for_a_minute(installation: Installation) -> None:
    """Liveness every second with a limit of a second, killed after three failures in a row; eight replicas."""
    installation.project.add_pause("long_step")
    await installation.pause(60)
    replicas = [installation.replica() for _ in range(8)]
    killed: list[Replica] = []
    done = False

    async def kubelet(replica: Replica) -> None:
        async with client_of(replica) as client:
            failures = 0
            while not done:
                try:
                    failures = 0 if (await client.get("/health", timeout=1)).status_code == 200 else failures + 1
                except httpx.HTTPError:
                    failures += 1
                if failures >= 3:
                    killed.append(replica)
                    replica.signal(signal.SIGKILL)
                    return
                await asyncio.sleep(1)

    probes = [asyncio.create_task(kubelet(replica)) for replica in replicas]
    began = time.monotonic()
    await asyncio.gather(*(replica.ready(within=180) for replica in replicas))
    assert time.monotonic() - began > 55
    done = True
    await asyncio.gather(*probes)
    assert not killed
    await installation.assert_migrated_once()
