"""The migrations on disk: what each file declares, in which order they stand, and the hash of its bytes.

Nothing here imports Alembic or runs a migration: a start at head reads the files with this alone.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from configparser import ConfigParser
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from gasket.migrator.errors import RevisionFileError

_DECLARATIONS = ("revision", "down_revision", "depends_on", "backward_compatible")
# One-line declarations are read without parsing the file: parsing 1,000 files would take half a second. The last branch
# finds those of any other form. It begins with a literal and not with ^, which `re` would try at every character.
_DECLARATION = re.compile(
    rb"\n(revision|down_revision|depends_on|backward_compatible)\b(?:[ \t]*(?::[^=\n]*)?=[ \t]*"
    rb"(?:([\"'])([\w.-]+)\2|(None|True|False))[ \t]*(?:#[^\n]*)?\r?(?=\n)|[^\n]*=)"
)
_CONSTANTS = {b"None": None, b"True": True, b"False": False}


class RevisionFile(NamedTuple):
    """One file of `migrations/versions`.

    `parents` are its down revisions and dependencies; `backward_compatible` is None while its author has not
    decided.
    """

    revision: str
    down_revisions: tuple[str, ...]
    parents: tuple[str, ...]
    backward_compatible: bool | None
    path: Path
    sha256: str


class Revisions(Mapping[str, RevisionFile]):
    """The files by revision, in the order of their names."""

    def __init__(self, files: Iterable[RevisionFile]) -> None:
        self._files: dict[str, RevisionFile] = {}
        for file in files:
            if other := self._files.get(file.revision):
                raise RevisionFileError(
                    file=file.path.name, problem=f"has the same revision {file.revision} as {other.path.name}"
                )
            self._files[file.revision] = file

    def __getitem__(self, revision: str) -> RevisionFile:
        return self._files[revision]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def heads(self) -> tuple[str, ...]:
        """Revisions that no other names as its down revision."""
        return self.heads_of(self._files.keys())

    def heads_of(self, revisions: Set[str]) -> tuple[str, ...]:
        """Those of the given revisions that no other of them names as its down revision."""
        below = {parent for revision in revisions for parent in self._files[revision].down_revisions}
        return tuple(sorted(revisions - below))

    @property
    def without_file(self) -> dict[str, RevisionFile]:
        """Parents that no file defines, each with a file that stands on it."""
        return {p: file for file in self._files.values() for p in file.parents if p not in self._files}

    def check_chain(self) -> None:
        """For what has to load all files with Alembic, which cannot while one that others stand on is gone.

        Raises:
            RevisionFileError: a file stands on one that is gone, or on itself.
        """
        for parent, file in self.without_file.items():
            raise RevisionFileError(
                file=file.path.name,
                problem=f"stands on revision {parent}, whose file is gone",
                mend=f"Put the file of revision {parent} back.",
            )
        self.in_order(self)

    def with_ancestors(self, revisions: Iterable[str]) -> set[str]:
        """The given revisions, as far as there are files for them, and everything they stand on."""
        reached: set[str] = set()
        waiting = [revision for revision in revisions if revision in self._files]
        while waiting:
            revision = waiting.pop()
            if revision not in reached:
                reached.add(revision)
                waiting += [parent for parent in self._files[revision].parents if parent in self._files]
        return reached

    def in_order(self, revisions: Iterable[str]) -> tuple[RevisionFile, ...]:
        """The given revisions, each after all that it stands on.

        Raises:
            RevisionFileError: one stands on itself, through others or not.
        """
        wanted, done, order = set(revisions), set[str](), list[RevisionFile]()
        above: dict[str, None] = {}  # those whose parents are looked at, each after the one that stands on it
        waiting = [(revision, False) for revision in sorted(wanted, reverse=True)]
        while waiting:  # iterative: a long chain would overflow recursion
            revision, parents_done = waiting.pop()
            if parents_done:
                del above[revision]
                order.append(self._files[revision])
            elif revision in above:
                path = [*above, revision]
                circle = path[path.index(revision) :]
                raise RevisionFileError(
                    file=self._files[revision].path.name, problem=f"stands on itself ({' on '.join(circle)})"
                )
            elif revision not in done:
                done.add(revision)
                above[revision] = None
                waiting.append((revision, True))
                waiting += [(p, False) for p in self._files[revision].parents if p in wanted]
        return tuple(order)


def migrations_directory(ini: Path) -> Path:
    """The directory that `script_location` in Alembic's ini file names."""
    parser = ConfigParser({"here": str(ini.parent)})
    parser.read(ini, encoding="utf-8")
    return (ini.parent / parser.get("alembic", "script_location")).resolve()


def read_revisions(migrations: Path) -> Revisions:
    """Read `versions/*.py` below Alembic's script location.

    Raises:
        RevisionFileError: a file does not declare its revision, or the files do not fit together.
    """
    folder = migrations / "versions"
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return Revisions(
        _read_file(folder / name) for name in names if name.endswith(".py") and not name.startswith(("__init__", ".#"))
    )


def _read_file(path: Path) -> RevisionFile:
    content = path.read_bytes()
    found = _DECLARATION.findall(b"\n" + content + b"\n")
    declared: dict[str, object] = {
        name.decode(): text.decode() if text else _CONSTANTS[constant]
        for name, _quote, text, constant in found
        if text or constant
    }
    if len(declared) < len(found):  # one of another form, or one twice
        declared = _parse_declarations(path, content)
    revision = declared.get("revision")
    if not isinstance(revision, str) or not revision:
        raise RevisionFileError(file=path.name, problem="does not say `revision = ...` with a name in quotes")
    if "down_revision" not in declared:
        raise RevisionFileError(file=path.name, problem="does not say `down_revision = ...`")
    down_revisions = _names(path, declared["down_revision"])
    compatible = declared.get("backward_compatible")
    return RevisionFile(
        revision=revision,
        down_revisions=down_revisions,
        parents=down_revisions + _names(path, declared.get("depends_on")),
        backward_compatible=compatible if isinstance(compatible, bool) else None,
        path=path,
        sha256=sha256(content).hexdigest(),
    )


def _parse_declarations(path: Path, content: bytes) -> dict[str, object]:
    """The same from the syntax tree, for files that do not write one declaration a line."""
    try:
        body = ast.parse(content).body
    except SyntaxError as error:
        raise RevisionFileError(file=path.name, problem=f"is not Python ({error.msg}, line {error.lineno})") from None
    declared: dict[str, object] = {}
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        for target in targets:
            if isinstance(target, ast.Name) and target.id in _DECLARATIONS and value is not None:
                try:
                    declared[target.id] = ast.literal_eval(value)
                except ValueError:
                    raise RevisionFileError(
                        file=path.name, problem=f"computes `{target.id}`, which has to be written out"
                    ) from None
    return declared


def _names(path: Path, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise RevisionFileError(file=path.name, problem="names a parent that is not a revision in quotes")
    return tuple(names)
