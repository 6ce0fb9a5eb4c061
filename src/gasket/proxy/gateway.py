"""`/v1` as an ASGI application: one request from its key to the end of its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from urllib.parse import quote

import msgspec
from litestar.types import HTTPScope, Receive, Send

from gasket.access.bearers import JWT_PREFIX
from gasket.deadlines import Deadlines
from gasket.errors import GuessingError
from gasket.limits.limiter import Grant, Limiter, LimitReachedError
from gasket.proxy.access import Access, Backend, Profile
from gasket.proxy.answer import Answer
from gasket.proxy.bodies import ask_for_usage, read_body
from gasket.proxy.directory import KeyDirectory, TokenDirectory
from gasket.proxy.dispatch import Dispatcher, Outgoing
from gasket.proxy.endpoints import Endpoint, Kind, find_endpoint, speaks_anthropic
from gasket.proxy.errors import (
    BusyError,
    ClientGoneError,
    LimitedError,
    LoopError,
    NoSuchModelError,
    StoppingError,
    TokenNotValidError,
    UpstreamFailedError,
    UpstreamTimeoutError,
    UseHttpError,
    WrongUrlError,
    error_body,
)
from gasket.proxy.exchange import CLIENT_GONE_STATUS, Exchange, Outcome
from gasket.proxy.headers import Incoming, asks_for_websocket, own_fields
from gasket.proxy.misplaced import find_mistake
from gasket.proxy.model_lists import ModelLists
from gasket.proxy.reading import check_stateful, read_request
from gasket.proxy.relay import LAST_SEND_TIMEOUT, STALLED_AFTER, Relay, send_whole
from gasket.proxy.routing import Route, arrange, beginning, only_route, routes_to
from gasket.proxy.shares import Room, Share, Shares
from gasket.proxy.usage_tap import UsageTap
from gasket.proxy.watch import Watch
from gasket.request_ids import new_request_id
from gasket.server.errors import BadRequestError, GatewayError, SlowRequestError
from gasket.upstream.connection import Fields

log = logging.getLogger("gasket.gateway")

Observer = Callable[[Exchange], None]

# After these a backend may have worked on the answer, which costs tokens: they are estimated.
_UNANSWERED = (ClientGoneError, UpstreamTimeoutError)
_CLOSE: Fields = [(b"connection", b"close")]
_JSON = (b"content-type", b"application/json")


class Gateway:
    """Everything below `/v1`. `observers` are called with each request once it has ended; they must not raise.

    `key_share` is how many per cent of `most_requests` and `most_in_bodies` one key may have. Without `tokens` no
    signed token counts; `count_guess` is given the address from which a wrong one comes, and may raise GuessingError.
    """

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
        key_share: int,
        observers: Sequence[Observer],
        tokens: TokenDirectory | None = None,
        count_guess: Callable[[str | None], object] = lambda _address: None,
    ) -> None:
        self._directory = directory
        self._dispatcher = dispatcher
        self._models = models
        self._limiter = limiter
        self._largest_body = largest_body
        self._shares = Shares(
            Room(most_in_bodies),
            most_requests=max(1, most_requests * key_share // 100),
            most_bytes=max(largest_body, most_in_bodies * key_share // 100),
        )
        self._most_requests = most_requests
        self._observers = observers
        self._tokens = tokens
        self._count_guess = count_guess
        self._deadlines = Deadlines()
        self._bodies = Deadlines()
        self._watches: set[Watch] = set()
        self._under_way = 0
        self._stopped = False
        self._extra: Fields = []

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
            client=client[0] if (client := scope.get("client")) else None,
        )
        self._under_way += 1
        try:
            await self._answer(exchange, scope, receive, send)
        except ClientGoneError:
            if exchange.outcome is Outcome.OK:  # many a client leaves at the event of an error
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
            if exchange.share is not None:
                exchange.share.give_back(exchange.bytes_in)
                exchange.share.leave()
            if exchange.grant is not None:
                exchange.grant.end(exchange.prompt_tokens + exchange.completion_tokens)
            exchange.ended = time.monotonic()
            for observe in self._observers:
                observe(exchange)

    async def _answer(self, exchange: Exchange, scope: HTTPScope, receive: Receive, send: Send) -> None:
        incoming = Incoming(scope["headers"])
        exchange.client_request_id = incoming.request_id
        if incoming.passed_through(self._dispatcher.pseudonym):
            raise LoopError
        if exchange.method == "GET" and asks_for_websocket(scope["headers"]):
            raise UseHttpError
        path = scope["path"]
        if path.startswith("/v1/v1") and (mistake := find_mistake(path)):
            raise WrongUrlError(mistake)
        if "//" in path and not path.startswith("/v1/models/") and (mistake := find_mistake(path)):
            raise BadRequestError(mistake, code="invalid_path")
        endpoint = find_endpoint(exchange.method, scope["raw_path"])
        key = incoming.key
        if self._tokens is not None and key.startswith(JWT_PREFIX):
            access = await self._access_of_token(self._tokens, key, exchange.client)
        else:
            access = self._directory.recall(key) or await self._directory.look_up(key)
        exchange.access = access
        if access.profile.user_header is not None:
            exchange.end_user = incoming.take_end_user(scope["headers"], access.profile.user_header)
        if endpoint.kind is Kind.STATEFUL:
            check_stateful(access.profile, f"{exchange.method} /v1{endpoint.path}")
        if not access.profile.backends:
            raise NoSuchModelError("The profile of this key has no backend.", code="no_backends")
        if self._under_way > self._most_requests:
            raise BusyError("This replica has as many requests as it may have at once.")
        exchange.share = self._shares.enter(access.key_id)
        if access.limited and endpoint.kind is not Kind.MODELS:  # before its body: that may be large, slow or nonsense
            exchange.grant = await self._admit(access)
        body = await self._read_body(receive, incoming, exchange.share)
        exchange.bytes_in = len(body)  # so much room is given back at the end
        endpoint, wanted = read_request(endpoint, scope["query_string"], body, incoming.content_type, access.profile)
        exchange.model, exchange.asks_for_stream = wanted.model, bool(wanted.stream)
        if self._stopped:
            raise StoppingError
        query = scope["query_string"].decode("latin-1")
        target = f"{endpoint.path}?{query}" if query else endpoint.path
        asks = endpoint.asks_for_usage and bool(wanted.stream) and not wanted.tells_usage
        asking = ask_for_usage(body, wanted) if asks else None
        outgoing = Outgoing(
            target,
            incoming.upstream,
            body,
            asking,
            stateful=endpoint.kind is not Kind.STATELESS,
            content_type=incoming.content_type,
            accepted_codings=incoming.accepted_codings,
        )
        watch = Watch(receive, self._deadlines)
        self._watches.add(watch)
        try:
            if endpoint.kind is Kind.MODELS:
                async with watch:
                    whole = await self._models_answer(access.profile, endpoint)
                await self._send_models(exchange, whole, send)
            else:
                await self._pass_on(exchange, access.profile, endpoint, outgoing, watch, send)
        finally:
            self._watches.discard(watch)

    async def _access_of_token(self, tokens: TokenDirectory, token: bytes, client: str | None) -> Access:
        try:
            return tokens.recall(token) or await tokens.look_up(token)
        except TokenNotValidError as error:
            if error.guessed:
                self._count_wrong_token(client)
            raise

    def _count_wrong_token(self, client: str | None) -> None:
        try:
            self._count_guess(client)
        except GuessingError as slowed:
            raise LimitedError(str(slowed), code="too_many_wrong_tokens", retry_after=slowed.wait) from None

    async def _send_error(self, exchange: Exchange, error: GatewayError, send: Send) -> None:
        """Once an answer has begun there is no place for another one."""
        if exchange.first_byte is None:
            exchange.status = error.status
            body = error_body(error, exchange.path, exchange.request_id)
            fields = [field for field in error.headers() if field[0] != b"content-length"]
            fields += [(b"content-length", b"%d" % len(body))]
            fields += own_fields(exchange.request_id, exchange.client_request_id) + self._extra
            if speaks_anthropic(exchange.path):
                fields.append((b"request-id", exchange.request_id.encode()))
            try:
                await self._send_whole(send, error.status, fields, body)
            except ClientGoneError:
                _note_gone(exchange)

    async def _send_whole(self, send: Send, status: int, fields: Fields, body: bytes) -> None:
        """A client that does not read it does not keep the replica from stopping."""
        within = LAST_SEND_TIMEOUT if self._stopped else STALLED_AFTER
        await send_whole(send, status, fields, body, deadlines=self._bodies, within=within)

    async def _read_body(self, receive: Receive, incoming: Incoming, share: Share) -> bytes:
        try:
            return await read_body(receive, self._bodies, share, length=incoming.length, limit=self._largest_body)
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

    async def _pass_on(
        self,
        exchange: Exchange,
        profile: Profile,
        endpoint: Endpoint,
        outgoing: Outgoing,
        watch: Watch,
        send: Send,
    ) -> None:
        answer: Answer | None = None
        relay: Relay | None = None
        try:
            async with watch:
                try:
                    routes = only_route(profile.backends) or await self._routes(
                        profile, endpoint, exchange, outgoing.body
                    )
                    answer = await self._dispatcher.first_answer(exchange, routes, outgoing)
                    tap = UsageTap(endpoint, hide=answer.asked_for_usage, request=outgoing.body)
                    relay = Relay(exchange, answer, send, tap=tap, deadlines=self._deadlines, extra=self._extra)
                    await relay.run()
                finally:
                    if answer is not None:
                        answer.close()
        except (GatewayError, ClientGoneError) as reason:
            if exchange.first_byte is None and exchange.backend is not None and isinstance(reason, _UNANSWERED):
                UsageTap(endpoint, request=outgoing.body).settle(exchange, whole=False)
            if relay is not None and isinstance(reason, GatewayError):
                await relay.break_off(reason)
            raise

    async def _routes(self, profile: Profile, endpoint: Endpoint, exchange: Exchange, body: bytes) -> Sequence[Route]:
        """The ways to an answer, in the order in which they are asked."""
        model = exchange.model
        in_use: Sequence[Backend] = profile.backends_in_use
        if endpoint.kind is Kind.STATEFUL:
            backends: Sequence[Backend] = profile.backends[:1]
        elif not in_use:
            raise BusyError("Every backend of this key is set aside by an operator.", code="upstream_unavailable")
        elif model is None:
            backends = in_use
            if endpoint.takes_body and profile.restricts_models:
                backends = [backend for backend in backends if not backend.models]
                if not backends:
                    raise BadRequestError("The request has to name a model.", code="model_required", param="model")
        else:
            backends = await self._models.serving(in_use, model)
        routes = routes_to(backends, model)
        if not routes and len(in_use) < len(profile.backends):
            words = f"No backend of this key that is in use has the model {model!r}, and others are set aside."
            raise BusyError(words, code="upstream_unavailable")
        if not routes:
            raise NoSuchModelError(f"No backend of this key has the model {model!r}.", param="model")
        return arrange(
            routes,
            profile.routing,
            load=self._dispatcher.load,
            stick_to=lambda: exchange.end_user.encode() if exchange.end_user else beginning(body),
        )

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


def _note_gone(exchange: Exchange) -> None:
    exchange.status, exchange.outcome = CLIENT_GONE_STATUS, Outcome.CLIENT_GONE


def _note(exchange: Exchange, error: GatewayError) -> None:
    if exchange.outcome is not Outcome.OK:  # the backend has told in its stream what failed
        return
    exchange.error = error.detail or str(error)
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
