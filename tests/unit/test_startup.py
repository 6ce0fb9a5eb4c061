"""What a server is told of a start or an end that went wrong."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from gasket.errors import SettingsError
from gasket.installation import Installation
from gasket.postgres import programs
from gasket.server.connections import Connections
from gasket.server.protocol import Connection
from gasket.settings import read_settings
from gasket.startup import HTTP_PROTOCOL, Gasket, Startup


async def test_a_forced_end_is_told_in_one_sentence() -> None:
    """A server that is told to stop twice drops the lifespan without saying so: nothing but a cancelled task."""
    said: asyncio.Queue[Any] = asyncio.Queue()
    heard: asyncio.Queue[Any] = asyncio.Queue()
    await heard.put({"type": "lifespan.startup"})
    scope: Any = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    app = Gasket(logging_config=None, openapi_config=None)
    app.connections = Connections()
    life = asyncio.create_task(app(scope, heard.get, said.put))
    assert await asyncio.wait_for(said.get(), 5) == {"type": "lifespan.startup.complete"}
    life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await life
    message = said.get_nowait()
    assert message["type"] == "lifespan.shutdown.failed"
    assert "Told to stop a second time" in message["message"]
    assert "Traceback" not in message["message"]


async def test_a_server_that_speaks_http_in_its_own_way_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    startup = Startup(Installation(read_settings({"DATABASE_URL": "postgresql://127.0.0.1:1/x"})))
    await startup.announce()
    assert "--http" not in caplog.text
    monkeypatch.delitem(sys.modules, Connection.__module__)
    await startup.announce()
    assert f"--http {HTTP_PROTOCOL}" in caplog.text


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, "API at http://127.0.0.1:8000/api"),
        ({"ssl_certfile": "cert.pem"}, "API at https://127.0.0.1:8000/api"),
        ({"fd": 0}, "API at /api"),
        ({"uds": "gasket.sock"}, "API at /api"),
    ],
)
async def test_the_address_that_is_told_is_one_that_is_listened_on(
    options: dict[str, Any], shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gasket")
    startup = Startup(Installation(read_settings({"DATABASE_URL": "postgresql://127.0.0.1:1/x"})))
    with click.Context(click.Command("run")) as context:
        context.params = {"host": "127.0.0.1", "port": 8000, **options}
        await startup.announce()
    assert shown in caplog.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"GASKET_OIDC_ISSUER": "https://login.example"}, "belong together"),
        ({"GASKET_OIDC_CLIENT_ID": "gasket"}, "belong together"),
        ({"GASKET_OIDC_TRUSTED_ISSUERS": "https://login.example"}, "needs GASKET_OIDC_AUDIENCE"),
    ],
)
def test_half_of_what_signed_tokens_need_is_refused(settings: dict[str, str], words: str) -> None:
    startup = Startup(Installation(read_settings({"DATABASE_URL": "postgresql://h/db", **settings})))
    with pytest.raises(SettingsError, match=words):
        startup.require_secrets()


def test_a_data_folder_that_is_a_file_is_one_sentence_for_a_command(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    installation = Installation(read_settings({"GASKET_DATA_DIR": str(path)}))
    with pytest.raises(SystemExit) as refusal, installation.running_database():
        pass
    message = str(refusal.value)
    assert message.startswith(f"gasket: The embedded PostgreSQL cannot use {path}: Not a directory")
    assert "Errno" not in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_data_folder_that_cannot_be_written_is_one_sentence_for_a_command(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    installation = Installation(read_settings({"GASKET_DATA_DIR": str(tmp_path / "data")}))
    try:
        with pytest.raises(SystemExit, match="Permission denied"), installation.running_database():
            pass
    finally:
        tmp_path.chmod(0o700)


def test_without_its_extra_a_command_says_what_to_set(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_PACKAGE", "a_package_that_is_not_installed")
    installation = Installation(read_settings({"GASKET_DATA_DIR": str(open_folder / "no-extra")}))
    refused = pytest.raises(SystemExit, match="the embedded PostgreSQL is not installed. Set DATABASE_URL")
    with refused, installation.running_database():
        pass
