"""Numbers for the claims: memory curves from results, and measures of them with their errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

LATEST = 40
"""Largest delay that claims look at: beyond, few corpora are large enough."""

NAN = float("nan")


@dataclass(frozen=True)
class Value:
    """A number, its standard error, and what noise alone would make it."""

    value: float
    error: float = NAN
    floor: float = NAN


@dataclass(frozen=True)
class Memory:
    """What one state remembers, ``[delay]`` each but for `blocks`.

    Attributes:
        delay: 0, 1, 2, …
        sigma1: Largest singular value.
        sigma1_error: Its standard error.
        floor: Its noise floor.
        share1: σ₁/Σσ.
        share1_error: Its standard error.
        share5: (σ₁+…+σ₅)/Σσ.
        share5_error: Its standard error.
        total: Σσ; None where it was not asked for.
        total_error: Its standard error.
        total_floor: Σσ of the noise matrix.
        blocks: ``[block, delay]``, ln σ₁ without one block of the corpus at a time; None where
            the result does not hold the means of blocks.
        count: Positions at delay 0.
    """

    delay: np.ndarray
    sigma1: np.ndarray
    sigma1_error: np.ndarray
    floor: np.ndarray
    share1: np.ndarray
    share1_error: np.ndarray
    share5: np.ndarray
    share5_error: np.ndarray
    total: np.ndarray | None = None
    total_error: np.ndarray | None = None
    total_floor: np.ndarray | None = None
    blocks: np.ndarray | None = None
    count: int = 0

    @property
    def clear(self) -> np.ndarray:
        """Where σ₁ lies more than two standard errors above its noise floor."""
        return self.sigma1 > self.floor + 2.0 * self.sigma1_error

    @property
    def reach(self) -> int:
        """The last delay up to which all are clear; −1 if the first is not."""
        unclear = np.nonzero(~self.clear)[0]
        return int(unclear[0]) - 1 if unclear.size else int(self.delay[-1])


@dataclass(frozen=True)
class Results:
    """All that a study found; what is missing was not run.

    Attributes:
        memory: ``NAME.STATE`` → curve over all words: ``base.c`` (cell state), ``base.h``,
            ``base-raw.c`` (not whitened), ``random.c``, ``seed2.c``, ``seed3.c``, ``gru.h``,
            ``rnn.h``, ``small.c``, ``large.c``, ``pretrained.c``, and ``CORPUS.c`` of the main
            and of other corpora.
        classes: Class → curve.
        words: As `commands.read_words` gives them.
        properties: Name → as `commands.read_property` gives them.
        separability: As `commands.read_separability` gives it.
        perplexity: Model → ``valid``, ``test``, ``unigram``.
        corpus: The main corpus.
        problems: What could not be read, and why.
    """

    memory: Mapping[str, Memory] = field(default_factory=dict)
    classes: Mapping[str, Memory] = field(default_factory=dict)
    words: Mapping[str, Any] | None = None
    properties: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    perplexity: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    separability: tuple[Mapping[str, Any], ...] = ()
    corpus: str = "ewt"
    problems: tuple[str, ...] = ()


# Measures of one curve -----------------------------------------------------------------------


def log_sigma1(memory: Memory, delays: Iterable[int]) -> Value:
    """Mean of ln σ₁ over delays; NaN unless all are clear of noise.

    The error is the mean of the errors: at most so much, since errors of neighbouring delays go
    together.
    """
    at = list(delays)
    if not at or max(at) >= len(memory.delay) or not memory.clear[at].all():
        return Value(NAN)
    s = memory.sigma1[at]
    return Value(
        float(np.log(s).mean()),
        float((memory.sigma1_error[at] / s).mean()),
        float(np.log(np.maximum(memory.floor[at], 1e-300)).mean()),
    )


def share(memory: Memory, delays: Iterable[int], leading: int = 1) -> Value:
    """Mean of σ₁/Σσ (or of the leading five) over delays; NaN unless all are clear of noise."""
    at = list(delays)
    if not at or max(at) >= len(memory.delay) or not memory.clear[at].all():
        return Value(NAN)
    values = memory.share1 if leading == 1 else memory.share5
    errors = memory.share1_error if leading == 1 else memory.share5_error
    return Value(float(values[at].mean()), float(errors[at].mean()))


def rate(memory: Memory, first: int, last: int) -> Value:
    """Decay per word between two delays, ``(ln σ₁(first) − ln σ₁(last)) / (last − first)``."""
    return _linear(memory, {first: 1 / (last - first), last: -1 / (last - first)})


def windows(memory: Memory) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """An early and a late stretch of delays, both clear of noise: 0–10 and, at best, 20–40.

    None where the curve is clear for fewer than 15 words.
    """
    last = min(LATEST, memory.reach)
    return None if last < 15 else ((0, 10), (max(10, last // 2), last))


def rate_change(memory: Memory) -> Value:
    """Early minus late decay per word: 0 for an exponential, above 0 where the decay slows."""
    found = windows(memory)
    if found is None:
        return Value(NAN)
    (a, b), (c, d) = found
    weights: dict[int, float] = {}
    for delay, w in ((a, 1 / (b - a)), (b, -1 / (b - a)), (c, -1 / (d - c)), (d, 1 / (d - c))):
        weights[delay] = weights.get(delay, 0.0) + w
    return _linear(memory, weights)


def misfit(memory: Memory) -> float:
    """By what factor the best exponential misses the curve at worst, over its clear delays.

    The exponential is the straight line through ln σ₁ that is best in least squares.
    """
    last = min(LATEST, memory.reach)
    if last < 3:
        return NAN
    x, y = memory.delay[: last + 1].astype(float), np.log(memory.sigma1[: last + 1])
    return float(np.exp(np.abs(y - np.polyval(np.polyfit(x, y, 1), x)).max()))


def _linear(memory: Memory, weights: Mapping[int, float]) -> Value:
    """A weighted sum of ln σ₁ at some delays.

    With block means its error is the jackknife of the sum itself; without, the errors of the
    delays added, which is at least as much.
    """
    at = list(weights)
    if max(at) >= len(memory.delay) or not memory.clear[at].all():
        return Value(NAN)
    w = np.array([weights[d] for d in at])
    s = memory.sigma1[at]
    value = float(w @ np.log(s))
    if memory.blocks is not None and np.isfinite(memory.blocks[:, at]).all():
        moved = memory.blocks[:, at] @ w
        g = len(moved)
        return Value(value, math.sqrt((g - 1) / g * float(((moved - moved.mean()) ** 2).sum())))
    return Value(value, float(np.abs(w) @ (memory.sigma1_error[at] / s)))


# Measures of several models ------------------------------------------------------------------


def seeds(results: Results, measure: Callable[[Memory], Value], state: str = "c") -> list[float]:
    """A measure of the base model and of its twins with other seeds, where it is a number."""
    names = [f"{name}.{state}" for name in ("base", "seed2", "seed3")]
    found = [measure(results.memory[n]).value for n in names if n in results.memory]
    return [v for v in found if math.isfinite(v)]


def contrast(
    results: Results, a: str, b: str, measure: Callable[[Memory], Value], *, apart: int = 2
) -> Value | None:
    """Difference of a measure between two curves; None where one of them was not run.

    Args:
        results: All.
        a: Name of the first curve.
        b: Name of the second.
        measure: Of one curve.
        apart: How many of the two are trained models of their own: each adds the variance between
            seeds to those of the corpus. Without other seeds the error is not known.
    """
    if a not in results.memory or b not in results.memory:
        return None
    one, other = measure(results.memory[a]), measure(results.memory[b])
    between = between_seeds(seeds(results, measure)) if apart else 0.0
    return Value(
        one.value - other.value, math.sqrt(one.error**2 + other.error**2 + apart * between)
    )


def between_seeds(values: Sequence[float]) -> float:
    """The variance between models that differ by their seed alone, widened for how few they are.

    Two or three seeds know it badly. It is multiplied so that two standard errors leave chance as
    little as two of a normal variable do: by Student's t with as many degrees of freedom, over 2.

    Returns:
        NaN for fewer than two values.
    """
    from scipy.stats import norm, t

    freedom = len(values) - 1
    if freedom < 1:
        return NAN
    wide = float(t.ppf(norm.cdf(2.0), freedom)) / 2.0
    return float(np.var(values, ddof=1)) * wide**2


def common_delays(*memories: Memory, among: Iterable[int]) -> list[int]:
    """Those of some delays at which all curves are clear of noise.

    None where they are fewer than half: one clear delay must not speak for all. Half of
    `claims.COMPARED` has a delay of 10 or later among it.
    """
    wanted = list(among)
    found = [d for d in wanted if all(d < len(m.delay) and m.clear[d] for m in memories)]
    return found if 2 * len(found) >= len(wanted) else []


# Reading -------------------------------------------------------------------------------------


def read_memory(
    path: Path,
    state: str,
    *,
    group: str | None = None,
    normalization: str = "whitened",
    blocks: bool = False,
    totals: bool = False,
) -> Memory:
    """One curve of a result file.

    Args:
        path: As ``mnemoscope analyze`` wrote it.
        state: Name of the state component.
        group: Class of input words; None means the first, all words.
        normalization: ``whitened`` or ``none``.
        blocks: Also the curves without one block at a time, where the file has block means.
        totals: Also Σσ.
    """
    from mnemoscope.analyzer.result import open_result
    from mnemoscope.analyzer.tables import curves

    tree = open_result(path)
    curve = curves(tree, states=[state], normalization=normalization, group=group)[0]
    node, g = tree[state], [str(x) for x in tree.coords["group"].values].index(curve.group)
    extra: dict[str, Any] = {}
    by = tree["embedding_whitening"].values if normalization == "whitened" else None
    if totals:
        i = ["none", "whitened"].index(normalization)
        for ours, theirs in (("total", ""), ("total_error", "_stderr"), ("total_floor", "_floor")):
            extra[ours] = node[f"singular_value_sum{theirs}"].values[i, g]
    if blocks and "block_gradient" in node:
        extra["blocks"] = _without_blocks(node, g, by)
    return Memory(
        delay=curve.delay,
        sigma1=curve.sigma1,
        sigma1_error=curve.sigma1_stderr,
        floor=curve.noise_floor,
        share1=curve.share1,
        share1_error=curve.share1_stderr,
        share5=curve.share5,
        share5_error=curve.share5_stderr,
        count=int(curve.count[0]),
        **extra,
    )


def _values(matrix: np.ndarray, by: np.ndarray | None) -> np.ndarray:
    from mnemoscope.analyzer.metrics import singular_values

    return singular_values(matrix if by is None else matrix.astype(np.float64) @ by)


def _without_blocks(node: Any, g: int, by: np.ndarray | None) -> np.ndarray:
    n = node["block_count"].values[:, g].astype(float)
    rows = []
    means = [
        np.nan_to_num(node["block_gradient"][b, g].values.astype(float)) for b in range(len(n))
    ]
    total = sum(m * n[b][:, None, None] for b, m in enumerate(means))
    for b, mean in enumerate(means):
        left = n.sum(axis=0) - n[b]
        with np.errstate(divide="ignore", invalid="ignore"):
            rest = (total - mean * n[b][:, None, None]) / left[:, None, None]
            rows.append(np.log(_values(rest, by)[:, 0]))
    return np.stack(rows)


def read_results(folder: Path, corpus: str, only: Iterable[str] | None = None) -> Results:
    """All that a run's folder holds and that is done; half-done steps have no stamp.

    Args:
        folder: Of the run.
        corpus: The main one.
        only: Steps to read; None means all.
    """
    from . import commands
    from .study import CELL, CURVES

    done = {path.stem for path in (folder / "steps").glob("*.json")}
    done = done if only is None else done & set(only)
    memory: dict[str, Memory] = {}
    for name, (step, state, normalization) in CURVES.items():
        if step in done:
            path = folder / "results" / f"{step.removeprefix('analyze-')}.nc"
            memory[name] = read_memory(
                path, state, normalization=normalization, blocks=name in ("base.c", "random.c")
            )
    for step in sorted(done):
        if step.startswith("analyze-corpus-"):
            name = step.removeprefix("analyze-")
            memory[f"{name.removeprefix('corpus-')}.c"] = read_memory(
                folder / "results" / f"{name}.nc", CELL
            )
    if "base.c" in memory:
        memory[f"{corpus}.c"] = memory["base.c"]
    classes: dict[str, Memory] = {}
    if "classes" in done:
        from mnemoscope.analyzer.result import open_result

        path = folder / "results" / "classes.nc"
        for group in open_result(path).coords["group"].values:
            classes[str(group)] = read_memory(path, CELL, group=str(group), totals=True)
    words = None
    problems: list[str] = []
    if "words" in done:
        try:
            words = commands.read_words(folder / "results" / "words.nc", CELL)
        except Exception as error:  # one page without one line beats no page
            problems.append(f"words: {error}")
    properties = {}
    for name in commands.PROPERTIES:
        if f"property-{name}" in done:
            path = folder / "results" / f"property-{name}.json"
            try:
                properties[name] = commands.read_property(path)
            except Exception as error:
                problems.append(f"property {name}: {error}")
    separability: tuple[dict[str, Any], ...] = ()
    if "table3" in done:
        try:
            separability = tuple(commands.read_separability(folder / "results" / "table3.json"))
        except Exception as error:
            problems.append(f"table3: {error}")
    perplexity: dict[str, dict[str, float]] = {}
    for step in sorted(done):
        if step.startswith("train-"):
            with suppress(OSError, ValueError, KeyError):
                name = step.removeprefix("train-")
                config = json.loads((folder / "models" / name / "config.json").read_text("utf-8"))
                perplexity[name] = {
                    **config["perplexity"],
                    "unigram": config["data"]["test"]["unigram_perplexity"],
                    "epochs": len(config["epochs"]),
                    "tokens": config["data"]["train"]["tokens"],
                }
    return Results(
        memory, classes, words, properties, perplexity, separability, corpus, tuple(problems)
    )
