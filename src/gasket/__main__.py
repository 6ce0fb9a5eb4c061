"""The command line: Litestar's, with this application preset."""

from __future__ import annotations

import os

from litestar.__main__ import run_cli


def main() -> None:
    """`gasket ...`."""
    os.environ.setdefault("LITESTAR_APP", "gasket.app:create_app")
    run_cli()


if __name__ == "__main__":
    main()
