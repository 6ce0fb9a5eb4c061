"""The plan as a comment on a pull request: GitHub's Markdown, which GitLab and others read as well."""

from __future__ import annotations

import re

from gasket.migrator.commands.plan_forecast import Forecast, RevisionForecast
from gasket.migrator.commands.plan_text import compatibility, facts, format_finding, headline, locks, remarks, size

_MARKUP = re.compile(r"[\\`*_<>|#\[\]~@]")
_BACKQUOTES = re.compile(r"`+")


def plan_in_markdown(plan: Forecast, *, sql: bool = False) -> str:
    """A heading, and a part for each revision; `sql` adds the statements, folded."""
    count = len(plan.revisions)
    lines = [f"### {_escaped(headline(plan))}"]
    lines += ["", *(f"- {_escaped(remark)}" for remark in remarks(plan))]
    for number, revision in enumerate(plan.revisions, start=1):
        lines += ["", *_revision(revision, f"{number} of {count}", sql=sql)]
    return "\n".join(lines).rstrip()


def _revision(revision: RevisionForecast, place: str, *, sql: bool) -> list[str]:
    lines = [f"#### {_code(revision.revision)} ({place}): {_escaped(revision.description)}", ""]
    lines.append(f"{_code(revision.file)}; {compatibility(revision)}")
    if revision.locks:
        lines += ["", "| locks table | mode | which | rows | size |", "|---|---|---|---|---|"]
        for lock, blocks in locks(revision):
            of_rows, of_bytes = size(lock)
            mode = f"{lock.mode}{' (estimated)' if lock.estimated else ''}"
            lines.append(f"| {_code(lock.table)} | {mode} | {blocks} | {of_rows} | {of_bytes} |")
    points = [*facts(revision), *(f"finding: {format_finding(finding)}" for finding in revision.findings)]
    if points:
        lines += ["", *(f"- {_escaped(point)}" for point in points)]
    if sql and revision.statements:
        text = "\n".join(
            f"-- statement {number}{' (outside of the transaction)' if statement.autocommit else ''}\n{statement.sql};"
            for number, statement in enumerate(revision.statements, start=1)
        )
        fence = "`" * max(3, 1 + _longest_backquotes(text))
        summary = f"<details><summary>{len(revision.statements)} statements</summary>"
        lines += ["", summary, "", f"{fence}sql", text, fence, "", "</details>"]
    return lines


def _escaped(text: str) -> str:
    """Text that a revision's author or the database chose, on one line and as it is: no markup, no mention."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def _code(name: str) -> str:
    """A name as code. In a table, also there, a bar has to be escaped (GitHub Flavored Markdown, "Tables")."""
    fence = "`" * (1 + _longest_backquotes(name))
    room = " " if "`" in name else ""
    return f"{fence}{room}{name}{room}{fence}".replace("|", "\\|")


def _longest_backquotes(text: str) -> int:
    return max(map(len, _BACKQUOTES.findall(text)), default=0)
