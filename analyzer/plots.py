"""Figures, as matplotlib Figure objects: no global state, no choice of backend."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .classes import ClassTable
from .comparison import Comparison, StateComparison
from .tables import Curve

# Okabe and Ito's palette without its yellow (too light on white), as colour-blind readers tell
# apart; with a marker and a line style for each, so that grey print does too.
_STYLES = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", (0, (6, 1.5))),
    ("#009E73", "^", (0, (4, 1.2, 1, 1.2))),
    ("#CC79A7", "D", (0, (2.5, 1))),
    ("#000000", "v", "-"),
    ("#E69F00", "P", (0, (6, 1.5))),
    ("#56B4E9", "X", (0, (4, 1.2, 1, 1.2))),
)
_DOTTED = (0, (1.2, 1.6))
# What belongs to both curves has colours of its own.
_DIFFERENCE: dict[str, Any] = {
    "color": "#000000", "marker": "^", "linestyle": "-", "linewidth": 1.5, "markersize": 4,
}  # fmt: skip
_SECOND: dict[str, Any] = {
    "color": "#009E73", "marker": "D", "linestyle": (0, (4, 1.2)), "linewidth": 1.1,
    "markersize": 3.2,
}  # fmt: skip
_SHADE = "#F0E4C8"
_CENTRE: dict[str, Any] = {"ha": "center", "va": "center", "color": "0.35"}
_UNITS = {
    "whitened": "state per standard deviation of the embedding",
    "none": "state per unit of the embedding",
}


def memory_figure(
    curves: Sequence[tuple[str, Curve]], *, title: str | None = None, width: float = 9.0
) -> Figure:
    """Draw memory (σ₁) and selectivity against the delay.

    Left, on a logarithmic axis: σ₁ with a band of one standard error, and its noise floor as a
    thin dashed line of the same colour. Points not more than two standard errors above their
    floor are hollow and faded. Right: σ₁/Σσ with its band (strong) and (σ₁+…+σ₅)/Σσ (thin).

    Args:
        curves: Names for the legend, and what to draw.
        title: Above the figure; None for none.
        width: Of the figure, in inches.
    """
    figure = Figure(figsize=(width, 0.48 * width), layout="constrained")
    memory, share = figure.subplots(1, 2)
    for i, (_, curve) in enumerate(curves):
        _draw_memory(memory, curve, i, len(curves))
        _draw_selectivity(share, curve, i, len(curves))
    _finish(memory, curves)
    normalizations = list(dict.fromkeys(c.normalization for _, c in curves))
    units = "; ".join(_UNITS[n] for n in normalizations)
    memory.set(title="Memory", xlabel="delay (words)")
    memory.set_ylabel(f"largest singular value $\\sigma_1$\n({units})", fontsize="medium")
    share.set(ylim=(0, 1.02), title="Selectivity", xlabel="delay (words)")
    share.set_ylabel("share of the leading singular values")
    for axes in (memory, share):
        axes.grid(True, which="major", linewidth=0.5, alpha=0.35)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.02)
    _add_legends(figure, curves, title)
    return figure


def comparison_figure(
    comparison: Comparison,
    labels: tuple[str, str],
    *,
    tolerance: float | None = None,
    width: float = 11.0,
) -> Figure:
    """Draw a comparison, one row of three panels for each state.

    A panel that no state has anything for is left out, and each has a legend of its own. Left: σ₁
    of both as `memory_figure` draws it. Middle, on a logarithmic axis: the relative
    difference of the mean gradients with a band of one standard error (what noise alone would
    make it as a thin dotted line) and the size of that of σ₁; delays at which the two differ
    beyond noise are shaded. Right: the angle between the best remembered directions and the
    largest between the subspaces of the best five, with what the two halves of one corpus show
    dotted.

    Args:
        comparison: What to draw.
        labels: Names of A and B for the legend.
        tolerance: Drawn as a line across the middle panel; None for none.
        width: Of the figure, in inches.
    """
    states = comparison.states
    angles = not all(s.no_angles for s in states)
    figure = Figure(figsize=(width, 0.9 + 3.3 * len(states)), layout="constrained")
    panels = figure.subplots(len(states), 2 + angles, squeeze=False)
    for (memory, apart, *rest), state in zip(panels, states, strict=True):
        both = [(labels[0], state.curve_a), (labels[1], state.curve_b)]
        for i, (_, curve) in enumerate(both):
            _draw_memory(memory, curve, i, 2)
        _finish(memory, both)
        name = state.a if state.a == state.b else f"{state.a} = {state.b}"
        memory.set_title(_literal(f"{name}: memory"))
        memory.set_ylabel(
            f"largest singular value $\\sigma_1$\n({_UNITS[comparison.normalization]})",
            fontsize="small",
        )
        _draw_differences(apart, state, tolerance)
        for angle in rest:
            _draw_angles(angle, state)
        for axes in (memory, apart, *rest):
            axes.set_xlabel("delay (words)")
            axes.grid(True, which="major", linewidth=0.5, alpha=0.35)
            axes.spines[["top", "right"]].set_visible(False)
            axes.margins(x=0.02)
    _add_comparison_legends(panels, states, labels, tolerance)
    if not angles:
        whys = dict.fromkeys(_literal(str(s.no_angles)) for s in states)
        said = textwrap.fill(f"Directions are not compared: {'; '.join(whys)}.", 110)
        figure.supxlabel(said, fontsize="small", color="0.35")
    return figure


def classes_figure(
    tables: Sequence[tuple[str, ClassTable]], *, title: str | None = None, width: float = 9.0
) -> Figure:
    """Draw how much is remembered of each class of words, as Figure 8a of Verwimp et al. 2020.

    One row of two panels for each state. Left: σ₁ at delay 0, right: Σσ at the largest delay, on a
    logarithmic axis where the values differ by more than a factor of thirty; both with bars of one
    standard error, and a small vertical line where the noise floor is. Points not more than two
    standard errors above their floor are hollow: the class has too few positions.

    The classes of a state stand in the order of its first table, from the top.

    Args:
        tables: Names for the legend, and what to draw; names and states may repeat.
        title: Above the figure; None for none.
        width: Of the figure, in inches.
    """
    states = list(dict.fromkeys((t.state, t.normalization) for _, t in tables))
    names = list(dict.fromkeys(name for name, _ in tables))
    most = len({row.group for _, t in tables for row in t.rows})
    height = 0.9 + len(states) * (0.9 + 0.16 * most * max(len(names), 1.2))
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(len(states), 2, squeeze=False, sharey="row")
    for (left, right), (state, normalization) in zip(panels, states, strict=True):
        here = [(n, t) for n, t in tables if (t.state, t.normalization) == (state, normalization)]
        groups = list(dict.fromkeys(row.group for _, t in here for row in t.rows))
        for axes, measure in ((left, "sigma1"), (right, "sum")):
            for name, table in here:
                _draw_classes(axes, table, measure, names.index(name), len(names), groups)
            _finish_classes(axes, [t for _, t in here], measure)
            axes.grid(True, axis="x", linewidth=0.5, alpha=0.35)
            axes.spines[["top", "right"]].set_visible(False)
        last = " and ".join(dict.fromkeys(str(t.last) for _, t in here))
        left.set_yticks(range(len(groups)), [_literal(g) for g in groups])
        left.set_ylim(len(groups) - 0.5, -0.5)
        left.set_title(_literal(f"{state}: ") + f"$\\sigma_1$ at delay {here[0][1].first}")
        right.set_title(_literal(f"{state}: ") + f"$\\Sigma\\sigma$ at delay {last}")
        for axes in (left, right):
            axes.set_xlabel(_UNITS[normalization], fontsize="small")
    _add_class_legends(figure, tables, names, title)
    return figure


def _draw_classes(
    axes: Axes, table: ClassTable, measure: str, i: int, series: int, groups: list[str]
) -> None:
    style = _style(i)
    color, marker = style["color"], style["marker"]
    shift = 0.0 if series == 1 else 0.5 * (i / (series - 1) - 0.5)
    for row in table.rows:
        y = groups.index(row.group) + shift
        value, error, floor = (getattr(row, measure + end) for end in ("", "_stderr", "_floor"))
        clear = getattr(row, f"{measure}_clear")
        if math.isfinite(value):
            axes.errorbar(
                value,
                y,
                # Never down to 0, which a logarithmic axis does not have.
                xerr=[[min(error, 0.8 * value)], [error]] if math.isfinite(error) else None,
                color=color,
                marker=marker,
                markersize=4.5,
                markerfacecolor=color if clear else "none",
                alpha=1.0 if clear else 0.5,
                linewidth=1.2,
                capsize=1.5,
                zorder=3,
            )
        if math.isfinite(floor):
            axes.plot(
                [floor] * 2,
                [y - 0.2 / series, y + 0.2 / series],
                color=color,
                linewidth=1.1,
                zorder=2,
            )


def _finish_classes(axes: Axes, tables: Sequence[ClassTable], measure: str) -> None:
    ends = ("", "_floor")
    found = np.array([getattr(r, measure + end) for t in tables for r in t.rows for end in ends])
    found = found[np.isfinite(found) & (found > 0)]
    values = np.array([getattr(r, measure) for t in tables for r in t.rows])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        axes.text(0.5, 0.5, "nothing to show", **_CENTRE, transform=axes.transAxes)
        return
    if values.max() > 30 * values.min():
        axes.set_xlim(found.min() / 2, found.max() * 2)
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)


def _add_class_legends(
    figure: Figure, tables: Sequence[tuple[str, ClassTable]], names: list[str], title: str | None
) -> None:
    grey: dict[str, Any] = {"color": "0.35"}
    handles: list[Any] = [
        Line2D([], [], **{**_style(i), "linestyle": "none"}, markersize=4.5)
        for i in range(len(names))
    ]
    shown = [_literal(name) for name in names]
    if len(names) > 1 or title:
        figure.legend(
            handles if len(names) > 1 else [],
            shown if len(names) > 1 else [],
            loc="outside upper center",
            ncols=min(len(names), 4),
            frameon=False,
            title=_literal(title) if title else None,
            title_fontsize="large",
        )
    keys = [
        (Line2D([], [], **grey, marker="o", markersize=4.5, linewidth=1.2), "± standard error"),
        (
            Line2D([], [], **grey, linestyle="none", marker="|", markersize=8, markeredgewidth=1.1),
            "noise floor",
        ),
    ]
    if not all(r.sigma1_clear and r.sum_clear for _, t in tables for r in t.rows):
        keys.append((_hollow(4.5), "too few positions: within 2 standard errors of it, or below"))
    figure.legend(
        *zip(*keys, strict=True),
        loc="outside lower center",
        ncols=len(keys),
        frameon=False,
        fontsize="small",
    )


def _add_comparison_legends(
    panels: np.ndarray,
    states: Sequence[StateComparison],
    labels: tuple[str, str],
    tolerance: float | None,
) -> None:
    """Below each column of panels, what its lines mean."""
    noise: dict[str, Any] = {"linestyle": _DOTTED, "linewidth": 1.1}
    memory: list[tuple[Any, str]] = [
        (Line2D([], [], **_style(i), markersize=4.5), f"{which}: {_short(label)}")
        for i, (which, label) in enumerate(zip("AB", labels, strict=True))
    ]
    memory.append((Line2D([], [], color="0.35", **noise), "their noise floors"))
    if not all(c.clear.all() for s in states for c in (s.curve_a, s.curve_b)):
        memory.append((_hollow(), "not clear of the floor"))
    apart: list[tuple[Any, str]] = []
    if any(s.measure == "gradient" for s in states):
        apart.append((Line2D([], [], **_DIFFERENCE), "mean gradients"))
        dotted = Line2D([], [], color=_DIFFERENCE["color"], **noise)
        apart.append((dotted, "the same by noise alone"))
    apart.append((Line2D([], [], **_SECOND), "$\\sigma_1$"))
    if any(s.differs.any() for s in states):
        apart.append((Patch(facecolor=_SHADE, linewidth=0), "differ beyond noise"))
    if tolerance is not None:
        apart.append((Line2D([], [], color="0.2", linewidth=1.0), f"tolerance {tolerance:g}"))
    angle = [
        (Line2D([], [], **_DIFFERENCE), "best direction"),
        (Line2D([], [], **_SECOND), "best five directions"),
        (Line2D([], [], color="0.35", **noise), "the same of two halves of one corpus"),
    ]
    columns = (memory, apart, angle)
    for axes, keys in zip(panels[-1], columns[: panels.shape[1]], strict=True):
        axes.legend(
            *zip(*keys, strict=True),
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            ncols=2 if len(keys) > 3 else 1,
            frameon=False,
            fontsize="small",
        )


def _short(label: str) -> str:
    return _literal(label if len(label) <= 30 else f"…{label[-29:]}")


def _hollow(size: float = 3.6) -> Line2D:
    return Line2D(
        [],
        [],
        linestyle="none",
        marker="o",
        markersize=size,
        markerfacecolor="none",
        markeredgecolor="0.35",
        alpha=0.6,
    )


def _draw_differences(axes: Axes, state: StateComparison, tolerance: float | None) -> None:
    delay = state.delay
    axes.set(title="Difference", ylabel="relative difference, |A − B| / B")
    shown = []
    for name, style in (("gradient", _DIFFERENCE), ("sigma1", _SECOND)):
        values = np.abs(getattr(state, name))
        if not np.isfinite(values).any():
            continue
        values = np.where(np.isfinite(values), values, np.nan)
        axes.plot(delay, values, **style, markevery=_every(state.curve_a))
        shown.append(values[values > 0])
        error = getattr(state, f"{name}_stderr")
        axes.fill_between(
            delay,
            np.fmax(values - error, 0.2 * values),  # never at 0 on a logarithmic axis
            values + error,
            color=style["color"],
            alpha=0.2,
            linewidth=0,
        )
    noise = np.where(np.isfinite(state.gradient_noise), state.gradient_noise, np.nan)
    if state.measure == "gradient" and (noise > 0).any():
        axes.plot(delay, np.where(noise > 0, noise, np.nan), color=_DIFFERENCE["color"],
                  linestyle=_DOTTED, linewidth=1.1)  # fmt: skip
        shown.append(noise[noise > 0])
    if tolerance is not None:
        axes.axhline(tolerance, color="0.2", linewidth=1.0)
        shown.append(np.array([tolerance] if tolerance > 0 else []))
    for t in delay[state.differs]:
        axes.axvspan(t - 0.5, t + 0.5, color=_SHADE, linewidth=0, zorder=0)
    values = np.concatenate(shown) if shown else np.array([])
    if values.size:
        # Limits first: a logarithmic axis cannot scale itself to a single value.
        axes.set_ylim(values.min() / 2, values.max() * 3)
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1)
        axes.text(0.5, 0.5, "no difference at any delay", **_CENTRE, transform=axes.transAxes)


def _draw_angles(axes: Axes, state: StateComparison) -> None:
    axes.set(title="Directions", ylabel="largest principal angle (degrees)", ylim=(-2, 92))
    axes.set_yticks([0, 15, 30, 45, 60, 75, 90])
    if state.no_angles:
        said = textwrap.fill(f"not compared: {_literal(state.no_angles)}", 34)
        axes.text(0.5, 0.5, said, **_CENTRE, transform=axes.transAxes)
        axes.set_xlim(float(state.delay[0]), max(1.0, float(state.delay[-1])))
        return
    for angles, halves, style in (
        (state.angles1, state.halves1, _DIFFERENCE),
        (state.angles5, state.halves5, _SECOND),
    ):
        axes.plot(state.delay, angles[:, 0], **style, markevery=_every(state.curve_a))
        axes.plot(state.delay, halves, color=style["color"], linestyle=_DOTTED, linewidth=1.1)


def _style(i: int) -> dict[str, Any]:
    turn, i = divmod(i, len(_STYLES))
    color, _, line = _STYLES[i]
    # The next turn of colours has other markers.
    return {"color": color, "marker": _STYLES[(i + turn) % len(_STYLES)][1], "linestyle": line}


def _every(curve: Curve) -> int:
    """Give the distance between markers: about 17 along a curve, more would touch."""
    return max(1, len(curve.delay) // 17)


def _marked(curve: Curve, i: int, curves: int) -> list[int]:
    """Where curve i of so many has markers: between those of the others, which may coincide."""
    n = len(curve.delay)
    every = max(_every(curve), min(curves, n))
    clear = np.concatenate([[False], curve.clear, [False]])
    alone = clear[1:-1] & ~clear[:-2] & ~clear[2:]  # no line leads there
    return [t for t in range(n) if t % every == i % every or alone[t]]


def _draw_memory(axes: Axes, curve: Curve, i: int, curves: int) -> None:
    style = _style(i)
    color = style["color"]
    below = ~curve.clear
    shown = np.where(curve.sigma1 > 0, curve.sigma1, np.nan)
    # A line through a point of noise would claim what the point does not.
    axes.plot(
        curve.delay,
        np.where(below, np.nan, shown),
        **style,
        markersize=4.5,
        markevery=_marked(curve, i, curves),
        linewidth=1.6,
        zorder=3,
    )
    # The band ends where the curve no longer means anything, and never at 0 on a log axis.
    floor = np.where(curve.noise_floor > 0, curve.noise_floor, np.nan)
    low = np.fmax(shown - curve.sigma1_stderr, 0.2 * np.fmin(shown, floor))
    axes.fill_between(
        curve.delay,
        low,
        shown + curve.sigma1_stderr,
        where=~below,
        color=color,
        alpha=0.22,
        linewidth=0,
        zorder=2,
    )
    axes.plot(curve.delay, floor, color=color, linestyle=_DOTTED, linewidth=1.1, zorder=1)
    _draw_noise(axes, curve.delay[below], shown[below], style)


def _draw_noise(axes: Axes, x: np.ndarray, y: np.ndarray, style: dict[str, Any]) -> None:
    """Draw what is not clear of noise: hollow, faded points without a line."""
    axes.plot(
        x,
        y,
        linestyle="none",
        marker=style["marker"],
        markersize=3.6,
        markerfacecolor="none",
        markeredgecolor=style["color"],
        alpha=0.45,
        zorder=2,
    )


def _draw_selectivity(axes: Axes, curve: Curve, i: int, curves: int) -> None:
    style = _style(i)
    solid = curve.clear
    for values, stderr, strong in (
        (curve.share1, curve.share1_stderr, True),
        (curve.share5, curve.share5_stderr, False),
    ):
        width, alpha = (1.6, 1.0) if strong else (0.9, 0.85)
        look = style if strong else {**style, "marker": None}
        axes.plot(
            curve.delay,
            np.where(solid, values, np.nan),
            **look,
            markersize=4.5,
            markevery=_marked(curve, i, curves),
            linewidth=width,
            alpha=alpha,
            zorder=3,
        )
        axes.plot(curve.delay, values, color=style["color"], linewidth=0.7, alpha=0.25, zorder=1)
        axes.fill_between(
            curve.delay,
            values - stderr,
            values + stderr,
            where=solid,
            color=style["color"],
            alpha=0.18,
            linewidth=0,
            zorder=2,
        )


def _finish(axes: Axes, curves: Sequence[tuple[str, Curve]]) -> None:
    """Scale the axis, and end it below the smallest floor: what lies deeper is noise of noise."""
    values = np.concatenate([np.fmin(c.noise_floor, c.sigma1) for _, c in curves])
    values = values[np.isfinite(values) & (values > 0)]
    tops = np.concatenate([c.sigma1 for _, c in curves])
    tops = tops[np.isfinite(tops) & (tops > 0)]
    if values.size and tops.size:  # a logarithmic axis needs something to show
        axes.set_yscale("log")
        axes.set_ylim(values.min() / 2, tops.max() * 2)


def _add_legends(figure: Figure, curves: Sequence[tuple[str, Curve]], title: str | None) -> None:
    handles = [Line2D([], [], **_style(i), markersize=4.5) for i in range(len(curves))]
    names = [_literal(name) for name, _ in curves]
    # The title is the legend's: layout would put a title of the figure on top of the legend.
    figure.legend(
        handles,
        names,
        loc="outside upper center",
        ncols=min(len(names), 4),
        frameon=False,
        title=_literal(title) if title else None,
        title_fontsize="large",
    )
    grey: dict[str, Any] = {"color": "0.35"}
    keys = [
        (Line2D([], [], **grey, linestyle=_DOTTED, linewidth=1.1), "noise floor"),
    ]
    if not all(c.clear.all() for _, c in curves):
        keys.append((_hollow(), "within 2 standard errors of it, or below"))
    keys += [
        (Line2D([], [], **grey, linewidth=1.6), "$\\sigma_1/\\Sigma\\sigma$"),
        (
            Line2D([], [], **grey, linewidth=0.9),
            "$(\\sigma_1+\\cdots+\\sigma_5)/\\Sigma\\sigma$",
        ),
    ]
    figure.legend(
        *zip(*keys, strict=True),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize="small",
    )


def _literal(text: str) -> str:
    """Keep the dollars of a user's text from starting a formula."""
    return text.replace("$", r"\$")
