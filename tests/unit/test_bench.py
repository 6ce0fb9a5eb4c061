"""How several runs of a benchmark become one table."""

from __future__ import annotations

from bench.several_runs import combined

RUN = """2026-01-01, load {load}

### Commands

| | plain, ms | command, ms | ratio | goal |
| --- | ---: | ---: | ---: | --- |
| `current` | 1,000.0 | {ms} | {ratio} | at most 1.2: {verdict} |
| `status` | 1,000.0 | 1,300.0 | 1.30 |  |

| clients | | requests/s |
| ---: | --- | ---: |
| 64 | Gasket | {rate} |

| | measured | goal |
| --- | ---: | --- |
| memory | {ms} MB | at most 1,200 MB: {verdict} |

Medians of 3; `commands` took {load} s.
"""


def test_several_runs_give_the_median_and_the_worst() -> None:
    runs = [("1,100.0", "1.10", "met", 7), ("1,300.0", "1.30", "missed", 5), ("1,150.0", "1.15", "met", 6)]
    outputs = [RUN.format(load=7, ms=ms, ratio=ratio, verdict=said, rate=rate) for ms, ratio, said, rate in runs]
    assert list(combined(outputs)) == [
        "\n### Commands\n",
        "|  | plain, ms | command, ms | ratio | goal |",
        "| --- | ---: | ---: | ---: | --- |",
        "| `current` | 1,000.0 | 1,150.0 (1,300.0) | 1.15 (1.30) | at most 1.2: met in 2 of 3 |",
        "| `status` | 1,000.0 | 1,300.0 | 1.30 |  |",
        "",
        "| clients |  | requests/s |",
        "| ---: | --- | ---: |",
        "| 64 | Gasket | 6 (5) |",
        "",
        "|  | measured | goal |",
        "| --- | ---: | --- |",
        "| memory | 1,150.0 MB (1,300.0 MB) | at most 1,200 MB: met in 2 of 3 |",
    ]
