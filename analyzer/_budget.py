"""The format of a budget: what its tables may hold, and reading them.

``docs/check.md`` has the schema.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ._files import printable
from ._toml import parse_toml
from .errors import BudgetError

_MOST_BYTES = 1_000_000
_MOST_SIGMA = 6.0

DEFAULT_LOSS = 10.0
"""Per cent that a model may be worse than a baseline of which the budget says nothing."""
DEFAULT_DELAYS = (1, 5, 10)
"""Where σ₁ is compared with such a baseline."""
DEFAULT_TOLERANCE = 0.01
"""Of the mean gradients, for a reference of which the budget says nothing."""

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
    # Reports print it: a line break in it could begin a command of a workflow.
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("a text of printable characters that is not empty")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
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
    "tf32": _flag,
    "provider": _choice("auto", "cuda", "cpu"),
    "level": _choice("word", "char"),
    "threads": _whole(1, 100_000),
    "streams": _whole(1, 100_000),
    "chunk": _whole(1, 1_000_000),
    "calibrate": _flag,
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
        number: Its place among the tables of its kind, from 1; 0 for a default, which the budget
            does not state.
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
        if not self.number:
            return f"the default [[{self.kind}]]"
        return f"[[{self.kind}]] {self.number}" + (f" (line {self.line})" if self.line else "")

    @property
    def delays(self) -> tuple[int, ...]:
        """Every delay that the bound mentions."""
        horizon = (self.values["at_least"],) if self.kind == "horizon" else ()
        return (*self.values.get("delay", ()), *horizon)

    def toothless(self) -> Iterator[str]:
        """What of it any model, or any that remembers anything, would pass; a clause for each."""
        v = self.values
        if self.kind in ("sigma1", "selectivity") and v.get("at_least") == 0:
            yield "at_least = 0 cannot fail"
        if self.kind == "selectivity" and v.get("at_most") == 1:
            yield "at_most = 1 cannot fail"
        if v.get("sigma1_loss") == 100:
            yield "sigma1_loss = 100 cannot fail"
        horizon = {"horizon": ("at_least", 0), "baseline": ("horizon_loss", 100)}.get(self.kind)
        if horizon and v.get(horizon[0]) == horizon[1]:
            said = f"{horizon[0]} = {horizon[1]} "
            if "fraction" in v:
                yield said + "cannot fail"
            else:
                yield said + "fails only a state that shows nothing, not even of the last word"
        if v.get("tolerance", 0) >= 1:
            yield f"tolerance = {v['tolerance']:g} passes a model that remembers nothing"


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
            require_states(self, rule, rule.values.get("state", ()), known, which)
            require_delays(self, rule, largest_delay, which)

    def completed(self, *, baseline: int | None = None, reference: bool = False) -> Budget:
        """Add default bounds for a baseline or a reference that none of the bounds is about.

        Args:
            baseline: The largest delay that the result and the baseline given both have; None
                where no baseline is given.
            reference: Whether a reference is given.
        """
        kinds = {rule.kind for rule in self.rules}
        added = []
        if baseline is not None and "baseline" not in kinds:
            delays = tuple(d for d in DEFAULT_DELAYS if d <= baseline) or (0,)
            loss = {"horizon_loss": DEFAULT_LOSS, "sigma1_loss": DEFAULT_LOSS, "delay": delays}
            added.append(Rule("baseline", 0, None, {"name": "default", **loss}))
        if reference and "parity" not in kinds:
            values = {"name": "default", "tolerance": DEFAULT_TOLERANCE}
            added.append(Rule("parity", 0, None, values))
        return replace(self, rules=(*self.rules, *added))

    def notes(self) -> list[str]:
        """What a reader of the verdicts must know of the bounds, a sentence each."""
        said = []
        for rule in self.rules:
            if not rule.number:
                stated = ", ".join(
                    f"{k} = {_stated(x)}" for k, x in rule.values.items() if k != "name"
                )
                said.append(
                    f"{printable(self.path)} has no [[{rule.kind}]], so the default is held: "
                    f"{stated}. Write it into the budget to choose other numbers."
                )
            said += [f"{place(self, rule)}: {clause}." for clause in rule.toothless()]
        return said

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
        data = parse_toml(text)
    except ValueError as error:
        raise BudgetError(f"{shown} is not valid TOML: {error}.") from None
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
        return content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
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
                f"{shown}{at}: {where}: {key} must be {error}, not {brief(value)}."
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
    return brief(key)


def brief(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # dates; integers of 5,000 digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _stated(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else f"{value:g}"


def place(budget: Budget, rule: Rule) -> str:
    return f"{printable(budget.path)}: {rule.where}"


def require_states(
    budget: Budget, rule: Rule, names: Iterable[str], known: list[str], which: str
) -> None:
    for state in names:
        if state not in known:
            raise BudgetError(
                f"{place(budget, rule)}: state: {which} has no state {brief(state)}; it has "
                f"{', '.join(known)}."
            )


def require_delays(budget: Budget, rule: Rule, most: int, which: str) -> None:
    for delay in rule.delays:
        if delay > most:
            key = "at_least" if rule.kind == "horizon" else "delay"
            raise BudgetError(
                f"{place(budget, rule)}: {key}: {which} has the delays 0 to {most}, not {delay}. "
                f"Analyse with --delays {delay} or more."
            )
