"""OpenAI's own Python client, which changes its base URL and its key and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.acceptance.gateway import Gateway, Tenant
from tests.acceptance.upstream import (
    DONE,
    End,
    answer,
    completion,
    delta,
    failure,
    json_answer,
    stream,
)

MESSAGES: Any = [{"role": "user", "content": "hello"}]
WORDS = ["Hel", "lo, ", "wörld", " \N{SLIGHTLY SMILING FACE}"]


@contextmanager
def client(tenant: Tenant, *, retries: int = 0) -> Iterator[OpenAI]:
    """The synchronous client; it blocks, so it is used in a thread."""
    with OpenAI(base_url=f"{tenant.replica.base_url}/v1", api_key=tenant.key, max_retries=retries, timeout=60) as made:
        yield made


def async_client(tenant: Tenant, *, key: str | None = None) -> AsyncOpenAI:
    """The asynchronous one."""
    base_url = f"{tenant.replica.base_url}/v1"
    return AsyncOpenAI(base_url=base_url, api_key=key or tenant.key, max_retries=0, timeout=60)


async def test_a_chat(tenant: Tenant) -> None:
    tenant.upstream.plays(json_answer(completion("hello there")))
    async with async_client(tenant) as openai_client:
        chat = await openai_client.chat.completions.create(model="model-a", messages=MESSAGES)
    assert chat.choices[0].message.content == "hello there"
    assert chat.usage is not None
    assert chat.usage.total_tokens == 8
    seen = await tenant.upstream.asked()
    assert (seen.method, seen.target) == ("POST", "/v1/chat/completions")
    assert seen.message.json == {"model": "model-a", "messages": MESSAGES}
    assert seen.message.all("authorization") == ["Bearer sk-upstream"]


async def test_a_streamed_chat(tenant: Tenant) -> None:
    go_on = asyncio.Event()
    tenant.upstream.plays(stream(delta(WORDS[0]), go_on, *map(delta, WORDS[1:]), DONE))
    async with async_client(tenant) as openai_client:
        chat = await openai_client.chat.completions.create(model="model-a", messages=MESSAGES, stream=True)
        words = []
        async for event in chat:
            words.append(event.choices[0].delta.content)
            go_on.set()  # the first word was here while the upstream held the second one back
    assert words == WORDS


async def test_both_kinds_of_chat_with_the_synchronous_client(tenant: Tenant) -> None:
    tenant.upstream.plays(json_answer(completion("plain")), stream(*map(delta, WORDS), DONE))

    def talk() -> tuple[str | None, list[str | None]]:
        with client(tenant) as openai_client:
            plain = openai_client.chat.completions.create(model="model-a", messages=MESSAGES)
            streamed = openai_client.chat.completions.create(model="model-a", messages=MESSAGES, stream=True)
            return plain.choices[0].message.content, [event.choices[0].delta.content for event in streamed]

    assert await asyncio.to_thread(talk) == ("plain", WORDS)


async def test_embeddings_and_models(gateway: Gateway) -> None:
    tenant = await gateway.tenant(allowed_models=["model-a"])
    vector = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    tenant.upstream.plays(json_answer({"object": "list", "data": [vector], "model": "model-a", "usage": usage}))
    async with async_client(tenant) as openai_client:
        made = await openai_client.embeddings.create(model="model-a", input="hello", encoding_format="float")
        listed = await openai_client.models.list()
    assert made.data[0].embedding == [0.25, -0.5]
    assert [model.id for model in listed.data] == ["model-a"]


async def test_a_response_a_transcription_and_speech(tenant: Tenant) -> None:
    response = {"id": "resp_1", "object": "response", "created_at": 1, "model": "model-a", "output": []}
    spoken = bytes(range(256)) * 40
    tenant.upstream.plays(
        json_answer(response), json_answer({"text": "said"}), answer(spoken, headers=[("Content-Type", "audio/mpeg")])
    )
    async with async_client(tenant) as openai_client:
        made = await openai_client.responses.create(model="model-a", input="hello")
        heard = await openai_client.audio.transcriptions.create(model="model-a", file=("a.wav", b"RIFF\0\xff" * 100))
        speech = await openai_client.audio.speech.create(model="model-a", voice="alloy", input="said")
    assert (made.id, heard.text) == ("resp_1", "said")
    assert speech.content == spoken
    _, transcription, _ = tenant.upstream.requests
    assert b"RIFF\0\xff" * 100 in transcription.message.body
    assert transcription.message.one("content-type").startswith("multipart/form-data; boundary=")


async def test_a_file_goes_up_only_where_the_profile_allows_it(gateway: Gateway) -> None:
    file = {"id": "file-1", "object": "file", "bytes": 4, "created_at": 1, "filename": "a.jsonl", "purpose": "batch"}
    closed = await gateway.tenant()
    opened = await gateway.tenant(allow_stateful_endpoints=True)
    opened.upstream.plays(json_answer({**file, "status": "processed"}))
    async with async_client(closed) as openai_client:
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await openai_client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
    assert refused.value.code == "endpoint_not_allowed"
    assert closed.upstream.requests == []
    async with async_client(opened) as openai_client:
        assert (await openai_client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")).id == "file-1"
    assert opened.upstream.requests[0].target == "/v1/files"
    assert b"{}\n" in opened.upstream.requests[0].message.body


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_the_upstreams_own_errors_come_through(
    tenant: Tenant, status: int, kind: type[openai.APIStatusError]
) -> None:
    tenant.upstream.plays(failure(status, "its_own_code", headers=[("x-request-id", "req-upstream")]))
    async with async_client(tenant) as openai_client:
        with pytest.raises(kind) as raised:
            await openai_client.chat.completions.create(model="model-a", messages=MESSAGES)
    assert (raised.value.status_code, raised.value.code) == (status, "its_own_code")
    assert raised.value.request_id == "req-upstream"
    assert raised.value.message.startswith(f"Error code: {status}")


async def test_errors_of_our_own_are_the_clients_classes(gateway: Gateway) -> None:
    tenant = await gateway.tenant({}, {}, allowed_models=["model-a", "model-z"])

    async def refused(model: str, key: str | None = None) -> openai.APIStatusError:
        async with async_client(tenant, key=key) as openai_client:
            with pytest.raises(openai.APIStatusError) as raised:
                await openai_client.chat.completions.create(model=model, messages=MESSAGES)
        return raised.value

    unknown = await refused("model-a", "gsk_" + "0" * 48)
    assert (type(unknown), unknown.code) == (openai.AuthenticationError, "invalid_api_key")
    forbidden = await refused("model-b")
    assert (type(forbidden), forbidden.code) == (openai.PermissionDeniedError, "model_not_allowed")
    missing = await refused("model-z")
    assert (type(missing), missing.code) == (openai.NotFoundError, "model_not_found")


async def test_a_cut_is_an_error_and_never_a_short_answer(tenant: Tenant) -> None:
    plain, streamed = json_answer(completion("x" * 1000))[0], stream(delta("Hel"), End.RST, whole=False)
    assert isinstance(plain, bytes)
    tenant.upstream.plays((plain[:-500], End.FIN), streamed)
    async with async_client(tenant) as openai_client:
        with pytest.raises(openai.APIConnectionError):
            await openai_client.chat.completions.create(model="model-a", messages=MESSAGES)
        chat = await openai_client.chat.completions.create(model="model-a", messages=MESSAGES, stream=True)
        assert (await anext(chat)).choices[0].delta.content == "Hel"
        with pytest.raises(openai.APIError) as raised:
            await anext(chat)
    assert raised.value.code == "upstream_failed"


@pytest.mark.parametrize("status", [429, 503])
async def test_its_retries_work(tenant: Tenant, status: int) -> None:
    again = [("retry-after-ms", "10")]
    tenant.upstream.plays(failure(status, headers=again), failure(status, headers=again), json_answer(completion("ok")))

    def talk() -> str | None:
        with client(tenant, retries=2) as openai_client:
            return openai_client.chat.completions.create(model="model-a", messages=MESSAGES).choices[0].message.content

    assert await asyncio.to_thread(talk) == "ok"
    assert len(tenant.upstream.requests) == 3
