"""The command line: Litestar's, with this application preset, and the commands for the schema without either."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys

# The kernel drops a signal to PID 1 that has no handler. Until the server has its own, which takes a second of imports,
# SIGTERM would be lost, and the container killed at the end of its grace period.
if os.getpid() == 1:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

from gasket.commands import APPLICATION, load_database

_DATABASE = ("database", "db")
_OBJECTS_BETWEEN_COLLECTIONS = 50_000
"""Imports make many objects and no garbage. Python's default, 700, looks through the same ones 400 times."""


def main() -> None:
    """`gasket ...`."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in _DATABASE:
        _read_dotenv()
        load_database().main(sys.argv[2:], prog_name=f"gasket {name}")
    os.environ.setdefault("LITESTAR_APP", APPLICATION)
    # A replica is one process, whatever the platform sets for Litestar and uvicorn to read: uvicorn with workers
    # exits 0 when a start is refused.
    os.environ.pop("WEB_CONCURRENCY", None)
    from litestar.__main__ import run_cli  # the commands for the schema do without Litestar

    run_cli()


def _read_dotenv() -> None:
    """As Litestar's command line does for the other commands."""
    with contextlib.suppress(ImportError):
        from dotenv import load_dotenv

        load_dotenv()


if __name__ == "__main__":
    main()
