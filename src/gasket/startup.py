"""What is true before the first request: logs, secrets, a database that runs; and how a refusal is told."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import click
from cryptography.fernet import Fernet
from litestar import Litestar
from litestar.datastructures.secret_values import SecretBytes
from litestar.enums import ScopeType
from litestar.plugins import CLIPlugin
from litestar.types import LifeSpanReceive, LifeSpanScope, LifeSpanSend, Receive, Scope, Send
from litestar.types.asgi_types import LifeSpanSendMessage

from gasket.backends.models import key_ring
from gasket.embedded import EmbeddedDatabase, read_or_make_secret
from gasket.errors import GasketError, SettingsError
from gasket.migrator.errors import MigratorError
from gasket.server.connections import Connections
from gasket.settings import Settings

log = logging.getLogger("gasket")

ADMIN_TOKEN_FILE = "admin-token"
GATEWAY_PREFIX = "/v1/"
HTTP_PROTOCOL = "gasket.server.protocol:Connection"
"""As uvicorn's option `--http` wants it."""
SECRET_KEY_FILE = "secret-key"


class Gasket(Litestar):
    """Litestar, with `/v1` beside it, which says why it does not start, or ends at once, in one sentence."""

    connections: Connections
    gateway: Callable[[Any, Any, Any], Awaitable[None]]
    measure: Callable[[Any, Any, Any, Any], Awaitable[None]]
    """Given an application and what that is given; passes the request on."""

    async def __call__(
        self, scope: Scope | LifeSpanScope, receive: Receive | LifeSpanReceive, send: Send | LifeSpanSend
    ) -> None:
        """The ASGI entry point. Requests below `/v1` do not pay for a router and middleware that have nothing to do."""
        application: Any = super().__call__
        if scope["type"] != "lifespan":
            below = scope["type"] == ScopeType.HTTP and scope["path"].startswith(GATEWAY_PREFIX)
            await (self.gateway(scope, receive, send) if below else self.measure(application, scope, receive, send))
            return
        if isinstance(state := scope.get("state"), dict):  # ASGI lets a server have none
            self.connections.hand_over(state)
        forward: Any = send

        async def in_one_sentence(message: LifeSpanSendMessage) -> None:
            if message["type"] == "lifespan.startup.failed" and (refusal := _refusal(sys.exception())):
                message["message"] = f"Gasket does not start. {refusal}"
            elif message["type"] == "lifespan.shutdown.failed" and isinstance(sys.exception(), asyncio.CancelledError):
                message["message"] = "Told to stop a second time: Gasket ends without waiting for what is under way."
            await forward(message)

        await application(scope, receive, in_one_sentence)


class Startup:
    """The handlers around a server's life, in the order in which they run. Command lines use `database` alone."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._embedded = EmbeddedDatabase(settings.data_dir) if settings.embedded else None

    @property
    def database_url(self) -> str:
        """DATABASE_URL, or where the embedded server will be."""
        return self._embedded.url if self._embedded else str(self._settings.database_url)

    @contextmanager
    def database(self) -> Iterator[None]:
        """For a command line: the database and the keys to its credentials, for as long as the command runs."""
        if self._embedded is None:
            yield
            return
        with EmbeddedDatabase(self._settings.data_dir):
            self._load_secret_keys()
            yield

    def install(self, app: Litestar) -> None:
        """Put the handlers around those that the plugins have registered."""
        app.on_startup[:0] = [self.configure_logging, self.prepare_secrets, self.start_database]
        app.on_startup.append(self.announce)
        app.on_shutdown.append(self.stop_database)

    def configure_logging(self) -> None:
        """Our own messages to standard error, unless whoever runs us has configured logging already."""
        if log.handlers or logging.getLogger().handlers:
            return
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)

    async def prepare_secrets(self, app: Litestar) -> None:
        """Demand what only serving needs, before the database is touched; embedded, make it once.

        Raises:
            SettingsError: GASKET_ADMIN_TOKEN or GASKET_SECRET_KEY is not set.
        """
        settings = self._settings
        tokens = settings.admin_tokens
        if self._embedded:
            await asyncio.to_thread(self._load_secret_keys)
            if not tokens:
                path = settings.data_dir / ADMIN_TOKEN_FILE
                tokens = (await asyncio.to_thread(read_or_make_secret, path, lambda: secrets.token_urlsafe(32)),)
        if not tokens:
            raise SettingsError(
                "GASKET_ADMIN_TOKEN is not set; it is the bearer token for /api: one or more, comma-separated, each "
                "of at least 16 characters (`openssl rand -hex 24` makes one)."
            )
        if not (settings.secret_keys or self._embedded):
            raise SettingsError(
                "GASKET_SECRET_KEY is not set; stored credentials are encrypted with it: one or more Fernet keys, "
                "comma-separated (`openssl rand -base64 32 | tr '+/' '-_'` makes one)."
            )
        app.state.admin_tokens = tuple(SecretBytes(token.encode()) for token in tokens)

    async def start_database(self) -> None:
        """Start the embedded server, or join the one that runs."""
        if self._embedded:
            await asyncio.to_thread(self._embedded.start)

    async def announce(self) -> None:
        """Where things are, for whoever has just started this for the first time."""
        base = _listening_on()
        log.info("Gasket %s serves: API %s/api, its documentation %s/schema", self._settings.release, base, base)
        if self._embedded and not self._settings.admin_tokens:
            log.info("the admin token (Authorization: Bearer ...) is in %s", self._settings.data_dir / ADMIN_TOKEN_FILE)
        if HTTP_PROTOCOL.partition(":")[0] not in sys.modules:
            log.warning(
                "the server speaks HTTP by itself, without limits for heads: give uvicorn --http %s", HTTP_PROTOCOL
            )

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


class CommandLine(CLIPlugin):
    """Litestar's command line, as Gasket needs it.

    `run` refuses several workers, for uvicorn's parent of many exits 0 when a start is refused; and it has uvicorn
    speak HTTP through `gasket.server`, for which Litestar has no option.
    """

    def on_cli_init(self, cli: click.Group) -> None:
        """`--help` and `version` tell of Gasket, not of Litestar."""
        cli.help = "Gasket: serve (run), manage the schema (database) and the stored credentials (backends)."
        cli.command("version", help="Show the version of Gasket.")(lambda: click.echo(version("gasket")))

    @contextmanager
    def server_lifespan(self, app: Litestar) -> Iterator[None]:
        """Entered by Litestar's command line before it starts any server."""
        context = click.get_current_context(silent=True)
        workers = context.params.get("wc", 1) if context else 1
        if workers > 1:
            raise SystemExit(
                f"gasket: a replica is one process, and {workers} were asked for (--web-concurrency, or "
                "LITESTAR_WEB_CONCURRENCY or WEB_CONCURRENCY); nothing was started. Start more replicas instead."
            )
        from uvicorn.config import HTTP_PROTOCOLS, WS_PROTOCOLS  # commands that serve nothing do without uvicorn

        HTTP_PROTOCOLS["auto"] = HTTP_PROTOCOL
        WS_PROTOCOLS["auto"] = WS_PROTOCOLS["none"]  # it would be loaded, and never used
        os.environ["UVICORN_HTTP"] = HTTP_PROTOCOL  # with --reload, the server is a process of its own
        yield


def _refusal(error: BaseException | None) -> GasketError | MigratorError | None:
    """What a handler raised on purpose; the task group of Litestar's event emitter hands it on in a group."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, GasketError | MigratorError) else None


def _listening_on() -> str:
    """`http://host:port` where Litestar's command line knows it; another server's start does not tell."""
    context = click.get_current_context(silent=True)
    if context is None or not {"host", "port"} <= context.params.keys():
        return ""
    return f"http://{context.params['host']}:{context.params['port']}"
