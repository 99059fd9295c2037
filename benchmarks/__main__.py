"""State-embedding Jacobians at every delay, by several ways of computing them, on the same work.

Times in one process and compares before it times; prints a table for each shape.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from . import guard, memory, report
from .asking import Command
from .measuring import Disagreement, measure
from .peers import PEERS
from .shapes import SHAPES, Job


def main() -> int:
    command = Command(parser(), repeats=5)
    options, threads = command.options, command.threads
    with tempfile.TemporaryDirectory() as folder:
        try:
            if options.guard:
                return guarded(Path(folder), threads, options.guard)
            shapes = measured(options, Path(folder), threads)
        except Disagreement as error:
            print(f"{error}. Nothing is timed.", file=sys.stderr)
            return 1
    command.keep(repeats=options.repeats, shapes=shapes)
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    made.add_argument("--shape", action="append", choices=[*SHAPES, "all"],
                      help="default lstm; may be given again")  # fmt: skip
    made.add_argument("--peer", action="append", choices=list(PEERS), help="default all")
    made.add_argument("--positions", type=int, help="input positions a repeat")
    made.add_argument("--delays", type=int, help="the largest")
    made.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    made.add_argument("--guard", nargs="?", const="goals", choices=list(guard.BARS),
                      help="only measure the ratios that the project promises, at a small size, "
                      "and exit with 1 where one falls short")  # fmt: skip
    return made


def measured(options: argparse.Namespace, folder: Path, threads: int) -> list[dict]:
    """Every shape asked for, shown as soon as it is done."""
    asked = options.shape or ["lstm"]
    names = list(SHAPES) if "all" in asked else list(dict.fromkeys(asked))
    found = []
    for name in names:
        shape = SHAPES[name].resized(options.positions, options.delays)
        job = Job(shape, folder / f"{name}.onnx", threads)
        result = measure(job, options.peer or PEERS, options.repeats, say)
        for row in result.rows:
            if row.reason is None and not options.no_memory:
                say(f"{name}: memory of {row.name}")
                row.peak = memory.peak(job, row.name)
        report.show(shape, result)
        found.append(report.as_json(shape, result))
    return found


def guarded(folder: Path, threads: int, bars: str) -> int:
    ratios = guard.run(Job(guard.SHAPE, folder / "guard.onnx", threads), say)
    lines = guard.short(ratios, guard.BARS[bars])
    for name, value in ratios.items():
        print(f"{name}: {value:.2f} (bar {guard.BARS[bars][name]:g})")
    for line in lines:
        print(line, file=sys.stderr)
    return int(bool(lines))


def say(line: str) -> None:
    print(f"{line} …", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
