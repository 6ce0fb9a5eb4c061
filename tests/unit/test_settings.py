"""Every setting: what is taken, what is refused and in which words, and that no secret shows."""

from __future__ import annotations

import os
from base64 import b64encode, urlsafe_b64encode
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from gasket.cors import CorsOrigins
from gasket.errors import SettingsError
from gasket.forwarded import TrustedProxies
from gasket.networks import BackendNetworks
from gasket.peers import Peers
from gasket.release import release_name
from gasket.settings import Settings, default_data_dir, read_settings

KEY = urlsafe_b64encode(b"k" * 32).decode()
OTHER_KEY = urlsafe_b64encode(b"\xff" * 32).decode()
TOKEN = "sixteen-letters!"
WEBHOOK_SECRET = f"whsec_{b64encode(b'w' * 24).decode()}"
PASSWORD_RULE = "In the password, write #, /, ?, @ as %23, %2F, %3F, %40."

GOOD: list[tuple[str, str, str, Any]] = [
    ("DATABASE_URL", "postgresql://u:p@h/db", "database_url", "postgresql://u:p@h/db"),
    ("GASKET_MIGRATION_DATABASE_URL", "postgres://h/db", "migration_database_url", "postgresql://h/db"),
    ("GASKET_DATABASE_SCHEMA", "gateway_2", "database_schema", "gateway_2"),
    ("GASKET_DATABASE_SCHEMA", "s" * 40, "database_schema", "s" * 40),
    ("GASKET_DATABASE_WAIT", "0", "database_wait", 0.0),
    ("GASKET_DATABASE_WAIT", "2.5", "database_wait", 2.5),
    ("GASKET_DATABASE_POOL_SIZE", "1", "database_pool_size", 1),
    ("GASKET_DATABASE_POOL_SIZE", "1000", "database_pool_size", 1000),
    ("GASKET_MIGRATE_ON_STARTUP", "False", "migrate_on_startup", False),
    ("GASKET_MIGRATE_ON_STARTUP", "1", "migrate_on_startup", True),
    ("GASKET_MIGRATION_LOCK_WAIT", "86400", "migration_lock_wait", 86400.0),
    ("GASKET_MIGRATION_DDL_WAIT", "10", "migration_ddl_wait", 10.0),
    ("GASKET_BACKGROUND_SHARE", "0.25", "background_share", 0.25),
    ("GASKET_SCRATCH_DATABASE_URL", "postgres://h/scratch", "scratch_database_url", "postgresql://h/scratch"),
    ("GASKET_KEY_CACHE_TTL", "0", "key_cache_ttl", 0.0),
    ("GASKET_KEY_CACHE_TTL", "30", "key_cache_ttl", 30.0),
    ("GASKET_MAX_BODY_SIZE", "536870912", "max_body_size", 2**29),
    ("GASKET_MAX_BODIES_SIZE", "1099511627776", "max_bodies_size", 2**40),
    ("GASKET_MAX_REQUESTS", "1", "max_requests", 1),
    ("GASKET_KEY_SHARE", "100", "key_share", 100),
    ("GASKET_KEEP_ALIVE", "620", "keep_alive", 620),
    ("GASKET_BACKEND_NETWORKS", "allow ::1, deny *", "backend_networks", BackendNetworks.parse("allow ::1,deny *")),
    ("GASKET_TRUSTED_PROXIES", "10.0.0.1/8,UNIX", "trusted_proxies", TrustedProxies.parse("10.0.0.0/8, unix")),
    ("GASKET_CORS_ORIGINS", "https://A/,*", "cors_origins", CorsOrigins(frozenset({b"https://a", b"*"}))),
    ("GASKET_METRICS_PUBLIC", "yes", "metrics_public", True),
    ("GASKET_METRICS_PUBLIC", "false", "metrics_public", False),
    ("GASKET_DOCS_PUBLIC", "true", "docs_public", True),
    ("GASKET_USAGE_RETENTION_DAYS", "0", "usage_retention_days", 0),
    ("GASKET_USAGE_RETENTION_DAYS", "36500", "usage_retention_days", 36_500),
    ("GASKET_AUDIT_RETENTION_DAYS", "0", "audit_retention_days", 0),
    ("GASKET_ORPHANED_KEYS_DAYS", "30", "orphaned_keys_days", 30),
    ("GASKET_DRAIN_DELAY", "0", "drain_delay", 0.0),
    ("GASKET_DRAIN_TIMEOUT", "2.5", "drain_timeout", 2.5),
    ("GASKET_LOG_FORMAT", "JSON", "log_format", "json"),
    ("GASKET_RELEASE", "2026.11 (blue)", "release", "2026.11 (blue)"),
    ("GASKET_ADMIN_TOKEN", TOKEN, "admin_tokens", (TOKEN,)),
    ("GASKET_ADMIN_TOKEN", f"{TOKEN}, {TOKEN[::-1]}", "admin_tokens", (TOKEN, TOKEN[::-1])),
    ("GASKET_ADMIN_TOKEN", "admin-0f7c21d9e4", "admin_tokens", ("admin-0f7c21d9e4",)),
    ("GASKET_ADMIN_TOKEN_NETWORKS", "10.0.0.1/8,unix", "admin_token_networks", Peers.parse("10.0.0.0/8, unix")),
    ("GASKET_OIDC_ISSUER", "https://login.example:8443/a/", "oidc_issuer", "https://login.example:8443/a/"),
    ("GASKET_OIDC_ISSUER", "http://localhost:9400", "oidc_issuer", "http://localhost:9400"),
    ("GASKET_OIDC_CLIENT_ID", "a client", "oidc_client_id", "a client"),
    ("GASKET_OIDC_CLIENT_SECRET", "s: %", "oidc_client_secret", "s: %"),
    ("GASKET_OIDC_SCOPES", "groups openid  email", "oidc_scopes", "openid groups email"),
    ("GASKET_OIDC_GROUPS_CLAIM", "https://a/groups", "oidc_groups_claim", "https://a/groups"),
    ("GASKET_OIDC_ADMIN_GROUPS", "a b, c ,", "oidc_admin_groups", frozenset({"a b", "c"})),
    ("GASKET_OIDC_OPERATOR_GROUPS", "/ops", "oidc_operator_groups", frozenset({"/ops"})),
    ("GASKET_OIDC_VIEWER_GROUPS", "v", "oidc_viewer_groups", frozenset({"v"})),
    (
        "GASKET_OIDC_TRUSTED_ISSUERS",
        "https://a.example, https://b.example/x,,https://a.example",
        "oidc_trusted_issuers",
        ("https://a.example", "https://b.example/x"),
    ),
    ("GASKET_OIDC_AUDIENCE", "https://gasket.example", "oidc_audience", "https://gasket.example"),
    ("GASKET_OIDC_USER_GROUPS", "u", "oidc_user_groups", frozenset({"u"})),
    ("GASKET_SECRET_KEY", KEY, "secret_keys", (KEY,)),
    ("GASKET_SECRET_KEY", f"{KEY} ,{OTHER_KEY}", "secret_keys", (KEY, OTHER_KEY)),
    ("GASKET_WEBHOOK_URL", "http://h:1/%C3%A9/?a=b", "webhook_url", "http://h:1/%C3%A9/?a=b"),
    ("GASKET_WEBHOOK_SECRET", WEBHOOK_SECRET, "webhook_secret", b"w" * 24),
    ("GASKET_DATA_DIR", "/srv/gasket", "data_dir", Path("/srv/gasket")),
    ("GASKET_DATA_DIR", "~/gasket", "data_dir", Path.home() / "gasket"),
]

SECRETS = {
    "database_url",
    "migration_database_url",
    "scratch_database_url",
    "admin_tokens",
    "oidc_client_secret",
    "secret_keys",
    "webhook_url",
    "webhook_secret",
}

WRONG: list[tuple[str, str, str]] = [
    ("DATABASE_URL", "mysql://u:hunter22@h/db", "must begin with postgres://"),
    ("DATABASE_URL", "u:hunter22@h/db", "must begin with postgres://"),
    ("DATABASE_URL", "postgresql://u:hunter22@[::1/db", "must be a PostgreSQL URL"),
    ("DATABASE_URL", "postgresql://u:hunter22@h:0/db", "a port from 1 to 65535"),
    ("DATABASE_URL", "postgresql://u:hunter22@h:5432,i:65536/db", "a port from 1 to 65535"),
    ("DATABASE_URL", "postgresql://u:hunter22@[::1]:five/db", "a port from 1 to 65535"),
    ("DATABASE_URL", "postgresql://u:hunter22#x@h/db", "In the password, write #, /, ?, @ as %23, %2F, %3F, %40."),
    ("DATABASE_URL", "postgresql://u:hunter22@h/db?sslmode=on", "sslmode as one of disable, allow,"),
    ("DATABASE_URL", "postgresql://u:hunter22@h/db?sslmode", "must be a PostgreSQL URL"),
    ("DATABASE_URL", "postgresql://u:hunter22@h/db?target_session_attrs=best", "attrs as one of any,"),
    ("GASKET_MIGRATION_DATABASE_URL", "hunter22", "must begin with postgres://"),
    ("GASKET_DATABASE_SCHEMA", "Gateway", "lower-case"),
    ("GASKET_DATABASE_SCHEMA", "a-b", "lower-case"),
    ("GASKET_DATABASE_SCHEMA", "1st", "lower-case"),
    ("GASKET_DATABASE_SCHEMA", "s" * 41, "at most 40"),
    ("GASKET_DATABASE_SCHEMA", "pg_catalog", "not beginning with"),
    ("GASKET_DATABASE_SCHEMA", "gasket_archive_1", "not beginning with"),
    ("GASKET_DATABASE_SCHEMA", "information_schema", "PostgreSQL's own"),
    ("GASKET_DATABASE_WAIT", "-1", "from 0 to 86400"),
    ("GASKET_DATABASE_WAIT", "86401", "from 0 to 86400"),
    ("GASKET_DATABASE_WAIT", "nan", "from 0 to 86400"),
    ("GASKET_DATABASE_WAIT", "30s", "a number of seconds"),
    ("GASKET_DATABASE_POOL_SIZE", "0", "from 1 to 1000"),
    ("GASKET_DATABASE_POOL_SIZE", "1001", "from 1 to 1000"),
    ("GASKET_DATABASE_POOL_SIZE", "2.5", "a whole number"),
    ("GASKET_DATABASE_POOL_SIZE", "²", "a whole number"),
    ("GASKET_MIGRATE_ON_STARTUP", "maybe", "true or false"),
    ("GASKET_MIGRATION_LOCK_WAIT", "inf", "from 0 to 86400"),
    ("GASKET_MIGRATION_DDL_WAIT", "soon", "a number of seconds"),
    ("GASKET_BACKGROUND_SHARE", "0", "must be a number from 0.01 to 1"),
    ("GASKET_SCRATCH_DATABASE_URL", "hunter22", "must begin with postgres://"),
    ("GASKET_KEY_CACHE_TTL", "31", "from 0 to 30"),
    ("GASKET_KEY_CACHE_TTL", "-1", "from 0 to 30"),
    ("GASKET_KEY_CACHE_TTL", "nan", "from 0 to 30"),
    ("GASKET_KEY_CACHE_TTL", "86401", "from 0 to 30"),
    ("GASKET_MAX_BODY_SIZE", "0", "from 1 to 1073741824"),
    ("GASKET_MAX_BODY_SIZE", "32 MiB", "a whole number"),
    ("GASKET_MAX_BODIES_SIZE", "1099511627777", "from 1 to 1099511627776"),
    ("GASKET_MAX_BODIES_SIZE", "33554431", "at least GASKET_MAX_BODY_SIZE"),
    ("GASKET_MAX_REQUESTS", "many", "a whole number"),
    ("GASKET_KEY_SHARE", "101", "must be a whole number from 1 to 100"),
    ("GASKET_KEEP_ALIVE", "0", "from 1 to 86400"),
    ("GASKET_BACKEND_NETWORKS", "deny 10.0.0.0/33", "a network, a host or * in rule 1"),
    ("GASKET_TRUSTED_PROXIES", "10.0.0.0/8, example", "must have a network, an address or `unix` in entry 2"),
    ("GASKET_CORS_ORIGINS", "chat.example", "must have * or an origin such as https://chat.example:8443 in entry 1"),
    ("GASKET_METRICS_PUBLIC", "open", "true or false"),
    ("GASKET_DOCS_PUBLIC", "open", "true or false"),
    ("GASKET_USAGE_RETENTION_DAYS", "36501", "from 0 to 36500"),
    ("GASKET_USAGE_RETENTION_DAYS", "never", "a whole number"),
    ("GASKET_AUDIT_RETENTION_DAYS", "-1", "a whole number"),
    ("GASKET_ORPHANED_KEYS_DAYS", "never", "a whole number"),
    ("GASKET_DRAIN_DELAY", "soon", "a number of seconds"),
    ("GASKET_DRAIN_TIMEOUT", "86401", "from 0 to 86400"),
    ("GASKET_LOG_FORMAT", "logfmt", "json or text"),
    ("GASKET_RELEASE", "one\ntwo", "printable"),
    ("GASKET_RELEASE", "r" * 101, "at most 100"),
    ("GASKET_ADMIN_TOKEN", "hunter22", "at least 16"),
    ("GASKET_ADMIN_TOKEN", "abcabcabcabcabcabcabc", "must not be easily guessed"),
    ("GASKET_ADMIN_TOKEN", "changeme-changeme-1234", "openssl rand"),
    ("GASKET_ADMIN_TOKEN", "Admin-Password_secret1", "must not be easily guessed"),
    ("GASKET_ADMIN_TOKEN", f"{TOKEN}, passwordpassword!!x", "must not be easily guessed"),
    ("GASKET_ADMIN_TOKEN_NETWORKS", "10.0.0.0/8, hunter22", "in entry 2"),
    ("GASKET_OIDC_ISSUER", "http://login.example", "the https URL of an issuer"),
    ("GASKET_OIDC_ISSUER", "https://u:hunter22@login.example", "the https URL of an issuer"),
    ("GASKET_OIDC_ISSUER", "https://login.example/?hunter22", "the https URL of an issuer"),
    ("GASKET_OIDC_ISSUER", "https://", "the https URL of an issuer"),
    ("GASKET_OIDC_ISSUER", "login.example", "the https URL of an issuer"),
    ("GASKET_OIDC_AUDIENCE", "a\tb", "printable characters"),
    ("GASKET_OIDC_TRUSTED_ISSUERS", "https://a.example, http://b.example", "the https URL of an issuer"),
    ("GASKET_OIDC_CLIENT_ID", "hunter22\x00", "254 printable characters"),
    ("GASKET_OIDC_CLIENT_SECRET", "hunter22" * 40, "254 printable characters"),
    ("GASKET_OIDC_SCOPES", 'email "hunter22"', "separated by spaces"),
    ("GASKET_OIDC_GROUPS_CLAIM", "hunter22\x1b", "254 printable characters"),
    ("GASKET_OIDC_ADMIN_GROUPS", "a, hunter22\tb", "printable characters, comma-separated"),
    ("GASKET_OIDC_OPERATOR_GROUPS", "hunter22\tb", "printable characters, comma-separated"),
    ("GASKET_OIDC_VIEWER_GROUPS", "hunter22\tb", "printable characters, comma-separated"),
    ("GASKET_OIDC_USER_GROUPS", "hunter22\tb", "printable characters, comma-separated"),
    ("GASKET_ADMIN_TOKEN", f"{TOKEN},hunter22", "at least 16"),
    ("GASKET_ADMIN_TOKEN", f"{TOKEN},", "at least 16"),
    ("GASKET_ADMIN_TOKEN", "hunter22 and a blank", "without spaces"),
    ("GASKET_ADMIN_TOKEN", "hunter22-äöüäöüäöü", "ASCII"),
    ("GASKET_SECRET_KEY", "hunter22", "Fernet keys"),
    ("GASKET_SECRET_KEY", f"{KEY},{KEY[:-2]}", "Fernet keys"),
    ("GASKET_SECRET_KEY", "!" + KEY[1:], "Fernet keys"),
    ("GASKET_WEBHOOK_URL", "ftp://h/hunter22", "an http or https URL"),
    ("GASKET_WEBHOOK_URL", "https://u:hunter22@h/", "without a user"),
    ("GASKET_WEBHOOK_URL", "https://h:hunter22/", "an http or https URL"),
    ("GASKET_WEBHOOK_URL", "https:///hunter22", "with a host"),
    ("GASKET_WEBHOOK_URL", "https://h/hunter22é", "printable ASCII"),
    ("GASKET_WEBHOOK_SECRET", "hunter22", "whsec_"),
    ("GASKET_WEBHOOK_SECRET", f"whsec_{b64encode(b'w' * 23).decode()}", "24 to 64 bytes"),
    ("GASKET_WEBHOOK_SECRET", WEBHOOK_SECRET.removeprefix("whsec_"), "whsec_"),
    ("GASKET_DATA_DIR", "data", "an absolute path"),
]


def test_every_setting_is_tried_here() -> None:
    variables = {entry.metadata["env"] for entry in fields(Settings)}
    assert {variable for variable, *_ in GOOD} == variables
    assert {variable for variable, *_ in WRONG} == variables


@pytest.mark.parametrize(("variable", "value", "name", "expected"), GOOD)
def test_a_good_value_is_taken(variable: str, value: str, name: str, expected: object) -> None:
    environ = {"DATABASE_URL": "postgresql://h/db", variable: value}
    assert getattr(read_settings(environ), name) == expected
    assert getattr(read_settings({**environ, variable: f"  {value}\n"}), name) == expected


@pytest.mark.parametrize(("variable", "value", "allowed"), WRONG)
def test_a_wrong_value_is_refused_by_name_and_not_shown(variable: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        read_settings({variable: value})
    message = str(refusal.value)
    assert message.startswith(f"{variable} must")
    assert allowed in message
    assert message.endswith(".")
    assert "hunter22" not in message
    assert KEY not in message
    assert TOKEN not in message


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    """A file as Docker and Kubernetes mount it."""
    path = tmp_path / "hunter22"
    path.write_text("hunter22\n")
    return path


@pytest.mark.parametrize(("variable", "value", "name", "expected"), GOOD)
def test_every_secret_may_come_from_a_file(
    variable: str, value: str, name: str, expected: object, secret_file: Path
) -> None:
    """And nothing else: a variable that would have no effect is refused."""
    secret_file.write_text(f"{value}\n")
    environ = {} if variable == "DATABASE_URL" else {"DATABASE_URL": "postgresql://h/db"}
    if name in SECRETS:
        assert getattr(read_settings({**environ, f"{variable}_FILE": f" {secret_file}\n"}), name) == expected
    else:
        with pytest.raises(SettingsError, match=f"{variable}_FILE is not a setting of Gasket"):
            read_settings({**environ, f"{variable}_FILE": str(secret_file)})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"hunter22", "GASKET_SECRET_KEY (from the file that GASKET_SECRET_KEY_FILE names) must be one or more Fernet"),
        (b" \n", "GASKET_SECRET_KEY_FILE must name a file with the value in it; this file is empty."),
        (b"hunter22\xff", "GASKET_SECRET_KEY_FILE must name a text file; the content of this one is not UTF-8."),
        (
            b"hunter22\nhunter23",
            "GASKET_SECRET_KEY_FILE must name a file of one line; this one has several, or control",
        ),
        (b"hunter22\x00", "GASKET_SECRET_KEY_FILE must name a file of one line; this one has several, or control"),
        (
            b"hunter22" * 10_000,
            "GASKET_SECRET_KEY_FILE must name a file that Gasket can read; it got: more than 64 KiB.",
        ),
        (None, "GASKET_SECRET_KEY_FILE must name a file that Gasket can read; it got: No such file or directory."),
    ],
)
def test_a_file_that_holds_no_good_value_is_refused_and_not_shown(
    content: bytes | None, problem: str, secret_file: Path
) -> None:
    """Nor is its path: it may be the secret itself, set as the wrong variable."""
    if content is None:
        secret_file.unlink()
    else:
        secret_file.write_bytes(content)
    with pytest.raises(SettingsError) as refusal:
        read_settings({"GASKET_SECRET_KEY_FILE": str(secret_file)})
    assert str(refusal.value).startswith(problem)
    assert "hunter22" not in str(refusal.value)


def test_what_would_be_waited_for_or_has_no_end_is_no_file_with_a_secret(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        with pytest.raises(SettingsError, match="can read; it got: a pipe, a socket or a device"):
            read_settings({"GASKET_SECRET_KEY_FILE": str(path)})


def test_the_mark_at_the_beginning_of_a_file_does_not_count(secret_file: Path) -> None:
    """As some editors write it."""
    secret_file.write_bytes(b"\xef\xbb\xbfpostgresql://h/db\r\n")
    assert read_settings({"DATABASE_URL_FILE": str(secret_file)}).database_url == "postgresql://h/db"


def test_a_secret_and_its_file_at_once_are_refused(secret_file: Path) -> None:
    given = {"DATABASE_URL": "postgresql://h/db", "DATABASE_URL_FILE": str(secret_file)}
    with pytest.raises(SettingsError) as refusal:
        read_settings(given)
    assert str(refusal.value) == "DATABASE_URL and DATABASE_URL_FILE are both set; set one of them."
    assert read_settings({**given, "DATABASE_URL_FILE": " "}).database_url == "postgresql://h/db"


def test_defaults() -> None:
    assert read_settings({}) == Settings()
    settings = read_settings({"DATABASE_URL": "", "GASKET_RELEASE": "  "})
    assert settings.database_url is None
    assert settings.embedded
    assert settings.database_schema == "public"
    assert settings.database_wait == 30
    assert settings.migrate_on_startup is True
    assert settings.migration_lock_wait == 600
    assert settings.release == release_name()
    assert settings.admin_tokens == settings.secret_keys == ()
    assert settings.data_dir == default_data_dir()
    assert settings.data_dir.is_absolute()


def test_other_variables_are_none_of_its_business() -> None:
    assert read_settings({"PGHOST": "h", "GASKETS": "x", "MY_GASKET_RELEASE": "x"}) == Settings()


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("GASKET_MIGRATON_LOCK_WAIT", "GASKET_MIGRATION_LOCK_WAIT"),
        ("GASKET_DATABASE_URL", "DATABASE_URL"),
        ("GASKET_SCHEMA", "GASKET_DATABASE_SCHEMA"),
        ("GASKET_ADMIN_TOKENS", "GASKET_ADMIN_TOKEN"),
        ("GASKET_DATABASE_URL_FILE", "DATABASE_URL_FILE"),
        ("GASKET_SECRET_KEYS_FILE", "GASKET_SECRET_KEY_FILE"),
        ("gasket_release", "GASKET_RELEASE"),
        ("GASKET_PORTS", None),
        ("GASKET_XYZZY", None),
    ],
)
def test_a_mistyped_setting_is_refused_with_the_nearest_right_one(mistyped: str, meant: str | None) -> None:
    with pytest.raises(SettingsError) as refusal:
        read_settings({mistyped: "hunter22", "DATABASE_URL": "postgresql://h/db"})
    advice = f"did you mean {meant}?" if meant else "unset it."
    assert str(refusal.value) == f"{mistyped} is not a setting of Gasket; {advice}"


def test_all_mistyped_settings_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as refusal:
        read_settings({"GASKET_RELEAS": "1", "GASKET_DRAIN": "1", "GASKET_KEEPALIVE": "", "GASKET_KEEP_ALIVE": "no"})
    assert str(refusal.value) == (
        "GASKET_DRAIN is not a setting of Gasket; did you mean GASKET_DRAIN_DELAY? "
        "GASKET_RELEAS is not a setting of Gasket; did you mean GASKET_RELEASE?"
    )


@pytest.mark.parametrize("service", ["GASKET", "GASKET_BLUE"])
def test_what_kubernetes_sets_for_a_service_of_that_name_is_let_pass(service: str) -> None:
    address = f"{service}_PORT_8000_TCP"
    variables = [
        f"{service}_SERVICE_HOST",
        f"{service}_SERVICE_PORT",
        f"{service}_SERVICE_PORT_HTTP",
        f"{service}_PORT",
        *(address + rest for rest in ("", "_PROTO", "_PORT", "_ADDR")),
        f"{service}_PORT_53_UDP",
    ]
    assert read_settings(dict.fromkeys(variables, "tcp://10.0.0.1:8000")) == Settings()


def test_with_a_database_url_nothing_is_embedded() -> None:
    assert not read_settings({"DATABASE_URL": "postgresql://h/db"}).embedded


def test_a_migration_url_alone_is_refused() -> None:
    with pytest.raises(SettingsError, match="GASKET_MIGRATION_DATABASE_URL is set but DATABASE_URL is not"):
        read_settings({"GASKET_MIGRATION_DATABASE_URL": "postgresql://h/db"})


def test_no_secret_shows_in_the_repr() -> None:
    settings = read_settings(
        {
            "DATABASE_URL": "postgresql://u:hunter22@h/db",
            "GASKET_MIGRATION_DATABASE_URL": "postgresql://ddl:hunter22@h/db",
            "GASKET_ADMIN_TOKEN": TOKEN,
            "GASKET_SECRET_KEY": KEY,
            "GASKET_WEBHOOK_URL": "https://h/hunter22",
            "GASKET_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "GASKET_RELEASE": "r1",
        }
    )
    assert "release='r1'" in repr(settings)
    for secret in ("hunter22", TOKEN, KEY, "wwww"):
        assert secret not in repr(settings)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().release = "another"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgres://u:p@h/db", "postgresql://u:p@h/db"),
        ("postgresql://u:p@h/db", "postgresql://u:p@h/db"),
        ("postgresql+asyncpg://u:p@h/db", "postgresql://u:p@h/db"),
        ("postgres:///db?host=/run/postgresql", "postgresql:///db?host=/run/postgresql"),
        ("postgresql:///db?host=/run/postgresql", "postgresql:///db?host=/run/postgresql"),
        ("postgresql+asyncpg:///db?host=/run/x", "postgresql:///db?host=/run/x"),
        ("postgresql://u@/db?host=/run/x&port=6432", "postgresql://u@/db?host=/run/x&port=6432"),
        ("postgresql://u@%2Frun%2Fpostgresql/db", "postgresql://u@%2Frun%2Fpostgresql/db"),
        ("postgresql://u:p%40ss%25%2F@h/db", "postgresql://u:p%40ss%25%2F@h/db"),
        ("postgresql://h1:5432,h2:5433,h3/db", "postgresql://h1:5432,h2:5433,h3/db"),
        ("postgresql://u:p@[::1]:5433/db", "postgresql://u:p@[::1]:5433/db"),
        ("postgresql://h", "postgresql://h"),
        (
            "postgres://h/db?sslmode=verify-full&sslrootcert=/etc/ca.pem&target_session_attrs=read-write",
            "postgresql://h/db?sslmode=verify-full&sslrootcert=/etc/ca.pem&target_session_attrs=read-write",
        ),
        ("POSTGRESQL+ASYNCPG:///db", "postgresql:///db"),
        (
            "postgresql://h/db?connect_timeout=5&sslsni=1&gssencmode=prefer&keepalives=1",
            "postgresql://h/db?connect_timeout=5&keepalives=1",
        ),
        ("postgresql://h/db?application_name=a%20b", "postgresql://h/db?application_name=a%20b"),
        ("postgresql://h:5432/db?user=me@corp", "postgresql://h:5432/db?user=me@corp"),
    ],
)
def test_every_form_of_url(given: str, expected: str) -> None:
    assert read_settings({"DATABASE_URL": given}).database_url == expected


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://u:hunter@22@h/db", f"a second @. {PASSWORD_RULE}"),
        ("postgresql://u:hunter#22@h/db", f"a #. {PASSWORD_RULE}"),
        ("postgresql://u:5432#hunter@h/db", f"a #. {PASSWORD_RULE}"),
        ("postgresql://u:5432/hunter@h/db", f"a / before the @. {PASSWORD_RULE}"),
        ("postgresql://u:5432?hunter=@h/db", f"a ? before the @. {PASSWORD_RULE}"),
        ("postgresql://u:hunter/22@h/db", PASSWORD_RULE),
        ("postgresql://u:hunter?22@h/db", PASSWORD_RULE),
        ("postgresql://h:\u00b2/db", "a port from 1 to 65535"),
        ("postgresql://h/db?channel_binding=require", "channel_binding=require"),
        ("postgresql://h/db?gssencmode=require", "gssencmode=require"),
        ("postgresql://h/db?keepalives_idle=soon", "keepalives_idle as a whole number"),
        ("postgresql://h/db?keepalives_idle=100000", "keepalives_idle of at most 32767"),
        ("postgresql://h/db?keepalives_count=128", "keepalives_count of at most 127"),
        ("postgresql://h/db?tcp_user_timeout=3000000000", "tcp_user_timeout of at most 2147483647"),
    ],
)
def test_a_url_that_the_driver_would_misread_is_refused(url: str, problem: str) -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL must") as refusal:
        read_settings({"DATABASE_URL": url})
    assert problem in str(refusal.value)
    assert "hunter" not in str(refusal.value)


def test_a_home_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="GASKET_DATA_DIR must be an absolute path"):
        read_settings({"GASKET_DATA_DIR": "~nosuchuser/x"})
