"""Compare first, then time: the same work, interleaved, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from . import products
from .peer import Peer, Unavailable
from .peers import PEERS, REFERENCE
from .shapes import FIRST, Job

BARS = {"fd": 1e-2}
"""Largest relative difference, at any delay of any state, from the reference in double precision.
Differences of one step are good to about 1e-3 in single precision, and a long delay multiplies
many of them."""
BAR = 1e-4
"""The same for exact methods, which come to 1e-6 after 50 steps in single precision; a wrong
equation, order or delay comes to 1e-2 at the least."""
CHECKED = 4  # positions that are compared, where a peer does not insist on more


class Disagreement(Exception):
    """A peer computes something else than the reference; the message says which and how far."""


@dataclass
class Row:
    """What is known of one peer.

    Attributes:
        name: Of the peer.
        reason: Why it is not timed; None if it is.
        difference: From the reference.
        positions: How many a repeat takes.
        times: ``[repeat]``, seconds a position.
        ready: Seconds of preparation that are not timed: sessions, compiling.
        peak: Bytes; None where they were not measured.
    """

    name: str
    reason: str | None = None
    difference: float = float("nan")
    positions: int = 0
    times: list[float] = field(default_factory=list)
    ready: float = 0.0
    peak: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.times)


@dataclass
class Measured:
    """One shape.

    Attributes:
        rows: One for each peer asked for.
        alone: Library → ``[repeat]``, seconds that the matrix products of a position take alone.
        flop: Of these products.
    """

    rows: list[Row]
    alone: dict[str, list[float]]
    flop: int

    @property
    def best(self) -> str:
        """The library in which the products alone are fastest."""
        return min(self.alone, key=lambda k: statistics.median(self.alone[k]))

    def row(self, name: str) -> Row:
        return next(r for r in self.rows if r.name == name)

    def share(self, name: str) -> float:
        """What part of the machine's own matrix-product rate a peer reaches, all its work in."""
        return ratio(self.alone[self.best], self.row(name).times)


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median of the ratios of neighbours in time, which a drift of the machine leaves alone."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def difference(found: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> float:
    """Largest relative difference of any delay's matrix; infinite where there are no numbers."""
    worst = 0.0
    for name, value in found.items():
        expected = reference[name]
        if value.shape != expected.shape or not np.isfinite(value).all():
            return float("inf")
        off = np.linalg.norm(value - expected, axis=(1, 2))
        worst = max(worst, float((off / np.linalg.norm(expected, axis=(1, 2))).max()))
    return worst if found else float("inf")


def compare(name: str, peer: Peer, reference: Mapping[str, np.ndarray], positions: int) -> float:
    """How far a peer is from the reference.

    Raises:
        Disagreement: Farther than its bar.
    """
    found = difference(peer.sums(FIRST, FIRST + positions), reference)
    bar = BARS.get(name, BAR)
    if not found <= bar:
        raise Disagreement(f"{name} differs from the reference by {found:.1e}; its bar is {bar:g}")
    return found


def measure(
    job: Job, names: Iterable[str], repeats: int, say: Callable[[str], None] = lambda line: None
) -> Measured:
    """Prepare and compare the peers, then time them in turn.

    Raises:
        Disagreement: A peer computes something else; nothing is timed then.
    """
    shape = job.shape
    exact = PEERS[REFERENCE](job, torch.float64)  # type: ignore[call-arg]
    references: dict[int, dict[str, np.ndarray]] = {}
    ready: dict[str, Peer] = {}
    rows = []
    for name in names:
        if name in shape.left_out:
            rows.append(Row(name, f"left out: {shape.left_out[name]}"))
            continue
        say(f"{shape.name}: preparing and comparing {name}")
        began = time.perf_counter()
        try:
            peer = PEERS[name](job)
        except Unavailable as error:
            rows.append(Row(name, f"not available: {error}"))
            continue
        row = Row(name, positions=shape.positions_of(name), ready=time.perf_counter() - began)
        count = peer.multiple if peer.multiple > 1 else min(CHECKED, shape.positions)
        if count not in references:
            references[count] = _exact_sums(exact, count)
        row.difference = compare(name, peer, references[count], count)
        ready[name] = peer
        rows.append(row)
    needed = products.Needed(job)
    loops = {k: make(needed) for k, make in products.LIBRARIES.items()}
    alone: dict[str, list[float]] = {k: [] for k in loops}
    timed = [r for r in rows if r.reason is None]
    for row in timed:  # once, so that no first call is timed
        ready[row.name].seconds(ready[row.name].multiple)
    for repeat in range(repeats):
        say(f"{shape.name}: repeat {repeat + 1} of {repeats}")
        for row in timed:
            row.times.append(ready[row.name].seconds(row.positions) / row.positions)
        for name, loop in loops.items():
            alone[name].append(products.seconds(loop))
    return Measured(rows, alone, needed.flop)


def _exact_sums(exact: Peer, positions: int) -> dict[str, np.ndarray]:
    """Of a number of positions that need not be a multiple of what it takes at once."""
    whole, exact.multiple = exact.multiple, positions
    try:
        return exact.sums(FIRST, FIRST + positions)
    finally:
        exact.multiple = whole
