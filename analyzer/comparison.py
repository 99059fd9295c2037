"""Comparing what two results remember: how far apart, in which directions, beyond what noise.

``docs/compare.md`` says for readers what is compared when, and what the columns mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from ._budget import ANALYSIS, brief
from ._differences import Blocks, GradientDifference, Side, blocks_of, gradient_difference
from .errors import ResultError
from .metrics import (
    jackknife,
    principal_angles,
    relative_difference,
    selectivity,
    singular_values,
)
from .tables import Curve

Basis = Literal["auto", "same", "different"]

ALPHA = 0.01
"""Chance that noise alone makes a state differ at any delay: five states stay below 5 %."""

SAME_COVARIANCE = 1e-2
"""Relative difference up to which two covariances are of one embedding table.

Rounding a table to eight bits changes the covariance by a few thousandths; two tables of their
own training, or of random numbers, differ by √(2 E / V) and more.
"""

_RECORDED = ("positions", "seed", "blocks", "method", "step", "precision", "tf32")
_PATTERNS = 4096  # sign patterns drawn where there are too many to try all
_ALL_PATTERNS = 13  # blocks up to which all are tried: 2^12
_FEWEST_BLOCKS = 8  # with fewer, not even the rarest sign pattern is as rare as ALPHA


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
    a_, b_ = (Side(t, normalization, group, delays) for t in (a, b))
    # As for a result: threads inside thousands of small decompositions cost more than they give.
    with threadpool_limits(limits=1, user_api="blas"):
        found = [_compare_state(a_, b_, x, y, why_not) for x, y in pairs]
    return Comparison(
        found, left_a, left_b, normalization, group, same_space=why_not is None, notes=notes
    )


def recorded_options(tree: xr.DataTree, *, whole: bool = False) -> dict[str, Any]:
    """The options of `analyze` that a result was made with, to analyse another model alike.

    The provider, the threads and the groups are not among them: the first two belong to the
    machine, the last were positions of the corpus, which the file does not keep.

    Args:
        tree: As `open_result` gives it.
        whole: Whether to give the number of positions even where it was all that the corpus has.

    Raises:
        ResultError: An attribute is none that `analyze` would take.
    """
    stated = {name: tree.attrs[name] for name in _RECORDED if name in tree.attrs}
    if "method" in stated and stated["method"] != "fd":
        stated["method"] = "jvp"
    if stated.get("method") != "fd":
        stated.pop("step", None)
    if not whole and stated.get("positions") == tree.attrs.get("corpus_positions"):
        stated.pop("positions", None)
    if stated.get("blocks") == 1:  # of a corpus too short for more; nobody can ask for it
        del stated["blocks"]
    if stated.pop("tf32", None) == 1:
        stated["tf32"] = True
    options: dict[str, Any] = {"delays": tree.sizes["delay"] - 1}
    for name, value in stated.items():
        plain = value.item() if isinstance(value, np.generic) else value
        try:
            options[name] = ANALYSIS[name](plain)
        except ValueError as error:
            raise ResultError(
                f"The result's attribute {name} must be {error}, not {brief(plain)}. "
                "Run mnemoscope analyze again."
            ) from None
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
            f"The same corpus is {_count(a, 'corpus_positions')} tokens to A and "
            f"{_count(b, 'corpus_positions')} to B: a delay is not as much text for both."
        )
    elif _differ(a, b, "corpus_unknown"):
        notes.append(
            f"{_count(a, 'corpus_unknown')} tokens of the corpus are unknown to A and "
            f"{_count(b, 'corpus_unknown')} to B: the models do not read the same words."
        )
    return notes


def _count(tree: xr.DataTree, attribute: str) -> str:
    value = tree.attrs[attribute]
    whole = isinstance(value, int | np.integer)
    return f"{int(value):,}" if whole else brief(str(value))  # a file may hold anything


def _differ(a: xr.DataTree, b: xr.DataTree, attribute: str) -> bool:
    """Whether both results state an attribute, each another."""
    x, y = a.attrs.get(attribute), b.attrs.get(attribute)
    return x is not None and y is not None and not np.array_equal(x, y)


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
    models = [t.attrs.get("model_sha256") for t in (a, b)]
    if models[0] is not None and models[0] == models[1]:
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


def _compare_state(a: Side, b: Side, x: str, y: str, why_not: str | None) -> StateComparison:
    curve_a, curve_b = a.curve(x), b.curve(y)
    no_angles, no_gradients = _obstacles(a, b, x, y, why_not)
    blocks = blocks_of(a, b, x, y)
    found: dict[str, np.ndarray] = {}
    names = ("sigma1", "share1", "share5")
    for name in names:
        p, q = getattr(curve_a, name), getattr(curve_b, name)
        if name != "sigma1":  # where every σ is 0 there is no share, and no difference
            zero = (curve_a.sigma1 == 0) & (curve_b.sigma1 == 0)
            p, q = np.where(zero, 0.0, p), np.where(zero, 0.0, q)
        found[name] = relative_difference(p, q)
        errors = getattr(curve_a, f"{name}_stderr"), getattr(curve_b, f"{name}_stderr")
        found[f"{name}_stderr"] = _ratio_stderr(p, q, *errors)
    if blocks is not None and blocks.paired:
        for t in range(a.delays):
            together = _paired_stderr(
                a.blocks(x, t), b.blocks(y, t), blocks.counts[0][:, t], a.D, b.D
            )
            for name, error in zip(names, together, strict=True):
                found[f"{name}_stderr"][t] = error
    found |= _angles(a, b, x, y, none=no_angles is not None)
    gradients = None if no_gradients else gradient_difference(a, b, x, y, blocks)
    for name in ("relative", "stderr", "noise"):
        column = "gradient" if name == "relative" else f"gradient_{name}"
        found[column] = getattr(gradients, name) if gradients else np.full(a.delays, np.nan)
    freedom = np.minimum(a.held(x), b.held(y)) - 1
    test, p_value = _decide(curve_a, curve_b, found, gradients, blocks, freedom)
    resolution = a.resolution + b.resolution
    measure = np.abs(found["gradient" if test == "gradient" else "sigma1"])
    return StateComparison(
        x,
        y,
        curve_a,
        curve_b,
        blocks is not None and blocks.paired,
        test,
        resolution,
        no_gradients,
        no_angles,
        p_value=p_value,
        differs=(p_value <= ALPHA) & (measure > resolution),
        **found,
    )


def _angles(a: Side, b: Side, x: str, y: str, *, none: bool) -> dict[str, np.ndarray]:
    """Angles between the best directions of both, and between those of two halves of one corpus.

    One whitening for both, B's, as for the gradients.
    """
    found: dict[str, np.ndarray] = {f"angles{n}": np.full((a.delays, n), np.nan) for n in (1, 5)}
    found |= {f"halves{n}": np.full(a.delays, np.nan) for n in (1, 5)}
    for t in range(0 if none else a.delays):
        means = [side.matrix(state, "gradient", t) for side, state in ((a, x), (b, y))]
        noises = [side.matrix(state, "noise", t) for side, state in ((a, x), (b, y))]
        white_a, white_b = (m @ b.D for m in means if m is not None)
        halves = [
            (white + noise @ b.D, white - noise @ b.D)
            for white, noise in zip((white_a, white_b), noises, strict=True)
            if noise is not None
        ]
        for n in (1, 5):
            angles = principal_angles(white_a, white_b, n)
            found[f"angles{n}"][t, : len(angles)] = angles
            if len(halves) == 2:
                found[f"halves{n}"][t] = max(principal_angles(p, q, n)[0] for p, q in halves)
    return found


def _obstacles(
    a: Side, b: Side, x: str, y: str, why_not: str | None
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
    a: np.ndarray, b: np.ndarray, counts: np.ndarray, d_a: np.ndarray, d_b: np.ndarray
) -> np.ndarray:
    """Jackknife both results at once: each replicate leaves the same block out of both.

    Args:
        a: ``[block, unit, embedding]``, means of the blocks of A.
        b: The same of B; its units and embedding may be as many or not.
        counts: ``[block]``, of both.
        d_a: Whitening of A (or the identity).
        d_b: Whitening of B.

    Returns:
        ``[3]`` standard errors of the relative differences of σ₁ and of the shares of one and of
        five.
    """
    size_a = a[0].size
    flat = np.concatenate([m.reshape(len(m), 1, -1) for m in (a, b)], axis=-1)

    def statistic(mean: np.ndarray) -> np.ndarray:
        x, y = mean[0, :size_a].reshape(a.shape[1:]), mean[0, size_a:].reshape(b.shape[1:])
        found = relative_difference(_measures(x, d_a), _measures(y, d_b))
        return np.where(np.isfinite(found), found, np.nan)

    return jackknife(flat * counts[:, None, None], counts, statistic)


def _decide(
    curve_a: Curve,
    curve_b: Curve,
    found: dict[str, np.ndarray],
    gradients: GradientDifference | None,
    blocks: Blocks | None,
    freedom: np.ndarray,
) -> tuple[Literal["gradient", "sigma1", "none"], np.ndarray]:
    """Choose the test that the results allow, and give its p-values."""
    p_value = np.full(len(curve_a.delay), np.nan)
    if gradients is not None and gradients.grams is not None and blocks is not None:
        # Noise that is infinite relative to nothing is still known.
        known = (blocks.held >= _FEWEST_BLOCKS) & ~np.isnan(gradients.noise)
        if known.any():
            p_value[known] = sign_flip_test(gradients.grams[known])
            return "gradient", p_value
    if not (freedom >= 1).any():
        return "none", p_value
    # Where neither is clear of its floor, σ₁ is the size of the noise and not of a memory.
    tested = (curve_a.clear | curve_b.clear) & (freedom >= 1)
    # A difference to nothing at all has no size relative to it; A's own size stands for it.
    alone = np.isinf(found["sigma1"])
    difference = np.where(alone, curve_a.sigma1, found["sigma1"])
    stderr = np.where(alone, curve_a.sigma1_stderr, found["sigma1_stderr"])
    return "sigma1", t_test(np.where(tested, difference, np.nan), stderr, freedom)


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


def t_test(difference: np.ndarray, stderr: np.ndarray, freedom: np.ndarray | int) -> np.ndarray:
    """Test at every delay whether a difference is zero, and correct for all delays by Holm (1979).

    Args:
        difference: ``[delay]``; NaN where nothing is tested.
        stderr: ``[delay]``, from blocks.
        freedom: ``[delay]`` or one for all, degrees of freedom of the standard error: the number
            of blocks that hold anything less one, at least 1 where something is tested.

    Returns:
        ``[delay]`` two-sided p-values of Student's t, the k-th smallest of m times ``m − k + 1``;
        NaN where nothing is tested.
    """
    from scipy.stats import t

    tested = np.isfinite(difference) & np.isfinite(stderr)
    size, error = np.abs(difference[tested]), stderr[tested]
    freedom = np.broadcast_to(freedom, difference.shape)[tested]
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(size > 0, 2 * t.sf(size / error, freedom), 1.0)
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(raised, 1)
    result = np.full(difference.shape, np.nan)
    result[tested] = corrected
    return result
