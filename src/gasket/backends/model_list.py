"""Reading a backend's list of models, leniently: servers differ in what they call a list."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

LARGEST_LIST = 16 * 1024 * 1024
"""Bytes of a list, decompressed."""

_READ_IN_THREAD_ABOVE = 64 * 1024
_NO_LIST = "is JSON, but no list of models: each entry of its `data` should have an `id`"


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[msgspec.Raw] | None  # some servers that have no model say null


_list = msgspec.json.Decoder(_ModelList | list[msgspec.Raw])
_model = msgspec.json.Decoder(_Model)


async def read_models(body: bytes) -> dict[str, msgspec.Raw]:
    """As `parse_models`; a large list is read in a thread, so that requests do not wait for it."""
    return parse_models(body) if len(body) <= _READ_IN_THREAD_ABOVE else await asyncio.to_thread(parse_models, body)


def parse_models(body: bytes) -> dict[str, msgspec.Raw]:
    """The models of an answer to `GET /v1/models`, as JSON by their names, in its order, each once.

    (OpenAI API reference, "List models"; fields that it does not know are passed over.) A bare array will do. An entry
    without an `id` is skipped.

    Raises:
        ValueError: it is no such list; the message says what it is, to follow "the answer".
    """
    if not body.strip():
        raise ValueError("is empty")
    if body.lstrip().startswith(b"<"):
        raise ValueError("is a web page, not JSON")
    models: dict[str, msgspec.Raw] = {}
    try:
        found: Any = _list.decode(body)
        entries = found if isinstance(found, list) else found.data or ()
        for raw in entries:
            if (name := _name(raw)) is not None:
                models.setdefault(name, msgspec.Raw(bytes(raw)))
    except msgspec.ValidationError:
        raise ValueError(_NO_LIST) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("is not JSON") from None
    if entries and not models:
        raise ValueError(_NO_LIST)
    return models


def _name(model: msgspec.Raw) -> str | None:
    try:
        return _model.decode(model).id
    except msgspec.ValidationError:
        return None
