"""The composition root: settings in, application out."""

from __future__ import annotations

import asyncio
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

from advanced_alchemy.config.asyncio import AlembicAsyncConfig
from litestar import Litestar, Router, get
from litestar.datastructures import CacheControlHeader, State
from litestar.datastructures.secret_values import SecretBytes
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import Guard

from gasket import db, http
from gasket.access.authentication import Authenticator, require_role
from gasket.access.bearers import Bearers
from gasket.access.controller import SessionController, TokenController, me
from gasket.access.cookies import NAME, PREFIX
from gasket.access.one_time_code import OneTimeCode
from gasket.access.people import RoleGroups
from gasket.access.provider import Provider
from gasket.access.sign_in import OidcClient, SignIn
from gasket.access.sign_in_controller import SignInController
from gasket.audit.controller import AuditController
from gasket.audit.plugin import AuditPlugin
from gasket.audit.refusals import RefusedSignIns
from gasket.audit.schema_controller import SchemaController
from gasket.backends.breaker import Breakers
from gasket.backends.cli import BackendsCLI
from gasket.backends.controller import BackendController, ProfileController
from gasket.backends.models import key_ring
from gasket.errors import NotFoundError
from gasket.inputs import StrictRequest
from gasket.installation import Installation, installation_or_exit
from gasket.keys.controller import KeyController
from gasket.keys.own_controller import OwnKeyController, list_open_profiles
from gasket.metrics.administration import AdministrationMetrics
from gasket.metrics.exposition import make_registry, metrics_route
from gasket.metrics.state import Sources, StateCollector
from gasket.migrator.config import MigratorConfig
from gasket.migrator.controller import migrations_routes
from gasket.migrator.errors import MigratorError
from gasket.migrator.ledger.tables import VERSION_TABLE
from gasket.migrator.plugin import MigratorPlugin
from gasket.migrator.revisions.configuration import configuration_files, read_locations
from gasket.proxy.backend_figures import BackendFigures
from gasket.proxy.metrics import GatewayMetrics
from gasket.proxy.plugin import GatewayPlugin
from gasket.recorded_commands import recorded
from gasket.run import CommandLine
from gasket.server.connections import Connections
from gasket.settings import Settings
from gasket.shutdown import Shutdown
from gasket.startup import Gasket, Startup
from gasket.ui.door import Door
from gasket.unready import Unready
from gasket.upstream.client import UpstreamClient
from gasket.usage.controller import UsageController
from gasket.usage.own_controller import sum_own_usage
from gasket.users.cli import UsersCLI
from gasket.users.controller import UserController


def create_app(settings: Settings | None = None) -> Litestar:
    """The application, of the settings given or of the environment's. It touches no database yet."""
    installation = Installation(settings) if settings else installation_or_exit()
    settings = installation.settings
    startup = Startup(installation)
    config = installation.migrator_config()
    engine = db.create_engine(
        config.database_url,
        schema=settings.database_schema,
        release=settings.release,
        pool_size=settings.database_pool_size,
    )
    sessions = db.create_sessions(engine)
    connections = Connections(idle_timeout=settings.keep_alive)
    upstream = UpstreamClient(pseudonym=installation.pseudonym, networks=settings.backend_networks)
    breakers = Breakers(notify=installation.notify)
    figures = BackendFigures()
    registry = make_registry()
    alchemy = db.alchemy_config(engine, sessions, alembic_settings_or_exit(config.ini))
    migrator = MigratorPlugin(config, lambda: [alchemy], recorded)
    provider = Provider(settings.oidc_issuer) if settings.oidc_issuer and settings.oidc_client_id else None
    bearers = _bearers(settings, provider)
    refused = RefusedSignIns()
    authenticator = Authenticator(
        sessions.begin,
        root_peers=settings.admin_token_networks,
        on_refused=refused.count,
        bearers=bearers,
        roles=_role_groups(settings),
        groups_claim=settings.oidc_groups_claim,
    )
    authenticator.root_tokens = tuple(SecretBytes(token.encode()) for token in settings.admin_tokens)
    sign_in = _sign_in(settings, provider, authenticator, sessions.begin)
    gateway = GatewayPlugin(
        settings,
        database_url=config.database_url,
        listener_url=config.migration_url,
        client=upstream,
        breakers=breakers,
        decrypt=key_ring.decrypt,
        bearers=bearers,
        count_guess=authenticator.count_guess_from,
        observers=[GatewayMetrics(registry), figures],
    )
    state = StateCollector(
        Sources(
            release=settings.release,
            under_way=lambda: gateway.gateway.under_way,
            backends=breakers.states,
            keys=lambda: gateway.directory,
            pools=lambda: {"api": db.pool_use(engine), "keys": gateway.lookups},
            readiness=lambda: migrator.starting.look() if app.starting else migrator.monitor.readiness(),
            pending=lambda: migrator.monitor.pending,
            drift=lambda: migrator.drift.count,
            background=lambda: migrator.monitor.works,
            seconds_at_start=lambda: migrator.seconds_at_start,
            usage=lambda: gateway.usage,
        )
    )
    registry.register(state)
    key_ring.load(settings.secret_keys)

    def announce() -> None:
        migrator.leave()
        gateway.gateway.drain()
        connections.shutting_down = True

    async def deliver_notices() -> None:
        """Also at the end of a start that was refused."""
        await asyncio.to_thread(installation.deliver_notices)

    def stop() -> None:
        gateway.gateway.stop()
        connections.end()

    app = Gasket(
        route_handlers=[
            _api(),
            SignInController,
            health,
            metrics_route(registry, state, guards=[] if settings.metrics_public else [require_role]),
        ],
        dependencies={
            "db_session": Provide(db.session_provider(sessions)),
            "transaction": Provide(lambda: sessions.begin, sync_to_thread=False),
            "sign": Provide(lambda: key_ring.sign, sync_to_thread=False),
            "breakers": Provide(lambda: breakers, sync_to_thread=False),
            "backend_figures": Provide(lambda: figures, sync_to_thread=False),
            "upstream": Provide(lambda: upstream, sync_to_thread=False),
            "sign_in": Provide(lambda: sign_in, sync_to_thread=False),
        },
        lifespan=[db.closing(engine)],
        on_shutdown=[upstream.close, sign_in.close, *([bearers.close] if bearers else []), deliver_notices],
        plugins=[
            BackendsCLI(engine, startup.database, lambda: _show_target(config)),
            UsersCLI(engine, settings.database_schema, key_ring.sign, startup.database, lambda: _show_target(config)),
            migrator,
            gateway,
            AuditPlugin(
                sessions.begin,
                refused,
                retention_days=settings.audit_retention_days,
                orphaned_keys_days=settings.orphaned_keys_days,
            ),
            CommandLine(settings.log_format, check=startup.require_secrets),
        ],
        exception_handlers=http.EXCEPTION_HANDLERS,
        before_send=[http.log_response],
        openapi_config=_openapi([] if settings.docs_public else [require_role]),
        logging_config=None,
        state=State(
            {
                "authenticator": authenticator,
                "one_time_code": OneTimeCode(),
                "release": settings.release,
                "schema": settings.database_schema,
                "docs_public": settings.docs_public,
                "has_provider": sign_in.offered,
            }
        ),
    )
    app.connections = connections
    app.trusted_proxies = settings.trusted_proxies
    app.cors_origins = settings.cors_origins
    app.gateway = gateway.gateway
    app.pages = Door(app)
    app.state["openapi"] = cache(lambda: app.openapi_schema.to_schema())
    app.unready = Unready(migrator.starting.look)
    app.measure = AdministrationMetrics(registry).measure
    startup.install(app)
    Shutdown(delay=settings.drain_delay, timeout=settings.drain_timeout, announce=announce, stop=stop).install(app)
    return app


@get("/health", summary="Whether the process is up", description="Never touches the database.", tags=["health"])
async def health() -> dict[str, str]:
    """For liveness probes: restarting a replica does not bring its database back."""
    return {"status": "up"}


def alembic_settings_or_exit(ini: Path) -> AlembicAsyncConfig:
    """What Advanced Alchemy's commands need; a wrong configuration ends the process with its message alone."""
    try:
        scripts = read_locations(ini).scripts
        ini_file, pyproject = configuration_files(ini)
    except MigratorError as error:
        raise SystemExit(f"gasket: {error}") from None
    return AlembicAsyncConfig(
        script_config=str(ini_file or ""),
        toml_file=str(pyproject or ""),
        script_location=str(scripts),
        version_table_name=VERSION_TABLE,
    )


def _show_target(config: MigratorConfig) -> None:
    """Print which database DATABASE_URL leads to, as the migrator's commands do."""
    show: Callable[[MigratorConfig], object] = pkgutil.resolve_name("gasket.migrator.commands.running:show_target")
    show(replace(config, migration_database_url=None))


def _role_groups(settings: Settings) -> RoleGroups:
    return RoleGroups(
        admin=settings.oidc_admin_groups,
        operator=settings.oidc_operator_groups,
        viewer=settings.oidc_viewer_groups,
        user=settings.oidc_user_groups,
    )


def _bearers(settings: Settings, provider: Provider | None) -> Bearers | None:
    """What checks signed tokens; None: there is no issuer, or nothing says whom its tokens must be for."""
    trusted = [Provider(issuer) for issuer in settings.oidc_trusted_issuers if issuer != settings.oidc_issuer]
    audience = settings.oidc_audience or settings.oidc_client_id
    if audience is None or not (provider or trusted):
        return None
    return Bearers(provider, trusted, audience=audience, client_id=settings.oidc_client_id)


def _sign_in(
    settings: Settings, provider: Provider | None, authenticator: Authenticator, transaction: db.Transactions
) -> SignIn:
    if provider is None or settings.oidc_client_id is None:
        return SignIn(None, None, authenticator=authenticator, transaction=transaction)
    oidc = OidcClient(
        client_id=settings.oidc_client_id,
        client_secret=settings.oidc_client_secret,
        scopes=settings.oidc_scopes,
        groups_claim=settings.oidc_groups_claim,
        roles=_role_groups(settings),
    )
    return SignIn(provider, oidc, authenticator=authenticator, transaction=transaction)


def _api() -> Router:
    return Router(
        path=http.API_PREFIX,
        route_handlers=[
            BackendController,
            ProfileController,
            KeyController,
            OwnKeyController,
            UsageController,
            AuditController,
            TokenController,
            SessionController,
            UserController,
            me,
            list_open_profiles,
            sum_own_usage,
            *migrations_routes(http.problems(), http.problems(NotFoundError)),
            SchemaController,
        ],
        guards=[require_role],
        security=[{http.SECURITY_SCHEME: []}, {http.SESSION_SCHEME: []}],
        cache_control=CacheControlHeader(no_store=True),
        request_class=StrictRequest,
        request_max_body_size=1_000_000,
    )


def _openapi(guards: list[Guard]) -> OpenAPIConfig:
    """Its document is at `/schema/openapi.json`, behind these guards; the page made of it is under `/ui`."""
    return OpenAPIConfig(
        render_plugins=[JsonRenderPlugin()],
        openapi_router=Router("/schema", route_handlers=[], guards=guards, include_in_schema=False),
        title="Gasket",
        version=version("gasket"),
        description=http.API_DESCRIPTION,
        use_handler_docstrings=True,
        components=Components(
            security_schemes={
                http.SECURITY_SCHEME: SecurityScheme(type="http", scheme="bearer"),
                http.SESSION_SCHEME: SecurityScheme(type="apiKey", name=PREFIX + NAME, security_scheme_in="cookie"),
            }
        ),
    )
