"""The variables that Gasket reads: their values, the files that hold secrets, and names that are mistyped."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from gasket.errors import SettingsError

PREFIX = "GASKET_"
# What Kubernetes sets in every container for a service that is called `gasket`, or `gasket-...` (Kubernetes
# documentation, "Service", "Environment variables").
_FROM_KUBERNETES = re.compile(
    rf"{PREFIX}(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LARGEST_SECRET = 64 * 1024
"""Bytes."""


def file_variable(variable: str) -> str:
    """The variable that names a file with the value of this one, as images for Docker have it."""
    return f"{variable}_FILE"


def read_secret(environ: Mapping[str, str], variable: str) -> tuple[str, str]:
    """The value of a variable or of the file that `<variable>_FILE` names, and what to call it in an error.

    White space around the value does not count; without either variable the value is empty.

    Raises:
        SettingsError: both are set, or the file cannot be read, or there is nothing in it. The message has neither
            the content nor the path, which may be a secret that was put into the wrong variable.
    """
    value = environ.get(variable, "").strip()
    naming = file_variable(variable)
    path = environ.get(naming, "").strip()
    if not path:
        return value, variable
    if value:
        raise SettingsError(f"{variable} and {naming} are both set; set one of them.")
    try:
        content = _read_regular_file(Path(path)).decode("utf-8-sig").strip()
    except OSError as error:
        raise SettingsError(f"{naming} must name a file that Gasket can read; it got: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{naming} must name a text file; the content of this one is not UTF-8.") from None
    if not content:
        raise SettingsError(f"{naming} must name a file with the value in it; this file is empty.")
    if _CONTROL.search(content):
        raise SettingsError(f"{naming} must name a file of one line; this one has several, or control characters.")
    return content, f"{variable} (from the file that {naming} names)"


def _read_regular_file(path: Path) -> bytes:
    """A pipe would be waited for, and a device may have no end.

    Raises:
        OSError: it cannot be read, is no regular file, or is too large for a secret.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "a pipe, a socket or a device")
    with path.open("rb") as file:
        content = file.read(_LARGEST_SECRET + 1)
    if len(content) > _LARGEST_SECRET:
        raise OSError(errno.EFBIG, f"more than {_LARGEST_SECRET // 1024} KiB")
    return content


def refuse_unknown(environ: Mapping[str, str], known: Collection[str]) -> None:
    """Refuse variables that look like settings and are none: a setting that is mistyped would have no effect.

    Raises:
        SettingsError: it names each of them, with the known variable that is nearest to it.
    """
    by_ending = {variable.removeprefix(PREFIX): variable for variable in known}
    problems = []
    for variable in sorted(name for name, value in environ.items() if value.strip()):
        if not variable.upper().startswith(PREFIX) or variable in known or comes_from_kubernetes(variable):
            continue
        nearest = difflib.get_close_matches(variable.upper().removeprefix(PREFIX), by_ending, n=1, cutoff=0.5)
        advice = f"did you mean {by_ending[nearest[0]]}?" if nearest else "unset it."
        problems.append(f"{variable} is not a setting of Gasket; {advice}")
    if problems:
        raise SettingsError(" ".join(problems))


def comes_from_kubernetes(variable: str) -> bool:
    """Whether Kubernetes sets a variable of this name for a service called `gasket`, or `gasket-...`."""
    return _FROM_KUBERNETES.fullmatch(variable) is not None
