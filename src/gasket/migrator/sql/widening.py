"""Which changes of a column's type older releases do not notice, and which make PostgreSQL rewrite the table.

A change that is not known to be harmless to older releases (PostgreSQL manual, "Data Types") counts as harmful.
"""

from __future__ import annotations

import re

import msgspec

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


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BUILT_IN = _words(
    """
    bigint bigserial bit boolean bytea character cidr circle date daterange float4 float8 inet int4range int8range
    integer interval json jsonb jsonpath macaddr macaddr8 money name numeric numrange oid point polygon regclass
    serial smallint text time timestamp timestamptz timetz tsquery tsrange tstzrange tsvector uuid varbit varchar xml
    """
)
# Pairs of types whose values are the same bytes (pg_cast, binary coercible).
_SAME_BYTES = frozenset(
    {
        ("bit", "varbit"),
        ("cidr", "inet"),
        ("integer", "oid"),
        ("oid", "integer"),
        ("text", "varchar"),
        ("varchar", "text"),
        ("xml", "text"),
        ("xml", "varchar"),
    }
)


class _Type(msgspec.Struct, frozen=True):
    base: str
    sizes: tuple[int, ...]
    is_array: bool

    @property
    def is_known(self) -> bool:
        return self.base in _BUILT_IN


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


def rewrites(was: str | None, now: str) -> bool | None:
    """Whether PostgreSQL writes the table anew for it (manual, "ALTER TABLE", Notes). None: the types do not tell."""
    if was is None:
        return None
    old, new = _parse(was), _parse(now)
    if old is None or new is None:
        return None
    if old == new:
        return False
    if not (old.is_known and new.is_known) or {old.base, new.base} == {"timestamp", "timestamptz"}:
        return None  # a domain, an enum, a cast of an extension; or the session's time zone decides
    if old.is_array and new.is_array and not new.sizes:
        return None if old.base == new.base or (old.base, new.base) in _SAME_BYTES else True
    if old.is_array or new.is_array:
        return True
    if old.base == new.base == "numeric" and old.sizes and new.sizes:
        return old.sizes[1:] != new.sizes[1:] or new.sizes[0] < old.sizes[0]
    if old.base == new.base:
        return not _sizes_widen(old, new)
    return (old.base, new.base) not in _SAME_BYTES or bool(new.sizes)


def is_same_type(one: str, other: str) -> bool:
    """Whether two types are one, each as it is written: `int`, `INTEGER`; `varchar(5)`, `character varying(5)`."""
    parsed = _parse(one)
    return one == other if parsed is None else parsed == _parse(other)


def is_built_in(type_: str) -> bool:
    """Whether it is a type of PostgreSQL, and therefore no domain."""
    parsed = _parse(type_)
    return parsed is not None and parsed.is_known


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
