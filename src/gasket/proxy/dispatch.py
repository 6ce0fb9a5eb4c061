"""Finds the backend that answers: in the profile's order, past those that cannot, once past one that fails."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple
from weakref import WeakSet

from gasket.backends.breaker import BackendAdmission, Breakers, SetAside
from gasket.proxy.access import Backend
from gasket.proxy.answer import SIGNS_OF_FAILURE, Answer, Places, explain, judge
from gasket.proxy.bodies import replace_model
from gasket.proxy.errors import BusyError, UpstreamFailedError, stand_in_body
from gasket.proxy.exchange import Exchange
from gasket.proxy.headers import accepts
from gasket.proxy.routing import Route
from gasket.proxy.usage_refusals import UsageRefusals
from gasket.server.errors import GatewayError
from gasket.upstream.client import Response, UpstreamClient, WholeResponse
from gasket.upstream.connection import Fields
from gasket.upstream.failures import BackendDeniedError, NameNotResolvedError, UpstreamError

log = logging.getLogger("gasket.gateway")

_NOT_FOUND = 404
_RATE_LIMITED = 429
_WORTH_ANOTHER_BACKEND = SIGNS_OF_FAILURE | {_RATE_LIMITED}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# A backend that does not know `stream_options` says so with any of 400 to 501; the two are about the credential and its
# limits.
_REFUSES_OPTIONS = frozenset(range(400, 502)) - {401, _RATE_LIMITED}
_OF_THE_BODY = frozenset({b"content-encoding", b"content-length", b"content-type", b"etag"})
_WITHOUT_CONTENT = frozenset({204, 304})
_NO_CONNECTION = frozenset({"upstream_unreachable", "backend_denied"})
_TRIES = 2
_NO_FAULT_OF_ITS = (NameNotResolvedError, BackendDeniedError)
"""They set no backend aside. So they use up no try: two such backends would hide the next one for ever."""


class Outgoing(NamedTuple):
    """A request to any backend. `target` is what follows `/v1`, with the query."""

    target: str
    fields: Fields
    body: bytes
    asking: bytes | None = None
    """The body that also asks for the usage of its stream, where the client's does not."""
    stateful: bool = False
    """It is about what one backend keeps: another cannot answer it, and any answer is passed on as it is."""
    content_type: bytes = b""
    accepted_codings: bytes = b""
    """The client's Accept-Encoding."""

    def for_model(self, model: str | None) -> Outgoing:
        """The same for the model under this name; None: under the client's."""
        if model is None:
            return self
        body = replace_model(self.body, self.content_type, model)
        asking = None if self.asking is None else replace_model(self.asking, self.content_type, model)
        return self._replace(body=body, asking=asking)


class Dispatcher:
    """Sends requests to backends."""

    def __init__(self, client: UpstreamClient, breakers: Breakers) -> None:
        self._client = client
        self._breakers = breakers
        self._places = Places()
        self._usage_refusals = UsageRefusals()
        self._told_of_path: WeakSet[Backend] = WeakSet()

    @property
    def pseudonym(self) -> bytes:
        """The name of Gasket in the `Via` field of requests to backends."""
        return self._client.pseudonym

    def load(self, backend: Backend) -> int:
        """How many requests of this replica the backend has at the moment."""
        return self._places.taken(backend)

    async def first_answer(self, exchange: Exchange, routes: Sequence[Route], request: Outgoing) -> Answer:
        """The answer of the first route that has one; a second one is tried if that one fails. If its backend cannot be
        connected to, the second one is another backend's. One without an address that it may have is passed over.

        If both fail, the client gets the second backend's own answer, if it had one, else the first one's: that is kept
        meanwhile, without its backend's place.

        Raises:
            UpstreamFailedError, UpstreamTimeoutError: no backend answered.
            BusyError: none could be tried.
        """
        refused: GatewayError | None = None
        spare: Answer | None = None
        unreachable: set[int] = set()
        asked, tries_left = 0, 1 if request.stateful else _TRIES
        for route in routes:
            if not tries_left:
                break
            backend = route.backend
            if backend.id in unreachable:
                continue
            model = route.model or exchange.model
            named = request.for_model(route.model)
            admission = self._enter(backend, model)
            if isinstance(admission, GatewayError):
                refused = refused or admission
                continue
            exchange.backend, exchange.retries = backend, asked
            asked += 1
            tries_left -= 1
            try:
                answer = await self._ask(exchange, backend, model, admission, named)
            except GatewayError as error:
                refused = error
                if error.code in _NO_CONNECTION:
                    unreachable.add(backend.id)
                if isinstance(error.__cause__, _NO_FAULT_OF_ITS) and not request.stateful:
                    tries_left += 1
                continue
            status = answer.response.status
            if status not in _WORTH_ANOTHER_BACKEND or not tries_left or route is routes[-1]:
                return answer
            if await answer.keep():
                spare = answer
            else:
                refused = UpstreamFailedError(f"Backend {backend.name!r} answered {status}.")
        if spare is not None:
            exchange.backend = spare.backend
            return spare
        raise refused or BusyError("No backend can take this request now.", code="upstream_unavailable")

    def _enter(self, backend: Backend, model: str | None) -> BackendAdmission | GatewayError:
        """Take one of the backend's places, or return the error that says why the request cannot have one."""
        if backend.set_aside:
            return BusyError(f"Backend {backend.name!r} is set aside by an operator.", code="upstream_unavailable")
        if backend.credential_unreadable:
            words = f"What is stored for backend {backend.name!r} cannot be decrypted"
            return UpstreamFailedError(
                f"{words}; an administrator has to set it again.",
                detail=f"{words} with GASKET_SECRET_KEY: set its credential, headers, proxy and certificate again.",
            )
        if not self._places.take(backend):
            return BusyError(f"Backend {backend.name!r} has as many requests as it may have at once.")
        admission = self._breakers.of(backend.id, backend.name).admit(model)
        if isinstance(admission, SetAside):
            self._places.give_back(backend)
            return BusyError(
                f"{admission.subject} has failed repeatedly and is set aside for a moment.",
                code="upstream_unavailable",
                retry_after=admission.retry_after,
            )
        return admission

    async def _ask(
        self, exchange: Exchange, backend: Backend, model: str | None, admission: BackendAdmission, request: Outgoing
    ) -> Answer:
        """Send the request, and ask for the usage of its stream if wanted. If the backend refuses that, send it again
        as the client wrote it.

        Raises:
            UpstreamFailedError, UpstreamTimeoutError: there is no answer, or it is an error with the status 200.
        """
        if request.asking is None or backend in self._usage_refusals:
            return await self._ask_once(exchange, backend, admission, request, request.body)
        try:
            answer = await self._ask_once(exchange, backend, admission, request, request.asking)
            answer.asked_for_usage = True
            if answer.response.status not in _REFUSES_OPTIONS:
                return answer
            answer.close()
        except _ErrorInSuccessError:
            pass
        again = self._enter(backend, model)
        if isinstance(again, GatewayError):
            raise again
        answer = await self._ask_once(exchange, backend, again, request, request.body)
        if answer.response.status < 400:
            self._usage_refusals.add(backend)
            log.info("backend %r does not know stream_options: the usage of its streams is estimated", backend.name)
        return answer

    async def _ask_once(
        self, exchange: Exchange, backend: Backend, admission: BackendAdmission, request: Outgoing, body: bytes
    ) -> Answer:
        try:
            answer = await self._send(exchange, backend, admission, request, body)
            if request.stateful or not 200 <= answer.response.status < 300:
                return answer
            error = await answer.take_for_failure()
        except UpstreamError as broken:
            exchange.note_failure(backend, broken.kind)
            raise explain(broken, backend) from broken
        if error is None:
            return answer
        exchange.note_failure(backend, "error_in_success")
        raise _ErrorInSuccessError(
            f"Backend {backend.name!r} answered {answer.response.status} with an error: {error.message[:1000]}"
        )

    def _tell_of_path(self, backend: Backend, path: str) -> None:
        """Log it once for each backend, until that is changed: a client can cause it with every request."""
        if backend not in self._told_of_path:
            self._told_of_path.add(backend)
            log.warning(
                "backend %r has no %s (404), and its base_url has no path: most servers want /v1 at its end; "
                "POST /api/backends/%d/test tells which form works",
                backend.name,
                path,
                backend.id,
            )

    async def _send(
        self, exchange: Exchange, backend: Backend, admission: BackendAdmission, request: Outgoing, body: bytes
    ) -> Answer:
        verdict = admission.abandoned  # the client left, or the replica stops
        response: Response | None = None
        passed_on = False
        try:
            response = await self._client.send(
                exchange.method,
                backend.address,
                backend.address.target(request.target),
                fields=backend.fields_with(request.fields),
                body=body,
                timeouts=backend.timeouts,
                route=backend.route,
            )
            if response.status in _REDIRECTS:
                raise _redirected(exchange, backend, response)
            if response.codings and (unread := _unreadable(response, request.accepted_codings)):
                if response.status < 400:
                    raise _encoded(exchange, backend, response, unread)
                response = _without_its_body(exchange, backend, response, unread)
            verdict = admission.failed if response.status in SIGNS_OF_FAILURE else admission.answered
            if response.status == _NOT_FOUND and not backend.address.prefix:
                self._tell_of_path(backend, exchange.path)
            if response.status >= 500 or response.status == _RATE_LIMITED:
                exchange.note_failure(backend, "rate_limited" if response.status == _RATE_LIMITED else "server_error")
            passed_on = True
            return Answer(backend, response, admission, self._places)
        except UpstreamError as error:
            verdict = partial(judge, admission, error)
            raise
        finally:
            verdict()
            if not passed_on:
                self._places.give_back(backend)
                if response is not None:
                    response.close()


class _ErrorInSuccessError(UpstreamFailedError):
    """The backend answered 200 with an error."""


def _redirected(exchange: Exchange, backend: Backend, response: Response) -> GatewayError:
    """The log has the target, and the client's error has not: it may be an internal URL, or another server to which a
    client would send its key.
    """
    exchange.note_failure(backend, "redirected")
    log.warning(
        "backend %r sends %s elsewhere (%d, to %r): set its base_url to where it leads",
        backend.name,
        exchange.path,
        response.status,
        response.field(b"location").decode("latin-1").partition("?")[0][:300],
    )
    return UpstreamFailedError(f"Backend {backend.name!r} answered with a redirect.", code="upstream_redirected")


def _unreadable(response: Response, accepted_codings: bytes) -> bytes | None:
    """A content coding of the answer that neither Gasket nor the client can decode."""
    if response.status in _WITHOUT_CONTENT:
        return None
    return next((coding for coding in response.codings if not accepts(accepted_codings, coding)), None)


def _without_its_body(exchange: Exchange, backend: Backend, response: Response, coding: bytes) -> Response:
    """An error whose words nobody can read keeps its status and its fields, which say when to try again."""
    name = coding[:30].decode("latin-1")
    message = (
        f"Backend {backend.name!r} answered {response.status}. What it says is in the Content-Encoding {name!r}, which "
        "the request's Accept-Encoding does not allow."
    )
    body = stand_in_body(message, response.status, exchange.path, exchange.request_id)
    kept = [field for field in response.fields if field[0] not in _OF_THE_BODY]
    response.close()
    own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return WholeResponse(response.status, kept + own, body)


def _encoded(exchange: Exchange, backend: Backend, response: Response, coding: bytes) -> GatewayError:
    exchange.note_failure(backend, "unreadable")
    name = coding[:30].decode("latin-1")
    return UpstreamFailedError(
        f"Backend {backend.name!r} answered {response.status} with the Content-Encoding {name!r}. Gasket asked for "
        "none, and the request's Accept-Encoding does not allow it: allow it there, or turn it off in the backend."
    )
