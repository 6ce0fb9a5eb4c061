"""The composition root: settings in, application out."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from advanced_alchemy.extensions.litestar import SQLAlchemyPlugin
from litestar import Litestar, Router, get
from litestar.datastructures import CacheControlHeader, State
from litestar.datastructures.secret_values import SecretBytes
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme

from gasket import db, http
from gasket.backends.breaker import Breakers
from gasket.backends.cli import BackendsCLI
from gasket.backends.controller import BackendController, ProfileController
from gasket.backends.models import key_ring
from gasket.errors import SettingsError
from gasket.inputs import StrictRequest
from gasket.keys.controller import KeyController
from gasket.metrics.administration import AdministrationMetrics
from gasket.metrics.exposition import make_registry, metrics_route
from gasket.metrics.state import Sources, StateCollector
from gasket.migrator.connection import MigratorConfig
from gasket.migrator.controller import migrations_route
from gasket.migrator.plugin import MigratorPlugin
from gasket.migrator.revisions import migrations_directory
from gasket.models import metadata
from gasket.proxy.metrics import GatewayMetrics
from gasket.proxy.plugin import GatewayPlugin
from gasket.server.connections import Connections
from gasket.settings import Settings, read_settings
from gasket.shutdown import Shutdown
from gasket.startup import CommandLine, Gasket, Startup
from gasket.upstream.client import UpstreamClient
from gasket.usage.controller import UsageController


def create_app(settings: Settings | None = None) -> Litestar:
    """The application, of the settings given or of the environment's. It touches no database yet."""
    settings = settings or settings_or_exit()
    startup = Startup(settings)
    config = migrator_config(settings, startup)
    engine = db.create_engine(
        config.database_url,
        schema=settings.database_schema,
        release=settings.release,
        pool_size=settings.database_pool_size,
    )
    sessions = db.create_sessions(engine)
    connections = Connections(idle=settings.keep_alive)
    upstream, breakers = UpstreamClient(), Breakers()
    registry = make_registry()
    migrator = MigratorPlugin(config)
    gateway = GatewayPlugin(
        settings,
        database_url=config.database_url,
        listener_url=config.migration_url,
        client=upstream,
        breakers=breakers,
        decrypt=key_ring.decrypt,
        observers=[GatewayMetrics(registry)],
    )
    state = StateCollector(
        Sources(
            release=settings.release,
            under_way=lambda: gateway.gateway.under_way,
            backends=breakers.states,
            keys=lambda: gateway.directory,
            pools=lambda: {"api": db.pool_use(engine), "keys": gateway.lookups},
            readiness=migrator.monitor.readiness,
            pending=lambda: migrator.monitor.pending,
            seconds_at_start=lambda: migrator.seconds_at_start,
            usage=lambda: gateway.usage,
        )
    )
    registry.register(state)
    key_ring.load(settings.secret_keys)

    def announce() -> None:
        migrator.leave()
        gateway.gateway.drain()
        connections.leaving = True

    def stop() -> None:
        gateway.gateway.stop()
        connections.end()

    app = Gasket(
        route_handlers=[_api(), health, metrics_route(registry, state, public=settings.metrics_public)],
        dependencies={
            "db_session": Provide(db.session_provider(sessions)),
            "transaction": Provide(lambda: sessions.begin, sync_to_thread=False),
            "breakers": Provide(lambda: breakers, sync_to_thread=False),
            "upstream": Provide(lambda: upstream, sync_to_thread=False),
        },
        on_shutdown=[upstream.close],
        plugins=[
            SQLAlchemyPlugin(
                db.sqlalchemy_config(engine, sessions, ini=config.ini, migrations=migrations_directory(config.ini))
            ),
            BackendsCLI(engine, config.start_database),
            migrator,
            gateway,
            CommandLine(),
        ],
        exception_handlers=http.EXCEPTION_HANDLERS,
        before_send=[http.log_response],
        openapi_config=_openapi(),
        logging_config=None,
        state=State({"admin_tokens": tuple(SecretBytes(t.encode()) for t in settings.admin_tokens)}),
    )
    app.connections = connections
    app.gateway = gateway.gateway
    app.measure = AdministrationMetrics(registry).measure
    startup.install(app)
    Shutdown(delay=settings.drain_delay, timeout=settings.drain_timeout, announce=announce, stop=stop).install(app)
    return app


@get("/health", summary="Whether the process is up", description="Never touches the database.", tags=["health"])
async def health() -> dict[str, str]:
    """For liveness probes: to restart a replica because its database is away would help nobody."""
    return {"status": "up"}


def settings_or_exit() -> Settings:
    """The environment's settings; a wrong one ends the process with its message and nothing else."""
    try:
        return read_settings(os.environ)
    except SettingsError as error:
        raise SystemExit(f"gasket: {error}") from None


def migrator_config(settings: Settings, startup: Startup) -> MigratorConfig:
    """What the migrator has to know."""
    return MigratorConfig(
        database_url=startup.database_url,
        migration_database_url=settings.migration_database_url,
        schema=settings.database_schema,
        release=settings.release,
        ini=find_ini(),
        metadata=metadata,
        database_wait=settings.database_wait,
        lock_wait=settings.migration_lock_wait,
        ddl_wait=settings.migration_ddl_wait,
        scratch_url=settings.scratch_database_url,
        migrate_on_startup=settings.migrate_on_startup,
        start_database=startup.database,
    )


def migrator_config_from_environment() -> MigratorConfig:
    """For env.py, when a command line runs it."""
    settings = settings_or_exit()
    return migrator_config(settings, Startup(settings))


def find_ini() -> Path:
    """Alembic's ini: ALEMBIC_CONFIG, else the one in the working directory, else the one that came with Gasket."""
    if named := os.environ.get("ALEMBIC_CONFIG"):
        if not Path(named).is_file():
            raise SystemExit(f"gasket: ALEMBIC_CONFIG names {named}, which is not a file.")
        return Path(named).resolve()
    package = Path(__file__).parent
    candidates = [Path("alembic.ini"), package / "alembic.ini", package.parents[1] / "alembic.ini"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    raise SystemExit("gasket: there is no alembic.ini here and none came with Gasket; set ALEMBIC_CONFIG.")


def _api() -> Router:
    return Router(
        path=http.API_PREFIX,
        route_handlers=[
            BackendController,
            ProfileController,
            KeyController,
            UsageController,
            migrations_route(http.problems()),
        ],
        guards=[http.require_admin],
        security=[{http.SECURITY_SCHEME: []}],
        cache_control=CacheControlHeader(no_store=True),
        request_class=StrictRequest,
        request_max_body_size=1_000_000,
    )


def _openapi() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Gasket",
        version=version("gasket"),
        description=http.API_DESCRIPTION,
        use_handler_docstrings=True,
        components=Components(security_schemes={http.SECURITY_SCHEME: SecurityScheme(type="http", scheme="bearer")}),
    )
