"""Which backend's answer there is, and that its place and its connection are given back however it goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gasket.backends.breaker import FAILURES, Breakers
from gasket.proxy.access import Backend
from gasket.proxy.dispatch import Answer, Dispatcher
from gasket.proxy.errors import BusyError, UpstreamFailedError
from gasket.proxy.exchange import Exchange
from gasket.upstream.client import UpstreamClient
from tests.acceptance.processes import until
from tests.acceptance.upstream import End, Upstream, answer, chunked, failure, json_answer, serving
from tests.access import a_backend

OK = json_answer({"from": "it"})
LONG = answer(b"x" * 70_000, status=503)
SLOW = (*chunked(b"{", whole=False, status=503), End.NEVER)
BROKEN = (*chunked(b"{", whole=False, status=429), End.FIN)


class Two:
    """Two backends with one place each."""

    def __init__(self, upstreams: list[Upstream], client: UpstreamClient) -> None:
        self.upstreams = upstreams
        self.backends = [
            a_backend(id=number, name=f"b{number}", base_url=upstream.origin, max_concurrency=1)
            for number, upstream in enumerate(upstreams)
        ]
        self.breakers = Breakers()
        self.dispatcher = Dispatcher(client, self.breakers)
        self.exchange = self._exchange()

    def _exchange(self) -> Exchange:
        return Exchange(request_id="x", method="POST", path="/chat/completions", started=0.0)

    async def ask(self, *backends: Backend, **how: Any) -> Answer:
        """The first answer, of both unless some are named."""
        self.exchange = self._exchange()
        return await self.dispatcher.first_answer(
            self.exchange,
            backends or self.backends,
            target="/chat/completions",
            fields=[],
            body_for=lambda _: b"{}",
            **how,
        )

    async def has_all_places(self) -> bool:
        """Whether each backend can be asked: neither place is taken."""
        for upstream, backend in zip(self.upstreams, self.backends, strict=True):
            upstream.plays(OK)
            (await self.ask(backend)).close()
        return True


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    client = UpstreamClient()
    async with serving() as first, serving() as second:
        yield Two([first, second], client)
        await client.close()


async def test_a_backend_that_failed_is_free_while_another_is_waited_for(two: Two) -> None:
    first, second = two.upstreams
    go_on = asyncio.Event()
    first.plays(failure(503, headers=[("retry-after", "9")]), OK)
    second.plays((go_on, *failure(502)), OK)
    waiting = asyncio.create_task(two.ask())
    await second.asked()
    meanwhile = await two.ask(two.backends[0])
    assert (meanwhile.response.status, first.connections) == (200, 1), "over the same connection"
    meanwhile.close()
    go_on.set()
    got = await waiting
    assert (got.backend, got.response.status) == (two.backends[1], 502)
    got.close()
    assert await two.has_all_places()


@pytest.mark.parametrize("second", [(End.RST,), "busy", "aside"])
async def test_what_was_kept_is_whole_if_no_other_answers(two: Two, second: Any) -> None:
    two.upstreams[0].plays(failure(429, "slow_down", headers=[("retry-after", "9")]))
    held: Answer | None = None
    if second == "busy":
        held = await two.ask(two.backends[1])
    elif second == "aside":
        for _ in range(FAILURES):
            admission = two.breakers.of(1, "b1").admit()
            assert admission is not None
            admission.failed()
    else:
        two.upstreams[1].plays(second)
    got = await two.ask()
    assert (got.backend, two.exchange.backend, got.response.status) == (two.backends[0], two.backends[0], 429)
    assert (got.response.field(b"retry-after"), got.response.delimited, got.response.at_end) == (b"9", True, False)
    body = await got.response.read(1000)
    assert (b"slow_down" in body, len(body)) == (True, int(got.response.field(b"content-length")))
    assert got.response.at_end
    two.upstreams[0].plays(OK)
    other = await two.ask(two.backends[0])  # the place was given back before: closing twice does not give this one back
    got.close()
    with pytest.raises(BusyError):
        await two.ask(two.backends[0])
    other.close()
    if held is not None:
        held.close()
    if second != "aside":
        assert await two.has_all_places()


@pytest.mark.parametrize("body", [LONG, SLOW, BROKEN], ids=["long", "slow", "broken"])
@pytest.mark.parametrize("other", ["answers", "fails", "busy"])
async def test_what_is_long_or_slow_is_not_kept(
    two: Two, body: Any, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gasket.proxy.dispatch._SPARE_WITHIN", 0.2)
    two.upstreams[0].plays(body)
    held = await two.ask(two.backends[1]) if other == "busy" else None
    if other == "answers":
        got = await two.ask()
        assert (got.backend, got.response.status) == (two.backends[1], 200)
        got.close()
    else:
        two.upstreams[1].plays((End.RST,))
        with pytest.raises(UpstreamFailedError, match="b1" if other == "fails" else "b0"):
            await two.ask()
    if body is SLOW:
        await two.upstreams[0].requests[0].left()
    if held is not None:
        held.close()
    assert await two.has_all_places()


@pytest.mark.parametrize("answered", [LONG, SLOW], ids=["long", "slow"])
async def test_the_last_that_can_be_asked_is_handed_on_as_it_comes(two: Two, answered: Any) -> None:
    two.upstreams[0].plays(answered)
    for backends, how in (([two.backends[0]], {}), (two.backends, {"may_fail_over": False})):
        got = await two.ask(*backends, **how)
        assert (got.response.status, await got.response.piece() != b"") == (503, True)
        got.close()
    assert await two.has_all_places()


async def test_a_client_that_leaves_while_it_is_read_holds_nothing(two: Two) -> None:
    two.upstreams[0].plays(SLOW)
    asking = asyncio.create_task(two.ask())
    seen = await two.upstreams[0].asked()
    await until(lambda: two.exchange.failures != (), 5, "the head of the first answer")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await seen.left()
    assert two.upstreams[1].requests == []
    assert await two.has_all_places()


async def test_a_body_that_breaks_off_is_one_failure(two: Two) -> None:
    two.upstreams[0].plays((*chunked(b"{", whole=False, status=503), End.FIN))
    for count in range(1, FAILURES + 1):
        (await two.ask()).close()
        assert (two.breakers.state(0) == "set_aside") == (count == FAILURES)


async def test_a_limit_that_is_reached_is_no_failure(two: Two) -> None:
    two.upstreams[0].plays(failure(429))
    for _ in range(2 * FAILURES):
        (await two.ask()).close()
    assert two.breakers.of(0, "b0").untouched
