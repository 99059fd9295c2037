"""The measures, as functions of plain arrays.

Every function works in float64 on trailing axes: leading axes (group, delay, ...) pass through.
A mean over nothing (count 0) is NaN, and so is every measure of it; no function warns.

Sources: "V18" is Verwimp et al., "State Gradients for RNN Memory Analysis" (BlackboxNLP 2018);
"V20" is Verwimp et al., "State Gradients for Analyzing Memory in LSTM Language Models" (2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "Decay",
    "Whitening",
    "fit_decay",
    "jackknife",
    "mean_matrix",
    "noise_matrix",
    "principal_angles",
    "random_cosine",
    "random_relative_memory",
    "relative_difference",
    "relative_memory",
    "selectivity",
    "singular_values",
    "subspace_cosine",
    "svd",
    "unit_length",
    "whiten",
]


@dataclass(frozen=True)
class Whitening:
    """A change of basis that gives the embeddings of a vocabulary unit variance everywhere.

    Attributes:
        D: ``[embedding, direction]`` with ``D @ D.T`` the covariance of the embeddings; a mean
            gradient G is whitened as ``G @ D``. `direction` has `rank` entries.
        Z: ``[direction, embedding]``, the pseudo-inverse of D; ``Z @ (e - mean)`` is whitened.
        condition_number: Largest over smallest singular value of Z; NaN when `rank` is 0.
        rank: Number of directions in which the embeddings vary at all.
        full_rank: True when D is the Cholesky factor of the covariance (lower triangular, positive
            diagonal); False when the covariance is singular and D spans its support only.
    """

    D: np.ndarray
    Z: np.ndarray
    condition_number: float
    rank: int
    full_rank: bool


def whiten(embeddings: np.ndarray) -> Whitening:
    """Whiten as V20 does, equations 6 to 10: ``cov = D Dᵀ``, ``Z = D⁻¹``.

    The covariance is that of the centred embeddings, divided by V: every type of the vocabulary
    counts once. D is its Cholesky factor, taken from a QR decomposition of the centred embeddings
    (``X = Q R`` gives ``cov = Rᵀ R``), which does not square their condition number.

    Where the covariance is singular (fewer than E + 1 types, dead dimensions, one-hot embeddings),
    D is ``W S`` and Z is ``S⁻¹ Wᵀ`` on its support, with ``cov = W S² Wᵀ`` and S descending. The
    singular values of ``G @ D`` do not depend on which square root is taken; the directions do.
    A direction counts as absent when the embeddings' standard deviation along it is below
    10 eps times their root-mean-square length, with the eps of the array's own type: less than
    that cannot be told from the rounding of the embeddings.

    Args:
        embeddings: ``[token, embedding]``, one row for each type.
    """
    given = np.asarray(embeddings)
    if given.ndim != 2 or 0 in given.shape:
        raise ValueError(f"embeddings must be [token, embedding], not of shape {given.shape}")
    eps = np.finfo(given.dtype if given.dtype.kind == "f" else np.float64).eps
    x = given.astype(np.float64)
    tokens, size = x.shape
    negligible = 10.0 * eps * np.linalg.norm(x) / np.sqrt(tokens)
    x -= x.mean(axis=0)
    x /= np.sqrt(tokens)
    r = np.asarray(np.linalg.qr(x, mode="r"))
    _, s, wt = np.linalg.svd(r, full_matrices=False)
    rank = int(np.count_nonzero(s > negligible))
    condition = float(s[0] / s[rank - 1]) if rank else float("nan")
    if rank == size:
        d = (r * np.where(np.diag(r) < 0, -1.0, 1.0)[:, None]).T
        z = np.linalg.inv(d)
    else:
        s, wt = s[:rank], wt[:rank]
        d, z = wt.T * s, wt / s[:, None]
    return Whitening(d, z, condition, rank, rank == size)


def mean_matrix(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Average matrices from their sum, ``G = S / N`` (V18 and V20, section 3).

    Args:
        total: ``[..., unit, embedding]``, sums.
        count: ``[...]``, how many matrices each sum holds; 0 gives NaN.
    """
    n = np.asarray(count, dtype=np.float64)[..., None, None]
    return np.asarray(total, dtype=np.float64) / np.where(n > 0, n, np.nan)


def noise_matrix(
    sum_total: np.ndarray, count_total: np.ndarray, half_sum: np.ndarray, half_count: np.ndarray
) -> np.ndarray:
    """Half the difference of the means of two random halves, ``(S₊/N₊ − S₋/N₋) / 2``.

    What is common to all positions cancels exactly; what is left scatters as the mean over all
    positions does. Its largest singular value is therefore what that mean would show if it had no
    consistent direction at all. NaN where a half is empty.

    Args:
        sum_total: ``[..., unit, embedding]``, sum over all positions.
        count_total: ``[...]``.
        half_sum: ``[..., unit, embedding]``, sum over the positions of the first half.
        half_count: ``[...]``.
    """
    other = np.asarray(sum_total, dtype=np.float64) - half_sum
    other_count = np.asarray(count_total) - np.asarray(half_count)
    return 0.5 * (mean_matrix(half_sum, half_count) - mean_matrix(other, other_count))


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Singular values, largest first (V20, equation 1).

    Args:
        matrix: ``[..., unit, embedding]``.

    Returns:
        ``[..., order]`` with ``order = min(unit, embedding)``; NaN for a matrix that is not finite.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    finite = np.isfinite(matrix).all(axis=(-2, -1))
    values = np.full((*finite.shape, min(matrix.shape[-2:])), np.nan)
    if values.size:
        values[finite] = np.linalg.svd(matrix[finite], compute_uv=False)
    return values


def svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reduced singular value decomposition ``G = U diag(s) Vᵀ`` (V20, equation 1).

    Signs: each right singular vector (a row of Vᵀ) has its entry of largest magnitude positive
    (the first, where several tie); the left one follows. Directions of equal singular values are
    determined only as a subspace.

    Args:
        matrix: ``[..., unit, embedding]``.

    Returns:
        U ``[..., unit, order]``, s ``[..., order]`` descending, Vᵀ ``[..., order, embedding]``;
        NaN for a matrix that is not finite.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    finite = np.isfinite(matrix).all(axis=(-2, -1), keepdims=True)
    u, s, vt = np.linalg.svd(np.where(finite, matrix, 0.0), full_matrices=False)
    largest = np.take_along_axis(vt, np.abs(vt).argmax(axis=-1, keepdims=True), axis=-1)
    sign = np.where(largest < 0, -1.0, 1.0)
    u, vt = u * np.swapaxes(sign, -1, -2), vt * sign
    return (
        np.where(finite, u, np.nan),
        np.where(finite[..., 0], s, np.nan),
        np.where(finite, vt, np.nan),
    )


def selectivity(values: np.ndarray, leading: int = 1) -> np.ndarray:
    """Share of the leading singular values, ``(σ₁ + … + σₙ) / Σσ`` (V20, section 4.3).

    Args:
        values: ``[..., order]``, descending.
        leading: n; all of them where there are fewer.

    Returns:
        ``[...]``, from 0 to 1; NaN where all values are 0.
    """
    values = np.asarray(values, dtype=np.float64)
    total = values.sum(axis=-1)
    return values[..., :leading].sum(axis=-1) / np.where(total > 0, total, np.nan)


def relative_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Signed difference in units of the reference, ``(a − b) / b``.

    Args:
        a: ``[...]``, not negative.
        b: ``[...]``, the reference, not negative.

    Returns:
        ``[...]``; 0 where both are 0 (nothing is as much as nothing), infinite where b alone is.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where((a == 0) & (b == 0), 0.0, (a - b) / b)


def principal_angles(a: np.ndarray, b: np.ndarray, leading: int = 1) -> np.ndarray:
    """Angles between the subspaces of the embedding space that two matrices respond to most.

    The subspaces are spanned by the n leading right singular vectors of each; the cosines of the
    principal angles are the singular values of ``V_aᵀ V_b`` (Björck and Golub 1973). Small angles
    come from the sines, as `scipy.linalg.subspace_angles` finds them (Knyazev and Argentati 2002).

    Args:
        a: ``[..., unit of a, embedding]``.
        b: ``[..., unit of b, embedding]``; the units need not be as many.
        leading: n; all directions where either has fewer.

    Returns:
        ``[..., n]`` degrees, the largest first. NaN where a matrix is not finite or its rank is
        below n: then no n directions stand out.
    """
    from scipy.linalg import subspace_angles

    n = min(leading, *np.shape(a)[-2:], *np.shape(b)[-2:])
    (_, values_a, va), (_, values_b, vb) = svd(a), svd(b)
    lead = np.broadcast_shapes(va.shape[:-2], vb.shape[:-2])
    angles = np.full((*lead, n), np.nan)
    eps = np.finfo(np.float64).eps
    for i in np.ndindex(*lead):
        # Comparisons with NaN are false: a matrix that is not finite is left out too.
        if all(s[i][n - 1] > eps * max(s[i].shape) * s[i][0] for s in (values_a, values_b)):
            angles[i] = np.degrees(subspace_angles(va[i][:n].T, vb[i][:n].T))
    return angles


def unit_length(direction: np.ndarray) -> np.ndarray:
    """Scale vectors to length 1.

    Args:
        direction: ``[..., embedding]``.

    Returns:
        ``[..., embedding]``; NaN for a vector that is zero or not finite.
    """
    d = np.asarray(direction, dtype=np.float64)
    # By the largest entry first, so that no square overflows or underflows.
    largest = np.abs(d).max(axis=-1, keepdims=True, initial=0.0)
    d = d / np.where((largest > 0) & np.isfinite(largest), largest, np.nan)
    return d / np.linalg.norm(d, axis=-1, keepdims=True)


def relative_memory(matrix: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """How well a direction is remembered beside the best one, ``m = ‖G d‖ / σ₁`` (V20, eq. 20).

    d is scaled to unit length here, so that ``0 ≤ m ≤ 1`` and ``m = 1`` for the first right
    singular vector. For a whitened G (``G D``) d must be whitened too (``Z (ē_a − ē_b)``): the
    length counts after whitening. (Equation 14 of V20 scales before; its m is this one times
    ``‖Z u‖`` with u the unscaled difference at unit length, and has no upper bound. Their
    published code scales after, as here.)

    Args:
        matrix: ``[..., unit, embedding]``.
        direction: ``[..., embedding]``, of any length but 0; leading axes broadcast.

    Returns:
        ``[...]``; NaN where the matrix is zero or not finite, or the direction is.
    """
    g, d = np.asarray(matrix, dtype=np.float64), unit_length(direction)
    # The measure has no scale; with entries near 1 no square underflows.
    largest = np.abs(g).max(axis=(-2, -1), keepdims=True, initial=0.0)
    g = g / np.where((largest > 0) & np.isfinite(largest), largest, np.nan)
    moved = np.linalg.norm((g @ d[..., None])[..., 0], axis=-1)
    return np.minimum(moved / singular_values(g)[..., 0], 1.0)  # 1 + eps is rounding


def subspace_cosine(matrix: np.ndarray, direction: np.ndarray, leading: int = 1) -> np.ndarray:
    """Cosine between a direction and the n best remembered ones, ``‖V_nᵀ d‖`` (V20, eq. 16).

    d is scaled to unit length here. Where the matrix has a rank below n, V_n holds as many
    directions as it has: the others answer to nothing and are no directions of it. Where
    ``σ_n = σ_{n+1}`` the n best are not determined, nor is the cosine.

    Args:
        matrix: ``[..., unit, embedding]``.
        direction: ``[..., embedding]``, of any length but 0; leading axes broadcast.
        leading: n; all directions where there are fewer.

    Returns:
        ``[...]``, from 0 to 1; NaN where the matrix is zero or not finite, or the direction is.
    """
    _, s, vt = svd(matrix)
    vt, held = vt[..., :leading, :], _held(s, np.shape(matrix))[..., :leading]
    along = (vt @ unit_length(direction)[..., None])[..., 0]
    cosine = np.linalg.norm(np.where(held, along, 0.0), axis=-1)
    return np.minimum(np.where(held[..., 0], cosine, np.nan), 1.0)


def _held(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which singular values are not rounding; False where they are NaN."""
    eps = np.finfo(np.float64).eps
    return (values > eps * max(shape[-2:]) * values[..., :1]) & (values > 0)


def random_relative_memory(
    values: np.ndarray, dimensions: int, *, samples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Relative memory of directions that point anywhere with equal chance.

    With x uniform on the unit sphere, ``m² = Σ σᵢ² xᵢ² / σ₁²``: V only turns the sphere.

    Args:
        values: ``[..., order]``, singular values, descending.
        dimensions: Of the space, at least `order`; G does not answer to those beyond.
        samples: How many directions; the same ones for every set of values.
        seed: Of the directions.

    Returns:
        ``[..., sample]``; NaN where the values are.
    """
    values = np.asarray(values, dtype=np.float64)
    order = values.shape[-1]
    x = np.random.default_rng(seed).standard_normal((samples, max(dimensions, order))) ** 2
    share = values / np.where(values[..., :1] > 0, values[..., :1], np.nan)
    return np.sqrt((share**2) @ (x[:, :order] / x.sum(1, keepdims=True)).T)


def random_cosine(
    dimensions: int, leading: int, quantiles: Sequence[float] = (0.025, 0.5, 0.975)
) -> np.ndarray:
    """Quantiles of the cosine between a random direction and any subspace of n dimensions.

    The squared cosine of a direction uniform on the sphere of a space of r dimensions follows
    the distribution Beta(n/2, (r − n)/2).

    Args:
        dimensions: r.
        leading: n, at least 1; all r where there are fewer.
        quantiles: From 0 to 1.

    Returns:
        ``[quantile]``; 1 where the subspace is the whole space.
    """
    from scipy.stats import beta

    if leading >= dimensions:
        return np.ones(len(quantiles))
    return np.sqrt(beta.ppf(quantiles, leading / 2, (dimensions - leading) / 2))


def jackknife(
    block_sum: np.ndarray,
    block_count: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Estimate a standard error by leaving out one contiguous block of the corpus at a time.

    With θ the statistic of the mean over all blocks, θ₍ᵦ₎ that without block b, and
    ``h = N / N_b``, the pseudo-values ``h θ − (h − 1) θ₍ᵦ₎`` estimate θ each from one block, and ::

        variance = 1/g · Σ_b (pseudo_b − θ_J)² / (h_b − 1),   θ_J = g θ − Σ_b (1 − 1/h_b) θ₍ᵦ₎

    over the g blocks that hold anything. For blocks of one size this is the usual
    ``(g − 1)/g · Σ (θ₍ᵦ₎ − mean θ₍ᵦ₎)²``; for a mean it is unbiased whatever the sizes. (Busing,
    Meijer, van der Leeden, "Delete-m Jackknife for Unequal m", Statistics and Computing 9, 1999.)
    With g blocks the result itself is uncertain by about 1/√(2(g − 1)).

    Args:
        block_sum: ``[block, *lead, unit, embedding]``, sum of each block.
        block_count: ``[block, *lead]``, matrices in each sum; a block that holds none at some
            place has no say there.
        statistic: Maps means ``[*lead, unit, embedding]`` to ``[*lead, *out]``.

    Returns:
        ``[*lead, *out]``; NaN where fewer than two blocks hold anything.
    """
    counts = np.asarray(block_count, dtype=np.float64)
    total = np.asarray(np.sum(block_sum, axis=0, dtype=np.float64))
    n = np.asarray(counts.sum(axis=0))
    held = counts > 0
    g = held.sum(axis=0)
    theta = np.asarray(statistic(mean_matrix(total, n)), dtype=np.float64)

    def spread(x: np.ndarray) -> np.ndarray:
        return x.reshape(x.shape + (1,) * (theta.ndim - x.ndim))

    # 1/h; a block that holds nothing, or everything, has no say.
    share = counts / np.where(n > 0, n, np.nan)
    share = np.where(held & (share < 1), share, np.nan)
    # θ₍ᵦ₎ − θ rather than θ₍ᵦ₎: the sums below lose no digits to θ.
    moved = np.empty((len(counts), *theta.shape))
    for b in range(len(counts)):
        rest = statistic(mean_matrix(total - block_sum[b], n - counts[b]))
        moved[b] = np.where(spread(held[b]), rest - theta, 0.0)
    odds = np.stack([spread(x) for x in 1 / share - 1])  # h − 1
    says = np.isfinite(odds)
    odds = np.where(says, odds, 1.0)
    # θ_J − θ = −Σ (1 − 1/h)(θ₍ᵦ₎ − θ), and pseudo_b − θ = −(h − 1)(θ₍ᵦ₎ − θ)
    bias = -np.where(says, odds / (1 + odds) * moved, 0.0).sum(axis=0)
    variance = np.where(says, (odds * moved + bias) ** 2 / odds, 0.0).sum(axis=0)
    return np.sqrt(variance / spread(np.where(g > 1, g, np.nan)))


@dataclass(frozen=True)
class Decay:
    """A fitted exponential ``σ₁(τ) ≈ a · exp(−b τ)``.

    Attributes:
        a: Value at delay 0.
        b: Rate per time step; 1/b is the time constant.
        a_stderr: Standard error of a from the residuals; NaN with fewer than three points.
        b_stderr: The same of b.
        r_squared: Share of the variance of the values that the curve explains; NaN where they
            do not vary.
    """

    a: float
    b: float
    a_stderr: float
    b_stderr: float
    r_squared: float

    @property
    def time_constant(self) -> float:
        """1/b, in time steps; infinite for b = 0."""
        return 1.0 / self.b if self.b else float("inf")


def fit_decay(delays: np.ndarray, sigma1: np.ndarray) -> Decay:
    """Fit ``a · exp(−b τ)`` by non-linear least squares, all delays weighing the same.

    V20, equation 13. The standard errors come from the residuals (covariance
    ``s² (JᵀJ)⁻¹``, ``s² = Σ r² / (n − 2)``): they hold if the curve is an exponential, which
    a trained model's need not be.

    Args:
        delays: ``[delay]``.
        sigma1: ``[delay]``, largest singular values; NaN are left out.

    Returns:
        All NaN when fewer than two distinct delays are left, or no value is positive.
    """
    from scipy.optimize import least_squares

    x = np.asarray(delays, dtype=np.float64)
    y = np.asarray(sigma1, dtype=np.float64)
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    nan = float("nan")
    if len(np.unique(x)) < 2 or not (y > 0).any():
        return Decay(nan, nan, nan, nan, nan)
    span, scale = np.ptp(x), y.max()
    u, v = (x - x.min()) / span, y / scale  # the fit is the same, its numbers are near 1
    positive = v > 0

    # Start from the straight line through the logarithms, each weighing as its value does.
    weight = np.where(positive, v, 0.0)
    log_v = np.log(np.where(positive, v, 1.0))
    mean_u = (weight * u).sum() / weight.sum()
    mean_l = (weight * log_v).sum() / weight.sum()
    spread = (weight * (u - mean_u) ** 2).sum()
    slope = (weight * (u - mean_u) * (log_v - mean_l)).sum() / spread if spread > 0 else -1.0

    def curve(p: np.ndarray) -> np.ndarray:
        return np.exp(np.clip(-p[1] * u, -500.0, 500.0))

    found = least_squares(
        lambda p: p[0] * curve(p) - v,
        [np.exp(mean_l - slope * mean_u), -slope],
        jac=lambda p: np.stack([curve(p), -p[0] * u * curve(p)], axis=-1),
        method="lm",
        xtol=1e-14,
        ftol=1e-14,
        gtol=1e-14,
    )
    a, b = found.x
    freedom = len(x) - 2
    varied = float(((v - v.mean()) ** 2).sum())
    errors = np.full((2, 2), nan)
    # A decay too steep for the data has slopes that overflow; its errors stay unknown.
    with np.errstate(over="ignore", invalid="ignore"):
        normal = found.jac.T @ found.jac
    if freedom > 0 and np.isfinite(normal).all() and np.linalg.cond(normal) < 1e14:
        errors = 2.0 * found.cost / freedom * np.linalg.inv(normal)
    # Back to the given units; a moves with the shift of the origin: a₀ = a exp(b x_min / span).
    back = float(np.exp(np.clip(b * x.min() / span, -500.0, 500.0)))
    by = np.array([back, a * back * x.min() / span])
    return Decay(
        a=float(a * back * scale),
        b=float(b / span),
        a_stderr=float(scale * np.sqrt(by @ errors @ by)),
        b_stderr=float(np.sqrt(errors[1, 1]) / span),
        r_squared=float(1.0 - 2.0 * found.cost / varied) if varied > 0 else nan,
    )
