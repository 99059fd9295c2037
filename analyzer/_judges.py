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
from ._differences import Side, blocks_of, gradient_difference, held_blocks, plan_difference
from ._verdicts import Horizon, Judgement, Status
from .errors import BudgetError

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
        baseline: What ``[[baseline]]`` compares with, in place of the files that it names. A
            budget without such a table is completed by the default (`Budget.completed`).
        reference: The same for ``[[parity]]``.
        load: Gives the result for a file that a bound names, by its path; default `open_result`.

    Raises:
        BudgetError: A bound asks for a state, a group or a delay that the result does not have,
            or names no file where one is needed.
        ResultError: A file that a bound names cannot be read.
    """
    from .result import open_result

    budget = completed(budget, result, baseline, reference)
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


def completed(
    budget: Budget, result: xr.DataTree, baseline: xr.DataTree | None, reference: xr.DataTree | None
) -> Budget:
    """A budget with the defaults for the results that are given beside the one to check."""
    both = None if baseline is None else min(t.sizes["delay"] for t in (result, baseline)) - 1
    return budget.completed(baseline=both, reference=reference is not None)


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
    group = _group(budget, rule, tree if result is None else result)
    if group not in groups:
        raise BudgetError(
            f"{place(budget, rule)}: group: {which} has no group {brief(group)}; it has "
            f"{', '.join(groups)}. Name one that is there: group = {brief(groups[0])}."
        )
    require_delays(budget, rule, int(tree.sizes["delay"]) - 1, which)


def _group(budget: Budget, rule: Rule, result: xr.DataTree) -> str:
    """The class of input words that a bound is about, in every file: the result's first."""
    return str(rule.values.get("group") or budget.group or result.coords["group"].values[0])


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
        self.group = _group(budget, rule, result)

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
        values = self.result[self.state]["singular_values"]
        return np.asarray(
            values.sel(normalization=normalization, group=self.group).isel(delay=delay).values
        )

    def errors(self, delay: int, *trees: xr.DataTree, tests: int = 1) -> float:
        """Standard errors that count at a delay, by the fewest blocks of the results."""
        held = (held_blocks(t, self.state, self.group)[delay] for t in trees or (self.result,))
        return _verdicts.critical(self.budget.sigma, max(int(min(held)), 2), tests)

    def all_errors(self, tree: xr.DataTree, delays: int) -> np.ndarray:
        """``[delay]``."""
        return np.array([self.errors(d, tree) for d in range(delays)])

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
    sigma1, stderr, floor = (x[:delays] for x in (c.sigma1, c.sigma1_stderr, c.noise_floor))
    stderr, floor = stderr * scale, floor * scale
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
        delays = len(then.delay)
        own = certain = _horizon_of(s, s.other, delays, 1.0).certain
        if "fraction" not in s.values:
            # A horizon above the floor belongs to a number of positions: with fewer than the
            # baseline has, its floor and errors are what so few would show.
            certain = _horizon_of(s, s.other, delays, _fewer(now.count, then.count)).certain
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
            _require_reach(s, least, certain)
            horizon = _horizon_of(s, s.result, len(now.delay), 1.0)
            reached = f"baseline {certain}"
            if certain != own:
                reached += f" on as few positions as here, {own} on its own"
            what = f" ({reached}; at most {loss:g} % less)"
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
            f"{_percent(estimate.value - 1, estimate.stderr)} "
            f"({mine.value:.4g}, baseline {its.value:.4g})",
            estimate.value,
            estimate.stderr,
            note,
        )


def _fewer(now: np.ndarray, then: np.ndarray) -> np.ndarray:
    """``[delay]`` of the baseline: by how much its noise grows with as few positions as now.

    Beyond the result's delays the last of them stands for all.
    """
    delays = min(len(now), len(then))
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(np.maximum(then[:delays] / now[:delays], 1.0))
    return np.pad(scale, (0, len(then) - delays), mode="edge")


def _require_reach(s: Subject, least: int, certain: int) -> None:
    most = s.result.sizes["delay"] - 1
    if least > most:
        raise BudgetError(
            f"{place(s.budget, s.rule)}: horizon_loss: the baseline's horizon of {s.state} is "
            f"certain to delay {certain}, so that the result must reach {least}; it has the delays "
            f"0 to {most}. Analyse with --delays {certain} or more."
        )


def _percent(share: float, stderr: float) -> str:
    """A share with its error in per cent, without exponents: two digits of the error."""
    share, stderr = 100 * share, 100 * stderr
    digits = 1
    if math.isfinite(stderr) and stderr > 0:
        digits = min(max(1 - math.floor(math.log10(stderr)), 0), 6)
    return f"{share:+.{digits}f} ± {stderr:.{digits}f} %"


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
    apart = _gradients_apart(s)
    judged = []
    for delay in delays:
        errors = s.errors(delay, s.result, s.other, tests=len(delays))
        judged.append((_verdicts.at_most(apart[delay], tolerance, errors), delay))
    for status in ("failed", "undecided", "passed"):
        of_status = [(j, d) for j, d in judged if j.status == status]
        if of_status:
            break
    # The worst of the kind: the largest difference, or what takes the most positions.
    worst, delay = max(of_status, key=lambda p: (np.nan_to_num(p[0].factor, nan=1e99),
                                                 np.nan_to_num(apart[p[1]].value)))  # fmt: skip
    span = f"delay {delays[0]}" if len(delays) == 1 else f"{len(delays)} delays"
    value, stderr = apart[delay].value, apart[delay].stderr
    if math.isinf(value):
        found = f"the reference's are 0 at delay {delay}, these are not"
    else:
        found = f"{value:.2g} ± {stderr:.1g} at delay {delay}"
    yield s.verdict(
        f"mean gradients within {tolerance:g} of the reference's, {span}",
        worst,
        found,
        value,
        stderr,
    )


def _check_same_positions(s: Subject) -> None:
    where = place(s.budget, s.rule)
    key = plan_difference(s.result, s.other)
    if key is not None:
        here, there = (
            t.sizes["delay"] - 1 if key == "delays" else t.attrs.get(key)
            for t in (s.result, s.other)
        )
        raise BudgetError(
            f"{where}: parity needs both analysed at the same positions, and {key} is "
            f"{_brief_attribute(here)} here, {_brief_attribute(there)} in the reference. Analyse "
            "both with the same corpus, --positions, --seed, --delays and --blocks."
        )
    for tree, which in ((s.result, "result"), (s.other, "reference")):
        if "gradient" not in tree[s.state].variables:
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
    text = "not stated" if value is None else str(value)
    return text if len(text) <= 16 else text[:13] + "..."


def _gradients_apart(s: Subject) -> list[_verdicts.Estimate]:
    """The relative difference of the mean gradients at every delay that both have."""
    delays = min(t.sizes["delay"] for t in (s.result, s.other))
    a, b = (Side(t, "none", s.group, delays) for t in (s.result, s.other))
    found = gradient_difference(a, b, s.state, s.state, blocks_of(a, b, s.state, s.state))
    return [
        _verdicts.difference_estimate(*(float(x) for x in columns))
        for columns in zip(found.relative, found.noise, found.stderr, strict=True)
    ]


_JUDGES: dict[str, Callable[[Subject], Iterable[Verdict]]] = {
    "horizon": _horizon,
    "sigma1": _sigma1,
    "selectivity": _selectivity,
    "baseline": _baseline,
    "parity": _parity,
}
