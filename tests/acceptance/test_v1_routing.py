"""Which backend gets a request, when another gets it too, and when one gets none for a while."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from tests.acceptance.gateway import HELLO, Gateway, Tenant, exchange
from tests.acceptance.processes import until
from tests.acceptance.upstream import Answer, End, answer, delta, failure, json_answer, models, stream

STREAMED = {**HELLO, "stream": True}
OK = json_answer({"from": "the second"})


def counts(tenant: Tenant) -> list[int]:
    """How many requests each upstream has read."""
    return [len(upstream.requests) for upstream in tenant.upstreams]


@pytest.mark.parametrize("body", [HELLO, STREAMED], ids=["plain", "streamed"])
@pytest.mark.parametrize(
    "script",
    [failure(429), failure(502), failure(503), failure(504), (End.FIN,), (End.RST,), (b"no HTTP\r\n\r\n", End.FIN)],
    ids=["429", "502", "503", "504", "closed", "reset", "garbage"],
)
async def test_before_the_first_byte_another_backend_takes_over(gateway: Gateway, body: Any, script: Answer) -> None:
    tenant = await gateway.tenant({}, {}, {})
    first, second, _ = tenant.upstreams
    first.plays(script)
    second.plays(OK)
    got = await tenant.ask(body=body)
    assert (got.status, got.json) == (200, {"from": "the second"})
    assert counts(tenant) == [1, 1, 0]
    assert first.requests[0].message.body == second.requests[0].message.body


async def test_so_it_does_when_nobody_listens_or_nobody_answers(gateway: Gateway) -> None:
    tenant = await gateway.tenant({}, {}, backend={"first_byte_timeout": 3})
    tenant.upstreams[0].plays((End.NEVER,))
    tenant.upstreams[1].plays(OK)
    assert (await tenant.ask()).json == {"from": "the second"}
    await tenant.upstreams[0].requests[0].left()
    closed = await gateway.tenant_of(tenant.upstreams[1:], ["http://127.0.0.1:9/v1", tenant.upstreams[1].origin])
    assert (await closed.ask()).json == {"from": "the second"}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 422, 500, 501, 505])
async def test_an_answer_that_another_would_give_too_is_handed_on(gateway: Gateway, status: int) -> None:
    tenant = await gateway.tenant({"answers": [failure(status)]}, {})
    assert (await tenant.ask()).status == status
    assert counts(tenant) == [1, 0]


async def test_it_takes_over_once_and_the_last_answer_is_the_clients(gateway: Gateway) -> None:
    tenant = await gateway.tenant(*[{"answers": [failure(status)]} for status in (503, 429, 502)])
    got = await tenant.ask()
    assert (got.status, got.json["error"]["message"]) == (429, "scripted 429")
    assert counts(tenant) == [1, 1, 0]


async def test_nor_does_it_go_on_past_a_second_one_that_breaks(gateway: Gateway) -> None:
    tenant = await gateway.tenant(*[{"answers": [(End.RST,)]} for _ in range(3)])
    assert (await tenant.ask()).error == (502, "upstream_failed")
    assert counts(tenant) == [1, 1, 0]


async def test_with_nobody_left_the_client_gets_what_there_was(gateway: Gateway) -> None:
    tenant = await gateway.tenant({"answers": [failure(503, headers=[("retry-after", "9")])]})
    got = await tenant.ask()
    assert (got.status, got.one("retry-after")) == (503, "9")


@pytest.mark.parametrize("body", [HELLO, STREAMED], ids=["plain", "streamed"])
async def test_after_the_first_byte_nobody_takes_over(gateway: Gateway, body: Any) -> None:
    tenant = await gateway.tenant({}, {})
    [whole] = answer(b"x" * 1000)
    assert isinstance(whole, bytes)
    tenant.upstreams[0].plays(stream(delta("a"), End.RST, whole=False) if "stream" in body else (whole[:-1], End.RST))
    got = await tenant.ask(body=body)
    assert got.status == 200
    assert counts(tenant) == [1, 0]


async def test_the_profiles_order_among_those_that_serve_the_model(gateway: Gateway) -> None:
    """A list that cannot be had changes no place; never one that is known not to serve it."""
    scripts = [{"listing": failure(404)}, {"listing": models("other")}, {"listing": models("model-a")}]
    tenant = await gateway.tenant(*scripts, {"listing": models("model-a")})
    assert (await tenant.ask()).status == 200
    assert counts(tenant) == [1, 0, 0, 0]
    tenant.upstream.plays(failure(503))
    assert (await tenant.ask()).status == 200
    assert counts(tenant) == [2, 0, 1, 0]
    assert (await tenant.ask(body={"model": "unheard-of"})).status == 503
    assert counts(tenant) == [3, 0, 1, 0]


async def state(tenant: Tenant, number: int = 0) -> str:
    """What `/api/backends` says of it."""
    said: str = (await tenant.backend(number))["state"]
    return said


async def models_set_aside(tenant: Tenant, number: int = 0) -> list[str]:
    """What `/api/backends` says of its models."""
    said: list[str] = (await tenant.backend(number))["models_set_aside"]
    return said


async def test_five_failures_in_a_row_set_a_model_aside_and_one_try_brings_it_back(gateway: Gateway) -> None:
    tenant = await gateway.tenant({}, {})
    first, second = tenant.upstreams
    first.plays(*[failure(503)] * 4, OK, *[failure(502)] * 5)
    loop = asyncio.get_running_loop()
    for _ in range(5):
        assert (await tenant.ask()).status == 200
    assert counts(tenant) == [5, 4]
    assert await models_set_aside(tenant) == [], "the fifth was no failure"
    for _ in range(5):
        asked_at = loop.time()
        assert (await tenant.ask()).status == 200
    assert await models_set_aside(tenant) == ["model-a"]
    newest = (await tenant.api.get("/backends?orderBy=id&sortOrder=desc&pageSize=2")).json()["items"]
    assert [item["models_set_aside"] for item in newest] == [[], ["model-a"]]
    assert [item["state"] for item in newest] == ["available", "available"]
    for _ in range(5):
        assert (await tenant.ask()).status == 200
    assert counts(tenant) == [10, 14], "it is not asked"
    await gateway.replica.says("set aside")

    # One request at a time tries it; while that one is on its way the others go on to the second backend.
    go_on = asyncio.Event()
    first.plays((go_on, *OK), OK)

    async def tried() -> bool:
        asking.append(asyncio.create_task(tenant.ask()))
        await asyncio.wait({asking[-1]}, timeout=0.2)
        return len(first.requests) == 11

    asking: list[asyncio.Task[Any]] = []
    await until(tried, 20, "a try")
    assert loop.time() - asked_at >= 5
    assert await models_set_aside(tenant) == ["model-a"]
    await until(lambda: sum(not task.done() for task in asking) == 1, 20, "answers to all but the try")
    before = len(second.requests)
    assert [(await tenant.ask()).status for _ in range(3)] == [200] * 3
    assert (len(first.requests), len(second.requests)) == (11, before + 3)
    go_on.set()
    assert {(await task).status for task in asking} == {200}
    assert await models_set_aside(tenant) == []
    assert (await tenant.ask()).status == 200
    assert len(first.requests) == 12


async def test_a_backend_that_is_set_aside_and_the_only_one_is_503(gateway: Gateway) -> None:
    tenant = await gateway.tenant({"answers": [(End.RST,)]})
    for _ in range(5):
        assert (await tenant.ask()).error == (502, "upstream_failed")
    got = await tenant.ask()
    assert got.error == (503, "upstream_unavailable")
    assert 1 <= int(got.one("retry-after")) <= 5
    assert counts(tenant) == [5]


async def test_errors_that_are_the_clients_or_a_limits_never_set_a_backend_aside(gateway: Gateway) -> None:
    tenant = await gateway.tenant({"answers": [*[failure(429)] * 6, *[failure(500)] * 6, *[failure(400)] * 6, OK]})
    for _ in range(18):
        await tenant.ask()
    assert (await tenant.ask()).status == 200
    assert (await state(tenant), await models_set_aside(tenant)) == ("available", [])


async def test_clients_that_leave_never_set_a_backend_aside(gateway: Gateway) -> None:
    tenant = await gateway.tenant({"answers": [*[(End.NEVER,)] * 6, OK]})
    for count in range(1, 7):
        async with tenant.wire() as wire:
            await wire.send(tenant.request())
            seen = await tenant.upstream.asked(count)
        await seen.left()
    assert await models_set_aside(tenant) == []
    assert (await tenant.ask()).status == 200


async def test_streams_that_break_off_count_as_failures(gateway: Gateway) -> None:
    tenant = await gateway.tenant({"answers": [stream(delta("a"), End.RST, whole=False)]})
    for _ in range(5):
        assert (await tenant.ask(body=STREAMED)).status == 200
    assert await models_set_aside(tenant) == ["model-a"]


async def test_a_model_that_fails_takes_no_other_model_along(gateway: Gateway) -> None:
    tenant = await gateway.tenant({"listing": models("dead", "good")})
    tenant.upstream.plays(*[failure(503)] * 5, OK)
    assert [(await tenant.ask(body={"model": "dead"})).status for _ in range(6)] == [503] * 6
    assert len(tenant.upstream.requests) == 5
    assert (await tenant.ask(body={"model": "good"})).status == 200
    assert (await state(tenant), await models_set_aside(tenant)) == ("available", ["dead"])


async def test_at_its_limit_the_next_backend_takes_over_and_then_nobody_can(gateway: Gateway) -> None:
    tenant = await gateway.tenant({}, {}, backend={"max_concurrency": 2})
    go_on = asyncio.Event()
    for upstream in tenant.upstreams:
        upstream.plays((go_on, *OK))
    running = []
    for expected in ([1, 0], [2, 0], [2, 1], [2, 2]):
        running.append(asyncio.create_task(exchange(tenant.replica, tenant.request())))
        await until(lambda expected=expected: counts(tenant) == expected, 20, str(expected))
    got = await tenant.ask()
    assert got.error == (503, "overloaded")
    assert int(got.one("retry-after")) >= 1
    go_on.set()
    assert [(await task).status for task in running] == [200] * 4
    assert (await tenant.ask()).status == 200
    assert counts(tenant) == [3, 2]


async def test_a_credential_that_no_key_opens_is_never_sent(gateway: Gateway) -> None:
    tenant = await gateway.tenant({}, {})
    look = await gateway.installation.look()
    for number, expected in ((0, 200), (1, 502)):
        await look.execute("UPDATE openai_backends SET api_key = 'unreadable' WHERE id = $1", tenant.backends[number])
        await until_status(tenant, expected)
    got = await tenant.ask()
    assert got.error == (502, "upstream_failed")
    assert "cannot be decrypted; an administrator has to set it again" in got.json["error"]["message"]
    sent = [seen.message.all("authorization") for upstream in tenant.upstreams for seen in upstream.requests]
    assert set(itertools.chain(*sent)) == {"Bearer sk-upstream"}


async def until_status(tenant: Tenant, status: int) -> None:
    """Wait until this is what the key gets."""

    async def answered() -> bool:
        return (await tenant.ask()).status == status

    await until(answered, 10, str(status))


@pytest.mark.soak
async def test_each_try_that_fails_doubles_the_time_aside(gateway: Gateway) -> None:
    tenant = await gateway.tenant({"answers": [failure(503)]}, {})
    loop = asyncio.get_running_loop()
    times: list[float] = []

    async def tried_thrice() -> bool:
        before = len(tenant.upstream.requests)
        await tenant.ask()
        if len(tenant.upstream.requests) > max(before, 4):
            times.append(loop.time())
        await asyncio.sleep(0.1)
        return len(times) == 4

    await until(tried_thrice, 60, "three tries")
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps == pytest.approx([5, 10, 20], abs=1.0)
