"""Estimates of tokens: text by its length; pictures, sounds and files by their number."""

from __future__ import annotations

import base64
import json
import os
import time
from typing import Any

import pytest

from gasket.proxy.estimates import AUDIO, FILE, PICTURE, DataMeter, estimate_answer, estimate_request, find_data

RANDOM = base64.b64encode(os.urandom(300_000)).decode()
ZEROS = base64.b64encode(bytes(300_000)).decode()


def estimated(content: Any, *, escaped: bool = False) -> int:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": content}]}).encode()
    body = body.replace(b"/", b"\\/") if escaped else body
    return estimate_request(len(body), body)


@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("data", [RANDOM, ZEROS])
@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        (lambda data: {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}, PICTURE),
        (lambda data: {"type": "input_image", "image_url": f"data:image/jpeg;base64,{data}"}, PICTURE),
        (lambda data: {"type": "image", "source": {"type": "base64", "media_type": "x/y", "data": data}}, PICTURE),
        (lambda data: {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}, AUDIO),
        (lambda data: {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{data}"}}, FILE),
        (lambda data: {"type": "document", "source": {"type": "base64", "data": data}}, FILE),
        (lambda data: {"image": data}, PICTURE),
        (lambda data: {"text": f"data:audio/wav;base64,{data}"}, AUDIO),
    ],
)
def test_data_has_a_fixed_estimate(part: Any, tokens: int, data: str, escaped: bool) -> None:
    assert tokens <= estimated([part(data)], escaped=escaped) <= tokens + 70
    assert 3 * tokens <= estimated([part(data)] * 3, escaped=escaped) <= 3 * tokens + 200


def test_a_picture_that_is_named_counts_as_one_that_is_sent() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
    assert PICTURE < estimated([part]) < PICTURE + 50


@pytest.mark.parametrize(
    "text",
    [
        "word " * 1000,
        "x" * 5000,
        "MiXeD1" * 100,
        '"type": "image_url"',
        "größe" * 500,
        "snake_case_name_2 = A(b)\n" * 90,
    ],
)
def test_text_is_text(text: str) -> None:
    body = json.dumps({"messages": [{"content": text}], "tools": [{"type": "object"}]}).encode()
    assert estimate_request(len(body), body) == len(body) // 4


def test_a_form_or_nothing_is_estimated_by_its_size() -> None:
    assert estimate_request(400, b"") == 100


@pytest.mark.parametrize("size", [16_384, 65_536, 10**6])
def test_an_answer_in_pieces(size: int) -> None:
    answer = {"choices": [{"message": {"content": "word " * 1000, "audio": {"data": RANDOM}, "images": [RANDOM]}}]}
    body = json.dumps(answer).encode()
    meter = DataMeter()
    for start in range(0, len(body), size):
        meter.feed(body[start : start + size])
    # What stands at the borders of pieces may be missed: less than 1024 bytes of each, so few tokens.
    assert 1250 + 2 * AUDIO <= estimate_answer(len(body), meter) <= 1350 + 3 * AUDIO


def test_data_is_found_where_it_is() -> None:
    text = b'{"a": "data:image/png;base64,%b", "b": "%b"}' % (ZEROS.encode(), RANDOM.encode())
    found = find_data(text)
    assert [text[data.start : data.end].decode() for data in found] == [ZEROS, RANDOM]
    assert [data.kind for data in found] == [b"image", b""]


def test_a_body_that_is_made_of_data_holds_nobody_up() -> None:
    """The bound is for a machine that is busy with something else."""
    for body in (b'["' + (b"aB3" * 400 + b'","') * 20_000 + b'"]', b'[{"type":"image_url"}' * 1_000_000 + b"]"):
        before = time.thread_time()
        assert estimate_request(len(body), body) >= 1_000_000
        assert time.thread_time() - before < 1
