"""The same benchmark in several processes, one after the other: medians, and the worst beside them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from statistics import median

_VERDICTS = (": met", ": missed")
_RATES = ("/s", " a second")
"""The ends of the heads of columns in which more is better."""
_NUMBER = re.compile(r"(-?[\d,]*\.?\d+)(x| ms| MB|)")


def run_separately(runs: int, arguments: Sequence[str]) -> None:
    """Run `python -m bench` with these arguments so many times, and print one table of all runs."""
    outputs = []
    for number in range(1, runs + 1):
        print(f"run {number} of {runs} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "bench", *arguments]
        outputs.append(_output(command))
    print(f"{outputs[0].splitlines()[0]}\n\nOf {runs} separate runs: the median, and the worst in brackets.")
    print("\n".join(combined(outputs)))


def _output(command: Sequence[str]) -> str:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            process.terminate()  # it ends the server that it started; `subprocess.run` would kill it
            raise
    if process.returncode:
        sys.exit(process.returncode)
    return output


def combined(outputs: Sequence[str]) -> Iterator[str]:
    """The titles and tables of all outputs, which have the same form."""
    kept = [[line for line in output.splitlines() if line.startswith(("|", "###"))] for output in outputs]
    rows = list(zip(*kept, strict=True))
    heads: list[str] = []
    for lines, after in zip_longest(rows, rows[1:], fillvalue=("",)):
        if lines[0].startswith("###"):
            yield f"\n{lines[0]}\n"
            continue
        columns = [[cell.strip() for cell in cells] for cells in zip(*map(_cells, lines), strict=True)]
        if after[0].startswith("| ---"):
            if heads:
                yield ""
            heads = [cells[0] for cells in columns]
        shown = (_combined_cell(cells, head) for cells, head in zip(columns, heads, strict=True))
        yield f"| {' | '.join(shown)} |"


def _cells(line: str) -> list[str]:
    return line.strip().removeprefix("|").removesuffix("|").split("|")


def _combined_cell(cells: Sequence[str], head: str) -> str:
    if cells[0].endswith(_VERDICTS):
        goal = cells[0].rpartition(":")[0]
        return f"{goal}: met in {sum(cell.endswith(_VERDICTS[0]) for cell in cells)} of {len(cells)}"
    found = [match for cell in cells if (match := _NUMBER.fullmatch(cell))]
    if len(found) < len(cells) or len(set(cells)) == 1:
        return cells[0]
    numbers = [float(match[1].replace(",", "")) for match in found]
    places, unit = len(found[0][1].partition(".")[2]), found[0][2]
    worst = min(numbers) if head.endswith(_RATES) else max(numbers)
    return f"{median(numbers):,.{places}f}{unit} ({worst:,.{places}f}{unit})"
