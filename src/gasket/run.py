"""Litestar's command line, as Gasket needs it. `run` opens the port first, and starts everything else then."""

from __future__ import annotations

import os
import pkgutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import click
from litestar import Litestar
from litestar.plugins import CLIPlugin

from gasket.errors import GasketError
from gasket.server.listening import listen_on_descriptor, listen_on_path, listen_on_port, remover_of
from gasket.startup import HTTP_PROTOCOL

_HELP = {
    "run": "Serve. Before it takes a request, it brings the schema to this release's head.",
    "info": "Show what the application consists of.",
    "routes": "Show every path that is served.",
    "schema": "Write the description of the API (OpenAPI) to a file.",
    "database": "Manage the schema. `gasket db` is short for it.",
    "backends": "Manage the stored credentials of backends.",
    "users": "Erase people.",
}
"""Gasket's words for commands that Litestar brings."""
_OPTION_HELP = {
    "reload": "Restart when a file changes; for development.",
    "reload_dir": "A folder to watch for --reload; may be given several times.",
    "reload_include": "A glob pattern of files to watch for --reload.",
    "reload_exclude": "A glob pattern of files that --reload ignores.",
    "port": "The port to listen on.",
    "host": "The address to listen on. 0.0.0.0 is every IPv4 address of this machine.",
    "fd": "Serve on this open file descriptor of a socket.",
    "uds": "Serve on this UNIX domain socket.",
    "debug": "Show tracebacks in error responses; for development.",
    "pdb": "Open the Python debugger on an exception; for development.",
    "ssl_certfile": "The file with the TLS certificate.",
    "ssl_keyfile": "The file with the TLS key.",
    "create_self_signed_cert": "Make the certificate and the key if these files are not there; for development.",
}
"""Gasket's words for the options of `run`."""
_DO_NOTHING_HERE = {"sessions"}
_NOT_FOR_GASKET = {"app_path", "app_dir", "wc"}
"""Options of Litestar's: the application is always this one, and a replica is one process."""


class CommandLine(CLIPlugin):
    """`run` is Gasket's own, with Litestar's options; the other commands only get other words.

    uvicorn's log lines get the `log_format`. `check` raises a GasketError where a setting is missing that only serving
    needs.
    """

    def __init__(self, log_format: str | None, *, check: Callable[[], None]) -> None:
        super().__init__()
        self._log_format = log_format
        self._check = check

    def on_cli_init(self, cli: click.Group) -> None:
        """`--help` and `version` tell of Gasket, not of Litestar."""
        cli.help = (
            "Gasket: serve (run), manage the schema (database), the stored credentials (backends) and people (users)."
        )
        cli.command("version", help="Show the version of Gasket.")(lambda: click.echo(version("gasket")))
        for name, words in _HELP.items():
            if name in cli.commands:
                cli.commands[name].help = words
        for name in _DO_NOTHING_HERE & cli.commands.keys():
            cli.commands[name].hidden = True
        serving = [cli.commands["run"]] if "run" in cli.commands else []  # without it for `litestar backends`
        for command in serving:
            reload = command.callback
            assert reload is not None
            command.callback = self._run_or(reload)
        for option in (option for command in serving for option in command.params):
            if isinstance(option, click.Option):
                option.help = _OPTION_HELP.get(option.name or "", option.help)
        for option in (*cli.params, *(option for command in serving for option in command.params)):
            if isinstance(option, click.Option) and option.name in _NOT_FOR_GASKET:
                option.hidden = True

    def _run_or(self, reload: Callable[..., None]) -> Callable[..., None]:
        """The callback of `run`; `reload` is Litestar's, for `--reload`."""

        @click.pass_context
        def run(context: click.Context, /, **options: Any) -> None:
            refuse_workers(options["wc"])
            if any(value for name, value in options.items() if name.startswith("reload")):
                reload(**options)
                return
            if callable(context.obj):
                context.obj = context.obj()
            app = context.obj.app
            app.debug = app.debug or options["debug"]
            app.pdb_on_exception = app.pdb_on_exception or options["pdb"]
            certfile, keyfile = _certificate(options)
            try:
                self._check()
            except GasketError as error:
                raise SystemExit(f"gasket: {error}") from None
            sockets = listen(options)
            made = options["uds"] if options["fd"] is None else None
            at_end = remover_of(made) if made else None
            # Commands that serve nothing do without uvicorn.
            serve: Callable[..., None] = pkgutil.resolve_name("gasket.server.serving:serve")
            serve(app, sockets, certfile=certfile, keyfile=keyfile, log_format=self._log_format, at_end=at_end)

        return run

    @contextmanager
    def server_lifespan(self, app: Litestar) -> Iterator[None]:
        """Entered by Litestar's `run`, which is left `--reload`: it starts uvicorn's command line."""
        os.environ["UVICORN_HTTP"] = HTTP_PROTOCOL
        os.environ["UVICORN_WS"] = "none"
        yield


def refuse_workers(number: int) -> None:
    """uvicorn's parent of many exits 0 when a start is refused.

    Raises:
        SystemExit: more than one was asked for.
    """
    if number > 1:
        raise SystemExit(
            f"gasket: a replica is one process, and {number} were asked for (--web-concurrency, or "
            "LITESTAR_WEB_CONCURRENCY or WEB_CONCURRENCY); nothing was started. Start more replicas instead."
        )


def listen(options: Mapping[str, Any]) -> list[socket.socket]:
    """The sockets that the options of `run` name, listening.

    Raises:
        SystemExit: one cannot be listened on.
    """
    try:
        if options["fd"] is not None:
            return [listen_on_descriptor(options["fd"])]
        if options["uds"]:
            return [listen_on_path(options["uds"])]
        return listen_on_port(options["host"], options["port"])
    except GasketError as error:
        raise SystemExit(f"gasket: {error}") from None


def _certificate(options: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The files for TLS, as Litestar checks or makes them. Its module is loaded by its command line already."""
    certfile, keyfile = options["ssl_certfile"], options["ssl_keyfile"]
    litestar: Any = pkgutil.resolve_name("litestar.cli._utils")
    found: tuple[str | None, str | None] = (
        litestar.create_ssl_files(certfile, keyfile, options["host"])
        if options["create_self_signed_cert"]
        else litestar.validate_ssl_file_paths(certfile, keyfile)
    )
    return found
