"""Keys in memory; what the database and its notifications do to them is tested with real replicas."""

from __future__ import annotations

import asyncio
import gc
import time
from weakref import ref

import pytest

from gasket.proxy.access import Access
from gasket.proxy.directory import KeyDirectory, TokenDirectory
from gasket.proxy.errors import KeyRefusedError, TokenNotValidError
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


@pytest.mark.parametrize("kind", [KeyDirectory, TokenDirectory])
async def test_what_is_refused_leaves_nothing_but_the_refusal(kind: type[KeyDirectory]) -> None:
    class Large:
        pass

    held: list[ref[Large]] = []

    async def find(_given: object) -> Access:
        large = Large()
        held.append(ref(large))
        raise TokenNotValidError("wrong", guessed=False)

    directory = kind(find, ttl=60)
    for _ in range(2):
        try:
            await directory.look_up(KEYS[0])
        except TokenNotValidError as refusal:
            said = (str(refusal), refusal.guessed)
        assert said == ("wrong", False)
    await asyncio.sleep(0)  # the loop lets go of the task
    gc.collect()
    assert [reference() for reference in held] == [None]


async def test_a_token_in_memory_ends_with_its_time() -> None:
    async def find(_token: bytes) -> Access:
        return an_access(a_profile(), expires_at=time.monotonic())

    directory = TokenDirectory(find, ttl=60)
    await directory.look_up(b"eyJ.a.b")
    with pytest.raises(KeyRefusedError) as refused:
        directory.recall(b"eyJ.a.b")
    assert (refused.value.code, str(refused.value)) == ("invalid_token", "The token has expired.")
