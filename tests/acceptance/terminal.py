"""A command at a terminal: a pseudo-terminal of its own, at which a test answers what it asks."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import subprocess
import time
from collections.abc import Sequence

from tests.acceptance.installation import Finished, Installation
from tests.acceptance.processes import environment

_WITHIN = 90.0


async def run_at_terminal(
    installation: Installation,
    *command: str,
    answers: Sequence[tuple[str, str]] = (),
    shows: tuple[str, asyncio.Event] | None = None,
) -> Finished:
    """Run it as a plain process; each of `answers` is (what it asks, the line that is typed then), in order.

    The event of `shows` is set once its pattern is found in all that has been on the screen.
    """
    master, slave = pty.openpty()
    try:
        try:
            process = _start(installation, command, slave)
        finally:
            os.close(slave)
        try:
            return await _talk(process, master, list(answers), shows)
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(master)


def _start(installation: Installation, command: Sequence[str], terminal: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment(installation.project.folder) | installation.settings,
        cwd=installation.project.folder,
        start_new_session=True,
    )


async def _talk(
    process: subprocess.Popen[bytes],
    master: int,
    answers: list[tuple[str, str]],
    shows: tuple[str, asyncio.Event] | None,
) -> Finished:
    os.set_blocking(master, False)
    deadline = time.monotonic() + _WITHIN
    said, unanswered = "", ""
    while True:
        code = process.poll()
        text = _read(master)
        said, unanswered = said + text, unanswered + text
        if answers and answers[0][0] in unanswered:
            os.write(master, f"{answers.pop(0)[1]}\n".encode())
            unanswered = ""
        if shows and re.search(shows[0], said):
            shows[1].set()
        if code is not None and not text:
            assert not answers, f"it never asked {answers[0][0]!r}:\n{said}"
            return Finished(code, said.replace("\r\n", "\n"))
        assert time.monotonic() < deadline, f"not within {_WITHIN:.0f} s:\n{said}"
        await asyncio.sleep(0.02)


def _read(master: int) -> str:
    try:
        return os.read(master, 65536).decode(errors="replace")
    except OSError:  # nothing there yet; or nobody has the other end open any more (Linux: EIO)
        return ""
