"""How numbers, times and sizes are shown. Everything here is a filter of the templates."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from markupsafe import Markup, escape

_UNITS = ((86_400.0, "day"), (3_600.0, "hour"), (60.0, "minute"))
_CODE = re.compile(r"`([^`]+)`")
_THOUSANDS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k"))


def ago(moment: datetime, now: datetime) -> str:
    """`3 minutes ago`, `in 2 days`, `just now`. The largest unit alone, rounded down."""
    seconds = (now - moment).total_seconds()
    distance = abs(seconds)
    if distance < 5:
        return "just now"
    words = f"{distance:.0f} seconds"
    for size, unit in _UNITS:
        if distance >= size:
            count = int(distance // size)
            words = f"{count} {unit}{'s' if count > 1 else ''}"
            break
    return f"{words} ago" if seconds > 0 else f"in {words}"


def exact(moment: datetime) -> str:
    """`2026-12-01 01:15:03 UTC`."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def number(value: float) -> str:
    """`1 234 567` with narrow spaces that do not break (ISO 80000-1, 7.3.1)."""
    return f"{value:,.0f}".replace(",", "\u202f")


def short(value: float) -> str:
    """At most four characters and a prefix: `9 876`, `12.3 k`, `4.5 M`."""
    for size, prefix in _THOUSANDS:
        if abs(value) >= size:
            unit = 1e3 if prefix == "k" else size
            return f"{value / unit:.3g}\u202f{prefix}"
    return number(value)


def milliseconds(value: float | None) -> str:
    """`87 ms`, `1.4 s`, `2 min`, `2 min 5 s`; a dash where nothing was measured."""
    if value is None:
        return "\u2013"
    if value < 999.5:
        return f"{value:.0f}\u202fms"
    seconds = value / 1000
    if seconds < 99.5:
        return f"{seconds:.3g}\u202fs"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}\u202fmin {rest}\u202fs" if rest else f"{minutes}\u202fmin"


def window(seconds: int) -> str:
    """`a minute`, `in 2 hours`, `in 90 s`: what a limit on tokens is about."""
    for size_, unit in _UNITS:
        if seconds >= size_ and seconds % size_ == 0:
            count = int(seconds // size_)
            return f"in {count} {unit}s" if count > 1 else "an hour" if unit == "hour" else f"a {unit}"
    return f"in {seconds} s"


def size(value: float) -> str:
    """`512 B`, `12.3 kB`, `4.5 MB`: powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.3g}\u202f{unit}"
        value /= 1000
    return f"{value:.3g}\u202fTB"


def percent(part: float, whole: float) -> str:
    """`1.2 %`, `35 %` of the whole; a dash of nothing."""
    if not whole:
        return "\u2013"
    share = 100 * part / whole
    return f"{share:.0f}\u202f%" if share >= 9.95 or not share else f"{share:.2g}\u202f%"


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 key`, `2 keys`."""
    return f"{number(count)} {one if count == 1 else many or f'{one}s'}"


def prose(text: str) -> Markup:
    """Paragraphs of our own documentation, escaped; what is in backquotes is code."""
    escaped = [str(escape(" ".join(part.split()))) for part in text.split("\n\n") if part.strip()]
    paragraphs = [_CODE.sub(r"<code>\1</code>", paragraph) for paragraph in escaped]
    return Markup("".join(f"<p>{paragraph}</p>" for paragraph in paragraphs))
