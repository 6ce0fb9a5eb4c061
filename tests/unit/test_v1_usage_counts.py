"""The numbers of a `usage`, in the forms of the APIs and backends that there are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gasket.proxy.usage_counts import Count, count_of, read_answer, usage_of
from gasket.usage.entry import MOST_TOKENS


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (
            {
                "prompt_tokens": 32,
                "completion_tokens": 9,
                "total_tokens": 135,
                "completion_tokens_details": {"reasoning_tokens": 94},
            },
            Count(32, 103, reasoning=94),
        ),
        ({"prompt_tokens": 20, "completion_tokens": 50, "total_tokens": 870}, Count(20, 850)),
        (
            {"prompt_tokens": 32, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 94}},
            Count(32, 103, reasoning=94),
        ),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 60,
                "total_tokens": 160,
                "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 7},
                "completion_tokens_details": {"reasoning_tokens": 40, "audio_tokens": 5},
            },
            Count(100, 60, cached=64, reasoning=40, audio=12),
        ),
        (
            {
                "input_tokens": 75,
                "input_tokens_details": {"cached_tokens": 32},
                "output_tokens": 1186,
                "output_tokens_details": {"reasoning_tokens": 1024},
                "total_tokens": 1261,
            },
            Count(75, 1186, cached=32, reasoning=1024),
        ),
        (
            {"input_tokens": 14, "input_token_details": {"audio_tokens": 14, "text_tokens": 0}, "output_tokens": 101},
            Count(14, 101, audio=14),
        ),
        (
            {
                "input_tokens": 5,
                "cache_creation_input_tokens": 200,
                "cache_read_input_tokens": 1000,
                "output_tokens": 7,
            },
            Count(1205, 7, cached=1000),
        ),
        ({"input_tokens": 5, "cache_read_input_tokens": None, "output_tokens": 7}, Count(5, 7)),
        # Beside OpenAI's names, Anthropic's are a part and not more.
        (
            {"prompt_tokens": 1205, "completion_tokens": 7, "cache_read_input_tokens": 1000},
            Count(1205, 7, cached=1000),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 4}, Count(9, 1, cached=4)),
        ({"prompt_tokens": 9, "completion_tokens": 1, "cached_tokens": 4}, Count(9, 1, cached=4)),
        ({"prompt_tokens": "32", "completion_tokens": "9", "total_tokens": "135"}, Count(32, 103)),
        ({"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 99}}, Count(9, 1, 9)),
        ({"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": [3]}, Count(9, 1)),
        ({"prompt_tokens": "9" * 31, "completion_tokens": 1}, Count(0, 1)),
        ({"prompt_tokens": 10**12, "completion_tokens": 10**12}, Count(MOST_TOKENS, MOST_TOKENS)),
        ({"seconds": 3}, None),
    ],
)
def test_what_a_backend_may_say(usage: dict[str, Any], expected: Count | None) -> None:
    assert count_of(usage, generates=True) == expected


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 40, "total_tokens": 40}, Count(40, 0)),
        ({"prompt_tokens": 40, "total_tokens": 40, "completion_tokens": 0}, Count(40, 0)),
        ({"total_tokens": 815}, Count(815, 0)),
        ({"prompt_tokens": 10, "total_tokens": 15}, Count(15, 0)),
    ],
)
def test_where_nothing_is_generated_the_total_is_the_prompts(usage: dict[str, Any], expected: Count) -> None:
    assert count_of(usage, generates=False) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"usage": {"a": 1}, "response": {"usage": {"a": 2}}}, {"a": 1}),
        ({"type": "response.completed", "response": {"usage": {"a": 2}}}, {"a": 2}),
        ({"type": "message_start", "message": {"usage": {"a": 3}}}, {"a": 3}),
        ({"choices": [{"index": 0, "usage": {"a": 4}}, {"usage": {"a": 5}}]}, {"a": 4}),
        ({"choices": [{"index": 0, "message": {"usage": {"a": 4}}}]}, None),
        ({"choices": "usage", "response": [], "message": "usage"}, None),
        ({"usage": None, "error": {"usage": {"a": 1}}}, None),
    ],
)
def test_where_it_stands(answer: dict[str, Any], expected: dict[str, int] | None) -> None:
    assert usage_of(read_answer(json.dumps(answer))) == expected
