"""Which backend has which models: each list is asked for when it is needed, and kept for a short time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from gasket.backends.probe import ModelListError, list_models
from gasket.proxy.access import Backend, Profile
from gasket.upstream.client import UpstreamClient

log = logging.getLogger("gasket.gateway")

_KEPT_FOR = 60.0
_TRY_AGAIN_AFTER = 10.0
_ASKED_AGAIN_AFTER = 1.0
_LIST_TIMEOUT = 2.0
"""Seconds for which a request waits for a list. Without it, the backend counts as one that may have the model."""


class _List(NamedTuple):
    backend: Backend
    models: Mapping[str, msgspec.Raw] | None
    """By name, as the backend describes them; None if the list could not be read."""
    asked_at: float

    @property
    def fresh(self) -> bool:
        """Whether it is recent enough to be believed without a second look."""
        return time.monotonic() - self.asked_at < (_KEPT_FOR if self.models is not None else _TRY_AGAIN_AFTER)


def _stored(backend: Backend) -> _List:
    """The list of a backend that has one in the database: it is not asked."""
    model = {"object": "model", "created": 0, "owned_by": backend.name}
    models = {name: msgspec.Raw(msgspec.json.encode({"id": name, **model})) for name in backend.served}
    return _List(backend, models, float("inf"))


class _Asking(NamedTuple):
    backend: Backend
    task: asyncio.Task[_List]
    since: float


class ModelLists:
    """The lists of all backends that this replica has had to do with."""

    def __init__(self, client: UpstreamClient) -> None:
        self._client = client
        self._lists: dict[int, _List] = {}
        self._asking: dict[int, _Asking] = {}

    async def merged(self, profile: Profile) -> tuple[dict[str, msgspec.Raw], list[Backend]]:
        """The models that a key of the profile may use, and the backends that did not say what they have."""
        models: dict[str, msgspec.Raw] = {}
        silent = [backend for backend in profile.backends if backend.set_aside]
        for found in await asyncio.gather(*map(self._of, profile.backends_in_use)):
            if found.models is None:
                silent.append(found.backend)
            for name, model in (found.models or {}).items():
                if profile.allows(name):
                    models.setdefault(name, model)
        return models, silent

    async def serving(self, backends: Sequence[Backend], model: str) -> Sequence[Backend]:
        """The backends that have the model or may have it, in their order. Empty if all are known not to have it.

        A single backend is not asked for its list: it answers for itself. A missing list is waited for only while no
        backend before it has the model, and only for a short time. Without a list, a backend may have the model, and
        keeps its place.
        """
        if len(backends) < 2:
            return backends
        serving = await self._serving(backends, model)
        if not serving:  # it may be newer than what we know
            latest = time.monotonic() - _ASKED_AGAIN_AFTER
            asking = [self._ask_again(backend) for backend in backends if self._lists[backend.id].asked_at < latest]
            for each in asking:
                await self._in_time(each)
            serving = await self._serving(backends, model)
        return serving

    async def _serving(self, backends: Sequence[Backend], model: str) -> list[Backend]:
        for backend in backends:
            if self._recall(backend) is None:
                self._ask_again(backend)
        serving = []
        known = False
        for backend in backends:
            found = self._recall(backend)
            if found is None and not known:
                found = await self._in_time(self._ask_again(backend))
            if found is None or found.models is None:
                serving.append(backend)
            elif model in found.models:
                serving.append(backend)
                known = True
        return serving

    async def _in_time(self, asking: _Asking) -> _List | None:
        """The list, if it comes in time. The time counts from the first request for it, which others may have made."""
        done, _ = await asyncio.wait([asking.task], timeout=max(0.0, asking.since + _LIST_TIMEOUT - time.monotonic()))
        return done.pop().result() if done else None

    def _recall(self, backend: Backend) -> _List | None:
        """The stored list of this backend, if its settings are the same. An old list is renewed in the background."""
        found = self._lists.get(backend.id)
        if found is None or found.backend is not backend:
            if not backend.models:
                return None
            found = self._lists[backend.id] = _stored(backend)
        if not found.fresh:
            self._ask_again(backend)
        return found

    async def _of(self, backend: Backend) -> _List:
        """Like `_recall`, but a backend without a list is asked again."""
        found = self._recall(backend)
        if found is None or (found.models is None and not found.fresh):
            return await asyncio.shield(self._ask_again(backend).task)
        return found

    def _ask_again(self, backend: Backend) -> _Asking:
        asking = self._asking.get(backend.id)
        if asking is None or asking.backend is not backend:
            asking = _Asking(backend, asyncio.create_task(self._ask(backend)), time.monotonic())
            self._asking[backend.id] = asking
            asking.task.add_done_callback(partial(self._asked, asking))
        return asking

    def _asked(self, asking: _Asking, _done: asyncio.Task[_List]) -> None:
        if self._asking.get(asking.backend.id) is asking:
            del self._asking[asking.backend.id]

    async def _ask(self, backend: Backend) -> _List:
        try:
            models = await list_models(self._client, backend.model_source)
        except ModelListError as error:
            log.info("backend %r did not say which models it has: it %s", backend.name, error)
            models = None
        found = self._lists[backend.id] = _List(backend, models, time.monotonic())
        return found
