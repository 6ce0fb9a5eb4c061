"""Which tokens the claim rules of a profile are about."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gasket.proxy.claim_rules import Rule, matches, takes

POD = {
    "kubernetes.io": {"namespace": "batch", "serviceaccount": {"name": "trainer", "uid": "1"}},
    "sub": "system:serviceaccount:batch:trainer",
    "groups": ["a", "b", 7],
    "a/b": {"c~d": "deep"},
    "run_attempt": 1,
    "ratio": 1.5,
    "protected": True,
    "nothing": None,
    "": "empty name",
    "/odd": "a name with a slash",
}


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("acme/robot", "acme/robot", True),
        ("acme/robot", "acme/robot2", False),
        ("acme/robot", "Acme/robot", False),
        ("acme/*", "acme/", True),
        ("acme/*", "acme/a/b c\n", True),
        ("acme/*", "acme", False),
        ("acme/*", "x acme/robot", False),
        ("*", "", True),
        ("**", "anything", True),
        ("*:ref:*", "repo:acme:ref:main", True),
        ("*:ref:*", "repo:acme:ref", False),
        ("a*b*c", "a-b-b-c", True),
        ("a*b*c", "a-c-b", False),
        ("ab*ba", "aba", False),
        ("ab*ba", "abba", True),
        ("*a", "ba", True),
        ("*a", "ab", False),
        ("a?[b]", "a?[b]", True),
        ("a?", "ab", False),
        ("a.c", "abc", False),
    ],
)
def test_a_star_stands_for_any_text_and_the_rest_for_itself(pattern: str, text: str, expected: bool) -> None:
    assert matches(pattern, text) is expected


def test_no_pattern_is_slow() -> None:
    started = time.process_time()
    assert not matches("*a" * 200 + "b", "a" * 16_000)
    assert time.process_time() - started < 5  # a regular expression would be at it for years


@pytest.mark.parametrize(
    ("claim", "pattern", "expected"),
    [
        ("sub", "system:serviceaccount:batch:*", True),
        ("/kubernetes.io/serviceaccount/name", "trainer", True),
        ("/kubernetes.io/serviceaccount/name", "other", False),
        ("/kubernetes.io/serviceaccount", "*", False),
        ("/kubernetes.io/nothing/name", "*", False),
        ("/sub/name", "*", False),
        ("kubernetes.io.namespace", "batch", False),
        ("groups", "b", True),
        ("groups", "7", True),
        ("groups", "c", False),
        ("/a~1b/c~0d", "deep", True),
        ("run_attempt", "1", True),
        ("protected", "true", True),
        ("protected", "True", False),
        ("ratio", "*", False),
        ("nothing", "*", False),
        ("missing", "*", False),
        ("/", "empty name", True),
        ("/~1odd", "a name with a slash", True),
    ],
)
def test_a_claim_is_found_by_its_name_or_its_place(claim: str, pattern: str, expected: bool) -> None:
    assert takes([Rule("https://i", claim, pattern)], "https://i", POD) is expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], False),
        ([("https://i", "sub", "*")], True),
        ([("https://j", "sub", "*")], False),
        ([("https://i/", "sub", "*")], False),
        ([("https://i", "sub", "*"), ("https://i", "groups", "c")], False),
        ([("https://i", "sub", "*"), ("https://i", "groups", "a")], True),
        ([("https://i", "sub", "*"), ("https://j", "sub", "never")], True),
    ],
)
def test_all_rules_of_the_issuer_must_apply_and_there_must_be_one(rules: list[Any], expected: bool) -> None:
    assert takes([Rule(*rule) for rule in rules], "https://i", POD) is expected
