"""Could the work on tangents be arranged better? ``python -m benchmarks.blocking``.

One step of an LSTM 64/256 at 51 delays on tangents ``[slot · E, 512]``: the cell state's half is
scaled into both halves, the hidden state's half is multiplied by a dense block ``[256, 512]`` onto
them, and the cell state's half is added to a sum. Nothing is read or linearised. As
`mnemoscope.analyzer` does it, and in the ways that were thought to be better, with BLAS and NumPy
on one thread for each part of the embedding's coordinates.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np
from mnemoscope.analyzer._gemm import gemm_of
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from . import report
from .asking import Command

SLOTS, EMBEDDING, UNITS, AHEAD, STEPS = 51, 64, 256, 16, 192
gemm = gemm_of(np.dtype(np.float32))


class Work:
    """The dense blocks and factors of a few positions, and the rows of one part."""

    def __init__(self, parts: int) -> None:
        rng = np.random.default_rng(0)
        self.slots, self.rows = SLOTS, EMBEDDING // parts
        shape = (2 * UNITS, AHEAD, UNITS)
        self.blocks = 0.03 * rng.standard_normal(shape).astype(np.float32)
        self.factors = rng.uniform(0.3, 0.9, (AHEAD, 2, UNITS)).astype(np.float32)

    def tangents(self, slots: int = SLOTS) -> np.ndarray:
        return np.full((slots * self.rows, 2 * UNITS), 1e-3, np.float32)

    def step(self, i: int, old: np.ndarray, new: np.ndarray, total: np.ndarray) -> None:
        """Scale, multiply and sum some slots."""
        scaled = new.reshape(len(new), 2, UNITS)
        np.multiply(old[:, None, :UNITS], self.factors[i % AHEAD], out=scaled)
        gemm(old[:, UNITS:], self.blocks[:, i % AHEAD], new, True, transposed=True)
        total += new[:, :UNITS]


def products(work: Work) -> None:
    """The products alone."""
    old, new = work.tangents(), work.tangents()
    for i in range(STEPS):
        gemm(old[:, UNITS:], work.blocks[:, i % AHEAD], new, True, transposed=True)


def as_it_is(work: Work) -> None:
    old, new = work.tangents(), work.tangents()
    total = np.zeros_like(new[:, :UNITS])
    for i in range(STEPS):
        work.step(i, old, new, total)
        old, new = new, old


def in_blocks(number: int) -> Callable[[Work], None]:
    """A few slots after the other, so that they stay in the cache during a step."""

    def run(work: Work) -> None:
        old, new = work.tangents(), work.tangents()
        total = np.zeros((len(new), UNITS), np.float32)
        edges = np.arange(number + 1) * work.slots // number * work.rows
        for i in range(STEPS):
            for low, high in itertools.pairwise(edges):
                work.step(i, old[low:high], new[low:high], total[low:high])
            old, new = new, old

    return run


def through_steps(number: int) -> Callable[[Work], None]:
    """A few slots through all steps that are read ahead, then the next few."""

    def run(work: Work) -> None:
        slots = work.slots // number
        olds, new = [work.tangents(slots) for _ in range(number)], work.tangents(slots)
        total = np.zeros((len(new) * number, UNITS), np.float32)
        for first in range(0, STEPS, AHEAD):
            for part, old in enumerate(olds):
                here = total[part * len(new) : (part + 1) * len(new)]
                for i in range(first, first + AHEAD):
                    work.step(i, old, new, here)
                    old, new = new, old
                olds[part] = old

    return run


def apart(work: Work) -> None:
    """A buffer for each state, scaled in rows of eight: two products in place of one."""
    cell, hidden, other = (work.tangents()[:, :UNITS].copy() for _ in range(3))
    total = np.zeros_like(cell)
    rows = np.tile(work.factors, (1, 1, 8))
    wide = (-1, 8 * UNITS)
    for i in range(STEPS):
        kept, shown = rows[i % AHEAD]
        np.multiply(cell.reshape(wide), shown, out=other.reshape(wide))
        np.multiply(cell.reshape(wide), kept, out=cell.reshape(wide))
        block = work.blocks[:, i % AHEAD]
        gemm(hidden, block[:UNITS], cell, True, transposed=True)
        gemm(hidden, block[UNITS:], other, True, transposed=True)
        total += cell
        hidden, other = other, hidden


WAYS: dict[str, Callable[[Work], None]] = {
    "products alone": products,
    "as it is": as_it_is,
    "slots in 4 blocks": in_blocks(4),
    "slots in 8 blocks": in_blocks(8),
    "3 blocks through 16 steps": through_steps(3),
    "a buffer for each state": apart,
}


def seconds(way: Callable[[Work], None], work: Work, threads: int) -> float:
    """Of one step, on all threads at once."""
    made = [threading.Thread(target=way, args=(work,)) for _ in range(threads)]
    began = time.perf_counter()
    for thread in made:
        thread.start()
    for thread in made:
        thread.join()
    return (time.perf_counter() - began) / STEPS


def main() -> int:
    made = argparse.ArgumentParser(prog="python -m benchmarks.blocking", description=__doc__)
    command = Command(made, repeats=5)
    work = Work(command.threads)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    with threadpool_limits(1, user_api="blas"):
        for _ in range(command.options.repeats):  # in turn: the machine's speed changes
            for name, way in WAYS.items():
                found[name].append(seconds(way, work, command.threads))
    table = Table(title="A step of an LSTM 64/256 on tangents of 51 delays")
    for column in ("way", "ms", "of the products' rate"):
        table.add_column(column, justify="left" if column == "way" else "right")
    alone = found["products alone"]
    for name, times in found.items():
        share = statistics.median(a / b for a, b in zip(alone, times, strict=True))
        table.add_row(name, f"{statistics.median(times) * 1e3:.2f}", f"{share:.0%}")
    Console(width=report.WIDTH).print(table)
    command.keep(seconds=found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
