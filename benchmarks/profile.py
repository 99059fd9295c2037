"""Where the time of jvp goes, by the engine for one stream: ``python -m benchmarks.profile``.

Every piece of the work on one position is timed on the thread that does it. What a thread does
between pieces (waiting for another, the interpreter) is the rest. Times are of all threads together
and divided by their number: milliseconds of wall time, if all were as busy.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from mnemoscope.analyzer import _products, _reading, sums
from rich.console import Console
from rich.table import Table

from . import products, report
from .asking import Command
from .ours import Ours
from .shapes import SHAPES, Job

DENSE, SCALING, INSERTING = "dense products", "scaling", "inserting"
SUMMING, READING, LINEARIZING = "summing", "carrying the states", "linearising"
PIECES = (DENSE, SCALING, INSERTING, SUMMING, READING, LINEARIZING)


class Clock:
    """Seconds of each piece, on all threads; a piece within a piece counts only for itself."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PIECES, 0.0)
        self._lock, self._inner = threading.Lock(), threading.local()

    def timed(self, function: Callable, piece: Callable[..., str]) -> Callable:
        """The function, with its time given to the piece that its arguments say."""

        def wrapped(*arguments: Any, **options: Any) -> Any:
            before = getattr(self._inner, "seconds", 0.0)
            self._inner.seconds = 0.0
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                took = time.perf_counter() - began
                own = took - self._inner.seconds
                self._inner.seconds = before + took
                with self._lock:
                    self.seconds[piece(*arguments, **options)] += own

        return wrapped


@contextlib.contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """Time the pieces of every run within."""

    def of_term(part: Any, term: Any, *rest: Any) -> str:
        return DENSE if term.kind == "dense" else SCALING

    places: list[tuple[Any, str, Callable[..., str]]] = [
        (_products._Part, "_apply", of_term),
        (_products._Part, "_insert", lambda *a, **o: INSERTING),
        (sums.Accumulator, "add", lambda *a, **o: SUMMING),
        (_reading.Stepper, "read", lambda *a, **o: READING),
        (_reading.Reader, "_linearized", lambda *a, **o: LINEARIZING),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, piece in places:
            timed = clock.timed(getattr(owner, name), piece)
            stack.enter_context(mock.patch.object(owner, name, timed))
        yield


def profile(job: Job, positions: int, chunk: int | None = None) -> dict[str, float]:
    """Piece → seconds of one position, and ``wall``; by the difference of two corpora."""
    ours, least = Ours(job, streams=1, chunk=chunk), job.shape.delays + 1
    found = []
    for length in (least, least + positions):
        clock = Clock()
        with watched(clock):
            wall = ours.until_summed(length)
        found.append({**{k: v / job.threads for k, v in clock.seconds.items()}, "wall": wall})
    fixed, whole = found
    return {k: (whole[k] - fixed[k]) / positions for k in whole}


def main() -> int:
    made = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    made.add_argument("--shape", choices=list(SHAPES), default="lstm")
    made.add_argument("--positions", type=int)
    made.add_argument("--chunk", type=int, help="positions a call, as `analyze` takes it")
    command = Command(made)
    options, threads = command.options, command.threads
    shape = SHAPES[options.shape].resized(options.positions, None)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(shape, Path(folder) / "m.onnx", threads)
        profile(job, shape.positions, options.chunk)  # warms up
        found = profile(job, shape.positions, options.chunk)
        needed = products.Needed(job)
        alone = products.seconds(products.through_blas(needed))
    wall = found.pop("wall")
    found["waiting and the interpreter"] = wall - sum(found.values())
    table = Table(title=f"mnemoscope jvp, {shape.title}: {wall * 1e3:.3g} ms a position")
    for column in ("piece", "ms", "share"):
        table.add_column(column, justify="left" if column == "piece" else "right")
    for piece, seconds in found.items():
        if seconds:
            table.add_row(piece, f"{seconds * 1e3:.3f}", f"{seconds / wall:.0%}")
    Console(width=report.WIDTH).print(table)
    print(f"The same dense products alone (BLAS): {alone * 1e3:.3f} ms.")
    command.keep(shape=shape.name, wall=wall, pieces=found, products_alone=alone)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
