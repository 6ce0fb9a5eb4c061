"""Bar charts: numbers in, the geometry of an SVG out. The template draws it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from gasket.ui.formats import short

_BAR = 10
_LEAST = 1.5
"""Of 100: so high is the bar of a number that is not zero."""


class Part(msgspec.Struct, frozen=True):
    """A part of a bar, from its top `y` down; the chart is 100 high. `kind` is a class of the stylesheet."""

    y: float
    height: float
    kind: str = ""


class Bar(msgspec.Struct, frozen=True):
    """A bar, 10 wide, and what is said of it where it is pointed at."""

    x: int
    label: str
    parts: tuple[Part, ...]


class Chart(msgspec.Struct, frozen=True):
    """Bars from left to right. `sentence` is for those who do not see them."""

    title: str
    bars: tuple[Bar, ...]
    width: int
    highest: str
    sentence: str
    begin: str
    end: str


class Point(msgspec.Struct, frozen=True):
    """The number of one bar; `bad` of it is drawn in the colour of errors, from below."""

    when: str
    value: float
    bad: float = 0.0


def bar_chart(
    title: str, points: Sequence[Point], *, form: Callable[[float], str] = short, unit: str = "", begin: str, end: str
) -> Chart:
    """A bar for each point. `begin` and `end` are below the first and the last one."""

    def amount(value: float) -> str:
        return f"{form(value)} {unit}".rstrip()

    top = max((point.value for point in points), default=0.0)
    total = sum(point.value for point in points)
    told = f"{amount(total)} from {begin} to {end}, at most {amount(top)} in one bar" if top else "none"
    return Chart(
        title=title,
        bars=tuple(_bar(number, point, top, amount(point.value)) for number, point in enumerate(points)),
        width=_BAR * max(len(points), 1),
        highest=f"highest {amount(top)}" if top else "",
        sentence=f"{title}: {told}.",
        begin=begin,
        end=end,
    )


def _bar(number: int, point: Point, top: float, amount: str) -> Bar:
    parts: list[Part] = []
    if point.value > 0 and top > 0:
        height = max(100 * point.value / top, _LEAST)
        bad = height if point.bad >= point.value else max(100 * point.bad / top, _LEAST) if point.bad > 0 else 0.0
        bad = min(bad, height)
        parts = [Part(round(100 - height, 2), round(height - bad, 2)), Part(round(100 - bad, 2), round(bad, 2), "bad")]
    return Bar(number * _BAR, f"{point.when}: {amount}", tuple(part for part in parts if part.height > 0))
