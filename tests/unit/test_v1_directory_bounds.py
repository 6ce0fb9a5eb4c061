"""Keys in memory; what the database and its notifications do to them is tested with real replicas."""

from __future__ import annotations

from gasket.proxy.access import Access
from gasket.proxy.directory import KeyDirectory
from tests.access import a_profile, an_access

ACCESS = an_access(a_profile())
KEYS = [f"gsk_{number:048x}".encode() for number in range(20_001)]


async def test_of_too_many_keys_the_oldest_are_forgotten() -> None:
    async def find(_digest: str) -> Access:
        return ACCESS

    directory = KeyDirectory(find, ttl=60)
    for key in KEYS:
        assert await directory.look_up(key) is ACCESS
    known = [directory.recall(key) is ACCESS for key in KEYS]
    assert known == sorted(known)
    assert 18_000 <= sum(known) <= 20_000


async def test_a_key_that_is_looked_up_again_counts_as_new() -> None:
    async def find(_digest: str) -> Access:
        return ACCESS

    directory = KeyDirectory(find, ttl=60)
    for key in [*KEYS[:19_999], KEYS[0], *KEYS[19_999:]]:
        await directory.look_up(key)
    assert directory.recall(KEYS[0]) is ACCESS
    assert directory.recall(KEYS[1]) is None
