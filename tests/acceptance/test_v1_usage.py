"""The gateway asks a stream for its usage; a client that did not ask sees no trace of it, and one that did sees all."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.acceptance.gateway import CHAT, HELLO, Gateway, Tenant, created
from tests.acceptance.upstream import DONE, completion, delta, event, failure, json_answer, stream

STREAMED = {**HELLO, "stream": True}
TOKENS = {"prompt_tokens": 11, "completion_tokens": 22, "total_tokens": 33}
USAGE = event({"id": "chatcmpl-1", "choices": [], "usage": TOKENS})
WITH_CHOICES = event({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {}}], "usage": TOKENS})
FILTER = event({"id": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]})
NULL = event({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": "x"}}], "usage": None})
WORD = delta('"usage": {"prompt_tokens": 1}, "choices": []')
WITHOUT = event({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {}}]})
ODD = [FILTER, NULL, WORD, b': "usage"\n\n', b'event: x\ndata: {"usage"\n\n', b'data: "usage"\n\n']


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
async def test_only_the_event_that_it_asked_for_is_taken_out(tenant: Tenant, size: int, end: bytes) -> None:
    pieces = [*ODD, WITH_CHOICES, USAGE, DONE]
    sent, kept = (b"".join(x).replace(b"\n\n", end) for x in (pieces, [*ODD, WITHOUT, DONE]))
    tenant.upstream.plays(stream(*(sent[start : start + size] for start in range(0, len(sent), size))))
    got, line = await tenant.ask_and_log(body=STREAMED)
    assert (got.body, got.whole) == (kept, True)
    asked = (await tenant.upstream.asked()).message.json
    assert asked == {**STREAMED, "stream_options": {"include_usage": True}}
    assert (line["prompt_tokens"], line["completion_tokens"], line.get("estimated")) == (11, 22, None)


async def test_a_client_that_asks_gets_what_there_is(tenant: Tenant) -> None:
    pieces = [*ODD, WITH_CHOICES, USAGE, DONE]
    tenant.upstream.plays(stream(*pieces))
    body = json.dumps({**STREAMED, "stream_options": {"include_usage": True}}, indent=1).encode()
    got, line = await tenant.ask_and_log(body=body)
    assert got.body == b"".join(pieces)
    assert (await tenant.upstream.asked()).message.body == body
    assert (line["prompt_tokens"], line["completion_tokens"]) == (11, 22)


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_obfuscation": False}])
async def test_what_else_the_request_says_stays(tenant: Tenant, options: dict[str, bool] | None) -> None:
    tenant.upstream.plays(stream(delta("a"), USAGE, DONE))
    odd = {"seed": 12345678901234567890, "temperature": 1e-7, "user": "\N{SLIGHTLY SMILING FACE}", "x": {"stream": 1}}
    got = await tenant.ask(body={**STREAMED, **odd, "stream_options": options})
    assert got.body == delta("a") + DONE
    asked = (await tenant.upstream.asked()).message
    assert asked.json == {**STREAMED, **odd, "stream_options": {**(options or {}), "include_usage": True}}
    assert b"12345678901234567890" in asked.body


async def test_a_backend_that_does_not_know_the_option_is_asked_without_it(tenant: Tenant) -> None:
    tenant.upstream.plays(failure(400, "unknown_parameter"), stream(delta("a"), delta("b"), DONE))
    body = json.dumps(STREAMED).encode()
    got, line = await tenant.ask_and_log(body=body)
    assert (got.status, got.body) == (200, delta("a") + delta("b") + DONE)
    assert line["estimated"]
    assert tenant.upstream.requests[1].message.body == body
    assert (await tenant.ask(body=body)).status == 200
    assert tenant.upstream.requests[2].message.body == body, "it has been found out"
    assert len(tenant.upstream.requests) == 3


async def test_that_is_known_of_this_backend_as_it_is_now(gateway: Gateway) -> None:
    tenant = await gateway.tenant({}, {})
    first, _ = tenant.upstreams
    first.plays(failure(400), stream(DONE), failure(503), stream(DONE))
    for _ in range(2):
        assert (await tenant.ask(body=STREAMED)).status == 200
    asked = [b"stream_options" in seen.message.body for upstream in tenant.upstreams for seen in upstream.requests]
    assert asked == [True, False, False, True], "the other backend may know it"
    await created(await gateway.api.patch(f"/backends/{tenant.backends[0]}", json={"chunk_timeout": 59}), 200)

    async with asyncio.timeout(30):  # the word of it travels
        while b"stream_options" not in first.requests[-1].message.body:
            assert (await tenant.ask(body=STREAMED)).status == 200


async def test_another_backend_that_answers_in_its_place_says_nothing_of_it(gateway: Gateway) -> None:
    tenant = await gateway.tenant({}, {})
    first, second = tenant.upstreams
    first.plays(failure(400), failure(503))
    for _ in range(2):
        assert (await tenant.ask(body=STREAMED)).status == 200
    assert [b"stream_options" in seen.message.body for seen in first.requests] == [True, False, True]
    assert [b"stream_options" in seen.message.body for seen in second.requests] == [True, True]


async def test_a_request_that_is_wrong_anyway_gets_the_upstreams_words(tenant: Tenant) -> None:
    tenant.upstream.plays(failure(400, "context_length_exceeded"))
    got = await tenant.ask(body=STREAMED)
    assert got.error == (400, "context_length_exceeded")


async def test_plain_answers_tell_their_usage_and_come_through_as_they_are(gateway: Gateway, tenant: Tenant) -> None:
    tenant.upstream.plays(json_answer(completion("hello")), json_answer(completion("x" * 500_000)))
    for size in (1, 500_000):
        got, line = await tenant.ask_and_log()
        assert len(got.json["choices"][0]["message"]["content"]) >= size
        assert (line["prompt_tokens"], line["completion_tokens"], line.get("estimated")) == (3, 5, None)
    body = b'{"model": "model-a",  "stream": false}'
    await tenant.ask(body=body)
    assert tenant.upstream.requests[-1].message.body == body


async def test_nothing_is_added_where_it_is_not_known(tenant: Tenant) -> None:
    """Responses tell their usage by themselves; a stream of speech has none."""
    tenant.upstream.plays(stream(event({"type": "response.completed", "response": {"usage": {"input_tokens": 7}}})))
    for path in ("/v1/responses", "/v1/audio/speech"):
        await tenant.ask(path, STREAMED)
        assert tenant.upstream.requests[-1].message.json == STREAMED
    assert CHAT not in {seen.target for seen in tenant.upstream.requests}
