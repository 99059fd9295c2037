"""Deciding a bound from a measurement and its errors: passed, failed, or undecided.

Plain numbers and ``[delay]`` arrays in, plain values out; ``docs/check.md`` explains the rules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Status = Literal["passed", "failed", "undecided"]

MOST_FACTOR = 1000.0
"""Beyond this many times the positions, an extrapolation says only that it takes more."""

CHANCE = 0.8
"""The chance with which so many positions as an extrapolation names decide a bound."""


@dataclass(frozen=True)
class Estimate:
    """A measure with both of its errors.

    Attributes:
        value: As measured.
        low: The least that it can be without what noise adds.
        high: The most.
        stderr: Standard error.
    """

    value: float
    low: float
    high: float
    stderr: float

    @property
    def known(self) -> bool:
        """False where there are too few positions for a value, a standard error or a floor."""
        return all(map(math.isfinite, (self.value, self.low, self.stderr)))


@dataclass(frozen=True)
class Judgement:
    """What a bound comes to.

    Attributes:
        status: ``passed``, ``failed`` or ``undecided``.
        factor: If undecided: how many times as many positions should decide it; infinite where
            no number of them will, NaN where that cannot be said.
    """

    status: Status
    factor: float = 1.0


UNKNOWN = Judgement("undecided", math.nan)


def critical(sigma: float, blocks: int, tests: int = 1) -> float:
    """Standard errors that an excess must have to count.

    A jackknife over g blocks gives a standard error with g − 1 degrees of freedom. The quantile
    of Student's t keeps the chance of an excess at what `sigma` means for a known error, 2.3 %
    for 2, whatever the number of blocks. Several tests of one bound share that chance
    (Bonferroni).

    Args:
        sigma: In units of a normal distribution.
        blocks: g, at least 2.
        tests: How many are made.
    """
    from scipy.special import ndtr, stdtrit

    return float(-stdtrit(blocks - 1, ndtr(-sigma) / tests))


def noise_free(sigma1: float, floor: float) -> float:
    """The least that σ₁ can be without noise, ``√(σ₁² − floor²)``, or 0.

    Noise makes the largest singular value of a mean larger. A direction of strength s in noise of
    deviation e per entry shows as ``σ₁² = (s² + H e²)(s² + E e²) / s²`` and the floor is
    ``e (√H + √E)`` (Benaych-Georges and Nadakuditi 2012, example 3.1), which gives
    ``√(σ₁² − floor²) = s − √(H E) e² / s``: below s, and by less the more positions there are.
    """
    return math.sqrt(max((sigma1 - floor) * (sigma1 + floor), 0.0))


def sigma1_estimate(sigma1: float, stderr: float, floor: float) -> Estimate:
    """σ₁ of a mean. It is never below the true one by more than its scatter (a norm is convex)."""
    sigma1, floor = float(sigma1), float(floor)
    if not (math.isfinite(sigma1) and math.isfinite(floor)):
        return Estimate(sigma1, math.nan, math.nan, float(stderr))
    return Estimate(sigma1, noise_free(sigma1, floor), sigma1, float(stderr))


def selectivity_estimate(values: np.ndarray, stderr: float, floor: float, leading: int) -> Estimate:
    """``(σ₁ + … + σₙ) / Σσ``, whose denominator noise inflates more than its numerator.

    Args:
        values: ``[order]`` singular values, descending.
        stderr: Of the ratio.
        floor: Noise floor of σ₁.
        leading: n.
    """
    values = np.asarray(values, np.float64)
    total = float(values.sum())
    if not (math.isfinite(total) and math.isfinite(floor) and total > 0):
        return Estimate(math.nan, math.nan, math.nan, float(stderr))
    least = np.sqrt(np.maximum((values - floor) * (values + floor), 0.0))
    top = float(values[:leading].sum())
    high = top / float(least.sum()) if least.sum() > 0 else math.inf
    return Estimate(
        top / total, float(least[:leading].sum()) / total, min(high, 1.0), float(stderr)
    )


def difference_estimate(value: float, noise: float, stderr: float) -> Estimate:
    """The size of a relative difference of means, to which the noise of both adds in quadrature.

    Args:
        value: As measured, 0 or more; infinite where the reference is nothing.
        noise: What it would be by noise alone; NaN where that is not known.
        stderr: Its standard error.
    """
    if value == 0 or math.isinf(value):  # whatever noise there is: equal, or beyond all bounds
        return Estimate(value, value, value, 0.0)
    return Estimate(value, value if math.isnan(noise) else noise_free(value, noise), value, stderr)


def ratio(a: Estimate, b: Estimate) -> Estimate:
    """a/b, their errors taken as independent; if they go together, the error is smaller."""
    if not (a.known and b.known) or b.value <= 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan)
    value = a.value / b.value
    return Estimate(
        value,
        a.low / b.value,
        a.high / b.low if b.low > 0 else math.inf,
        math.hypot(a.stderr, value * b.stderr) / b.value,
    )


def at_least(estimate: Estimate, bound: float, errors: float) -> Judgement:
    """Judge ``measure ≥ bound``.

    Passed if even ``low − errors · stderr`` reaches the bound, failed if not even
    ``high + errors · stderr`` does.

    Args:
        estimate: The measure.
        bound: The least allowed.
        errors: Standard errors that count, from `critical`.
    """
    if not estimate.known:
        return UNKNOWN
    margin = errors * estimate.stderr
    if estimate.low - margin >= bound:
        return Judgement("passed")
    if estimate.high + margin < bound:
        return Judgement("failed")
    return Judgement("undecided", _factor(estimate, bound, errors))


def at_most(estimate: Estimate, bound: float, errors: float) -> Judgement:
    """Judge ``measure ≤ bound``, the mirror of `at_least`."""
    if estimate.low == math.inf:
        return Judgement("failed")
    mirrored = Estimate(-estimate.value, -estimate.high, -estimate.low, estimate.stderr)
    if estimate.known and not math.isfinite(estimate.high):
        # Noise leaves it open at the top: nothing passes, but what is certainly above fails.
        failed = estimate.low - errors * estimate.stderr > bound
        return Judgement("failed") if failed else UNKNOWN
    return at_least(mirrored, -bound, errors)


def _factor(estimate: Estimate, bound: float, errors: float) -> float:
    """How many times as many positions decide it, four times in five.

    With k times as many, the standard error s falls to s/√k and what noise adds (b, half the
    range from low to high) to b/k. The truth is uncertain by s around the middle of the range,
    the next measurement by s/√k around the truth; it decides if it lies further than
    ``errors · s/√k + b/k`` from the bound, on either side. The smallest k for which that has the
    chance `CHANCE`.
    """
    from scipy.special import ndtr

    if not math.isfinite(estimate.high):
        return math.nan
    gap = abs((estimate.low + estimate.high) / 2 - bound)
    noise = (estimate.high - estimate.low) / 2

    def decides(k: float) -> bool:
        need = errors * estimate.stderr / math.sqrt(k) + noise / k
        spread = estimate.stderr * math.sqrt(1 + 1 / k)
        if spread == 0:
            return gap > need
        return bool(ndtr((gap - need) / spread) + ndtr((-gap - need) / spread) >= CHANCE)

    low, high = 0.0, math.log(MOST_FACTOR)
    if not decides(math.exp(high)):
        return math.inf
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if decides(math.exp(middle)) else (middle, high)
    return math.exp(high)


@dataclass(frozen=True)
class Horizon:
    """How far a memory reaches.

    Attributes:
        measured: Largest delay within it; None if there is none.
        certain: Largest delay that is within it beyond doubt.
        doubtful: ``[delay]``, for each delay that is neither within nor without beyond doubt, how
            many times as many positions should settle it; NaN elsewhere.
    """

    measured: int | None
    certain: int | None
    doubtful: np.ndarray


def floor_horizon(
    sigma1: np.ndarray, stderr: np.ndarray, floor: np.ndarray, errors: np.ndarray
) -> Horizon:
    """How far σ₁ stands above its noise floor.

    The floor scatters about as σ₁ does, so that their difference has the standard error √2 s.
    With ``m = errors · √2 s``, a delay is within the horizon if σ₁ exceeds the floor by m (the
    critical level of Currie 1968: noise hardly ever does), and certainly within if by 2 m (his
    detection limit: what truly lies there hardly ever falls below the critical level).

    Args:
        sigma1: ``[delay]``.
        stderr: ``[delay]``, s.
        floor: ``[delay]``.
        errors: ``[delay]`` standard errors that count, from `critical`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        margin = errors * np.sqrt(2.0) * stderr
        excess = sigma1 - floor
        within, certain = excess > margin, excess > 2 * margin
        free = np.sqrt(np.maximum(excess * (sigma1 + floor), 0.0))
        factor = np.maximum(((floor + 2 * margin + stderr) / free) ** 2, 1.0)
        doubtful = np.where(within & ~certain, factor, np.nan)
    doubtful[~np.isfinite(excess) | ~np.isfinite(margin)] = np.inf
    return Horizon(_last(within), _last(certain), doubtful)


def fraction_horizon(
    sigma1: np.ndarray,
    stderr: np.ndarray,
    floor: np.ndarray,
    errors: np.ndarray,
    fraction: float,
) -> Horizon:
    """How far σ₁ is at least a fraction of what it is at delay 0.

    Within are the delays whose ratio may reach the fraction, certainly within those whose ratio
    does, by `at_least`; a delay that is neither is certainly without.

    Args:
        sigma1: ``[delay]``, delay 0 first.
        stderr: ``[delay]``.
        floor: ``[delay]``.
        errors: ``[delay]``, from `critical`.
        fraction: Above 0, at most 1.
    """
    estimates = [sigma1_estimate(*v) for v in zip(sigma1, stderr, floor, strict=True)]
    found = [
        at_least(ratio(e, estimates[0]), fraction, c)
        for e, c in zip(estimates, errors, strict=True)
    ]
    if estimates[0].known and sigma1[0] > 0:
        found[0] = Judgement("passed")  # delay 0 is 1 of itself, without error
    open_ = np.array([j.status == "undecided" for j in found])
    passed = np.array([j.status == "passed" for j in found])
    with np.errstate(invalid="ignore"):
        measured = np.asarray(sigma1) >= fraction * np.asarray(sigma1)[0]
    factors = np.array([math.inf if math.isnan(j.factor) else j.factor for j in found])
    return Horizon(_last(measured), _last(passed), np.where(open_, factors, np.nan))


def horizon_at_least(horizon: Horizon, least: int) -> Judgement:
    """Judge ``horizon ≥ least``.

    Passed if a delay from `least` on is certainly within; failed if none of them is even in
    doubt; undecided otherwise.
    """
    if horizon.certain is not None and horizon.certain >= least:
        return Judgement("passed")
    doubt = horizon.doubtful[least:]
    doubt = doubt[~np.isnan(doubt)]
    if not doubt.size:
        return Judgement("failed")
    return Judgement("undecided", float(doubt.min()))


def _last(mask: np.ndarray) -> int | None:
    found = np.flatnonzero(mask)
    return int(found[-1]) if found.size else None


def positions_needed(judgement: Judgement, positions: int | None) -> int | None:
    """Positions that should decide an undecided bound; None where that cannot be said."""
    if judgement.status != "undecided" or not positions or not judgement.factor <= MOST_FACTOR:
        return None
    needed = positions * judgement.factor
    step = 10 ** max(int(math.log10(needed)) - 1, 0)  # two digits, rounded up
    return math.ceil(needed / step) * step
