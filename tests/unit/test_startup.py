"""What a server is told of a start or an end that went wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gasket.startup import Gasket


async def test_a_forced_end_is_told_in_one_sentence() -> None:
    """A server that is told to stop twice drops the lifespan without saying so: nothing but a cancelled task."""
    said: asyncio.Queue[Any] = asyncio.Queue()
    heard: asyncio.Queue[Any] = asyncio.Queue()
    await heard.put({"type": "lifespan.startup"})
    scope: Any = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    app = Gasket(logging_config=None, openapi_config=None)
    life = asyncio.create_task(app(scope, heard.get, said.put))
    assert await asyncio.wait_for(said.get(), 5) == {"type": "lifespan.startup.complete"}
    life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await life
    message = said.get_nowait()
    assert message["type"] == "lifespan.shutdown.failed"
    assert "Told to stop a second time" in message["message"]
    assert "Traceback" not in message["message"]
