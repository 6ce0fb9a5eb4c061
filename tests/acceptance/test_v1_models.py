"""Models that backends know by other names, end users, and which backend they go to."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.acceptance.gateway import HELLO, Gateway, Tenant, created
from tests.acceptance.processes import until
from tests.acceptance.upstream import failure, json_answer

FORM = [("Content-Type", "multipart/form-data; boundary=xyz")]


def form(model: str) -> bytes:
    return (
        f'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n'
        '--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nmodel-a\r\n--xyz--\r\n'
    ).encode()


async def list_models(tenant: Tenant, number: int, *rows: dict[str, Any]) -> None:
    """Give a backend these rows, and wait until the replica knows."""
    url = f"/backends/{tenant.backends[number]}"
    await created(await tenant.api.patch(url, json={"models": list(rows) or None}), 200)
    names = {row["name"] for row in rows}

    async def known() -> bool:
        return names <= {model["id"] for model in (await tenant.ask("/v1/models", None)).json["data"]}

    await until(known, 10, "the rows")


def bodies(tenant: Tenant, number: int = 0) -> list[bytes]:
    return [bytes(seen.message.body) for seen in tenant.upstreams[number].requests if seen.method == "POST"]


def models(tenant: Tenant, number: int = 0) -> list[str]:
    """The models that the upstream was asked for."""
    return [json.loads(body)["model"] for body in bodies(tenant, number)]


async def test_a_backend_is_asked_by_its_own_names_and_no_others(gateway: Gateway) -> None:
    tenant = await gateway.tenant({})
    row = {"name": "llama", "backend_model": "llama:latest"}
    await list_models(tenant, 0, row, {"name": "same"})
    assert [model["id"] for model in (await tenant.ask("/v1/models", None)).json["data"]] == ["llama", "same"]
    assert (await tenant.ask("/v1/models/llama", None)).json["id"] == "llama"
    body = b'{ "messages": [{"role": "user", "content": "model"}],\n"model" : "llama", "n": 1.0 }'
    got = await tenant.ask(body=body)
    assert (got.status, got.json["model"]) == (200, "model-a"), "the answer is the backend's"
    assert (await tenant.ask(body={**HELLO, "model": "same"})).status == 200
    assert (await tenant.ask("/v1/audio/transcriptions", form("llama"), headers=FORM)).status == 200
    first, second, third = bodies(tenant)
    assert first == body.replace(b'"llama"', b'"llama:latest"')
    assert json.loads(second) == {**HELLO, "model": "same"}
    assert third == form("llama:latest")
    for path, refused, code in [
        ("/v1/chat/completions", {**HELLO, "model": "llama:latest"}, (404, "model_not_found")),
        ("/v1/chat/completions", {"messages": []}, (400, "model_required")),
        ("/v1/chat/completions", b'{"model":"llama","Model":"hidden"}', (400, "model_required")),
        ("/v1/chat/completions?model=hidden", {**HELLO, "model": "llama"}, (400, "model_required")),
    ]:
        assert (await tenant.ask(path, refused)).error == code
    assert len(bodies(tenant)) == 3


async def test_streams_that_are_asked_for_usage_have_the_other_name_too(gateway: Gateway) -> None:
    tenant = await gateway.tenant({})
    await list_models(tenant, 0, {"name": "m", "backend_model": "real"})
    assert (await tenant.ask(body={**HELLO, "model": "m", "stream": True})).status == 200
    [body] = bodies(tenant)
    assert json.loads(body) == {**HELLO, "model": "real", "stream": True, "stream_options": {"include_usage": True}}


async def test_another_model_of_the_same_backend_takes_over(gateway: Gateway) -> None:
    tenant = await gateway.tenant({}, {})
    await list_models(
        tenant,
        0,
        {"name": "m", "backend_model": "small", "priority": 2},
        {"name": "m", "backend_model": "big", "priority": 1},
    )
    first = tenant.upstreams[0]
    first.plays(failure(503), json_answer({"from": "small"}))
    assert (await tenant.ask(body={**HELLO, "model": "m"})).json == {"from": "small"}
    assert models(tenant) == ["big", "small"]
    first.plays(*[item for _ in range(4) for item in (failure(503), json_answer({}))])
    for _ in range(4):
        await tenant.ask(body={**HELLO, "model": "m"})
    shown = await tenant.backend()
    assert (shown["models_set_aside"], shown["state"]) == (["big"], "available"), "judged by the backend's own name"
    assert (await tenant.ask(body={**HELLO, "model": "m"})).status == 200
    assert models(tenant)[-1] == "small"


async def test_canaries_get_their_share(gateway: Gateway) -> None:
    tenant = await gateway.tenant({}, {})
    await list_models(tenant, 0, {"name": "m", "weight": 3})
    await list_models(tenant, 1, {"name": "m", "backend_model": "new", "weight": 1})
    for _ in range(80):
        assert (await tenant.ask(body={**HELLO, "model": "m"})).status == 200
    old, new = models(tenant, 0), models(tenant, 1)
    assert (set(old), set(new)) == ({"m"}, {"new"})
    assert 4 <= len(new) <= 40


async def test_conversations_and_end_users_stay_where_they_are(gateway: Gateway) -> None:
    tenant = await gateway.tenant({}, {}, {}, routing="sticky", user_header="X-End-User")
    said = [{"role": "user", "content": "one"}]
    for turn in range(6):
        assert (await tenant.ask(body={**HELLO, "messages": said})).status == 200
        said += [{"role": "assistant", "content": f"answer {turn}"}, {"role": "user", "content": "and?"}]
    assert sorted(len(upstream.requests) for upstream in tenant.upstreams)[-1] >= 6
    counts = [len(bodies(tenant, number)) for number in range(3)]
    assert sorted(counts) == [0, 0, 6]
    for user in range(12):
        for words in ("a", "b"):
            body = {**HELLO, "messages": [{"role": "user", "content": words}]}
            await tenant.ask(body=body, headers=[("x-end-user", f"user {user}")])
    grown = [len(bodies(tenant, number)) - counts[number] for number in range(3)]
    assert all(count % 2 == 0 for count in grown), "both requests of a user"
    assert sum(1 for count in grown if count) > 1


async def test_the_least_busy_backend_is_asked(gateway: Gateway) -> None:
    go_on = asyncio.Event()
    slow = (go_on, *json_answer({}))
    tenant = await gateway.tenant({"answers": [slow] * 4}, {"answers": [slow] * 4}, routing="least_busy")
    asking = [asyncio.create_task(tenant.ask()) for _ in range(2)]
    await until(lambda: sum(len(bodies(tenant, number)) for number in range(2)) == 2, 10, "two requests")
    asking += [asyncio.create_task(tenant.ask()) for _ in range(2)]
    await until(lambda: sum(len(bodies(tenant, number)) for number in range(2)) == 4, 10, "four requests")
    go_on.set()
    assert [got.status for got in await asyncio.gather(*asking)] == [200] * 4
    assert [len(bodies(tenant, number)) for number in range(2)] == [2, 2]


@pytest.mark.parametrize(
    ("value", "kept"),
    [("bob@example.com", "bob@example.com"), ("", None), ("gsk_" + "0" * 48, None)],
)
async def test_the_end_user_is_recorded_and_told_no_one(gateway: Gateway, value: str, kept: str | None) -> None:
    tenant = await gateway.tenant(user_header="X-Who")
    got, line = await tenant.ask_and_log(headers=[("x-who", value)])
    [seen] = [seen for seen in tenant.upstream.requests if seen.method == "POST"]
    assert "x-who" not in {name.lower() for name, _ in seen.message.headers}
    assert value == "" or value not in json.dumps(line, ensure_ascii=False)
    database = await gateway.installation.look()

    async def recorded() -> bool:
        query = "SELECT count(*) FROM usage_records WHERE request_id = $1 AND end_user IS NOT DISTINCT FROM $2"
        return bool(await database.fetchval(query, got.one("x-gasket-request-id"), kept))

    await until(recorded, 10, "the record")
