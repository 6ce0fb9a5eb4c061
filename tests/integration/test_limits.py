"""Limiters of several replicas on one database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from urllib.parse import quote

import asyncpg
import pytest

from gasket.limits.limiter import SYNC_EVERY, Grant, Limiter, LimitReachedError
from gasket.limits.store import CLEANED_AT_ONCE, Count, Lease, LimitStore
from gasket.limits.subjects import Limits
from tests.acceptance.processes import until

pytestmark = pytest.mark.usefixtures("same_minute")

MakeStore = Callable[..., LimitStore]
MakeLimiter = Callable[..., Limiter]
KEY = "key:1"


@pytest.fixture
async def store(api_database_url: str, database: asyncpg.Connection) -> AsyncIterator[MakeStore]:
    """Call it for what one more replica tells and asks the database."""
    made: list[LimitStore] = []

    def make(url: str = api_database_url) -> LimitStore:
        made.append(LimitStore(url, schema="public", application_name="gasket-limits test"))
        return made[-1]

    yield make
    for each in made:
        await each.close()
    await database.execute("DELETE FROM limit_windows; DELETE FROM limit_slots")


@pytest.fixture
async def replica(store: MakeStore) -> AsyncIterator[MakeLimiter]:
    """Call it for the limiter of one more replica."""
    made: list[Limiter] = []

    def make(*url: str) -> Limiter:
        made.append(Limiter(store(*url)))
        return made[-1]

    yield make
    for limiter in made:
        await limiter.close()


async def admitted(limiter: Limiter, limits: Limits, tries: int, *, key: str = KEY) -> list[Grant]:
    """The grants of so many requests of one key, one after the other."""
    grants = []
    for _ in range(tries):
        try:
            grants.append(await limiter.admit([(key, limits)]))
        except LimitReachedError:
            break
    return grants


async def refused(limiter: Limiter, *limited: tuple[str, Limits]) -> LimitReachedError:
    with pytest.raises(LimitReachedError) as error:
        await limiter.admit(limited)
    return error.value


async def test_requests_a_minute_of_one_replica_are_exact(replica: MakeLimiter) -> None:
    limiter, limits = replica(), Limits(requests_per_minute=7)
    grants = await admitted(limiter, limits, 20)
    assert len(grants) == 7
    error = await refused(limiter, (KEY, limits))
    assert (error.kind, str(error)) == ("requests", "This key may have 7 requests a minute.")
    assert 0 < error.retry_after <= 120
    assert dict(error.fields)[b"x-ratelimit-limit-requests"] == b"7"
    assert dict(error.fields)[b"x-ratelimit-remaining-requests"] == b"0"


async def test_one_more_passes_while_less_than_the_limit_is_used(replica: MakeLimiter, store: MakeStore) -> None:
    minute_before = int(time.time()) // 60 * 60 - 60
    await store().tell([Count(KEY, "requests", minute_before, 60, 1)])  # a part of this one still counts
    assert len(await admitted(replica(), Limits(requests_per_minute=2), 5)) == 2


async def test_a_new_replica_knows_what_the_others_have_let_pass(
    replica: MakeLimiter, database: asyncpg.Connection
) -> None:
    limits = Limits(requests_per_minute=3)  # one of which has faded after twenty seconds at the earliest
    first = replica()
    assert len(await admitted(first, limits, 3)) == 3
    await _told(database, 3)
    assert await admitted(replica(), limits, 5) == []


async def test_three_replicas_exceed_the_limit_by_no_more_than_they_may(
    replica: MakeLimiter, store: MakeStore, database: asyncpg.Connection
) -> None:
    """The bound: what the others let pass in one interval. Here each may send a request every 20 ms, and what it lets
    pass in a second is less than the tenth of the limit that it would tell at once: only the interval counts."""
    limits, used, pause, tries = Limits(requests_per_minute=1000), 900, 0.02, 100

    async def let_pass(key: str) -> int:
        await store().tell([Count(key, "requests", int(time.time()) // 60 * 60, 60, used)])
        replicas = [replica() for _ in range(3)]

        async def send(limiter: Limiter) -> int:
            passed = 0
            for _ in range(tries):
                passed += len(await admitted(limiter, limits, 1, key=key))
                await asyncio.sleep(pause)
            return passed

        passed = sum(await asyncio.gather(*map(send, replicas)))
        assert passed >= 100
        await _told(database, used + passed, key=key)
        return passed

    may = 100 + 2 * SYNC_EVERY / pause
    # On a slow machine an exchange may take as long as the time between two. One of two tries has to be quick.
    assert await let_pass("key:1") <= may or await let_pass("key:2") <= may


@pytest.mark.parametrize(("clock", "step"), [("time", 3600), ("monotonic", -3600)])
async def test_limits_are_shared_after_a_clock_has_stepped(
    replica: MakeLimiter, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, clock: str, step: int
) -> None:
    limiter, limits = replica(), Limits(requests_per_minute=1000)
    await admitted(limiter, limits, 1)
    stepped = {"time": time.time, "monotonic": time.monotonic, clock: lambda: getattr(time, clock)() + step}
    monkeypatch.setattr("gasket.limits.limiter.time", SimpleNamespace(**stepped))

    async def shared() -> bool:
        await admitted(limiter, limits, 1)
        current = "starts_at BETWEEN now() - interval '2 minutes' AND now()"
        return bool(await database.fetchval(f"SELECT coalesce(sum(used), 0) FROM limit_windows WHERE {current}") > 1)

    await until(shared, 5 * SYNC_EVERY, "more requests in the current window")


async def test_tokens_count_when_they_are_known(replica: MakeLimiter) -> None:
    limiter, limits = replica(), Limits(tokens_per_window=100, token_window=3600)
    (await limiter.admit([(KEY, limits)])).end(99)
    (await limiter.admit([(KEY, limits)])).end(500)
    error = await refused(limiter, (KEY, limits))
    assert (error.kind, str(error)) == ("tokens", "This key may have 100 tokens in 3600 s.")
    assert dict(error.fields)[b"x-ratelimit-remaining-tokens"] == b"0"


async def test_key_and_profile_both_have_to_allow_it(replica: MakeLimiter) -> None:
    limiter, wide, narrow = replica(), Limits(requests_per_minute=1000), Limits(requests_per_minute=1)
    await limiter.admit([("key:1", wide), ("profile:1", narrow)])
    error = await refused(limiter, ("key:2", wide), ("profile:1", narrow))
    assert str(error) == "The keys of this profile together may have 1 requests a minute."


async def test_of_several_refusals_the_longest_wait_is_told(replica: MakeLimiter) -> None:
    limiter = replica()
    key = (KEY, Limits(requests_per_minute=1, max_concurrency=1))
    profile = ("profile:1", Limits(tokens_per_window=100, token_window=100_000, requests_per_minute=5))
    grant = await limiter.admit([key, profile])
    assert (await refused(limiter, key, profile)).kind == "requests", "though there is no place, either"
    grant.end(10_000)  # a hundred times what a window allows
    error = await refused(limiter, key, profile)
    assert error.kind == "tokens"
    assert str(error) == "The keys of this profile together may have 100 tokens in 100000 s."
    assert error.retry_after > 90_000, "nearly the whole of the next window"
    assert float(dict(error.fields)[b"x-ratelimit-reset-tokens"][:-1]) == pytest.approx(error.retry_after, abs=0.001)


async def test_who_gets_no_place_is_told_of_the_other_limits_too(replica: MakeLimiter) -> None:
    limiter = replica()
    key = (KEY, Limits(max_concurrency=1, requests_per_minute=10))
    profile = ("profile:1", Limits(tokens_per_window=50))
    await limiter.admit([key, profile])
    error = await refused(limiter, key, profile)
    assert (error.kind, error.retry_after) == ("concurrency", 1.0)
    told = {name.removeprefix(b"x-ratelimit-"): value for name, value in error.fields}
    assert told == {
        b"limit-requests": b"10",
        b"remaining-requests": b"9",
        b"reset-requests": b"0.000s",
        b"limit-tokens": b"50",
        b"remaining-tokens": b"50",
        b"reset-tokens": b"0.000s",
    }


async def test_of_two_limits_that_are_used_up_the_one_with_the_longer_wait_is_told(replica: MakeLimiter) -> None:
    limiter = replica()
    key = (KEY, Limits(tokens_per_window=1, token_window=60))
    profile = ("profile:1", Limits(tokens_per_window=100, token_window=100_000))
    (await limiter.admit([key, profile])).end(10_000)
    error = await refused(limiter, key, profile)
    assert dict(error.fields)[b"x-ratelimit-limit-tokens"] == b"100"


async def test_a_refused_request_takes_no_place_and_counts_for_nothing(replica: MakeLimiter) -> None:
    limiter = replica()
    key, profile = Limits(max_concurrency=1), Limits(requests_per_minute=1)
    (await limiter.admit([(KEY, key), ("profile:1", profile)])).end(0)
    assert (await refused(limiter, (KEY, key), ("profile:1", profile))).kind == "requests"
    (await limiter.admit([(KEY, key)])).end(0)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_requests_at_once_are_exact_over_all_replicas(
    replica: MakeLimiter, api_database_url: str, isolation: str
) -> None:
    """Whatever transactions are by default: in another one than READ COMMITTED who waits for a lock is refused."""
    limits = Limits(max_concurrency=10)
    separator = "&" if "?" in api_database_url else "?"
    url = f"{api_database_url}{separator}default_transaction_isolation={quote(isolation)}"
    replicas = [replica(url) for _ in range(3)]
    grants = await asyncio.gather(*(admitted(limiter, limits, 10) for limiter in replicas))
    assert sum(map(len, grants)) == 10
    error = await refused(replicas[0], (KEY, limits))
    assert (error.kind, str(error)) == ("concurrency", "This key may have 10 requests at once.")


async def test_places_that_one_replica_frees_are_there_for_another(replica: MakeLimiter) -> None:
    limits = Limits(max_concurrency=3)
    first, second = replica(), replica()
    grants = await admitted(first, limits, 3)
    assert await admitted(second, limits, 1) == []
    for grant in grants:
        grant.end(0)

    async def free() -> bool:
        return bool(await admitted(second, limits, 1))

    await until(free, 4 * SYNC_EVERY, "a place for the second replica")


async def test_places_of_a_replica_that_was_killed_are_free_when_its_lease_ends(
    replica: MakeLimiter, store: MakeStore, database: asyncpg.Connection
) -> None:
    limits, killed = Limits(max_concurrency=2), store()
    assert await killed.lease(KEY, in_use=0, wanted=2, limit=2) == 2
    assert await admitted(replica(), limits, 1) == []
    await database.execute("UPDATE limit_slots SET expires_at = now() WHERE slots > 0")
    assert len(await admitted(replica(), limits, 5)) == 2


async def test_what_is_in_use_stays_leased_under_a_lowered_limit(store: MakeStore) -> None:
    first, second, third = store(), store(), store()
    assert await first.lease(KEY, in_use=0, wanted=5, limit=10) == 5
    assert await second.lease(KEY, in_use=0, wanted=5, limit=10) == 5
    assert await first.lease(KEY, in_use=3, wanted=4, limit=4) == 3
    assert await second.renew([Lease(KEY, 1, 4)]) == set()
    assert await third.lease(KEY, in_use=0, wanted=1, limit=4) == 0
    assert await second.renew([Lease(KEY, 2, 4)]) == {KEY}


async def test_a_lowered_limit_holds_while_requests_come_and_go(replica: MakeLimiter) -> None:
    limiter, fewer = replica(), Limits(max_concurrency=2)
    grants = await admitted(limiter, Limits(max_concurrency=10), 10)
    for grant in grants[:8]:
        grant.end(0)
        assert await admitted(limiter, fewer, 1) == []
    grants[8].end(0)
    assert len(await admitted(limiter, fewer, 5)) == 1


async def test_a_lowered_limit_holds_for_all_replicas_together(
    replica: MakeLimiter, database: asyncpg.Connection
) -> None:
    replicas = [replica() for _ in range(3)]
    under_way = {limiter: await admitted(limiter, Limits(max_concurrency=12), 4) for limiter in replicas}

    async def one_for_another() -> bool:
        for limiter, grants in under_way.items():
            if grants:
                grants.pop(0).end(0)
            grants += await admitted(limiter, Limits(max_concurrency=2), 1)
        return sum(map(len, under_way.values())) == 2

    async def given_back() -> bool:
        return bool(await database.fetchval("SELECT sum(slots) FROM limit_slots WHERE expires_at > now()") == 2)

    await until(one_for_another, 6 * SYNC_EVERY, "two requests in all")
    await until(given_back, 4 * SYNC_EVERY, "no places beyond those")
    for _ in range(20):
        assert await one_for_another(), "as many as may be, and not more"


async def test_places_that_get_free_under_a_lowered_limit_are_the_other_replicas(replica: MakeLimiter) -> None:
    """The database knows of them, though the replica has no request left that would tell it."""
    first, second, third = replica(), replica(), replica()
    many, few = Limits(max_concurrency=4), Limits(max_concurrency=2)
    ending, staying = await admitted(first, many, 2), await admitted(second, many, 2)
    assert await admitted(first, few, 1) == await admitted(second, few, 1) == []

    def all_know() -> bool:
        return all(subject.overbooked for each in (first, second) for subject in each._subjects.values())

    await until(all_know, 4 * SYNC_EVERY, "two replicas that know that they have too many")
    for grant in (*ending, staying[0]):
        grant.end(0)

    async def passes() -> bool:
        return bool(await admitted(third, few, 1))

    await until(passes, 4 * SYNC_EVERY, "the third replica's request")


async def test_requests_from_before_a_limit_have_places_too(replica: MakeLimiter) -> None:
    first, second, limits = replica(), replica(), Limits(max_concurrency=3)
    assert len(await admitted(first, Limits(requests_per_minute=1000), 3)) == 3
    assert await admitted(first, limits, 1) == []

    async def known() -> bool:
        grants = await admitted(second, limits, 1)
        for grant in grants:
            grant.end(0)
        return not grants

    await until(known, 4 * SYNC_EVERY, "the other replica's refusal")


async def test_an_end_gives_the_places_back_and_tells_what_is_untold(
    replica: MakeLimiter, database: asyncpg.Connection
) -> None:
    limits = Limits(max_concurrency=2, requests_per_minute=1000)
    limiter = replica()
    await admitted(limiter, limits, 2)
    await limiter.close()
    assert await database.fetchval("SELECT coalesce(sum(slots), 0) FROM limit_slots") == 0
    assert await database.fetchval("SELECT sum(used) FROM limit_windows") == 2


async def test_with_the_database_away_each_replica_goes_by_what_it_knows(replica: MakeLimiter) -> None:
    limiter = replica("postgresql://nobody@127.0.0.1:1/nothing")
    limits = Limits(requests_per_minute=3, max_concurrency=2)
    grants = await admitted(limiter, limits, 5)
    assert len(grants) == 2
    for grant in grants:
        grant.end(0)
    assert len(await admitted(limiter, limits, 5)) == 1


async def test_a_database_that_says_nothing_is_not_asked_for_each_key(
    replica: MakeLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gasket.limits.store._TIMEOUT", 0.2)
    asked: list[asyncio.StreamWriter] = []

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(writer)

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    limiter = replica(f"postgresql://nobody@127.0.0.1:{server.sockets[0].getsockname()[1]}/nothing?sslmode=disable")
    limits = Limits(requests_per_minute=3, max_concurrency=2)
    async with asyncio.timeout(30):
        await asyncio.gather(*(limiter.admit([(f"key:{number}", limits)]) for number in range(20)))
    assert len(asked) <= 5, "for the first key, and by the exchanges meanwhile"
    await limiter.close()
    server.close()
    for writer in asked:
        writer.close()


async def test_a_request_longer_than_all_windows_is_not_forgotten_at_its_end(replica: MakeLimiter) -> None:
    """Between its end and the next exchange its tokens are known here alone."""
    limiter = replica()
    [grant] = await admitted(limiter, Limits(tokens_per_window=100), 1)
    [subject] = limiter._subjects.values()
    subject.used_at -= 3600
    grant.end(1000)
    assert not subject.is_over(time.monotonic())


async def test_limits_that_change_hold_at_once_and_counts_stay(replica: MakeLimiter) -> None:
    limiter = replica()
    await admitted(limiter, Limits(requests_per_minute=100), 5)
    assert await admitted(limiter, Limits(requests_per_minute=5), 1) == []
    assert len(await admitted(limiter, Limits(requests_per_minute=7), 5)) == 2


async def test_old_windows_are_deleted_some_at_a_time(store: MakeStore, database: asyncpg.Connection) -> None:
    await _insert_old_windows(database, CLEANED_AT_ONCE + 1)
    lately = int(time.time()) - 5400  # half of that window lies within the last hour
    await store().tell([Count(KEY, "tokens", lately, 3600, 1)])
    assert await store().clean()
    assert await database.fetchval("SELECT count(*) FROM limit_windows") == 2
    assert not await store().clean()
    assert await database.fetchval("SELECT extract(epoch FROM starts_at)::bigint FROM limit_windows") == lately


async def test_a_replica_goes_on_until_all_old_windows_are_deleted(
    replica: MakeLimiter, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gasket.limits.limiter._CLEAN_EVERY", 0.0)
    monkeypatch.setattr("gasket.limits.store.CLEANED_AT_ONCE", 2)
    await _insert_old_windows(database, 5)
    await admitted(replica(), Limits(max_concurrency=1), 1)
    monkeypatch.setattr("gasket.limits.limiter._CLEAN_EVERY", 3600.0)

    async def deleted() -> bool:
        return bool(await database.fetchval("SELECT count(*) FROM limit_windows") == 0)

    await until(deleted, 6 * SYNC_EVERY, "no old windows")


async def test_places_that_nobody_has_leave_nothing_behind(store: MakeStore, database: asyncpg.Connection) -> None:
    first, second = store(), store()
    assert await first.lease(KEY, in_use=0, wanted=2, limit=3) == 2
    await first.clean()
    assert await database.fetchval("SELECT count(*) FROM limit_slots") == 2, "the places, and what is locked"
    await database.execute("UPDATE limit_slots SET expires_at = expires_at - interval '25.1 hours'")
    await first.clean()
    assert await database.fetchval("SELECT count(*) FROM limit_slots") == 0
    got = await asyncio.gather(*(each.lease(KEY, in_use=0, wanted=2, limit=3) for each in (first, second)))
    assert sorted(got) == [1, 2]


async def _insert_old_windows(database: asyncpg.Connection, count: int) -> None:
    await database.execute(
        "INSERT INTO limit_windows SELECT 'key:' || n, 'requests', t, t + interval '1 minute', 1 "
        "FROM generate_series(1, $1) AS n, LATERAL (SELECT now() - interval '1 hour' AS t) AS long_ago",
        count,
    )


async def _told(database: asyncpg.Connection, count: int, *, key: str = KEY) -> None:
    async def told() -> bool:
        query = "SELECT coalesce(sum(used), 0) FROM limit_windows WHERE subject = $1"
        return bool(await database.fetchval(query, key) == count)

    await until(told, 20, f"{count} requests in the database")
