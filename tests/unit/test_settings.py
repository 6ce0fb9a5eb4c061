"""Every setting: what is taken, what is refused and in which words, and that no secret shows."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from dataclasses import FrozenInstanceError, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from gasket.errors import SettingsError
from gasket.settings import Settings, default_data_dir, read_settings

KEY = urlsafe_b64encode(b"k" * 32).decode()
OTHER_KEY = urlsafe_b64encode(b"\xff" * 32).decode()
TOKEN = "sixteen-letters!"

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
    ("GASKET_SCRATCH_DATABASE_URL", "postgres://h/scratch", "scratch_database_url", "postgresql://h/scratch"),
    ("GASKET_KEY_CACHE_TTL", "0", "key_cache_ttl", 0.0),
    ("GASKET_KEY_CACHE_TTL", "30", "key_cache_ttl", 30.0),
    ("GASKET_MAX_BODY_SIZE", "536870912", "max_body_size", 2**29),
    ("GASKET_MAX_BODIES_SIZE", "1099511627776", "max_bodies_size", 2**40),
    ("GASKET_MAX_REQUESTS", "1", "max_requests", 1),
    ("GASKET_KEEP_ALIVE", "620", "keep_alive", 620),
    ("GASKET_METRICS_PUBLIC", "yes", "metrics_public", True),
    ("GASKET_METRICS_PUBLIC", "false", "metrics_public", False),
    ("GASKET_USAGE_RETENTION_DAYS", "0", "usage_retention_days", 0),
    ("GASKET_USAGE_RETENTION_DAYS", "36500", "usage_retention_days", 36_500),
    ("GASKET_DRAIN_DELAY", "0", "drain_delay", 0.0),
    ("GASKET_DRAIN_TIMEOUT", "2.5", "drain_timeout", 2.5),
    ("GASKET_RELEASE", "2026.11 (blue)", "release", "2026.11 (blue)"),
    ("GASKET_ADMIN_TOKEN", TOKEN, "admin_tokens", (TOKEN,)),
    ("GASKET_ADMIN_TOKEN", f"{TOKEN}, {TOKEN[::-1]}", "admin_tokens", (TOKEN, TOKEN[::-1])),
    ("GASKET_SECRET_KEY", KEY, "secret_keys", (KEY,)),
    ("GASKET_SECRET_KEY", f"{KEY} ,{OTHER_KEY}", "secret_keys", (KEY, OTHER_KEY)),
    ("GASKET_DATA_DIR", "/srv/gasket", "data_dir", Path("/srv/gasket")),
    ("GASKET_DATA_DIR", "~/gasket", "data_dir", Path.home() / "gasket"),
]

WRONG: list[tuple[str, str, str]] = [
    ("DATABASE_URL", "mysql://u:hunter22@h/db", "must begin with postgres://"),
    ("DATABASE_URL", "u:hunter22@h/db", "must begin with postgres://"),
    ("DATABASE_URL", "postgresql://u:hunter22@[::1/db", "must be a PostgreSQL URL"),
    ("DATABASE_URL", "postgresql://u:hunter22@h:0/db", "a port from 1 to 65535"),
    ("DATABASE_URL", "postgresql://u:hunter22@h:5432,i:65536/db", "a port from 1 to 65535"),
    ("DATABASE_URL", "postgresql://u:hunter22@[::1]:five/db", "a port from 1 to 65535"),
    ("DATABASE_URL", "postgresql://u:hunter22#x@h/db", "a port from 1 to 65535"),
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
    ("GASKET_KEEP_ALIVE", "0", "from 1 to 86400"),
    ("GASKET_METRICS_PUBLIC", "open", "true or false"),
    ("GASKET_USAGE_RETENTION_DAYS", "36501", "from 0 to 36500"),
    ("GASKET_USAGE_RETENTION_DAYS", "never", "a whole number"),
    ("GASKET_DRAIN_DELAY", "soon", "a number of seconds"),
    ("GASKET_DRAIN_TIMEOUT", "86401", "from 0 to 86400"),
    ("GASKET_RELEASE", "one\ntwo", "printable"),
    ("GASKET_RELEASE", "r" * 101, "at most 100"),
    ("GASKET_ADMIN_TOKEN", "hunter22", "at least 16"),
    ("GASKET_ADMIN_TOKEN", f"{TOKEN},hunter22", "at least 16"),
    ("GASKET_ADMIN_TOKEN", f"{TOKEN},", "at least 16"),
    ("GASKET_ADMIN_TOKEN", "hunter22 and a blank", "without spaces"),
    ("GASKET_ADMIN_TOKEN", "hunter22-äöüäöüäöü", "ASCII"),
    ("GASKET_SECRET_KEY", "hunter22", "Fernet keys"),
    ("GASKET_SECRET_KEY", f"{KEY},{KEY[:-2]}", "Fernet keys"),
    ("GASKET_SECRET_KEY", "!" + KEY[1:], "Fernet keys"),
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


def test_defaults() -> None:
    assert read_settings({}) == Settings()
    settings = read_settings({"DATABASE_URL": "", "GASKET_RELEASE": "  "})
    assert settings.database_url is None
    assert settings.embedded
    assert settings.database_schema == "public"
    assert settings.database_wait == 30
    assert settings.migrate_on_startup is True
    assert settings.migration_lock_wait == 600
    assert settings.release == version("gasket")
    assert settings.admin_tokens == settings.secret_keys == ()
    assert settings.data_dir == default_data_dir()
    assert settings.data_dir.is_absolute()


def test_other_variables_are_none_of_its_business() -> None:
    assert read_settings({"PGHOST": "h", "GASKET_SOMETHING_ELSE": "x"}) == Settings()


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
            "GASKET_RELEASE": "r1",
        }
    )
    assert "release='r1'" in repr(settings)
    for secret in ("hunter22", TOKEN, KEY):
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
        ("postgresql://h/db?connect_timeout=5&sslmode=require&keepalives=1", "postgresql://h/db?sslmode=require"),
        ("postgresql://h/db?application_name=a%20b", "postgresql://h/db?application_name=a%20b"),
    ],
)
def test_every_form_of_url(given: str, expected: str) -> None:
    assert read_settings({"DATABASE_URL": given}).database_url == expected


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://u:hunter@22@h/db", "written as %40"),
        ("postgresql://h:\u00b2/db", "a port from 1 to 65535"),
        ("postgresql://h/db?channel_binding=require", "channel_binding=require"),
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
