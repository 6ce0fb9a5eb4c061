"""The plan in Markdown and as SARIF, of a forecast that is written down here."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from gasket.migrator.commands.plan_forecast import Forecast, RevisionForecast
from gasket.migrator.commands.plan_markdown import plan_in_markdown
from gasket.migrator.commands.plan_sarif import plan_in_sarif
from gasket.migrator.commands.plan_text import facts
from gasket.migrator.revisions.rules.check import Finding
from gasket.migrator.revisions.rules.rulebook import SQL_RULES
from gasket.migrator.scratch.effects import Statement, TableLock
from gasket.migrator.scratch.live_rows import RowFinding
from gasket.migrator.sql.locks import LockMode

FILE = "2026_01 one.py"


def lock(table: str, rows: int | None = None, bytes: int | None = None) -> TableLock:
    return TableLock(table=table, mode=LockMode.ACCESS_EXCLUSIVE, statement=1, estimated=False, rows=rows, bytes=bytes)


@pytest.fixture
def plan() -> Forecast:
    revision = RevisionForecast(
        revision="r1",
        file=FILE,
        description="ask @team about <b>",
        backward_compatible=False,
        estimated=False,
        concurrently=False,
        statements=(Statement("ALTER TABLE t ADD n int"), Statement("SELECT '```'", autocommit=True)),
        locks=(
            lock("a|b", rows=3000, bytes=5_000_000),
            lock("new"),
        ),
        rewrites=("a|b",),
        scans=(),
        index_builds=(),
        row_findings=(RowFinding(2, "t", "statement 2 would fail on 5 rows of t", 5, True),),
        writes=(),
        unknown=(),
        not_tried=(),
        findings=(
            Finding("drops", "r1", FILE, "Drops `t`.", allowed="nobody used it"),
            Finding("blocking-index", "r1", FILE, "Builds an index.", warning=True),
        ),
        background=(),
        needs_background=(),
    )
    return Forecast(current=("r0",), revisions=(revision,), notes=("Without *extension* x.",))


def test_markdown_says_all_and_takes_no_name_for_markup(plan: Forecast) -> None:
    assert plan_in_markdown(plan, sql=True).splitlines() == [
        "### 1 revision is pending after r0.",
        "",
        r"- Without \*extension\* x.",
        "",
        r"#### `r1` (1 of 1): ask \@team about \<b\>",
        "",
        "`2026_01 one.py`; older releases cannot run on it",
        "",
        "| locks table | mode | which | rows | size |",
        "|---|---|---|---|---|",
        r"| `a\|b` | ACCESS EXCLUSIVE | blocks reads and writes | about 3,000 rows | 5 MB |",
        "| `new` | ACCESS EXCLUSIVE | blocks reads and writes |  |  |",
        "",
        r"- rewrites a\|b, with all its indexes",
        "- statement 2 would fail on 5 rows of t",
        r"- finding: drops: Drops \`t\`. (allowed: nobody used it)",
        "- finding: blocking-index: Builds an index.",
        "",
        "<details><summary>2 statements</summary>",
        "",
        "````sql",
        "-- statement 1",
        "ALTER TABLE t ADD n int;",
        "-- statement 2 (outside of the transaction)",
        "SELECT '```';",
        "````",
        "",
        "</details>",
    ]
    assert plan_in_markdown(Forecast(current=("r0",), revisions=())) == "### Nothing is pending: the schema is at r0."


def test_sarif_has_what_the_standard_wants_and_each_result_its_place(plan: Forecast, tmp_path: Path) -> None:
    path = tmp_path / "migrations" / "versions" / FILE
    path.parent.mkdir(parents=True)
    path.write_text('revision = "r1"\n\n\ndef upgrade() -> None:\n    pass\n')
    log = plan_in_sarif(plan, {"r1": path}, tmp_path, "1.4.0")
    assert log["version"] == "2.1.0"
    [run] = log["runs"]
    driver = run["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("gasket database plan", "1.4.0")
    known = [rule["id"] for rule in driver["rules"]]
    assert len(set(known)) == len(known)
    assert set(SQL_RULES) < set(known)

    told = [(result["ruleId"], result["level"], result["message"]["text"]) for result in run["results"]]
    assert told == [
        ("drops", "error", "Revision r1: Drops `t`."),
        ("blocking-index", "warning", "Revision r1: Builds an index."),
        ("rows-in-the-way", "error", "Revision r1: statement 2 would fail on 5 rows of t."),
        ("rewrites", "note", "Revision r1: rewrites a|b, with all its indexes."),
        (
            "locks",
            "note",
            "Revision r1: locks a|b ACCESS EXCLUSIVE, blocks reads and writes; about 3,000 rows, 5 MB.",
        ),
    ]
    assert {rule for rule, *_ in told} <= set(known)
    assert [result["locations"] for result in run["results"]] == 5 * [
        [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": "migrations/versions/2026_01%20one.py"},
                    "region": {"startLine": 4},
                }
            }
        ]
    ]
    assert run["results"][0]["suppressions"] == [{"kind": "inSource", "justification": "nobody used it"}]
    assert all("suppressions" not in result for result in run["results"][1:])

    elsewhere = plan_in_sarif(plan, {"r1": path}, tmp_path / "other", "1.4.0")
    place = elsewhere["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == path.as_uri()


def test_a_revision_that_fails_on_the_scratch_database_is_an_error(plan: Forecast, tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text('revision = "r1"\n')
    failed = Forecast(current=(), revisions=plan.revisions, failure="The upgrade of revision r1 failed: no")
    result = plan_in_sarif(failed, {"r1": path}, tmp_path, "1.4.0")["runs"][0]["results"][0]
    assert (result["ruleId"], result["level"]) == ("fails", "error")
    assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == 1
    assert failed.fails


@pytest.mark.parametrize("statement", ["ALTER TABLE t ADD n int", "CREATE INDEX CONCURRENTLY i ON t (n)"])
def test_only_concurrently_waits_for_older_transactions(plan: Forecast, statement: str) -> None:
    [revision] = plan.revisions
    left = replace(revision, concurrently=True, statements=(Statement(statement, autocommit=True),))
    [line] = [line for line in facts(left) if line.startswith("leaves its transaction")]
    assert ("waits for every older transaction" in line) is ("CONCURRENTLY" in statement)


@pytest.mark.parametrize("certain", [True, False])
def test_rows_that_are_surely_in_the_way_make_an_upgrade_fail(plan: Forecast, certain: bool) -> None:
    [revision] = plan.revisions
    found = tuple(replace(finding, certain=certain) for finding in revision.row_findings)
    assert replace(plan, revisions=(replace(revision, row_findings=found),)).fails is certain
