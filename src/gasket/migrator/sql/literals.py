"""A statement with its parameters written into it: the text for what a driver would send in two parts.

A parameter that asyncpg is given as `$1::DATE` becomes `'2026-01-31'::DATE`, and one that it is given as `$1`
becomes `'...'`, whose type PostgreSQL finds out in the same way (manual, "Type Conversion"). Every value is written
as its type's input text, so that what the statement means does not depend on how SQLAlchemy writes literals,
which is lossy (bytes, JSON, time zones).

Of SQLAlchemy's names these are not public: `visit_bindparam` and `_collected_params` of its compiler,
`_unwrapped_dialect_impl` and `_has_bind_expression` of its types. `tests/migrator/unit/test_render.py` fails when it
changes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any
from uuid import UUID

from sqlalchemy import BindParameter, ClauseElement, Dialect
from sqlalchemy.dialects.postgresql.base import PGCompiler
from sqlalchemy.types import TypeEngine

_NETWORK = (IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network)

# What asyncpg makes of the ends of Python's calendar.
_INFINITE: dict[date, str] = {
    date.min: "-infinity",
    datetime.min: "-infinity",
    datetime.min.replace(tzinfo=UTC): "-infinity",
    date.max: "infinity",
    datetime.max: "infinity",
    datetime.max.replace(tzinfo=UTC): "infinity",
}


class Refusal(Exception):
    """What a revision asks for cannot be rendered to SQL; the message says why, as what "it" does."""


def write_out(statement: ClauseElement, parameters: Mapping[str, Any], dialect: Dialect) -> str:
    """The SQL of `statement` for the given parameters, all in one text.

    Raises:
        Refusal: a parameter has no value, or one whose type is not known here.
    """
    compiled = _Compiler(dialect, statement, parameters)
    if compiled.prefetch:
        names = ", ".join(column.name for column in compiled.prefetch)
        raise Refusal(f"leaves a value to be computed by Python at run time ({names})")
    return str(compiled)


class _Compiler(PGCompiler):
    def __init__(self, dialect: Dialect, statement: ClauseElement, parameters: Mapping[str, Any]) -> None:
        self._given = parameters
        super().__init__(dialect, statement, column_keys=list(parameters) or None)

    def visit_bindparam(  # type: ignore[override]  # the base takes its many options one by one
        self, bindparam: BindParameter[Any], *, skip_bind_expression: bool = False, **how: Any
    ) -> str:
        as_is = how.get("literal_binds") or how.get("literal_execute") or bindparam.literal_execute
        expression = bindparam.type.dialect_impl(self.dialect)._has_bind_expression and not skip_bind_expression
        if as_is or expression:
            return str(super().visit_bindparam(bindparam, skip_bind_expression=skip_bind_expression, **how))  # type: ignore[no-untyped-call]
        value = self._value(bindparam)
        if not bindparam.expanding:
            return self._literal(value, bindparam.type)
        if not value:
            return f"({self.visit_empty_set_op_expr([bindparam.type], bindparam.expand_op)})"  # type: ignore[no-untyped-call]
        return f"({', '.join(self._literal(item, bindparam.type) for item in value)})"

    def _value(self, bindparam: BindParameter[Any]) -> Any:
        for values in (self._given, self._collected_params):
            if bindparam.key in values:
                return values[bindparam.key]
        if bindparam.required:
            raise Refusal(f"gives parameter :{bindparam.key} no value")
        return bindparam.effective_value

    def _literal(self, value: Any, type_: TypeEngine[Any]) -> str:
        processor = type_.dialect_impl(self.dialect).bind_processor(self.dialect)
        driver_value = processor(value) if processor else value
        driver_type = type_._unwrapped_dialect_impl(self.dialect)
        if driver_value is None:
            literal = "NULL"
        elif driver_type.render_bind_cast and isinstance(driver_value, int) and driver_value >= 0:
            literal = str(driver_value).lower()  # a number, true or false
        else:
            item_type = getattr(driver_type, "item_type", driver_type)
            literal = _quote(_input_text(driver_value, getattr(item_type, "timezone", False)))
        if not driver_type.render_bind_cast:
            return literal
        return str(self.render_bind_cast(type_, driver_type, literal))  # type: ignore[no-untyped-call]


def _quote(text: str) -> str:
    r"""A string literal that reads the same whatever `standard_conforming_strings` is.

    A backslash is written as `\x5c`: SQLAlchemy would take one before a colon for an escape of its own.
    """
    quoted = "'" + text.replace("\\", r"\x5c").replace("'", "''") + "'"
    return f"E{quoted}" if "\\" in text else quoted


def _input_text(value: Any, with_timezone: bool) -> str:
    """What PostgreSQL reads as this value (manual, "Data Types")."""
    match value:
        case bytes() | bytearray() | memoryview():
            return f"\\x{bytes(value).hex()}"
        case date() if value in _INFINITE:
            return _INFINITE[value]
        case datetime():
            # asyncpg takes a time without zone for one of this machine's.
            return (value.astimezone() if with_timezone else value).isoformat(" ")
        case date() | time():
            return value.isoformat()
        case timedelta():
            return f"{value.days} days {value.seconds}.{value.microseconds:06} seconds"
        case list():
            return "{" + ",".join(_array_item(item, with_timezone) for item in value) + "}"
        case str() | int() | float() | Decimal() | UUID():
            return str(value)
        case _ if isinstance(value, _NETWORK):
            return str(value)
    raise Refusal(f"has a parameter of type {type(value).__name__}, which cannot be written as SQL here")


def _array_item(value: Any, with_timezone: bool) -> str:
    """An element as the text of an array has it (manual, "Array Input and Output Syntax")."""
    if value is None:
        return "NULL"
    text = _input_text(value, with_timezone)
    if isinstance(value, list):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
