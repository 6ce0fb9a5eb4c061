"""A process that has imported everything, and forks one command for each request.

Imports cost a process more than a second of CPU, and this suite starts some two hundred. What differs from a
command of its own: the interpreter started, and the imports ran, before the fork, in an environment that has
none of Gasket's settings. Arguments, environment, folder, standard streams, signals, session and exit code
are the child's own, and it enters the same console script. Tests of each kind run as plain processes as well
(`cold=True`), so that a fault that hides behind the fork shows.

Requests and answers are lines of JSON: `{"start": {...}}` is answered with the pid, `{"poll": pid}` with the exit
code as `subprocess` counts it, or null. The end of the input ends every child.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
from importlib.metadata import entry_points
from typing import Any

_IMPORTS = ("gasket.app", "gasket.__main__", "litestar.cli.main", "alembic.config", "uvicorn", "uvloop", "httptools")


def _start(request: dict[str, Any]) -> int:
    [script] = entry_points(group="console_scripts", name=request["command"][0])
    main = script.load()
    pid = os.fork()
    if pid:
        return pid
    gc.enable()
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    output = os.open(request["output"], os.O_WRONLY | os.O_APPEND)
    for source, standard in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(source, standard)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (it lives as long as the process)
    sys.argv = request["command"]
    sys.exit(main())


def _poll(children: dict[int, int | None], pid: int) -> int | None:
    if children[pid] is None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            children[pid] = os.waitstatus_to_exitcode(status)
    return children[pid]


def serve() -> None:
    """Answer requests until the input ends, then end the children that are left."""
    children: dict[int, int | None] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer: int | None = _start(request["start"])
            assert answer is not None
            children[answer] = None
        else:
            answer = _poll(children, request["poll"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in children:
        if _poll(children, pid) is None:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    for name in _IMPORTS:
        importlib.import_module(name)
    # What was imported is left out of every child's garbage collections: at its exit alone they take half a second.
    gc.collect()
    gc.disable()
    gc.freeze()
    serve()
