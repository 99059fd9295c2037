"""How the time of jvp grows: ``python -m benchmarks.growth``.

One size is varied at a time, the others stay; the exponent is the slope of time against size in a
log-log plot, by least squares, with its standard error.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import linregress

from . import report
from .asking import Command
from .ours import Ours
from .shapes import Job, Shape

BASE = Shape("base", "LSTM", 64, 256, delays=20, positions=256, batch=1)


@dataclass(frozen=True)
class Axis:
    """What is varied.

    Attributes:
        expected: Exponent that the products alone would have.
    """

    name: str
    values: tuple[int, ...]
    expected: float


AXES = {
    a.name: a
    for a in (
        Axis("positions", (128, 256, 512, 1024, 2048), 1),
        Axis("delays", (10, 20, 40, 80, 160), 1),
        Axis("embedding", (32, 64, 128, 256), 1),
        Axis("hidden", (64, 128, 256, 512), 2),
        Axis("groups", (1, 4, 16, 64), 0),
    )
}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Slope of log(seconds) against log(sizes), and its standard error."""
    fit = linregress(np.log(sizes), np.log(seconds))
    return float(fit.slope), float(fit.stderr)


def times(axis: Axis, folder: Path, threads: int, repeats: int, base: Shape = BASE) -> dict:
    """Value → ``[repeat]`` seconds that the base's positions take; values take turns."""
    ready = {}
    for value in axis.values:
        groups = value if axis.name == "groups" else 1
        shape = base if axis.name == "groups" else replace(base, **{axis.name: value})
        path = folder / f"{shape.embedding}-{shape.hidden}.onnx"
        ready[value] = Ours(Job(shape, path, threads), groups=groups), shape.positions
    found: dict[int, list[float]] = {value: [] for value in axis.values}
    for repeat in range(repeats + 1):
        for value, (ours, positions) in ready.items():
            took = ours.seconds(positions)
            if repeat:  # the first is a warm-up
                found[value].append(took)
    return found


def main() -> int:
    made = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    made.add_argument("--axis", action="append", choices=list(AXES), help="default all")
    made.add_argument("--positions", type=int, default=BASE.positions)
    command = Command(made, repeats=3)
    options, threads = command.options, command.threads
    base = replace(BASE, positions=options.positions)
    table = Table(
        title=f"mnemoscope jvp, {base.title}, {base.positions} positions, one size varied"
    )
    for column in ("size", "values", "seconds", "exponent", "of the products"):
        table.add_column(column)
    axes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.axis or AXES:
            print(f"{name} …", file=sys.stderr)
            found = times(AXES[name], Path(folder), threads, options.repeats, base)
            medians = [statistics.median(t) for t in found.values()]
            slope, error = exponent(list(found), medians)
            table.add_row(name, " ".join(map(str, found)), " ".join(f"{m:.2g}" for m in medians),
                          f"{slope:.2f} ± {error:.2f}", f"{AXES[name].expected:g}")  # fmt: skip
            axes[name] = {"seconds": found, "exponent": slope, "error": error}
    Console(width=report.WIDTH).print(table)
    command.keep(axes=axes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
