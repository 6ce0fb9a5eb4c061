"""What this replica has seen of each backend since it started. For pages; `/metrics` has the same and more."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence

import msgspec

from gasket.proxy.exchange import Exchange

_MOST_BACKENDS = 1000
_MOST_DURATIONS = 500


class Figures(msgspec.Struct, frozen=True):
    """Of one backend: requests that ended there, failed tries by kind, and milliseconds until an answer began.

    The durations are of the newest 500 answers; None: there was none.
    """

    requests: int = 0
    errors: Mapping[str, int] = {}
    p50_ms: float | None = None
    p99_ms: float | None = None


class _Seen:
    __slots__ = ("durations", "errors", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = Counter[str]()
        self.durations = deque[float](maxlen=_MOST_DURATIONS)


class BackendFigures:
    """Told each request that has ended. The kinds of errors are those of `gasket_backend_errors_total`."""

    def __init__(self) -> None:
        self._seen: OrderedDict[int, _Seen] = OrderedDict()

    def __call__(self, exchange: Exchange) -> None:
        """Count it."""
        for backend, kind in exchange.failures:
            self._of(backend.id).errors[kind] += 1
        if exchange.backend is not None:
            seen = self._of(exchange.backend.id)
            seen.requests += 1
            if exchange.first_byte is not None:
                seen.durations.append(1000 * (exchange.first_byte - exchange.started))

    def of(self, backend_id: int) -> Figures:
        """The figures of any backend."""
        seen = self._seen.get(backend_id)
        if seen is None:
            return Figures()
        ordered = sorted(seen.durations)
        return Figures(seen.requests, dict(seen.errors), _share(ordered, 0.5), _share(ordered, 0.99))

    def _of(self, backend_id: int) -> _Seen:
        seen = self._seen.get(backend_id)
        if seen is None:
            seen = self._seen[backend_id] = _Seen()
            if len(self._seen) > _MOST_BACKENDS:  # other replicas delete backends, too
                self._seen.popitem(last=False)
        return seen


def _share(ordered: Sequence[float], share: float) -> float | None:
    """The value that this share of all is not above (nearest rank)."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)] if ordered else None
