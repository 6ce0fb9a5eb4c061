"""Finds the backend that answers: in the profile's order, past those that cannot, once past one that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from gasket.backends.breaker import Admission, Breakers
from gasket.proxy.access import Backend
from gasket.proxy.errors import BusyError, GatewayError, UpstreamFailedError, UpstreamTimeoutError
from gasket.proxy.exchange import Exchange
from gasket.upstream.client import Response, UpstreamClient, WholeResponse
from gasket.upstream.connection import Fields
from gasket.upstream.failures import AnswerTimeoutError, NotConnectedError, UpstreamError

_RATE_LIMITED = 429
_WORTH_ANOTHER_BACKEND = frozenset({_RATE_LIMITED, 502, 503, 504})
_SIGNS_OF_FAILURE = frozenset({502, 503, 504})
_TRIES = 2
_LARGEST_SPARE = 64 * 1024
_SPARE_WITHIN = 1.0
"""Of an answer that is kept while another backend is asked: bytes of its body, and seconds for which that may take."""


class Answer:
    """A backend's answer that has begun. Close it in every case: it holds one of the backend's places, until `keep`."""

    __slots__ = ("_admission", "_closed", "_failed", "_places", "backend", "response")

    def __init__(self, backend: Backend, response: Response, admission: Admission, places: Places) -> None:
        self.backend = backend
        self.response = response
        self._admission = admission
        self._places = places
        self._failed = response.status in _SIGNS_OF_FAILURE
        self._closed = False

    def broke_off(self) -> None:
        """The backend did not finish it."""
        if not self._failed:
            self._failed = True
            self._admission.failed()

    async def keep(self) -> bool:
        """Have all of it here, and give connection and place back, in every case; whether it is small and at hand."""
        try:
            async with asyncio.timeout(_SPARE_WITHIN):
                body = await self.response.read(_LARGEST_SPARE)
        except UpstreamError:
            self.broke_off()
            return False
        except (TimeoutError, ValueError):
            return False
        finally:
            self.close()
        self.response = WholeResponse(self.response.status, self.response.fields, body)
        return True

    def close(self) -> None:
        """Let go of the connection: for reuse if the answer is complete, else for good."""
        if self._closed:
            return
        self._closed = True
        if self.response.at_end and not self._failed:
            self._admission.succeeded()
        self.response.close()
        self._places.give_back(self.backend)


class Places:
    """How many requests of this replica each backend has at the moment."""

    def __init__(self) -> None:
        self._taken: dict[int, int] = {}

    def take(self, backend: Backend) -> bool:
        """Whether there was room for one more."""
        taken = self._taken.get(backend.id, 0)
        if backend.max_concurrency is not None and taken >= backend.max_concurrency:
            return False
        self._taken[backend.id] = taken + 1
        return True

    def give_back(self, backend: Backend) -> None:
        """One request has ended."""
        left = self._taken[backend.id] - 1
        if left:
            self._taken[backend.id] = left
        else:
            del self._taken[backend.id]


class Dispatcher:
    """Sends requests to backends."""

    def __init__(self, client: UpstreamClient, breakers: Breakers) -> None:
        self._client = client
        self._breakers = breakers
        self._places = Places()

    async def first_answer(
        self,
        exchange: Exchange,
        backends: Sequence[Backend],
        *,
        target: str,
        fields: Fields,
        body_for: Callable[[Backend], bytes],
        may_fail_over: bool = True,
    ) -> Answer:
        """The answer of the first backend that has one; a second one is tried if that one fails.

        `target` is what follows `/v1`, with the query. If both fail, the client gets the second backend's own answer,
        if it had one, else the first one's: that is kept meanwhile, without its backend's place.

        Raises:
            UpstreamFailedError, UpstreamTimeoutError: no backend answered.
            BusyError: none could be tried.
        """
        refused: GatewayError | None = None
        spare: Answer | None = None
        tries, most = 0, _TRIES if may_fail_over else 1
        for backend in backends:
            if tries == most:
                break
            admission = self._enter(backend)
            if isinstance(admission, GatewayError):
                refused = refused or admission
                continue
            exchange.backend, exchange.retries = backend, tries
            tries += 1
            try:
                answer = await self._ask(exchange, backend, admission, target, fields, body_for(backend))
            except GatewayError as error:
                refused = error
                continue
            status = answer.response.status
            if status not in _WORTH_ANOTHER_BACKEND or tries == most or backend is backends[-1]:
                return answer
            if await answer.keep():
                spare = answer
            else:
                refused = UpstreamFailedError(f"Backend {backend.name!r} answered {status}, at too great length.")
        if spare is not None:
            exchange.backend = spare.backend
            return spare
        raise refused or BusyError("No backend can take this request now.", code="upstream_unavailable")

    def _enter(self, backend: Backend) -> Admission | GatewayError:
        """Take one of the backend's places; why not, if it cannot be had."""
        if backend.credential_unreadable:
            return UpstreamFailedError(
                f"The credential of backend {backend.name!r} cannot be opened with GASKET_SECRET_KEY; "
                "it has to be set again."
            )
        if not self._places.take(backend):
            return BusyError(f"Backend {backend.name!r} has as many requests as it may have at once.")
        breaker = self._breakers.of(backend.id, backend.name)
        admission = breaker.admit()
        if admission is None:
            self._places.give_back(backend)
            return BusyError(
                f"Backend {backend.name!r} has failed repeatedly and is set aside for a moment.",
                code="upstream_unavailable",
                retry_after=breaker.retry_after,
            )
        return admission

    async def _ask(
        self, exchange: Exchange, backend: Backend, admission: Admission, target: str, fields: Fields, body: bytes
    ) -> Answer:
        verdict = admission.abandoned  # the client left, or the replica stops
        response: Response | None = None
        try:
            response = await self._client.send(
                exchange.method,
                backend.address,
                backend.address.target(target),
                fields=fields + backend.own_fields,
                body=body,
                timeouts=backend.timeouts,
                skip_tls_verify=backend.skip_tls_verify,
            )
            verdict = admission.failed if response.status in _SIGNS_OF_FAILURE else admission.answered
            if response.status >= 500 or response.status == _RATE_LIMITED:
                exchange.note_failure(backend, "rate_limited" if response.status == _RATE_LIMITED else "server_error")
            return Answer(backend, response, admission, self._places)
        except UpstreamError as error:
            verdict = admission.failed
            exchange.note_failure(backend, error.kind)
            raise explain(error, backend) from error
        finally:
            verdict()
            if response is None:
                self._places.give_back(backend)


def explain(error: UpstreamError, backend: Backend) -> GatewayError:
    """What the client is told of it."""
    words = f"Backend {backend.name!r} {error}."
    match error:
        case NotConnectedError():
            return UpstreamFailedError(words, code="upstream_unreachable")
        case AnswerTimeoutError():
            return UpstreamTimeoutError(words)
    return UpstreamFailedError(words)
