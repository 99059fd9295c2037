"""How long writing a checkpoint takes: ``python -m benchmarks.checkpoint``.

The sums of an LSTM 64/256 at delays 0–50 in ten blocks, by number of groups, written as `analyze`
writes them (piece by piece, flushed to the disk, moved into place) and read back. A plain file of
as many bytes on the same disk, flushed as well, is beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mnemoscope.analyzer._checkpoint import Checkpoint
from rich.console import Console
from rich.table import Table

from . import report
from .asking import Command

GROUPS = (1, 4, 16)
BLOCKS, DELAYS, UNITS, EMBEDDING = 10, 51, 512, 64


def main() -> int:
    made = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    made.add_argument("--folder", type=Path, default=Path(), help="on the disk to be timed")
    command = Command(made, repeats=5)
    options = command.options
    table = Table(title=f"Checkpoint of an LSTM 64/256, delays 0–50: median of {options.repeats}")
    for column in ("groups", "MiB", "written in s", "plain file in s", "read in s"):
        table.add_column(column, justify="right")
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for groups in GROUPS:
            cells = np.random.default_rng(0).standard_normal(
                (BLOCKS + 1, groups, DELAYS, EMBEDDING, UNITS)
            )
            totals = {"block_sum": cells[1:], "half_sum": cells[0]}
            path, plain = Path(folder) / "r.checkpoint", Path(folder) / "plain"
            with Checkpoint(path, resume=True) as checkpoint:
                written = timed(lambda c=checkpoint, t=totals: c.write({}, t, {}), options.repeats)
                read = timed(lambda c=checkpoint, t=totals: c.restore({}, t), options.repeats)
            alone = timed(lambda p=plain, c=cells: copy(p, c), options.repeats)
            row = {"groups": groups, "bytes": cells.nbytes, "written": written, "plain": alone,
                   "read": read}  # fmt: skip
            rows.append(row)
            medians = [f"{statistics.median(t):.2f}" for t in (written, alone, read)]
            table.add_row(str(groups), f"{cells.nbytes / 2**20:,.0f}", *medians)
    Console(width=report.WIDTH).print(table)
    command.keep(rows=rows)
    return 0


def timed(work: Callable[[], object], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return found


def copy(path: Path, cells: np.ndarray) -> None:
    with path.open("wb") as file:
        for block in cells:
            file.write(block.data)
        os.fsync(file.fileno())


if __name__ == "__main__":
    raise SystemExit(main())
