"""Addresses of people: where they may be, and their pseudonyms."""

from __future__ import annotations

import inspect
import re

import pytest

from gasket.backends.models import KeyRing
from gasket.errors import InvalidInputError
from gasket.models import metadata
from gasket.users import erasure, export, tables
from gasket.users.addresses import check_address, person

KEYS = ["MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "YWJjZGVmZ2hpamFiY2RlZmdoaWphYmNkZWZnaGlqYWI="]
MAY_NAME_PEOPLE = re.compile(r"email|user|actor|_by$")
NAMES_NOBODY = {("backend_profiles", "user_header"), ("audit_log", "actor_kind")}


def test_no_column_with_people_is_forgotten() -> None:
    """A new one has to be erased and exported: add it to erasure.py, export.py and, for archives, to tables.py."""
    written = "".join(map(inspect.getsource, (erasure, export, tables)))
    found = {
        (table.name, column.name)
        for table in metadata.tables.values()
        for column in table.columns
        if MAY_NAME_PEOPLE.search(column.name) and column.type.python_type is str
    }
    assert found - NAMES_NOBODY == {
        ("access_tokens", "created_by"),
        ("api_keys", "revoked_by"),
        ("api_keys", "user_email"),
        ("audit_log", "actor"),
        ("browser_sessions", "email"),
        ("people", "email"),
        ("usage_records", "end_user"),
        ("usage_records", "user_email"),
        ("usage_totals", "user_email"),
    }
    for table, column in found - NAMES_NOBODY:
        assert table in written
        assert column in tables.IN_ARCHIVES


def test_a_pseudonym_is_of_the_address_and_the_key() -> None:
    ring, other = KeyRing(), KeyRing()
    ring.load(KEYS)
    other.load(KEYS[1:])
    ada = person("ada@example.org", ring.sign)
    assert ada.pseudonyms == person("ada@example.org", ring.sign).pseudonyms
    assert ada.pseudonyms[1:] == person("ada@example.org", other.sign).pseudonyms
    assert len({*ada.pseudonyms, *person("bob@example.org", ring.sign).pseudonyms}) == 4
    assert not [
        pseudonym for pseudonym in ada.pseudonyms if "ada" in pseudonym.partition("@")[0].removeprefix("erased-")
    ]


def test_a_ring_without_keys_signs_nothing() -> None:
    assert KeyRing().sign("x") == []


@pytest.mark.parametrize("address", ["", "a", "a@", "@b", "no address", "a b@c", "a\0@c", "a\n@c", f"{'a' * 254}@c"])
def test_what_is_no_address_is_refused_without_naming_it(address: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        check_address(address)
    assert len(address) < 3 or address not in str(refused.value)
