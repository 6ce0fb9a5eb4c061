"""What our own modules add to importing the libraries that they stand on."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from bench.harness import Row, Subject, alternate, markdown, program

TITLE = "`import gasket.app` in a fresh interpreter, against its libraries alone"
REPEATS = 15
GOAL, GOAL_WITH_DEVELOPMENT_TOOLS = 1.15, 1.2

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
    # Advanced Alchemy imports pydantic where a development tool has brought it.
    with_tools = find_spec("pydantic") is not None
    case = "imports, with development tools" if with_tools else "imports, without development tools"
    goal = GOAL_WITH_DEVELOPMENT_TOOLS if with_tools else GOAL
    return markdown([Row(case, seconds).with_ratio_goal(goal)])


def _importing(imports: str) -> Subject[float]:
    async def subject() -> float:
        return float(await program(sys.executable, "-c", _PROGRAM.format(imports=imports)))

    return subject
