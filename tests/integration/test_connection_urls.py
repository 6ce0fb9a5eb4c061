"""Every form of DATABASE_URL that the README promises reaches a server when asyncpg is given it as it is.

They need a server with TCP and TLS, which the embedded PostgreSQL has not: one from Debian's packages is run for this
file, on 127.0.0.1, with a certificate of its own.
"""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from gasket.postgres.programs import server_account
from gasket.settings import read_settings
from tests.acceptance.processes import free_port

PASSWORD = "p%40 @:/?#[ü"
PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)


@dataclass(frozen=True)
class Server:
    folder: Path
    port: int

    @property
    def certificate(self) -> Path:
        return self.folder / "server.crt"

    def url(self, rest: str = "", *, user: str = f"owner:{quote(PASSWORD, safe='')}", hosts: str = "127.0.0.1") -> str:
        """`hosts` get this server's port where they have none."""
        ports = ",".join(host if ":" in host else f"{host}:{self.port}" for host in hosts.split(","))
        return f"postgresql://{user}@{ports}/postgres{rest}"


@pytest.fixture(scope="module")
def server(open_folder: Path) -> Iterator[Server]:
    openssl = shutil.which("openssl")
    if PROGRAMS is None or openssl is None:
        pytest.skip("needs Debian's PostgreSQL (apt install postgresql) and openssl")
    account = server_account(open_folder / "none-yet")
    identity: dict[str, Any] = {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}
    server = Server(open_folder / "tls", free_port())
    server.folder.mkdir(mode=0o700)
    if account:
        os.chown(server.folder, account.uid, account.gid)

    def run(*command: object) -> None:
        # Into a file: a server that is started keeps its standard output open.
        with (server.folder / "log").open("ab") as log:
            done = subprocess.run(
                [str(part) for part in command],
                cwd=server.folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=60,
                check=False,
                start_new_session=True,
                **identity,
            )
        assert done.returncode == 0, (server.folder / "log").read_text(errors="replace")

    (server.folder / "password").write_text(PASSWORD)
    (server.folder / "password").chmod(0o644)
    access = ["--username=owner", "--pwfile=password", "--auth-local=trust", "--auth-host=scram-sha-256"]
    run(PROGRAMS / "initdb", "--pgdata=data", "--encoding=UTF8", "--no-locale", "--no-sync", *access)
    for name in ("server", "stranger"):
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
        run(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", 2, *subject, *files)
    tls = f"--ssl=on --ssl_cert_file={server.certificate} --ssl_key_file={server.folder / 'server.key'}"
    options = f"{tls} --listen_addresses=127.0.0.1 --port={server.port} -k {server.folder} --fsync=off"
    run(PROGRAMS / "pg_ctl", "start", "--pgdata=data", "--wait", f"--options={options}")
    try:
        yield server
    finally:
        run(PROGRAMS / "pg_ctl", "stop", "--pgdata=data", "--wait", "--mode=fast")


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libpq's variables, and its files in the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)


async def value(url: str, query: str = "SELECT 1") -> Any:
    """What the query gives through the URL as the settings hand it on."""
    dsn = read_settings({"DATABASE_URL": url}).database_url
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        return await connection.fetchval(query, timeout=10)
    finally:
        await connection.close(timeout=10)


async def is_encrypted(url: str) -> Any:
    return await value(url, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
async def test_the_three_schemes(database_url: str, scheme: str) -> None:
    assert await value(database_url.replace("postgresql", scheme, 1)) == 1


async def test_a_password_with_every_awkward_character(server: Server) -> None:
    assert await value(server.url()) == 1
    with pytest.raises(asyncpg.InvalidPasswordError):
        await value(server.url(user="owner:wrong"))


@pytest.mark.parametrize("where", ["?host={folder}&port={port}", "?port={port}&host={folder}"])
async def test_a_unix_socket_in_the_query(server: Server, where: str) -> None:
    options = where.format(folder=server.folder, port=server.port)
    assert await value(f"postgresql://owner@/postgres{options}", "SELECT inet_server_addr()") is None
    assert await value(f"postgres:///postgres{options}&user=owner", "SELECT inet_server_addr()") is None


async def test_a_unix_socket_as_the_host(server: Server) -> None:
    url = f"postgresql://owner@{quote(str(server.folder), safe='')}:{server.port}/postgres"
    assert await value(url, "SELECT inet_server_addr()") is None


async def test_the_first_of_several_hosts_is_dead(server: Server) -> None:
    assert await value(server.url(hosts=f"127.0.0.1:{free_port()},127.0.0.1")) == 1


@pytest.mark.parametrize(
    ("options", "encrypted"),
    [("", True), ("?sslmode=disable", False), ("?sslmode=prefer", True), ("?sslmode=require", True)],
)
async def test_sslmode(server: Server, options: str, encrypted: bool) -> None:
    assert await is_encrypted(server.url(options)) is encrypted


async def test_verify_ca_takes_the_certificate_it_is_given_and_no_other(server: Server) -> None:
    assert await is_encrypted(server.url(f"?sslmode=verify-ca&sslrootcert={server.certificate}"))
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed certificate"):
        await value(server.url(f"?sslmode=verify-ca&sslrootcert={server.folder / 'stranger.crt'}"))


async def test_verify_full_wants_the_hosts_own_name_as_well(server: Server) -> None:
    options = f"?sslmode=verify-full&sslrootcert={server.certificate}"
    assert await is_encrypted(server.url(options, hosts="localhost"))
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        await value(server.url(options))


async def test_target_session_attrs_picks_the_server_that_can_be_written_to(server: Server) -> None:
    assert await value(server.url("?target_session_attrs=read-write"), "SHOW transaction_read_only") == "off"
    await value(server.url(), "DROP ROLE IF EXISTS reader")
    await value(server.url(), "CREATE ROLE reader LOGIN PASSWORD 'r'")
    await value(server.url(), "ALTER ROLE reader SET default_transaction_read_only = on")
    assert await value(server.url("?target_session_attrs=any", user="reader:r")) == 1
    with pytest.raises(asyncpg.TargetServerAttributeNotMatched):
        await value(server.url("?target_session_attrs=read-write", user="reader:r"))


async def test_the_password_file(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No colon and no backslash: asyncpg 0.32 does not undo their escapes in this file.
    await value(server.url(), "DROP ROLE IF EXISTS filed")
    await value(server.url(), "CREATE ROLE filed LOGIN PASSWORD 'p%40@/?#'")
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    passwords.write_text(f"127.0.0.1:{server.port}:*:filed:p%40@/?#\n")
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    assert await value(server.url(user="filed")) == 1
    monkeypatch.delenv("PGPASSFILE")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await value(server.url(user="filed"))
    assert await value(server.url(f"?passfile={passwords}", user="filed")) == 1


async def test_further_options_are_settings_of_the_session(server: Server) -> None:
    url = server.url("?application_name=gasket%20one&options=-c%20statement_timeout%3D5s")
    assert await value(url, "SHOW application_name") == "gasket one"
    assert await value(url, "SHOW statement_timeout") == "5s"
