"""`/metrics` of a real replica, after real traffic through real backends."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from aiohttp import web
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.acceptance.installation import ADMIN_TOKEN, Installation, api
from tests.acceptance.processes import Replica, free_port, until

DOCUMENT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
REQUESTS = "gasket_gateway_requests_total"
ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
NOT_YET = ("gasket_start_", "gasket_background_rows_", "gasket_schema_drift")
"""The start is over, no work is open, and no replica has looked for drift."""
REFUSALS = {"limited": 429, "overloaded": 500}


class Backend:
    """A server in this process whose models each fail in a way of their own; `slow` waits for `go_on`."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Of any path; it has no list of its models."""
        model = (await request.json())["model"] if request.method == "POST" else "invented"
        if model == "breaks":
            response = web.StreamResponse(headers={"content-length": "1000"})
            await response.prepare(request)
            await response.write(b"x" * 10)
            assert request.transport is not None
            request.transport.abort()
            return response
        if model == "slow":
            self.asked.set()
            await self.go_on.wait()
        status = 404 if model.startswith("invented") else REFUSALS.get(model, 200)
        return web.json_response({"usage": {"prompt_tokens": 7, "completion_tokens": 3}}, status=status)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Its base URL."""
        runner = web.ServerRunner(web.Server(self.answer), shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        finally:
            self.go_on.set()
            await runner.cleanup()


class Scrape:
    """What `/metrics` says at one moment."""

    def __init__(self, text: str, *, opened: bool = False) -> None:
        families = list(parse_openmetrics(text) if opened else parse_text(text))  # type: ignore[no-untyped-call]
        self.samples = [sample for family in families for sample in family.samples]

    @classmethod
    async def of(cls, replica: Replica) -> Scrape:
        return cls((await scrape(replica, ADMIN)).raise_for_status().text)

    def total(self, name: str, **labels: str) -> float:
        """The sum over the series of this name that have these labels."""
        return sum(float(s.value) for s in self.samples if s.name == name and labels.items() <= s.labels.items())

    def values(self, name: str, label: str) -> set[str]:
        """Those that the label has."""
        return {s.labels[label] for s in self.samples if s.name == name}

    @property
    def names(self) -> set[str]:
        """Of our metrics; a histogram by its own name."""
        names = {re.sub(r"_seconds_(bucket|count|sum)$", "_seconds", s.name) for s in self.samples}
        return {name for name in names if name.startswith("gasket_")}


async def scrape(replica: Replica, headers: dict[str, str] | None = None, path: str = "/metrics") -> httpx.Response:
    async with httpx.AsyncClient(base_url=replica.base_url, trust_env=False, verify=False, timeout=30) as client:
        return await client.get(path, headers=headers or {})


async def made(client: httpx.AsyncClient, path: str, **fields: Any) -> dict[str, Any]:
    response = await client.post(path, json=fields)
    assert response.is_success, response.text
    body: dict[str, Any] = response.json()
    return body


@asynccontextmanager
async def gateway(replica: Replica, *base_urls: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `/v1` with a key of profile `staff`, whose backends are `backend-0`, `backend-1`, ..."""
    async with api(replica) as admin:
        backends = [
            (await made(admin, "/backends", name=f"backend-{n}", base_url=url))["id"] for n, url in enumerate(base_urls)
        ]
        profile = await made(admin, "/profiles", name="staff", backends=backends)
        key = await made(admin, "/keys", user_email="ada@example.com", name="a key", profile_id=profile["id"])
    headers = {"Authorization": f"Bearer {key['key']}"}
    async with httpx.AsyncClient(
        base_url=f"{replica.base_url}/v1", headers=headers, trust_env=False, verify=False, timeout=30
    ) as client:
        yield client


async def chat(client: httpx.AsyncClient, model: str) -> int:
    """The status; 0 where the answer broke off."""
    try:
        return (await client.post("/chat/completions", json={"model": model, "messages": []})).status_code
    except httpx.RemoteProtocolError:
        return 0


async def counted(replica: Replica, requests: int) -> Scrape:
    """A scrape when so many requests have been counted: that happens just after their clients have the answer."""
    found: list[Scrape] = []

    async def all_there() -> bool:
        found[:] = [await Scrape.of(replica)]
        return found[0].total(REQUESTS) >= requests

    await until(all_there, 30, f"{requests} requests in /metrics")
    assert found[0].total(REQUESTS) == requests
    return found[0]


async def after_traffic(replica: Replica) -> Scrape:
    """29 requests of many kinds, one of them with a key that is not valid."""
    backend = Backend()
    async with backend.serving() as url, gateway(replica, url) as client:
        invented = [f"invented-{n}" for n in range(20)]
        models = ["llama", "llama", "limited", "overloaded", "breaks", *invented]
        assert [await chat(client, model) for model in models] == [200, 200, 429, 500, 0, *[404] * 20]
        assert (await client.get("/models")).status_code == 200
        assert (await client.get("/files")).status_code == 403
        assert (await client.get("/models", headers={"Authorization": "Bearer wrong"})).status_code == 401
        slow = asyncio.create_task(chat(client, "slow"))
        await asyncio.wait_for(backend.asked.wait(), 10)
        assert (await counted(replica, 28)).total("gasket_gateway_requests_in_flight") == 1
        backend.go_on.set()
        assert await slow == 200
        return await counted(replica, 29)


async def test_every_promised_metric_is_there_after_real_traffic(installation: Installation) -> None:
    replica = installation.replica()
    await replica.ready()
    found = await after_traffic(replica)
    documented = set(re.findall(r"^\| `(gasket_\w+)`", DOCUMENT, re.MULTILINE))
    assert found.names == {name for name in documented if not name.startswith(NOT_YET)}
    assert found.values(REQUESTS, "model") == {"", "llama", "breaks", "slow", "other"}
    assert found.values(REQUESTS, "route") == {"/v1/chat/completions", "/v1/models", "other"}
    assert found.values(REQUESTS, "outcome") == {"ok", "upstream_failed", "refused"}
    chats = {"route": "/v1/chat/completions", "profile": "staff", "backend": "backend-0"}
    head = installation.project.revisions()[-1]
    for name, labels, expected in (
        (REQUESTS, {**chats, "model": "llama", "outcome": "ok", "status_class": "2xx"}, 2),
        (REQUESTS, {**chats, "model": "other", "status_class": "4xx"}, 21),
        (REQUESTS, {"profile": "", "backend": "", "outcome": "refused", "status_class": "4xx"}, 1),
        ("gasket_gateway_request_duration_seconds_count", {}, 29),
        ("gasket_gateway_time_to_first_byte_seconds_count", {"backend": "backend-0", "model": "llama"}, 2),
        ("gasket_gateway_tokens_total", {"profile": "staff", "model": "llama", "kind": "prompt"}, 14),
        ("gasket_gateway_tokens_total", {"profile": "staff", "model": "llama", "kind": "completion"}, 6),
        ("gasket_gateway_requests_in_flight", {}, 0),
        ("gasket_backend_errors_total", {}, 3),
        ("gasket_backend_errors_total", {"backend": "backend-0", "kind": "rate_limited"}, 1),
        ("gasket_backend_errors_total", {"backend": "backend-0", "kind": "server_error"}, 1),
        ("gasket_backend_errors_total", {"backend": "backend-0", "kind": "broken_off"}, 1),
        ("gasket_backend_state", {"backend": "backend-0", "state": "available"}, 1),
        ("gasket_key_cache_keys", {}, 1),
        ("gasket_database_pool_size", {"pool": "api"}, 8),
        ("gasket_database_pool_size", {"pool": "keys"}, 2),
        ("gasket_schema_info", {"head": head, "revision": head}, 1),
        ("gasket_schema_state", {}, 1),
        ("gasket_schema_state", {"state": "at_head"}, 1),
        ("gasket_schema_pending_revisions", {}, 0),
        ("gasket_api_requests_total", {"method": "POST", "route": "/api/keys", "status": "201"}, 1),
    ):
        assert found.total(name, **labels) == expected, (name, labels)
    # What was looked up before the replica listened for changes, or heard of those that made the key, is again.
    assert found.total("gasket_key_cache_hits_total") + found.total("gasket_key_cache_misses_total") == 28
    assert found.total("gasket_key_cache_misses_total") in (1, 2, 3)
    for name in ("gasket_schema_startup_seconds", "gasket_gateway_bytes_total", "process_resident_memory_bytes"):
        assert found.total(name) > 0, name


async def test_a_backend_that_is_away_shows_though_another_one_answers(installation: Installation) -> None:
    replica = installation.replica()
    await replica.ready()
    async with Backend().serving() as url, gateway(replica, f"http://127.0.0.1:{free_port()}/v1", url) as client:
        assert [await chat(client, "llama") for _ in range(6)] == [200] * 6
        found = await counted(replica, 6)
    assert found.total(REQUESTS, backend="backend-1", model="llama", outcome="ok") == 6
    assert found.total("gasket_backend_errors_total", backend="backend-0", kind="not_connected") == 5
    assert found.total("gasket_backend_state", backend="backend-0", state="set_aside") == 1
    assert found.total("gasket_backend_state", backend="backend-1", state="available") == 1


async def test_who_may_read_it_and_in_which_format(installation: Installation) -> None:
    private, public = installation.replica(), installation.replica({"GASKET_METRICS_PUBLIC": "true"})
    await asyncio.gather(private.ready(), public.ready())
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        refusal = await scrape(private, headers)
        assert refusal.status_code == 401
        assert refusal.headers["www-authenticate"] == "Bearer"
        assert "gasket_gateway" not in refusal.text
    for replica, headers in ((private, ADMIN), (public, {})):
        plain = await scrape(replica, headers)
        assert plain.status_code == 200
        assert plain.headers.get_list("content-type") == ["text/plain; version=0.0.4; charset=utf-8"]
        assert Scrape(plain.text).total("gasket_schema_state", state="at_head") == 1
    opened = await scrape(public, {"Accept": OPENMETRICS})
    assert opened.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert opened.text.endswith("# EOF\n")
    assert Scrape(opened.text, opened=True).total("gasket_schema_state", state="at_head") == 1
    odd = await scrape(public, {"Accept": "application/openmetrics-text;version=abc;q=x"})
    assert odd.status_code == 200
    assert (await scrape(private, path="/metrics/?x=1")).status_code == 401
    assert "GET /metrics" not in private.output


async def close(server_url: str, installation: Installation) -> None:
    """Nobody gets into the installation's database any more, and who is in is thrown out."""
    database = await (await installation.look()).fetchval("SELECT current_database()")
    server = await asyncpg.connect(server_url, timeout=10)

    async def is_empty() -> bool:
        """Again and again: who was let in just before may come to be seen only now."""
        ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1"
        return not await server.fetchval(ended, database)

    try:
        await server.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
        await until(is_empty, 30, "the end of all sessions")
    finally:
        await server.close(timeout=10)


async def test_it_is_there_while_the_database_is_away(installation: Installation, server_url: str) -> None:
    replica = installation.replica()
    await replica.ready()
    head = installation.project.revisions()[-1]
    await close(server_url, installation)
    found: list[Scrape] = []

    async def says_so() -> bool:
        found[:] = [await Scrape.of(replica)]
        return found[0].total("gasket_schema_state", state="database_away") == 1

    await until(says_so, 30, "database_away in /metrics")
    assert found[0].total("gasket_schema_state") == 1
    assert found[0].total("gasket_schema_info", head=head, revision=head) == 1
    assert found[0].total("gasket_database_pool_size", pool="keys") == 2
