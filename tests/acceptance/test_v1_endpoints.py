"""Which paths a key may use, and which models."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.acceptance.gateway import CHAT, HELLO, Gateway, Tenant
from tests.acceptance.http11 import Message
from tests.acceptance.upstream import End, failure, json_answer

OPEN = [
    *["chat/completions", "completions", "embeddings", "responses", "moderations", "rerank"],
    *["images/generations", "images/edits", "images/variations"],
    *["audio/speech", "audio/transcriptions", "audio/translations"],
]
STATEFUL = [
    ("GET", "files"),
    ("POST", "files"),
    ("DELETE", "files/file-1"),
    ("POST", "batches"),
    ("GET", "responses/resp_1"),
    ("DELETE", "responses/resp_1"),
    ("POST", "responses/resp_1/cancel"),
    ("GET", "chat/completions"),
    ("POST", "vector_stores"),
    ("POST", "fine_tuning/jobs"),
    ("GET", "organization/users"),
    ("DELETE", "models/ft:model-a"),
    ("PUT", "chat/completions"),
    ("POST", "models"),
    ("GET", "something/new"),
]
AT_ONCE = 1.9
"""Seconds: less than the two for which a list is waited for, if it is."""
ONE_PLACE = {"max_concurrency": 1}
FORM = [("Content-Type", "multipart/form-data; boundary=XX")]


def names(answer: Message) -> list[str]:
    """The ids of a list of models."""
    assert answer.status == 200, answer
    assert answer.json["object"] == "list"
    return [model["id"] for model in answer.json["data"]]


def form(*fields: tuple[str, str], file: bytes = b"RIFF\r\n--X\0\xff") -> bytes:
    """A multipart body with these fields and a file."""
    parts = [f'--XX\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'.encode() for n, v in fields]
    disposition = (
        b'--XX\r\nContent-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: audio/wav\r\n\r\n'
    )
    return disposition + file + b"\r\n" + b"".join(parts) + b"--XX--\r\n"


async def test_every_key_may_use_these(tenant: Tenant) -> None:
    for path in OPEN:
        assert (await tenant.ask(f"/v1/{path}")).status == 200, path
        seen = tenant.upstream.requests[-1]
        assert (seen.method, seen.target, seen.message.json) == ("POST", f"/v1/{path}", HELLO)


async def test_the_others_are_for_profiles_that_say_so(gateway: Gateway) -> None:
    closed, opened = await gateway.tenant(), await gateway.tenant(allow_stateful_endpoints=True)
    for method, path in STATEFUL:
        body = HELLO if method in ("POST", "PUT") else None
        assert (await closed.ask(f"/v1/{path}", body, method=method)).error == (403, "endpoint_not_allowed"), path
        assert (await opened.ask(f"/v1/{path}?limit=2", body, method=method)).status == 200, path
        seen = opened.upstream.requests[-1]
        assert (seen.method, seen.target) == (method, f"/v1/{path}?limit=2")
    assert closed.upstream.requests == []


async def test_what_leaves_something_behind_goes_to_the_first_backend_and_nowhere_else(gateway: Gateway) -> None:
    tenant = await gateway.tenant({}, {}, allow_stateful_endpoints=True)
    first, second = tenant.upstreams
    for script, status in ((failure(429), 429), (failure(503), 503), ((End.RST,), 502)):
        first.plays(script)
        assert (await tenant.ask("/v1/files", None)).status == status
    assert len(first.requests) >= 3  # a GET on a connection that broke may be sent again, to the same backend
    assert second.requests == []


async def test_nor_does_it_when_the_first_backend_has_no_place(gateway: Gateway) -> None:
    tenant = await gateway.tenant({"answers": [(End.NEVER,)]}, {}, allow_stateful_endpoints=True, backend=ONE_PLACE)
    async with tenant.wire() as wire:
        await wire.send(tenant.request("/v1/files", None))
        await tenant.upstream.asked()
        assert (await tenant.ask("/v1/files", None)).error == (503, "overloaded")
    assert tenant.upstreams[1].requests == []


@pytest.mark.parametrize("base_path", ["", "/v1/", "/openai/v1", "/api/paas/v4", "/openai/deployments/x?api-version=1"])
async def test_a_base_url_is_what_stands_before_an_endpoint(gateway: Gateway, base_path: str) -> None:
    tenant = await gateway.tenant(base_path=base_path)
    assert (await tenant.ask()).status == 200
    assert names(await tenant.ask("/v1/models", None)) == ["model-a", "model-b"]
    path, mark, query = base_path.partition("?")
    prefix = path.rstrip("/")
    assert (await tenant.upstream.asked()).target == f"{prefix}/chat/completions{mark}{query}"
    assert {seen.target for seen in tenant.upstream.listings} == {f"{prefix}/models{mark}{query}"}


async def test_only_allowed_models(gateway: Gateway) -> None:
    tenant = await gateway.tenant(allowed_models=["model-a"])
    for path in OPEN:
        assert (await tenant.ask(f"/v1/{path}", {"model": "model-b"})).error == (403, "model_not_allowed"), path
        assert (await tenant.ask(f"/v1/{path}", {"input": "x"})).error == (400, "model_required"), path
        assert tenant.upstream.requests == []
    for path in OPEN:
        assert (await tenant.ask(f"/v1/{path}", {"model": "model-a"})).status == 200, path


URLENCODED = [("Content-Type", "application/x-www-form-urlencoded")]
Refusal = tuple[int, str] | None
"""None: refused, in whatever words."""
BODIES: list[tuple[bytes, Refusal]] = [
    (b'{"model": "model-a", "model": "model-b"}', (400, "model_required")),
    (b'{"model": "model-b", "model": "model-a"}', (400, "model_required")),
    (b'{"model": "model-a", "\\u006dodel": "model-b"}', (400, "model_required")),
    (b'{"mod\\u0065l": "model-b"}', (403, "model_not_allowed")),
    (b'{"model": "model-\\u0062"}', (403, "model_not_allowed")),
    (b'{"model": "MODEL-A"}', (403, "model_not_allowed")),
    (b'{"model": "model-a "}', (403, "model_not_allowed")),
    (b'{"model": ""}', None),
    (b'{"model": null}', None),
    (b'{"x": {"model": "model-a"}}', (400, "model_required")),
]
OTHER_BODIES: list[tuple[bytes, list[tuple[str, str]], Refusal]] = [
    (form(("model", "model-b")), FORM, (403, "model_not_allowed")),
    (form(("prompt", "model-a"), ("model", "model-b")), FORM, (403, "model_not_allowed")),
    (form(("model", "model-a"), ("model", "model-b")), FORM, (400, "model_required")),
    (form(("prompt", "model-a")), FORM, (400, "model_required")),
    (b"model=model-b&model-a", URLENCODED, (415, "unsupported_media_type")),
    (b'{"model":"model-a","x":"&model=model-b&"}', URLENCODED, (415, "unsupported_media_type")),
    (b'{"model": "model-b"}', [("Content-Type", "text/plain")], None),
    (b"\0\x01", [("Content-Type", "application/octet-stream")], None),
    (b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\nmodel-a', FORM, None),
]


async def test_no_way_of_writing_it_gets_another_model_through(gateway: Gateway) -> None:
    tenant = await gateway.tenant(allowed_models=["model-a"])
    for path, cases in (
        (CHAT, [(body, [], error) for body, error in BODIES]),
        ("/v1/audio/transcriptions", OTHER_BODIES),
    ):
        for body, headers, error in cases:
            got = await tenant.ask(path, body, headers=headers)
            assert got.error == error if error else got.status in (400, 403, 415), (body, got)
    assert tenant.upstream.requests == []


QUERIES = ["model=model-b", "a=1&Model=model-b", "mod%65l=model-b", "a;model=x", "model[]=x", "mod%2565l=x", "m%F6=1"]


async def test_nor_has_the_query_another_one(gateway: Gateway) -> None:
    tenant = await gateway.tenant(allowed_models=["model-a"])
    for query in QUERIES:
        assert (await tenant.ask(f"{CHAT}?{query}")).error == (400, "model_required"), query
    assert tenant.upstream.requests == []
    assert (await tenant.ask(f"{CHAT}?api-version=model&include[]=model%3Db")).status == 200
    free = await gateway.tenant()
    assert (await free.ask(f"{CHAT}?model=model-b")).status == 200


async def test_nor_has_a_path_that_another_server_takes_for_it(gateway: Gateway) -> None:
    """With stateful endpoints every path goes through, and is looked at as closely as the others."""
    tenant = await gateway.tenant(allowed_models=["model-a"], allow_stateful_endpoints=True)
    other = form(("model", "model-b"))
    cases: list[tuple[str, bytes, list[tuple[str, str]], tuple[int, str]]] = [
        ("audio/transcription%73", other, FORM, (400, "invalid_path")),
        ("audio/transcriptions;x", other, FORM, (400, "invalid_path")),
        ("Audio/transcriptions", other, FORM, (403, "model_not_allowed")),
        ("Chat/completions", b'{"model":"model-b"}', [], (403, "model_not_allowed")),
        ("Chat/completions", b'\xef\xbb\xbf{"model":"model-b"}', [], (400, "invalid_json")),
        ("Chat/completions", '{"model":"model-b"}'.encode("utf-16"), [], (400, "invalid_json")),
        ("Chat/completions", b'{"Model":"model-b"}', [], (400, "model_required")),
        ("Chat/completions", b"model=model-b", URLENCODED, (415, "unsupported_media_type")),
        ("chat%20/completions?model=model-b", b"{}", [], (400, "model_required")),
        ("engines/model-b/completions", b"{}", [], (403, "model_not_allowed")),
        ("Deployments/model-b/chat/completions", b"{}", [], (403, "model_not_allowed")),
        ("models/model-b:generate", b"{}", [], (403, "model_not_allowed")),
    ]
    for path, body, headers, error in cases:
        assert (await tenant.ask(f"/v1/{path}", body, headers=headers)).error == error, (path, body)
    assert tenant.upstream.requests == []
    for path, body, headers in (
        ("files", form(("purpose", "batch")), FORM),
        ("fine_tuning/jobs", b'{"model":"model-a","training_file":"f"}', []),
        ("batches", b'{"input_file_id":"f"}', []),
    ):
        assert (await tenant.ask(f"/v1/{path}", body, headers=headers)).status == 200
    assert (await tenant.ask("/v1/files?limit=2", None)).status == 200


STORED: list[dict[str, Any]] = [
    {"previous_response_id": "resp_1"},
    {"conversation": "conv_1"},
    {"conversation": {"id": "conv_1"}},
    {"background": True},
]


async def test_what_an_upstream_keeps_of_responses_is_for_profiles_that_say_so(gateway: Gateway) -> None:
    closed = await gateway.tenant()
    for more in STORED:
        got = await closed.ask("/v1/responses", {**HELLO, **more})
        assert got.error == (403, "endpoint_not_allowed"), more
        assert got.json["error"]["param"] in more
    assert closed.upstream.requests == []
    for path, body in (
        ("responses", {**HELLO, "previous_response_id": None, "background": False}),
        ("images/generations", {**HELLO, "background": "transparent"}),
        ("chat/completions", {**HELLO, "conversation": "x"}),
    ):
        assert (await closed.ask(f"/v1/{path}", body)).status == 200


async def test_and_goes_to_the_first_backend_and_nowhere_else(gateway: Gateway) -> None:
    """Also where another one has the model: only the first can have what the request is about."""
    other = {"listing": json_answer({"object": "list", "data": [{"id": "model-z"}]})}
    tenant = await gateway.tenant(other, {}, allow_stateful_endpoints=True)
    first, second = tenant.upstreams
    for more in STORED:
        first.plays(failure(503))
        assert (await tenant.ask("/v1/responses", {**HELLO, **more})).status == 503
    assert second.requests == []
    assert (await tenant.ask("/v1/responses", HELLO)).status == 200
    assert len(second.requests) == 1


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"x": [{"model": "model-a"}, {"model": "model-b"}], "model": "model-a"}', []),
        (b'{"x": "\\"model\\": \\"model-b\\"", "model": "model-a"}', []),
        (form(("model", "model-a"), file=b'--X\r\n\r\n"model": "model-b"'), FORM),
    ],
)
async def test_another_model_elsewhere_in_the_body_is_none(
    gateway: Gateway, body: bytes, headers: list[tuple[str, str]]
) -> None:
    tenant = await gateway.tenant(allowed_models=["model-a"])
    assert (await tenant.ask("/v1/audio/transcriptions", body, headers=headers)).status == 200
    assert (await tenant.upstream.asked()).message.body == body


async def test_without_a_list_any_model_and_any_kind_of_body(gateway: Gateway) -> None:
    """The backend's own list cannot be had, so it may serve anything."""
    tenant = await gateway.tenant({"listing": failure(404)})
    for body, headers in (
        (form(("prompt", "no model at all")), FORM),
        (form(("model", "any")), FORM),
        (json.dumps({"model": "any"}).encode(), []),
        (json.dumps({"input": "any"}).encode(), []),
    ):
        assert (await tenant.ask("/v1/images/edits", body, headers=headers)).status == 200
        assert tenant.upstream.requests[-1].message.body == body


async def test_the_lists_of_all_backends_are_one(gateway: Gateway) -> None:
    def listing(*ids: str) -> dict[str, Any]:
        return {"listing": json_answer({"object": "list", "data": [{"id": n, "object": "model", "x": 1} for n in ids]})}

    scripts = listing("model-c", "model-a"), listing("model-a", "model-b"), listing("model-z")
    tenant = await gateway.tenant(*scripts)
    got = await tenant.ask("/v1/models", None)
    assert names(got) == ["model-c", "model-a", "model-b", "model-z"]
    assert {model["x"] for model in got.json["data"]} == {1}
    assert got.all("x-gasket-unavailable-backends") == []
    one = await tenant.ask("/v1/models/model-b", None)
    assert (one.status, one.json["id"]) == (200, "model-b")
    assert (await tenant.ask("/v1/models/model-y", None)).error == (404, "model_not_found")
    assert {len(upstream.listings) for upstream in tenant.upstreams} == {1}, "each list is kept for a minute"
    for upstream in tenant.upstreams:
        assert upstream.listings[0].message.all("authorization") == ["Bearer sk-upstream"]

    filtered = await gateway.tenant(*scripts, allowed_models=["model-z", "model-c", "model-y"])
    assert names(await filtered.ask("/v1/models", None)) == ["model-c", "model-z"]
    assert (await filtered.ask("/v1/models/model-a", None)).error[0] in (403, 404)


@pytest.mark.parametrize(
    "broken", [failure(500), failure(401), (End.RST,), (b"no HTTP", End.FIN), json_answer({"data": 3})]
)
async def test_a_list_that_cannot_be_had_is_left_out_and_named(gateway: Gateway, broken: Any) -> None:
    tenant = await gateway.tenant({}, {"listing": broken})
    got = await tenant.ask("/v1/models", None)
    assert names(got) == ["model-a", "model-b"]
    assert got.one("x-gasket-unavailable-backends") == (await tenant.backend(1))["name"]


async def test_a_list_that_does_not_come_holds_up_nobody_who_can_do_without_it(gateway: Gateway) -> None:
    """The first backend is known to have the model, whatever the second one would say. The other way round the
    request waits for a moment, as the first one may lack it; without its list the first one keeps its place.
    """
    good: dict[str, Any] = {}
    silent = {"listing": (End.NEVER,)}
    loop = asyncio.get_running_loop()
    for scripts, patience in (((good, silent), AT_ONCE), ((silent, good), 8)):
        took: list[float] = []
        for _ in range(5):  # other processes may keep the replica waiting
            tenant = await gateway.tenant(*scripts)
            times = [loop.time()]
            for _ in range(2):
                assert (await tenant.ask()).status == 200
                times.append(loop.time())
            assert [len(upstream.requests) for upstream in tenant.upstreams] == [2, 0]
            took = [times[1] - times[0], times[2] - times[1]]
            if took[0] < patience and took[1] < AT_ONCE:
                break
        assert took[0] < patience
        assert took[1] < AT_ONCE


@pytest.mark.soak
async def test_nor_does_it_hold_up_the_merged_list_for_long(gateway: Gateway) -> None:
    tenant = await gateway.tenant({}, {"listing": (End.NEVER,)})
    async with asyncio.timeout(12):
        got = await tenant.ask("/v1/models", None)
    assert names(got) == ["model-a", "model-b"]
    assert got.one("x-gasket-unavailable-backends") == (await tenant.backend(1))["name"]


async def test_a_model_that_no_backend_has(gateway: Gateway) -> None:
    tenant = await gateway.tenant({}, {})
    assert (await tenant.ask(body={"model": "model-z"})).error == (404, "model_not_found")
    assert [upstream.requests for upstream in tenant.upstreams] == [[], []]


async def test_a_profile_without_backends(gateway: Gateway) -> None:
    tenant = await gateway.tenant_of([], [])
    assert (await tenant.ask()).error == (404, "no_backends")
    assert (await tenant.ask("/v1/embeddings", {"model": "x"})).error == (404, "no_backends")
