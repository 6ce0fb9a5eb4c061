"""The one form of all log lines: a JSON object, or text for people. `logs.py` writes them."""

from __future__ import annotations

import json
import logging
import pkgutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime

JSON = "json"
TEXT = "text"

_OF_EVERY_RECORD = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"}
_REPEATED = {"color_message"}
"""uvicorn's message once more, with control sequences of a terminal."""
_NAMES = {"uvicorn.error": "uvicorn"}
"""uvicorn's logger for everything but requests; its name looks like a failure."""

_FORMAT_EXCEPTION = "gasket.postgres.tracebacks:format_exception"


def formatter(log_format: str | None) -> logging.Formatter:
    """Makes lines of records. None: text where standard error is a terminal, JSON elsewhere."""
    return _TextFormatter() if chosen(log_format) == TEXT else _JsonFormatter()


def chosen(log_format: str | None) -> str:
    """`json` or `text`: the setting, or what the standard error of this process wants."""
    if log_format is not None:
        return log_format
    return TEXT if sys.stderr is not None and sys.stderr.isatty() else JSON


def keep_traceback(record: logging.LogRecord) -> None:
    """Let the record have its traceback as text without values of rows, which every formatter takes for its own.

    Also where another handler has put its own there.
    """
    if record.exc_info and record.exc_info[1] is not None:
        # Imported for an error only: the driver's import would slow down each start.
        format_exception: Callable[[BaseException], str] = pkgutil.resolve_name(_FORMAT_EXCEPTION)
        record.exc_text = format_exception(record.exc_info[1])


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        keep_traceback(record)
        return super().format(record).rstrip("\n")  # Python's warnings end with their line

    def formatMessage(self, record: logging.LogRecord) -> str:
        shown = logging.makeLogRecord({**record.__dict__, "name": _NAMES.get(record.name, record.name)})
        return super().formatMessage(shown)


class _JsonFormatter(logging.Formatter):
    """One object a line: `time`, `level`, `logger`, `message`, what the record has beside them, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": _NAMES.get(record.name, record.name),
            "message": record.getMessage().rstrip("\n"),
        }
        for name, value in record.__dict__.items():
            if name not in _OF_EVERY_RECORD and name not in _REPEATED:
                line.setdefault(name, value)
        keep_traceback(record)
        if record.exc_text:
            line["exception"] = record.exc_text
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, ensure_ascii=False, default=str)
