"""The line that each request leaves in the log, and what must never be in any."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.acceptance.gateway import CHAT, HELLO, Gateway, Tenant, exchange, request
from tests.acceptance.http11 import chunk
from tests.acceptance.upstream import End, answer, chunked, delta, failure, stream

STREAMED = {**HELLO, "stream": True}


async def test_a_request_that_went_well(tenant: Tenant) -> None:
    usage = b'"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}'
    begin, go_on = asyncio.Event(), asyncio.Event()
    tenant.upstream.plays((begin, *chunked(b'{"id": 1, ', go_on, usage + b"}")))
    before = datetime.now(UTC)
    async with tenant.wire() as wire:
        await wire.send(tenant.request(headers=[("X-Request-Id", "req 1")]))
        await tenant.upstream.asked()
        held_up = await _pass(begin)
        head = await wire.head()
        interrupted = await _pass(go_on)
        got = await wire.body(head)
    line = await tenant.line(got)
    profile = (await tenant.api.get(f"/profiles/{tenant.profile}")).json()["name"]
    expected = {
        "client_request_id": "req 1",
        "client": "127.0.0.1",
        "method": "POST",
        "path": CHAT,
        "status": 200,
        "outcome": "ok",
        "key": tenant.key_id,
        "profile": profile,
        "backend": (await tenant.backend())["name"],
        "model": "model-a",
        "bytes_in": len(tenant.upstream.requests[0].message.body),
        "bytes_out": len(got.body),
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "retries": 0,
    }
    assert expected.items() <= line.items()
    assert set(line) == {*expected, "level", "logger", "time", "request_id", "duration_ms", "first_byte_ms"}
    assert UUID(line["request_id"]).version == 7
    assert abs(datetime.fromisoformat(line["time"]) - before) < timedelta(seconds=10)
    assert held_up <= line["first_byte_ms"] <= line["duration_ms"] - interrupted


async def _pass(event: asyncio.Event) -> float:
    """Let some time pass before the event; returns how many milliseconds, or a little less."""
    loop = asyncio.get_running_loop()
    since = loop.time()
    await asyncio.sleep(0.1)
    passed = 1000 * (loop.time() - since) - 2  # a clock may be read in whole milliseconds
    event.set()
    return passed


async def test_how_it_ended(gateway: Gateway, tenant: Tenant) -> None:
    async def ended(body: Any = HELLO) -> tuple[int, str]:
        _, line = await tenant.ask_and_log(body)
        return line["status"], line["outcome"]

    tenant.upstream.plays(
        failure(404),
        (End.RST,),
        stream(delta("a"), End.RST, whole=False),
        answer(b"{}"),
    )
    assert await ended() == (404, "ok")
    assert await ended() == (502, "upstream_failed")
    assert await ended(STREAMED) == (200, "upstream_failed")
    assert await ended(b"{") == (400, "refused")
    assert await ended() == (200, "ok")
    slow = await gateway.tenant(backend={"first_byte_timeout": 1})
    slow.upstream.plays((End.NEVER,))
    _, line = await slow.ask_and_log()
    assert (line["status"], line["outcome"]) == (504, "timeout")


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_left_is_499(tenant: Tenant, streamed: bool) -> None:
    tenant.upstream.plays(stream(delta("a"), End.NEVER) if streamed else (End.NEVER,))
    own_id = f"left-{tenant.key_id}"
    async with tenant.wire() as wire:
        body = STREAMED if streamed else HELLO
        await wire.send(tenant.request(body=body, headers=[("X-Request-Id", own_id)]))
        await tenant.upstream.asked()
        if streamed:
            await wire.head()
            await wire.reader.readexactly(len(chunk(delta("a"))))
    line = await tenant.replica.log_line(client_request_id=own_id)
    assert (line["status"], line["outcome"]) == (499, "client_gone")
    assert line["bytes_out"] == (len(delta("a")) if streamed else 0)


async def test_another_backend_that_took_over_is_named(gateway: Gateway) -> None:
    tenant = await gateway.tenant({"answers": [failure(503)]}, {})
    _, line = await tenant.ask_and_log()
    assert (line["retries"], line["backend"], line["status"]) == (1, (await tenant.backend(1))["name"], 200)


async def test_refusals_have_their_line_too(tenant: Tenant) -> None:
    for key, status, known in ((None, 401, None), ("gsk_" + "0" * 48, 401, None), (tenant.key, 403, tenant.key_id)):
        got = await exchange(tenant.replica, request(key, "/v1/files", None))
        line = await tenant.line(got)
        assert (line["status"], line["outcome"], line.get("key")) == (status, "refused", known)
        assert line["path"] == "/v1/files"


async def test_nobodys_secrets_and_nobodys_words_are_in_the_log(gateway: Gateway) -> None:
    tenant = await gateway.tenant(backend={"api_key": "sk-upstream-credential"})
    words, query = "my own secret words", "api-key=my-query-secret"
    secret = {**HELLO, "messages": [{"role": "user", "content": words}]}
    tenant.upstream.plays(
        answer(b'{"x": "their secret words"}', headers=[("X-Secret", "their-header")]),
        stream(delta("their secret words"), End.RST, whole=False),
        (b"their secret words are no HTTP\r\n\r\n", End.FIN),
        failure(401),
    )
    private = [("Cookie", "their-cookie"), ("OpenAI-Organization", "org-secret")]
    for _ in range(4):
        await tenant.ask(f"{CHAT}?{query}", secret, headers=private)
    await exchange(tenant.replica, tenant.request(body=f'{{"{words}'.encode()))
    await exchange(tenant.replica, request(tenant.key + "0"))
    await exchange(tenant.replica, request("sk-proj-of-another-service"))
    await tenant.api.post(f"/keys/{tenant.key_id}/revoke")
    await tenant.ask()
    output = tenant.replica.output
    token = tenant.api.headers["authorization"].removeprefix("Bearer ")
    never = [tenant.key, tenant.key[4:40], "sk-upstream-credential", "sk-proj-of-another-service", token]
    for text in (*never, words, "their secret words", "my-query-secret", "their-cookie", "org-secret", "their-header"):
        assert text not in output, text


async def test_a_client_cannot_write_a_line_of_its_own(tenant: Tenant) -> None:
    """Names and ids go into the log as JSON strings: nothing in them ends the line."""
    model = 'x\n{"request_id": "forged", "status": 200}\r\x1b[31m'
    _, line = await tenant.ask_and_log({"model": model})
    assert line["model"][:2] == model[:2]
    assert not [line for line in tenant.replica.output.splitlines() if line.startswith('{"request_id": "forged"')]


async def test_there_is_one_line_and_no_second_log(tenant: Tenant) -> None:
    """Lines of other requests, which the shared replica may write at any time, are none of this test's affair."""
    path = f"/v1/models/that-key-{tenant.key_id}-alone-asks-for"
    answer = await tenant.ask(path, None)
    request_id = answer.one("x-gasket-request-id")
    assert request_id is not None
    await tenant.line(answer)
    await tenant.ask_and_log()  # lines are written in order: one more of the first request would be there by now
    [line] = [text for text in tenant.replica.output.split("\n") if path in text or request_id in text]
    assert json.loads(line)["logger"] == "gasket.requests"
