"""Judging a result by a budget: one judge per kind of bound.

The statistics are in ``_verdicts.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _verdicts
from ._budget import Budget, Rule, brief, place, require_delays, require_states
from ._verdicts import Horizon, Judgement, Status
from .errors import BudgetError
from .metrics import jackknife

if TYPE_CHECKING:
    import xarray as xr

    from .tables import Curve


@dataclass(frozen=True)
class Verdict:
    """What one bound comes to, for one state.

    Attributes:
        rule: The bound.
        state: The state component.
        what: What was asked, in words, such as ``σ₁ at delay 5 ≥ 0.1``.
        status: ``passed``, ``failed`` or ``undecided``.
        measured: The measure; NaN where there is none. A horizon is a delay, a loss a ratio to
            the baseline, parity a relative difference.
        stderr: Its standard error; NaN for a horizon.
        found: What was found, in words.
        positions: If undecided: positions that should decide it; None where that cannot be said.
        note: What else a reader should know; may be empty.
    """

    rule: Rule
    state: str
    what: str
    status: Status
    measured: float
    stderr: float
    found: str
    positions: int | None
    note: str

    @property
    def name(self) -> str:
        """State, the rule's own name, if any, and what was asked."""
        own = self.rule.values.get("name")
        return f"{self.state}: {own + ': ' if own else ''}{self.what}"

    @property
    def message(self) -> str:
        """One sentence for a log."""
        return f"{self.status}: {self.found}" + (f"; {self.note}" if self.note else "")


def check(
    result: xr.DataTree,
    budget: Budget,
    *,
    baseline: xr.DataTree | None = None,
    reference: xr.DataTree | None = None,
    load: Callable[[str], xr.DataTree] | None = None,
) -> list[Verdict]:
    """Judge a result by a budget.

    Args:
        result: As `analyze` or `open_result` gives it.
        budget: As `read_budget` gives it.
        baseline: What ``[[baseline]]`` compares with, in place of the files that it names.
        reference: The same for ``[[parity]]``.
        load: Gives the result for a file that a bound names, by its path; default `open_result`.

    Raises:
        BudgetError: A bound asks for a state, a group or a delay that the result does not have,
            or names no file where one is needed.
        ResultError: A file that a bound names cannot be read.
    """
    from .result import open_result

    for rule in budget.rules:
        _check_fits(budget, rule, result, "the result")
    others: dict[str, xr.DataTree] = {}

    def other(rule: Rule) -> xr.DataTree:
        given = baseline if rule.kind == "baseline" else reference
        if given is None:
            path = budget.beside(_file(budget, rule))
            if path not in others:
                others[path] = (load or open_result)(path)
            given = others[path]
        _check_fits(budget, rule, given, f"the {_ROLE[rule.kind]}", result)
        return given

    verdicts: list[Verdict] = []
    for rule in budget.rules:
        against = other(rule) if rule.kind in _ROLE else None
        for state in rule.values.get("state", result.children):
            verdicts += _JUDGES[rule.kind](Subject(result, budget, rule, state, against))
    return verdicts


_ROLE = {"baseline": "baseline", "parity": "reference"}


def _file(budget: Budget, rule: Rule) -> str:
    file = rule.values.get("file")
    if file is None:
        raise BudgetError(
            f"{place(budget, rule)} names no file to compare with. Add "
            f'file = "r0.nc" to it, or give --{_ROLE[rule.kind]}.'
        )
    return str(file)


def _check_fits(
    budget: Budget,
    rule: Rule,
    tree: xr.DataTree,
    which: str,
    result: xr.DataTree | None = None,
) -> None:
    """Refuse a bound that asks for what a result does not have."""
    names = rule.values.get("state") or (list(result.children) if result is not None else ())
    require_states(budget, rule, names, list(tree.children), which)
    groups = [str(g) for g in tree.coords["group"].values]
    group = rule.values.get("group", budget.group)
    if group is not None and group not in groups:
        raise BudgetError(
            f"{place(budget, rule)}: group: {which} has no group {brief(group)}; it has "
            f"{', '.join(groups)}."
        )
    require_delays(budget, rule, int(tree.sizes["delay"]) - 1, which)


class Subject:
    """One bound and one state: what a judge needs."""

    def __init__(
        self,
        result: xr.DataTree,
        budget: Budget,
        rule: Rule,
        state: str,
        other: xr.DataTree | None,
    ) -> None:
        self.result, self.budget, self.rule, self.state = result, budget, rule, state
        self._other = other
        self.values = rule.values
        self.group = rule.values.get("group", budget.group)

    @property
    def other(self) -> xr.DataTree:
        """The baseline or the reference."""
        assert self._other is not None
        return self._other

    def curve(self, tree: xr.DataTree) -> Curve:
        from .tables import curves

        normalization = self.values.get("normalization", self.budget.normalization)
        (found,) = curves(tree, states=[self.state], normalization=normalization, group=self.group)
        return found

    def spectrum(self, delay: int) -> np.ndarray:
        """``[order]`` singular values."""
        normalization = self.values.get("normalization", self.budget.normalization)
        group = self.group or str(self.result.coords["group"].values[0])
        values = self.result[self.state]["singular_values"]
        return np.asarray(
            values.sel(normalization=normalization, group=group).isel(delay=delay).values
        )

    def errors(self, delay: int, *trees: xr.DataTree, tests: int = 1) -> float:
        """Standard errors that count at a delay, by the fewest blocks of the results."""
        fewest = min(self._blocks(t, delay) for t in trees or (self.result,))
        return _verdicts.critical(self.budget.sigma, max(fewest, 2), tests)

    def all_errors(self, tree: xr.DataTree, delays: int) -> np.ndarray:
        """``[delay]``."""
        return np.array([self.errors(d, tree) for d in range(delays)])

    def _blocks(self, tree: xr.DataTree, delay: int) -> int:
        counts = tree[self.state].variables.get("block_count")
        if counts is None:
            stated = tree.attrs.get("blocks", 10)
            return int(stated) if isinstance(stated, int | np.integer) else 10
        groups = [str(g) for g in tree.coords["group"].values]
        group = groups.index(self.group) if self.group else 0
        return int((counts.values[:, group, delay] > 0).sum())

    def verdict(
        self,
        what: str,
        judgement: Judgement,
        found: str,
        measured: float,
        stderr: float = math.nan,
        note: str = "",
    ) -> Verdict:
        """Put a judgement in words."""
        positions = None
        if judgement.status == "undecided":
            counts = self.curve(self.result).count
            positions = _verdicts.positions_needed(judgement, int(counts[0]))
            note = "; ".join(filter(None, [note, self._advice(judgement, positions)]))
        return Verdict(
            self.rule, self.state, what, judgement.status, measured, stderr, found, positions, note
        )

    def _advice(self, judgement: Judgement, positions: int | None) -> str:
        if math.isnan(judgement.factor):
            return "how many positions would decide it cannot be told from so few"
        if positions is None:
            return (
                f"it lies so near the bound that not even {_verdicts.MOST_FACTOR:,.0f} times as "
                "many positions would decide it: move the bound"
            )
        there = self.result.attrs.get("corpus_positions")
        more = ""
        if isinstance(there, int | np.integer) and positions > int(there):
            more = f" (the corpus has {int(there):,})"
        return f"about {positions:,} positions should decide it{more}"


def _sigma1(s: Subject) -> Iterator[Verdict]:
    curve = s.curve(s.result)
    for delay in s.values["delay"]:
        estimate = _verdicts.sigma1_estimate(
            curve.sigma1[delay], curve.sigma1_stderr[delay], curve.noise_floor[delay]
        )
        yield from _bounds(s, f"σ₁ at delay {delay}", estimate, s.errors(delay))


def _selectivity(s: Subject) -> Iterator[Verdict]:
    curve, leading = s.curve(s.result), s.values.get("leading", 1)
    name = "σ₁/Σσ" if leading == 1 else "σ₁..₅/Σσ"
    errors = curve.share1_stderr if leading == 1 else curve.share5_stderr
    for delay in s.values["delay"]:
        estimate = _verdicts.selectivity_estimate(
            s.spectrum(delay), errors[delay], curve.noise_floor[delay], leading
        )
        yield from _bounds(s, f"{name} at delay {delay}", estimate, s.errors(delay))


def _bounds(
    s: Subject, what: str, estimate: _verdicts.Estimate, errors: float
) -> Iterator[Verdict]:
    found = f"{estimate.value:.4g} ± {estimate.stderr:.1g}"
    for key, sign, judge in (("at_least", "≥", _verdicts.at_least),
                             ("at_most", "≤", _verdicts.at_most)):  # fmt: skip
        if key in s.values:
            yield s.verdict(
                f"{what} {sign} {s.values[key]:g}",
                judge(estimate, s.values[key], errors),
                found,
                estimate.value,
                estimate.stderr,
            )


def _horizon_of(s: Subject, tree: xr.DataTree, delays: int, scale: np.ndarray | float) -> Horizon:
    """The horizon of a result whose noise is `scale` times as large."""
    c = s.curve(tree)
    sigma1, stderr, floor = (
        x[:delays] for x in (c.sigma1, c.sigma1_stderr * scale, c.noise_floor * scale)
    )
    errors = s.all_errors(tree, delays)
    fraction = s.values.get("fraction")
    if fraction is None:
        return _verdicts.floor_horizon(sigma1, stderr, floor, errors)
    return _verdicts.fraction_horizon(sigma1, stderr, floor, errors, fraction)


def _horizon(s: Subject) -> Iterator[Verdict]:
    delays = s.result.sizes["delay"]
    yield _judge_horizon(s, _horizon_of(s, s.result, delays, 1.0), s.values["at_least"], "", "")


def _judge_horizon(s: Subject, horizon: Horizon, least: int, what: str, note: str) -> Verdict:
    of = f" ({s.values['fraction']:g} of delay 0)" if "fraction" in s.values else ""
    most = s.result.sizes["delay"] - 1
    reach = horizon.measured
    sure = horizon.certain
    if reach is None:
        found = "no delay is within it"
    else:
        found = f"reaches {'at least ' if reach == most else ''}delay {reach}, "
        found += f"certainly {sure}" if sure is not None else "certainly none"
    return s.verdict(
        f"horizon{of} ≥ {least}{what}",
        _verdicts.horizon_at_least(horizon, least),
        found,
        math.nan if reach is None else float(reach),
        note=note,
    )


def _baseline(s: Subject) -> Iterator[Verdict]:
    note = _other_corpus(s)
    now, then = s.curve(s.result), s.curve(s.other)
    if "horizon_loss" in s.values:
        delays = min(len(now.delay), len(then.delay))
        # A horizon above the floor belongs to a number of positions: with fewer than the baseline
        # has, its floor and errors are what so few would show.
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.sqrt(np.maximum(then.count[:delays] / now.count[:delays], 1.0))
        if "fraction" in s.values:
            scale = np.ones(delays)
        certain = _horizon_of(s, s.other, delays, scale).certain
        loss = s.values["horizon_loss"]
        if certain is None:
            yield s.verdict(
                f"horizon at most {loss:g} % shorter than the baseline's",
                _verdicts.UNKNOWN,
                "the baseline's own horizon is certain at no delay",
                math.nan,
                note=note,
            )
        else:
            least = math.ceil(certain * (100 - loss) / 100 - 1e-9)
            horizon = _horizon_of(s, s.result, len(now.delay), 1.0)
            what = f" (baseline {certain}, at most {loss:g} % less)"
            yield _judge_horizon(s, horizon, least, what, note)
    for delay in s.values.get("delay", ()):
        mine, its = (
            _verdicts.sigma1_estimate(c.sigma1[delay], c.sigma1_stderr[delay], c.noise_floor[delay])
            for c in (now, then)
        )
        estimate = _verdicts.ratio(mine, its)
        loss = s.values["sigma1_loss"]
        yield s.verdict(
            f"σ₁ at delay {delay} at most {loss:g} % below the baseline's",
            _verdicts.at_least(estimate, 1 - loss / 100, s.errors(delay, s.result, s.other)),
            f"{100 * (estimate.value - 1):+.2g} ± {100 * estimate.stderr:.1g} % "
            f"({mine.value:.4g}, baseline {its.value:.4g})",
            estimate.value,
            estimate.stderr,
            note,
        )


def _other_corpus(s: Subject) -> str:
    mine, its = (t.attrs.get("corpus_sha256") for t in (s.result, s.other))
    return "" if mine == its else "the baseline was made on another corpus"


def _parity(s: Subject) -> Iterator[Verdict]:
    _check_same_positions(s)
    delays = list(s.values.get("delay") or range(s.result.sizes["delay"]))
    most = s.other.sizes["delay"] - 1
    if delays[-1] > most and "delay" not in s.values:
        delays = delays[: most + 1]
    tolerance = s.values["tolerance"]
    value, low, stderr = _relative_differences(s)
    judged = []
    for delay in delays:
        estimate = _verdicts.Estimate(value[delay], low[delay], value[delay], stderr[delay])
        errors = s.errors(delay, s.result, s.other, tests=len(delays))
        judged.append((_verdicts.at_most(estimate, tolerance, errors), delay))
    for status in ("failed", "undecided", "passed"):
        of_status = [(j, d) for j, d in judged if j.status == status]
        if of_status:
            break
    # The worst of the kind: the largest difference, or what takes the most positions.
    worst, delay = max(of_status, key=lambda p: (np.nan_to_num(p[0].factor, nan=1e99),
                                                 np.nan_to_num(value[p[1]])))  # fmt: skip
    span = f"delay {delays[0]}" if len(delays) == 1 else f"{len(delays)} delays"
    yield s.verdict(
        f"mean gradients within {tolerance:g} of the reference's, {span}",
        worst,
        f"{value[delay]:.2g} ± {stderr[delay]:.1g} at delay {delay}",
        float(value[delay]),
        float(stderr[delay]),
    )


_SAMPLING = ("corpus_sha256", "corpus_positions", "positions", "blocks", "stretches")


def _check_same_positions(s: Subject) -> None:
    where = place(s.budget, s.rule)
    mine, its = s.result.attrs, s.other.attrs
    keys = list(_SAMPLING)
    if mine.get("positions") != mine.get("corpus_positions"):
        keys.append("seed")
        if s.result.sizes["delay"] != s.other.sizes["delay"]:
            raise BudgetError(
                f"{where}: parity needs both analysed at the same positions, which a sample "
                f"chooses by its largest delay too: {s.result.sizes['delay'] - 1} here, "
                f"{s.other.sizes['delay'] - 1} in the reference. Give both the same --delays."
            )
    for key in keys:
        if mine.get(key) != its.get(key):
            raise BudgetError(
                f"{where}: parity needs both analysed at the same positions, and {key} is "
                f"{_brief_attribute(mine.get(key))} here, {_brief_attribute(its.get(key))} in "
                "the reference. Analyse both with the same corpus, --positions, --seed and "
                "--blocks."
            )
    names = ("gradient",)
    for tree, which in ((s.result, "result"), (s.other, "reference")):
        for name in names:
            if name not in tree[s.state].variables:
                raise BudgetError(
                    f"{where}: the {which} does not keep the mean gradients of {s.state}. "
                    "Analyse again."
                )
    shapes = [t[s.state]["gradient"].shape[2:] for t in (s.result, s.other)]
    if shapes[0] != shapes[1]:
        raise BudgetError(
            f"{where}: the mean gradients of {s.state} are {list(shapes[0])} here and "
            f"{list(shapes[1])} in the reference [unit, embedding]: these are different models."
        )


def _brief_attribute(value: Any) -> str:
    text = str(getattr(value, "item", lambda: value)())
    return text if len(text) <= 16 else text[:13] + "..."


def _relative_differences(s: Subject) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``‖G − G'‖ / ‖G'‖`` (Frobenius), its least without noise, its standard error; ``[delay]``."""
    groups = [str(g) for g in s.result.coords["group"].values]
    its_groups = [str(g) for g in s.other.coords["group"].values]
    group = s.group or groups[0]
    g, g_ = groups.index(group), its_groups.index(group) if s.group else 0
    mine, its = (t[s.state].to_dataset() for t in (s.result, s.other))
    delays = min(s.result.sizes["delay"], s.other.sizes["delay"])

    def matrices(name: str) -> tuple[np.ndarray, np.ndarray]:
        return (
            np.asarray(mine[name].values[g, :delays], np.float64),
            np.asarray(its[name].values[g_, :delays], np.float64),
        )

    a, b = matrices("gradient")
    units = a.shape[-2]
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.linalg.norm(b, axis=(-2, -1))
        moved = np.linalg.norm(a - b, axis=(-2, -1))
        value = np.where(moved == 0, 0.0, moved / scale)
        low = value
        if "noise" in mine.variables and "noise" in its.variables:
            p, q = matrices("noise")
            noise = np.linalg.norm(p - q, axis=(-2, -1))
            low = np.sqrt(np.maximum(moved**2 - noise**2, 0.0)) / scale
            low = np.where(moved == 0, 0.0, low)
    if not all("block_gradient" in t.variables for t in (mine, its)):
        return value, low, np.where(moved == 0, 0.0, np.nan)
    counts = mine["block_count"].values[:, g, :delays]
    # Both models at once, so that what they share cancels in each replica too.
    both = np.concatenate(
        [
            np.nan_to_num(np.asarray(t["block_gradient"].values[:, i, :delays], np.float64))
            for t, i in ((mine, g), (its, g_))
        ],
        axis=-2,
    )

    def relative(mean: np.ndarray) -> np.ndarray:
        left, right = mean[..., :units, :], mean[..., units:, :]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.linalg.norm(left - right, axis=(-2, -1)) / np.linalg.norm(
                right, axis=(-2, -1)
            )

    with np.errstate(divide="ignore", invalid="ignore"):
        stderr = jackknife(both * counts[..., None, None], counts, relative)
    return value, low, np.where(moved == 0, 0.0, stderr)


_JUDGES: dict[str, Callable[[Subject], Iterable[Verdict]]] = {
    "horizon": _horizon,
    "sigma1": _sigma1,
    "selectivity": _selectivity,
    "baseline": _baseline,
    "parity": _parity,
}
