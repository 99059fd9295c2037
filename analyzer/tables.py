"""The memory curve of a result as plain columns, for tables, figures and other programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from .errors import ResultError
from .result import LEADING, NORMALIZATIONS

_COLUMNS = (
    "delay",
    "sigma1",
    "sigma1_stderr",
    "noise_floor",
    "share1",
    "share1_stderr",
    "share5",
    "share5_stderr",
    "count",
)


@dataclass(frozen=True)
class Curve:
    """What one state component remembers, against the delay.

    Attributes:
        state: Its name.
        group: Class of input words.
        normalization: ``whitened`` or ``none``.
        delay: ``[delay]``, words read since.
        sigma1: ``[delay]``, largest singular value of the mean gradient.
        sigma1_stderr: ``[delay]``, its jackknife standard error; NaN where there is none.
        noise_floor: ``[delay]``, what it would be with no consistent direction.
        share1: ``[delay]``, σ₁/Σσ.
        share1_stderr: ``[delay]``.
        share5: ``[delay]``, (σ₁+…+σ₅)/Σσ.
        share5_stderr: ``[delay]``.
        count: ``[delay]``, derivatives averaged.
    """

    state: str
    group: str
    normalization: str
    delay: np.ndarray
    sigma1: np.ndarray
    sigma1_stderr: np.ndarray
    noise_floor: np.ndarray
    share1: np.ndarray
    share1_stderr: np.ndarray
    share5: np.ndarray
    share5_stderr: np.ndarray
    count: np.ndarray

    @property
    def below(self) -> np.ndarray:
        """``[delay]``, True where σ₁ does not exceed its noise floor and means nothing.

        Also where there are too few positions for a floor: what cannot be told apart from noise
        is not told apart.
        """
        return ~(self.sigma1 > self.noise_floor)

    @property
    def clear(self) -> np.ndarray:
        """``[delay]``, True where σ₁ lies more than two standard errors above its noise floor.

        Of a curve that is nothing but noise, about half of the points exceed the floor, which is
        as random as they are; few exceed it by this much.
        """
        return self.sigma1 > self.noise_floor + 2.0 * self.sigma1_stderr

    @property
    def first_below(self) -> int | None:
        """The first delay at which σ₁ does not exceed its noise floor; None if there is none."""
        return int(self.delay[self.below][0]) if self.below.any() else None

    @property
    def first_unclear(self) -> int | None:
        """The first delay at which σ₁ is not `clear` of noise; None if there is none."""
        return None if self.clear.all() else int(self.delay[~self.clear][0])

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per delay, with `below_noise` and `clear_of_noise` beside the columns."""
        columns = {name: getattr(self, name).tolist() for name in _COLUMNS}
        columns["below_noise"] = self.below.tolist()
        columns["clear_of_noise"] = self.clear.tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def curves(
    tree: xr.DataTree,
    *,
    states: Iterable[str] | None = None,
    normalization: str | None = None,
    group: str | None = None,
) -> list[Curve]:
    """Pick curves from a result.

    Args:
        tree: As `open_result` gives it.
        states: Names of state components; None (or none) means all.
        normalization: ``whitened`` (None means that) or ``none``.
        group: A class of input words; None means the first.

    Raises:
        ResultError: The result does not have what was asked for.
    """
    normalization = normalization or "whitened"
    groups = [str(g) for g in tree.coords["group"].values]
    names = list(states or ()) or list(tree.children)
    for name in names:
        _require("state", name, list(tree.children))
    _require("normalization", normalization, list(NORMALIZATIONS))
    if group is not None:
        _require("group", group, groups)
    i, g = NORMALIZATIONS.index(normalization), groups.index(group) if group else 0
    return [_curve(tree, name, i, g, groups[g]) for name in names]


def _require(what: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise ResultError(f"The result has no {what} {name!r}; it has {', '.join(known)}.")


def _curve(tree: xr.DataTree, state: str, i: int, g: int, group: str) -> Curve:
    data = {n: v.values for n, v in tree[state].data_vars.items()}
    first, fifth = LEADING.index(1), LEADING.index(5)
    return Curve(
        state=state,
        group=group,
        normalization=NORMALIZATIONS[i],
        delay=tree.coords["delay"].values,
        sigma1=data["singular_values"][i, g, :, 0],
        sigma1_stderr=data["singular_values_stderr"][i, g, :, 0],
        noise_floor=data["noise_floor"][i, g],
        share1=data["selectivity"][i, g, :, first],
        share1_stderr=data["selectivity_stderr"][i, g, :, first],
        share5=data["selectivity"][i, g, :, fifth],
        share5_stderr=data["selectivity_stderr"][i, g, :, fifth],
        count=data["count"][g],
    )
