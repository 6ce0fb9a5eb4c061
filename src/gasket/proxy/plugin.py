"""The gateway as a Litestar plugin: the parts of `/v1`, put together, and their life."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Sequence

from litestar import Litestar
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin

from gasket.access.bearers import Bearers
from gasket.backends.breaker import Breakers
from gasket.db import PoolUse
from gasket.limits.limiter import Limiter
from gasket.limits.store import LimitStore
from gasket.postgres.sessions import application_name
from gasket.proxy.access import Access
from gasket.proxy.access_log import AccessLog
from gasket.proxy.directory import KeyDirectory, TokenDirectory
from gasket.proxy.dispatch import Dispatcher
from gasket.proxy.gateway import Gateway, Observer
from gasket.proxy.listener import ChangeListener
from gasket.proxy.lookup import KeyLookup
from gasket.proxy.model_lists import ModelLists
from gasket.proxy.token_lookup import TokenLookup
from gasket.proxy.usage_recorder import UsageRecorder
from gasket.settings import Settings
from gasket.upstream.client import UpstreamClient
from gasket.usage.retention import Retention
from gasket.usage.summing import DaySums
from gasket.usage.writer import UsageWriter

_BACKGROUND_AFTER = 60.0
"""Seconds after which a replica that gets no requests does its share of the background work."""


class GatewayPlugin(InitPlugin):
    """Makes `gateway`, starts and stops it; the application mounts it at `/v1`.

    URLs are libpq URLs; `listener_url` leads around a transaction pooler where that is needed. `bearers` checks signed
    tokens, and `count_guess` hears of the addresses from which wrong ones come.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        database_url: str,
        listener_url: str,
        client: UpstreamClient,
        breakers: Breakers,
        decrypt: Callable[[str], str | None],
        bearers: Bearers | None = None,
        count_guess: Callable[[str | None], object] = lambda _address: None,
        observers: Sequence[Observer] = (),
    ) -> None:
        def name(activity: str) -> str:
            return application_name(activity, settings.release, settings.database_schema)

        self._lookup = KeyLookup(
            database_url,
            schema=settings.database_schema,
            application_name=name("gasket-keys"),
            decrypt=decrypt,
        )
        self._directory = KeyDirectory(self._look_up, ttl=settings.key_cache_ttl)
        self._tokens: TokenDirectory | None = None
        if bearers is not None:
            self._token_lookup = TokenLookup(bearers, self._lookup, schema=settings.database_schema)
            self._tokens = TokenDirectory(self._look_up_token, ttl=settings.key_cache_ttl)
        self._listener = ChangeListener(
            listener_url,
            schema=settings.database_schema,
            application_name=name("gasket-listen"),
            directories=[self._directory, *([self._tokens] if self._tokens else [])],
        )
        self._limiter = Limiter(
            LimitStore(
                database_url,
                schema=settings.database_schema,
                application_name=name("gasket-limits"),
            )
        )
        self.usage = UsageWriter(
            database_url,
            schema=settings.database_schema,
            application_name=name("gasket-usage"),
            retention=Retention(settings.database_schema, days=settings.usage_retention_days),
            day_sums=DaySums(settings.database_schema),
        )
        self._access_log = AccessLog(settings.log_format)
        self._background: asyncio.TimerHandle | None = None
        self.gateway = Gateway(
            self._directory,
            Dispatcher(client, breakers),
            ModelLists(client),
            self._limiter,
            largest_body=settings.max_body_size,
            most_in_bodies=settings.max_bodies_size,
            most_requests=settings.max_requests,
            key_share=settings.key_share,
            observers=[self._access_log, UsageRecorder(self.usage), *observers],
            tokens=self._tokens,
            count_guess=count_guess,
        )

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Register the handlers."""
        app_config.on_startup.append(self._start)
        app_config.on_shutdown.append(self._stop)
        return app_config

    @property
    def directory(self) -> KeyDirectory:
        """The keys in memory."""
        return self._directory

    @property
    def lookups(self) -> PoolUse:
        """How the connections for looking up keys are used."""
        return self._lookup.use

    async def _start(self, _app: Litestar) -> None:
        self._access_log.configure()
        self._background = asyncio.get_running_loop().call_later(_BACKGROUND_AFTER, self.usage.start)
        _settle_memory()

    async def _look_up(self, digest: str) -> Access:
        """A replica listens from the first key on: until then there is nothing to forget, and a start only looks."""
        self._listener.start()
        return await self._lookup.find(digest)

    async def _look_up_token(self, token: bytes) -> Access:
        self._listener.start()
        return await self._token_lookup.find(token)

    async def _stop(self, _app: Litestar) -> None:
        if self._background is not None:
            self._background.cancel()
        self._access_log.flush()
        await self.usage.close()
        await self._limiter.close()
        await self._listener.stop()
        await self._lookup.close()


def _settle_memory() -> None:
    """Objects that exist after start-up stay: the garbage collector skips them, and runs less often.

    Full collections, which stop everything, are what the slowest of a hundred requests waited for. One here would take
    80 ms and find a few dozen objects.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
