"""Which changes of a column's type leave an older release what it had (PostgreSQL manual, "Data Types").

Known are those alone that are harmless; every other is taken for harmful.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SYNONYMS = {
    "bigserial": "bigint",
    "bool": "boolean",
    "bpchar": "character",
    "char": "character",
    "character varying": "varchar",
    "dec": "numeric",
    "decimal": "numeric",
    "double precision": "float8",
    "float": "float8",
    "int": "integer",
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "real": "float4",
    "serial": "integer",
    "smallserial": "smallint",
    "time without time zone": "time",
    "timestamp with time zone": "timestamptz",
    "timestamp without time zone": "timestamp",
    "time with time zone": "timetz",
}
# Each holds the values of those before it, and asyncpg reads them as the same type of Python.
_LADDERS = (("smallint", "integer", "bigint"), ("float4", "float8"), ("varchar", "text"))
_WITH_PRECISION = frozenset({"time", "timetz", "timestamp", "timestamptz", "interval", "varbit"})
_FORM = re.compile(r"(?P<base>[^(\[]+)(?:\((?P<sizes>[\d, ]+)\))?(?P<tail>[^\[]*)(?P<dimensions>(?:\[\d*\])*)")


@dataclass(frozen=True, slots=True)
class _Type:
    base: str
    sizes: tuple[int, ...]
    is_array: bool


def widens(was: str, now: str) -> bool:
    """Whether a column of type `was` may become `now` without an older release noticing."""
    old, new = _parse(was), _parse(now)
    if old is None or new is None or old.is_array != new.is_array:
        return False
    if old.base == new.base:
        return _sizes_widen(old, new)
    for ladder in _LADDERS:
        if old.base in ladder and new.base in ladder:
            return ladder.index(old.base) < ladder.index(new.base) and not new.sizes
    return False


def rewrites(was: str, now: str) -> bool:
    """Whether PostgreSQL rewrites the table for it (manual, "ALTER TABLE", Notes), where that is not known: True."""
    old, new = _parse(was), _parse(now)
    if old is None or new is None or not widens(was, now):
        return True
    if old.base == "numeric" and old.sizes and new.sizes:
        return old.sizes[1:] != new.sizes[1:]
    return old.base != new.base and (old.base, new.base) != ("varchar", "text")


def _parse(text: str) -> _Type | None:
    form = _FORM.fullmatch(" ".join(text.lower().split()))
    if form is None:
        return None
    base = f"{form['base'].strip()} {form['tail'].strip()}".strip()
    sizes = tuple(int(size) for size in (form["sizes"] or "").split(",") if size.strip())
    base = _SYNONYMS.get(base, base)
    if base == "character" and not sizes:
        sizes = (1,)
    if base == "numeric" and len(sizes) == 1:
        sizes = (*sizes, 0)
    return _Type(base, sizes, bool(form["dimensions"]))


def _sizes_widen(old: _Type, new: _Type) -> bool:
    if old.sizes == new.sizes:
        return True
    if old.base == "numeric" and len(old.sizes) == len(new.sizes) == 2:
        (old_digits, old_scale), (new_digits, new_scale) = old.sizes, new.sizes
        return new_scale >= old_scale and new_digits - new_scale >= old_digits - old_scale
    if not new.sizes:
        return old.base in _WITH_PRECISION | {"numeric", "varchar"}
    return bool(old.sizes) and old.base in _WITH_PRECISION | {"varchar"} and new.sizes > old.sizes
