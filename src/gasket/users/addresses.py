"""Addresses of people: how one is found, and what takes its place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

import msgspec

from gasket.errors import InvalidInputError

Sign = Callable[[str], Sequence[str]]
"""Hex digests of a text, one under each of the installation's keys, the current key's first."""

_PSEUDONYM = re.compile(r"erased-[0-9a-f]{24}@erased\.invalid")
_LONGEST = 254  # RFC 5321, 4.5.3.1.3
_SHORTEST = 3


class Person(msgspec.Struct, frozen=True):
    """An address as PostgreSQL's lower() folds it, its pseudonyms, and a pattern that finds it inside of text.

    The pattern is one of PostgreSQL's (manual, "Regular Expression Details"), for matches whatever the case.
    """

    address: str
    pseudonyms: tuple[str, ...]
    pattern: str


def check_address(address: str) -> None:
    """Raise InvalidInputError unless it may be an address of a person. The message does not have it."""
    local, _, domain = address.rpartition("@")
    if not (_SHORTEST <= len(address) <= _LONGEST and local and domain) or re.search(r"[\s\0]", address):
        raise InvalidInputError("This must be an address of a person, such as ada@example.com.", field="email")
    if _PSEUDONYM.fullmatch(address):
        raise InvalidInputError("This is the pseudonym of an erased person.", field="email")


def person(folded: str, sign: Sign) -> Person:
    """The person with this address, which is folded already."""
    # RFC 2606 keeps `.invalid` free: nobody has such an address, and what expects one takes it.
    pseudonyms = tuple(f"erased-{digest[:24]}@erased.invalid" for digest in sign(f"pseudonym of {folded}"))
    return Person(folded, pseudonyms, _pattern(folded))


def _pattern(address: str) -> str:
    """The address as JSON has it, and not as a part of a longer one."""
    written = json.dumps(address, ensure_ascii=False)[1:-1]
    escaped = "".join(c if c.isalnum() else f"\\{c}" for c in written)
    return rf"(?<![[:alnum:]._%+-]){escaped}(?![[:alnum:]_-]|\.[[:alnum:]])"
