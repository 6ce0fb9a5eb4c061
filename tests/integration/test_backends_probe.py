"""`POST /api/backends/{id}/test` against real servers, each wrong in its own way."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from aiohttp import web
from cryptography.fernet import Fernet

from tests.tls import certificate, context_of

from .conftest import SECRET_KEY, ApiAt, Post, assert_problem

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Probe = Callable[..., Awaitable[dict[str, Any]]]
MODELS = {"object": "list", "data": [{"id": "large", "object": "model"}, {"id": "small"}]}


@asynccontextmanager
async def backend(handler: Handler, **options: Any) -> AsyncIterator[str]:
    """The origin of a server that hands every request to this handler."""
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, **options)
        await site.start()
        yield f"{'https' if options else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def answering(status: int = 200, **response: Any) -> Handler:
    async def handle(_request: web.BaseRequest) -> web.Response:
        return web.Response(status=status, **response)

    return handle


@pytest.fixture
def probe(client: httpx.AsyncClient, post: Post) -> Probe:
    """Add a backend with this URL, test it: the answer, without how long it took."""

    async def run(base_url: str, **fields: object) -> dict[str, Any]:
        made = await post("/api/backends", name="main", base_url=base_url, **fields)
        response = await client.post(f"/api/backends/{made['id']}/test")
        assert response.status_code == 200, response.text
        assert "sk-secret" not in response.text
        result: dict[str, Any] = response.json()
        duration = result.pop("duration_ms")
        assert 0 <= duration < 20_000
        return result

    return run


def refused(status: int | None, detail: str) -> dict[str, Any]:
    return {"ok": False, "detail": f"Backend 'main' {detail}.", "models": [], "status": status, "base_url": None}


@pytest.mark.parametrize(("below", "key"), [("", None), ("/v1", "sk-secret"), ("/openai/v1/?a=b", "sk-secret")])
async def test_a_backend_that_works(probe: Probe, below: str, key: str | None) -> None:
    asked: list[tuple[str, str, str | None, str | None]] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        asked.append(
            (request.method, request.path_qs, request.headers.get("Authorization"), request.headers.get("Cookie"))
        )
        return web.json_response(MODELS)

    async with backend(handle) as origin:
        result = await probe(origin + below, api_key=key)
    assert result == {
        "ok": True,
        "detail": "Backend 'main' answers and lists 2 models.",
        "models": ["large", "small"],
        "status": 200,
        "base_url": None,
    }
    path = {"": "/models", "/v1": "/v1/models"}.get(below, "/openai/v1/models?a=b")
    assert asked == [("GET", path, f"Bearer {key}" if key else None, None)]


async def test_one_that_is_not_there(client: httpx.AsyncClient) -> None:
    for backend_id in ("0", "2147483647", "9" * 30, "x"):
        assert_problem(await client.post(f"/api/backends/{backend_id}/test"), 404, "not-found")


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (answering(401), refused(401, "refuses the credential (401); set api_key to one that it knows")),
        (answering(403), refused(403, "refuses the credential (403); set api_key to one that it knows")),
        (answering(404), refused(404, "has no /models (404); look whether base_url is right")),
        (answering(429), refused(429, "answers 429 to GET /models")),
        (answering(503), refused(503, "answers 503 to GET /models")),
        (
            answering(308, headers={"Location": "https://user:hunter2@other.example/v1/models?key=hunter2#x"}),
            refused(
                308,
                "sends /models elsewhere (308, to https://other.example/v1/models); set base_url to where it leads",
            ),
        ),
        (
            answering(302, headers={"Location": "http://["}),
            refused(302, "sends /models elsewhere (302); set base_url to where it leads"),
        ),
        (
            answering(text="<html>It works!</html>", content_type="text/html"),
            refused(200, "does not speak the OpenAI API: the answer is a web page, not JSON"),
        ),
        (
            answering(body=b'{"data": []}', headers={"Content-Encoding": "gzip"}),
            refused(200, "sends an answer that is not compressed as it says"),
        ),
        (
            answering(text='{"models": []}'),
            refused(
                200,
                "does not speak the OpenAI API: the answer is JSON, but no list of models: each entry of its `data` "
                "should have an `id`",
            ),
        ),
        (
            answering(body=b" " * (16 * 2**20 + 1)),
            refused(200, "answers with more than 16 MiB, which is too large for a list"),
        ),
    ],
)
async def test_answers_that_are_wrong(probe: Probe, handler: Handler, expected: dict[str, Any]) -> None:
    async with backend(handler) as origin:
        assert await probe(origin, api_key="sk-secret") == expected


def at(path: str, models: object = MODELS) -> Handler:
    """A server that has its list of models at this path only, and answers chats beside it."""

    async def handle(request: web.BaseRequest) -> web.Response:
        if request.path == f"{path}/models" and models is not None:
            return web.json_response(models)
        if request.path == f"{path}/chat/completions" and request.method == "POST":
            assert await request.json() == {}
            return web.json_response({"error": {"message": "model is missing"}}, status=400)
        return web.Response(status=404, text="404 page not found")

    return handle


@pytest.mark.parametrize(
    ("given", "right", "words"),
    [
        ("", "/v1", "has no /models (404); add /v1 to base_url"),
        ("/?a=b", "/v1", "has no /models (404); add /v1 to base_url"),
        ("/v1/v1", "/v1", "has no /v1/v1/models (404); take /v1 off base_url"),
        ("/v1", "/inference", None),
        ("/api", "/v1", "has no /api/models (404); set the path of base_url to /v1"),
        ("/v1", "", "has no /v1/models (404); take /v1 off base_url"),
        ("/v1", "/v1beta/openai", "has no /v1/models (404); set the path of base_url to /v1beta/openai"),
        ("", "/openai/v1", "has no /models (404); add /openai/v1 to base_url"),
    ],
)
async def test_it_finds_the_form_that_works(probe: Probe, given: str, right: str, words: str | None) -> None:
    query = given.partition("?")[2]
    async with backend(at(right)) as origin:
        result = await probe(origin + given, api_key="sk-secret")
    if words is None:
        assert result == refused(404, f"has no {given}/models (404); look whether base_url is right")
    else:
        found = f"{origin}{right}{'?' if query else ''}{query}"
        assert result == refused(404, f"{words}: there it lists 2 models") | {"base_url": found}


async def test_a_backend_without_a_list(probe: Probe, client: httpx.AsyncClient) -> None:
    """An empty request tells whether there are chats; no model has to answer it."""
    async with backend(at("/openai/deployments/x", models=None)) as origin:
        result = await probe(f"{origin}/openai/deployments/x?api-version=1")
        words = "answers /chat/completions, but has no /openai/deployments/x/models (404): which models it has is"
        assert result == refused(404, f"{words} not known") | {"ok": True}
    async with backend(at("/v1", models=None)) as origin:
        [made] = (await client.get("/api/backends")).json()["items"]
        await client.patch(f"/api/backends/{made['id']}", json={"base_url": origin})
        result = (await client.post(f"/api/backends/{made['id']}/test")).json()
    assert (result["ok"], result["base_url"]) == (False, f"{origin}/v1")
    assert "has no /models (404); add /v1 to base_url: there it answers /chat/completions." in result["detail"]


@pytest.mark.parametrize("compress", [False, True])
async def test_a_list_of_another_form(probe: Probe, compress: bool) -> None:
    body = b'[{"id": "m"}, {"name": "no id"}]'
    headers = {"Content-Encoding": "gzip"} if compress else {}
    async with backend(answering(body=gzip.compress(body) if compress else body, headers=headers)) as origin:
        result = await probe(origin)
    assert (result["ok"], result["models"]) == (True, ["m"])


async def test_a_credential_that_is_missing(probe: Probe) -> None:
    async with backend(answering(401)) as origin:
        assert await probe(origin) == refused(401, "wants a credential (401) and none is stored; set api_key")


async def test_nobody_listens(probe: Probe) -> None:
    with socket.socket() as mute:  # bound, so that nobody else is given the port
        mute.bind(("127.0.0.1", 0))
        port = mute.getsockname()[1]
        expected = refused(None, f"refuses connections: nothing listens at 127.0.0.1:{port}")
        assert await probe(f"http://127.0.0.1:{port}") == expected


async def test_the_name_does_not_resolve(probe: Probe) -> None:
    assert "does not resolve" in (await probe("http://nowhere.invalid"))["detail"]


async def test_tls_is_looked_at_unless_it_is_not_to_be(probe: Probe, client: httpx.AsyncClient, tmp_path: Path) -> None:
    tls = context_of(certificate(tmp_path))
    async with backend(answering(text='{"data": []}'), ssl_context=tls) as origin:
        host = origin.removeprefix("https://")
        assert await probe(origin) == refused(None, f"is not trusted: the certificate of {host} is self-signed")
        [made] = (await client.get("/api/backends")).json()["items"]
        await client.patch(f"/api/backends/{made['id']}", json={"skip_tls_verify": True})
        result = (await client.post(f"/api/backends/{made['id']}/test")).json()
    assert (result["ok"], result["detail"]) == (True, "Backend 'main' answers and lists no models.")


async def test_it_takes_its_connect_timeout_and_ten_seconds_at_most(
    probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gasket.backends.probe.ANSWER_SECONDS", 2.5)  # in which the head of the answer has to come

    async def trickle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)

    async with backend(trickle) as origin:
        assert await probe(origin, connect_timeout=1) == refused(200, "did not answer in time")


async def test_a_credential_that_cannot_be_opened_is_not_tried(
    client: httpx.AsyncClient, post: Post, api_at: ApiAt, api_database_url: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        origin = f"http://127.0.0.1:{server.getsockname()[1]}"
        made = await post("/api/backends", name="main", base_url=origin, api_key="sk-secret")
        async with api_at(api_database_url, secret_keys=Fernet.generate_key().decode()) as other:
            result = (await other.post(f"/api/backends/{made['id']}/test")).json()
        with pytest.raises(BlockingIOError):
            server.accept()
    assert SECRET_KEY not in result["detail"]
    del result["duration_ms"]
    assert result == refused(None, "has a credential that no key in GASKET_SECRET_KEY opens; set api_key again")


async def test_no_database_connection_waits_for_a_backend(
    client: httpx.AsyncClient, post: Post, api_at: ApiAt, api_database_url: str, database: asyncpg.Connection
) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_request: web.BaseRequest) -> web.Response:
        arrived.set()
        await go_on.wait()
        return web.json_response(MODELS)

    async with (
        backend(slow) as origin,
        api_at(api_database_url, GASKET_DATABASE_POOL_SIZE="1", GASKET_RELEASE="probing") as small,
    ):
        made = await post("/api/backends", name="main", base_url=origin)
        path = f"/api/backends/{made['id']}"
        test = asyncio.create_task(small.post(f"{path}/test"))
        async with asyncio.timeout(60):
            await arrived.wait()
            assert (await small.get(path)).status_code == 200, "the one connection is held"
        states = await database.fetch(
            "SELECT state FROM pg_stat_activity WHERE application_name LIKE 'gasket probing %'"
        )
        assert [row["state"] for row in states] == ["idle"]
        go_on.set()
        assert (await test).json()["ok"]
