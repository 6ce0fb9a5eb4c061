"""The settings of docs/backends.md, each against a scripted server of its kind."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
from aiohttp import web

from gasket.backends.breaker import Breakers
from gasket.backends.models import key_ring
from gasket.limits.limiter import Limiter
from gasket.limits.store import LimitStore
from gasket.proxy.directory import KeyDirectory
from gasket.proxy.dispatch import Dispatcher
from gasket.proxy.exchange import Exchange
from gasket.proxy.gateway import Gateway
from gasket.proxy.lookup import KeyLookup
from gasket.proxy.model_lists import ModelLists
from gasket.upstream.client import UpstreamClient

from .conftest import Post

PAGE = (Path(__file__).parents[2] / "docs" / "backends.md").read_text()
SETTINGS = {
    made["name"]: made for block in re.findall(r"```json\n(.*?)```", PAGE, re.S) for made in [json.loads(block)]
}

USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
CHAT: dict[str, Any] = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "usage": USAGE}
CHAT["choices"] = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}]
EVENT = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
DELTA = EVENT | {"choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": None}]}
LAST = EVENT | {"choices": [], "usage": USAGE}


class Kind(NamedTuple):
    """A server: the header that it asks for, its paths, and its answers. A path that it lacks is 404, as it says it."""

    header: tuple[str, str]
    models: str | None
    listing: Any
    names: list[str]
    chat: str = "/v1/chat/completions"
    headers: dict[str, str] = {}  # noqa: RUF012  # nobody changes it
    answer: Any = CHAT
    response: dict[str, str] = {}  # noqa: RUF012  # nobody changes it
    events: str = f"data: {json.dumps(DELTA)}\n\ndata: {json.dumps(LAST)}\n\ndata: [DONE]\n\n"
    missing: Any = "404: Not Found"
    compress: bool = False
    only: str | None = None
    """The only model that it answers for; None: any."""


def entries(*names: str, **more: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model", "created": 1} | more for name in names]}


TIMED = LAST | {"timings": {"predicted_per_second": 50.0}}
MESSAGE: dict[str, Any] = {
    "id": "msg",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "stop_reason": "end_turn",
}
MESSAGE |= {"content": [{"type": "text", "text": "hello"}], "usage": {"input_tokens": 7, "output_tokens": 5}}
KINDS = {
    "openai": Kind(("Authorization", "Bearer KEY"), "/v1/models", entries("gpt-5-mini", owned_by="us"), ["gpt-5-mini"]),
    "azure": Kind(
        ("api-key", "KEY"),
        "/openai/v1/models",
        entries("gpt-5-mini", status="succeeded"),
        ["gpt-5-mini"],
        chat="/openai/v1/chat/completions",
        response={"apim-request-id": "77"},
    ),
    "azure deployment": Kind(
        ("api-key", "KEY"),
        None,
        None,
        [],
        chat="/openai/deployments/DEPLOYMENT/chat/completions?api-version=2024-10-21",
        missing={"error": {"code": "404", "message": "Resource not found"}},
    ),
    "anthropic": Kind(
        ("x-api-key", "KEY"),
        "/v1/models",
        {"data": [{"type": "model", "id": "claude", "display_name": "Claude"}], "has_more": False},
        ["claude"],
        chat="/v1/messages",
        headers={"anthropic-version": "2023-06-01"},
        answer=MESSAGE,
        events='event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":7,'
        '"output_tokens":1}}}\n\nevent: message_delta\ndata: {"type":"message_delta","delta":{},"usage":'
        '{"output_tokens":5}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
        missing={"type": "error", "error": {"type": "not_found_error", "message": "Not found"}},
    ),
    "vllm": Kind(
        ("Authorization", "Bearer KEY"),
        "/v1/models",
        entries("Qwen/Qwen3-8B", max_model_len=4096),
        ["Qwen/Qwen3-8B"],
        missing={"detail": "Not Found"},
    ),
    "ollama": Kind(
        ("", ""), "/v1/models", entries("llama3.2:latest"), ["llama3.2:latest"], missing="404 page not found"
    ),
    "llama.cpp": Kind(
        ("Authorization", "Bearer KEY"),
        "/v1/models",
        {"models": [{"name": "m.gguf", "model": "m.gguf"}], **entries("m.gguf", meta={"n_ctx_train": 4096})},
        ["m.gguf"],
        events=f"data: {json.dumps(DELTA)}\n\ndata: {json.dumps(TIMED)}\n\ndata: [DONE]\n\n",
        missing={"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}},
    ),
    "gemini": Kind(
        ("Authorization", "Bearer KEY"),
        "/v1beta/openai/models",
        entries("models/gemini-2.5-flash", display_name="Gemini"),
        ["models/gemini-2.5-flash"],
        chat="/v1beta/openai/chat/completions",
        missing=[{"error": {"code": 404, "message": "not found", "status": "NOT_FOUND"}}],
        compress=True,
    ),
    "openrouter": Kind(
        ("Authorization", "Bearer KEY"),
        "/api/v1/models",
        {"data": [{"id": "meta/llama", "name": "Llama", "pricing": {"prompt": "0"}}]},
        ["meta/llama"],
        chat="/api/v1/chat/completions",
        headers={"http-referer": "https://chat.example.com", "x-title": "Our chat"},
        events=f": OPENROUTER PROCESSING\n\ndata: {json.dumps(DELTA)}\n\ndata: {json.dumps(LAST)}\n\ndata: [DONE]\n\n",
        missing="<!DOCTYPE html><html>",
    ),
}


@asynccontextmanager
async def server(kind: Kind) -> AsyncIterator[str]:
    """The origin of a server of this kind."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        header, value = kind.header
        if header and request.headers.get(header) != value:
            return web.json_response({"error": {"message": "wrong key"}}, status=401)
        if any(request.headers.get(name) != value for name, value in kind.headers.items()):
            return web.json_response({"error": {"message": "a header is missing"}}, status=400)
        if request.method == "GET" and request.path_qs == kind.models:
            body, headers = json.dumps(kind.listing).encode(), {"Content-Encoding": "gzip"}
            if kind.compress:
                return web.Response(body=gzip.compress(body), headers=headers, content_type="application/json")
            return web.Response(body=body, content_type="application/json")
        if request.method != "POST" or request.path_qs != kind.chat:
            if isinstance(kind.missing, str):
                return web.Response(status=404, text=kind.missing)
            return web.json_response(kind.missing, status=404)
        asked = await request.json()
        if "model" not in asked:
            return web.json_response({"error": {"message": "model is missing"}}, status=400)
        if kind.only is not None and asked["model"] != kind.only:
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        if asked.get("stream"):
            return web.Response(text=kind.events, content_type="text/event-stream", headers=kind.response)
        return web.json_response(kind.answer, headers=kind.response)

    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def settings(name: str, origin: str, **more: Any) -> dict[str, Any]:
    """What the page says, for a server that is elsewhere."""
    parts = urlsplit(SETTINGS[name]["base_url"])
    here = urlunsplit((*urlsplit(origin)[:2], parts.path, parts.query, ""))
    made: dict[str, Any] = (
        SETTINGS[name] | {"base_url": here} | ({"api_key": "KEY"} if "api_key" in SETTINGS[name] else {}) | more
    )
    return made


Through = Callable[[int], Awaitable[tuple[httpx.AsyncClient, list[Exchange]]]]


@pytest.fixture
async def through(post: Post, api_database_url: str) -> AsyncIterator[Through]:
    """Call it with a backend: a client of `/v1` with a key of its own, and what is noted of each request."""
    upstream = UpstreamClient()
    lookup = KeyLookup(api_database_url, schema="public", application_name="kinds", decrypt=key_ring.decrypt)

    async def start(backend: int) -> tuple[httpx.AsyncClient, list[Exchange]]:
        profile = await post("/api/profiles", name="p", backends=[backend])
        key = (await post("/api/keys", name="k", user_email="ada@example.com", profile_id=profile["id"]))["key"]
        noted: list[Exchange] = []
        gateway: Any = Gateway(
            KeyDirectory(lookup.find, ttl=60),
            Dispatcher(upstream, Breakers()),
            ModelLists(upstream),
            Limiter(LimitStore(api_database_url, schema="public", application_name="kinds")),
            largest_body=10_000,
            most_in_bodies=20_000,
            most_requests=10,
            key_share=100,
            observers=[noted.append],
        )
        transport = httpx.ASGITransport(gateway)
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(transport=transport, base_url="http://gasket/v1", headers=headers), noted

    yield start
    await upstream.close()
    await lookup.close()


def test_the_page_has_each_kind_and_nothing_else() -> None:
    assert SETTINGS.keys() == KINDS.keys()
    headings = re.findall(r"^## (.*)$", PAGE, re.M)
    assert headings == ["OpenAI", "Azure OpenAI", "Anthropic", "vLLM", "Ollama", "llama.cpp", "Gemini", "OpenRouter"]


@pytest.mark.parametrize("name", KINDS)
async def test_its_settings_work(client: httpx.AsyncClient, post: Post, through: Through, name: str) -> None:
    kind = KINDS[name]
    async with server(kind) as origin:
        backend = await post("/api/backends", **settings(name, origin))
        tested = await post(f"/api/backends/{backend['id']}/test")
        assert (tested["ok"], tested["models"], tested["base_url"]) == (True, kind.names, None), tested["detail"]

        gasket, noted = await through(backend["id"])
        listed = await gasket.get("/models")
        assert [entry["id"] for entry in listed.json()["data"]] == kind.names
        assert ("x-gasket-unavailable-backends" in listed.headers) is (kind.models is None)

        path = "/messages" if name == "anthropic" else "/chat/completions"
        body = {"model": (kind.names or ["any"])[0], "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
        plain = await gasket.post(path, json=body, params={"api-version": "2020-01-01"} if "?" in kind.chat else None)
        assert (plain.status_code, plain.json()) == (200, kind.answer)
        assert {name: plain.headers.get(name) for name in kind.response} == kind.response
        streamed = await gasket.post(path, json=body | {"stream": True, "stream_options": {"include_usage": True}})
        assert (streamed.status_code, streamed.text) == (200, kind.events)
        assert [(each.prompt_tokens, each.completion_tokens) for each in noted[1:]] == [(7, 5), (7, 5)]


@pytest.mark.parametrize(("name", "alias"), [("ollama", "llama3.2"), ("gemini", "gemini-2.5-flash")])
async def test_rows_give_models_other_names(post: Post, through: Through, name: str, alias: str) -> None:
    [listed] = KINDS[name].names
    async with server(KINDS[name]._replace(only=listed)) as origin:
        rows = [{"name": alias, "backend_model": listed}]
        gasket, _ = await through((await post("/api/backends", **settings(name, origin, models=rows)))["id"])
        assert [entry["id"] for entry in (await gasket.get("/models")).json()["data"]] == [alias]
        assert (await gasket.post("/chat/completions", json={"model": alias, "messages": []})).json() == CHAT


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.models])
async def test_where_the_path_is_left_out_the_test_names_it(post: Post, name: str) -> None:
    async with server(KINDS[name]) as origin:
        backend = await post("/api/backends", **settings(name, origin, base_url=origin))
        tested = await post(f"/api/backends/{backend['id']}/test")
    path = urlsplit(SETTINGS[name]["base_url"]).path
    assert (tested["ok"], tested["base_url"]) == (False, origin + path), tested["detail"]
    assert f"add {path} to base_url" in tested["detail"]


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.header[0]])
async def test_without_its_key_the_test_says_so(post: Post, name: str) -> None:
    async with server(KINDS[name]) as origin:
        backend = await post("/api/backends", **settings(name, origin, api_key=None))
        tested = await post(f"/api/backends/{backend['id']}/test")
    assert (tested["ok"], tested["status"]) == (False, 401)
    assert "wants a credential (401) and none is stored" in tested["detail"]
