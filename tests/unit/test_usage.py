"""Usage, as far as it needs no database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import structs

from gasket.usage.entry import LONGEST_TEXT, MOST_TOKENS, UsageEntry, storable
from gasket.usage.models import UsageRecord
from gasket.usage.store import _TYPES

ENTRY = {
    "request_id": "019ab7f0-0000-7000-8000-000000000000",
    "started_at": datetime(2026, 11, 25, 12, tzinfo=UTC),
    "key_id": 1,
    "user_email": "ada@example.com",
    "profile_id": 2,
    "backend_id": None,
    "model": None,
    "path": "/v1/models",
    "status": 200,
    "outcome": "ok",
    "first_byte_ms": None,
    "duration_ms": 1.5,
    "bytes_in": 0,
    "bytes_out": 10,
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "estimated": False,
    "retries": 0,
    "cached_tokens": 0,
    "reasoning_tokens": 0,
    "audio_tokens": 0,
    "end_user": None,
}


def stored(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {**ENTRY, **changes}
    return structs.asdict(storable(UsageEntry(**fields)))


def test_entry_table_and_statement_have_the_same_fields_in_the_same_order() -> None:
    columns = [column.name for column in UsageRecord.__table__.columns]
    assert list(UsageEntry.__struct_fields__) == list(_TYPES) == columns


def test_what_fits_is_stored_as_it_is() -> None:
    assert stored() == ENTRY
    assert stored(model="größe/日本", backend_id=3)["model"] == "größe/日本"


@pytest.mark.parametrize(
    ("field", "given", "kept"),
    [
        ("model", "m" * 500, "m" * LONGEST_TEXT),
        ("model", "a\0b", "a\ufffdb"),
        ("model", "\ud800", "?"),
        ("end_user", "b" * 300, "b" * 200),
        ("end_user", "b\0b", "b\ufffdb"),
        ("path", "/v1/\0", "/v1/\ufffd"),
        ("prompt_tokens", -1, 0),
        ("cached_tokens", -1, 0),
        ("audio_tokens", 10**30, MOST_TOKENS),
        ("prompt_tokens", 10**30, MOST_TOKENS),
        ("completion_tokens", 10**30, MOST_TOKENS),
    ],
)
def test_what_does_not_fit_is_cut_to_size(field: str, given: object, kept: object) -> None:
    assert stored(**{field: given}) == {**ENTRY, field: kept}
