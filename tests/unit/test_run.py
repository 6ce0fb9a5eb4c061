"""`gasket run`: the sockets that it opens first, and what it refuses before anything starts."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any

import click
import pytest
from uvicorn.main import main as uvicorn_command

from gasket.run import CommandLine, listen
from gasket.server.listening import remover_of
from gasket.startup import HTTP_PROTOCOL, Gasket


def listening_on(host: str, port: int, **options: Any) -> list[socket.socket]:
    """What the options of `run` lead to."""
    return listen({"host": host, "port": port, "fd": None, "uds": None, **options})


def close(listening: list[socket.socket]) -> None:
    for listener in listening:
        listener.close()


def test_the_port_is_open_for_each_address_of_the_host() -> None:
    listening = listening_on("127.0.0.1", 0)
    [listener] = listening
    assert listener.proto == socket.IPPROTO_TCP  # else asyncio leaves Nagle's algorithm on for what it accepts
    with socket.create_connection(listener.getsockname()):
        pass
    close(listening)


def test_an_address_in_use_is_told_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"cannot listen on 127.0.0.1:{port}: another program listens there"):
            listening_on("127.0.0.1", port)
    close(listening_on("127.0.0.1", port))


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("no-such-host.invalid", 8000, "the host name cannot be resolved"),
        ("192.0.2.1", 8000, "this machine does not have that address"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_one_sentence(host: str, port: int, reason: str) -> None:
    with pytest.raises(SystemExit) as refusal:
        listening_on(host, port)
    assert re.search(f"cannot listen on {host}:{port}: {reason}", str(refusal.value))
    assert "Errno" not in str(refusal.value)


def test_a_port_that_there_is_not_is_one_sentence() -> None:
    with pytest.raises(SystemExit, match="cannot listen on port 70000: a port is from 1 to 65535"):
        listening_on("127.0.0.1", 70_000)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use any port")
def test_a_port_that_needs_rights_is_one_sentence() -> None:
    with pytest.raises(SystemExit, match="a port below 1024 is for administrators"):
        listening_on("127.0.0.1", 1)


def test_a_descriptor_keeps_the_family_that_it_has() -> None:
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        [listener] = listening_on("", 0, fd=given.fileno())
        assert (listener.family, listener.proto) == (socket.AF_INET, socket.IPPROTO_TCP)
        with socket.create_connection(given.getsockname()):
            pass
        listener.close()
    with pytest.raises(SystemExit, match="cannot listen on file descriptor 999: Bad file descriptor"):
        listening_on("", 0, fd=999)


def test_the_file_of_a_socket_is_replaced_unless_another_program_listens(tmp_path: Path) -> None:
    path = tmp_path / "gasket.sock"
    first = listening_on("", 0, uds=str(path))
    with pytest.raises(SystemExit, match="gasket.sock: another program listens there"):
        listening_on("", 0, uds=str(path))
    path.chmod(0o660)
    close(first)
    close(listening_on("", 0, uds=str(path)))
    assert path.stat().st_mode & 0o777 == 0o660
    path.unlink()
    path.write_text("no socket")
    with pytest.raises(SystemExit, match="gasket.sock: there is a file that is not a socket"):
        listening_on("", 0, uds=str(path))
    assert path.read_text() == "no socket"


def test_the_file_of_a_socket_is_removed_unless_another_program_has_made_it(tmp_path: Path) -> None:
    path = tmp_path / "gasket.sock"
    [first] = listening_on("", 0, uds=str(path))
    remove_first = remover_of(str(path))
    first.close()
    [second] = listening_on("", 0, uds=str(path))
    remove_second = remover_of(str(path))
    path.chmod(0o660)
    remove_first()
    assert path.exists()
    remove_second()
    assert not path.exists()
    remove_second()
    second.close()


def test_the_server_that_reload_starts_speaks_http_as_gasket_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVICORN_HTTP", "auto")
    monkeypatch.setenv("UVICORN_WS", "auto")
    with (
        CommandLine("json", check=lambda: None).server_lifespan(Gasket(logging_config=None, openapi_config=None)),
        uvicorn_command.make_context("uvicorn", ["gasket.app:create_app"]) as context,
    ):
        assert (context.params["http"], context.params["ws"]) == (HTTP_PROTOCOL, "none")


def test_litestars_run_without_reload_is_not_called() -> None:
    """It would open the port when the start is complete. Several processes are refused before either runs."""
    called: list[dict[str, Any]] = []
    cli = click.Group()

    @cli.command("run")
    @click.option("--wc", type=int, default=1)
    @click.option("--reload", is_flag=True)
    def run(**options: Any) -> None:
        called.append(options)

    CommandLine("json", check=lambda: None).on_cli_init(cli)
    with pytest.raises(SystemExit, match="a replica is one process, and 2 were asked for"):
        cli.main(["run", "--wc", "2", "--reload"], standalone_mode=False)
    assert not called
    cli.main(["run", "--reload"], standalone_mode=False)
    assert called == [{"wc": 1, "reload": True}]
