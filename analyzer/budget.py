"""Budgets: what a model must remember, read from TOML, judged against a result.

``docs/check.md`` describes the format and the rules; the statistics are in ``_verdicts.py``.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _verdicts
from ._files import printable
from ._verdicts import Horizon, Judgement, Status
from .errors import BudgetError
from .metrics import jackknife

if TYPE_CHECKING:
    import xarray as xr

    from .tables import Curve

__all__ = ["Budget", "Rule", "Verdict", "check", "draft", "read_budget"]

_MOST_BYTES = 1_000_000
_MOST_SIGMA = 6.0

# --- The format: what a key may hold ---------------------------------------------------------

_Reader = Callable[[Any], Any]


def _whole(least: int, most: int = 10**9) -> _Reader:
    def read(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most:,}")
        return value

    return read


def _number(least: float, most: float = math.inf, *, open_: bool = False) -> _Reader:
    wanted = f"a finite number {'above' if open_ else 'of at least'} {least:g}"
    wanted += f" and at most {most:g}" if math.isfinite(most) else ""

    def read(value: Any) -> float:
        try:
            number = float(value) if type(value) in (int, float) else math.nan
        except OverflowError:
            number = math.inf
        if not (math.isfinite(number) and least <= number <= most) or (open_ and number == least):
            raise ValueError(wanted)
        return number

    return read


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("a text that is not empty")
    return value


def _choice(*known: str) -> _Reader:
    def read(value: Any) -> str:
        if value not in known or not isinstance(value, str):
            raise ValueError(" or ".join(f'"{k}"' for k in known))
        return value

    return read


def _some(one: _Reader, what: str) -> _Reader:
    """One value or a list of them, without repetition; always read as a tuple."""

    def read(value: Any) -> tuple[Any, ...]:
        values = value if isinstance(value, list) else [value]
        try:
            found = tuple(one(v) for v in values)
        except ValueError:
            found = ()
        if not found or len(set(found)) != len(found):
            raise ValueError(f"{what}, or a list of them without repetition")
        return found

    return read


def _leading(value: Any) -> int:
    if type(value) is not int or value not in (1, 5):
        raise ValueError("1 or 5")
    return value


_DELAYS = _some(_whole(0), "a delay (a whole number, 0 or more)")
_PERCENT = _number(0.0, 100.0)
_SHARE = _number(0.0, 1.0)
_FRACTION = _number(0.0, 1.0, open_=True)
_NORMALIZATION = _choice("whitened", "none")

_COMMON: dict[str, _Reader] = {
    "name": _text,
    "state": _some(_text, "a state's name"),
    "group": _text,
}
_ROOT: dict[str, _Reader] = {
    "sigma": _number(0.0, _MOST_SIGMA, open_=True),
    "normalization": _NORMALIZATION,
    "group": _text,
}
ANALYSIS: dict[str, _Reader] = {
    "positions": _whole(1),
    "seed": _whole(0, 2**63 - 1),
    "delays": _whole(0, 1_000_000),
    "blocks": _whole(2, 1_000_000),
    "method": _choice("jvp", "fd"),
    "step": _number(0.0, open_=True),
    "precision": _choice("float32", "float64"),
    "provider": _choice("auto", "cuda", "cpu"),
    "level": _choice("word", "char"),
    "threads": _whole(1, 100_000),
}
"""What ``[analysis]`` may hold: options of ``mnemoscope analyze`` for a check of a model."""

RULES: dict[str, dict[str, _Reader]] = {
    "horizon": _COMMON
    | {"normalization": _NORMALIZATION, "at_least": _whole(0), "fraction": _FRACTION},
    "sigma1": _COMMON
    | {
        "normalization": _NORMALIZATION,
        "delay": _DELAYS,
        "at_least": _number(0.0),
        "at_most": _number(0.0),
    },
    "selectivity": _COMMON
    | {
        "normalization": _NORMALIZATION,
        "delay": _DELAYS,
        "leading": _leading,
        "at_least": _SHARE,
        "at_most": _SHARE,
    },
    "baseline": _COMMON
    | {
        "normalization": _NORMALIZATION,
        "file": _text,
        "horizon_loss": _PERCENT,
        "fraction": _FRACTION,
        "sigma1_loss": _PERCENT,
        "delay": _DELAYS,
    },
    "parity": _COMMON | {"file": _text, "tolerance": _number(0.0, open_=True), "delay": _DELAYS},
}
"""Kind of bound → key → what reads its value."""

_REQUIRED = {
    "horizon": ("at_least",),
    "sigma1": ("delay",),
    "selectivity": ("delay",),
    "baseline": (),
    "parity": ("tolerance",),
}


@dataclass(frozen=True)
class Rule:
    """One bound of a budget, as its table states it.

    Attributes:
        kind: ``horizon``, ``sigma1``, ``selectivity``, ``baseline`` or ``parity``.
        number: Its place among the tables of its kind, from 1.
        line: Where its table begins in the file; None where that cannot be told.
        values: Key → value; `state` and `delay` are tuples.
    """

    kind: str
    number: int
    line: int | None
    values: dict[str, Any]

    @property
    def where(self) -> str:
        """The table, for messages."""
        return f"[[{self.kind}]] {self.number}" + (f" (line {self.line})" if self.line else "")

    @property
    def delays(self) -> tuple[int, ...]:
        """Every delay that the bound mentions."""
        horizon = (self.values["at_least"],) if self.kind == "horizon" else ()
        return (*self.values.get("delay", ()), *horizon)


@dataclass(frozen=True)
class Budget:
    """A budget.

    Attributes:
        path: The file, for messages; files that it names are relative to its folder.
        sigma: How many standard errors an excess must have to count.
        normalization: ``whitened`` or ``none``, where a bound does not say.
        group: Class of input words, where a bound does not say; None means the first.
        analysis: How to analyse a model.
        rules: The bounds, in the order of `RULES` and of the file.
    """

    path: str
    sigma: float
    normalization: str
    group: str | None
    analysis: dict[str, Any]
    rules: tuple[Rule, ...]

    @property
    def largest_delay(self) -> int | None:
        """The largest delay that a bound mentions; None if none does."""
        return max((d for rule in self.rules for d in rule.delays), default=None)

    @property
    def states(self) -> list[str] | None:
        """The states that the bounds name; None if one of them is for all."""
        if any("state" not in rule.values for rule in self.rules):
            return None
        return sorted({s for rule in self.rules for s in rule.values["state"]})

    def require(self, states: Iterable[str], largest_delay: int, which: str) -> None:
        """Refuse bounds on states or delays that there are not.

        Args:
            states: What there is.
            largest_delay: The same.
            which: Who has them, for the message, such as ``the model``.

        Raises:
            BudgetError: Naming the bound and its key.
        """
        known = list(states)
        for rule in self.rules:
            _require_states(self, rule, rule.values.get("state", ()), known, which)
            _require_delays(self, rule, largest_delay, which)

    def beside(self, file: str) -> str:
        """The path of a file that a bound names."""
        return os.path.join(os.path.dirname(self.path), file)


def read_budget(path: str | os.PathLike[str]) -> Budget:
    """Read a budget.

    Raises:
        BudgetError: It cannot be read, is no TOML, or holds what a budget does not; the message
            names the table, its line and the key.
    """
    shown = printable(path)
    text = _read_text(path, shown)
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also integers of 5,000 digits
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BudgetError(f"{shown} is not valid TOML: {why}.") from None
    lines = text.splitlines()
    known = [*_ROOT, "analysis", *RULES]
    for key in data:
        if key not in known:
            raise BudgetError(
                f"{shown}{_at(_line(lines, 0, key) or _header(lines, key, 1))}: unknown key "
                f"{_quoted(key)}; a budget may hold {', '.join(known)}."
            )
    root = {k: v for k, v in data.items() if k in _ROOT}
    common = _read_table(shown, "the head of the file", root, _ROOT, lines, 0)
    analysis = data.get("analysis", {})
    if not isinstance(analysis, dict):
        raise BudgetError(f"{shown}: analysis must be a table; write [analysis] above its keys.")
    start = _header(lines, "analysis", 1) or 0
    analysis = _read_table(shown, "[analysis]", analysis, ANALYSIS, lines, start)
    if "step" in analysis and analysis.get("method") != "fd":
        raise BudgetError(
            f"{shown}{_at(_line(lines, start, 'step'))}: [analysis]: step is the step of finite "
            'differences; add method = "fd".'
        )
    rules = tuple(rule for kind in RULES for rule in _read_rules(shown, kind, data, lines))
    if not rules:
        raise BudgetError(
            f"{shown} sets no bound: it needs at least one of "
            f"{', '.join(f'[[{kind}]]' for kind in RULES)}."
        )
    return Budget(
        path=os.fspath(path),
        sigma=common.get("sigma", 2.0),
        normalization=common.get("normalization", "whitened"),
        group=common.get("group"),
        analysis=analysis,
        rules=rules,
    )


def _read_text(path: str | os.PathLike[str], shown: str) -> str:
    expected = f"Expected a budget (a TOML file); {shown} "
    try:
        if os.path.exists(path) and not Path(path).is_file():
            raise BudgetError(f"{expected}is no ordinary file. Name the file.")
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise BudgetError(f"{expected}does not exist. Check the path.") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BudgetError(f"{expected}cannot be read: {why}.") from None
    if len(content) > _MOST_BYTES:
        raise BudgetError(f"{expected}is larger than {_MOST_BYTES:,} bytes. Is it a budget?")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BudgetError(f"{expected}is not UTF-8 text (line {line}).") from None


def _read_rules(shown: str, kind: str, data: dict[str, Any], lines: list[str]) -> Iterator[Rule]:
    tables = data.get(kind, [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise BudgetError(
            f"{shown}{_at(_header(lines, kind, 1) or _line(lines, 0, kind))}: {kind} must be a "
            f"list of tables; write [[{kind}]], in double brackets, above the keys of each."
        )
    for number, table in enumerate(tables, 1):
        line = _header(lines, kind, number)
        where = f"[[{kind}]] {number}"
        values = _read_table(shown, where, table, RULES[kind], lines, line or 0)
        wrong = _contradiction(kind, values)
        if wrong:
            raise BudgetError(f"{shown}{_at(line)}: {where}: {wrong}")
        yield Rule(kind, number, line, values)


def _read_table(
    shown: str,
    where: str,
    table: dict[str, Any],
    readers: dict[str, _Reader],
    lines: list[str],
    start: int,
) -> dict[str, Any]:
    values = {}
    for key, value in table.items():
        at = _at(_line(lines, start, key) or start)
        if key not in readers:
            raise BudgetError(
                f"{shown}{at}: {where}: unknown key {_quoted(key)}; it may hold "
                f"{', '.join(readers)}."
            )
        try:
            values[key] = readers[key](value)
        except ValueError as error:
            raise BudgetError(
                f"{shown}{at}: {where}: {key} must be {error}, not {_brief(value)}."
            ) from None
    return values


def _contradiction(kind: str, values: dict[str, Any]) -> str | None:
    """What is missing from a table, or does not go together in it."""
    for key in _REQUIRED[kind]:
        if key not in values:
            return f"the key {key} is missing."
    if kind in ("sigma1", "selectivity"):
        low, high = values.get("at_least"), values.get("at_most")
        if low is None and high is None:
            return "it needs at_least, at_most or both."
        if low is not None and high is not None and low > high:
            return f"at_least {low:g} is above at_most {high:g}; nothing can be both."
    if kind == "baseline":
        if "horizon_loss" not in values and "sigma1_loss" not in values:
            return "it needs horizon_loss, sigma1_loss or both."
        if ("sigma1_loss" in values) != ("delay" in values):
            return "sigma1_loss and delay belong together: σ₁ is compared at those delays."
        if "fraction" in values and "horizon_loss" not in values:
            return "fraction says which horizon is meant; it needs horizon_loss."
    return None


def _header(lines: list[str], name: str, number: int) -> int | None:
    """Line of the n-th table of a name, from 1."""
    pattern = re.compile(r"\s*\[{1,2}\s*[\"']?" + re.escape(name) + r"[\"']?\s*\]{1,2}\s*(#.*)?$")
    found = [i for i, line in enumerate(lines, 1) if pattern.match(line)]
    return found[number - 1] if len(found) >= number else None


def _line(lines: list[str], start: int, key: str) -> int | None:
    """Line of a key in the table that begins at line `start` (0: the head of the file)."""
    pattern = re.compile(r"\s*[\"']?" + re.escape(key) + r"[\"']?\s*[=.]")
    for i, line in enumerate(lines[start:], start + 1):
        if line.lstrip().startswith("["):
            return None
        if pattern.match(line):
            return i
    return None


def _at(line: int | None) -> str:
    return f", line {line}" if line else ""


def _quoted(key: str) -> str:
    return _brief(key)


def _brief(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # dates; integers of 5,000 digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


# --- Verdicts --------------------------------------------------------------------------------


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
            verdicts += _JUDGES[rule.kind](_Subject(result, budget, rule, state, against))
    return verdicts


_ROLE = {"baseline": "baseline", "parity": "reference"}


def _file(budget: Budget, rule: Rule) -> str:
    file = rule.values.get("file")
    if file is None:
        raise BudgetError(
            f"{_place(budget, rule)} names no file to compare with. Add "
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
    _require_states(budget, rule, names, list(tree.children), which)
    groups = [str(g) for g in tree.coords["group"].values]
    group = rule.values.get("group", budget.group)
    if group is not None and group not in groups:
        raise BudgetError(
            f"{_place(budget, rule)}: group: {which} has no group {_brief(group)}; it has "
            f"{', '.join(groups)}."
        )
    _require_delays(budget, rule, int(tree.sizes["delay"]) - 1, which)


def _place(budget: Budget, rule: Rule) -> str:
    return f"{printable(budget.path)}: {rule.where}"


def _require_states(
    budget: Budget, rule: Rule, names: Iterable[str], known: list[str], which: str
) -> None:
    for state in names:
        if state not in known:
            raise BudgetError(
                f"{_place(budget, rule)}: state: {which} has no state {_brief(state)}; it has "
                f"{', '.join(known)}."
            )


def _require_delays(budget: Budget, rule: Rule, most: int, which: str) -> None:
    for delay in rule.delays:
        if delay > most:
            key = "at_least" if rule.kind == "horizon" else "delay"
            raise BudgetError(
                f"{_place(budget, rule)}: {key}: {which} has the delays 0 to {most}, not {delay}. "
                f"Analyse with --delays {delay} or more."
            )


class _Subject:
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


def _sigma1(s: _Subject) -> Iterator[Verdict]:
    curve = s.curve(s.result)
    for delay in s.values["delay"]:
        estimate = _verdicts.sigma1_estimate(
            curve.sigma1[delay], curve.sigma1_stderr[delay], curve.noise_floor[delay]
        )
        yield from _bounds(s, f"σ₁ at delay {delay}", estimate, s.errors(delay))


def _selectivity(s: _Subject) -> Iterator[Verdict]:
    curve, leading = s.curve(s.result), s.values.get("leading", 1)
    name = "σ₁/Σσ" if leading == 1 else "σ₁..₅/Σσ"
    errors = curve.share1_stderr if leading == 1 else curve.share5_stderr
    for delay in s.values["delay"]:
        estimate = _verdicts.selectivity_estimate(
            s.spectrum(delay), errors[delay], curve.noise_floor[delay], leading
        )
        yield from _bounds(s, f"{name} at delay {delay}", estimate, s.errors(delay))


def _bounds(
    s: _Subject, what: str, estimate: _verdicts.Estimate, errors: float
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


def _horizon_of(s: _Subject, tree: xr.DataTree, delays: int, scale: np.ndarray | float) -> Horizon:
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


def _horizon(s: _Subject) -> Iterator[Verdict]:
    delays = s.result.sizes["delay"]
    yield _judge_horizon(s, _horizon_of(s, s.result, delays, 1.0), s.values["at_least"], "", "")


def _judge_horizon(s: _Subject, horizon: Horizon, least: int, what: str, note: str) -> Verdict:
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


def _baseline(s: _Subject) -> Iterator[Verdict]:
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


def _other_corpus(s: _Subject) -> str:
    mine, its = (t.attrs.get("corpus_sha256") for t in (s.result, s.other))
    return "" if mine == its else "the baseline was made on another corpus"


def _parity(s: _Subject) -> Iterator[Verdict]:
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


def _check_same_positions(s: _Subject) -> None:
    where = _place(s.budget, s.rule)
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


def _relative_differences(s: _Subject) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


_JUDGES: dict[str, Callable[[_Subject], Iterable[Verdict]]] = {
    "horizon": _horizon,
    "sigma1": _sigma1,
    "selectivity": _selectivity,
    "baseline": _baseline,
    "parity": _parity,
}


# --- Drafting --------------------------------------------------------------------------------

_DRAFT_DELAYS = (1, 5, 10, 20, 50)
_DRAFT_FRACTION = 0.05

_HEAD = """\
# Drafted from {source}, which passes it. Tighten it, loosen it, delete what you do not need.
# Bounds stand {margin:.1f} standard errors away from what was measured, so that another sample of
# as many positions hardly ever fails.

sigma = {sigma:g}                    # standard errors that an excess must have to count
normalization = "whitened"

# Read when a model is checked; ignored when a result is.
[analysis]
{analysis}
"""

_TAIL = """
# Not worse than an earlier model (also --baseline r0.nc):
# [[baseline]]
# file = "r0.nc"
# horizon_loss = 10           # per cent
# sigma1_loss = 10            # per cent, at these delays:
# delay = [{delays}]

# The same model in another precision or framework (also --reference fp32.onnx):
# [[parity]]
# file = "fp32.onnx"
# tolerance = 0.01            # relative difference of the mean gradients
"""


def draft(result: xr.DataTree, *, source: str = "a result", sigma: float = 2.0) -> str:
    """Write a budget that a result passes: TOML, with comments.

    Horizons are the largest delays that are certain; bounds of σ₁ and selectivity keep a margin of
    twice the error that counts. What could not be passed (σ₁ within its noise) is left out.

    Args:
        result: As `open_result` gives it.
        source: Its name, for the comment.
        sigma: Standard errors that an excess must have to count.

    Raises:
        BudgetError: Nothing in the result stands clear of its noise.
    """
    most = result.sizes["delay"] - 1
    delays = [d for d in _DRAFT_DELAYS if d <= most] or [0]
    attrs = result.attrs
    analysis = [
        f"{key} = {_toml(value)}"
        for key, value in (
            ("positions", _stated(attrs, "positions", int)),
            ("seed", _stated(attrs, "seed", int)),
            ("delays", most),
            ("method", "fd" if attrs.get("method") == "fd" else None),
            ("precision", _stated(attrs, "precision", str)),
        )
        if value is not None
    ]
    empty = Budget("", sigma, "whitened", None, {}, ())
    parts = []
    margin = 0.0
    for state in result.children:
        s = _Subject(result, empty, Rule("draft", 1, None, {}), state, None)
        curve = s.curve(result)
        parts.append(f"\n# --- {_printed(state)} ---")
        head = f"state = {_toml(state)}\n"
        errors = s.all_errors(result, most + 1)
        margin = max(margin, 2 * float(errors[0]))
        columns = (curve.sigma1, curve.sigma1_stderr, curve.noise_floor, errors)
        horizon = _verdicts.floor_horizon(*columns).certain
        if horizon is not None:
            parts.append(
                "\n# σ₁ stands above its noise floor up to this delay (with so many positions)."
                f"\n[[horizon]]\n{head}at_least = {horizon}"
            )
        horizon = _verdicts.fraction_horizon(*columns, _DRAFT_FRACTION).certain
        if horizon:
            parts.append(
                f"\n# σ₁ is at least {_DRAFT_FRACTION:.0%} of σ₁ at delay 0 up to this delay."
                f"\n[[horizon]]\n{head}fraction = {_DRAFT_FRACTION}\nat_least = {horizon}"
            )
        for d in delays:
            e = _verdicts.sigma1_estimate(*(c[d] for c in columns[:3]))
            low = _below(e.low - 2 * errors[d] * e.stderr) if e.known else 0.0
            if low > 0:
                parts.append(
                    f"\n[[sigma1]]                   # measured {e.value:.4g} ± {e.stderr:.1g}"
                    f"\n{head}delay = {d}\nat_least = {low!r}"
                )
        for d in reversed([d for d in delays if d <= 10]):  # the latest that can be bounded
            e = _verdicts.selectivity_estimate(
                s.spectrum(d), curve.share1_stderr[d], curve.noise_floor[d], 1
            )
            if not e.known or not math.isfinite(e.high):
                continue
            low = _below(e.low - 2 * errors[d] * e.stderr)
            high = -_below(-e.high - 2 * errors[d] * e.stderr)
            bounds = [f"at_least = {low!r}"] if low > 0 else []
            bounds += [f"at_most = {high!r}"] if high < 1 else []
            if bounds:
                parts.append(
                    f"\n[[selectivity]]              # measured {e.value:.4g} ± {e.stderr:.1g}"
                    f"\n{head}delay = {d}\n" + "\n".join(bounds)
                )
                break
    if not any("[[" in part for part in parts):
        raise BudgetError(
            "No bound can be drafted: nothing in the result stands clear of its noise. "
            "Analyse more positions."
        )
    text = _HEAD.format(
        source=_printed(source), sigma=sigma, margin=margin, analysis="\n".join(analysis)
    )
    return text + "\n".join(parts) + "\n" + _TAIL.format(delays=", ".join(map(str, delays)))


def _stated(attrs: dict[Any, Any], key: str, kind: type) -> Any:
    """An attribute of a result, if ``[analysis]`` would take it."""
    value = getattr(attrs.get(key), "item", lambda: attrs.get(key))()
    try:
        return ANALYSIS[key](value) if isinstance(value, kind) else None
    except ValueError:
        return None


def _below(value: float) -> float:
    """`value` rounded to three digits, downwards."""
    if not value or not math.isfinite(value):
        return value
    digits = 2 - math.floor(math.log10(abs(value)))
    step = 10.0**-digits
    rounded = float(f"{math.floor(value / step) * step:.3g}")
    return rounded if rounded <= value else float(f"{rounded - step:.3g}")


def _toml(value: Any) -> str:
    """A TOML value. JSON's texts are TOML's, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _printed(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
