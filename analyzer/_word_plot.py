"""Figures of single words (Verwimp et al. 2020, figures 8b, 9a and 9b)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .plots import _UNITS, _literal, _style
from .words import WordTable, frequency_correlation

FREQUENCIES = (10, 50, 100, 500)
"""Where the classes of training frequency are cut."""


def frequency_figure(table: WordTable, *, delay: int = 0, width: float = 9.0) -> Figure:
    """Draw how σ₁ and the rate of decay are spread over the types, by their frequency.

    Left σ₁ at a delay (figure 8b of the paper), right b of the fit a·exp(−bτ) (figure 9b): of
    the types of each class of frequency, the share in each bin, so that each line sums to 100 %.
    The last bin, shaded, holds everything beyond it too. Types whose σ₁ is not clear of its noise
    floor at that delay are left out on the left, those without a fit on the right.
    """
    figure = Figure(figsize=(width, 0.48 * width), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _shares(left, table, np.where(table.clear[:, delay], table.sigma1[:, delay], np.nan))
    _shares(right, table, table.b)
    left.set_title(f"Memory at delay {table.delay[delay]}", loc="left")
    left.set_xlabel(f"$\\sigma_1$ ({_UNITS[table.normalization]})")
    left.set_ylabel("share of the types of a frequency")
    right.set_title("Decay", loc="left")
    right.set_xlabel("b of $\\sigma_1 = a\\,e^{-b\\tau}$ (per word; large = forgotten fast)")
    left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    highest = max(axes.dataLim.y1 for axes in (left, right))
    # Room for a note above the lines.
    left.set_ylim(0, 1.25 * highest if np.isfinite(highest) and highest > 0 else 1)
    for axes in (left, right):
        axes.grid(True, linewidth=0.5, alpha=0.35)
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = left.get_legend_handles_labels()
    if not handles:
        handles, names = right.get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, title="frequency", loc="outside right upper", frameon=False,
                      fontsize="small")  # fmt: skip
    figure.suptitle(_literal(f"{table.state}: {len(table.word):,} types"))
    return figure


def _shares(axes: Axes, table: WordTable, values: np.ndarray) -> None:
    known = np.isfinite(values)
    if not known.any():
        axes.text(0.5, 0.5, "no type is clear of its noise floor", ha="center", va="center",
                  color="0.35", transform=axes.transAxes)  # fmt: skip
        return
    # A few types far out would leave one bin for all others.
    low, high = np.quantile(values[known], [0.0, 0.98])
    high = high if high > low else low + 1.0
    edges = np.linspace(min(low, 0.0), high, 13)
    held = np.clip(values, edges[0], edges[-1])
    middle = (edges[1:] + edges[:-1]) / 2
    bounds = (0, *FREQUENCIES, np.inf)
    for i, (a, b) in enumerate(itertools.pairwise(bounds)):
        here = known & (table.frequency >= a) & (table.frequency < b)
        if not here.any():
            continue
        share = np.histogram(held[here], edges)[0] / here.sum()
        name = f"< {b}" if a == 0 else f"≥ {a}" if np.isinf(b) else f"{a}–{b - 1}"
        axes.plot(middle, share, **_style(i), markersize=4,
                  label=name)  # fmt: skip
    axes.axvspan(edges[-2], edges[-1], color="0.5", alpha=0.12, linewidth=0)
    axes.annotate("and more", (middle[-1], 0.99), xycoords=("data", "axes fraction"), ha="center",
                  va="top", fontsize="small", color="0.25", rotation=90)  # fmt: skip
    found = frequency_correlation(table.frequency, values)
    if np.isfinite(found.rho):
        said = f"rank correlation {found.rho:+.2f} ± {found.stderr:.2f}"
        if table.unequal:
            said += "\n(types followed differently often)"
        axes.set_title(said, loc="right", fontsize="x-small", color="0.25", pad=2)


def curves_figure(table: WordTable, words: Sequence[int], *, width: float = 6.5) -> Figure:
    """Draw σ₁ of chosen types against the delay, with their fits (figure 9a of the paper).

    Points that are not clear of their noise floor (thin dotted) are hollow; the fit, a thin
    line, covers the delays that it was made from.

    Args:
        table: What to draw from.
        words: Numbers of the types.
        width: Of the figure, in inches.
    """
    figure = Figure(figsize=(width, 0.7 * width), layout="constrained")
    axes = figure.subplots()
    for i, w in enumerate(words):
        style = _style(i)
        sigma1, floor = table.sigma1[w], table.noise_floor[w]
        shown = np.where(sigma1 > 0, sigma1, np.nan)
        clear = table.clear[w]
        said = f"{_literal(str(table.word[w]))} ({table.occurrences[w]:,}×)"
        if np.isfinite(table.b[w]):
            said += f", b = {table.b[w]:.2f} ± {table.b_stderr[w]:.2f}"
        axes.plot(table.delay, np.where(clear, shown, np.nan), linestyle="none", markersize=4.5,
                  marker=style["marker"], color=style["color"], label=said)  # fmt: skip
        axes.plot(table.delay, np.where(clear, np.nan, shown), linestyle="none", markersize=4.5,
                  marker=style["marker"], color=style["color"], markerfacecolor="none",
                  alpha=0.5)  # fmt: skip
        axes.plot(table.delay, np.where(floor > 0, floor, np.nan), color=style["color"],
                  linestyle=(0, (1.2, 1.6)), linewidth=1.0, alpha=0.7)  # fmt: skip
        if np.isfinite(table.b[w]):
            x = table.delay[: int(table.points[w])]
            axes.plot(x, table.a[w] * np.exp(-table.b[w] * x), color=style["color"], linewidth=1.3)
    axes.set(yscale="log", xlabel="delay (words)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(f"largest singular value $\\sigma_1$\n({_UNITS[table.normalization]})")
    axes.set_title(_literal(table.state))
    axes.grid(True, which="major", linewidth=0.5, alpha=0.35)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    return figure
