from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gasket.proxy.members import find_members, member
from gasket.server.errors import BadRequestError

TWO = member("model", "a_b")
FOLDED = member("task")


def found(body: bytes) -> list[tuple[str | None, bool]]:
    """Of each member its name, and whether it is null or false."""
    return [
        (name, match["nothing"] is not None)
        for match in find_members(body, TWO)
        for name in ("model", "a_b")
        if match[name] is not None
    ]


texts = st.sampled_from(
    ["model", "Model", "a_b", "A_B", "x", "", '"model":', '{"', "[", "}", "\\", "\\\\", '\\"model": 1', "\0"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def written(value: Any, data: st.DataObject) -> str:
    """As JSON with keys that are escaped here and there, and blanks."""
    blank = data.draw(st.sampled_from(["", " ", "\n\t"]))
    if isinstance(value, dict | Pairs):
        pairs = value.items() if isinstance(value, dict) else value
        members = (f"{spelt(key, data)}{blank}:{blank}{written(inner, data)}" for key, inner in pairs)
        return "{" + f",{blank}".join(members) + "}"
    if isinstance(value, list):
        return "[" + f"{blank},".join(written(inner, data) for inner in value) + "]"
    return json.dumps(value) + blank


def spelt(key: str, data: st.DataObject) -> str:
    plain = [json.dumps(char)[1:-1] for char in key]
    return (
        '"'
        + "".join(
            data.draw(st.sampled_from([a, f"\\u{ord(b):04x}", f"\\u{ord(b):04X}"]))
            for a, b in zip(plain, key, strict=True)
        )
        + '"'
    )


@given(st.dictionaries(texts, values, max_size=5), st.data())
def test_it_finds_what_a_parser_finds(value: dict[str, Any], data: st.DataObject) -> None:
    expected = [
        (key.lower(), inner is None or inner is False)
        for key, inner in value.items()
        if key.lower() in ("model", "a_b")
    ]
    assert found(written(value, data).encode()) == expected


def test_a_quote_within_a_string_begins_no_key() -> None:
    assert found(b'{"{\\"model":1,"model":2,"\\\\":{"\\"a_b":1}}') == [("model", False)]


def test_what_a_parser_of_c_reads_of_a_key_counts() -> None:
    assert found(b'{"model\\u0000x":1,"model\\u0001":2,"modelx":3}') == [("model", False)]


@pytest.mark.parametrize(
    "key", [b'model\\u0000\\" : {', b'model\\u0000\\" : null, {', b'model\\u0000\\\\\\"[', b"model\\u0000\\\\"]
)
def test_a_key_ends_at_its_own_quote(key: bytes) -> None:
    assert found(b'{"%b":1,"model":2,"A_B":null}' % key) == [("model", False), ("model", False), ("a_b", True)]


@pytest.mark.parametrize("key", ["ta\u017fk", "TAS\u212a", "ta\\u017F\\u212a", "ta\\u017f\\u006b"])
def test_letters_that_go_takes_for_ones_of_ascii(key: str) -> None:
    [match] = find_members(f'{{"{key}":1,"tašk":2}}'.encode(), FOLDED)
    assert match["task"] == key.encode()


class Pairs(list[tuple[str, Any]]):
    """The members of an object, as they are written."""


hostile = st.lists(
    st.sampled_from(["model", "Model", "a_b", "\0", '"', "\\", ":", " ", ",", "{", "}", "[", "]", "null", "x", "é"]),
    max_size=6,
).map("".join)
objects = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | hostile,
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(hostile, inner), max_size=3).map(Pairs),
    max_leaves=10,
)


@given(st.lists(st.tuples(hostile, objects), max_size=5).map(Pairs), st.data())
def test_no_key_or_string_misleads_it(value: Pairs, data: st.DataObject) -> None:
    text = written(value, data)
    parsed = json.loads(text, object_pairs_hook=Pairs)
    cut = [(key.partition("\0")[0].lower(), inner) for key, inner in parsed]
    assert found(text.encode()) == [
        (key, inner is None or inner is False) for key, inner in cut if key in ("model", "a_b")
    ]


@pytest.mark.parametrize("deep", range(1, 6))
def test_strings_that_are_many_are_skipped_like_few(deep: int) -> None:
    """They are counted in pieces: whether a piece begins within a string is known from the one before."""
    many = b'["{"],["]\\"{"],' * 60_000
    body = b'{"x":%b%b0%b,"model":1,"y":[%b{"a_b":1}]}' % (b"[" * deep, many, b"]" * deep, many)
    json.loads(body)
    assert found(body) == [("model", False)]


def test_many_candidates_are_not_looked_at_one_by_one() -> None:
    inner = b'{"model":1}'
    assert found(b'{"x":[%b],"model":1}' % b",".join([inner] * 999)) == [("model", False)]
    with pytest.raises(BadRequestError):
        found(b'{"x":[%b],"model":1}' % b",".join([inner] * 1000))
