"""What a libpq URL says of a connection, what its session is called, and what an error of the driver means."""

from __future__ import annotations

import errno
import os
import re
import socket

import asyncpg
import pytest
from asyncpg.connect_utils import _parse_connect_dsn_and_args  # type: ignore[attr-defined]  # private
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.exc import DBAPIError

from gasket.postgres.errors import AWAY, describe, is_lost
from gasket.postgres.sessions import application_name
from gasket.postgres.urls import Liveness, address_of, hosts_of, read_liveness, without_liveness


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", Liveness()),
        ("?sslmode=require", Liveness()),
        ("?connect_timeout=3&tcp_user_timeout=9000", Liveness(connect_timeout=3, user_timeout=9000)),
        ("?keepalives=0", Liveness(keepalives=False)),
        (
            "?keepalives_idle=60&keepalives_interval=7&keepalives_count=2&keepalives=1",
            Liveness(idle=60, interval=7, count=2),
        ),
        ("?connect_timeout=-1&keepalives_idle=0", Liveness(connect_timeout=0, idle=0)),
    ],
)
def test_liveness_is_read_as_libpq_reads_it(options: str, expected: Liveness) -> None:
    assert read_liveness(f"postgresql://h/db{options}") == expected


@pytest.mark.parametrize("name", ["connect_timeout", "keepalives", "keepalives_count", "tcp_user_timeout"])
def test_liveness_that_is_no_number_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"must have {name} as a whole number"):
        read_liveness(f"postgresql://u:secret@h/db?{name}=soon")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://h/db?connect_timeout=3", "postgresql://h/db"),
        ("postgresql://h/db?keepalives=1&sslmode=require&tcp_user_timeout=5", "postgresql://h/db?sslmode=require"),
        ("postgresql:///db?host=/run/x", "postgresql:///db?host=/run/x"),
        ("postgresql:///db", "postgresql:///db"),
    ],
)
def test_the_driver_is_given_what_it_knows(url: str, expected: str) -> None:
    assert without_liveness(url) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://h/db", [("h", None)]),
        # IPv6 comes first: newer versions of urlsplit refuse it behind another host (CVE-2025-0938).
        ("postgresql://u:p@[::1]:6,h1:5433,h2/db", [("::1", 6), ("h1", 5433), ("h2", None)]),
        ("postgresql://h1,h2/db?port=7", [("h1", 7), ("h2", 7)]),
        ("postgresql:///db?host=h1,/run/x&port=7,8", [("h1", 7), ("/run/x", 8)]),
        ("postgresql://u@%2Frun%2Fx/db", [("/run/x", None)]),
        ("postgresql:///db", []),
    ],
)
def test_the_hosts_of_a_url(url: str, expected: list[tuple[str, int | None]]) -> None:
    assert hosts_of(url) == expected


def _of_sqlalchemy(error: Exception) -> DBAPIError:
    """As SQLAlchemy raises what the driver has raised."""
    driver = PGDialect_asyncpg.import_dbapi()  # type: ignore[no-untyped-call]
    kinds = driver._asyncpg_error_translate
    translated = next(kinds[kind] for kind in type(error).__mro__ if kind in kinds)
    original = translated("", error)
    original.__cause__ = error
    return DBAPIError("SELECT 1", None, original)


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InternalClientError("got result for unknown protocol state 3"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.AdminShutdownError("terminating connection due to administrator command"),
        ConnectionResetError("by peer"),
    ],
)
def test_a_lost_connection(error: Exception) -> None:
    assert is_lost(error)
    assert isinstance(error, AWAY)


def test_a_lost_connection_as_sqlalchemy_tells_it() -> None:
    assert is_lost(_of_sqlalchemy(asyncpg.InternalClientError("got result for unknown protocol state 3")))
    assert not is_lost(_of_sqlalchemy(asyncpg.InterfaceError("the server expects 1 argument")))


@pytest.mark.parametrize("severity", ["ERROR", "FATAL"])
def test_class_08_of_another_server_leaves_the_session(severity: str) -> None:
    """dblink and postgres_fdw raise it as an ERROR."""
    fields = {"S": severity, "V": severity, "C": "08001", "M": "could not connect to server"}
    error = asyncpg.PostgresError.new(fields)
    lost = severity == "FATAL"
    assert (is_lost(error), is_lost(_of_sqlalchemy(error))) == (lost, lost)


@pytest.mark.parametrize("error", [asyncpg.LockNotAvailableError("x"), ValueError("x"), asyncpg.DataError("x")])
def test_other_errors_leave_the_connection(error: Exception) -> None:
    assert not is_lost(error)


@pytest.fixture
def libpq_variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://app:hunter2@db:6432/gasket", "app@db:6432/gasket"),
        ("postgresql://app:hunter2@db/gasket?sslmode=require", "app@db:5432/gasket"),
        ("postgresql://app@[::1]:5433/gasket", "app@[::1]:5433/gasket"),
        ("postgresql://app@h1:5433,h2/gasket", "app@h1:5433,h2:5432/gasket"),
        ("postgresql://app@/gasket?host=/run/postgresql&port=6432", "app@[/run/postgresql]:6432/gasket"),
        ("postgresql://app@%2Frun%2Fpostgresql/gasket", "app@[/run/postgresql]:5432/gasket"),
        ("postgresql://a%40corp:hunter2@db/with%20space", "a@corp@db:5432/with space"),
        ("postgresql://db?user=app&dbname=gasket&password=hunter2", "app@db:5432/gasket"),
        ("postgresql://app@db", "app@db:5432/app"),
    ],
)
def test_an_address_has_role_host_port_and_database_as_the_driver_has_them(
    url: str, expected: str, libpq_variables: pytest.MonkeyPatch
) -> None:
    assert address_of(url) == expected
    addresses, parameters = _parse_connect_dsn_and_args(
        dsn=url,
        host=None,
        port=None,
        user=None,
        password=None,
        passfile=None,
        database=None,
        ssl=None,
        service=None,
        servicefile=None,
        direct_tls=None,
        server_settings=None,
        target_session_attrs=None,
        krbsrvname=None,
        gsslib=None,
    )
    assert expected.startswith(f"{parameters.user}@")
    assert expected.endswith(f"/{parameters.database}")
    for address in addresses:
        if isinstance(address, str):
            host, _, port = address.partition("/.s.PGSQL.")
        else:
            host, port = address
        assert f"{host}:{port}" in expected.replace("[", "").replace("]", "")


def test_what_an_address_lacks_is_taken_from_libpqs_variables(libpq_variables: pytest.MonkeyPatch) -> None:
    for name, value in {"PGHOST": "db", "PGPORT": "6432", "PGUSER": "app", "PGDATABASE": "gasket"}.items():
        libpq_variables.setenv(name, value)
    assert address_of("postgresql://") == "app@db:6432/gasket"


CONNECT_FAILED = "Connect call failed ('127.0.0.1', 5432)"
BOTH_FAILED = f"Multiple exceptions: [Errno 111] Connect call failed ('::1', 5432, 0, 0), [Errno 111] {CONNECT_FAILED}"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, CONNECT_FAILED), "Connection refused at 127.0.0.1:5432"),
        (OSError(BOTH_FAILED), "Connection refused at ::1:5432, .*Connection refused at 127.0.0.1:5432"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)), "No such file or directory"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "the host name cannot be resolved .Name .*"),
        (ConnectionResetError(), "ConnectionResetError"),
        (TimeoutError(), "no answer in time"),
    ],
)
def test_an_error_of_the_system_is_told_in_words(error: OSError, expected: str) -> None:
    assert re.fullmatch(f".*{expected}", describe(error))
    assert "Errno" not in describe(error)


@pytest.mark.parametrize("release", ["0.1.0+g1a2b3c4", "r" * 100])
@pytest.mark.parametrize("schema", ["public", "a_rather_long_name_of_a_schema"])
@pytest.mark.parametrize("host", ["node-1", "gasket-gateway-of-production-7d9f8b6c5d-abcde"])
def test_all_sessions_of_a_process_are_called_alike(
    release: str, schema: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    names = [application_name(activity, release, schema) for activity in ("gasket-migrate", "gasket-ready", "gasket")]
    assert len({name.partition(" ")[2] for name in names}) == 1
    assert all(len(name) <= 63 for name in names)
    assert {name.partition(" ")[0].partition("@")[2] for name in names} == {"" if schema == "public" else schema[:12]}


def test_a_long_host_name_keeps_the_end_by_which_replicas_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for pod in ("abcde", "fghij"):
        monkeypatch.setattr(socket, "gethostname", lambda pod=pod: f"gasket-gateway-of-production-7d9f8b6c5d-{pod}")
        names.add(application_name("gasket-ready", "0.1.0+g1a2b3c4"))
    assert len(names) == 2
