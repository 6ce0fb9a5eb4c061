"""Which tokens the claim rules of a profile are about. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

Claims = Mapping[str, Any]


class Rule(msgspec.Struct, frozen=True):
    """A rule, as the profile's row has it."""

    issuer: str
    claim: str
    pattern: str


def read_rules(stored: str) -> list[Rule] | None:
    """The rules in a profile's row, of which this is the JSON; None: another program has written something else."""
    try:
        return msgspec.json.decode(stored, type=list[Rule])
    except (msgspec.DecodeError, RecursionError):
        return None


def takes(rules: Iterable[Rule], issuer: str, claims: Claims) -> bool:
    """Whether all rules about this issuer apply to the claims. Without such a rule no token of it is taken."""
    concerned = [rule for rule in rules if rule.issuer == issuer]
    return bool(concerned) and all(_applies(rule, claims) for rule in concerned)


def matches(pattern: str, text: str) -> bool:
    """Whether the whole text is like the pattern, in which `*` stands for any text, also for none.

    It takes time in proportion to the text for each `*`: no pattern with a text that a client has chosen is slow.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    if not text.startswith(first):
        return False
    position = len(first)
    *middle, last = rest
    for part in middle:
        found = text.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return len(text) - position >= len(last) and text.endswith(last)


def _applies(rule: Rule, claims: Claims) -> bool:
    value = _value(claims, rule.claim)
    values = value if isinstance(value, list) else [value]
    return any(matches(rule.pattern, text) for text in map(_text, values) if text is not None)


def _value(claims: Claims, name: str) -> Any:
    """The claim of this name, or at this place (RFC 6901, JSON Pointer); None: there is none."""
    if not name.startswith("/"):
        return claims.get(name)
    value: Any = claims
    for token in name[1:].split("/"):
        if not isinstance(value, Mapping):
            return None
        value = value.get(token.replace("~1", "/").replace("~0", "~"))
    return value


def _text(value: object) -> str | None:
    """Text, numbers and truth values as JSON has them; None: the value is neither."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int):
        return msgspec.json.encode(value).decode()
    return None
