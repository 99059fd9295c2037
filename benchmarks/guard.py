"""The guard against growing slower: ratios within one run, never times.

A ratio of neighbours in time says the same on a fast machine and on a slow one; what other
programs do to it, the margin of the bars for CI takes up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .measuring import Measured, measure, ratio
from .peers import OURS, REFERENCE
from .shapes import Job, Shape

SHAPE = Shape("guard", "LSTM", 64, 256, delays=50, positions=32, batch=16)
PEERS = (REFERENCE, "onnx-ad", OURS)
REPEATS = 3
PRODUCTS = "matrix-product rate"

GOALS = {REFERENCE: 10.0, "onnx-ad": 4.5, PRODUCTS: 0.85}
"""What the project promises on an idle machine: how many times as fast as each peer `jvp` is, and
what part of the machine's own matrix-product rate it reaches."""

CI = {REFERENCE: 2.0, "onnx-ad": 2.0, PRODUCTS: 0.3}
"""Less than half of what an idle machine of two cores measured (4.5, 5.0, 0.67): other jobs on a
shared machine disturb three short runs unequally, up to a factor of two. What they find is a
method that has lost its way of working, not a few per cent."""

BARS = {"goals": GOALS, "ci": CI}


def ratios(measured: Measured) -> dict[str, float]:
    """What the bars are about."""
    ours = measured.row(OURS).times
    found = {n: ratio(measured.row(n).times, ours) for n in (REFERENCE, "onnx-ad")}
    return {**found, PRODUCTS: measured.share(OURS)}


def short(found: Mapping[str, float], bars: Mapping[str, float]) -> list[str]:
    """One line for each ratio that is below its bar, or missing, or no number."""
    lines = []
    for name, bar in bars.items():
        value = found.get(name, float("nan"))
        if not value >= bar:
            what = (f"jvp reaches {value:.0%} of the {name}, not {bar:.0%}" if name == PRODUCTS
                    else f"jvp is {value:.2f} times as fast as {name}, not {bar:g}")  # fmt: skip
            lines.append(what)
    return lines


def run(job: Job, say: Callable[[str], None] = lambda line: None) -> dict[str, float]:
    """Measure the ratios at the guard's own small size.

    Raises:
        Disagreement: A peer computes something else.
    """
    return ratios(measure(job, PEERS, REPEATS, say))
