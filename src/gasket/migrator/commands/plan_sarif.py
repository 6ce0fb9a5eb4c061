"""The plan as SARIF 2.1.0 (OASIS standard), which code hosts show beside the lines of a pull request."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gasket.migrator.commands.plan_forecast import Forecast, RevisionForecast
from gasket.migrator.commands.plan_text import locks, size
from gasket.migrator.revisions.rules.check import Finding
from gasket.migrator.revisions.rules.rulebook import FILE_RULES, SQL_RULES
from gasket.migrator.sql.locks import LockMode

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_OBSERVED = {
    "fails": "The revision fails when it is tried out.",
    "rows-in-the-way": "A statement fails on rows of the live table.",
    "locks": "A lock keeps sessions from reading or writing a live table.",
    "rewrites": "A live table is written anew, with all its indexes.",
}
"""What was observed, beside the findings of the rules."""

_Json = dict[str, Any]


def plan_in_sarif(plan: Forecast, paths: Mapping[str, Path], root: Path, release: str) -> _Json:
    """The log file. `paths` are those of the revisions' files, `root` is the folder of the repository."""
    locations = {one.revision: _location(paths[one.revision], root) for one in plan.revisions}
    results = [result for one in plan.revisions for result in _results(one, locations[one.revision])]
    untried = [revision for revision in plan.revisions if revision.estimated] or list(plan.revisions)
    if plan.failure and untried:
        failed = untried[0].revision
        results.insert(0, _result("fails", "error", f"{plan.failure}.", failed, locations[failed]))
    rules = {rule: f"{SQL_RULES[rule].why} {SQL_RULES[rule].instead}" for rule in SQL_RULES}
    rules |= {rule: f"{words[0].upper()}{words[1:]}." for rule, words in FILE_RULES.items()} | _OBSERVED
    driver = {
        "name": "gasket database plan",
        "version": release,
        "rules": [{"id": rule, "shortDescription": {"text": words}} for rule, words in rules.items()],
    }
    run = {"tool": {"driver": driver}, "automationDetails": {"id": "gasket-plan/"}, "results": results}
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _location(path: Path, root: Path) -> _Json:
    """The line on which `upgrade()` begins, else the first."""
    inside = path.is_relative_to(root)
    uri = quote(path.relative_to(root).as_posix()) if inside else path.as_uri()
    return {"artifactLocation": {"uri": uri}, "region": {"startLine": _line_of_upgrade(path)}}


def _result(rule: str, level: str, text: str, revision: str, location: _Json) -> _Json:
    return {
        "ruleId": rule,
        "level": level,
        "message": {"text": f"Revision {revision}: {text}"},
        "locations": [{"physicalLocation": location}],
    }


def _results(revision: RevisionForecast, location: _Json) -> Iterator[_Json]:
    name = revision.revision
    for finding in revision.findings:
        yield _of_finding(finding, location)
    for found in revision.row_findings:
        level = "error" if found.certain else "warning"
        yield _result("rows-in-the-way", level, f"{found.sentence}.", name, location)
    for table in revision.rewrites:
        yield _result("rewrites", "note", f"rewrites {table}, with all its indexes.", name, location)
    for lock, blocks in locks(revision):
        if lock.bytes is not None and lock.mode.strength >= LockMode.SHARE.strength:
            of_rows, of_bytes = size(lock)
            words = f"locks {lock.table} {lock.mode}, {blocks}; {of_rows}, {of_bytes}."
            yield _result("locks", "note", words, name, location)


def _of_finding(finding: Finding, location: _Json) -> _Json:
    level = "warning" if finding.warning else "error"
    result = _result(finding.rule, level, finding.message, finding.revision, location)
    if finding.allowed:
        result["suppressions"] = [{"kind": "inSource", "justification": finding.allowed}]
    return result


def _line_of_upgrade(path: Path) -> int:
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef) and node.name == "upgrade":
            return node.lineno
    return 1
