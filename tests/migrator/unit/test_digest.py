"""What changes the digest of a migration file, and what does not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from gasket.migrator.revisions.digest import digest


def digest_of(source: bytes) -> str:
    return digest(ast.parse(source))


MIGRATION = '''"""add a flag

Revises: aa1
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "bb2"
down_revision: str | None = "aa1"


def upgrade() -> None:
    # Nullable: an older release does not write it.
    op.add_column("t", sa.Column("flag", sa.Boolean(), nullable=True))
    for name in ("a", "b"):
        op.execute(f"UPDATE t SET flag = true WHERE name = '{name!r:>10}'")


def downgrade() -> None:
    op.drop_column("t", "flag")
'''

MIGRATIONS = sorted((Path(__file__).parents[3] / "migrations" / "versions").glob("*.py"))

SAME_CODE = {
    "comments": MIGRATION.replace("    # Nullable: an older release does not write it.\n", "    # Reviewed.\n"),
    "blank lines": MIGRATION.replace("\n\n\n", "\n\n\n\n\n").replace("op\n\nrevision", "op\nrevision"),
    "line ends": MIGRATION.replace("\n", "\r\n"),
    "byte order mark": "\ufeff" + MIGRATION,
    "module docstring": MIGRATION[MIGRATION.index("from __future__") :],
    "a docstring more": MIGRATION.replace("-> None:\n    op.drop", '-> None:\n    """Take it back."""\n    op.drop'),
    "needless pass": MIGRATION.replace("-> None:\n    op.drop", "-> None:\n    pass\n    op.drop"),
    "no annotations": MIGRATION.replace(": str | None", "").replace(": str", "").replace(" -> None", ""),
    "an annotation alone": MIGRATION.replace("revision: str =", "branch: str\nrevision: str =", 1),
    "quotes": MIGRATION.replace('"t"', "'t'").replace('"bb2"', "'''bb2'''"),
    "a string in two parts": MIGRATION.replace('f"UPDATE t SET', '"UPDATE " f"t SET'),
    "trailing commas": MIGRATION.replace('"flag")', '"flag",)').replace('("a", "b")', '(("a", "b",))'),
    "order of imports": MIGRATION.replace(
        "import sqlalchemy as sa\nfrom alembic import op\n", "from alembic import op\nimport sqlalchemy as sa\n"
    ),
    "imports of types": MIGRATION.replace("import sqlalchemy", "from typing import Any\nimport sqlalchemy"),
}

OTHER_CODE = {
    "a name": MIGRATION.replace('"flag", sa', '"flags", sa'),
    "a value": MIGRATION.replace("nullable=True", "nullable=False"),
    "the type of a value": MIGRATION.replace("nullable=True", "nullable=1"),
    "a keyword": MIGRATION.replace("nullable=True", "index=True"),
    "spaces in a string": MIGRATION.replace("SET flag", "SET  flag"),
    "a comment in a string": MIGRATION.replace("UPDATE t", "/* */ UPDATE t"),
    "a conversion": MIGRATION.replace("!r", "!s"),
    "a format": MIGRATION.replace(":>10", ":>11"),
    "no format": MIGRATION.replace(":>10", ""),
    "an operation less": MIGRATION.replace('    op.drop_column("t", "flag")\n', "    pass\n"),
    "an operation twice": MIGRATION.replace(
        '    op.drop_column("t", "flag")\n', '    op.drop_column("t", "flag")\n' * 2
    ),
    "a decorator": MIGRATION.replace("def downgrade", "@staticmethod\ndef downgrade"),
    "a default": MIGRATION.replace("def downgrade()", "def downgrade(x=1)"),
    "an import": MIGRATION.replace("import sqlalchemy as sa", "import sqlalchemy as sqla"),
    "a relative import": MIGRATION.replace("from alembic", "from .alembic"),
    "a loop": MIGRATION.replace("    for name in ", "    if name := "),
    "the name of a function": MIGRATION.replace("def downgrade", "def rollback"),
    "a revision": MIGRATION.replace('"aa1"', '"aa2"'),
}


def of(source: str) -> str:
    return digest_of(source.encode())


@pytest.mark.parametrize("source", SAME_CODE.values(), ids=SAME_CODE)
def test_looks_do_not_count(source: str) -> None:
    assert source != MIGRATION
    assert of(source) == of(MIGRATION)


@pytest.mark.parametrize("source", OTHER_CODE.values(), ids=OTHER_CODE)
def test_code_counts(source: str) -> None:
    ast.parse(source)
    assert of(source) != of(MIGRATION)


@pytest.mark.parametrize(
    ("source", "other"),
    [
        ("class C:\n    x: int = 1", "class C:\n    x: str = 1"),  # a field of a dataclass, a column of a model
        ("class C:\n    x: int", "class C:\n    pass"),
        ("def f():\n    global ab, c", "def f():\n    global a, bc"),
        ("f(a.b, c)", "f(a, b.c)"),
        ("x = {**a, b: c}", "x = {a: b, **c}"),
        ("x = 'a' 'b'", "x = 'a', 'b'"),
        ("x = b'a'", "x = 'a'"),
        ("x = 1", "x = 1.0"),
        ("x = f'{y}'", "x = '{y}'"),
        ("def f(a, /, b): ...", "def f(a, b): ..."),
        ("def f(a, b=1): ...", "def f(a=1, *, b): ..."),
        ("if a:\n    b\nelse:\n    c", "if a:\n    b\nc"),
        ("import a\nimport b", "import a"),
        ("def f():\n    import a\n    x\n    import b", "def f():\n    import b\n    x\n    import a"),
    ],
)
def test_neighbours_are_told_apart(source: str, other: str) -> None:
    assert of(source) != of(other)


@pytest.mark.parametrize(
    ("source", "other"),
    [
        ("x = f'a{y}b' 'c'", "x = f'a{y}' 'bc'"),
        ("x = f'{y:}'", "x = f'{y}'"),
        ("x = 0xFF_FF", "x = 65535"),
        ("def f():\n    import a\n    import b\n    x", "def f():\n    import b\n    import a\n    x"),
        ("del (a, b)", "del a, b"),
        ("def f[T](x): ...", "def f(x): ..."),
        ("if x:\n    'text'", "if x:\n    pass"),
    ],
)
def test_ways_of_writing_the_same(source: str, other: str) -> None:
    try:
        written = of(source)
    except SyntaxError:
        pytest.skip("this Python does not know it")
    assert written == of(other)


def test_the_digest_is_the_same_on_every_python() -> None:
    """Written down from CPython 3.11; 3.12 and later must agree."""
    assert of(MIGRATION) == "1:3a857ebd0f4bac0136499ccae93de909dbbd7b469b7b273c66f085964e11c47e"
    assert (
        of("x = f'a' 'b' f'{y!r:>{w}}{z:}' u'c' + b'\\xff' + 1e100 + 0x10")
        == "1:382250c143606e198ff8f9496e52c35e9241b87414d7758e57ec842fbbcc9838"
    )
    assert (
        of("with (open(a) as b, c): x[1:2, ::3] = lambda *a, k=..., **b: [*a, {**b}]")
        == "1:98c4b20df5d2c80f04a7e65689a88f48c489639293d7b7c42dcd552ddc9bc007"
    )
    assert (
        of("match x:\n    case {'a': [1, *_], **r} | C(y=2) as z if not z:\n        pass")
        == "1:1229258b44410c3e34be210d6fd1b8fafc290809a42521255febfbb1650704bf"
    )


def test_what_is_not_python_is_said() -> None:
    with pytest.raises(SyntaxError):
        digest_of(b"def upgrade(:")


def test_a_very_deep_expression_is_no_problem() -> None:
    assert of("x = " + " + ".join(["'a'"] * 2_000)) != of("x = " + " + ".join(["'a'"] * 2_001))


@pytest.mark.parametrize("path", MIGRATIONS, ids=lambda path: path.stem)
def test_every_text_of_a_real_file_counts(path: Path) -> None:
    """Each in turn is changed, in each migration of this repository."""
    source = path.read_text()
    nodes = list(ast.walk(ast.parse(source)))
    docstrings = [node.value for node in nodes if isinstance(node, ast.Expr)]
    texts = [node for node in nodes if isinstance(node, ast.Constant) and type(node.value) is str]
    assert texts
    for node in (text for text in texts if text not in docstrings and text.end_lineno == text.lineno):
        lines = source.encode().splitlines()
        line = lines[node.lineno - 1]
        lines[node.lineno - 1] = line[: node.col_offset] + b"'another text'" + line[node.end_col_offset :]
        assert digest_of(b"\n".join(lines)) != of(source), (node.lineno, node.value)
