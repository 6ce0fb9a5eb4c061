"""The limits of keys and profiles, in forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import asdict

from gasket.limits.subjects import Limits


def limits_of(row: Any) -> Limits:
    """The limits of a key's or profile's row."""
    return Limits(**{name: getattr(row, name) for name in Limits.__struct_fields__})


def limit_texts(row: Any) -> dict[str, str]:
    """What a form shows of them; empty: unlimited."""
    return {name: "" if value is None else str(value) for name, value in asdict(limits_of(row)).items()}


def limit_values(texts: Mapping[str, str]) -> dict[str, Any]:
    """Those that are in `texts`, as the structs of `/api` take them."""
    return {name: texts[name] or None for name in Limits.__struct_fields__ if name in texts}
