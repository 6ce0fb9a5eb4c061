"""Which backend has which models: each list is asked for when it is needed, and kept for a short time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from gasket.backends.probe import ModelListError, list_models
from gasket.proxy.access import Backend, Profile
from gasket.upstream.client import UpstreamClient

log = logging.getLogger("gasket.gateway")

_KEPT_FOR = 60.0
_TRY_AGAIN_AFTER = 10.0


class _List(NamedTuple):
    backend: Backend
    models: Mapping[str, msgspec.Raw] | None
    """By name, as the backend describes them; None: it cannot be had."""
    asked_at: float

    @property
    def fresh(self) -> bool:
        """Whether it is recent enough to be believed without a second look."""
        return time.monotonic() - self.asked_at < (_KEPT_FOR if self.models is not None else _TRY_AGAIN_AFTER)


class ModelLists:
    """The lists of all backends that this replica has had to do with."""

    def __init__(self, client: UpstreamClient) -> None:
        self._client = client
        self._lists: dict[int, _List] = {}
        self._asking: dict[int, asyncio.Task[_List]] = {}

    async def merged(self, profile: Profile) -> tuple[dict[str, msgspec.Raw], list[Backend]]:
        """The models that a key of the profile may use, and the backends that did not say what they have."""
        models: dict[str, msgspec.Raw] = {}
        silent = []
        for found in await self._of_all(profile.backends):
            if found.models is None:
                silent.append(found.backend)
            for name, model in (found.models or {}).items():
                if profile.allows(name):
                    models.setdefault(name, model)
        return models, silent

    async def serving(self, backends: Sequence[Backend], model: str) -> list[Backend]:
        """Those that have the model, then those that may; empty: each is known not to.

        With one backend there is nothing to choose, and it is not asked: it answers for itself.
        """
        if len(backends) < 2:
            return list(backends)
        lists = await self._of_all(backends)
        if not any(found.models is None or model in found.models for found in lists):
            lists = await self._of_all(backends, again=True)  # it may be newer than what we know
        known = [found.backend for found in lists if found.models is not None and model in found.models]
        return known + [found.backend for found in lists if found.models is None]

    async def _of_all(self, backends: Sequence[Backend], *, again: bool = False) -> list[_List]:
        return list(await asyncio.gather(*(self._of(backend, again=again) for backend in backends)))

    async def _of(self, backend: Backend, *, again: bool) -> _List:
        known = self._lists.get(backend.id)
        current = known is not None and known.backend is backend
        if known is not None and current and (known.fresh if not again else time.monotonic() - known.asked_at < 1.0):
            return known
        asking = self._asking.get(backend.id)
        if asking is None:
            asking = self._asking[backend.id] = asyncio.create_task(self._ask(backend))
            asking.add_done_callback(lambda _done: self._asking.pop(backend.id, None))
        if known is not None and current and known.models is not None and not again:
            return known  # stale, and being renewed: nobody waits for that
        return await asyncio.shield(asking)

    async def _ask(self, backend: Backend) -> _List:
        try:
            models = await list_models(
                self._client,
                backend.base_url,
                backend.credential,
                connect_timeout=backend.connect_timeout,
                skip_tls_verify=backend.skip_tls_verify,
            )
        except ModelListError as error:
            log.info("backend %r did not say which models it has: it %s", backend.name, error)
            models = None
        found = self._lists[backend.id] = _List(backend, models, time.monotonic())
        return found
