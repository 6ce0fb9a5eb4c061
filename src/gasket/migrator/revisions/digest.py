"""What a migration file does, as a hash that stays the same when only its looks change.

Comments, blank lines, docstrings, formatting, quotes, annotations of functions and variables and the order of
imports do not count; everything else does. The same source has the same digest on every CPython from 3.11 on:
`ast.dump` and `tokenize` are not used because what they say differs from version to version. Code that the file
imports is not covered.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from itertools import groupby
from typing import Any

_DIGEST_VERSION = 1
"""Raised when the same source is to have another digest; digests of different versions cannot be compared."""

# Imported for annotations, which do not count.
_FOR_ANNOTATIONS = frozenset({"__future__", "collections.abc", "typing", "typing_extensions"})
# Annotations, how a thing is written, and `ctx`, which follows from the place in the tree.
_NOT_CODE = frozenset({"annotation", "ctx", "kind", "returns", "simple", "type_comment", "type_params"})
_IMPORTS = (ast.Import, ast.ImportFrom)


def digest(module: ast.Module) -> str:
    """`<version>:<hex SHA-256>` of the code; the tree stays as it is."""
    written = _write(module)
    return f"{_DIGEST_VERSION}:{sha256(written.encode('ascii')).hexdigest()}"


def _write(module: ast.Module) -> str:
    """The tree as text. With a stack of its own, because a deep tree would overflow recursion."""
    body = sorted(module.body, key=lambda statement: not isinstance(statement, _IMPORTS))
    written: list[str] = []
    waiting: list[Any] = [_statements(body, in_class=False)]
    while waiting:
        item = waiting.pop()
        kind = type(item)
        if kind is str:
            written.append(item)
        elif kind is list:
            written.append("[")
            waiting.append("]")
            waiting += reversed(item)
        elif kind is ast.Constant:
            # An int is written in hexadecimal: CPython limits the length of decimal ones.
            value = item.value
            written.append(f"{type(value).__name__}:{hex(value) if type(value) is int else ascii(value)};")
        elif item is None:  # in a list: the key of {**mapping}
            written.append("~")
        else:
            written.append(f"{kind.__name__}(")
            waiting.append(")")
            _push_fields(item, waiting)
    return "".join(written)


def _push_fields(node: ast.AST, waiting: list[Any]) -> None:
    """What counts of a node. Empty fields do not: newer versions of Python add fields and leave them empty."""
    kind: Any = type(node)  # mypy takes no class for hashable
    for name, label in _fields(kind):
        value = getattr(node, name, None)
        if value is None or value == []:
            continue
        if isinstance(value, list):
            if kind is ast.JoinedStr:
                value = _joined(value)
            elif isinstance(value[0], ast.stmt):
                value = _statements(value, in_class=kind is ast.ClassDef)
            elif isinstance(value[0], str):
                value = ascii(value)
        elif not isinstance(value, ast.AST):
            value = ascii(value)  # a name, a number
        elif isinstance(value, ast.JoinedStr) and not value.values:  # f"{x:}"
            continue
        if value:
            waiting += (value, label)


@cache
def _fields(kind: type[Any]) -> tuple[tuple[str, str], ...]:
    """The fields that may count, the last first, each with what is written before it."""
    left_out = {"simple"} if kind is ast.AnnAssign else _NOT_CODE
    return tuple((name, f".{name}=") for name in reversed(kind._fields) if name not in left_out)


def _statements(body: list[ast.stmt], *, in_class: bool) -> list[ast.stmt | str]:
    """Without docstrings and `pass`, with neighbouring imports as one.

    `x: int = 1` is `x = 1`, but in a class, where annotations make fields.
    """
    kept: list[ast.stmt | str] = []
    for are_imports, group in groupby(body, lambda statement: isinstance(statement, _IMPORTS)):
        if are_imports:
            imported = {line for statement in group for line in _imported(statement)}
            kept += [ascii(sorted(imported))] if imported else []
            continue
        for statement in group:
            match statement:
                case ast.Pass() | ast.Expr(value=ast.Constant(value=str())):
                    pass
                case ast.AnnAssign(target=target, value=value) if not in_class:
                    kept += [ast.Assign(targets=[target], value=value)] if value else []
                case ast.Delete(targets=[ast.Tuple(elts=targets)]):  # del (a, b)
                    kept.append(ast.Delete(targets=targets))
                case _:
                    kept.append(statement)
    return kept


def _imported(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.Import(names=names):
            for alias in names:
                if alias.name not in _FOR_ANNOTATIONS:
                    yield f"{alias.name} as {alias.asname}"
        case ast.ImportFrom(module=module, names=names, level=level) if module not in _FOR_ANNOTATIONS:
            for alias in names:
                yield f"{'.' * level}{module}: {alias.name} as {alias.asname}"


def _joined(parts: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string with neighbouring texts as one: versions of Python cut them differently."""
    joined: list[ast.expr] = []
    for part in parts:
        match part, joined[-1] if joined else None:
            case ast.Constant(value=""), _:
                pass
            case ast.Constant(value=str(text)), ast.Constant(value=str(before)):
                joined[-1] = ast.Constant(value=before + text)
            case _:
                joined.append(part)
    return joined
