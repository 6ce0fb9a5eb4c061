"""The rules that every revision keeps, checked on its file and on its SQL before anything is applied.

`verdict_on` reads the file alone, for starts; `check_revision` also renders `upgrade()`, which is for whoever writes a
revision or wants to know what one would do. A revision allows a finding by name, with the reason:

    allowed_findings = {"blocking-index": "the table has ten rows"}
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import NamedTuple

import msgspec
from sqlalchemy import MetaData

from gasket.migrator.revisions.digest import digest
from gasket.migrator.revisions.files import RevisionFile
from gasket.migrator.revisions.rules.rulebook import SQL_RULES
from gasket.migrator.revisions.rules.source import controls_transaction, needless_autocommit
from gasket.migrator.revisions.rules.sql_rules import find_problems
from gasket.migrator.sql.render import render

_TRANSACTION_CONTROL = (
    "It controls its transaction ({found}): what it has done until then could not be taken back when it fails. Take it "
    "out; Alembic begins and ends the transaction of each revision. For a part that may fail write "
    "`with op.get_bind().begin_nested():`."
)
_AUTOCOMMIT = "autocommit-block"
SQUAWK = "squawk/"
"""What the names of the linter's rules begin with in `allowed_findings`; CI runs it (`.ci/squawk`)."""


class Finding(msgspec.Struct, frozen=True):
    """`message` says what, why it harms and what to do; `allowed` is the reason for which the revision has it anyway.

    `warning` is its level in `plan --format sarif`. A finding of SQL never stops an upgrade, one of the file does.
    """

    rule: str
    revision: str
    file: str
    message: str
    allowed: str | None = None
    warning: bool = False


class _Verdict(NamedTuple):
    """The first rule that a file breaks, as a message; its digest, where it is Python. `advice`: what a start warns of.

    `concurrently`: the word is in it, in whatever place. `needs_background` are the revisions whose work it needs.
    """

    broken: str | None
    digest: str | None
    advice: str | None
    concurrently: bool
    needs_background: tuple[str, ...] = ()


@cache
def verdict_on(file: RevisionFile) -> _Verdict:
    """Read, parsed and judged once: a start asks before it waits for the lock, under the lock, and when it records.

    Nothing of the file is imported or run.
    """
    source, parsed = _parse(file)
    broken = next((message for _rule, message in _file_problems(file, source, parsed)), None)
    concurrently = b"concurrently" in source.lower()
    if not isinstance(parsed, ast.Module):
        return _Verdict(broken, None, None, concurrently)
    advice = _advice(source, parsed)
    if advice and _AUTOCOMMIT in _allowed(parsed):
        advice = None
    return _Verdict(broken, digest(parsed), advice, concurrently, _needs_background(parsed) or ())


def declares_background(file: RevisionFile) -> bool:
    """Whether it gives the name `background` a value, in whatever way; a file that is not Python may."""
    _, module = _parse(file)
    if not isinstance(module, ast.Module):
        return True
    for node in ast.walk(module):
        match node:
            case ast.Name(id="background", ctx=ast.Store()) | ast.alias(name="background" | "*"):
                return True
            case ast.alias(asname="background"):
                return True
    return False


def check_revision(
    file: RevisionFile,
    upgrade: Callable[[], object],
    *,
    downgrade: Callable[[], object] | None = None,
    metadata: MetaData | None = None,
) -> list[Finding]:
    """All findings of one revision, those of its file and those of the SQL that its `upgrade` renders to.

    `downgrade` tells more of what `upgrade` drops. `metadata` as for `render`.
    """
    source, module = _parse(file)
    broken = _file_problems(file, source, module)
    findings = [Finding(rule, file.revision, file.path.name, message) for rule, message in broken]
    if not isinstance(module, ast.Module):
        return findings
    allowed = _allowed(module)
    rendering = render(upgrade, metadata=metadata)
    controls = rendering.transaction_control
    if controls and not any(finding.rule == "transaction-control" for finding in findings):
        message = _TRANSACTION_CONTROL.format(found=controls)
        findings.append(Finding("transaction-control", file.revision, file.path.name, message))
    back = render(downgrade, metadata=metadata) if downgrade else None
    problems = find_problems(rendering, compatible=file.backward_compatible is True, downgrade=back)
    if not any(rule == _AUTOCOMMIT for rule, _ in problems) and (advice := _advice(source, module)):
        problems.append((_AUTOCOMMIT, advice))
    return findings + [
        Finding(rule, file.revision, file.path.name, message, allowed.get(rule), SQL_RULES[rule].warning)
        for rule, message in problems
    ]


def allowed_findings(file: RevisionFile) -> dict[str, str]:
    """What the revision allows: names of rules with the reasons.

    Raises:
        RevisionFileError: the file is not Python.
    """
    return _allowed(file.parse())


def _allowed(module: ast.Module) -> dict[str, str]:
    declared = _constant(module, "allowed_findings")
    if not isinstance(declared, dict):
        return {}
    return {rule: reason for rule, reason in declared.items() if isinstance(reason, str) and reason.strip()}


def _parse(file: RevisionFile) -> tuple[bytes, ast.Module | SyntaxError | ValueError]:
    source = file.path.read_bytes()
    try:
        return source, ast.parse(source)
    except (SyntaxError, ValueError) as error:
        return source, error


def _file_problems(
    file: RevisionFile, source: bytes, module: ast.Module | SyntaxError | ValueError
) -> Iterator[tuple[str, str]]:
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
    for found in controls_transaction(source, module):
        yield "transaction-control", _TRANSACTION_CONTROL.format(found=found)
        break
    if _needs_background(module) is None:
        yield (
            "needs-background",
            '`needs_background` has to be written out: a list of revisions, as in `["5ac776fa6b6c"]`.',
        )
    yield from _empty_downgrade(module, functions)
    yield from _wrongly_allowed(module)


def _advice(source: bytes, module: ast.Module) -> str | None:
    """The one finding that the file alone shows and that a revision may allow."""
    if b"autocommit_block" not in source or not (needless := needless_autocommit(module)):
        return None
    rule = SQL_RULES[_AUTOCOMMIT]
    return f"It runs {needless} in an autocommit block. {rule.why} {rule.instead}"


def _empty_downgrade(module: ast.Module, functions: Mapping[str, list[ast.stmt] | None]) -> Iterator[tuple[str, str]]:
    if not _does_something(functions.get("upgrade")) or _does_something(functions.get("downgrade")):
        return
    reason = _constant(module, "downgrade_is_empty")
    if not (isinstance(reason, str) and reason.strip()):
        yield (
            "empty-downgrade",
            "downgrade() does nothing: the revision would be recorded as taken back, with the schema as before. Write "
            'it, or say why there is nothing to take back: `downgrade_is_empty = "..."`.',
        )


def _needs_background(module: ast.Module) -> tuple[str, ...] | None:
    """The revisions that it names; None where it is something else than a list of names."""
    if _assigns(module, "needs_background") is None:
        return ()
    declared = _constant(module, "needs_background")
    if not isinstance(declared, list | tuple) or not all(isinstance(name, str) for name in declared):
        return None
    return tuple(declared)


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
