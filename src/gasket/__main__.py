"""The command line: Litestar's, with this application preset."""

from __future__ import annotations

import os
import signal
import sys

# The kernel drops a signal to PID 1 that has no handler. Until the server has its own, which takes a second of imports,
# SIGTERM would be lost, and the container killed at the end of its grace period.
if os.getpid() == 1:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

from litestar.__main__ import run_cli

from gasket.commands import APPLICATION


def main() -> None:
    """`gasket ...`."""
    os.environ.setdefault("LITESTAR_APP", APPLICATION)
    # A replica is one process, whatever the platform sets for Litestar and uvicorn to read: uvicorn with workers
    # exits 0 when a start is refused.
    os.environ.pop("WEB_CONCURRENCY", None)
    run_cli()


if __name__ == "__main__":
    main()
