from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from msgspec import UNSET, UnsetType

from gasket.backends.schemas import KeyRules
from gasket.errors import InvalidInputError
from gasket.keys.schemas import KeyCreate, KeyIssued
from gasket.keys.service import check_expiry, digest, first_expiry, new_key, preview

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)


def rules(days: int | None = None, *, enforce: bool = False) -> KeyRules:
    return KeyRules(
        profile_id=1,
        profile_name="team",
        default_expiry_days=days,
        enforce_expiry=enforce,
        max_keys_per_user=None,
        open_to_groups=None,
        now=NOW,
    )


def test_keys_are_random_and_recognisable() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"gsk_[0-9a-f]{48}", key) for key in keys)


def test_what_is_stored_of_a_key() -> None:
    key = "gsk_000000000000000000000000000000000000000000003f9a"
    # printf %s "$key" | sha256sum
    assert digest(key) == "364d8f8114b323f41aa0964961e5b410c9eebac3b7a1030ee85535a88c4e653e"
    assert preview(key) == "gsk_...3f9a"


@pytest.mark.parametrize(
    ("requested", "days", "expected"),
    [
        (UNSET, None, None),
        (UNSET, 90, NOW + timedelta(days=90)),
        (None, 90, None),
        (NOW + timedelta(days=365), 90, NOW + timedelta(days=365)),
        (NOW + timedelta(microseconds=1), None, NOW + timedelta(microseconds=1)),
    ],
)
def test_when_a_new_key_expires(
    requested: datetime | UnsetType | None, days: int | None, expected: datetime | None
) -> None:
    assert first_expiry(requested, rules(days)) == expected


@pytest.mark.parametrize("moment", [NOW, NOW - timedelta(days=1), NOW.astimezone() - timedelta(seconds=1)])
def test_an_expiry_lies_ahead(moment: datetime) -> None:
    with pytest.raises(InvalidInputError, match="in the past"):
        check_expiry(moment, rules(), created_at=NOW)


def test_an_enforced_expiry_counts_from_the_keys_creation() -> None:
    strict, made = rules(10, enforce=True), NOW - timedelta(days=3)
    check_expiry(NOW + timedelta(days=7), strict, created_at=made)
    for too_late in (NOW + timedelta(days=7, microseconds=1), None):
        with pytest.raises(InvalidInputError, match="2030-02-07T12:00:00"):
            check_expiry(too_late, strict, created_at=made)
    assert first_expiry(UNSET, strict) == NOW + timedelta(days=10)


def test_a_key_that_was_issued_does_not_show_in_a_repr() -> None:
    issued = KeyIssued(
        id=1,
        user_email="a@b.c",
        name="k",
        key_preview="gsk_...3f9a",
        profile_id=1,
        state="active",
        expires_at=None,
        revoked_at=None,
        revoked_by=None,
        requests_per_minute=None,
        tokens_per_window=None,
        token_window=60,
        max_concurrency=None,
        issuer=None,
        last_used_at=None,
        previous_expires_at=None,
        previous_last_used_at=None,
        orphaned_at=None,
        created_at=NOW,
        key="gsk_secret",
    )
    assert "gsk_secret" not in repr(issued)
    assert "3f9a" in repr(issued)


@pytest.mark.parametrize(
    "email", ["a@b", "ada.lovelace+tag@example.co.uk", "Ada@Example.com", "ünï@cödé.example", "o'hara@example.com"]
)
def test_plausible_addresses(email: str) -> None:
    assert KeyCreate(user_email=email, name="k", profile_id=1).user_email == email
