"""`usage` is found wherever it stands in an answer, however that is cut into pieces."""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gasket.proxy.usage_counts import read_answer, usage_of
from gasket.proxy.usage_scanner import UsageScanner, without_usage

TOKENS = {"prompt_tokens": 11, "completion_tokens": 22}


def found(body: bytes, size: int) -> dict[str, Any] | None:
    scanner = UsageScanner()
    for start in range(0, len(body), size):
        scanner.feed(body[start : start + size])
    return scanner.found


NAMES = st.sampled_from(["usage", "response", "message", "choices", "x", 'us"age', '\\"usage', "usage\\", "{", "[", ""])
VALUES = st.recursive(
    st.none() | st.integers(0, 99) | NAMES | st.text(st.sampled_from('"\\{}[]:, usage'), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=25,
)
ANSWERS = st.dictionaries(NAMES, VALUES, max_size=6)


def expected(answer: dict[str, Any]) -> dict[str, Any] | None:
    """What it has to find, read from all of the answer at once."""
    found = None
    for at in (answer, answer.get("response"), answer.get("message")):
        if isinstance(at, dict) and isinstance(at.get("usage"), dict):
            found = found or at["usage"]
    return found


@given(ANSWERS, st.integers(1, 50), st.sampled_from([None, 1]), st.booleans())
@example({"response": {"usage": {}}}, 1, None, False)
@example({"response": 5, "x": {"usage": {"a": 1}}}, 7, None, False)
@example({"response": {"x": 1}, "x": {"usage": {"a": 1}}}, 7, None, False)
@example({"x": '\\"', "usage": {"a": 1}}, 1, 1, False)
def test_however_it_is_written_and_cut(answer: dict[str, Any], size: int, indent: int | None, both: bool) -> None:
    answer = {name: value for name, value in answer.items() if name != "choices"}
    if both:
        answer["usage"] = TOKENS
    elif isinstance(answer.get("response"), dict) and isinstance(answer.get("message"), dict):
        del answer["message"]  # nobody has both
    body = json.dumps(answer, indent=indent).encode()
    assert found(body, size) == (expected(answer) if expected(answer) else found(body, len(body)))
    if expected(answer):
        assert found(body, len(body)) == expected(answer)
    else:
        assert not found(body, len(body))


@given(ANSWERS, st.integers(0, 5))
def test_cut_out_all_else_stays(answer: dict[str, Any], place: int) -> None:
    answer.pop("usage", None)
    members = list(answer.items())
    members.insert(min(place, len(members)), ("usage", TOKENS))
    for indent in (None, 2):
        data = json.dumps(dict(members), indent=indent).encode()
        rest = without_usage(data)
        assert json.loads(rest) == answer
        assert read_answer(rest).usage is None
        assert without_usage(rest) == rest


@pytest.mark.parametrize("size", range(1, 12))
def test_of_choices_the_first(size: int) -> None:
    answer = {"choices": [{"delta": {"usage": {"a": 9}}, "usage": TOKENS}, {"usage": {"a": 5}}], "x": [{"usage": {}}]}
    assert found(json.dumps(answer).encode(), size) == TOKENS == usage_of(read_answer(json.dumps(answer)))


@pytest.mark.parametrize("size", [1, 7, 100])
def test_events_one_after_another(size: int) -> None:
    events = [{"response": {"usage": {"a": 1}}}, {"x": {"usage": {"a": 2}}}, {"response": {"usage": TOKENS}}, {"x": 1}]
    assert found(b"".join(b"event: x\ndata: %b\n\n" % json.dumps(event).encode() for event in events), size) == TOKENS


@pytest.mark.parametrize("value", [b"1", b'"x"', b"[", b"{" * 20_000, b'{"a": ' * 5000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_what_is_no_usage_holds_nothing_up(value: bytes) -> None:
    scanner = UsageScanner()
    scanner.feed(b'{"usage": ' + value + b' , "x": "' + b"y" * 20_000)
    assert len(scanner._held) < 100
    assert scanner.found is None


def test_a_large_answer_costs_little_time_and_no_memory() -> None:
    """In the benchmark 70 MB take 0.1 s; the bound here is for a machine that is busy with something else."""
    vector = "[" + ",".join(["-0.012345678"] * 1536) + "]"
    entry = b'{"object": "embedding", "index": 0, "embedding": %b},' % vector.encode()
    piece = entry * 4
    scanner = UsageScanner()
    tracemalloc.start()
    try:
        before = time.thread_time()
        scanner.feed(b'{"data": [')
        for _ in range(100):
            scanner.feed(piece)
        took = time.thread_time() - before
        scanner.feed(b'0], "usage": {"prompt_tokens": 3}}')
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert scanner.found == {"prompt_tokens": 3}
    assert took < 0.5
    assert peak < 4 * len(piece)
