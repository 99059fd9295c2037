"""One stream against many side by side, on the CPU: ``python -m benchmarks.streams``.

The same positions of small LSTMs, followed by the engine for one stream and by 16 streams in one
graph; the first pass, which carries the states, is left out. What `analyze` chooses by default
rests on this.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from mnemoscope.analyzer import Corpus, Groups, open_model
from mnemoscope.analyzer._run import Run
from mnemoscope.analyzer._shards import folded_work
from mnemoscope.analyzer.sums import plan
from rich.console import Console
from rich.table import Table

from . import report
from .asking import Command
from .shapes import SHAPES, Job

SIZES = ((8, 16), (16, 32), (16, 50), (16, 64), (32, 64), (32, 128))  # embedding, units
STREAMS = 16


def seconds(run: Run, positions: int) -> float:
    """Of one position; the states at the shards are known beforehand."""
    job = run.job(plan(positions, run.delays, blocks=2), Groups.everything(positions))
    carrier, known = job.carrier(), {}
    for shard in job.shards:
        known[shard.begin] = carrier.at(shard.begin)
    carrier.at = known.__getitem__  # type: ignore[method-assign]
    began = time.perf_counter()
    job.follow(job.shards, carrier)
    return (time.perf_counter() - began) / positions


def main() -> int:
    made = argparse.ArgumentParser(prog="python -m benchmarks.streams", description=__doc__)
    made.add_argument("--positions", type=int, default=8000)
    command = Command(made, repeats=4)
    options, threads = command.options, command.threads
    table = Table(title=f"LSTM, delays 0–50: input positions a second, best of {options.repeats}")
    for column in (
        "embedding/units",
        "work of a step",
        "one stream",
        f"{STREAMS} streams",
        "ratio",
    ):
        table.add_column(column, justify="right")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for embedding, units in SIZES:
            shape = replace(SHAPES["tiny"], embedding=embedding, hidden=units)
            job = Job(shape, Path(folder) / f"{embedding}-{units}.onnx", threads)
            model, ids = open_model(job.path), np.resize(job.ids, options.positions)
            corpus = Corpus(ids, "random", "", 1, 0)
            found: dict[int, list[float]] = {1: [], STREAMS: []}
            for _ in range(options.repeats):
                for streams, times in found.items():
                    run = Run(model, corpus, delays=shape.delays, provider="cpu", threads=threads,
                              streams=streams, calibrate=False)  # fmt: skip
                    times.append(seconds(run, options.positions))
            one, many = (1 / min(times) for times in found.values())
            work = folded_work(run.engines.linearization()) * (shape.delays + 1)
            table.add_row(f"{embedding}/{units}", f"{work / 1e6:.1f} · 10⁶", f"{one:,.0f}",
                          f"{many:,.0f}", f"{many / one:.1f}")  # fmt: skip
            rows.append({"embedding": embedding, "units": units, "work": work,
                         "one": one, "many": many})  # fmt: skip
    Console(width=report.WIDTH).print(table)
    command.keep(rows=rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
