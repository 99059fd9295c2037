"""How far the mean gradients of two results are apart, and what noise has to do with it.

For `compare` and for the parity of a budget: both say the same of the same two results.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from .metrics import jackknife, mean_matrix
from .tables import Curve, curves

# Error of a relative difference that the analysis itself may make, by method and precision:
# the bars of tests/test_exact.py. TF32 keeps ten bits.
_EXACTNESS = {
    ("jvp", "float32"): 1e-5,
    ("jvp", "float64"): 1e-9,
    ("fd", "float32"): 5e-3,
    ("fd", "float64"): 1e-7,
}
_TF32 = 5e-3


def plan_difference(a: xr.DataTree, b: xr.DataTree) -> str | None:
    """Why two results need not follow the same positions of one corpus in the same blocks.

    Returns:
        The name of what differs, or is not stated: an attribute, or ``delays``; None where the
        two follow the same positions.
    """
    x, y = a.attrs, b.attrs
    wanted = ["corpus_sha256", "corpus_positions", "positions", "stretches", "blocks"]
    # Only a sample depends on the seed, and on the delays, which its stretches suit.
    sample = x.get("positions") != x.get("corpus_positions")
    if sample:
        wanted.append("seed")
    for key in wanted:
        if key not in x or key not in y or x[key] != y[key]:
            return key
    return "delays" if sample and a.sizes["delay"] != b.sizes["delay"] else None


def held_blocks(tree: xr.DataTree, state: str, group: str) -> np.ndarray:
    """``[delay]``, how many blocks of the jackknife hold a derivative of a group."""
    node = tree[state]
    if "block_count" not in node.data_vars:
        stated = tree.attrs.get("blocks")
        known = int(stated) if isinstance(stated, int | np.integer) else 0
        return np.full(tree.sizes["delay"], known)
    index = [str(g) for g in tree.coords["group"].values].index(group)
    return np.asarray((node.data_vars["block_count"].values[:, index] > 0).sum(axis=0))


def relative_size(difference: ArrayLike, size: ArrayLike) -> np.ndarray:
    """``difference / size`` of norms: 0 for 0/0, infinite for a difference to nothing."""
    x, y = np.asarray(difference, np.float64), np.asarray(size, np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where((x == 0) & (y == 0), 0.0, x / y)


class Side:
    """One of two results, at the delays that both have.

    Args:
        tree: The result.
        normalization: ``whitened`` or ``none``.
        group: Class of input words.
        delays: How many are compared.
    """

    def __init__(self, tree: xr.DataTree, normalization: str, group: str, delays: int) -> None:
        self.tree, self.normalization, self.group = tree, normalization, group
        self.delays = delays
        self._group = [str(g) for g in tree.coords["group"].values].index(group)
        size = tree.sizes["embedding"]
        whitened = normalization == "whitened"
        root = np.asarray(tree["embedding_whitening"].values)
        self.D = root if whitened else np.eye(size)

    def curve(self, state: str) -> Curve:
        (found,) = curves(
            self.tree.isel(delay=slice(self.delays)),
            states=[state],
            normalization=self.normalization,
            group=self.group,
        )
        return found

    def units(self, state: str) -> int | None:
        return self.tree[state].sizes.get("unit")

    def matrix(self, state: str, name: str, delay: int) -> np.ndarray | None:
        """``[unit, embedding]`` of a variable, not whitened; None where the result lacks it."""
        if name not in self.tree[state].data_vars:
            return None
        values = np.asarray(self.tree[state][name].values)
        return values[self._group, delay].astype(np.float64)

    def held(self, state: str) -> np.ndarray:
        """``[delay]``, blocks that hold a derivative."""
        return held_blocks(self.tree, state, self.group)[: self.delays]

    def block_counts(self, state: str) -> np.ndarray | None:
        """``[block, delay]``; None where the result keeps no means of blocks."""
        variables = self.tree[state].data_vars
        if "block_gradient" not in variables or "block_count" not in variables:
            return None
        return variables["block_count"].values[:, self._group, : self.delays]

    def blocks(self, state: str, delay: int) -> np.ndarray:
        """``[block, unit, embedding]``, means of blocks, 0 where a block holds nothing."""
        values = np.asarray(self.tree[state]["block_gradient"].values)[:, self._group, delay]
        return np.nan_to_num(values.astype(np.float64))

    @cached_property
    def resolution(self) -> float:
        attrs = self.tree.attrs
        method = "fd" if attrs.get("method") == "fd" else "jvp"
        exact = _EXACTNESS.get((method, str(attrs.get("precision", "float32"))), 1e-5)
        return max(exact, _TF32) if attrs.get("tf32") else exact


def blocks_of(a: Side, b: Side, x: str, y: str) -> Blocks | None:
    """The blocks of a state of A and of one of B; None where either keeps no means of them."""
    counts_a, counts_b = a.block_counts(x), b.block_counts(y)
    if counts_a is None or counts_b is None:
        return None
    same = plan_difference(a.tree, b.tree) is None and np.array_equal(counts_a, counts_b)
    return Blocks(counts_a, counts_b, same)


@dataclass(frozen=True)
class GradientDifference:
    """How far mean gradients are apart, ``‖(Ḡ_A − Ḡ_B) D‖_F / ‖Ḡ_B D‖_F`` with B's whitening D.

    One D for both: two square roots of one covariance would differ where the gradients do not.

    Attributes:
        relative: ``[delay]``; 0 where both are 0, infinite where B alone is, NaN where either has
            no derivatives.
        stderr: ``[delay]``, by the jackknife; NaN without means of blocks.
        noise: ``[delay]``, what `relative` would be by noise alone: by the scatter of the blocks,
            or of the two halves where the blocks are not kept.
        grams: ``[delay, block, block]``, what `sign_flip_test` takes; None without blocks.
    """

    relative: np.ndarray
    stderr: np.ndarray
    noise: np.ndarray
    grams: np.ndarray | None


def gradient_difference(
    a: Side, b: Side, x: str, y: str, blocks: Blocks | None
) -> GradientDifference:
    """Compare the mean gradients of state x of A with those of y of B.

    Both results keep them, with as many units and entries of the embedding.
    """
    relative, stderr, noise = np.full((3, a.delays), np.nan)
    grams = np.zeros((a.delays, blocks.number, blocks.number)) if blocks else None
    for t in range(a.delays):
        mean_a, mean_b = a.matrix(x, "gradient", t), b.matrix(y, "gradient", t)
        assert mean_a is not None
        assert mean_b is not None
        size = np.linalg.norm(mean_b @ b.D)
        relative[t] = relative_size(np.linalg.norm((mean_a - mean_b) @ b.D), size)
        if blocks is not None and grams is not None:
            block_a, block_b = a.blocks(x, t) @ b.D, b.blocks(y, t) @ b.D
            grams[t] = blocks.gram(block_a, block_b, t)
            stderr[t] = blocks.stderr(block_a, block_b, t)
            scatter = blocks.noise(block_a, block_b, t)
        else:
            halves = a.matrix(x, "noise", t), b.matrix(y, "noise", t)
            sizes = [np.nan if n is None else float(np.linalg.norm(n @ b.D)) for n in halves]
            scatter = float(np.hypot(sizes[0], sizes[1]))
        noise[t] = relative_size(scatter, size)
    return GradientDifference(relative, stderr, noise, grams)


class Blocks:
    """The blocks of both results, side by side.

    Paired results have the same blocks. Otherwise block i of A stands beside block i of B, for
    no other reason than that their difference has mean zero if the models are the same; where
    one has more blocks, neighbours are merged.

    Args:
        counts_a: ``[block, delay]``.
        counts_b: The same of B.
        paired: Whether they are the same positions.
    """

    def __init__(self, counts_a: np.ndarray, counts_b: np.ndarray, paired: bool) -> None:
        self.paired = paired
        self.number = min(len(counts_a), len(counts_b))
        self.counts = counts_a.astype(np.float64), counts_b.astype(np.float64)
        self._parts = [np.array_split(np.arange(len(c)), self.number) for c in self.counts]

    @cached_property
    def held(self) -> np.ndarray:
        """``[delay]``, how many of the blocks hold a derivative in A and in B."""
        a, b = (
            np.stack([counts[part].sum(axis=0) for part in parts]) > 0
            for counts, parts in zip(self.counts, self._parts, strict=True)
        )
        return np.asarray((a & b).sum(axis=0))

    def _merged(self, side: int, means: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
        """``[number, X]`` means and ``[number]`` counts."""
        counts = self.counts[side][:, t]
        sums = means.reshape(len(means), -1) * counts[:, None]
        n = np.stack([counts[part].sum() for part in self._parts[side]])
        total = np.stack([sums[part].sum(0) for part in self._parts[side]])
        return total / np.where(n > 0, n, 1)[:, None], n

    def gram(self, a: np.ndarray, b: np.ndarray, t: int) -> np.ndarray:
        """``[block, block]`` inner products of the weighted differences ``w_i (A_i − B_i)``."""
        (a, n_a), (b, n_b) = self._merged(0, a, t), self._merged(1, b, t)
        held = (n_a > 0) & (n_b > 0)
        with np.errstate(divide="ignore"):
            weight = np.where(held, 1 / (1 / n_a + 1 / n_b), 0.0)
        difference = (a - b) * weight[:, None]
        return difference @ difference.T

    def noise(self, a: np.ndarray, b: np.ndarray, t: int) -> float:
        """Frobenius norm that noise alone would give the difference of the means.

        The root of ``Σ w_b² ‖Δ_b − Δ̄‖² / (1 − Σ w_b²)`` with ``w_b = N_b / N``, which for blocks
        of one size is ``Σ ‖Δ_b − Δ̄‖² / (g (g − 1))``; NaN with fewer than two blocks. For results
        that are not paired the variances of the two add.
        """
        if self.paired:
            return float(np.sqrt(_variance(a - b, self.counts[0][:, t])))
        both = (_variance(m, c[:, t]) for m, c in zip((a, b), self.counts, strict=True))
        return float(np.sqrt(sum(both)))

    def stderr(self, a: np.ndarray, b: np.ndarray, t: int) -> float:
        """Standard error of ``‖A − B‖ / ‖B‖`` of the means.

        Of paired results each replicate leaves the same block out of both, so that what the
        corpus does to both cancels; otherwise A and B have errors of their own.
        """
        n_a, n_b = (c[:, t] for c in self.counts)
        sum_a, sum_b = a * n_a[:, None, None], b * n_b[:, None, None]

        def apart(difference: np.ndarray, reference: np.ndarray) -> np.ndarray:
            found = relative_size(np.linalg.norm(difference), np.linalg.norm(reference))
            return np.where(np.isfinite(found), found, np.nan)

        if self.paired:
            both, units = np.concatenate([sum_a - sum_b, sum_b], axis=1), a.shape[1]
            return float(jackknife(both, n_a, lambda m: apart(m[:units], m[units:])))
        mean_a, mean_b = mean_matrix(sum_a.sum(0), n_a.sum()), mean_matrix(sum_b.sum(0), n_b.sum())
        return float(
            np.hypot(
                jackknife(sum_a, n_a, lambda m: apart(m - mean_b, mean_b)),
                jackknife(sum_b, n_b, lambda m: apart(mean_a - m, m)),
            )
        )


def _variance(means: np.ndarray, counts: np.ndarray) -> float:
    """Sum over entries of the variance of the mean over all blocks."""
    if (counts > 0).sum() < 2:
        return float("nan")
    w = counts / counts.sum()
    flat = means.reshape(len(means), -1)
    away = np.square(flat - w @ flat).sum(1)
    return float((w**2 * away).sum() / (1 - (w**2).sum()))
