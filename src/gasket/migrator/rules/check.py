"""The rules that every revision keeps, checked on its file and on its SQL before anything is applied.

`check_files` reads the files alone and is what a start asks; `check_revision` also renders `upgrade()`, which is for
whoever writes a revision or wants to know what one would do. A revision allows a finding by name, with the reason:

    allowed_findings = {"blocking-index": "the table has ten rows"}
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import Dialect, MetaData

from gasket.migrator.digest import digest_of
from gasket.migrator.errors import RuleBrokenError
from gasket.migrator.revisions import RevisionFile
from gasket.migrator.rules.rulebook import SQL_RULES
from gasket.migrator.rules.sql_rules import find_problems
from gasket.migrator.sql.render import render

SQUAWK = "squawk/"
"""What the names of the linter's rules begin with in `allowed_findings`; CI runs it (`.ci/squawk`)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`message` says what, why it harms and what to do; `allowed` is the reason for which the revision has it anyway.

    A `warning` refuses nothing.
    """

    rule: str
    revision: str
    file: str
    message: str
    allowed: str | None = None
    warning: bool = False


def check_files(files: Iterable[RevisionFile]) -> list[Finding]:
    """What stands against applying these files; nothing of them is imported or run."""
    return [
        Finding(rule, file.revision, file.path.name, message)
        for file in files
        for rule, message in _file_problems(file, _parse(file))
    ]


def refuse_broken(files: Iterable[RevisionFile]) -> dict[str, str]:
    """Refuse to apply files of which one breaks a rule; return the digest of each, because it is parsed for that.

    Raises:
        RuleBrokenError: the first of `check_files`.
    """
    digests: dict[str, str] = {}
    for file in files:
        parsed = _parse(file)
        for _rule, message in _file_problems(file, parsed):
            raise RuleBrokenError(file=file.path.name, finding=message)
        assert isinstance(parsed, ast.Module)
        digests[file.revision] = digest_of(parsed)
    return digests


def check_revision(
    file: RevisionFile,
    upgrade: Callable[[], object],
    *,
    dialect: Dialect | None = None,
    metadata: MetaData | None = None,
) -> list[Finding]:
    """All findings of one revision, those of its file and those of the SQL that its `upgrade` renders to.

    `dialect` and `metadata` as for `render`.
    """
    findings = check_files([file])
    if any(finding.rule == "not-python" for finding in findings):
        return findings
    allowed = allowed_findings(file)
    rendering = render(upgrade, dialect, metadata=metadata)
    problems = find_problems(rendering, compatible=file.backward_compatible is True)
    return findings + [
        Finding(rule, file.revision, file.path.name, message, allowed.get(rule), SQL_RULES[rule].warning)
        for rule, message in problems
    ]


def allowed_findings(file: RevisionFile) -> dict[str, str]:
    """What the revision allows: names of rules with the reasons.

    Raises:
        SyntaxError, ValueError: the file is not Python.
    """
    declared = _constant(ast.parse(file.path.read_bytes()), "allowed_findings")
    if not isinstance(declared, dict):
        return {}
    return {rule: reason for rule, reason in declared.items() if isinstance(reason, str) and reason.strip()}


def _parse(file: RevisionFile) -> ast.Module | SyntaxError | ValueError:
    try:
        return ast.parse(file.path.read_bytes())
    except (SyntaxError, ValueError) as error:
        return error


def _file_problems(file: RevisionFile, module: ast.Module | SyntaxError | ValueError) -> Iterator[tuple[str, str]]:
    if not isinstance(module, ast.Module):
        yield "not-python", f"It is not Python ({module}). Correct it."
        return
    functions = {name: body for node in module.body for name, body in _functions(node)}
    for name in ("upgrade", "downgrade"):
        if name not in functions:
            yield (
                "both-directions",
                f"It does not define {name}(). Write `def {name}() -> None:`, if need be with `pass`.",
            )
    if file.backward_compatible is None:
        yield (
            "undecided",
            "Whether every release that lacks this revision can run on the schema after it is not decided. Write "
            "`backward_compatible: bool = True` or `= False`.",
        )
    yield from _empty_downgrade(module, functions)
    yield from _wrongly_allowed(module)


def _empty_downgrade(module: ast.Module, functions: Mapping[str, list[ast.stmt] | None]) -> Iterator[tuple[str, str]]:
    if not _does_something(functions.get("upgrade")) or _does_something(functions.get("downgrade", None)):
        return
    reason = _constant(module, "downgrade_is_empty")
    if "downgrade" in functions and not (isinstance(reason, str) and reason.strip()):
        yield (
            "empty-downgrade",
            "downgrade() does nothing: the revision would be recorded as taken back, with the schema as before. Write "
            'it, or say why there is nothing to take back: `downgrade_is_empty = "..."`.',
        )


def _wrongly_allowed(module: ast.Module) -> Iterator[tuple[str, str]]:
    if not _assigns(module, "allowed_findings"):
        return
    declared = _constant(module, "allowed_findings")
    if not isinstance(declared, dict):
        yield "allowed-findings", "`allowed_findings` has to be written out: a dict of rule names and reasons."
        return
    for rule, reason in declared.items():
        if rule not in SQL_RULES and not str(rule).startswith(SQUAWK):
            known = ", ".join([*sorted(SQL_RULES), f"{SQUAWK}<rule>"])
            yield "allowed-findings", f"`allowed_findings` names {rule!r}; what can be allowed is {known}."
        elif not (isinstance(reason, str) and reason.strip()):
            yield "allowed-findings", f"`allowed_findings` gives no reason for {rule}. Write one."


def _functions(node: ast.stmt) -> Iterator[tuple[str, list[ast.stmt] | None]]:
    """The names that a statement of a module defines or binds, with the body where it is a function's."""
    match node:
        case ast.FunctionDef(name=name, body=body):
            yield name, body
        case ast.ImportFrom(names=names):
            for alias in names:
                yield alias.asname or alias.name, None
        case ast.Assign(targets=targets):
            for target in targets:
                if isinstance(target, ast.Name):
                    yield target.id, None


def _does_something(body: list[ast.stmt] | None) -> bool:
    """Whether there is more than texts, `pass`, `...`, a bare return or a refusal. Of no known body: yes."""
    return body is None or not all(
        isinstance(statement, ast.Pass | ast.Raise)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        or (isinstance(statement, ast.Return) and isinstance(statement.value, ast.Constant | None))
        for statement in body
    )


def _assigns(module: ast.Module, name: str) -> ast.expr | None:
    """What a module attribute is last set to."""
    found = None
    for node in module.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            found = getattr(node, "value", None)
    return found


def _constant(module: ast.Module, name: str) -> object:
    value = _assigns(module, name)
    if value is None:
        return None
    try:
        constant: object = ast.literal_eval(value)
    except (ValueError, TypeError):
        return None
    return constant
