"""What a revision prints becomes log lines: a `print` would wait, with the lock held, for somebody to read it."""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import BinaryIO, TextIO

log = logging.getLogger("gasket.migrator")


_LINE_END = re.compile(r"[\r\n]+")
_LONGEST_LINE = 4_000


@contextmanager
def prints_logged(revision: Callable[[], str | None]) -> Iterator[None]:
    """Log what this thread prints inside, a line each. `revision` is asked which one is under way; None: not known.

    A terminal is printed on as before: whoever sits there reads. So is everything where these lines are not logged.
    """
    with ExitStack() as stack:
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            if stream is not None and not stream.isatty() and log.isEnabledFor(logging.INFO):
                lines = _Lines(stream, revision)
                stack.callback(lines.end)
                stack.enter_context(redirect(lines))
        yield


class _Lines(io.TextIOBase):
    """In the place of a standard stream. Other threads, and whoever asks for what is below it, get that stream.

    So does whoever has kept it, once it is at its end.
    """

    def __init__(self, stream: TextIO, revision: Callable[[], str | None]) -> None:
        self._stream = stream
        self._revision = revision
        self._thread: int | None = threading.get_ident()
        self._begun = ""

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            return self._stream.write(text)
        *lines, self._begun = _LINE_END.split(self._begun + text)
        if len(self._begun) > _LONGEST_LINE:
            lines, self._begun = [*lines, self._begun], ""
        for line in lines:
            self._log(line)
        return len(text)

    def flush(self) -> None:
        if threading.get_ident() != self._thread:
            self._stream.flush()

    def end(self) -> None:
        self._log(self._begun)
        self._thread = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def buffer(self) -> BinaryIO:
        return self._stream.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]  # an attribute in typeshed
        return self._stream.encoding

    def _log(self, line: str) -> None:
        if not line.strip():
            return
        thread, self._thread = self._thread, None  # a handler that writes here would not end
        try:
            log.info("revision %s prints: %s", self._revision() or "(not known)", line)
        finally:
            self._thread = thread
