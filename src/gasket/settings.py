"""Every setting: name, type, default, meaning. Read from the environment once, in `create_app`."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from gasket.cors import CorsOrigins
from gasket.environment import file_variable, read_secret, refuse_unknown
from gasket.errors import SettingsError
from gasket.forwarded import TrustedProxies
from gasket.issuers import parse_issuer, parse_issuers, parse_name, parse_names, parse_scopes
from gasket.log_lines import JSON, TEXT
from gasket.networks import BackendNetworks
from gasket.peers import Peers
from gasket.postgres.urls import read_liveness
from gasket.release import release_name

_SCHEMES = ("postgres", "postgresql", "postgresql+asyncpg")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SESSION_ATTRS = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
# libpq's parameters that asyncpg would send to the server as settings, which then refuses the connection. None
# of them changes to whom, as whom, or how safely the connection is made.
_NOT_FOR_THE_DRIVER = {
    "channel_binding",
    "fallback_application_name",
    "gssencmode",
    "load_balance_hosts",
    "sslcompression",
    "sslsni",
}
_PASSWORD_RULE = "In the password, write #, /, ?, @ as %23, %2F, %3F, %40"
_MAY_HAVE_AT = {"user", "password", "options", "application_name"}
"""Parameters of a URL whose values may have an @ in them as it is."""

_SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")


def _database_url(value: str) -> str:
    """A libpq URL; libpq's own scheme is put in place of SQLAlchemy's.

    The rules are those of libpq, "Connection URIs" in the PostgreSQL manual. The value is never shown: it
    may hold a password.
    """
    try:
        parts = urlsplit(value)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        problem = "must be a PostgreSQL URL such as postgresql://user:password@host:5432/name"
        raise ValueError(f"{problem}. {_PASSWORD_RULE}") from None
    if parts.scheme not in _SCHEMES:
        raise ValueError("must begin with postgres://, postgresql:// or postgresql+asyncpg://")
    if stray := _stray_character(parts, query):
        raise ValueError(f"must not have a {stray}. {_PASSWORD_RULE}")
    for host in parts.netloc.rpartition("@")[2].split(","):
        port = re.sub(r"^\[[^]]*\]", "", host).partition(":")[2]
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"must have a port from 1 to 65535 after each host's colon. {_PASSWORD_RULE}")
    for name, allowed in (("sslmode", _SSL_MODES), ("target_session_attrs", _SESSION_ATTRS)):
        if name in query and query[name] not in allowed:
            raise ValueError(f"must have {name} as one of {', '.join(allowed)}")
    read_liveness(value)
    for name in ("channel_binding", "gssencmode"):
        if query.get(name) == "require":
            raise ValueError(f"must not have {name}=require, which the driver cannot do; sslmode is understood")
    options = [option for option in parts.query.split("&") if option.partition("=")[0] not in _NOT_FOR_THE_DRIVER]
    kept = "&".join(options)
    # Put together by hand: urlunsplit drops the slashes of an empty host.
    return f"postgresql://{parts.netloc}{parts.path}" + (f"?{kept}" if kept else "")


def _stray_character(parts: SplitResult, query: Mapping[str, str]) -> str | None:
    """The character of a password that has cut the URL in the wrong place; what precedes it may pass for a port."""
    if parts.fragment:
        return "#"
    if parts.netloc.count("@") > 1:
        return "second @"
    if "@" in parts.path:
        return "/ before the @"
    if any("@" in f"{name}{value}" for name, value in query.items() if name not in _MAY_HAVE_AT):
        return "? before the @"
    return None


def _schema(value: str) -> str:
    if not _SCHEMA_NAME.fullmatch(value) or value.startswith(("pg_", "gasket_archive")):
        raise ValueError(
            "must be a schema name of at most 40 lower-case letters, digits and underscores, "
            "not beginning with a digit, pg_ or gasket_archive"
        )
    if value == "information_schema":
        raise ValueError("must not be information_schema, which is PostgreSQL's own")
    return value


def _seconds_up_to(most: int) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number <= most:
            raise ValueError(f"must be a number of seconds from 0 to {most}")
        return number

    return parse


_seconds = _seconds_up_to(86_400)


def _share(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0.01 <= number <= 1:
        raise ValueError("must be a number from 0.01 to 1")
    return number


def _count(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(value)

    return parse


def _flag(value: str) -> bool:
    try:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
    except KeyError:
        raise ValueError("must be true or false") from None


def _log_format(value: str) -> str:
    if value.lower() not in (JSON, TEXT):
        raise ValueError(f"must be {JSON} or {TEXT}")
    return value.lower()


def _release(value: str) -> str:
    if not value.isprintable() or len(value) > 100:
        raise ValueError("must be at most 100 printable characters")
    return value


_MAKE_TOKEN = "`openssl rand -hex 24` makes a good one"
_KNOWN_WORDS = re.compile("changeme|change|password|passwd|admin|secret|letmein|qwerty|welcome|gasket|123456789?0?|me")


def _is_weak(token: str) -> bool:
    """Whether a token has few different characters, or is a word that is tried first, and little else."""
    rest = _KNOWN_WORDS.sub("", re.sub(r"[\W_]", "", token.lower()))
    return len(set(token)) < 8 or len(rest) < 6


def _admin_tokens(value: str) -> tuple[str, ...]:
    tokens = tuple(token.strip() for token in value.split(","))
    if any(len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token for token in tokens):
        raise ValueError(
            "must be one or more tokens, comma-separated, each of at least 16 ASCII characters without spaces; "
            f"{_MAKE_TOKEN}"
        )
    if any(map(_is_weak, tokens)):
        raise ValueError(
            f"must not be easily guessed: it needs 8 different characters, and more than a common word; {_MAKE_TOKEN}"
        )
    return tokens


def _secret_keys(value: str) -> tuple[str, ...]:
    """Fernet keys: 32 bytes each, url-safe base64 (the Fernet specification, "Key Format")."""
    keys = tuple(key.strip() for key in value.split(","))
    for key in keys:
        try:
            valid = len(key) == 44 and len(base64.b64decode(key, altchars=b"-_", validate=True)) == 32
        except (binascii.Error, ValueError):
            valid = False
        if not valid:
            raise ValueError(
                "must be one or more Fernet keys, comma-separated, each 32 bytes in url-safe base64 "
                "(44 characters); `openssl rand -base64 32 | tr '+/' '-_'` makes one"
            )
    return keys


def _webhook_url(value: str) -> str:
    """The value is never shown: it may have a token in it, in its host as well."""
    problem = "must be an http or https URL with a host, without a user, a password or a #"
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool((parts.hostname or "").encode("idna")) and parts.port != 0
    except ValueError:
        raise ValueError(problem) from None
    if not valid or "@" in parts.netloc or parts.fragment:
        raise ValueError(problem)
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("must have characters other than printable ASCII written as in %C3%A9")
    return value


def _webhook_secret(value: str) -> bytes:
    """24 to 64 bytes in base64 (Standard Webhooks 1.0.0, "Signature scheme")."""
    try:
        secret = base64.b64decode(value.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not (value.startswith("whsec_") and 24 <= len(secret) <= 64):
        raise ValueError(
            "must be whsec_ and 24 to 64 bytes in base64; `echo whsec_$(openssl rand -base64 32)` makes one"
        )
    return secret


def _directory(value: str) -> Path:
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        path = Path()
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def default_data_dir() -> Path:
    """As root `/var/lib/gasket`, else the user's data directory."""
    if os.geteuid() == 0:
        return Path("/var/lib/gasket")
    import platformdirs  # only an embedded database asks

    return platformdirs.user_data_path("gasket")


def _setting(
    env: str,
    parse: Callable[[str], Any],
    default: Any,
    meaning: str,
    *,
    shown_default: str | None = None,
    secret: bool = False,
) -> Any:
    shown = shown_default if shown_default is not None else str(default)
    metadata = {"env": env, "parse": parse, "meaning": meaning, "shown_default": shown}
    how = {"default_factory": default} if callable(default) else {"default": default}
    return field(**how, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment says, checked. Secrets do not show in the repr."""

    database_url: str | None = _setting(
        "DATABASE_URL",
        _database_url,
        None,
        shown_default="the embedded PostgreSQL",
        secret=True,
        meaning="libpq URL of the database; several hosts, `sslmode`, Unix sockets and so on all work",
    )
    migration_database_url: str | None = _setting(
        "GASKET_MIGRATION_DATABASE_URL",
        _database_url,
        None,
        shown_default="`DATABASE_URL`",
        secret=True,
        meaning="URL for schema changes: a direct connection past a transaction pooler, or a role that may run DDL",
    )
    database_schema: str = _setting(
        "GASKET_DATABASE_SCHEMA",
        _schema,
        "public",
        meaning="the schema that holds every table, whatever `search_path` says; created when missing",
    )
    database_wait: float = _setting(
        "GASKET_DATABASE_WAIT",
        _seconds,
        30.0,
        shown_default="30",
        meaning="seconds to wait at start for a database that is away or does not exist yet",
    )
    database_pool_size: int = _setting(
        "GASKET_DATABASE_POOL_SIZE",
        _count(1, 1000),
        8,
        meaning="connections of a replica for `/api`; six more are kept for its other work",
    )
    migrate_on_startup: bool = _setting(
        "GASKET_MIGRATE_ON_STARTUP",
        _flag,
        True,
        shown_default="true",
        meaning="false: do not migrate, wait until something else has brought the schema to head",
    )
    migration_lock_wait: float = _setting(
        "GASKET_MIGRATION_LOCK_WAIT",
        _seconds,
        600.0,
        shown_default="600",
        meaning="seconds without progress of the session that migrates, after which waiting for it ends; 0 is one try",
    )
    migration_ddl_wait: float = _setting(
        "GASKET_MIGRATION_DDL_WAIT",
        _seconds,
        300.0,
        shown_default="300",
        meaning="seconds for which a revision tries to get its table locks, in short tries",
    )
    background_share: float = _setting(
        "GASKET_BACKGROUND_SHARE",
        _share,
        0.5,
        meaning="the part of the time, from 0.01 to 1, that background work takes; the rest it pauses",
    )
    scratch_database_url: str | None = _setting(
        "GASKET_SCRATCH_DATABASE_URL",
        _database_url,
        None,
        shown_default="a temporary database",
        secret=True,
        meaning="an empty database for `plan` and `adopt` to try revisions in, where the role may not create one",
    )
    key_cache_ttl: float = _setting(
        "GASKET_KEY_CACHE_TTL",
        _seconds_up_to(30),
        30.0,
        shown_default="30",
        meaning="seconds, at most 30, for which a cached key stays valid if the notification of its change is lost",
    )
    max_body_size: int = _setting(
        "GASKET_MAX_BODY_SIZE",
        _count(1, 2**30),
        32 * 2**20,
        meaning="bytes that a request below `/v1` may have",
    )
    max_bodies_size: int = _setting(
        "GASKET_MAX_BODIES_SIZE",
        _count(1, 2**40),
        512 * 2**20,
        meaning="bytes that all requests below `/v1` may have at once, of each replica, which may need three times "
        "the memory; more get 503",
    )
    max_requests: int = _setting(
        "GASKET_MAX_REQUESTS",
        _count(1, 1_000_000),
        10_000,
        meaning="requests below `/v1` that a replica takes at once; more get 503",
    )
    key_share: int = _setting(
        "GASKET_KEY_SHARE",
        _count(1, 100),
        50,
        meaning="per cent of `GASKET_MAX_REQUESTS` and `GASKET_MAX_BODIES_SIZE` that one key may have at once; more "
        "get 429",
    )
    keep_alive: int = _setting(
        "GASKET_KEEP_ALIVE",
        _count(1, 86_400),
        75,
        meaning="seconds for which a client's connection is kept between two requests; more than its side keeps it",
    )
    backend_networks: BackendNetworks = _setting(
        "GASKET_BACKEND_NETWORKS",
        BackendNetworks.parse,
        BackendNetworks(),
        shown_default="allow *",
        meaning="which addresses backends may have, as in `deny 10.0.0.0/8, deny secret.example, allow *`: the first "
        "match counts, what none matches is denied; link-local and metadata addresses are always denied",
    )
    trusted_proxies: TrustedProxies = _setting(
        "GASKET_TRUSTED_PROXIES",
        TrustedProxies.parse,
        TrustedProxies(),
        shown_default="none",
        meaning="networks of the proxies whose `X-Forwarded-For` or `Forwarded` says who the client is, as in "
        "`10.0.0.0/8, ::1`; `unix` for those on a Unix socket",
    )
    cors_origins: CorsOrigins = _setting(
        "GASKET_CORS_ORIGINS",
        CorsOrigins.parse,
        CorsOrigins(),
        shown_default="none",
        meaning="origins whose pages may call `/v1` and `/api` from a browser, as in `https://chat.example, "
        "http://localhost:3000`; `*` for all",
    )
    metrics_public: bool = _setting(
        "GASKET_METRICS_PUBLIC",
        _flag,
        False,
        shown_default="false",
        meaning="true: `/metrics` asks for no token",
    )
    docs_public: bool = _setting(
        "GASKET_DOCS_PUBLIC",
        _flag,
        False,
        shown_default="false",
        meaning="true: the API reference and `/schema/openapi.json` ask for no sign-in",
    )
    usage_retention_days: int = _setting(
        "GASKET_USAGE_RETENTION_DAYS",
        _count(0, 36_500),
        90,
        meaning="days after which the record of a request is deleted; its share of the totals stays. 0: never",
    )
    audit_retention_days: int = _setting(
        "GASKET_AUDIT_RETENTION_DAYS",
        _count(0, 36_500),
        365,
        meaning="days after which an entry of the audit is deleted. 0: never",
    )
    orphaned_keys_days: int = _setting(
        "GASKET_ORPHANED_KEYS_DAYS",
        _count(0, 36_500),
        0,
        meaning="days after which a key is revoked that a person has made in a profile that no group of theirs opens "
        "any more. 0: never, but such keys are listed",
    )
    drain_delay: float = _setting(
        "GASKET_DRAIN_DELAY",
        _seconds,
        3.0,
        shown_default="3",
        meaning="seconds between SIGTERM, which makes `/health/ready` 503, and the closing of the port",
    )
    drain_timeout: float = _setting(
        "GASKET_DRAIN_TIMEOUT",
        _seconds,
        20.0,
        shown_default="20",
        meaning="seconds that running requests have after that, before they are ended",
    )
    log_format: str | None = _setting(
        "GASKET_LOG_FORMAT",
        _log_format,
        None,
        shown_default="`text` at a terminal, `json` elsewhere",
        meaning="what log lines are, on standard error: `json`, one object a line, or `text`",
    )
    release: str = _setting(
        "GASKET_RELEASE",
        _release,
        release_name,
        shown_default="the version and the commit, as in `0.1.0+g1a2b3c4`",
        meaning="the name that the ledger and the logs show for this release; never compared",
    )
    admin_tokens: tuple[str, ...] = _setting(
        "GASKET_ADMIN_TOKEN",
        _admin_tokens,
        (),
        shown_default="required to serve; made once when embedded",
        secret=True,
        meaning="bearer tokens for `/api`, comma-separated, each of at least 16 characters, and not easily guessed",
    )
    admin_token_networks: Peers = _setting(
        "GASKET_ADMIN_TOKEN_NETWORKS",
        Peers.parse,
        Peers(),
        shown_default="everywhere",
        meaning="networks from which `GASKET_ADMIN_TOKEN` is taken, as in `10.0.0.0/8, ::1`; `unix` for Unix sockets",
    )
    oidc_issuer: str | None = _setting(
        "GASKET_OIDC_ISSUER",
        parse_issuer,
        None,
        shown_default="people sign in with access tokens",
        meaning="the identity provider (OpenID Connect) at which people sign in, as in `https://login.example/staff`",
    )
    oidc_client_id: str | None = _setting(
        "GASKET_OIDC_CLIENT_ID",
        parse_name,
        None,
        shown_default="required with an issuer",
        meaning="what the provider calls Gasket; the redirect URI is `/auth/callback`",
    )
    oidc_client_secret: str | None = _setting(
        "GASKET_OIDC_CLIENT_SECRET",
        parse_name,
        None,
        shown_default="a public client, with PKCE alone",
        secret=True,
        meaning="the secret that the provider has given to Gasket",
    )
    oidc_scopes: str = _setting(
        "GASKET_OIDC_SCOPES",
        parse_scopes,
        "openid email profile",
        meaning="what Gasket asks the provider for, separated by spaces",
    )
    oidc_groups_claim: str = _setting(
        "GASKET_OIDC_GROUPS_CLAIM",
        parse_name,
        "groups",
        meaning="the claim with a person's groups: a list of names",
    )
    oidc_admin_groups: frozenset[str] = _setting(
        "GASKET_OIDC_ADMIN_GROUPS",
        parse_names,
        frozenset(),
        shown_default="none",
        meaning="groups, comma-separated, that have the role `admin`",
    )
    oidc_operator_groups: frozenset[str] = _setting(
        "GASKET_OIDC_OPERATOR_GROUPS",
        parse_names,
        frozenset(),
        shown_default="none",
        meaning="groups that have the role `operator`",
    )
    oidc_viewer_groups: frozenset[str] = _setting(
        "GASKET_OIDC_VIEWER_GROUPS",
        parse_names,
        frozenset(),
        shown_default="none",
        meaning="groups that have the role `viewer`",
    )
    oidc_user_groups: frozenset[str] = _setting(
        "GASKET_OIDC_USER_GROUPS",
        parse_names,
        frozenset(),
        shown_default="everybody who can sign in",
        meaning="groups that have the role `user`: keys of their own, in profiles that are open to them",
    )
    oidc_trusted_issuers: tuple[str, ...] = _setting(
        "GASKET_OIDC_TRUSTED_ISSUERS",
        parse_issuers,
        (),
        shown_default="none",
        meaning="further issuers, comma-separated, whose signed tokens (JWT) count at `/v1` as a profile's "
        "`claim_rules` say, as in `https://token.actions.githubusercontent.com`",
    )
    oidc_audience: str | None = _setting(
        "GASKET_OIDC_AUDIENCE",
        parse_name,
        None,
        shown_default="`GASKET_OIDC_CLIENT_ID`",
        meaning="whom signed tokens must be for: what they have in `aud`",
    )
    secret_keys: tuple[str, ...] = _setting(
        "GASKET_SECRET_KEY",
        _secret_keys,
        (),
        shown_default="required to serve; made once when embedded",
        secret=True,
        meaning="Fernet keys for stored credentials, comma-separated: the first encrypts, all decrypt",
    )
    webhook_url: str | None = _setting(
        "GASKET_WEBHOOK_URL",
        _webhook_url,
        None,
        shown_default="nobody is told",
        secret=True,
        meaning="URL to which Gasket sends what people should know, such as that of a Slack webhook",
    )
    webhook_secret: bytes | None = _setting(
        "GASKET_WEBHOOK_SECRET",
        _webhook_secret,
        None,
        shown_default="messages are not signed",
        secret=True,
        meaning="the key for the signatures of these messages: `whsec_` and 24 to 64 bytes in base64",
    )
    data_dir: Path = _setting(
        "GASKET_DATA_DIR",
        _directory,
        default_data_dir,
        shown_default="the user's data directory, as root `/var/lib/gasket`",
        meaning="where the embedded PostgreSQL keeps its data and the two secrets",
    )

    @property
    def embedded(self) -> bool:
        """Whether Gasket runs its own PostgreSQL because none is named."""
        return self.database_url is None


def is_secret(entry: Field[Any]) -> bool:
    """Whether the value of a setting is never shown, and may come from a file."""
    return not entry.repr


def variables() -> set[str]:
    """Every variable that Gasket reads."""
    return {entry.metadata["env"] for entry in fields(Settings)} | {
        file_variable(entry.metadata["env"]) for entry in fields(Settings) if is_secret(entry)
    }


def read_settings(environ: Mapping[str, str]) -> Settings:
    """The settings as the environment gives them; an empty value counts as not set.

    Raises:
        SettingsError: a value is not of its form, its file cannot be read, or there is no such setting. The message
            names the variable and what is allowed, never the value.
    """
    refuse_unknown(environ, variables())
    values: dict[str, Any] = {}
    for entry in fields(Settings):
        variable = called = entry.metadata["env"]
        if is_secret(entry):
            raw, called = read_secret(environ, variable)
        else:
            raw = environ.get(variable, "").strip()
        if not raw:
            continue
        try:
            values[entry.name] = entry.metadata["parse"](raw)
        except ValueError as error:
            raise SettingsError(f"{called} {error}.") from None
    settings = Settings(**values)
    if settings.migration_database_url and settings.embedded:
        raise SettingsError("GASKET_MIGRATION_DATABASE_URL is set but DATABASE_URL is not; set both, or neither.")
    if settings.max_body_size > settings.max_bodies_size:
        raise SettingsError("GASKET_MAX_BODIES_SIZE must be at least GASKET_MAX_BODY_SIZE.")
    return settings
