from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gasket.backends.probe import parse_models


@pytest.mark.parametrize(
    ("body", "models"),
    [
        (b'{"object": "list", "data": [{"id": "b", "object": "model", "owned_by": null}, {"id": "a"}]}', ["b", "a"]),
        (b'{"data": [{"id": "a", "permission": [{}]}, {"id": "a"}], "models": 5}', ["a"]),
        (b' \n{"data": []}', []),
        (b'{"object": "list", "data": null}', []),
        ('{"data": [{"id": "modèle"}]}'.encode(), ["modèle"]),
    ],
)
def test_lists_of_models(body: bytes, models: list[str]) -> None:
    assert list(parse_models(body)) == models


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "is empty"),
        (b" \r\n", "is empty"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"hello", "is not JSON"),
        (b'{"data": [', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"data": [{"id": "\xff"}]}', "is not JSON"),
        (b'{"x": ' + b"[" * 100_000, "is not JSON"),
        (b"[]", "no list of models"),
        (b"null", "no list of models"),
        (b'{"models": []}', "no list of models"),
        (b'{"data": {}}', "no list of models"),
        (b'{"data": ["a"]}', "no list of models"),
        (b'{"data": [{"name": "a"}]}', "no list of models"),
        (b'{"data": [{"id": 5}]}', "no list of models"),
    ],
)
def test_what_is_no_list_of_models(body: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_models(body)


@given(
    st.binary()
    | st.recursive(st.none() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(
        lambda value: json.dumps({"data": value}).encode()
    )
)
def test_whatever_comes_there_is_a_list_or_words(body: bytes) -> None:
    try:
        models = parse_models(body)
    except ValueError as error:
        words = str(error)
    else:
        words = "is " + "".join(models)
    assert words.startswith("is ")
