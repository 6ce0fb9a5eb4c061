"""Real processes: replicas, and the commands as users type them. Every one is ended by its pid."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx

READY_WITHIN = 60.0
_POLL = 0.03
_FEWEST_TRIES = 0.5
"""Of those that `until` would make in its time if trying took none."""
_BIN = Path(sys.executable).parent
# Below those that the kernel gives to clients; each process of a test run that is shared out has its own.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = itertools.count(20_000 + 5_000 * _WORKER + random.randint(0, 3_000))


class Handle(Protocol):
    """What starts a process gives back: `subprocess.Popen`, or a child of the fork server."""

    pid: int

    def poll(self) -> int | None:
        """The exit code, -N for signal N, None while it runs."""
        ...


class ForkServer:
    """Starts commands in milliseconds; `fork_server.py` says what differs from a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._errors = folder / "fork_server.log"
        with self._errors.open("wb") as errors:
            self._server = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("fork_server.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(folder),
                cwd=folder,
                text=True,
            )

    def ask(self, **request: Any) -> int | None:
        """One request, one answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        assert line, f"the fork server ended:\n{self._errors.read_text()}"
        answer: int | None = json.loads(line)
        return answer

    def stop(self) -> None:
        """End it, and with it all of its children."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(10)
        self._server.stdout.close()


class _Fork:
    def __init__(self, server: ForkServer, **start: Any) -> None:
        self._server = server
        pid = server.ask(start=start)
        assert pid is not None
        self.pid = pid

    def poll(self) -> int | None:
        return self._server.ask(poll=self.pid)


class Program:
    """One running command, with its output in a file."""

    def __init__(self, command: Sequence[str], handle: Handle, log: Path) -> None:
        self.command = command
        self.pid = handle.pid
        self._handle = handle
        self._log = log

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -N when signal N ended it."""
        return self._handle.poll()

    @property
    def output(self) -> str:
        """What it has said so far, standard output and error together."""
        return self._log.read_text(errors="replace")

    @property
    def log_lines(self) -> list[dict[str, Any]]:
        """Its log lines in JSON so far; a line that is being written right now is left out."""
        complete = self.output.split("\n")[:-1]  # `splitlines` would also split at what JSON leaves as it is
        return [json.loads(line) for line in complete if line.startswith("{")]

    async def log_line(self, within: float = 30.0, **fields: object) -> dict[str, Any]:
        """Wait for a log line with these fields, which has to be the only one."""
        found: list[dict[str, Any]] = []

        def logged() -> bool:
            found[:] = [line for line in self.log_lines if fields.items() <= line.items()]
            return bool(found)

        await until(logged, within, lambda: f"a log line with {fields} from {self}")
        [line] = found
        return line

    async def exited(self, within: float) -> int:
        """Wait for its end; returns the exit code."""
        await until(lambda: self.exit_code is not None, within, lambda: f"the end of {self}")
        code = self.exit_code
        assert code is not None
        return code

    async def says(self, text: str, within: float = 20.0) -> None:
        """Wait until its output contains the text; its end without it is a failure at once."""

        def said() -> bool:
            ended = self.exit_code is not None
            if text in self.output:
                return True
            assert not ended, f"it ended without {text!r}: {self}"
            return False

        await until(said, within, lambda: f"{text!r} from {self}")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self.exit_code is None:
            os.kill(self.pid, number)

    async def stop(self) -> None:
        """End it, politely first; harmless when it has ended."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self.signal(number)
            try:
                await self.exited(within=8)
            except AssertionError:
                continue
            return

    def __str__(self) -> str:
        state = "running" if self.exit_code is None else f"exit code {self.exit_code}"
        return f"{' '.join(self.command)} ({state}):\n{self.output}"


class Replica(Program):
    """`gasket run` on a port of its own. From its first moment on somebody asks whether it serves yet.

    `served`: a request of `/api` got another answer than 503.
    """

    def __init__(self, command: Sequence[str], handle: Handle, log: Path, port: int) -> None:
        super().__init__(command, handle, log)
        self.base_url = f"http://127.0.0.1:{port}"
        self.served = False
        self._address = ("127.0.0.1", port)
        self._watch = asyncio.create_task(self._watch_answers())

    async def ready(self, within: float = READY_WITHIN) -> dict[str, Any]:
        """Wait until `/health/ready` says 200; returns what it says. The process' end is a failure at once."""
        answer: dict[str, Any] = {}
        async with httpx.AsyncClient(base_url=self.base_url, trust_env=False, verify=False) as client:

            async def is_ready() -> bool:
                assert self.exit_code is None, f"not ready but ended: {self}"
                if not self.served:
                    return False
                response = await client.get("/health/ready", timeout=10)
                if response.status_code == 200:
                    answer.update(response.json())
                return response.status_code == 200

            await until(is_ready, within, lambda: f"ready: {self}")
        return answer

    async def settled(self, within: float = READY_WITHIN) -> None:
        """Wait until it serves, ready or not, or has ended."""
        await until(lambda: self.served or self.exit_code is not None, within, lambda: f"start or end of {self}")

    async def refused(self, within: float = READY_WITHIN) -> str:
        """Wait for its end, which has to be a refusal; returns its output in one line of single spaces."""
        code = await self.exited(within)
        assert code > 0, f"not an exit of its own will: {self}"
        assert not self.served, f"it answered something else than 503: {self}"
        with socket.socket() as probe:
            assert probe.connect_ex(self._address) != 0, f"the port is still open: {self}"
        assert "Traceback" not in self.output, str(self)
        assert " object at 0x" not in self.output, str(self)
        return " ".join(self.output.split())

    async def stop(self) -> None:
        """End it and the watch on its port."""
        await super().stop()
        self._watch.cancel()

    async def _watch_answers(self) -> None:
        while not self.served:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                status = await _status_of(self._address)
                self.served = status not in (b"", b"503")
            await asyncio.sleep(_POLL)


async def _status_of(address: tuple[str, int]) -> bytes:
    """The status of a request that only a replica which serves refuses: it lacks the admin token."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(b"GET /api/keys HTTP/1.1\r\nHost: gasket.test\r\nConnection: close\r\n\r\n")
        return (await reader.readline())[9:12]
    finally:
        writer.close()


ProgramT = TypeVar("ProgramT", bound=Program)


class Programs:
    """Starts programs, and ends every one that is left."""

    def __init__(self, forks: ForkServer, folder: Path) -> None:
        self._forks = forks
        self._folder = folder
        self._all: list[Program] = []

    def start(
        self,
        *command: str,
        settings: Mapping[str, str],
        folder: Path,
        cold: bool = False,
        descriptors: Sequence[int] = (),
    ) -> Program:
        """Start a console script of this environment with these settings and nothing else of ours.

        What inherits `descriptors` is cold.
        """
        handle, log = self._launch(command, settings, folder, cold or bool(descriptors), descriptors=descriptors)
        return self._keep(Program(command, handle, log))

    def replica(
        self,
        *,
        settings: Mapping[str, str],
        folder: Path,
        cold: bool = False,
        options: Sequence[str] = (),
        port: int | None = None,
    ) -> Replica:
        """Start `gasket run`, cold as `python -m gasket run`, on the port of an earlier one or on one of its own."""
        port = port or free_port()
        command = ("gasket", "run", "--port", str(port), *options)
        handle, log = self._launch(command, settings, folder, cold, ("-m", "gasket"))
        return self._keep(Replica(command, handle, log, port))

    async def stop(self) -> None:
        """End every program that still runs."""
        for program in self._all:
            program.signal(signal.SIGTERM)
        for program in self._all:
            await program.stop()

    def _launch(
        self,
        command: Sequence[str],
        settings: Mapping[str, str],
        folder: Path,
        cold: bool,
        module: tuple[str, ...] = (),
        descriptors: Sequence[int] = (),
    ) -> tuple[Handle, Path]:
        log = self._folder / f"{len(self._all):03d}-{command[0]}.log"
        log.touch()
        variables = {**environment(folder), **settings}
        if not cold:
            fork = _Fork(self._forks, command=command, environment=variables, folder=str(folder), output=str(log))
            return fork, log
        start = [sys.executable, *module] if module else [str(_BIN / command[0])]
        with log.open("ab") as output:
            return subprocess.Popen(
                [*start, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=variables,
                cwd=folder,
                start_new_session=True,
                pass_fds=descriptors,
            ), log

    def _keep(self, program: ProgramT) -> ProgramT:
        self._all.append(program)
        return program


def environment(folder: Path) -> dict[str, str]:
    """What any program needs, and nothing that could change what Gasket does."""
    return {"PATH": f"{_BIN}:{os.defpath}", "HOME": str(folder), "LANG": "C.UTF-8", "COLUMNS": "200"}


def free_port() -> int:
    """A TCP port that nobody listens on, and that no other call gets."""
    for port in _PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("unreachable")


async def until(
    condition: Callable[[], bool] | Callable[[], Awaitable[object]], within: float, what: str | Callable[[], str]
) -> None:
    """Poll the condition; fail, saying what was waited for, when it is not true in time.

    Time in which nobody looked does not count, up to three times as much again: a machine that stands still for a
    while, or does ten things at once, is no fault of what is waited for.
    """
    started, tries, enough = time.monotonic(), 0, _FEWEST_TRIES * within / _POLL
    while True:
        answer = condition()
        if await answer if isinstance(answer, Awaitable) else answer:
            return
        tries += 1
        waited = time.monotonic() - started
        over = waited >= within and (tries >= enough or waited >= 4 * within)
        assert not over, f"not within {within:.1f} s: {what if isinstance(what, str) else what()}"
        await asyncio.sleep(_POLL)
