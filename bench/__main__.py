"""`python -m bench [NAME ...] [--repeats N] [--runs N]`: measure, and print Markdown."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time

from bench import (
    apply_migrations,
    background,
    commands,
    import_time,
    pages,
    reader_stall,
    start_to_ready,
    take_back,
    up_to_date_check,
    usage_query,
    usage_writer,
)
from bench.gateway import key_check, plain, streams
from bench.harness import describe_machine
from bench.several_runs import run_separately

_SCHEMA = (
    up_to_date_check,
    apply_migrations,
    take_back,
    reader_stall,
    background,
    commands,
    start_to_ready,
    import_time,
)
_ALL = (*_SCHEMA, plain, streams, key_check, usage_writer, usage_query, pages)
_BENCHMARKS = {module.__name__.removeprefix("bench."): module for module in _ALL}


def _named(wanted: str) -> list[str]:
    """The benchmark of this name, or those of the group."""
    return [name for name in _BENCHMARKS if name == wanted or name.startswith(f"{wanted}.")]


async def _run(names: list[str], repeats: int | None) -> None:
    print(await describe_machine(), flush=True)
    for name in names:
        module = _BENCHMARKS[name]
        started = time.monotonic()
        tables = await module.measure(repeats or module.REPEATS)
        print(f"\n### {module.TITLE}\n\n{tables}\n")
        print(f"Medians of {repeats or module.REPEATS}; `{name}` took {time.monotonic() - started:.0f} s.", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Gasket against references.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(_BENCHMARKS)}; default: all")
    parser.add_argument("--repeats", type=int, help="rounds of each measurement; default: each benchmark's own")
    parser.add_argument("--runs", type=int, help="do all of it in so many separate processes: medians and the worst")
    arguments = parser.parse_args()
    if unknown := [wanted for wanted in arguments.names if not _named(wanted)]:
        parser.error(f"there is no benchmark {', '.join(unknown)}")
    chosen = [name for wanted in arguments.names or _BENCHMARKS for name in _named(wanted)]
    # A run that is ended early takes its processes and its server along.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments.runs:
            repeats = [f"--repeats={arguments.repeats}"] if arguments.repeats else []
            run_separately(arguments.runs, [*chosen, *repeats])
        else:
            asyncio.run(_run(chosen, arguments.repeats))
    except KeyboardInterrupt:
        sys.exit("ended early")
