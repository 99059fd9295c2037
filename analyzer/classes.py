"""What is remembered of each class of input words, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from .errors import ResultError
from .result import NORMALIZATIONS
from .tables import curves

Order = Literal["sigma1", "sum", "count", "name", "result"]


@dataclass(frozen=True)
class ClassMemory:
    """The memory of one class of input words at the smallest and the largest delay.

    What Figure 8a of Verwimp et al. 2020 shows, with its errors.

    Attributes:
        group: Name of the class.
        count: Derivatives averaged at delay 0: the class's input positions.
        sigma1: Largest singular value of the mean gradient at delay 0.
        sigma1_stderr: Its jackknife standard error; NaN where there is none.
        sigma1_floor: What σ₁ would be with no consistent direction.
        last_count: Derivatives averaged at the largest delay.
        sum: Sum of all singular values at the largest delay.
        sum_stderr: Its jackknife standard error; NaN in files of earlier versions.
        sum_floor: What the sum would be with no consistent direction; NaN in such files.
    """

    group: str
    count: int
    sigma1: float
    sigma1_stderr: float
    sigma1_floor: float
    last_count: int
    sum: float
    sum_stderr: float
    sum_floor: float

    @property
    def sigma1_clear(self) -> bool:
        """Whether σ₁ lies more than two standard errors above its floor, as `Curve.clear` says."""
        return self.sigma1 > self.sigma1_floor + 2.0 * self.sigma1_stderr

    @property
    def sum_clear(self) -> bool:
        """The same of the sum."""
        return self.sum > self.sum_floor + 2.0 * self.sum_stderr

    def row(self) -> dict[str, Any]:
        """As a dictionary, with `sigma1_clear` and `sum_clear` beside the attributes."""
        return {**asdict(self), "sigma1_clear": self.sigma1_clear, "sum_clear": self.sum_clear}


@dataclass(frozen=True)
class ClassTable:
    """The classes of one state component.

    Attributes:
        state: Its name.
        normalization: ``whitened`` or ``none``.
        first: The smallest delay, 0.
        last: The largest delay.
        rows: One for each class.
    """

    state: str
    normalization: str
    first: int
    last: int
    rows: tuple[ClassMemory, ...]


def class_tables(
    tree: xr.DataTree,
    *,
    states: Iterable[str] | None = None,
    normalization: str | None = None,
    groups: Iterable[str] | None = None,
    order: Order | None = None,
) -> list[ClassTable]:
    """Put the classes of a result side by side, one table for each state component.

    Args:
        tree: As `open_result` gives it.
        states: Names of state components; None (or none) means all.
        normalization: ``whitened`` (None means that) or ``none``.
        groups: Names of classes; None (or none) means all.
        order: ``sigma1`` at delay 0, ``sum`` at the largest delay or ``count``, the largest first;
            ``name``; or ``result``, as the result has them. None means ``sigma1``.

    Raises:
        ResultError: The result does not have what was asked for.
    """
    order = order or "sigma1"
    if order not in get_args(Order):
        raise ResultError(
            f"Classes are sorted by {', '.join(get_args(Order))}, not by {order!r:.40}."
        )
    names = list(groups or ()) or [str(g) for g in tree.coords["group"].values]
    by_group = [
        curves(tree, states=states, normalization=normalization, group=name) for name in names
    ]
    delay = tree.coords["delay"].values
    tables = []
    for found in zip(*by_group, strict=True):
        rows = []
        for curve in found:
            g = [str(n) for n in tree.coords["group"].values].index(curve.group)
            i = NORMALIZATIONS.index(curve.normalization)
            whole, error, floor = _sums(tree, curve.state, i, g)
            rows.append(
                ClassMemory(
                    group=curve.group,
                    count=int(curve.count[0]),
                    sigma1=float(curve.sigma1[0]),
                    sigma1_stderr=float(curve.sigma1_stderr[0]),
                    sigma1_floor=float(curve.noise_floor[0]),
                    last_count=int(curve.count[-1]),
                    sum=whole,
                    sum_stderr=error,
                    sum_floor=floor,
                )
            )
        tables.append(
            ClassTable(
                found[0].state,
                found[0].normalization,
                int(delay[0]),
                int(delay[-1]),
                tuple(_sorted(rows, order)),
            )
        )
    return tables


def _sums(tree: xr.DataTree, state: str, i: int, g: int) -> tuple[float, float, float]:
    """Σσ at the largest delay, its error and its floor."""
    data = tree[state].data_vars
    if "singular_value_sum" not in data:
        return float(data["singular_values"][i, g, -1].sum()), float("nan"), float("nan")
    names = (f"singular_value_sum{end}" for end in ("", "_stderr", "_floor"))
    whole, error, floor = (float(data[name][i, g, -1]) for name in names)
    return whole, error, floor


def _sorted(rows: list[ClassMemory], order: Order) -> list[ClassMemory]:
    if order == "result":
        return rows
    if order == "name":
        return sorted(rows, key=lambda row: row.group)
    # What is not a number comes last.
    return sorted(rows, key=lambda row: -np.nan_to_num(getattr(row, order), nan=-np.inf))
