"""What a server is told of a start or an end that went wrong."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from uvicorn.config import HTTP_PROTOCOLS, WS_PROTOCOLS, Config
from uvicorn.main import main as uvicorn_command

from gasket.server.connections import Connections
from gasket.server.protocol import Connection
from gasket.settings import read_settings
from gasket.startup import HTTP_PROTOCOL, CommandLine, Gasket, Startup


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


def test_the_command_line_has_uvicorn_speak_http_as_gasket_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its own process, and in the one that `--reload` starts."""
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    monkeypatch.setitem(WS_PROTOCOLS, "auto", WS_PROTOCOLS["auto"])
    monkeypatch.setenv("UVICORN_HTTP", "auto")
    with CommandLine().server_lifespan(Gasket(logging_config=None, openapi_config=None)):
        config = Config(Gasket(logging_config=None, openapi_config=None), log_config=None)
        config.load()
        assert config.http_protocol_class is Connection
        assert config.ws_protocol_class is None
        with uvicorn_command.make_context("uvicorn", ["gasket.app:create_app"]) as context:
            assert context.params["http"] == HTTP_PROTOCOL


async def test_a_server_that_speaks_http_in_its_own_way_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    startup = Startup(read_settings({"DATABASE_URL": "postgresql://127.0.0.1:1/x"}))
    await startup.announce()
    assert "--http" not in caplog.text
    monkeypatch.delitem(sys.modules, Connection.__module__)
    await startup.announce()
    assert f"--http {HTTP_PROTOCOL}" in caplog.text
