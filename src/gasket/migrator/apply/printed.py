"""What a revision prints becomes log lines: a `print` would wait, with the lock held, for somebody to read it."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO

log = logging.getLogger("gasket.migrator")


@contextmanager
def prints_logged(revision: Callable[[], str | None]) -> Iterator[None]:
    """Log what this thread prints inside, a line each. `revision` is asked which one is under way; None: not known.

    A terminal is printed on as before: whoever sits there reads.
    """
    with ExitStack() as stack:
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            if stream is not None and not stream.isatty():
                stack.enter_context(redirect(stack.enter_context(_Lines(stream, revision))))
        yield


class _Lines(io.TextIOBase):
    """In the place of a standard stream. Other threads, and whoever asks for the descriptor, get that stream."""

    def __init__(self, stream: TextIO, revision: Callable[[], str | None]) -> None:
        self._stream = stream
        self._revision = revision
        self._thread = threading.get_ident()
        self._begun = ""

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            return self._stream.write(text)
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._log(line)
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def close(self) -> None:
        begun, self._begun = self._begun, ""
        self._log(begun)
        super().close()

    def _log(self, line: str) -> None:
        if line.strip():
            log.info("revision %s prints: %s", self._revision() or "(not known)", line)
