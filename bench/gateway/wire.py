"""What goes over the wire in the gateway's benchmarks: the requests, the upstream's answers, and their sizes."""

from __future__ import annotations

import json

CHUNKS = 50
"""Events of a streamed answer, without the `[DONE]` at its end."""

PACE = 0.010
"""Seconds between two events of a paced stream."""

BURST = 10
"""Events in each packet of a stream that is not paced. With one event in each, the upstream would take as much CPU as a
gateway, and its speed would be the limit."""

PLAIN_SIZE = 384
"""Bytes of a plain answer."""

FAST, PACED = "fast", "paced"
"""The upstream's models: one answers at once, the other streams at the pace of a language model."""


def _plain_answer() -> bytes:
    answer = {
        "id": "chatcmpl-benchmark0000000000000",
        "object": "chat.completion",
        "created": 1700000000,
        "model": FAST,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 19, "completion_tokens": 21, "total_tokens": 40},
    }
    answer["choices"][0]["message"]["content"] = "x" * (PLAIN_SIZE - len(json.dumps(answer)))  # type: ignore[index]
    return json.dumps(answer).encode()


def _event(number: int) -> bytes:
    return _event_of(choices=[{"index": 0, "delta": {"content": f" word{number}"}, "finish_reason": None}])


def _event_of(**fields: object) -> bytes:
    chunk = {
        "id": "chatcmpl-benchmark0000000000000",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": FAST,
        **fields,
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


PLAIN_ANSWER = _plain_answer()
EVENTS = tuple(_event(number) for number in range(CHUNKS))
USAGE_EVENT = _event_of(choices=[], usage={"prompt_tokens": 19, "completion_tokens": 50, "total_tokens": 69})
"""What the upstream adds when it is asked to (`stream_options.include_usage`), which the clients here do not do."""
DONE_EVENT = b"data: [DONE]\n\n"
STREAMED_ANSWER = b"".join(EVENTS) + DONE_EVENT
MODELS = json.dumps(
    {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "bench"} for name in (FAST, PACED)]}
).encode()


def request_body(model: str, *, stream: bool) -> bytes:
    """The body of a chat completion, of a short conversation."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Why is the sky blue? Answer in one short sentence, please."},
    ]
    return json.dumps({"model": model, "messages": messages, "temperature": 0.2, "stream": stream}).encode()
