"""Reading migration files without Alembic."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from gasket.migrator.errors import RevisionFileError
from gasket.migrator.revisions.files import read_folders

SOURCE = '''"""{doc}"""
revision: str = "{revision}"
down_revision: str | None = {down!r}
backward_compatible: bool = {compatible}
'''


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    directory = tmp_path / "versions"
    directory.mkdir()
    return directory


def write(
    versions: Path, revision: str, down: str | tuple[str, ...] | None = None, *, compatible: str = "True"
) -> Path:
    path = versions / f"2026_01_01_{revision}.py"
    path.write_text(SOURCE.format(doc=revision, revision=revision, down=down, compatible=compatible))
    return path


def test_a_chain_is_read_in_order_with_the_hash_of_its_bytes(versions: Path) -> None:
    write(versions, "zz1")
    path = write(versions, "aa2", "zz1", compatible="False")
    revisions = read_folders([versions])
    assert revisions.heads == ("aa2",)
    assert [file.revision for file in revisions.in_order(revisions)] == ["zz1", "aa2"]
    assert revisions["aa2"].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [revisions[r].backward_compatible for r in ("zz1", "aa2")] == [True, False]
    assert revisions["zz1"].down_revisions == ()


def test_no_files_is_no_head(versions: Path) -> None:
    assert read_folders([versions]).heads == ()


def test_an_undecided_file_has_no_compatibility(versions: Path) -> None:
    (versions / "a.py").write_text(
        "revision = 'a'\ndown_revision = None\n# = True or False\nbackward_compatible: bool\n"
    )
    assert read_folders([versions])["a"].backward_compatible is None


@pytest.mark.parametrize(
    "text",
    [
        "revision = (\n    'a'\n)\ndown_revision = None\n",
        "revision = down_revision = None\nrevision = 'a'\n",
        "'''\nrevision = 'no'\n'''\nrevision = 'a'\ndown_revision = None\n",
        "revision = 'a'  # the first\r\ndown_revision = None\r\n",
        "down_revision: 'str | None' = None\nrevision: str = \"a\"\n",
    ],
)
def test_declarations_are_found_however_they_are_written(versions: Path, text: str) -> None:
    (versions / "a.py").write_bytes(text.encode())
    revisions = read_folders([versions])
    assert list(revisions) == ["a"]
    assert revisions["a"].down_revisions == ()


def test_two_heads_are_seen(versions: Path) -> None:
    write(versions, "a")
    write(versions, "b", "a")
    write(versions, "c", "a")
    assert read_folders([versions]).heads == ("b", "c")


def test_a_merge_has_both_parents_and_joins_the_heads(versions: Path) -> None:
    write(versions, "a")
    write(versions, "b", "a")
    write(versions, "c", "a")
    write(versions, "d", ("b", "c"))
    revisions = read_folders([versions])
    assert revisions.heads == ("d",)
    assert revisions.with_ancestors(["b"]) == {"a", "b"}
    assert revisions.with_ancestors(["d", "unknown"]) == {"a", "b", "c", "d"}


@pytest.mark.parametrize("written_to", [False, True])
def test_a_named_pipe_is_refused_and_not_waited_for(versions: Path, written_to: bool) -> None:
    write(versions, "r1")
    os.mkfifo(pipe := versions / "pipe.py")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY) if written_to else None
    try:
        with pytest.raises(RevisionFileError, match=r"pipe\.py"):
            read_folders([versions])
    finally:
        for descriptor in filter(None, (reader, writer)):
            os.close(descriptor)


def test_files_that_stand_on_each_other_are_refused_with_the_circle(versions: Path) -> None:
    write(versions, "a")
    write(versions, "b", ("a", "d"))
    write(versions, "c", "b")
    write(versions, "d", "c")
    revisions = read_folders([versions])
    with pytest.raises(RevisionFileError, match=r"2026_01_01_b\.py stands on itself \(b on d on c on b\)"):
        revisions.check_chain()
    assert [file.revision for file in revisions.in_order(["a"])] == ["a"]


def test_a_long_chain_does_not_overflow(versions: Path) -> None:
    for number in range(1500):
        write(versions, f"r{number}", f"r{number - 1}" if number else None)
    revisions = read_folders([versions])
    assert [f.revision for f in revisions.in_order(revisions)] == [f"r{n}" for n in range(1500)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("down_revision = None\n", "does not say `revision = ...`"),
        ("revision = 'a'\n", "does not say `down_revision = ...`"),
        ("revision = name()\ndown_revision = None\n", "computes `revision`"),
        ("revision = 'a'\ndown_revision = [1]\n", "not a revision in quotes"),
        ("revision = 'a\n", "is not Python"),
    ],
)
def test_a_file_that_cannot_be_is_refused_by_name(versions: Path, text: str, problem: str) -> None:
    (versions / "odd.py").write_text(text)
    with pytest.raises(RevisionFileError, match="odd.py") as refusal:
        read_folders([versions])
    assert problem in str(refusal.value)


def test_the_same_revision_twice_is_refused(versions: Path) -> None:
    write(versions, "a")
    (versions / "copy.py").write_text((versions / "2026_01_01_a.py").read_text())
    with pytest.raises(RevisionFileError, match="same revision a as 2026_01_01_a.py"):
        read_folders([versions])
