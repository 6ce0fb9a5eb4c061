"""What the files of this repository's migrations have to keep; `make gate` runs it.

What needs a database is in `tests/migrator/integration/test_migrations.py` and `test_stairway.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from gasket.migrator.revisions.configuration import configured_revisions
from gasket.migrator.revisions.files import RevisionFile
from gasket.migrator.revisions.loading import load_scripts
from gasket.migrator.revisions.rules.check import check_revision
from gasket.migrator.sql.render import render
from gasket.models import metadata

ROOT = Path(__file__).parents[3]
REVISIONS = configured_revisions(ROOT / "alembic.ini")


@pytest.fixture(scope="module")
def scripts() -> ScriptDirectory:
    return load_scripts(ROOT / "alembic.ini")


def test_there_is_one_head() -> None:
    assert len(REVISIONS.heads) == 1


def test_file_names_are_dated_in_the_order_of_the_chain() -> None:
    names = [file.path.name for file in REVISIONS.in_order(REVISIONS)]
    assert names == sorted(names)
    assert all(name[:4].isdigit() for name in names)


def test_every_author_has_decided_on_compatibility() -> None:
    assert [file.path.name for file in REVISIONS.values() if file.backward_compatible is None] == []


@pytest.mark.parametrize("file", REVISIONS.values(), ids=lambda file: file.path.stem)
def test_it_keeps_the_rules(file: RevisionFile, scripts: ScriptDirectory) -> None:
    module = scripts.get_revision(file.revision).module
    findings = check_revision(file, module.upgrade, downgrade=module.downgrade, metadata=metadata)
    assert [finding for finding in findings if finding.allowed is None] == []


@pytest.mark.parametrize("file", REVISIONS.values(), ids=lambda file: file.path.stem)
def test_a_release_without_the_file_can_take_it_back(file: RevisionFile, scripts: ScriptDirectory) -> None:
    assert render(scripts.get_revision(file.revision).module.downgrade, metadata=metadata).reason is None
