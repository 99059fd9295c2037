"""The figure of a sweep: memory against the training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .plots import _STYLES
from .sweep import FRACTION, Memory

_WIDE = 30.0  # steps this many times apart are drawn on a logarithmic axis
_MOST_NAMES = 12  # of models below an axis


def sweep_figure(
    states: dict[str, list[Memory]], delays: Sequence[int], *, width: float = 9.0
) -> Figure:
    """Draw what models remember, one row of two panels for each state.

    Left, on a logarithmic axis: whitened σ₁ at some delays, with a band of one standard error;
    points not clear of their noise floor are hollow. Right: the last delay at which σ₁ is at least
    a twentieth of what it is at delay 0, with a bar from what is certain to what is possible. Each
    training, as the names of the models tell them apart, has a line style of its own.

    Args:
        states: State → what each model remembers in it.
        delays: Those that are drawn.
        width: Of the figure, in inches.
    """
    figure = Figure(figsize=(width, 0.7 + 0.38 * width * len(states)), layout="constrained")
    panels = figure.subplots(len(states), 2, squeeze=False)
    series = list(dict.fromkeys(m.entry.series for found in states.values() for m in found))
    for (memory, horizon), (state, found) in zip(panels, states.items(), strict=True):
        places = _places(found)
        for i, name in enumerate(series):
            mine = [j for j, m in enumerate(found) if m.entry.series == name]
            for k, delay in enumerate(delays):
                _draw_sigma1(memory, places[mine], [found[j] for j in mine], delay, k, i)
            _draw_horizon(horizon, places[mine], [found[j] for j in mine], i)
        memory.set_yscale("log")
        memory.set(title=f"{state}: memory")
        memory.set_ylabel("largest singular value $\\sigma_1$, whitened")
        horizon.set(title=f"{state}: horizon", ylim=(-0.5, None))
        horizon.set_ylabel(
            f"last delay with $\\sigma_1$ at least {FRACTION:.0%}\nof that at delay 0"
        )
        for axes in (memory, horizon):
            _finish(axes, found, places)
    handles = [
        Line2D([], [], color=_STYLES[k % len(_STYLES)][0], marker=_STYLES[k % len(_STYLES)][1],
               markersize=4.5, label=f"delay {delay}")
        for k, delay in enumerate(delays)
    ]  # fmt: skip
    if len(series) > 1:
        handles += [
            Line2D([], [], color="0.2", linestyle=_line(i), label=name)
            for i, name in enumerate(series)
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6),
                  frameon=False, fontsize="small")  # fmt: skip
    return figure


def _places(found: list[Memory]) -> np.ndarray:
    """Where each model stands: at its step, or one after another."""
    steps = [m.entry.step for m in found]
    known = [s for s in steps if s is not None]
    return np.array(known if len(known) == len(steps) else range(len(steps)), float)


def _line(i: int) -> Any:
    return _STYLES[i % len(_STYLES)][2]


def _draw_sigma1(
    axes: Axes, x: np.ndarray, found: list[Memory], delay: int, k: int, i: int
) -> None:
    curves = [m.curve for m in found]
    value, error = (
        np.array([getattr(c, name)[delay] for c in curves]) for name in ("sigma1", "sigma1_stderr")
    )
    clear = np.array([c.clear[delay] for c in curves]) & (value > 0)
    color, marker, _ = _STYLES[k % len(_STYLES)]
    shown = np.where(clear, value, np.nan)
    axes.plot(x, shown, color=color, marker=marker, linestyle=_line(i), markersize=4.5, zorder=3)
    low = np.fmax(shown - error, 0.2 * shown)
    axes.fill_between(x, low, shown + error, color=color, alpha=0.22, linewidth=0, zorder=2)
    axes.plot(x[~clear], np.where(value > 0, value, np.nan)[~clear], linestyle="none",
              marker=marker, markersize=3.6, markerfacecolor="none", markeredgecolor=color,
              alpha=0.6)  # fmt: skip


def _draw_horizon(axes: Axes, x: np.ndarray, found: list[Memory], i: int) -> None:
    measured = np.array([np.nan if m.horizon.measured is None else m.horizon.measured
                         for m in found], float)  # fmt: skip
    ends = np.array([horizon_range(m) for m in found], float)
    bars = np.maximum(np.stack([measured - ends[:, 0], ends[:, 1] - measured]), 0)
    axes.errorbar(x, measured, yerr=np.nan_to_num(bars), color="#000000", marker="o",
                  linestyle=_line(i), markersize=4.5, linewidth=1.4, capsize=2.5,
                  elinewidth=0.9)  # fmt: skip


def horizon_range(memory: Memory) -> tuple[int, int]:
    """The least and the greatest delay that the horizon may be."""
    h = memory.horizon
    least = -1 if h.certain is None else h.certain
    open_ = np.flatnonzero(~np.isnan(h.doubtful))
    return least, max(least, int(open_[-1]) if open_.size else -1)


def _finish(axes: Axes, found: list[Memory], places: np.ndarray) -> None:
    axes.grid(True, which="major", linewidth=0.5, alpha=0.35)
    axes.spines[["top", "right"]].set_visible(False)
    if found[0].entry.step is not None:
        axes.set_xlabel("training step")
        if places.min() > 0 and places.max() >= _WIDE * places.min():
            axes.set_xscale("log")
        return
    every = -(-len(places) // _MOST_NAMES)
    names = [m.entry.name for m in found]
    axes.set_xticks(places[::every], names[::every], rotation=30, ha="right", fontsize="small")
