"""A backend's answer, the place that it takes, and what a failure says about the backend."""

from __future__ import annotations

import asyncio

from gasket.backends.breaker import BackendAdmission
from gasket.proxy.access import Backend
from gasket.proxy.errors import UpstreamFailedError, UpstreamTimeoutError
from gasket.proxy.errors_in_success import ErrorInSuccess, find_error
from gasket.server.errors import GatewayError
from gasket.upstream.client import Response, WholeResponse
from gasket.upstream.failures import (
    AnswerTimeoutError,
    BackendDeniedError,
    NameNotResolvedError,
    NotConnectedError,
    UpstreamError,
)

# 52x and 530 are Cloudflare's for an origin that does not answer, 529 is Anthropic's for an overloaded API.
SIGNS_OF_FAILURE = frozenset({502, 503, 504, *range(520, 525), 529, 530})
_LARGEST_SPARE = 64 * 1024
_SPARE_WITHIN = 1.0
"""How much of an answer is kept while another backend is asked: bytes of its body, and seconds to read them."""


class Answer:
    """A backend's answer that has begun. Close it in every case: it holds one of the backend's places, until `keep`."""

    __slots__ = ("_admission", "_closed", "_failed", "_places", "asked_for_usage", "backend", "response")

    def __init__(self, backend: Backend, response: Response, admission: BackendAdmission, places: Places) -> None:
        self.backend = backend
        self.asked_for_usage = False
        self.response = response
        self._admission = admission
        self._places = places
        self._failed = response.status in SIGNS_OF_FAILURE
        self._closed = False

    def broke_off(self, error: UpstreamError) -> None:
        """The backend did not finish it."""
        if not self._failed:
            self._failed = True
            judge(self._admission, error)

    async def take_for_failure(self) -> ErrorInSuccess | None:
        """The error that it is although its status says 200. It is closed then."""
        try:
            error = await find_error(self.response)
        except BaseException as reason:
            if isinstance(reason, UpstreamError):
                self.broke_off(reason)
            self.close()
            raise
        if error is not None:
            self.note_error(error)
            self.close()
        return error

    def note_error(self, error: ErrorInSuccess) -> None:
        """Judge the backend by an error that it tells of with status 200. Only the first one counts."""
        if self._failed:
            return
        self._failed = True
        if error.fault_of_client:
            self._admission.succeeded()
        else:
            self._admission.failed()

    async def keep(self) -> bool:
        """Have all of it here, and give connection and place back, in every case; whether it is small and at hand."""
        try:
            async with asyncio.timeout(_SPARE_WITHIN):
                body = await self.response.read(_LARGEST_SPARE)
        except UpstreamError as error:
            self.broke_off(error)
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

    def taken(self, backend: Backend) -> int:
        """How many requests it has."""
        return self._taken.get(backend.id, 0)

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


def judge(admission: BackendAdmission, error: UpstreamError) -> None:
    """What a failure says about the backend: silence says nothing, for a model may think, and some faults are ours."""
    match error:
        case NameNotResolvedError() | BackendDeniedError() | AnswerTimeoutError():
            admission.abandoned()
        case NotConnectedError():
            admission.unreachable()
        case _:
            admission.failed()


def explain(error: UpstreamError, backend: Backend) -> GatewayError:
    """The error that the client gets for it. Where the backend is, and what is there, is for the log alone."""
    words = f"Backend {backend.name!r} {error.told or error}."
    detail = f"Backend {backend.name!r} {error}."
    match error:
        case BackendDeniedError():
            return UpstreamFailedError(words, code="backend_denied", detail=detail)
        case NotConnectedError():
            return UpstreamFailedError(words, code="upstream_unreachable", detail=detail)
        case AnswerTimeoutError():
            return UpstreamTimeoutError(words)
    return UpstreamFailedError(words)
