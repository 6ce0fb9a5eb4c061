"""Limits that replicas share: as much as they promise, and not more; places that are free again, whatever ended."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import openai
import pytest
from openai import AsyncOpenAI

from gasket.limits.limiter import SYNC_EVERY
from gasket.limits.store import LEASE_SECONDS
from tests.acceptance.gateway import HELLO, Gateway, Tenant, Wire, created, exchange, request, wire
from tests.acceptance.http11 import Message
from tests.acceptance.processes import Replica, until
from tests.acceptance.upstream import Answer, End, completion, delta, json_answer, stream

pytestmark = pytest.mark.usefixtures("same_minute")

STREAMED = {**HELLO, "stream": True}
SOON = 3 * SYNC_EVERY + 1
"""Seconds until what one replica gives back is another one's: two exchanges, and some time for them."""
AT_ONCE = 3.0
"""Seconds until a replica takes note of what it did itself: far less than a lease, and time for a slow machine."""


@pytest.fixture(scope="module")
async def replicas(shared_gateway: Gateway) -> AsyncIterator[list[Replica]]:
    """The shared one, and two more on its database."""
    more = [shared_gateway.installation.replica() for _ in range(2)]
    for replica in more:
        await replica.ready()
    yield [shared_gateway.replica, *more]
    for replica in more:
        await replica.stop()
        assert "Traceback" not in replica.output, str(replica)


async def limit(tenant: Tenant, **limits: int | None) -> None:
    """Set limits of the tenant's key."""
    await created(await tenant.api.patch(f"/keys/{tenant.key_id}", json=limits), 200)


@pytest.fixture
async def limited(gateway: Gateway, tenant: Tenant) -> Any:
    """Call it with limits for a key that has them from its first request on."""

    async def make(**limits: int) -> Tenant:
        await limit(tenant, **limits)
        return tenant

    return make


async def ask(replica: Replica, tenant: Tenant, *, key: str | None = None) -> Message:
    """One plain request to this replica."""
    return await exchange(replica, request(key or tenant.key))


async def until_passed(replica: Replica, tenant: Tenant, within: float) -> None:
    """Wait for a 200; until then nothing but 429 may come."""

    async def passed() -> bool:
        got = await ask(replica, tenant)
        assert got.status in (200, 429), got
        return got.status == 200

    await until(passed, within, "a request that may pass")


async def begin(replica: Replica, tenant: Tenant, stack: AsyncExitStack) -> Wire | None:
    """A stream that has begun and goes on for as long as the context lasts; None: the limit does not allow it."""
    connection: Wire = await stack.enter_async_context(wire(replica))
    await connection.send(tenant.request(body=STREAMED))
    head = await connection.head()
    if head.status == 200:
        return connection
    got = await connection.body(head)
    assert got.error == (429, "concurrency_limit_exceeded")
    assert got.one("retry-after") == "1"
    return None


async def test_replicas_let_no_more_requests_pass_than_is_stated(
    gateway: Gateway, replicas: Sequence[Replica], limited: Any
) -> None:
    """docs/gateway.md: about (replicas - 1) x 1 s x the rate at which requests come in at each.

    Of the limit most is used already. Else what a replica lets pass would soon be a tenth of it, and be told at once.
    """
    limit, may, tries, loop = 1000, 90, 100, asyncio.get_running_loop()
    tenant, database = await limited(requests_per_minute=limit), await gateway.installation.look()
    await database.execute(
        "INSERT INTO limit_windows SELECT $1, 'requests', t, t + interval '1 minute', $2 "
        "FROM date_trunc('minute', now()) AS t",
        f"key:{tenant.key_id}",
        limit - may,
    )

    async def send(replica: Replica) -> tuple[int, float]:
        passed, begun = 0, loop.time()
        async with wire(replica) as connection:
            for _ in range(tries):
                await connection.send(tenant.request())
                got = await connection.answer()
                if got.status == 200:
                    passed += 1
                else:
                    assert got.error == (429, "rate_limit_exceeded")
                await asyncio.sleep(0.03)
        return passed, loop.time() - begun

    minute = time.time() // 60
    results = await asyncio.gather(*map(send, replicas))
    passed, took = sum(count for count, _ in results), max(seconds for _, seconds in results)
    rate = tries / min(seconds for _, seconds in results)
    faded = 0 if minute == time.time() // 60 else limit * took / 60  # the window slides on
    exchange_every = 1.5 * SYNC_EVERY  # an exchange takes its time, too, and more of it on a slow machine
    assert may <= passed <= may + (len(replicas) - 1) * exchange_every * rate + faded
    assert len(tenant.upstream.requests) == passed


async def test_requests_at_once_are_exact_over_all_replicas(replicas: Sequence[Replica], limited: Any) -> None:
    tenant = await limited(max_concurrency=6)
    tenant.upstream.plays(stream(delta("a"), End.NEVER))
    async with AsyncExitStack() as stack:
        begun = await asyncio.gather(*(begin(replica, tenant, stack) for replica in replicas for _ in range(4)))
        assert sum(wire is not None for wire in begun) == 6
        for _ in range(3):
            assert [await begin(replica, tenant, stack) for replica in replicas] == [None] * 3
            await asyncio.sleep(SYNC_EVERY / 2)  # leases are renewed meanwhile, and no more of them come of that
        assert len(tenant.upstream.requests) == 6


async def test_a_place_is_free_when_the_client_leaves(replicas: Sequence[Replica], limited: Any) -> None:
    tenant = await limited(max_concurrency=1)
    never = stream(delta("a"), End.NEVER)
    tenant.upstream.plays(never, never, json_answer(completion("b")))
    for count in (1, 2):  # on the replica that it was on, at once; the second time, on another
        async with AsyncExitStack() as stack:
            assert await begin(replicas[0], tenant, stack)
            assert await begin(replicas[1], tenant, stack) is None
            assert await begin(replicas[0], tenant, stack) is None
        await (await tenant.upstream.asked(count)).left()
    await until_passed(replicas[0], tenant, within=AT_ONCE)
    await until_passed(replicas[1], tenant, within=SOON)


ENDS = {
    "before an answer": ((End.FIN,), 502),
    "in a plain answer": ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", 0.1, End.RST), 200),
    "in a stream": (stream(delta("a"), 0.1, End.RST, whole=False), 200),
    "whole": (json_answer(completion("a")), 200),
}


@pytest.mark.parametrize(("ends", "status"), ENDS.values(), ids=ENDS)
async def test_a_place_is_free_when_the_upstream_dies(
    replicas: Sequence[Replica], limited: Any, ends: Answer, status: int
) -> None:
    tenant = await limited(max_concurrency=1)
    go_on = asyncio.Event()
    tenant.upstream.plays((go_on, *ends), json_answer(completion("b")))
    first = asyncio.create_task(ask(replicas[0], tenant))
    await tenant.upstream.asked()
    assert (await ask(replicas[0], tenant)).error == (429, "concurrency_limit_exceeded")
    assert (await ask(replicas[1], tenant)).error == (429, "concurrency_limit_exceeded")
    go_on.set()
    assert (await first).status == status
    await until_passed(replicas[0], tenant, within=AT_ONCE)


@pytest.mark.parametrize("waits", [False, pytest.param(True, marks=pytest.mark.soak)])
async def test_the_places_of_a_replica_that_was_killed_are_free_when_its_lease_ends(
    gateway: Gateway, replicas: Sequence[Replica], limited: Any, waits: bool
) -> None:
    """A lease lasts 10 s: the quick test moves its end, and the other one waits for it."""
    tenant, database = await limited(max_concurrency=2), await gateway.installation.look()
    never = stream(delta("a"), End.NEVER)
    tenant.upstream.plays(never, never, json_answer(completion("b")))
    doomed = gateway.installation.replica()
    await doomed.ready()
    async with AsyncExitStack() as stack:
        assert all([await begin(doomed, tenant, stack) for _ in range(2)])
        doomed.signal(signal.SIGKILL)
        await doomed.exited(20)
    killed_at, subject = asyncio.get_running_loop().time(), f"key:{tenant.key_id}"
    for _ in range(4):
        assert (await ask(replicas[0], tenant)).error == (429, "concurrency_limit_exceeded")
        await asyncio.sleep(0.3)
    held = "SELECT extract(epoch FROM expires_at - now())::float FROM limit_slots WHERE subject = $1 AND slots > 0"
    assert 0 < await database.fetchval(held, subject) <= LEASE_SECONDS
    if not waits:
        await database.execute("UPDATE limit_slots SET expires_at = now() WHERE subject = $1 AND slots > 0", subject)
    await until_passed(replicas[0], tenant, within=LEASE_SECONDS + 1 if waits else SOON)
    assert not waits or asyncio.get_running_loop().time() - killed_at <= LEASE_SECONDS + 1


async def test_what_a_client_is_told_of_its_limits(limited: Any) -> None:
    tenant = await limited(requests_per_minute=2, tokens_per_window=1000)
    theirs = [("x-ratelimit-limit-requests", "9999"), ("X-RateLimit-Remaining-Tokens", "7"), ("x-request-id", "up-1")]
    tenant.upstream.plays(json_answer(completion("a"), headers=theirs))
    for left, tokens in (("1", "1000"), ("0", "992")):
        got = await tenant.ask()
        assert got.status == 200
        assert got.one("x-ratelimit-limit-requests") == "2"
        assert got.one("x-ratelimit-remaining-requests") == left
        assert got.one("x-ratelimit-limit-tokens") == "1000"
        assert got.one("x-ratelimit-remaining-tokens") == tokens
        assert got.one("x-request-id") == "up-1"
    got = await tenant.ask()
    assert got.error == (429, "rate_limit_exceeded")
    assert got.json["error"]["type"] == "rate_limit_error"
    assert got.json["error"]["message"] == "This key may have 2 requests a minute."
    assert 1 <= int(got.one("retry-after")) <= 120
    assert got.one("x-ratelimit-limit-requests") == "2"
    assert got.one("x-ratelimit-remaining-requests") == "0"
    assert re.fullmatch(r"\d+\.\d{3}s", got.one("x-ratelimit-reset-requests"))
    assert len(tenant.upstream.requests) == 2
    line = await tenant.line(got)
    assert (line["status"], line["outcome"]) == (429, "limited")


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), ({"model": "model-b"}, 403)])
async def test_what_is_refused_for_its_body_counts_and_what_is_limited_leaves_no_record(
    gateway: Gateway, body: Any, status: int
) -> None:
    tenant = await gateway.tenant(allowed_models=["model-a"], requests_per_minute=2)
    answers = [await tenant.ask(body=body) for _ in range(4)]
    assert [answer.status for answer in answers] == [status, status, 429, 429]
    database, records = await gateway.installation.look(), "SELECT status FROM usage_records WHERE key_id = $1"
    last = await tenant.ask("/v1/models", None)  # written after the others would have been
    assert last.status == 200

    async def written() -> bool:
        return bool(await database.fetchval("SELECT 1 FROM usage_records WHERE request_id = $1", own_id(last)))

    await until(written, 5, "the last record")
    assert sorted(row["status"] for row in await database.fetch(records, tenant.key_id)) == [200, status, status]


def own_id(answer: Message) -> UUID:
    """The request's id, as we have given it."""
    return UUID(answer.one("x-gasket-request-id"))


async def test_openais_client_sees_its_own_error(limited: Any) -> None:
    tenant = await limited(requests_per_minute=1)
    base_url = f"{tenant.replica.base_url}/v1"
    messages: Any = HELLO["messages"]
    async with AsyncOpenAI(base_url=base_url, api_key=tenant.key, max_retries=0, timeout=60) as client:
        await client.chat.completions.create(model="model-a", messages=messages)
        with pytest.raises(openai.RateLimitError) as error:
            await client.chat.completions.create(model="model-a", messages=messages)
    assert (error.value.status_code, error.value.code) == (429, "rate_limit_exceeded")
    assert int(error.value.response.headers["retry-after"]) >= 1
    assert error.value.response.headers["x-ratelimit-remaining-requests"] == "0"


async def test_tokens_count_on_all_replicas_when_an_answer_has_ended(replicas: Sequence[Replica], limited: Any) -> None:
    tenant = await limited(tokens_per_window=10, token_window=3600)
    for _ in range(2):  # of eight tokens each: before the second, two are left
        assert (await ask(replicas[0], tenant)).status == 200
    got = await ask(replicas[0], tenant)
    assert got.error == (429, "rate_limit_exceeded")
    assert got.json["error"]["message"] == "This key may have 10 tokens in 3600 s."
    assert got.one("x-ratelimit-remaining-tokens") == "0"
    assert int(got.one("retry-after")) > 1

    async def known() -> bool:
        return (await ask(replicas[1], tenant)).status == 429

    await until(known, SOON, "the other replica's refusal")


async def test_the_tokens_of_a_stream_that_was_left_count(limited: Any) -> None:
    tenant = await limited(tokens_per_window=20, token_window=3600)
    tenant.upstream.plays(stream(*[delta("a")] * 30, End.NEVER), json_answer(completion("b")))
    async with tenant.wire() as connection:
        await connection.send(tenant.request(body=STREAMED))
        await connection.head()
        read = b""
        while read.count(b"data:") < 30:
            read += await asyncio.wait_for(connection.reader.read(1000), 30)
    await (await tenant.upstream.asked()).left()

    async def refused() -> bool:
        got: Message = await tenant.ask()
        return got.status == 429

    await until(refused, AT_ONCE, "a refusal")
    assert len(tenant.upstream.requests) <= 2


async def test_leaving_before_the_answer_is_no_way_round_the_limit(limited: Any) -> None:
    tenant = await limited(tokens_per_window=10, token_window=3600)
    tenant.upstream.plays((End.NEVER,))
    own_id = f"left-{tenant.key_id}"
    async with tenant.wire() as connection:
        await connection.send(tenant.request(headers=[("X-Request-Id", own_id)]))
        await tenant.upstream.asked()
    await tenant.replica.says(own_id)
    assert (await tenant.ask()).error == (429, "rate_limit_exceeded")


async def test_pictures_cost_the_tokens_that_the_upstream_says(limited: Any) -> None:
    tenant = await limited(tokens_per_window=1000, token_window=3600)
    tenant.upstream.plays(json_answer({"data": [], "usage": {"input_tokens": 50, "output_tokens": 4000}}))
    asked = {"model": "model-a", "prompt": "a cat"}
    first, second = [await tenant.ask("/v1/images/generations", asked) for _ in range(2)]
    assert first.status == 200
    line = await tenant.line(first)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (50, 4000)
    assert second.error == (429, "rate_limit_exceeded")


async def test_a_profiles_limit_is_that_of_its_keys_together(gateway: Gateway) -> None:
    tenant = await gateway.tenant(requests_per_minute=3)
    other = (await gateway.issue(tenant.profile, requests_per_minute=100))["key"]
    for key in (tenant.key, other, tenant.key):
        assert (await ask(gateway.replica, tenant, key=key)).status == 200
    for key in (tenant.key, other):
        got = await ask(gateway.replica, tenant, key=key)
        assert got.error == (429, "rate_limit_exceeded")
        assert got.json["error"]["message"] == "The keys of this profile together may have 3 requests a minute."
        assert got.one("x-ratelimit-limit-requests") == "3"


@pytest.mark.parametrize("whose", ["keys", "profiles"])
async def test_changed_limits_hold_on_every_replica_within_two_seconds(
    replicas: Sequence[Replica], tenant: Tenant, whose: str
) -> None:
    path = f"/{whose}/{tenant.key_id if whose == 'keys' else tenant.profile}"
    first, *others = replicas
    for replica in replicas:
        for _ in range(2):
            got = await ask(replica, tenant)
            assert (got.status, got.all("x-ratelimit-limit-requests")) == (200, [])
    for limits, expected in (({"requests_per_minute": 1}, 429), ({"requests_per_minute": None}, 200)):
        await created(await tenant.api.patch(path, json=limits), 200)
        assert (await ask(first, tenant)).status in (200, 429)
        for replica in others:

            async def holds(replica: Replica = replica, expected: int = expected) -> bool:
                return (await ask(replica, tenant)).status == expected

            await until(holds, 5, f"{expected} under {limits}")


async def test_what_leaves_nothing_upstream_is_not_limited(limited: Any) -> None:
    """The models are Gasket's own answer."""
    tenant = await limited(requests_per_minute=1)
    for _ in range(3):
        assert (await tenant.ask("/v1/models", None)).status == 200
