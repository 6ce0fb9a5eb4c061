"""Which backend's answer there is, and that its place and its connection are given back however it goes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gasket.backends.breaker import FAILURES, BackendAdmission, Breakers
from gasket.networks import BackendNetworks
from gasket.proxy.access import Backend, ServedModel
from gasket.proxy.answer import Answer
from gasket.proxy.dispatch import Dispatcher, Outgoing
from gasket.proxy.errors import BusyError, UpstreamFailedError, UpstreamTimeoutError
from gasket.proxy.exchange import Exchange
from gasket.proxy.routing import routes_to
from gasket.upstream.client import UpstreamClient
from gasket.upstream.names import Names
from tests.acceptance.processes import until
from tests.acceptance.upstream import End, Upstream, answer, chunked, event, failure, json_answer, serving, stream
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
        return Exchange(request_id="x", method="POST", path="/chat/completions", started=0.0, model="m")

    async def ask(self, *backends: Backend, **how: Any) -> Answer:
        """The first answer, of both unless some are named."""
        self.exchange = self._exchange()
        return await self.dispatcher.first_answer(
            self.exchange,
            routes_to(backends or self.backends, "m"),
            Outgoing(**{"target": "/chat/completions", "fields": [], "body": b'{"model":"m"}', **how}),
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


async def test_what_an_operator_has_set_aside_is_passed_over(two: Two) -> None:
    aside = a_backend(id=0, name="b0", base_url=two.upstreams[0].origin, set_aside=True)
    two.upstreams[1].plays(OK)
    got = await two.ask(aside, two.backends[1])
    assert (got.backend, two.exchange.retries) == (two.backends[1], 0)
    got.close()
    with pytest.raises(BusyError, match="Backend 'b0' is set aside by an operator"):
        await two.ask(aside)
    assert two.upstreams[0].connections == 0


@pytest.mark.parametrize("second", [(End.RST,), "busy", "aside"])
async def test_what_was_kept_is_whole_if_no_other_answers(two: Two, second: Any) -> None:
    two.upstreams[0].plays(failure(429, "slow_down", headers=[("retry-after", "9")]))
    held: Answer | None = None
    if second == "busy":
        held = await two.ask(two.backends[1])
    elif second == "aside":
        for _ in range(FAILURES):
            admission = two.breakers.of(1, "b1").admit("m")
            assert isinstance(admission, BackendAdmission)
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
    monkeypatch.setattr("gasket.proxy.answer._SPARE_WITHIN", 0.2)
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
    for backends, how in (([two.backends[0]], {}), (two.backends, {"stateful": True})):
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
        assert two.breakers.models_set_aside(0) == (["m"] if count == FAILURES else [])


async def test_a_limit_that_is_reached_is_no_failure(two: Two) -> None:
    two.upstreams[0].plays(failure(429))
    for _ in range(2 * FAILURES):
        (await two.ask()).close()
    assert two.breakers.of(0, "b0").untouched


async def test_a_name_server_that_does_not_answer_sets_no_backend_aside() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as closed:  # nothing reads there, and nobody else is given the port
        closed.bind(("127.0.0.1", 0))
        names = Names(servers=["127.0.0.1"], udp_port=closed.getsockname()[1], timeout=0.1, tries=1)
        client = UpstreamClient(names=names)
        two = Two([], client)
        backend = a_backend(id=1, name="b1", base_url="http://somewhere.test")
        for _ in range(FAILURES + 1):
            with pytest.raises(UpstreamFailedError, match="cannot be found"):
                await two.ask(backend)
        assert two.breakers.of(1, "b1").untouched
        await client.close()


async def test_backends_without_an_address_do_not_hide_the_next_one() -> None:
    """They are never set aside, so they must not use up the tries of each request."""
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        names = Names(servers=["127.0.0.1"], udp_port=silent.getsockname()[1], timeout=0.1, tries=1)
        client = UpstreamClient(names=names, networks=BackendNetworks.parse("deny 127.0.0.9, allow *"))
        async with serving() as healthy:
            two = Two([healthy], client)
            healthy.plays(OK)
            urls = ["http://silent1.test", "http://silent2.test", "http://127.0.0.9"]
            hidden = [a_backend(id=10 + number, base_url=url) for number, url in enumerate(urls)]
            got = await two.ask(*hidden, *two.backends)
            assert (got.backend, two.exchange.retries) == (two.backends[0], 3)
            got.close()
            with pytest.raises(UpstreamFailedError):
                await two.ask(*hidden, *two.backends, stateful=True)
            assert len(healthy.requests) == 1
        await client.close()


async def test_a_backend_that_cannot_be_connected_to_is_not_tried_for_its_other_rows(two: Two) -> None:
    rows = tuple(ServedModel("m", other, None, 0) for other in ("m", "n"))
    with socket.socket() as closed:  # bound, and nothing listens
        closed.bind(("127.0.0.1", 0))
        gone = a_backend(id=7, name="b7", base_url=f"http://127.0.0.1:{closed.getsockname()[1]}", models=rows)
        got = await two.ask(gone, two.backends[1])
        assert (got.backend, two.exchange.retries) == (two.backends[1], 1)
        got.close()
        with pytest.raises(UpstreamFailedError, match="Backend 'b7' cannot be connected to"):
            await two.ask(gone)
        assert len(two.exchange.failures) == 1


async def test_a_backend_that_fails_is_tried_for_its_other_row(two: Two) -> None:
    rows = tuple(ServedModel("m", other, None, 0) for other in ("m", "n"))
    two.upstreams[0].plays(failure(503), OK)
    backend = a_backend(id=7, base_url=two.upstreams[0].origin, models=rows)
    got = await two.ask(backend, two.backends[1])
    assert (got.backend, got.response.status) == (backend, 200)
    got.close()
    assert two.upstreams[0].requests[1].message.body == b'{"model":"n"}'


async def test_what_no_key_opens_is_told_to_administrators_alone(two: Two) -> None:
    with pytest.raises(UpstreamFailedError, match="backend 'b' cannot be decrypted") as refused:
        await two.ask(a_backend(credential_unreadable=True))
    assert "GASKET" not in str(refused.value)
    assert "GASKET_SECRET_KEY" in str(refused.value.detail)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_passed_on(two: Two, status: int, caplog: pytest.LogCaptureFixture) -> None:
    location = [("location", "http://internal.test:9/v1/chat/completions?token=secret")]
    two.upstreams[0].plays(failure(status, headers=location))
    with pytest.raises(UpstreamFailedError) as refused:
        await two.ask(two.backends[0])
    assert (refused.value.status, refused.value.code) == (502, "upstream_redirected")
    assert "internal" not in str(refused.value)
    assert "to 'http://internal.test:9/v1/chat/completions'" in caplog.text
    assert "secret" not in caplog.text
    assert await two.has_all_places()


async def test_a_backend_that_redirects_is_passed_over(two: Two) -> None:
    two.upstreams[0].plays(failure(307, headers=[("location", "/elsewhere")]))
    got = await two.ask()
    assert (got.backend, got.response.status) == (two.backends[1], 200)
    got.close()


async def test_a_base_url_that_lacks_its_path_is_named_once(two: Two, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets the backend's own answer: it may be about the model."""
    first, second = two.upstreams
    for upstream in two.upstreams:
        upstream.plays(answer(b"404 page not found", status=404))
    with_path = a_backend(id=7, name="b7", base_url=f"{second.origin}/v1")
    for _ in range(2):
        for backend in (two.backends[0], with_path):
            got = await two.ask(backend)
            assert got.response.status == 404
            got.close()
    assert len(first.requests) == len(second.requests) == 2
    [told] = [record.getMessage() for record in caplog.records if "base_url" in record.getMessage()]
    assert told.startswith("backend 'b0' has no /chat/completions (404), and its base_url has no path")
    assert "POST /api/backends/0/test" in told


@pytest.mark.parametrize("status", [520, 521, 522, 523, 524, 529, 530])
async def test_statuses_of_proxies_in_front_of_a_backend_are_failures(two: Two, status: int) -> None:
    two.upstreams[0].plays(failure(status))
    for count in range(1, FAILURES + 1):
        got = await two.ask()
        assert (got.backend, got.response.status) == (two.backends[1], 200)
        got.close()
        assert two.breakers.models_set_aside(0) == (["m"] if count == FAILURES else [])


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no such thing"}},
        {"id": "x", "error": {"message": "no such thing", "code": 503}, "choices": []},
        {"error": "no such thing"},
        {"type": "error", "error": {"type": "overloaded_error", "message": "no such thing"}},
        {"object": "error", "error": {"message": "no such thing", "code": "429"}, "usage": {"total_tokens": 4}},
    ],
)
async def test_an_error_with_status_200_is_a_failure(two: Two, body: object) -> None:
    two.upstreams[0].plays(json_answer(body))
    got = await two.ask()
    assert (got.backend, got.response.status) == (two.backends[1], 200)
    got.close()
    assert two.exchange.failures == ((two.backends[0], "error_in_success"),)
    for _ in range(FAILURES - 1):
        with pytest.raises(UpstreamFailedError, match="Backend 'b0' answered 200 with an error: no such thing"):
            await two.ask(two.backends[0])
    assert two.breakers.models_set_aside(0) == ["m"]


@pytest.mark.parametrize(
    "body",
    [
        {"error": None, "choices": [{}]},
        {"error": {}, "data": []},
        {"choices": [{"message": {"content": "said", "error": {"message": "inside"}}}]},
        {"object": "response", "status": "failed", "error": {"code": "server_error", "message": "known"}, "output": []},
        {"error": {"message": "half of it"}, "choices": [{"message": {"content": "said"}}]},
    ],
)
async def test_what_is_no_error_is_passed_on(two: Two, body: object) -> None:
    two.upstreams[0].plays(json_answer(body))
    got = await two.ask()
    assert (got.backend, await got.response.read(10_000)) == (two.backends[0], json.dumps(body).encode())
    got.close()


async def test_an_error_with_status_200_gives_its_place_back(two: Two) -> None:
    two.upstreams[0].plays(json_answer({"error": {"message": "no such thing"}}))
    with pytest.raises(UpstreamFailedError):
        await two.ask(two.backends[0])
    assert await two.has_all_places()


async def test_a_request_that_is_to_blame_sets_nothing_aside(two: Two) -> None:
    two.upstreams[0].plays(json_answer({"error": {"message": "too long", "code": 400}}))
    for _ in range(2 * FAILURES):
        with pytest.raises(UpstreamFailedError, match="too long"):
            await two.ask(two.backends[0])
    assert two.breakers.of(0, "b0").untouched


async def test_an_error_in_pieces_is_seen(two: Two) -> None:
    two.upstreams[0].plays(chunked(b'{"er', b'ror": {"mess', b'age": "in pieces"}}'))
    with pytest.raises(UpstreamFailedError, match="in pieces"):
        await two.ask(two.backends[0])


async def test_an_answer_that_breaks_off_before_its_first_byte_fails_over(two: Two) -> None:
    two.upstreams[0].plays((*chunked(whole=False), End.FIN))
    got = await two.ask()
    assert got.backend is two.backends[1]
    got.close()


@pytest.mark.parametrize("refusal", [400, 404, 415, 422, 500, 501, "event", "body"])
async def test_who_refuses_to_tell_the_usage_is_asked_as_the_client_did(two: Two, refusal: int | str) -> None:
    said = {"error": {"message": "stream_options?"}}
    in_success = {"event": stream(event(said)), "body": json_answer(said)}
    refused = in_success[refusal] if isinstance(refusal, str) else failure(refusal)
    two.upstreams[0].plays(refused, OK, OK)
    for _ in range(2):
        got = await two.ask(two.backends[0], asking=b"{ }")
        assert (got.response.status, got.asked_for_usage) == (200, False)
        got.close()
    assert [seen.message.body for seen in two.upstreams[0].requests] == [b"{ }", b'{"model":"m"}', b'{"model":"m"}']


@pytest.mark.parametrize("status", [401, 429])
async def test_what_is_no_refusal_of_options_is_not_asked_again(two: Two, status: int) -> None:
    two.upstreams[0].plays(failure(status))
    got = await two.ask(two.backends[0], asking=b"{ }")
    assert got.response.status == status
    got.close()
    assert len(two.upstreams[0].requests) == 1


async def test_a_stream_that_begins_with_an_error_fails_over(two: Two) -> None:
    two.upstreams[0].plays(stream(b": hello\n\n", event({"error": {"message": "overloaded"}})))
    got = await two.ask()
    assert got.backend is two.backends[1]
    got.close()


async def test_a_stream_that_is_silent_at_first_is_passed_on(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gasket.proxy.errors_in_success.READ_AHEAD_WITHIN", 0.05)
    go_on = asyncio.Event()
    two.upstreams[0].plays((*stream(b": thinking\n\n", whole=False), go_on, *chunked(whole=True)))
    got = await two.ask()
    assert (got.backend, await got.response.piece()) == (two.backends[0], b": thinking\n\n")
    got.close()


async def test_silence_sets_nothing_aside(two: Two) -> None:
    two.upstreams[0].plays((End.NEVER,))
    slow = a_backend(id=0, name="b0", base_url=two.upstreams[0].origin, first_byte_timeout=0.1)
    for _ in range(FAILURES + 1):
        with pytest.raises(UpstreamTimeoutError):
            await two.ask(slow)
    assert two.breakers.of(0, "b0").untouched


async def test_who_cannot_be_connected_to_is_set_aside_whole(two: Two) -> None:
    away = a_backend(id=0, name="b0", base_url="http://127.0.0.1:1")
    for _ in range(FAILURES):
        with pytest.raises(UpstreamFailedError):
            await two.ask(away)
    assert (two.breakers.state(0), two.breakers.models_set_aside(0)) == ("set_aside", [])
