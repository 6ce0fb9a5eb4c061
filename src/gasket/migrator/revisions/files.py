"""The migrations on disk: what each file declares, in which order they stand, and the hash of its bytes.

Nothing here imports Alembic or runs a migration: a start at head reads the files with this alone.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
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
_PIECE = 16_384
_LONGEST_ID = 32  # alembic_version.version_num is varchar(32)
_PLAIN_ID = re.compile(r"[\w.]+")
SYMBOLS = frozenset({"base", "current", "head", "heads"})
"""What Alembic takes for a place in the history and not for a revision."""
_CONSTANTS = {b"None": None, b"True": True, b"False": False}


class RevisionFile(NamedTuple):
    """One file of `migrations/versions`.

    `parents` are its down revisions and dependencies; `backward_compatible` is None while its author has not
    decided. `location` is the path as text: to make a Path of it takes as long as to hash the file.
    """

    revision: str
    down_revisions: tuple[str, ...]
    parents: tuple[str, ...]
    backward_compatible: bool | None
    location: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where it is."""
        return Path(self.location)

    @property
    def oddity(self) -> str | None:
        """Why Alembic or its version table cannot keep the id, or commands name it: a clause behind "the revision"."""
        if len(self.revision) > _LONGEST_ID:
            return f"of {len(self.revision)} characters, and alembic_version keeps {_LONGEST_ID}"
        if self.revision in SYMBOLS:
            return "which for Alembic is a place in the history"
        if not _PLAIN_ID.fullmatch(self.revision):
            odd = sorted({character for character in self.revision if not _PLAIN_ID.fullmatch(character)})
            return f"with {' '.join(map(repr, odd))}: commands could not name it"
        return None

    def parse(self) -> ast.Module:
        """The syntax tree of the file as it is now.

        Raises:
            RevisionFileError: it is not Python.
        """
        return _parse_source(self.path, self.path.read_bytes())

    def read_description(self) -> str:
        """The first line of its docstring; empty where it has none or is not Python."""
        try:
            text = ast.get_docstring(self.parse()) or ""
        except RevisionFileError:
            return ""
        return text.partition("\n")[0]


class Revisions(Mapping[str, RevisionFile]):
    """The files by revision, in the order of their names; `folders` are where they were looked for."""

    def __init__(self, files: Iterable[RevisionFile], folders: Sequence[Path] = ()) -> None:
        self.folders = tuple(folders)
        self._files: dict[str, RevisionFile] = {}
        for file in files:
            other = self._files.setdefault(file.revision, file)
            if other is not file and not file.path.samefile(other.path):
                raise RevisionFileError(
                    file=file.path.name, problem=f"has the same revision {file.revision} as {other.path.name}"
                )

    def __getitem__(self, revision: str) -> RevisionFile:
        return self._files[revision]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @cached_property
    def fingerprint(self) -> str:
        """The same for the same files: by it the ledger tells releases apart, whatever they are called."""
        lines = "\n".join(sorted(f"{file.revision} {file.sha256}" for file in self._files.values()))
        return sha256(lines.encode()).hexdigest()

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


def _parse_source(path: Path, content: bytes) -> ast.Module:
    try:
        return ast.parse(content)
    except SyntaxError as error:
        raise RevisionFileError(file=path.name, problem=f"is not Python ({error.msg}, line {error.lineno})") from None
    except ValueError as error:  # a null byte, before Python 3.11.4
        raise RevisionFileError(file=path.name, problem=f"is not Python ({error})") from None


def read_folders(folders: Sequence[Path], *, recursive: bool = False) -> Revisions:
    """Read the `.py` files of the folders, as Alembic does: each file once, by links too; `__init__.py` is none.

    Raises:
        RevisionFileError: a file cannot be read or does not declare its revision, or the files do not fit together.
    """
    locations = (location for folder in folders for location in _files(folder, recursive=recursive))
    return Revisions(map(_read_file, locations), folders)


def _files(folder: Path, *, recursive: bool) -> Iterator[str]:
    """Those whose names are a migration's, in order."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise RevisionFileError(file=folder.name, problem=f"cannot be listed ({error.strerror})") from None

    for root, directories, names in os.walk(folder, onerror=refuse):
        prefix = os.path.join(root, "")
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith(("__init__", ".#")):
                yield prefix + name
        directories[:] = sorted(name for name in directories if recursive and not name.endswith("__pycache__"))


def _read_file(location: str) -> RevisionFile:
    try:
        content = _content(location)
    except OSError as error:
        path = Path(location)
        leads = f", a link to {os.readlink(path)}" if path.is_symlink() else ""
        raise RevisionFileError(
            file=path.name,
            problem=f"cannot be read ({error.strerror}{leads})",
            mend="Put the file back, make it readable, or remove it.",
        ) from None
    if b"\0" in content:
        raise RevisionFileError(file=os.path.basename(location), problem="has null bytes, and is no text")
    found = _DECLARATION.findall(b"\n" + content + b"\n")
    declared: dict[str, object] = {
        name.decode(): text.decode() if text else _CONSTANTS[constant]
        for name, _quote, text, constant in found
        if text or constant
    }
    if len(declared) < len(found):  # one of another form, or one twice
        declared = _parse_declarations(Path(location), content)
    revision = declared.get("revision")
    if not isinstance(revision, str) or not revision:
        problem = "does not say `revision = ...` with a name in quotes"
        raise RevisionFileError(file=os.path.basename(location), problem=problem)
    if "down_revision" not in declared:
        raise RevisionFileError(file=os.path.basename(location), problem="does not say `down_revision = ...`")
    down_revisions = _names(location, declared["down_revision"])
    compatible = declared.get("backward_compatible")
    return RevisionFile(
        revision=revision,
        down_revisions=down_revisions,
        parents=down_revisions + _names(location, declared.get("depends_on")),
        backward_compatible=compatible if isinstance(compatible, bool) else None,
        location=location,
        sha256=sha256(content).hexdigest(),
    )


def _content(location: str) -> bytes:
    """The bytes of a file. `open` takes half as long again, which is 2 ms of a start with 1,000 files."""
    parts: list[bytes] = []
    # A named pipe would be waited for without O_NONBLOCK; with it, it is empty.
    descriptor = os.open(location, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while part := os.read(descriptor, _PIECE):
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts)


def _parse_declarations(path: Path, content: bytes) -> dict[str, object]:
    """The same from the syntax tree, for files that do not write one declaration a line."""
    declared: dict[str, object] = {}
    for node in _parse_source(path, content).body:
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


def _names(location: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, tuple | list) or not all(isinstance(name, str) for name in value):
        raise RevisionFileError(
            file=os.path.basename(location), problem="names a parent that is not a revision in quotes"
        )
    return tuple(value)
