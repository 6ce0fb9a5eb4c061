"""The documents say what the code says."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from gasket.migrator import errors, events
from gasket.migrator.rules.rulebook import SQL_RULES
from gasket.proxy.exchange import Outcome
from gasket.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def settings_table() -> str:
    rows = [entry.metadata for entry in fields(Settings)]
    return "\n".join(f"| `{row['env']}` | {row['shown_default']} | {row['meaning']} |" for row in rows)


def test_the_readme_lists_every_setting_with_its_default_and_meaning() -> None:
    """On failure, put the expected table in its place."""
    assert settings_table() in (ROOT / "README.md").read_text(), f"\n{settings_table()}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_variable_that_is_named_is_a_setting(document: Path) -> None:
    named = set(re.findall(r"\bGASKET_[A-Z_]+[A-Z]\b", document.read_text()))
    assert named <= {entry.metadata["env"] for entry in fields(Settings)}


def test_every_refusal_of_the_migrator_is_in_the_table_of_what_to_do() -> None:
    table = (ROOT / "docs" / "schema-management.md").read_text().partition("## It refuses with X: do Y")[2]
    listed = re.findall(r"^\| `(\w+Error)` \|", table, re.MULTILINE)
    refusals = [
        name for name, kind in vars(errors).items() if inspect.isclass(kind) and kind.__base__ is errors.MigratorError
    ]
    assert sorted(listed) == sorted(refusals)


def test_every_event_of_a_migration_is_in_the_table() -> None:
    table = (ROOT / "docs" / "schema-management.md").read_text().partition("## While it runs")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \| (?!beside)", table, re.MULTILINE)
    emitted = re.findall(r'"event": "(\w+)"', Path(inspect.getfile(events)).read_text())
    assert listed == emitted


def test_every_way_in_which_a_request_can_end_is_listed() -> None:
    [listed] = re.findall(r"how it ended \((`[^)]*)\)", (ROOT / "docs" / "gateway.md").read_text())
    assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(Outcome)


def test_every_rule_has_its_recipe() -> None:
    table = (ROOT / "docs" / "migration-recipes.md").read_text()
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == list(SQL_RULES)
