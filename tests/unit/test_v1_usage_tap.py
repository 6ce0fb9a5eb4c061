"""What an answer cost is read while it passes: however it comes in pieces, and whatever else stands in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gasket.proxy.endpoints import find_endpoint
from gasket.proxy.events import EventStream, event_data, split_events
from gasket.proxy.exchange import Exchange
from gasket.proxy.usage_tap import UsageTap
from gasket.usage.entry import MOST_TOKENS

CHAT = find_endpoint("POST", b"/v1/chat/completions")
RESPONSES = find_endpoint("POST", b"/v1/responses")
SPEECH = find_endpoint("POST", b"/v1/audio/speech")
IMAGES = find_endpoint("POST", b"/v1/images/generations")
FILES = find_endpoint("POST", b"/v1/files")
EMBEDDINGS = find_endpoint("POST", b"/v1/embeddings")
MESSAGES = find_endpoint("POST", b"/v1/messages")
TOKENS = {"prompt_tokens": 11, "completion_tokens": 22, "total_tokens": 33}
DONE = b"data: [DONE]\n\n"
SAYS_USAGE = '"usage": {"prompt_tokens": 1, "completion_tokens": 1}, "choices": []'

Counted = tuple[int, int, bool]
"""Tokens of the request and of the answer, and whether they are estimated."""


def event(content: Any, end: bytes = b"\n\n") -> bytes:
    return b"data: " + json.dumps(content).encode() + end


def word(text: str, **more: Any) -> bytes:
    return event({"id": "c", "choices": [{"index": 0, "delta": {"content": text}}], **more})


ONLY_USAGE = event({"id": "c", "choices": [], "usage": TOKENS})


def settled(tap: UsageTap, *, streamed: bool, size: int, whole: bool = True, status: int = 200) -> Counted:
    exchange = Exchange(request_id="r", method="POST", path="/x", started=0.0, streamed=streamed, status=status)
    exchange.bytes_in, exchange.bytes_out = 400, size
    tap.settle(exchange, whole=whole)
    return exchange.prompt_tokens, exchange.completion_tokens, exchange.estimated


def passed(pieces: list[bytes], *, hide: bool = True, whole: bool = True) -> tuple[bytes, Counted]:
    """What the client gets of a stream that comes in these pieces, and what is counted."""
    stream, tap = EventStream(), UsageTap(CHAT, hide=hide)
    out = b"".join(tap.events(block) for piece in pieces if (block := stream.feed(piece)))
    out += tap.events(stream.rest()) if whole else b""
    return out, settled(tap, streamed=True, size=len(out), whole=whole)


def counted(body: bytes, size: int = 1000, *, endpoint: Any = CHAT, whole: bool = True, status: int = 200) -> Counted:
    """What is counted of a plain answer that comes in pieces of this size."""
    tap = UsageTap(endpoint)
    for start in range(0, len(body), size):
        tap.body(body[start : start + size])
    return settled(tap, streamed=False, size=len(body), whole=whole, status=status)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_a_stream_that_is_split_at_every_byte_counts_the_same_and_loses_one_event(end: bytes) -> None:
    events = [word(SAYS_USAGE), word("ü", usage=None), ONLY_USAGE, DONE]
    sent, kept = (b"".join(x).replace(b"\n\n", end) for x in (events, [*events[:2], DONE]))
    for cut in range(len(sent)):
        assert passed([sent[:cut], sent[cut:]]) == (kept, (11, 22, False)), cut
    assert passed([sent[at : at + 1] for at in range(len(sent))]) == (kept, (11, 22, False))


NOISE = st.one_of(
    st.text(max_size=20).map(word),
    st.just(word(SAYS_USAGE)),
    st.just(word("x", usage=None)),
    st.just(event({"id": "", "choices": [], "usage": None})),
    st.just(event({"id": "", "choices": [], "prompt_filter_results": []})),
    st.sampled_from([b': "usage"\n\n', b'event: x\ndata: {"usage"\n\n', b'data: "usage"\n\n', b"data: [1]\n\n"]),
    st.sampled_from([b'data: {"usage": 5}\n\n', b'data: {"usage": "choices", "choices": []}\n\n', b"\xff\xfe\n\n"]),
)


@given(st.lists(NOISE, max_size=6), st.lists(NOISE, max_size=4), st.lists(st.integers(1, 60), max_size=40))
@example([event({"id": "", "choices": [], "usage": None})], [], [5])
def test_nothing_but_the_event_that_was_asked_for_is_missing(
    before: list[bytes], after: list[bytes], sizes: list[int]
) -> None:
    rest, pieces = b"".join([*before, ONLY_USAGE, *after, DONE]), []
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    kept = b"".join([*before, *after, DONE])
    out, tokens = passed([*pieces, rest])
    assert out == kept
    assert tokens == (11, 22, False)
    assert passed([*pieces, rest], hide=False) == (b"".join([*before, ONLY_USAGE, *after, DONE]), (11, 22, False))


def test_null_usage_in_every_event_is_no_usage() -> None:
    events = [word(text, usage=None) for text in "abc"]
    sent = b"".join([*events, DONE])
    assert passed([sent]) == (sent, (100, 4, True))
    assert passed([b"".join([*events, ONLY_USAGE, DONE])]) == (sent, (11, 22, False))


def test_of_usage_in_every_event_the_last_counts_and_all_else_is_passed_on() -> None:
    said = [{"prompt_tokens": 11, "completion_tokens": count} for count in range(1, 8)]
    sent = b"".join(word("x", usage=usage) for usage in said) + DONE
    assert passed([sent]) == (word("x") * 7 + DONE, (11, 7, False))
    assert passed([sent], hide=False) == (sent, (11, 7, False))


def test_a_stream_that_breaks_off_is_estimated_by_its_events() -> None:
    events = [word(text) for text in "abcde"]
    sent = b"".join(events)
    assert passed([sent, ONLY_USAGE[:-5]], whole=False) == (sent, (100, 5, True))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 0}, (10, 501, True)),
        ({"prompt_tokens": 10, "completion_tokens": 500}, (10, 501, True)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, (100, 501, True)),
        ({"prompt_tokens": 10, "completion_tokens": 501}, (10, 501, False)),
    ],
)
def test_of_a_stream_that_breaks_off_fewer_tokens_than_events_are_no_final_count(
    said: dict[str, int], expected: Counted
) -> None:
    words = [word("x")] * 500
    in_the_first, in_the_last = [word("", usage=said), *words], [*words, word("", usage=said)]
    in_each = [word("x", usage=said)] * 501
    for events in (in_the_first, in_the_last, in_each):
        sent = b"".join(events)
        assert passed([sent], whole=False, hide=False) == (sent, expected)
        assert passed([sent])[1] == (said["prompt_tokens"], said["completion_tokens"], False)


def test_zeros_that_responses_begin_with_are_no_final_count() -> None:
    created = event({"type": "response.created", "response": {"usage": {"input_tokens": 0, "output_tokens": 0}}})
    tap = UsageTap(RESPONSES)
    tap.events(created + b"".join(event({"type": "response.output_text.delta", "delta": "x"}) for _ in range(9)))
    assert settled(tap, streamed=True, size=1000, whole=False) == (100, 10, True)


@pytest.mark.parametrize("size", [1000, 65_536, 65_537, 2**20])
@pytest.mark.parametrize("pieces", [997, 65_536, 2**21])
def test_a_plain_answer_of_any_size(size: int, pieces: int) -> None:
    message = {"role": "assistant", "content": SAYS_USAGE}
    answer = {"id": "c", "choices": [{"message": message}], "usage": TOKENS, "x": {"y": [1, {"z": "}"}]}}
    message["content"] += "x" * (size - len(json.dumps(answer)))
    body = json.dumps(answer).encode()
    assert len(body) == size
    assert counted(body, pieces) == (11, 22, False)
    assert counted(json.dumps(answer, indent=2).encode(), pieces) == (11, 22, False)


@pytest.mark.parametrize("size", [1000, 2**20])
def test_text_that_tells_of_usage_is_none(size: int) -> None:
    body = json.dumps({"choices": [{"message": {"content": "x" * size + SAYS_USAGE}}]}).encode()
    assert counted(body) == (100, len(body) // 4, True)


def test_usage_that_is_not_the_answers_own_does_not_count_in_an_answer_that_is_read_whole() -> None:
    body = json.dumps({"choices": [{"usage": {"prompt_tokens": 9}}], "usage": TOKENS, "x": {"usage": {}}}).encode()
    assert counted(body) == (11, 22, False)


@pytest.mark.parametrize("padding", [0, 2**20])
@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"input_tokens": 7, "output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 1}}, (7, 9)),
        ({"prompt_tokens": 7, "total_tokens": 7}, (7, 0)),
        ({"prompt_tokens": 7}, (7, 0)),
        ({"total_tokens": 7}, (0, 7)),
        ({"prompt_tokens": -5, "completion_tokens": -(10**30)}, (0, 0)),
        ({"prompt_tokens": 7, "total_tokens": 3}, (7, 0)),
        ({"prompt_tokens": 12.0, "completion_tokens": 3, "total_tokens": 15.5}, (12, 3)),
        ({"prompt_tokens": True, "input_tokens": 7, "completion_tokens": "9", "output_tokens": None}, (7, 9)),
        ({"prompt_tokens": 10**30, "completion_tokens": 10**18}, (MOST_TOKENS, MOST_TOKENS)),
    ],
)
def test_what_a_backend_may_say(usage: dict[str, Any], expected: tuple[int, int], padding: int) -> None:
    body = json.dumps({"object": "x" * padding, "usage": usage}).encode()
    assert counted(body) == (*expected, False)


SAYS_NOTHING = [
    {},
    {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None},
    {"prompt_tokens": "twelve", "completion_tokens": True, "total_tokens": 15.5},
    {"type": "duration", "seconds": 9},
]


@pytest.mark.parametrize("padding", [0, 2**20])
@pytest.mark.parametrize("usage", SAYS_NOTHING)
def test_usage_without_a_number_is_no_usage(usage: dict[str, Any], padding: int) -> None:
    body = json.dumps({"object": "x" * padding, "usage": usage}).encode()
    assert counted(body) == (100, len(body) // 4, True)
    out, tokens = passed([word("a"), ONLY_USAGE, event({"choices": [], "usage": usage}), DONE])
    assert (out, tokens) == (word("a") + DONE, (11, 22, False)), "what was said before still counts"


@pytest.mark.parametrize(
    "odd",
    [
        event({"choices": [], "usage": {**TOKENS, "prompt_tokens": 11.0}}),
        event({"choices": [], "usage": {**TOKENS, "total_tokens": 15.5, "cost": "0.01"}}),
        event({"choices": None, "usage": TOKENS}),
        event({"usage": TOKENS}),
        event({"choices": [], "usage": TOKENS, "error": None, "prompt_filter_results": [], "provider": "p"}),
        event({"choices": [], "usage": TOKENS}).replace(b'], "usage', b'],\ndata: "usage'),
        event({"choices": [], "usage": TOKENS}).replace(b'"usage":', b'"usage"\ndata: :'),
        b'data: {"choices": [ ], "usage": {"prompt_tokens": 11, "completion_tokens": 22}}\n\n',
    ],
)
def test_the_event_that_was_asked_for_is_hidden_however_it_is_written(odd: bytes) -> None:
    assert passed([word("a"), odd, DONE]) == (word("a") + DONE, (11, 22, False))
    sent = word("a") + odd + DONE
    assert passed([sent], hide=False) == (sent, (11, 22, False))


def test_the_responses_api_tells_it_in_its_last_event_and_nothing_is_hidden() -> None:
    usage = {"input_tokens": 7, "output_tokens": 9, "total_tokens": 16}
    done = event({"type": "response.completed", "response": {"id": "r", "usage": usage}})
    sent = event({"type": "response.created", "response": {"id": "r", "usage": None}}) + done
    tap = UsageTap(RESPONSES)
    assert tap.events(sent) == sent
    assert settled(tap, streamed=True, size=len(sent)) == (7, 9, False)
    assert counted(json.dumps({"object": "response", "usage": usage}).encode(), endpoint=RESPONSES) == (7, 9, False)


@pytest.mark.parametrize("path", [b"/images/edits", b"/audio/transcriptions", b"/rerank", b"/moderations", b"/audio/x"])
@pytest.mark.parametrize("padding", [0, 2**20])
def test_every_stateless_endpoint_counts_what_it_is_told_and_estimates_nothing(path: bytes, padding: int) -> None:
    endpoint = find_endpoint("POST", b"/v1" + path)
    body = json.dumps({"data": "x" * padding, "usage": {"input_tokens": 50, "output_tokens": 4000}}).encode()
    assert counted(b"\n " + body, endpoint=endpoint) == (50, 4000, False)
    assert counted(body, endpoint=endpoint, whole=False) == (0, 0, False)
    assert counted(json.dumps({"data": "x" * padding}).encode(), endpoint=endpoint) == (0, 0, False)


def test_sound_is_not_searched() -> None:
    sound = b"ID3" + b"\0" * 2**20 + b'"usage": {"prompt_tokens": 1}'
    assert counted(sound, endpoint=SPEECH) == (0, 0, False)


@pytest.mark.parametrize("endpoint", [IMAGES, RESPONSES])
@pytest.mark.parametrize("size", [10, 100_000, 1_000_000])
def test_an_event_that_is_too_long_to_be_held_tells_its_usage(endpoint: Any, size: int) -> None:
    answer = {"b64_json": "x" * size, "usage": {"input_tokens": 50, "output_tokens": 4000}}
    done = event({"type": "x.completed", **(answer if endpoint is IMAGES else {"response": answer})})
    stream, tap = EventStream(), UsageTap(endpoint)
    sent = [done[start : start + 16_384] for start in range(0, len(done), 16_384)]
    assert b"".join(tap.events(block) for piece in sent if (block := stream.feed(piece))) == done
    assert settled(tap, streamed=True, size=len(done)) == (50, 4000, False)


def test_what_is_stateful_or_failed_counts_none() -> None:
    body = json.dumps({"usage": TOKENS}).encode()
    assert counted(body, endpoint=FILES) == (0, 0, False)
    assert counted(body, status=500) == (0, 0, False)
    tap = UsageTap(FILES)
    tap.events(ONLY_USAGE)
    assert settled(tap, streamed=True, size=100) == (0, 0, False)


ANSWER_WITH_MORE = [
    {"error": {"message": "provider failed", "code": 502}},
    {"choices": [], "timings": {"predicted_ms": 12.5}},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "citations": ["https://example.com"]},
]


@pytest.mark.parametrize("more", ANSWER_WITH_MORE)
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_of_an_event_with_anything_else_only_the_usage_is_taken_out(more: dict[str, Any], end: bytes) -> None:
    bare = event({"id": "c", **more, "x": 1}, end)
    for sent in (
        event({"id": "c", **more, "usage": TOKENS, "x": 1}, end),
        bare.replace(b', "x"', b',\ndata: "usage": {"prompt_tokens": 11, \ndata: "completion_tokens": 22}, "x"'),
    ):
        out, tokens = passed([word("a"), b"id: 7\n" + sent, DONE])
        assert tokens == (11, 22, False)
        assert b'"usage"' not in out
        assert json.loads(event_data(split_events(out)[1])) == {"id": "c", **more, "x": 1}
        if b"\ndata" not in sent:
            assert out == word("a") + b"id: 7\n" + bare + DONE
        assert passed([sent], hide=False)[0] == sent


def test_embeddings_have_no_completion_tokens() -> None:
    vectors = [{"object": "embedding", "index": number, "embedding": [-0.0123456789] * 1536} for number in range(20)]
    usage = {"prompt_tokens": 40, "total_tokens": 40}
    said = {"model": "m", "object": "list", "usage": usage, "data": vectors}
    for answer in (said, {**said, "usage": None} | {"usage": usage}, {**said, "data": vectors, "usage": usage}):
        body = json.dumps(answer).encode()
        assert len(body) > 300_000
        for size in (1000, 65_536, len(body)):
            assert counted(body, size, endpoint=EMBEDDINGS) == (40, 0, False)
    for data in (vectors, vectors[:1]):
        body = json.dumps({"object": "list", "data": data, "model": "m"}).encode()
        assert counted(body, endpoint=EMBEDDINGS) == (100, 0, True)


def test_a_long_tail_does_not_hide_the_usage() -> None:
    text = {"choices": [{"message": {"content": "x" * 30_000}}], "usage": TOKENS, "logs": ["y" * 100] * 400}
    body = json.dumps(text).encode()
    assert len(body) > 70_000
    assert counted(body) == (11, 22, False)


def test_details_are_kept_beside_the_sums() -> None:
    details = {
        "prompt_tokens": 100,
        "completion_tokens": 60,
        "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 7},
        "completion_tokens_details": {"reasoning_tokens": 40, "audio_tokens": 5},
    }
    tap = UsageTap(CHAT)
    tap.body(json.dumps({"usage": details}).encode())
    exchange = Exchange(request_id="r", method="POST", path="/x", started=0.0, status=200)
    tap.settle(exchange, whole=True)
    assert (exchange.cached_tokens, exchange.reasoning_tokens, exchange.audio_tokens) == (64, 40, 12)


def message_events(*, output: int = 15) -> list[bytes]:
    start = {"input_tokens": 25, "cache_read_input_tokens": 1000, "output_tokens": 1}
    return [
        b"event: message_start\n" + event({"type": "message_start", "message": {"id": "m", "usage": start}}),
        *[b"event: x\n" + event({"type": "content_block_delta", "delta": {"text": "x"}})] * 5,
        b"event: message_delta\n" + event({"type": "message_delta", "delta": {}, "usage": {"output_tokens": output}}),
        b"event: message_stop\n" + event({"type": "message_stop"}),
    ]


def test_messages_tell_their_usage_in_two_parts() -> None:
    tap = UsageTap(MESSAGES)
    sent = b"".join(message_events())
    assert tap.events(sent) == sent
    assert settled(tap, streamed=True, size=len(sent)) == (1025, 15, False)
    broken = UsageTap(MESSAGES)
    broken.events(b"".join(message_events()[:4]))
    assert settled(broken, streamed=True, size=100, whole=False) == (1025, 4, True)
    plain = {"type": "message", "content": [], "usage": {"input_tokens": 10, "output_tokens": 9}}
    assert counted(json.dumps(plain).encode(), endpoint=MESSAGES) == (10, 9, False)


def test_moonshot_tells_it_in_the_choice() -> None:
    last = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": TOKENS}]})
    assert passed([word("a"), last, DONE]) == (word("a") + last + DONE, (11, 22, False))


@pytest.mark.parametrize("size", [100, 1400, 16_384])
def test_usage_in_an_event_that_is_passed_on_in_pieces(size: int) -> None:
    """Wherever in it, and however it is cut."""
    for answer in (
        {"usage": TOKENS, "b64_json": "x" * 100_000},
        {"b64_json": "x" * 100_000, "usage": TOKENS, "more": ["y" * 100_000, {"usage": {"prompt_tokens": 1}}]},
    ):
        for shape in (answer, {"type": "response.completed", "response": answer}):
            sent = event({"type": "x"}) + event(shape) + event({"type": "y"})
            stream, tap = EventStream(), UsageTap(RESPONSES)
            pieces = [sent[start : start + size] for start in range(0, len(sent), size)]
            assert b"".join(tap.events(block) for piece in pieces if (block := stream.feed(piece))) == sent
            assert settled(tap, streamed=True, size=len(sent)) == (11, 22, False)


def test_a_stopped_stream_about_a_picture_costs_a_few_thousand_tokens_at_most() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo" * 270_000}}
    request = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": [picture]}]}).encode()
    tap = UsageTap(CHAT, request=request)
    tap.events(word("a") * 3)
    exchange = Exchange(request_id="r", method="POST", path="/x", started=0.0, streamed=True, status=200)
    exchange.bytes_in = len(request)
    tap.settle(exchange, whole=False)
    assert exchange.estimated
    assert 1000 <= exchange.prompt_tokens < 1100
    assert exchange.completion_tokens == 3


@pytest.mark.parametrize(
    ("path", "metered"),
    [
        (b"/threads/t/runs", True),
        (b"/fim/completions", True),
        (b"/batches", False),
        (b"/messages/batches", False),
        (b"/chat/completions/chatcmpl-1", False),
        (b"/responses/resp_1/cancel", False),
        (b"/tokenize", False),
    ],
)
def test_what_stateful_endpoints_generate_counts_and_what_they_store_does_not(path: bytes, metered: bool) -> None:
    expected = (11, 22, False) if metered else (0, 0, False)
    assert counted(json.dumps({"usage": TOKENS}).encode(), endpoint=find_endpoint("POST", b"/v1" + path)) == expected
    read = find_endpoint("GET", b"/v1/threads/t/runs/r")
    assert counted(json.dumps({"usage": TOKENS}).encode(), endpoint=read) == (0, 0, False)


NUMBERS = st.one_of(st.none(), st.integers(-(10**40), 10**40), st.floats(), st.text(max_size=5), st.booleans())
USAGES = st.one_of(
    st.dictionaries(st.sampled_from([*TOKENS, "input_tokens", "output_tokens", "usage"]), NUMBERS),
    NUMBERS,
    st.lists(NUMBERS, max_size=3),
)


@given(USAGES, st.sampled_from([0, 70_000]), st.binary(max_size=8))
@example("9" * 5000, 70_000, b"")
def test_nothing_that_a_backend_says_makes_it_fail_or_count_what_cannot_be(
    usage: Any, padding: int, trailing: bytes
) -> None:
    answer = {"object": "x" * padding, "choices": [], "usage": usage}
    body = json.dumps(answer).encode() + trailing
    for whole in (True, False):
        prompt, completion, _ = counted(body, whole=whole)
        assert 0 <= prompt <= MOST_TOKENS
        assert 0 <= completion <= MOST_TOKENS
    _, (prompt, completion, _) = passed([b"data: " + body + b"\n\n"])
    assert 0 <= prompt <= MOST_TOKENS
    assert 0 <= completion <= MOST_TOKENS


@pytest.mark.parametrize("number", ["9" * 5000, "1e400", "NaN", "[" * 5000, '"'])
@pytest.mark.parametrize("padding", [0, 70_000])
def test_numbers_that_no_parser_takes_are_as_good_as_none(number: str, padding: int) -> None:
    body = b'{"object": "%b", "usage": {"prompt_tokens": %b}}' % (b"x" * padding, number.encode())
    assert counted(body) == (100, len(body) // 4, True)
