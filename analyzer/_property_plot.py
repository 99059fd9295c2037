"""Figures of properties: relative memory and cosines against the delay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .plots import _DOTTED, _draw_noise, _hollow, _literal, _style
from .properties import PropertyCurve

_GREY: dict[str, Any] = {"color": "0.35"}
_BANDS = ("0.80", "0.90")  # of the first subspace, and of the others


def property_figure(curves: Sequence[PropertyCurve], *, width: float = 10.0) -> Figure:
    """Draw how well properties are remembered, one row of panels for each state.

    Figures 10 and 11 of Verwimp et al. 2020, with error bars and what chance gives. Left: the
    relative memory m. Then one panel for each H_n: the cosine, and the share of these directions
    in the sum of all singular values as a dotted line. Grey: 95 % of random directions, where all
    properties share one gradient. A thin dashed line of a property's colour: the upper end of the
    95 % of its types dealt out at random. Points at which σ₁ is not clear of its noise floor are
    hollow.

    Args:
        curves: Of one or more properties and states, all with the same subspaces.
        width: Of the figure, in inches.
    """
    states = list(dict.fromkeys(c.state for c in curves))
    names = list(dict.fromkeys(c.direction.name for c in curves))
    leading = curves[0].leading
    columns = 1 + len(leading)
    figure = Figure(figsize=(max(width, 3.4 * columns), 0.9 + 3.3 * len(states)),
                    layout="constrained")  # fmt: skip
    panels = figure.subplots(len(states), columns, squeeze=False, sharey=True)
    for row, state in zip(panels, states, strict=True):
        some = [c for c in curves if c.state == state]
        common = len({c.inputs for c in some}) == 1
        for column, axes in enumerate(row):
            for c in some:
                i = names.index(c.direction.name)
                _draw(axes, c, i, column, common=common)
            n = None if column == 0 else leading[column - 1]
            axes.set_title(
                _literal(state) + (": relative memory" if n is None else f": $H_{{{n}}}$")
            )
            axes.set_xlabel("delay (words)")
            axes.set_ylabel("relative memory $m$" if n is None else f"cosine with $H_{{{n}}}$")
            axes.tick_params(labelleft=True)
            axes.set_ylim(-0.02, 1.04)
            axes.grid(True, which="major", linewidth=0.5, alpha=0.35)
            axes.spines[["top", "right"]].set_visible(False)
            axes.margins(x=0.02)
    _add_legends(figure, curves, names)
    return figure


def _draw(axes: Axes, curve: PropertyCurve, i: int, column: int, *, common: bool) -> None:
    style = _style(i)
    color = style["color"]
    if column == 0:
        values, errors = curve.memory, curve.memory_stderr
        random, shuffled = curve.memory_random, curve.memory_shuffled
    else:
        at = column - 1
        values, errors = curve.cosine[:, at], curve.cosine_stderr[:, at]
        random, shuffled = curve.cosine_random[:, at], curve.cosine_shuffled[:, at]
        # Of several gradients each has its own share.
        axes.plot(
            curve.delay,
            curve.share[:, at],
            color="black" if common else color,
            linestyle=_DOTTED,
            linewidth=1.2,
        )
    if common:
        axes.fill_between(curve.delay, random[:, 0], random[:, 2], color="0.86", linewidth=0,
                          zorder=0)  # fmt: skip
    axes.plot(curve.delay, shuffled[:, 2], color=color, linestyle=(0, (3, 2)), linewidth=0.8,
              alpha=0.8, zorder=2)  # fmt: skip
    clear = curve.clear
    axes.errorbar(
        curve.delay,
        np.where(clear, values, np.nan),
        yerr=np.where(np.isfinite(errors), errors, 0.0),
        **style,
        markersize=4.0,
        markevery=max(1, len(values) // 17),
        errorevery=max(1, len(values) // 17),
        linewidth=1.5,
        elinewidth=1.0,
        capsize=2.0,
        zorder=3,
    )
    _draw_noise(axes, curve.delay[~clear], values[~clear], style)


def _add_legends(figure: Figure, curves: Sequence[PropertyCurve], names: Sequence[str]) -> None:
    labels = []
    for name in names:
        inputs = list(dict.fromkeys("+".join(c.inputs) for c in curves if c.direction.name == name))
        labels.append(_literal(f"{name}, inputs: {', '.join(inputs)}"))
    if len({label.rsplit(", inputs: ", 1)[1] for label in labels}) == 1:
        title = labels[0].rsplit(", inputs: ", 1)[1]
        labels, title = [label.rsplit(", inputs: ", 1)[0] for label in labels], f"inputs: {title}"
    else:
        title = ""
    handles = [Line2D([], [], **_style(i), markersize=4.5) for i in range(len(names))]
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(names), 3),
                  frameon=False, title=title or None)  # fmt: skip
    keys: list[tuple[Any, str]] = []
    if len({c.inputs for c in curves}) == 1:
        keys.append((Patch(facecolor="0.86", linewidth=0), "95 % of random directions"))
    keys += [
        (Line2D([], [], **_GREY, linestyle=(0, (3, 2)), linewidth=0.8),
         "97.5 % of shuffled types lie below"),
        (Line2D([], [], **_GREY, linestyle=_DOTTED, linewidth=1.2),
         "$(\\sigma_1+\\cdots+\\sigma_n)/\\Sigma\\sigma$"),
    ]  # fmt: skip
    if not all(c.clear.all() for c in curves):
        keys.append((_hollow(), "$\\sigma_1$ not clear of noise"))
    figure.legend(*zip(*keys, strict=True), loc="outside lower center", ncols=4, frameon=False,
                  fontsize="small")  # fmt: skip
