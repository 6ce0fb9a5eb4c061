"""What the syntax tree of a revision shows of its SQL; nothing is imported or run.

Found are the texts that are written out where they are executed, or are assigned to a name that is executed. What is
put together at run time only rendering shows.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

from gasket.migrator.sql.lexer import shortened
from gasket.migrator.sql.reader import read
from gasket.migrator.sql.reading import AddValue, Create, Reading

_EXECUTES = frozenset({"execute", "exec_driver_sql", "scalar", "scalars"})
_WRAPS = frozenset({"text", "DDL", "dedent", "strip", "format", "cleandoc"})
_ENDS = frozenset({"commit", "rollback"})
# Operations that say how they are to be run, and those that do nothing in the database.
_INDEXES = frozenset({"create_index", "drop_index"})
_LOOKS = frozenset({"get_context", "get_bind", "f", "inline_literal", "autocommit_block"})
# Words of their own: `depends_on` is in every revision. In front of one may stand an escape sequence, as in "\nCOMMIT".
_MAY_CONTROL = re.compile(
    rb"(?:\b|\\(?:[abfnrtv]|[0-7]{1,3}|x\w\w|u\w{4}|U\w{8}))"
    rb"(?:abort|begin|commit|end|release|rollback|savepoint|start|prepare)\b",
    re.IGNORECASE,
)
_DEPTH = 8

_Names = Mapping[str, list[ast.expr]]


def controls_transaction(source: bytes, module: ast.Module) -> Iterator[str]:
    """What in a revision would end, begin or mark a transaction: `COMMIT`, `op.get_bind().commit()`, ..."""
    if not _MAY_CONTROL.search(source):
        return
    names = _names(module)
    for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
        if _name_of(call) in _EXECUTES:
            for text in _texts_of(call, names):
                if any(reading.transaction_control for reading in read(text)):
                    yield shortened(text, 60)
        elif _name_of(call) in _ENDS and isinstance(call.func, ast.Attribute) and _is_bind(call.func.value, names):
            yield ast.unparse(call)


def needless_autocommit(module: ast.Module) -> str | None:
    """What a revision runs in an autocommit block that PostgreSQL would run in a transaction; None when nothing."""
    functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    names = _names(module)
    for block in (node for node in ast.walk(module) if isinstance(node, ast.With) and _enters_block(node)):
        for call in _calls(block.body, functions):
            if needless := _needless(call, names):
                return needless
    return None


def made_extensions(source: bytes) -> Iterator[str]:
    """The extensions that a revision makes, as far as a text of it is a statement that does.

    None of a file that is not Python: running it tells what is wrong.
    """
    if b"extension" not in source.lower():
        return
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(module):
        match node:
            case ast.Constant(value=str(text)) if "extension" in text.lower():
                for change in (change for reading in read(text) for change in reading.changes):
                    if isinstance(change, Create) and change.kind == "extension":
                        yield change.name[-1]


def needs_autocommit(reading: Reading) -> bool:
    """Whether PostgreSQL refuses it in a transaction, or refuses there to use what it makes (ADD VALUE)."""
    return reading.needs_autocommit or any(isinstance(change, AddValue) for change in reading.changes)


def _needless(call: ast.Call, names: _Names) -> str | None:
    name = _name_of(call)
    if name in _EXECUTES:
        texts = _texts_of(call, names)
        return next((shortened(t, 60) for t in texts if read(t) and not all(map(needs_autocommit, read(t)))), None)
    if not (isinstance(call.func, ast.Attribute) and _is_operations(call.func.value)) or name in _LOOKS:
        return None
    concurrently = any(
        keyword.arg == "postgresql_concurrently"
        and not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
        for keyword in call.keywords
    )
    return None if name in _INDEXES and concurrently else f"op.{name}"


def _calls(body: list[ast.stmt], functions: Mapping[str, ast.FunctionDef], depth: int = 0) -> Iterator[ast.Call]:
    """The calls in a block, and in the functions of the file that it calls."""
    for node in (node for statement in body for node in ast.walk(statement)):
        if not isinstance(node, ast.Call):
            continue
        yield node
        if isinstance(node.func, ast.Name) and node.func.id in functions and depth < _DEPTH:
            yield from _calls(functions[node.func.id].body, functions, depth + 1)


def _enters_block(node: ast.With) -> bool:
    return any(
        isinstance(item.context_expr, ast.Call) and _name_of(item.context_expr) == "autocommit_block"
        for item in node.items
    )


def _name_of(call: ast.Call) -> str:
    match call.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def _is_operations(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id in ("op", "batch_op")


def _is_bind(value: ast.expr, names: _Names, depth: int = 0) -> bool:
    """Whether it is the connection of the run: `op.get_bind()`, `op.get_context().connection`, or a name for it."""
    match value:
        case ast.Call(func=ast.Attribute(attr="get_bind")) | ast.Attribute(attr="connection" | "bind"):
            return True
        case ast.Name(id=name) if depth < _DEPTH:
            return any(_is_bind(given, names, depth + 1) for given in names.get(name, ()))
    return False


def _names(module: ast.Module) -> dict[str, list[ast.expr]]:
    """What each name of the file is ever bound to; a name of a loop, to each of the items that are written out."""
    names: dict[str, list[ast.expr]] = {}
    for node in ast.walk(module):
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    if isinstance(target, ast.Name):
                        names.setdefault(target.id, []).append(value)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                names.setdefault(name, []).append(value)
            case (
                ast.For(target=ast.Name(id=name), iter=iterated)
                | ast.comprehension(target=ast.Name(id=name), iter=iterated)
            ):
                names.setdefault(name, []).append(iterated)
    return names


def _texts_of(call: ast.Call, names: _Names) -> list[str]:
    given = call.args[:1] or [k.value for k in call.keywords if k.arg in ("sqltext", "statement")]
    return [text for expression in given for text in _texts(expression, names)]


def _texts(value: ast.expr, names: _Names, depth: int = 0) -> Iterator[str]:
    """The texts that an expression may be, as far as they are written out; `_` stands for what is not."""
    if depth > _DEPTH:
        return
    match value:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "_" for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            ends = list(_texts(right, names, depth + 1)) or ["_"]
            yield from (start + end for start in _texts(left, names, depth + 1) for end in ends)
        case ast.BinOp(left=left, op=ast.Mod()):
            yield from _texts(left, names, depth + 1)
        case ast.IfExp(body=body, orelse=other):
            yield from _texts(body, names, depth + 1)
            yield from _texts(other, names, depth + 1)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            for item in items:
                yield from _texts(item, names, depth + 1)
        case ast.Name(id=name):
            for given in names.get(name, ()):
                yield from _texts(given, names, depth + 1)
        case ast.Call() if _name_of(value) in _WRAPS:
            inner = value.args[:1]
            if isinstance(value.func, ast.Attribute) and _name_of(value) in ("strip", "format"):
                inner = [value.func.value]
            for expression in inner:
                yield from _texts(expression, names, depth + 1)
