"""What a backend's `usage` says, in whichever of the known forms. Pure.

(OpenAI API reference: `usage` of chat completions, completions, embeddings, responses, images and transcriptions.
Anthropic API reference: `usage` of messages. Moonshot, DeepSeek, xAI, Gemini: their own names beside OpenAI's.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from gasket.usage.entry import MOST_TOKENS

_MOST_DIGITS = 30
_CACHED = ("cache_read_input_tokens", "prompt_cache_hit_tokens", "cached_tokens")
_OUTSIDE_OF_INPUT = ("cache_read_input_tokens", "cache_creation_input_tokens")
_OF_PROMPT = ("prompt_tokens_details", "input_tokens_details", "input_token_details")
_OF_ANSWER = ("completion_tokens_details", "output_tokens_details", "output_token_details")


class Count(NamedTuple):
    """Tokens. `cached` are part of `prompt`, `reasoning` of `completion`, and `audio` of both together."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0
    audio: int = 0


class _Choice(msgspec.Struct):
    usage: Any = None


class _Inner(msgspec.Struct):
    usage: Any = None


class Answer(msgspec.Struct):
    """An answer, or an event of one; events of responses and messages have an answer inside."""

    usage: dict[str, Any] | None = None
    response: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()
    choices: msgspec.Raw = msgspec.Raw()


UNREADABLE = (ValueError, RecursionError)
"""What parsers raise; msgspec's errors are ValueErrors, too."""

read_answer = msgspec.json.Decoder(Answer).decode
_read_inner = msgspec.json.Decoder(_Inner).decode
_read_choices = msgspec.json.Decoder(list[_Choice]).decode


def usage_of(answer: Answer) -> Mapping[str, Any] | None:
    """The answer's own `usage`, or that of the answer inside, or of its first choice (Moonshot's streams)."""
    if answer.usage is not None:
        return answer.usage
    for inside in (answer.response, answer.message):
        if inside:
            try:
                usage = _read_inner(inside).usage
            except UNREADABLE:
                continue
            if isinstance(usage, dict):
                return usage
    if answer.choices and b'"usage"' in bytes(answer.choices):
        try:
            choices = _read_choices(answer.choices)
        except UNREADABLE:
            return None
        if choices and isinstance(choices[0].usage, dict):
            return choices[0].usage
    return None


def count_of(usage: Mapping[str, Any], *, generates: bool) -> Count | None:
    """The tokens, or None if there is no number in it. What cannot be is cut off.

    A total above the sum counts: some backends leave the tokens of reasoning out of the completion's. `generates`:
    whether the endpoint writes an answer; otherwise what the total has more is of the prompt.
    """
    prompt, answer = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if (
        type(prompt) is type(answer) is int
        and len(usage) == 3
        and usage.get("total_tokens") == prompt + answer
        and 0 <= prompt <= MOST_TOKENS
        and 0 <= answer <= MOST_TOKENS
    ):
        return Count(prompt, answer)  # without details, and all of it as it should be: most answers pay for no more
    prompt, answer = _number(usage, "prompt_tokens"), _number(usage, "completion_tokens", "output_tokens")
    if prompt is None and (prompt := _number(usage, "input_tokens")) is not None:
        prompt += sum(_number(usage, name) or 0 for name in _OUTSIDE_OF_INPUT)
    total = _number(usage, "total_tokens")
    if prompt is None and answer is None and total is None:
        return None
    prompt, answer = prompt or 0, answer or 0
    of_prompt, of_answer = _details(usage, _OF_PROMPT), _details(usage, _OF_ANSWER)
    reasoning = _number(of_answer, "reasoning_tokens") or _number(usage, "reasoning_tokens") or 0
    if reasoning > answer > 0 and generates:  # a part cannot be more than the whole
        answer += reasoning
    missing = max((total or 0) - prompt - answer, 0)
    if generates:
        answer += missing
    else:
        prompt += missing
    cached = _number(of_prompt, "cached_tokens") or _number(usage, *_CACHED) or 0
    audio = (_number(of_prompt, "audio_tokens") or 0) + (_number(of_answer, "audio_tokens") or 0)
    prompt, answer = min(prompt, MOST_TOKENS), min(answer, MOST_TOKENS)
    return Count(prompt, answer, min(cached, prompt), min(reasoning, answer), min(audio, prompt + answer))


def larger(one: Count, other: Count) -> Count:
    """The larger of each two numbers: of counts that only grow, each saying a part."""
    return Count(*map(max, one, other))


def _details(usage: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    found = (usage.get(name) for name in names)
    return next((details for details in found if isinstance(details, dict)), {})


def _number(usage: Mapping[str, Any], *names: str) -> int | None:
    """The first of these that is a whole number, at least 0. `12.0` and `"12"` are numbers, and `true` is none."""
    for name in names:
        value = usage.get(name)
        if value is None:
            continue
        if type(value) is int:
            return max(value, 0)
        if type(value) is str and value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS:
            return int(value)
        if type(value) is float and value.is_integer():
            return max(int(value), 0)
    return None
