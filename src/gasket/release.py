"""What this release is called: the package's version and the commit that it was built from, as in `0.1.0+g1a2b3c4`.

`build_hook.py` loads this file to find the commit at build time, so it imports the standard library alone.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

COMMIT_FILE = "commit"
"""A file beside this one that holds the commit. The build hook puts it into wheels and source distributions."""

_LENGTH = 7
_HASH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def release_name() -> str:
    """The version and the commit; the version alone where the commit is not known.

    The commit is that of the wheel, or of the clone that an editable installation runs from. It takes a few reads of
    small files: git is not run.
    """
    package = Path(__file__).parent
    commit = _read(package / COMMIT_FILE) or commit_of(package.parents[1])
    return f"{version('gasket')}+g{commit}" if commit else version("gasket")


def commit_of(clone: Path) -> str | None:
    """The first digits of the commit that is checked out there; None where it is no clone, or has no commit yet.

    The files are those of gitrepository-layout(5). A repository whose references are in a reftable is not understood.
    """
    folder = clone / ".git"
    if pointer := _read(folder):  # of a worktree or a submodule
        folder = clone / pointer.removeprefix("gitdir:").strip()
    head = _read(folder / "HEAD")
    if head is None:
        return None
    if head.startswith("ref:"):
        shared = folder / (_read(folder / "commondir") or ".")
        head = _resolve(head.removeprefix("ref:").strip(), shared)
    return head[:_LENGTH] if head and _HASH.fullmatch(head) else None


def _resolve(reference: str, folder: Path) -> str | None:
    if found := _read(folder / reference):
        return found
    for line in (_read(folder / "packed-refs") or "").splitlines():
        commit, _, name = line.partition(" ")
        if name == reference:
            return commit
    return None


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
