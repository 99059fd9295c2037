"""Comparing what two results remember: how far apart, in which directions, beyond what noise.

``docs/compare.md`` says for readers what is compared when, and what the columns mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from .errors import ResultError
from .metrics import (
    jackknife,
    mean_matrix,
    principal_angles,
    relative_difference,
    selectivity,
    singular_values,
)
from .tables import Curve, curves

Basis = Literal["auto", "same", "different"]

ALPHA = 0.01
"""Chance that noise alone makes a state differ at any delay: five states stay below 5 %."""

SAME_COVARIANCE = 1e-2
"""Relative difference up to which two covariances are of one embedding table.

Rounding a table to eight bits changes the covariance by a few thousandths; two tables of their
own training, or of random numbers, differ by √(2 E / V) and more.
"""

_PATTERNS = 4096  # sign patterns drawn where there are too many to try all
_ALL_PATTERNS = 13  # blocks up to which all are tried: 2^12
_FEWEST_BLOCKS = 8  # with fewer, not even the rarest sign pattern is as rare as ALPHA
# Error of a relative difference that the analysis itself may make, by method and precision:
# the bars of tests/test_exact.py. TF32 keeps ten bits.
_EXACTNESS = {
    ("jvp", "float32"): 1e-5,
    ("jvp", "float64"): 1e-9,
    ("fd", "float32"): 5e-3,
    ("fd", "float64"): 1e-7,
}
_TF32 = 5e-3


@dataclass(frozen=True)
class StateComparison:
    """What state component A remembers, against what B does.

    Every relative difference is ``(A − B) / B``. It is 0 where both are 0, infinite where B alone
    is, and NaN where either has no derivatives.

    Attributes:
        a: Name of the state in A.
        b: Name of the state in B.
        curve_a: Its memory curve at the common delays.
        curve_b: The same of B.
        paired: Whether both come from the same positions in the same blocks, so that what the
            corpus does to both cancels in their difference.
        test: ``gradient`` (sign flips), ``sigma1`` (t) or ``none``: what decided `differs`.
        resolution: Relative difference that the two analyses may show by their own rounding.
        no_gradients: Why the mean gradients are not compared; None where they are.
        no_angles: Why the subspaces are not compared; None where they are.
        gradient: ``[delay]``, ``‖Ḡ_A − Ḡ_B‖_F / ‖Ḡ_B‖_F``.
        gradient_stderr: ``[delay]``, by the jackknife; NaN without block means.
        gradient_noise: ``[delay]``, what `gradient` would be by noise alone.
        sigma1: ``[delay]``, relative difference of σ₁.
        sigma1_stderr: ``[delay]``.
        share1: ``[delay]``, of σ₁/Σσ.
        share1_stderr: ``[delay]``.
        share5: ``[delay]``, of (σ₁+…+σ₅)/Σσ.
        share5_stderr: ``[delay]``.
        angles1: ``[delay, 1]`` degrees between the best remembered directions.
        angles5: ``[delay, 5]`` degrees between the subspaces of the five best, largest first.
        halves1: ``[delay]`` degrees between the best remembered directions of the two random
            halves of the corpus, in A or in B, whichever is larger: what noise does to an angle.
        halves5: ``[delay]``, the same of the largest angle of five.
        p_value: ``[delay]``, corrected for the number of delays; NaN where nothing was tested.
        differs: ``[delay]`` booleans: beyond noise and beyond `resolution`.
    """

    a: str
    b: str
    curve_a: Curve
    curve_b: Curve
    paired: bool
    test: Literal["gradient", "sigma1", "none"]
    resolution: float
    no_gradients: str | None
    no_angles: str | None
    gradient: np.ndarray
    gradient_stderr: np.ndarray
    gradient_noise: np.ndarray
    sigma1: np.ndarray
    sigma1_stderr: np.ndarray
    share1: np.ndarray
    share1_stderr: np.ndarray
    share5: np.ndarray
    share5_stderr: np.ndarray
    angles1: np.ndarray
    angles5: np.ndarray
    halves1: np.ndarray
    halves5: np.ndarray
    p_value: np.ndarray
    differs: np.ndarray

    @property
    def delay(self) -> np.ndarray:
        """``[delay]``, words read since."""
        return self.curve_a.delay

    @property
    def first_difference(self) -> int | None:
        """The first delay at which the states differ beyond noise; None if there is none."""
        return int(self.delay[self.differs][0]) if self.differs.any() else None

    @property
    def measure(self) -> Literal["gradient", "sigma1"]:
        """What a tolerance is held against: mean gradients, and σ₁ where they cannot be."""
        return "sigma1" if self.no_gradients else "gradient"

    @property
    def tolerance(self) -> float:
        """The smallest tolerance that passes: the largest `measure`; NaN if there is none."""
        size = np.abs(getattr(self, self.measure))
        known = size[~np.isnan(size)]
        return float(known.max()) if known.size else float("nan")

    @property
    def worst(self) -> int | None:
        """The delay that `tolerance` comes from."""
        size = np.abs(getattr(self, self.measure))
        return None if np.isnan(size).all() else int(self.delay[np.nanargmax(size)])

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per delay."""
        columns: dict[str, list[Any]] = {
            "delay": self.delay.tolist(),
            "sigma1_a": self.curve_a.sigma1.tolist(),
            "sigma1_b": self.curve_b.sigma1.tolist(),
            "noise_floor_a": self.curve_a.noise_floor.tolist(),
            "noise_floor_b": self.curve_b.noise_floor.tolist(),
        }
        for name in ("gradient", "sigma1", "share1", "share5"):
            for column in (name, f"{name}_stderr"):
                columns[column] = getattr(self, column).tolist()
        columns["gradient_noise"] = self.gradient_noise.tolist()
        columns["angles1"], columns["angles5"] = self.angles1.tolist(), self.angles5.tolist()
        columns["halves1"], columns["halves5"] = self.halves1.tolist(), self.halves5.tolist()
        columns["p_value"], columns["differs"] = self.p_value.tolist(), self.differs.tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@dataclass(frozen=True)
class Comparison:
    """Two results, state by state.

    Attributes:
        states: Those that both have, in the order of A.
        unmatched_a: States of A without a partner.
        unmatched_b: States of B without a partner.
        normalization: ``whitened`` or ``none``.
        group: Class of input words.
        same_space: Whether both results are taken to have one embedding space and basis.
        notes: What a reader must know before believing the numbers, a sentence each.
    """

    states: list[StateComparison]
    unmatched_a: list[str]
    unmatched_b: list[str]
    normalization: str
    group: str
    same_space: bool
    notes: list[str]

    @property
    def tolerance(self) -> float:
        """The smallest tolerance that passes: no state differs by more, at any delay.

        Infinite where none would; NaN where nothing could be compared.
        """
        known = [s.tolerance for s in self.states if not np.isnan(s.tolerance)]
        return max(known) if known else float("nan")


def compare(
    a: xr.DataTree,
    b: xr.DataTree,
    *,
    match: Mapping[str, str] | None = None,
    states: Iterable[str] | None = None,
    normalization: str | None = None,
    group: str | None = None,
    basis: Basis | None = None,
) -> Comparison:
    """Compare two results, B being the reference.

    Args:
        a: As `analyze` or `open_result` gives it.
        b: The reference.
        match: State of A → state of B, where their names differ; other states match by name.
        states: Names in A of the states to compare; None (or none) means all.
        normalization: ``whitened`` (None means that) or ``none``.
        group: A class of input words that both have; None means the first of A.
        basis: Whether the embedding spaces are the same: ``auto`` (None means that) looks at the
            covariances of the embeddings; ``same`` and ``different`` say so.

    Raises:
        ResultError: The results do not have what was asked for, or no state in common.
    """
    normalization = normalization or "whitened"
    pairs, left_a, left_b = match_states(
        list(a.children), list(b.children), dict(match or {}), list(states or ())
    )
    group = _common_group(a, b, group)
    delays = min(a.sizes["delay"], b.sizes["delay"])
    notes = _notes(a, b, delays)
    why_not, said = _space(a, b, basis or "auto")
    if said:
        notes.append(said)
    a_, b_ = (_Side(t, normalization, group, delays) for t in (a, b))
    # As for a result: threads inside thousands of small decompositions cost more than they give.
    with threadpool_limits(limits=1, user_api="blas"):
        found = [_compare_state(a_, b_, x, y, why_not) for x, y in pairs]
    return Comparison(
        found, left_a, left_b, normalization, group, same_space=why_not is None, notes=notes
    )


def recorded_options(tree: xr.DataTree) -> dict[str, Any]:
    """The options of `analyze` that a result was made with, to analyse another model alike.

    The provider, the threads and the groups are not among them: the first two belong to the
    machine, the last were positions of the corpus, which the file does not keep.
    """
    attrs = tree.attrs
    options: dict[str, Any] = {"delays": tree.sizes["delay"] - 1}
    for name in ("seed", "blocks"):
        if name in attrs:
            options[name] = int(attrs[name])
    if "positions" in attrs and attrs["positions"] != attrs.get("corpus_positions"):
        options["positions"] = int(attrs["positions"])
    if "method" in attrs:
        options["method"] = "fd" if attrs["method"] == "fd" else "jvp"
    if "step" in attrs:
        options["step"] = float(attrs["step"])
    if attrs.get("precision") in ("float32", "float64"):
        options["precision"] = str(attrs["precision"])
    if attrs.get("tf32"):
        options["tf32"] = True
    return options


def match_states(
    a: list[str], b: list[str], match: dict[str, str], states: list[str]
) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """Pair the states of two results by name, or as `match` says.

    Args:
        a: Names in A.
        b: Names in B.
        match: Name in A → name in B.
        states: Names in A to which the comparison is limited; empty for all.

    Returns:
        Pairs, and the names of A and of B that are left over (none where `states` limits them).

    Raises:
        ResultError: A name is unknown, two states would share a partner, or no pair is left.
    """
    for which, names, known in (("A", [*match, *states], a), ("B", list(match.values()), b)):
        for name in names:
            if name not in known:
                raise ResultError(f"{which} has no state {name!r}; it has {', '.join(known)}.")
    taken = list(match.values())
    twice = next((name for name in taken if taken.count(name) > 1), None)
    if twice:
        raise ResultError(f"Two states of A are matched with {twice!r} of B; name it once.")
    pairs = []
    for name in a:
        partner = match.get(name, name if name in b and name not in taken else None)
        if partner is not None and (not states or name in states):
            pairs.append((name, partner))
    paired_a, paired_b = {x for x, _ in pairs}, {y for _, y in pairs}
    lonely = [name for name in states if name not in paired_a]
    if not pairs or lonely:
        what = f"The states {', '.join(lonely)} of A have" if lonely else "A has"
        raise ResultError(
            f"{what} no partner in B: A has {', '.join(a)}; B has {', '.join(b)}. "
            "Say which belong together with --match STATE_OF_A=STATE_OF_B."
        )
    if states:
        return pairs, [], []
    return pairs, [x for x in a if x not in paired_a], [y for y in b if y not in paired_b]


def _common_group(a: xr.DataTree, b: xr.DataTree, group: str | None) -> str:
    groups = [[str(g) for g in t.coords["group"].values] for t in (a, b)]
    group = group or groups[0][0]
    for which, known in zip("AB", groups, strict=True):
        if group not in known:
            raise ResultError(
                f"{which} has no group {group!r}; A has {', '.join(groups[0])}; B has "
                f"{', '.join(groups[1])}. Choose one that both have with --group."
            )
    return group


def _notes(a: xr.DataTree, b: xr.DataTree, delays: int) -> list[str]:
    """Say what makes the results less comparable than they look."""
    notes = []
    if a.sizes["delay"] != b.sizes["delay"]:
        notes.append(
            f"A has delays 0 to {a.sizes['delay'] - 1}, B 0 to {b.sizes['delay'] - 1}: "
            f"0 to {delays - 1} are compared."
        )
    if _differ(a, b, "corpus_sha256"):
        notes.append(
            f"The corpora differ (A: {a.attrs.get('corpus', '?')}, B: "
            f"{b.attrs.get('corpus', '?')}): a difference may be the text's, not the model's."
        )
    elif _differ(a, b, "corpus_positions"):
        notes.append(
            f"The same corpus is {a.attrs['corpus_positions']:,} tokens to A and "
            f"{b.attrs['corpus_positions']:,} to B: a delay is not as much text for both."
        )
    elif _differ(a, b, "corpus_unknown"):
        notes.append(
            f"{a.attrs['corpus_unknown']:,} tokens of the corpus are unknown to A and "
            f"{b.attrs['corpus_unknown']:,} to B: the models do not read the same words."
        )
    return notes


def _differ(a: xr.DataTree, b: xr.DataTree, attribute: str) -> bool:
    """Whether both results state an attribute, each another."""
    x, y = a.attrs.get(attribute), b.attrs.get(attribute)
    return x is not None and y is not None and x != y


def _space(a: xr.DataTree, b: xr.DataTree, basis: Basis) -> tuple[str | None, str | None]:
    """Tell whether both have one embedding space, in one basis.

    Gives why they have not (None where they have), and what a reader should know.
    """
    cov_a, cov_b = (_covariance(t) for t in (a, b))
    if cov_a.shape != cov_b.shape:
        why = f"the embeddings have {len(cov_a)} entries in A and {len(cov_b)} in B"
        if basis == "same":
            raise ResultError(f"The basis cannot be the same: {why}. Leave --basis out.")
        return why, _only_invariants(why)
    if basis != "auto":
        if basis == "same":
            return None, None
        why = "the embedding spaces are said to differ"
        return why, _only_invariants(why)
    if not _differ(a, b, "model_sha256") and "model_sha256" in a.attrs:
        return None, None
    apart = float(np.linalg.norm(cov_a - cov_b))
    size = float(np.linalg.norm(cov_b))
    if apart > SAME_COVARIANCE * size:
        far = f"by {apart / size:.1%}" if size else "and B's is 0"
        why = f"the covariances of the embeddings differ {far}"
        return why, _only_invariants(why)
    if _exchangeable(cov_b) and _differ(a, b, "vocabulary_sha256"):
        why = "the embeddings are one-hot, of different vocabularies"
        return why, _only_invariants(why)
    return None, None


def _only_invariants(why: str) -> str:
    return (
        f"The embedding spaces are not the same: {why}. Only what does not depend on the basis is "
        "compared: singular values and selectivity, not mean gradients and directions."
    )


def _covariance(tree: xr.DataTree) -> np.ndarray:
    d = np.asarray(tree["embedding_whitening"].values)
    return d @ d.T


def _exchangeable(covariance: np.ndarray) -> bool:
    """Whether it stays the same when the axes are renamed, as that of one-hot vectors does."""
    n = len(covariance)
    scale = np.abs(covariance).max()
    diagonal, others = np.diag(covariance), covariance[~np.eye(n, dtype=bool)]
    return bool(
        np.ptp(diagonal) <= 1e-6 * scale and (n < 2 or np.ptp(others) <= 1e-6 * scale) and n > 1
    )


class _Side:
    """One of the two results, at the common delays."""

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

    def block_counts(self, state: str) -> np.ndarray | None:
        """``[block, delay]``."""
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


def same_plan(a: xr.DataTree, b: xr.DataTree) -> bool:
    """Whether two results follow the same positions of the same corpus, in the same blocks."""
    wanted = ["corpus_sha256", "corpus_positions", "positions", "stretches", "blocks"]
    x, y = a.attrs, b.attrs
    if any(k not in x or k not in y or x[k] != y[k] for k in wanted):
        return False
    # Only a sample depends on the seed, and on the delays, which its stretches suit.
    whole = x["positions"] == x["corpus_positions"]
    return whole or (x.get("seed") == y.get("seed") and a.sizes["delay"] == b.sizes["delay"])


def _compare_state(a: _Side, b: _Side, x: str, y: str, why_not: str | None) -> StateComparison:
    curve_a, curve_b = a.curve(x), b.curve(y)
    no_angles, no_gradients = _obstacles(a, b, x, y, why_not)
    counts_a, counts_b = a.block_counts(x), b.block_counts(y)
    paired = (
        same_plan(a.tree, b.tree)
        and counts_a is not None
        and counts_b is not None
        and np.array_equal(counts_a, counts_b)
    )
    nan = np.full(a.delays, np.nan)
    found = {
        name: nan.copy()
        for name in ("gradient", "gradient_stderr", "gradient_noise", "halves1", "halves5")
    }
    found |= {f"{name}_stderr": nan.copy() for name in ("sigma1", "share1", "share5")}
    angles = {n: np.full((a.delays, n), np.nan) for n in (1, 5)}
    grams = None
    for name in ("sigma1", "share1", "share5"):
        p, q = getattr(curve_a, name), getattr(curve_b, name)
        if name != "sigma1":  # where every σ is 0 there is no share, and no difference
            zero = (curve_a.sigma1 == 0) & (curve_b.sigma1 == 0)
            p, q = np.where(zero, 0.0, p), np.where(zero, 0.0, q)
        found[name] = relative_difference(p, q)
        errors = getattr(curve_a, f"{name}_stderr"), getattr(curve_b, f"{name}_stderr")
        found[f"{name}_stderr"] = _ratio_stderr(p, q, *errors)
    blocks = None
    if counts_a is not None and counts_b is not None:
        blocks = _Blocks(counts_a, counts_b, paired)
        grams = np.zeros((a.delays, blocks.number, blocks.number))
    for t in range(a.delays):
        gradient_a, gradient_b = a.matrix(x, "gradient", t), b.matrix(y, "gradient", t)
        if counts_a is not None and paired:
            errors_ = _paired_stderr(
                a.blocks(x, t), b.blocks(y, t), counts_a[:, t], a.D, b.D, not no_gradients
            )
            names = ("gradient_stderr", "sigma1_stderr", "share1_stderr", "share5_stderr")
            for name, error in zip(names, errors_, strict=True):
                found[name][t] = error
        if gradient_a is None or gradient_b is None or no_angles:
            continue
        noise_a, noise_b = a.matrix(x, "noise", t), b.matrix(y, "noise", t)
        # One whitening for both, B's, or their square roots would differ and not the gradients.
        white_a, white_b = gradient_a @ b.D, gradient_b @ b.D
        halves = [
            (g + n @ b.D, g - n @ b.D)
            for g, n in ((white_a, noise_a), (white_b, noise_b))
            if n is not None
        ]
        for n in (1, 5):
            angles_ = principal_angles(white_a, white_b, n)
            angles[n][t, : len(angles_)] = angles_
            if len(halves) == 2:
                found[f"halves{n}"][t] = max(principal_angles(p, q, n)[0] for p, q in halves)
        if no_gradients:
            continue
        size = float(np.linalg.norm(white_b))
        found["gradient"][t] = _relative_size(float(np.linalg.norm(white_a - white_b)), size)
        if blocks is not None and grams is not None:
            block_a, block_b = a.blocks(x, t) @ b.D, b.blocks(y, t) @ b.D
            grams[t] = blocks.gram(block_a, block_b, t)
            noise = blocks.noise(block_a, block_b, t)
            if not paired:
                found["gradient_stderr"][t] = blocks.independent_stderr(block_a, block_b, t)
        elif noise_a is not None and noise_b is not None:
            noise = float(np.hypot(np.linalg.norm(noise_a @ b.D), np.linalg.norm(noise_b @ b.D)))
        else:
            noise = float("nan")
        found["gradient_noise"][t] = _relative_size(noise, size)
    test, p_value = _decide(curve_a, curve_b, found, grams, blocks, no_gradients, a, b)
    resolution = a.resolution + b.resolution
    measure = np.abs(found["gradient" if test == "gradient" else "sigma1"])
    differs = (p_value <= ALPHA) & (measure > resolution)
    return StateComparison(
        x,
        y,
        curve_a,
        curve_b,
        paired,
        test,
        resolution,
        no_gradients,
        no_angles,
        angles1=angles[1],
        angles5=angles[5],
        p_value=p_value,
        differs=differs,
        **found,
    )


def _obstacles(
    a: _Side, b: _Side, x: str, y: str, why_not: str | None
) -> tuple[str | None, str | None]:
    """Why no angles, and why no gradients."""
    lacking = [
        which
        for which, side, state in (("A", a, x), ("B", b, y))
        if "gradient" not in side.tree[state].data_vars
    ]
    no_angles = why_not
    if lacking:
        no_angles = f"{' and '.join(lacking)} hold(s) no mean gradients"
    units = a.units(x), b.units(y)
    if no_angles is None and units[0] != units[1]:
        return None, f"the state has {units[0]} units in A and {units[1]} in B"
    return no_angles, no_angles


def _relative_size(difference: float, size: float) -> float:
    """``difference / size``: 0 for 0/0, infinite for a difference to nothing."""
    if size == 0 and difference >= 0:
        return float("inf") if difference else 0.0
    return difference / size


def _ratio_stderr(a: np.ndarray, b: np.ndarray, ea: np.ndarray, eb: np.ndarray) -> np.ndarray:
    """Standard error of a/b for independent a and b, to first order.

    ``(a/b)² · ((e_a/a)² + (e_b/b)²) = (e_a² + (a/b)² e_b²) / b²``.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        error = np.hypot(ea, a / b * eb) / b
    return np.where(np.isfinite(error), error, np.nan)


def _measures(a: np.ndarray, d: np.ndarray) -> np.ndarray:
    """``[σ₁, σ₁/Σσ, (σ₁+…+σ₅)/Σσ]`` of one matrix."""
    if a.shape[0] >= 2 * a.shape[1]:
        a = np.asarray(np.linalg.qr(a, mode="r"))
    s = singular_values(a @ d)
    return np.stack([s[..., 0], selectivity(s, 1), selectivity(s, 5)], axis=-1)


def _paired_stderr(
    a: np.ndarray,
    b: np.ndarray,
    counts: np.ndarray,
    d_a: np.ndarray,
    d_b: np.ndarray,
    gradients: bool,
) -> np.ndarray:
    """Jackknife both results at once: each replicate leaves the same block out of both.

    Args:
        a: ``[block, unit, embedding]``, means of the blocks of A.
        b: The same of B; its units and embedding may be as many or not.
        counts: ``[block]``, of both.
        d_a: Whitening of A (or the identity).
        d_b: Whitening of B.
        gradients: Whether the matrices themselves can be subtracted.

    Returns:
        ``[4]`` standard errors of the relative differences of the mean gradients, σ₁, and the
        shares of one and of five.
    """
    size_a = a[0].size
    flat = np.concatenate([m.reshape(len(m), 1, -1) for m in (a, b)], axis=-1)

    def statistic(mean: np.ndarray) -> np.ndarray:
        x, y = mean[0, :size_a].reshape(a.shape[1:]), mean[0, size_a:].reshape(b.shape[1:])
        found = relative_difference(_measures(x, d_a), _measures(y, d_b))
        apart = np.nan
        if gradients:
            apart = _relative_size(
                float(np.linalg.norm((x - y) @ d_b)), float(np.linalg.norm(y @ d_b))
            )
        found = np.concatenate([[apart], found])
        return np.where(np.isfinite(found), found, np.nan)

    return jackknife(flat * counts[:, None, None], counts, statistic)


class _Blocks:
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
        self._raw = counts_a.astype(np.float64), counts_b.astype(np.float64)
        self._parts = [np.array_split(np.arange(len(c)), self.number) for c in self._raw]

    def _merged(self, side: int, means: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
        """``[number, X]`` means and ``[number]`` counts."""
        counts = self._raw[side][:, t]
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
            return float(np.sqrt(_variance(a - b, self._raw[0][:, t])))
        both = (_variance(m, c[:, t]) for m, c in zip((a, b), self._raw, strict=True))
        return float(np.sqrt(sum(both)))

    def independent_stderr(self, a: np.ndarray, b: np.ndarray, t: int) -> float:
        """Standard error of the relative difference when A and B have errors of their own."""
        n_a, n_b = (c[:, t] for c in self._raw)
        sum_a, sum_b = a * n_a[:, None, None], b * n_b[:, None, None]
        mean_a, mean_b = mean_matrix(sum_a.sum(0), n_a.sum()), mean_matrix(sum_b.sum(0), n_b.sum())

        def apart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            r = _relative_size(float(np.linalg.norm(x - y)), float(np.linalg.norm(y)))
            return np.asarray(r if np.isfinite(r) else np.nan)

        return float(
            np.hypot(
                jackknife(sum_a, n_a, lambda x: apart(x, mean_b)),
                jackknife(sum_b, n_b, lambda y: apart(mean_a, y)),
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


def _decide(
    curve_a: Curve,
    curve_b: Curve,
    found: dict[str, np.ndarray],
    grams: np.ndarray | None,
    blocks: _Blocks | None,
    no_gradients: str | None,
    a: _Side,
    b: _Side,
) -> tuple[Literal["gradient", "sigma1", "none"], np.ndarray]:
    """Choose the test that the results allow, and give its p-values."""
    if not no_gradients and blocks and grams is not None and blocks.number >= _FEWEST_BLOCKS:
        known = ~np.isnan(found["gradient_noise"])  # infinite relative to nothing: still known
        return "gradient", np.where(known, sign_flip_test(grams), np.nan)
    number = min(int(s.tree.attrs.get("blocks", 0)) for s in (a, b))
    if number < 2:
        return "none", np.full(len(curve_a.delay), np.nan)
    # Where neither is clear of its floor, σ₁ is the size of the noise and not of a memory.
    tested = curve_a.clear | curve_b.clear
    # A difference to nothing at all has no size relative to it; A's own size stands for it.
    alone = np.isinf(found["sigma1"])
    difference = np.where(alone, curve_a.sigma1, found["sigma1"])
    stderr = np.where(alone, curve_a.sigma1_stderr, found["sigma1_stderr"])
    return "sigma1", t_test(np.where(tested, difference, np.nan), stderr, number - 1)


def sign_flip_test(grams: np.ndarray, seed: int = 0) -> np.ndarray:
    """Test at every delay whether differences of blocks have a common part.

    If A and B have the same mean, the differences Δ_b of their blocks are independent and as
    likely as −Δ_b, so flipping the signs of blocks changes nothing but the luck. With s a pattern
    of signs, the statistic of a delay is ::

        R(s) = ‖Σ_b s_b Δ_b‖² / Σ_b ‖Δ_b‖²

    about 1 for noise, g for g blocks that all differ in the same way. A p-value is the share of
    patterns under which R is as large as observed *at the delay where it is largest*: the maximum
    over delays, flipped together, holds the chance of a single false alarm at any delay, however
    the delays are correlated (Westfall and Young 1993, step-down; Nichols and Holmes 2002).

    Args:
        grams: ``[delay, block, block]``, inner products ``⟨Δ_b, Δ_c⟩``.
        seed: Of the patterns, where there are more than are tried (more than 13 blocks).

    Returns:
        ``[delay]`` p-values, corrected for all delays; 1 where all differences are 0.
    """
    delays, g = grams.shape[:2]
    if g <= _ALL_PATTERNS:  # a pattern and its opposite are one
        signs = np.array([(1, *s) for s in product((1, -1), repeat=g - 1)], float)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (_PATTERNS, g))
        signs[0] = 1
    trace = np.einsum("dbb->d", grams)
    # Over the trace first: squares of long delays are too small for their products.
    scaled = grams / np.where(trace > 0, trace, 1)[:, None, None]
    r = np.einsum("sb,dbc,sc->sd", signs, scaled, signs, optimize=True)
    order = np.argsort(-r[0], kind="stable")
    # The largest among this delay and all whose own R is smaller.
    largest = np.maximum.accumulate(r[:, order[::-1]], axis=1)[:, ::-1]
    p = (largest >= r[0, order] * (1 - 1e-9)).mean(0)
    corrected = np.empty(delays)
    corrected[order] = np.maximum.accumulate(p)
    return np.where(trace > 0, corrected, 1.0)


def t_test(difference: np.ndarray, stderr: np.ndarray, freedom: int) -> np.ndarray:
    """Test at every delay whether a difference is zero, and correct for all delays by Holm (1979).

    Args:
        difference: ``[delay]``; NaN where nothing is tested.
        stderr: ``[delay]``, from blocks.
        freedom: Degrees of freedom of the standard error, the number of blocks less one.

    Returns:
        ``[delay]`` two-sided p-values of Student's t, the k-th smallest of m times ``m − k + 1``;
        NaN where nothing is tested.
    """
    from scipy.stats import t

    tested = np.isfinite(difference) & np.isfinite(stderr)
    size, error = np.abs(difference[tested]), stderr[tested]
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(size > 0, 2 * t.sf(size / error, freedom), 1.0)
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(raised, 1)
    result = np.full(difference.shape, np.nan)
    result[tested] = corrected
    return result
