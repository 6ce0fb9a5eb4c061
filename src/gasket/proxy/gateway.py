"""`/v1` as an ASGI application: one request from its key to the end of its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple
from urllib.parse import quote

import msgspec
from litestar.types import HTTPScope, Receive, Send

from gasket.deadlines import Deadlines
from gasket.limits.limiter import Grant, Limiter, LimitReachedError
from gasket.proxy.access import Access, Backend, Profile
from gasket.proxy.bodies import Room, ask_for_usage, read_body
from gasket.proxy.directory import KeyDirectory
from gasket.proxy.dispatch import Answer, Dispatcher
from gasket.proxy.endpoints import Endpoint, Kind, find_endpoint
from gasket.proxy.errors import (
    BusyError,
    ClientGoneError,
    GatewayError,
    LimitedError,
    NoSuchModelError,
    SlowRequestError,
    StoppingError,
    UpstreamFailedError,
    UpstreamTimeoutError,
)
from gasket.proxy.exchange import CLIENT_GONE_STATUS, Exchange, Outcome, new_request_id
from gasket.proxy.headers import Incoming, bearer, own_fields
from gasket.proxy.model_lists import ModelLists
from gasket.proxy.reading import check_stateful, read_request
from gasket.proxy.relay import FAREWELL, STALLED_AFTER, Relay, send_whole
from gasket.proxy.usage_refusals import UsageRefusals
from gasket.proxy.usage_tap import UsageTap
from gasket.proxy.watch import Watch
from gasket.upstream.connection import Fields

log = logging.getLogger("gasket.gateway")

Observer = Callable[[Exchange], None]

_NOT_UNDERSTOOD = (400, 422)
# Nobody waited for an answer that a backend may have been at work on: that is not for nothing.
_UNANSWERED = (ClientGoneError, UpstreamTimeoutError)
_CLOSE: Fields = [(b"connection", b"close")]
_JSON = (b"content-type", b"application/json")


class Gateway:
    """Everything below `/v1`. `observers` are told each request once it has ended; they must not raise."""

    def __init__(
        self,
        directory: KeyDirectory,
        dispatcher: Dispatcher,
        models: ModelLists,
        limiter: Limiter,
        *,
        largest_body: int,
        most_in_bodies: int,
        most_requests: int,
        observers: Sequence[Observer],
    ) -> None:
        self._directory = directory
        self._dispatcher = dispatcher
        self._models = models
        self._limiter = limiter
        self._largest_body = largest_body
        self._room = Room(most_in_bodies)
        self._most_requests = most_requests
        self._observers = observers
        self._deadlines = Deadlines()
        self._bodies = Deadlines()
        self._watches: set[Watch] = set()
        self._under_way = 0
        self._stopped = False
        self._extra: Fields = []
        self._usage_refusals = UsageRefusals()

    @property
    def under_way(self) -> int:
        """How many requests there are at the moment."""
        return self._under_way

    def drain(self) -> None:
        """Tell every client from now on to come back over another connection."""
        self._extra = _CLOSE

    def stop(self) -> None:
        """End what still runs, in words where the client can read them, also for one that is still sending."""
        self._stopped = True
        self._bodies.end()
        for watch in list(self._watches):
            watch.stop()

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        raw_path: bytes = scope["raw_path"]
        exchange = Exchange(
            request_id=new_request_id(),
            method=scope["method"],
            path=raw_path.decode("latin-1")[3:],
            started=time.monotonic(),
        )
        self._under_way += 1
        try:
            await self._answer(exchange, scope, receive, send)
        except ClientGoneError:
            _note_gone(exchange)
        except asyncio.CancelledError:  # the server's, at its end
            exchange.status, exchange.outcome = exchange.status or StoppingError.status, Outcome.SHUTDOWN
            raise
        except GatewayError as error:
            _note(exchange, error)
            await self._send_error(exchange, error, send)
        except Exception:
            log.exception("%s /v1%s failed", exchange.method, exchange.path)
            fault = GatewayError("Something went wrong on the gateway's side; its log says what.")
            exchange.status, exchange.outcome = fault.status, Outcome.REFUSED
            await self._send_error(exchange, fault, send)
        finally:
            self._under_way -= 1
            self._room.give_back(exchange.bytes_in)
            if exchange.grant is not None:
                exchange.grant.end(exchange.prompt_tokens + exchange.completion_tokens)
            exchange.ended = time.monotonic()
            for observe in self._observers:
                observe(exchange)

    async def _answer(self, exchange: Exchange, scope: HTTPScope, receive: Receive, send: Send) -> None:
        incoming = Incoming(scope["headers"])
        exchange.client_request_id = incoming.request_id
        endpoint = find_endpoint(exchange.method, scope["raw_path"])
        key = bearer(incoming.authorization)
        access = self._directory.recall(key) or await self._directory.look_up(key)
        exchange.access = access
        if endpoint.kind is Kind.STATEFUL:
            check_stateful(access.profile, f"{exchange.method} /v1{endpoint.path}")
        if not access.profile.backends:
            raise NoSuchModelError(f"Profile {access.profile.name!r} has no backend.", code="no_backends")
        if self._under_way > self._most_requests:
            raise BusyError("This replica has as many requests as it may have at once.")
        if access.limited and endpoint.kind is not Kind.MODELS:  # before its body: that may be large, slow or nonsense
            exchange.grant = await self._admit(access)
        body = await self._read_body(receive, incoming)
        exchange.bytes_in = len(body)  # so much room is given back at the end
        endpoint, wanted = read_request(endpoint, scope["query_string"], body, incoming.content_type, access.profile)
        exchange.model = wanted.model
        if self._stopped:
            raise StoppingError
        query = scope["query_string"].decode("latin-1")
        target = f"{endpoint.path}?{query}" if query else endpoint.path
        asks = endpoint.asks_for_usage and bool(wanted.stream) and not wanted.tells_usage
        request = _Request(endpoint, target, incoming, body, ask_for_usage(body, wanted) if asks else None)
        watch = Watch(receive, self._deadlines)
        self._watches.add(watch)
        try:
            if endpoint.kind is Kind.MODELS:
                async with watch:
                    whole = await self._models_answer(access.profile, endpoint)
                await self._send_models(exchange, whole, send)
            else:
                await self._pass_on(exchange, access.profile, request, watch, send)
        finally:
            self._watches.discard(watch)

    async def _send_error(self, exchange: Exchange, error: GatewayError, send: Send) -> None:
        """Once an answer has begun there is no place for another one."""
        if exchange.first_byte is None:
            exchange.status = error.status
            fields = error.headers() + own_fields(exchange.request_id, exchange.client_request_id) + self._extra
            try:
                await self._send_whole(send, error.status, fields, error.body())
            except ClientGoneError:
                _note_gone(exchange)

    async def _send_whole(self, send: Send, status: int, fields: Fields, body: bytes) -> None:
        """A client that does not read it does not keep the replica from stopping."""
        within = FAREWELL if self._stopped else STALLED_AFTER
        await send_whole(send, status, fields, body, deadlines=self._bodies, within=within)

    async def _read_body(self, receive: Receive, incoming: Incoming) -> bytes:
        try:
            return await read_body(receive, self._bodies, self._room, length=incoming.length, limit=self._largest_body)
        except SlowRequestError:
            if self._stopped:
                raise StoppingError from None
            raise

    async def _admit(self, access: Access) -> Grant:
        try:
            return await self._limiter.admit(access.limited)
        except LimitReachedError as error:
            code = "concurrency_limit_exceeded" if error.kind == "concurrency" else "rate_limit_exceeded"
            raise LimitedError(str(error), code=code, retry_after=error.retry_after, fields=error.fields) from None

    async def _pass_on(self, exchange: Exchange, profile: Profile, request: _Request, watch: Watch, send: Send) -> None:
        answer: Answer | None = None
        relay: Relay | None = None
        try:
            async with watch:
                try:
                    backends = await self._candidates(profile, request.endpoint, exchange.model)
                    answer, asked = await self._first_answer(exchange, backends, request)
                    tap = UsageTap(request.endpoint, hide=asked)
                    relay = Relay(exchange, answer, send, tap=tap, deadlines=self._deadlines, extra=self._extra)
                    await relay.run()
                finally:
                    if answer is not None:
                        answer.close()
        except (GatewayError, ClientGoneError) as reason:
            if exchange.first_byte is None and exchange.backend is not None and isinstance(reason, _UNANSWERED):
                UsageTap(request.endpoint).settle(exchange, whole=False)
            if relay is not None and isinstance(reason, GatewayError):
                await relay.break_off(reason)
            raise

    async def _first_answer(
        self, exchange: Exchange, backends: Sequence[Backend], request: _Request
    ) -> tuple[Answer, bool]:
        """The answer, and whether Gasket asked for its usage. What fails because of that is asked as the client did."""
        plain, asking = request.body, request.asking
        send = partial(
            self._dispatcher.first_answer,
            exchange,
            backends,
            target=request.target,
            fields=request.incoming.upstream,
            may_fail_over=request.endpoint.kind is Kind.STATELESS,
        )
        if asking is None:
            return await send(body_for=lambda _: plain), False
        unasked = [backend for backend in backends if backend in self._usage_refusals]
        answer = await send(body_for=lambda backend: plain if backend in unasked else asking)
        if answer.response.status not in _NOT_UNDERSTOOD or answer.backend in unasked:
            return answer, answer.backend not in unasked
        refuser = answer.backend
        answer.close()
        answer = await send(body_for=lambda _: plain)
        if answer.response.status < 400 and answer.backend is refuser:
            self._usage_refusals.add(refuser)
            log.info("backend %r does not know stream_options: the usage of its streams is estimated", refuser.name)
        return answer, False

    async def _candidates(self, profile: Profile, endpoint: Endpoint, model: str | None) -> Sequence[Backend]:
        if endpoint.kind is Kind.STATEFUL:
            return profile.backends[:1]
        if model is None:
            return profile.backends
        serving = await self._models.serving(profile.backends, model)
        if not serving:
            raise NoSuchModelError(f"No backend of this key has the model {model!r}.", param="model")
        return serving

    async def _models_answer(self, profile: Profile, endpoint: Endpoint) -> tuple[bytes, list[Backend]]:
        """`GET /v1/models` and `GET /v1/models/{model}` (OpenAI API reference, "Models")."""
        models, silent = await self._models.merged(profile)
        name = endpoint.path.removeprefix("/models").removeprefix("/")
        if not name:
            return msgspec.json.encode({"object": "list", "data": list(models.values())}), silent
        if name not in models:
            raise NoSuchModelError(f"No backend of this key has the model {name!r}.", param="model")
        return bytes(models[name]), silent

    async def _send_models(self, exchange: Exchange, answer: tuple[bytes, list[Backend]], send: Send) -> None:
        body, silent = answer
        fields = [_JSON, (b"content-length", str(len(body)).encode())]
        if silent:
            names = ", ".join(quote(backend.name, safe=" ") for backend in silent)
            fields.append((b"x-gasket-unavailable-backends", names.encode()))
        fields += own_fields(exchange.request_id, exchange.client_request_id) + self._extra
        exchange.status, exchange.first_byte, exchange.bytes_out = 200, time.monotonic(), len(body)
        await self._send_whole(send, 200, fields, body)


class _Request(NamedTuple):
    endpoint: Endpoint
    target: str
    incoming: Incoming
    body: bytes
    asking: bytes | None
    """The body that also asks for the usage of its stream, where the client's does not."""


def _note_gone(exchange: Exchange) -> None:
    exchange.status, exchange.outcome = CLIENT_GONE_STATUS, Outcome.CLIENT_GONE


def _note(exchange: Exchange, error: GatewayError) -> None:
    exchange.error = str(error)
    match error:
        case LimitedError():
            exchange.outcome = Outcome.LIMITED
        case StoppingError():
            exchange.outcome = Outcome.SHUTDOWN
        case UpstreamTimeoutError():
            exchange.outcome = Outcome.TIMEOUT
        case UpstreamFailedError():
            exchange.outcome = Outcome.UPSTREAM_FAILED
        case _:
            exchange.outcome = Outcome.REFUSED
