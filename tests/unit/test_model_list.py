from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gasket.backends.model_list import parse_models, read_models


@pytest.mark.parametrize(
    ("body", "models"),
    [
        (b'{"object": "list", "data": [{"id": "b", "object": "model", "owned_by": null}, {"id": "a"}]}', ["b", "a"]),
        (b'{"data": [{"id": "a", "permission": [{}]}, {"id": "a"}], "models": 5}', ["a"]),
        (b' \n{"data": []}', []),
        (b'{"object": "list", "data": null}', []),
        (b"[]", []),
        (b'[{"id": "m"}, {"name": "no id"}]', ["m"]),
        (b'{"data": [{"id": 5}, "a", null, {"id": "b"}, {}]}', ["b"]),
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
        (b'["a"]', "no list of models"),
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


@pytest.mark.parametrize("count", [1, 20_000])
async def test_a_large_list_is_read_beside_the_loop(count: int) -> None:
    body = json.dumps({"data": [{"id": str(number)} for number in range(count)]}).encode()
    others: list[bool] = []
    asyncio.get_running_loop().call_soon(others.append, True)
    assert len(await read_models(body)) == count
    assert bool(others) is (count > 1), "whether others had their turn meanwhile"
    with pytest.raises(ValueError, match="is not JSON"):
        await read_models(b" " * count + b"]")


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
