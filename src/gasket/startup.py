"""What is true before the first request: logs, secrets, a database that runs; and how a refusal is told."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from cryptography.fernet import Fernet
from litestar import Litestar
from litestar.datastructures.secret_values import SecretBytes
from litestar.enums import ScopeType
from litestar.types import LifeSpanReceive, LifeSpanScope, LifeSpanSend, Receive, Scope, Send
from litestar.types.asgi_types import LifeSpanSendMessage

from gasket import logs
from gasket.access.authentication import Authenticator, origin_of_request
from gasket.access.sign_in_controller import PATH as SIGN_IN_PATH
from gasket.backends.models import key_ring
from gasket.cors import CorsOrigins
from gasket.embedded import read_or_make_secret
from gasket.errors import GasketError, SettingsError
from gasket.forwarded import TrustedProxies
from gasket.http import API_PREFIX
from gasket.installation import Installation
from gasket.metrics.exposition import PATH as METRICS_PATH
from gasket.migrator.errors import MigratorError
from gasket.origin import acting
from gasket.postgres.tracebacks import format_exception
from gasket.proxy.misplaced import answer_misplaced, find_mistake
from gasket.server.connections import Connections
from gasket.ui.assets import PREFIX as ASSETS_PREFIX
from gasket.ui.assets import answer_asset
from gasket.ui.door import PREFIX as PAGES_PREFIX
from gasket.ui.door import is_for_people
from gasket.unready import ANSWERED

log = logging.getLogger("gasket")

ADMIN_TOKEN_FILE = "admin-token"
DOCUMENT_PREFIX = "/schema"
GATEWAY_PREFIX = "/v1/"
_NOT_PUBLIC = (API_PREFIX, METRICS_PATH, PAGES_PREFIX, DOCUMENT_PREFIX, SIGN_IN_PATH)
HTTP_PROTOCOL = "gasket.server.protocol:Connection"
"""As uvicorn's option `--http` wants it."""
SECRET_KEY_FILE = "secret-key"
_ROOMY = 20
"""Characters from which on a token raises no warning."""


class Gasket(Litestar):
    """Litestar, with `/v1` beside it, which says why it does not start, or ends at once, in one sentence."""

    connections: Connections
    trusted_proxies = TrustedProxies()
    cors_origins = CorsOrigins()
    gateway: Callable[[Any, Any, Any], Awaitable[None]]
    measure: Callable[[Any, Any, Any, Any], Awaitable[None]]
    """Given an application and what that is given; passes the request on."""
    unready: Callable[[Any, Any, Any], Awaitable[None]]
    """Answers while it is `starting`, to all but the paths of `ANSWERED`."""
    pages: Callable[[Any, Any, Any], Awaitable[None]]
    """Answers what is for people."""
    starting = False
    """Set by a server that listens already; the end of the start unsets it."""

    async def __call__(
        self, scope: Scope | LifeSpanScope, receive: Receive | LifeSpanReceive, send: Send | LifeSpanSend
    ) -> None:
        """The ASGI entry point. Requests below `/v1` do not pay for a router and middleware that have nothing to do."""
        if scope["type"] != "lifespan":
            if self.trusted_proxies:
                self._find_client(scope)
            if self.cors_origins and scope["type"] == ScopeType.HTTP:
                await self.cors_origins.call(self._route, scope, receive, send)
            else:
                await self._route(scope, receive, send)
            return
        if isinstance(state := scope.get("state"), dict):  # ASGI lets a server have none
            self.connections.put_into(state)
        forward: Any = send

        async def in_one_sentence(message: LifeSpanSendMessage) -> None:
            if message["type"] == "lifespan.startup.failed" and (refusal := _refusal(sys.exception())):
                message["message"] = f"Gasket does not start. {refusal}"
            elif message["type"] == "lifespan.startup.failed" and (error := sys.exception()):
                message["message"] = format_exception(error)  # Litestar's has the values of rows
            elif message["type"] == "lifespan.startup.complete":
                self.starting = False
            elif message["type"] == "lifespan.shutdown.failed" and isinstance(sys.exception(), asyncio.CancelledError):
                message["message"] = "Told to stop a second time: Gasket ends without waiting for what is under way."
            await forward(message)

        application: Any = super().__call__
        await application(scope, receive, in_one_sentence)

    async def _route(self, scope: Any, receive: Any, send: Any) -> None:
        http, path = scope["type"] == ScopeType.HTTP, scope["path"]
        if http and path.startswith(ASSETS_PREFIX):
            await answer_asset(scope, send)
        elif self.starting and http and path.rstrip("/") not in ANSWERED:
            await self.unready(scope, receive, send)
        elif http and path.startswith(GATEWAY_PREFIX):
            await self.gateway(scope, receive, send)
        elif http and (mistake := find_mistake(path)):
            await answer_misplaced(mistake, scope, send)
        else:
            if http and path.startswith(_NOT_PUBLIC):
                await self.state.authenticator.put_identity(scope)
            application: Any = self.pages if http and is_for_people(scope) else super().__call__
            with acting(origin_of_request(scope) if http else None):
                await self.measure(application, scope, receive, send)

    def _find_client(self, scope: Scope) -> None:
        """Let the scope's client be the one that trusted proxies name; its port is not known then."""
        address = scope.get("client")
        peer = address[0] if address else None
        client = self.trusted_proxies.client(peer, scope["headers"])
        if client is not None and client != peer:
            scope["client"] = (client, 0)


class Startup:
    """The handlers around a server's life, in the order in which they run. Command lines use `database` alone."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._settings = installation.settings
        self._embedded = installation.embedded

    @contextmanager
    def database(self) -> Iterator[None]:
        """For a command line: the database and the keys to its credentials, for as long as the command runs."""
        with self._installation.running_database():
            if self._embedded:
                self._load_secret_keys()
            yield

    def install(self, app: Litestar) -> None:
        """Put the handlers around those that the plugins have registered."""
        app.on_startup[:0] = [self.configure_logging, self.prepare_secrets, self.start_database]
        app.on_startup += [self.announce, self.invite]
        app.on_shutdown += [self.stop_database, logs.leave]

    def configure_logging(self) -> None:
        """Write messages to standard error, unless logging is configured already."""
        logs.configure(self._settings.log_format)

    async def prepare_secrets(self, app: Litestar) -> None:
        """Demand what only serving needs, before the database is touched; embedded, make it once.

        Raises:
            SettingsError: GASKET_ADMIN_TOKEN or GASKET_SECRET_KEY is not set.
        """
        self.require_secrets()
        tokens = self._settings.admin_tokens
        if self._embedded:
            await asyncio.to_thread(self._load_secret_keys)
            if not tokens:
                path = self._settings.data_dir / ADMIN_TOKEN_FILE
                tokens = (await asyncio.to_thread(read_or_make_secret, path, lambda: secrets.token_urlsafe(32)),)
        if any(len(token) < _ROOMY for token in tokens):
            log.warning(
                "GASKET_ADMIN_TOKEN has a token of less than %d characters; `openssl rand -hex 24` makes a longer one",
                _ROOMY,
            )
        authenticator: Authenticator = app.state.authenticator
        authenticator.root_tokens = tuple(SecretBytes(token.encode()) for token in tokens)

    def require_secrets(self) -> None:
        """Demand what only serving needs; embedded, its secrets are made.

        Raises:
            SettingsError: GASKET_ADMIN_TOKEN or GASKET_SECRET_KEY is not set, or half of what the sign-in needs is.
        """
        if (self._settings.oidc_issuer is None) != (self._settings.oidc_client_id is None):
            raise SettingsError("GASKET_OIDC_ISSUER and GASKET_OIDC_CLIENT_ID belong together; set both, or neither.")
        if self._settings.oidc_trusted_issuers and not (self._settings.oidc_audience or self._settings.oidc_client_id):
            raise SettingsError(
                "GASKET_OIDC_TRUSTED_ISSUERS needs GASKET_OIDC_AUDIENCE: without it nobody can tell whether a token is "
                "meant for Gasket."
            )
        if self._embedded:
            return
        if not self._settings.admin_tokens:
            raise SettingsError(
                "GASKET_ADMIN_TOKEN is not set; it is the bearer token for /api: one or more, comma-separated, each "
                "of at least 16 characters (`openssl rand -hex 24` makes one)."
            )
        if not self._settings.secret_keys:
            raise SettingsError(
                "GASKET_SECRET_KEY is not set; stored credentials are encrypted with it: one or more Fernet keys, "
                "comma-separated (`openssl rand -base64 32 | tr '+/' '-_'` makes one)."
            )

    async def start_database(self) -> None:
        """Start the embedded server, or join the one that runs."""
        if self._embedded:
            await asyncio.to_thread(self._embedded.start)

    async def announce(self) -> None:
        """Log where the API, its documentation and the admin token are."""
        base = _listening_on()
        log.info("Gasket %s is ready: API at %s/api, documentation at %s/schema", self._settings.release, base, base)
        if self._embedded and not self._settings.admin_tokens:
            log.info("the admin token (Authorization: Bearer ...) is in %s", self._settings.data_dir / ADMIN_TOKEN_FILE)
        if HTTP_PROTOCOL.partition(":")[0] not in sys.modules:
            log.warning(
                "uvicorn uses its own HTTP parser, without limits for request heads; start it with --http %s",
                HTTP_PROTOCOL,
            )

    async def invite(self, app: Litestar) -> None:
        """Log a link with which whoever started an embedded installation signs in without the admin token."""
        if self._embedded:
            code = app.state.one_time_code.make()
            log.info("sign in once, within ten minutes, at %s/ui/sign-in?code=%s", _listening_on(), code)

    async def stop_database(self) -> None:
        """Leave the embedded server; the last one out stops it. Harmless after a failed start."""
        if self._embedded:
            await asyncio.to_thread(self._embedded.stop)

    def _load_secret_keys(self) -> None:
        keys = self._settings.secret_keys
        if not keys:
            path = self._settings.data_dir / SECRET_KEY_FILE
            keys = (read_or_make_secret(path, lambda: Fernet.generate_key().decode()),)
        key_ring.load(keys)


def _refusal(error: BaseException | None) -> GasketError | MigratorError | None:
    """What a handler raised on purpose; the task group of Litestar's event emitter hands it on in a group."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, GasketError | MigratorError) else None


def _listening_on() -> str:
    """`http://host:port` where Litestar's command line knows it; another server's start does not tell."""
    context = click.get_current_context(silent=True)
    options = {} if context is None else context.params
    if not {"host", "port"} <= options.keys() or options.get("uds") or options.get("fd") is not None:
        return ""
    tls = options.get("ssl_certfile") or options.get("create_self_signed_cert")
    return f"{'https' if tls else 'http'}://{options['host']}:{options['port']}"
