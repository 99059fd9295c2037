"""Statistical honesty: planted Jacobians, many seeds, known answers.

Sums are built here by a few lines of numpy of their own.
"""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.analyzer import metrics
from mnemoscope.analyzer.result import build
from mnemoscope.analyzer.sums import Sums
from mnemoscope.analyzer.tables import curves

H, E, N, CHUNK, BLOCKS = 12, 8, 600, 30, 10


def halves(n: int, chunk: int, rng: np.random.Generator) -> np.ndarray:
    """[position] True in the first half: contiguous chunks assigned at random, balanced."""
    first = np.arange(-(-n // chunk)) % 2 == 0
    return np.repeat(rng.permutation(first), chunk)[:n]


def sums_of(jacobians: np.ndarray, first: np.ndarray) -> Sums:
    """Sums of [position, delay, unit, embedding]; the last d positions have no delay d."""
    n, delays = jacobians.shape[:2]
    owner = np.arange(n) * BLOCKS // n
    there = np.arange(n)[:, None] < n - np.arange(delays)  # [position, delay]
    kept = np.where(there[..., None, None], jacobians, 0.0)
    return Sums(
        block_sum=np.stack([kept[owner == b].sum(0)[None] for b in range(BLOCKS)]),
        block_count=np.stack([there[owner == b].sum(0)[None] for b in range(BLOCKS)]),
        half_sum=kept[first].sum(0)[None],
        half_count=there[first].sum(0)[None],
    )


def scatter(rng: np.random.Generator, length: int) -> np.ndarray:
    """[position, unit, embedding] of unit variance, a moving average over `length` positions."""
    white = rng.standard_normal((N + length - 1, H, E))
    total = np.concatenate([np.zeros((1, H, E)), white.cumsum(0)])
    return (total[length:] - total[:-length]) / np.sqrt(length)


def entry_error(length: int) -> float:
    """Standard deviation of an entry of the mean of `scatter`, from its autocovariance."""
    lags = np.arange(1, length)
    return np.sqrt((1 + 2 * ((1 - lags / length) * (1 - lags / N)).sum()) / N)


def cut_by_chunks(length: int) -> float:
    """What borders of chunks cost: those on both sides of one are correlated, and may part.

    With K the covariance of the sums of n chunks, the mean over all has variance 1ᵀK1, and the
    half-difference of balanced halves n/(n − 1) · (tr K − 1ᵀK1/n).
    """
    lag = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    n = N // CHUNK
    k = np.clip(1 - lag / length, 0, None).reshape(n, CHUNK, n, CHUNK).sum((1, 3))
    return np.sqrt(n / (n - 1) * (np.trace(k) - k.sum() / n) / k.sum())


def common(rng: np.random.Generator, strength: float) -> np.ndarray:
    u, v = rng.standard_normal(H), rng.standard_normal(E)
    return strength * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))


def measure(jacobians: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """σ₁ of the mean, and its noise floor."""
    s = sums_of(jacobians[:, None], halves(N, CHUNK, rng))
    total, count = s.block_sum.sum(0), s.block_count.sum(0)
    mean = metrics.mean_matrix(total, count)
    noise = metrics.noise_matrix(total, count, s.half_sum, s.half_count)
    return tuple(metrics.singular_values(m)[0, 0, 0] for m in (mean, noise))


# Neighbours that share their noise over 10 positions; chunks are three times as long.
@pytest.mark.parametrize("length", [1, 10])
def test_without_a_common_direction_sigma1_is_at_the_floor(length):
    found = np.array(
        [measure(scatter(rng, length), rng) for rng in map(np.random.default_rng, range(150))]
    )
    sigma1, floor = found.mean(axis=0)
    assert floor / sigma1 == pytest.approx(cut_by_chunks(length), abs=0.02)
    assert floor / sigma1 == pytest.approx(1.0, abs=0.1)
    # and both are what random matrices of that variance show
    rng = np.random.default_rng(7)
    expected = np.linalg.svd(
        entry_error(length) * rng.standard_normal((2000, H, E)), compute_uv=False
    )[:, 0].mean()
    assert sigma1 == pytest.approx(expected, rel=0.04)
    # Half of the seeds on either side, within four standard deviations.
    assert abs((found[:, 0] > found[:, 1]).mean() - 0.5) < 4 * 0.5 / np.sqrt(150) + 0.1


def test_halves_by_position_would_understate_the_floor():
    """Why chunks: with single positions, halves share what neighbours share."""
    ratios = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = scatter(rng, 10)
        first = rng.permutation(np.arange(N) % 2 == 0)
        noise = metrics.noise_matrix(x.sum(0), np.array(N), x[first].sum(0), np.array(N // 2))
        ratios.append(metrics.singular_values(noise)[0] / metrics.singular_values(x.mean(0))[0])
    assert np.mean(ratios) < 0.5


@pytest.mark.parametrize("length", [1, 10])
@pytest.mark.parametrize("strength", [0.5, 1.0, 3.0])
def test_a_common_direction_shows_with_its_strength(length, strength):
    strength = strength * np.sqrt(length)
    found = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        found.append(measure(scatter(rng, length) + common(rng, strength), rng))
    sigma1, floor = np.mean(found, axis=0)
    # A direction of strength s in noise of deviation e per entry has, for s > e (H E)^(1/4),
    # σ₁ = √((s² + H e²)(s² + E e²)) / s (Benaych-Georges and Nadakuditi 2012, example 3.1).
    e, s = entry_error(length), strength
    expected = np.sqrt((s**2 + H * e**2) * (s**2 + E * e**2)) / s
    assert sigma1 == pytest.approx(expected, rel=0.03)
    assert floor < 0.6 * sigma1
    assert min(a - b for a, b in found) > 0


@pytest.mark.parametrize("length", [1, 10])
@pytest.mark.parametrize(
    ("name", "statistic"),
    [
        ("sigma1", lambda s: s[..., 0]),
        ("share of one", metrics.selectivity),
        ("share of five", lambda s: metrics.selectivity(s, 5)),
    ],
)
def test_jackknife_agrees_with_the_spread_over_corpora(length, name, statistic):
    shape = np.linspace(1.0, 0.2, E)
    base = np.linalg.qr(np.random.default_rng(1).standard_normal((H, E)))[0] * shape

    def measured(mean):
        return statistic(metrics.singular_values(mean))

    values, errors = [], []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        s = sums_of((scatter(rng, length) + base * np.sqrt(length))[:, None], halves(N, CHUNK, rng))
        sums, counts = s.block_sum[:, 0], s.block_count[:, 0]
        values.append(measured(sums.sum(0) / N)[0])
        errors.append(metrics.jackknife(sums, counts, measured)[0])
    ratio = np.sqrt(np.mean(np.square(errors))) / np.std(values, ddof=1)
    assert 1 / 1.5 < ratio < 1.5


def test_a_curve_of_noise_is_hardly_ever_called_clear():
    """Of points that are noise, at most one in ten is more than two errors above its floor."""
    called = []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        noise = np.stack([scatter(rng, 5) for _ in range(4)], axis=1)
        tree = build(
            {"h": sums_of(noise, halves(N, CHUNK, rng))},
            groups=["all"],
            embeddings=rng.standard_normal((40, E)),
            state_info={},
            attributes={},
        )
        for normalization in ("none", "whitened"):
            called.append(curves(tree, normalization=normalization)[0].clear)
    assert np.mean(called) < 0.1
