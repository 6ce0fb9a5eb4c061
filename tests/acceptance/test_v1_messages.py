"""Anthropic's own Python client, before a backend that speaks its API."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import pytest

from tests.acceptance.gateway import Gateway, Tenant
from tests.acceptance.processes import until
from tests.acceptance.upstream import event, json_answer, stream

ASKED: Any = {"model": "model-a", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}
USAGE = {"input_tokens": 5, "cache_creation_input_tokens": 200, "cache_read_input_tokens": 1000, "output_tokens": 9}


def message(**more: Any) -> dict[str, Any]:
    text = [{"type": "text", "text": "hello there"}]
    plain = {"id": "msg_1", "type": "message", "role": "assistant", "model": "model-a", "content": text}
    return {**plain, "stop_reason": "end_turn", "stop_sequence": None, "usage": USAGE, **more}


def named(kind: str, **more: Any) -> bytes:
    return f"event: {kind}\n".encode() + event({"type": kind, **more})


def client(tenant: Tenant, *, key: str | None = None) -> Any:
    return anthropic.AsyncAnthropic(
        base_url=tenant.replica.base_url, api_key=key or tenant.key, max_retries=0, timeout=60
    )


async def counted(tenant: Tenant, gateway: Gateway) -> tuple[int, int, int]:
    """Prompt, completion and cached tokens of the key, as `/api/usage` has them, once they are there."""
    found: list[Any] = []

    async def there() -> bool:
        found[:] = (await gateway.api.get("/usage", params={"key": tenant.key_id})).json()["items"]
        return bool(found)

    await until(there, 20, "the sums of the key")
    return found[0]["prompt_tokens"], found[0]["completion_tokens"], found[0]["cached_tokens"]


async def test_a_message_and_a_count_of_tokens(gateway: Gateway, tenant: Tenant) -> None:
    tenant.upstream.plays(json_answer(message()), json_answer({"input_tokens": 14}))
    async with client(tenant) as made:
        got = await made.messages.create(**ASKED)
        count = await made.messages.count_tokens(model="model-a", messages=ASKED["messages"])
    assert (got.content[0].text, got.usage.output_tokens, count.input_tokens) == ("hello there", 9, 14)
    first, second = tenant.upstream.requests
    assert (first.target, second.target) == ("/v1/messages", "/v1/messages/count_tokens")
    assert first.message.all("x-api-key") == []
    assert first.message.one("anthropic-version")
    assert await counted(tenant, gateway) == (1205, 9, 1000)


async def test_a_streamed_message(gateway: Gateway, tenant: Tenant) -> None:
    go_on = asyncio.Event()
    tenant.upstream.plays(
        stream(
            named("message_start", message=message(content=[], usage={**USAGE, "output_tokens": 1})),
            named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
            named("content_block_delta", index=0, delta={"type": "text_delta", "text": "hello "}),
            go_on,
            named("content_block_delta", index=0, delta={"type": "text_delta", "text": "there"}),
            named("content_block_stop", index=0),
            named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 15}),
            named("message_stop"),
        )
    )
    words = []
    async with client(tenant) as made, made.messages.stream(**ASKED) as streamed:
        async for word in streamed.text_stream:
            words.append(word)
            go_on.set()
        whole = await streamed.get_final_message()
    assert (words, whole.usage.output_tokens) == (["hello ", "there"], 15)
    assert await counted(tenant, gateway) == (1205, 15, 1000)


async def test_errors_are_those_that_the_client_knows(gateway: Gateway, tenant: Tenant) -> None:
    async with client(tenant, key="gsk_" + "0" * 48) as made:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            await made.messages.create(**ASKED)
    body: Any = refused.value.body
    assert body["error"]["type"] == "authentication_error"
    assert body["request_id"] == refused.value.response.headers["x-gasket-request-id"]
    restricted = await gateway.tenant(allowed_models=["model-b"])
    async with client(restricted) as made:
        with pytest.raises(anthropic.PermissionDeniedError, match="model-a"):
            await made.messages.create(**ASKED)
        with pytest.raises(anthropic.PermissionDeniedError):
            await made.messages.count_tokens(model="model-a", messages=ASKED["messages"])
