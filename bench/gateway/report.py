"""Tables of loads, and how the goals stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import median

from bench.gateway.load import Load
from bench.harness import verdict

DIRECT, CEILING, GASKET = "direct", "ceiling", "Gasket"
"""The targets' names."""


@dataclass(frozen=True)
class Loads:
    """The rounds of each target, by name. What it gives are medians of the rounds."""

    rounds: Mapping[str, Sequence[Load]]

    def per_second(self, name: str) -> float:
        """Requests per second."""
        return self._median(name, lambda load: load.requests / load.seconds)

    def p50_ms(self, name: str) -> float:
        """The median latency, in milliseconds."""
        return self._median(name, lambda load: load.p50 * 1000)

    def p99_ms(self, name: str) -> float:
        """The 99th percentile of the latency, in milliseconds."""
        return self._median(name, lambda load: load.p99 * 1000)

    def cpu_us(self, name: str) -> float:
        """The gateway's CPU time per request, in microseconds; not a number where there is no gateway."""
        return self._median(name, lambda load: load.cpu / load.requests * 1_000_000)

    def _median(self, name: str, value: Callable[[Load], float]) -> float:
        return median(value(load) for load in self.rounds[name])


@dataclass(frozen=True)
class Goal:
    """A value and the most that it should be, both in `unit`."""

    what: str
    value: float
    limit: float
    unit: str

    def row(self) -> str:
        """The line of a table."""
        goal = verdict(f"at most {self.limit:g}{self.unit}", self.value <= self.limit)
        return f"| {self.what} | {self.value:,.2f}{self.unit} | {goal} |"


def against_ceiling(what: str, of: Callable[[str], float], limit: float) -> Goal:
    """Gasket's value, at most so many times that of the ceiling."""
    return Goal(f"{what}, against the ceiling's", of(GASKET) / of(CEILING), limit, "x")


def loads_table(cases: Mapping[int, Loads], unit: str) -> str:
    """A Markdown table of cases by their number of clients; `unit` is what a request is called."""
    lines = [
        f"| clients | | {unit}s/s | p50, ms | p99, ms | CPU a {unit}, us |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for clients, loads in cases.items():
        for name in loads.rounds:
            times = f"{loads.p50_ms(name):,.2f} | {loads.p99_ms(name):,.1f}"
            cpu = "" if isnan(loads.cpu_us(name)) else f"{loads.cpu_us(name):,.0f}"
            lines.append(f"| {clients} | {name} | {loads.per_second(name):,.0f} | {times} | {cpu} |")
    return "\n".join(lines)


def goals_table(goals: Sequence[Goal]) -> str:
    """A Markdown table of goals."""
    return "\n".join(["| | measured | goal |", "| --- | ---: | --- |", *(goal.row() for goal in goals)])
