"""What our own modules add to importing the libraries that they stand on."""

from __future__ import annotations

import sys

from bench.harness import Row, Subject, alternate, markdown, program

TITLE = "`import gasket.app` in a fresh interpreter, against its libraries alone"
REPEATS = 15
GOAL = 1.25

_LIBRARIES = """
from litestar import Litestar
from sqlalchemy.ext.asyncio import create_async_engine
from advanced_alchemy.extensions.litestar import SQLAlchemyPlugin
"""
_PROGRAM = """
import time
started = time.perf_counter()
{imports}
print(time.perf_counter() - started)
"""


async def measure(repeats: int) -> str:
    """One row. The interpreter's own start is in neither figure."""
    seconds = await alternate(
        repeats,
        {"Litestar + SQLAlchemy + Advanced Alchemy": _importing(_LIBRARIES), "Gasket": _importing("import gasket.app")},
    )
    return markdown([Row("imports", seconds).with_ratio_goal(GOAL)])


def _importing(imports: str) -> Subject[float]:
    async def subject() -> float:
        return float(await program(sys.executable, "-c", _PROGRAM.format(imports=imports)))

    return subject
