"""Properties: directions of the embedding space, and how well each is remembered.

Verwimp et al. 2020 ("V20"), section 5. A property is a difference of class means, whitened and
scaled to unit length: ``d = Z (ē_a − ē_b)``. Its relative memory is ``m = ‖G_norm d‖ / σ₁``, its
cosine with the n best remembered directions ``‖V_nᵀ d‖``. Beside both stands what chance gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from .errors import PropertyError, ResultError
from .lexicon import EVERYTHING, Lexicon, Members
from .metrics import (
    jackknife,
    random_cosine,
    random_relative_memory,
    selectivity,
    singular_values,
    svd,
    unit_length,
)
from .property_specs import Side, Spec

QUANTILES = (0.025, 0.5, 0.975)
"""Of what chance gives: a band that holds 95 % of it, and its middle."""

_ENOUGH_SPLITS = 1000  # different ways to deal the types of a property out again
_PARALLEL = 1e-6  # of a difference must lie in the space that the embeddings span


@dataclass(frozen=True)
class Direction:
    """A property as a direction of the whitened embedding space.

    Attributes:
        name: For tables and legends.
        spec: What was asked for.
        tokens: ``[term]``, ids of the types it is made of.
        weights: ``[term]``, the direction is ``Z Σ weight (e − mean)``.
        a: Ids of the types of one side; empty for embedding arithmetic.
        b: Of the other.
        d: ``[direction]``, whitened, of unit length.
        distance: ``‖Z (ē_a − ē_b)‖``: how far apart, in standard deviations of the embeddings.
        equation14: ``‖Z u‖`` with u the difference at unit length *before* whitening; m times
            this is the m of equation 14 of V20 as it is printed.
        outside: Share of the difference's length in directions in which the embeddings do not
            vary; 0 but for a singular covariance.
        shuffled: ``[sample, direction]``, unit directions of the same make from types dealt out
            at random.
        pool: ``members`` where the shuffled directions deal the property's own types out again;
            ``pairs`` where they exchange a word and the same word with a suffix, pair by pair;
            ``vocabulary`` where they draw from all types because it has too few of its own.
        notes: What a reader should know of how it was formed.
    """

    name: str
    spec: Spec
    tokens: np.ndarray
    weights: np.ndarray
    a: np.ndarray
    b: np.ndarray
    d: np.ndarray
    distance: float
    equation14: float
    outside: float
    shuffled: np.ndarray
    pool: str
    notes: tuple[str, ...]


def direction(
    spec: Spec,
    lexicon: Lexicon,
    *,
    members: Members = "main",
    skip_unknown: bool = False,
    samples: int = 1000,
    seed: int = 0,
) -> Direction:
    """Form the direction of a property.

    The mean of a class is over its types, each once, as in V20.

    Args:
        spec: What the property is.
        lexicon: The types of the result.
        members: Which types a class has, where `spec` does not say.
        skip_unknown: Whether to leave out words that the vocabulary lacks.
        samples: How many shuffled directions to make.
        seed: Of the shuffling.

    Raises:
        PropertyError: A class or word is unknown, a class has fewer than two types, both sides
            are the same, or nothing of the difference is left after whitening.
    """
    members = spec.members or members
    notes: list[str] = []
    a = b = np.empty(0, np.int64)
    if spec.terms:
        words = [word for _, word in spec.terms]
        tokens = lexicon.ids(words, skip_unknown=skip_unknown)
        if len(tokens) < len(set(words)):
            raise PropertyError(_unknown_term(spec, lexicon))
        index = {int(t): i for i, t in enumerate(tokens)}
        weights = np.zeros(len(tokens))
        for sign, word in spec.terms:
            weights[index[int(lexicon.ids([word])[0])]] += sign
        kept = weights != 0
        tokens, weights = tokens[kept], weights[kept]
    else:
        a, b = sides(spec, lexicon, members=members, skip_unknown=skip_unknown, notes=notes)
        tokens = np.union1d(a, b)
        weights = np.isin(tokens, a) / len(a) - np.isin(tokens, b) / len(b)
    if np.abs(weights).max(initial=0.0) == 0:
        raise PropertyError(
            f"{spec.name}: both sides are the same types, and their difference is zero. Name two "
            "classes that differ."
        )
    return _whitened(spec, lexicon, tokens, weights, (a, b), notes, samples, seed)


def sides(
    spec: Spec,
    lexicon: Lexicon,
    *,
    members: Members = "main",
    skip_unknown: bool = False,
    notes: list[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the types on the two sides of a difference.

    Raises:
        PropertyError: As `direction`.
    """
    said = [] if notes is None else notes
    if spec.suffix is not None:
        return _with_and_without(spec.suffix, lexicon, said)
    assert spec.a is not None
    assert spec.b is not None
    found = []
    for side in (spec.a, spec.b):
        ids = members_of(side, lexicon, members=members, skip_unknown=skip_unknown)
        if side.classes:
            every = len(lexicon.occurring_in(side.classes))
            if len(ids) < 2:
                raise PropertyError(_too_few(side, len(ids), every, members))
            if len(ids) < every:
                said.append(
                    f"{side.label}: {len(ids):,} types, and {every - len(ids):,} more occur with "
                    "it that are as often something else"
                )
            else:
                said.append(f"{side.label}: {len(ids):,} types")
        else:
            if not len(ids):
                raise PropertyError(
                    f"{spec.name}: none of the words of {side.label} is in the vocabulary. Name "
                    "words that the model knows."
                )
            left = len(side.words) - len(ids)
            said.append(
                f"{side.label}: {len(ids):,} word{'s' * (len(ids) != 1)}"
                + (f", {left:,} unknown left out" if left else "")
            )
        found.append(ids)
    both = len(np.intersect1d(found[0], found[1]))
    if both:
        said.append(f"{both:,} of these types are on both sides")
    return found[0], found[1]


def members_of(
    side: Side, lexicon: Lexicon, *, members: Members = "main", skip_unknown: bool = False
) -> np.ndarray:
    """Ids of the types of one side.

    Raises:
        PropertyError: A class or a word is unknown.
    """
    if side.classes:
        return lexicon.members(side.classes, members)
    return lexicon.ids(side.words, skip_unknown=skip_unknown)


def _with_and_without(
    suffix: str, lexicon: Lexicon, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Words that end on `suffix` and the same words without it, where both are types."""
    known = set(lexicon.tokens or ())
    whole = [t for t in lexicon.tokens or () if t.endswith(suffix) and t[: -len(suffix)] in known]
    a = lexicon.ids(whole)
    if len(a) < 2:
        raise PropertyError(
            f"The vocabulary holds {len(a)} word(s) that end on {suffix!r} and that it also holds "
            "without it; at least two are needed. If the corpus writes the ending as a token of "
            "its own, this property cannot be formed."
        )
    notes.append(f"{len(a):,} words with {suffix} and the same without it")
    return a, lexicon.ids([w[: -len(suffix)] for w in whole])


def _too_few(side: Side, found: int, every: int, members: Members) -> str:
    name = side.label
    if found == 0 and every:
        return (
            f"No type belongs to {name}: {every:,} occur with it, but each is as often or more "
            "often something else. Count every type that occurs with it (--members every), or "
            "analyse a larger corpus."
        )
    if found == 0:
        return f"No type belongs to {name}: the class is empty. Analyse a corpus that has it."
    remedy = (
        f"Count every type that occurs with it, {every:,} (--members every)"
        if members == "main" and every > 1
        else "Analyse a larger corpus"
    )
    return (
        f"{name} has one member, and one word is no class: its mean would be that word. {remedy}, "
        "or name the words themselves (--a-words, --b-words)."
    )


def _unknown_term(spec: Spec, lexicon: Lexicon) -> str:
    known = set(lexicon.tokens or ())
    missing = [word for _, word in spec.terms if word not in known]
    return (
        f"{spec.name}: the vocabulary has no word {', '.join(map(repr, missing))}, and a term of "
        "a sum cannot be left out. Name another word."
    )


def _whitened(
    spec: Spec,
    lexicon: Lexicon,
    tokens: np.ndarray,
    weights: np.ndarray,
    ab: tuple[np.ndarray, np.ndarray],
    notes: list[str],
    samples: int,
    seed: int,
) -> Direction:
    centred = lexicon.embeddings[tokens] - lexicon.mean
    difference = weights @ centred
    length = float(np.linalg.norm(difference))
    typical = math.sqrt(np.square(centred).sum(axis=1).max(initial=0.0))
    d = weights @ lexicon.whitened[tokens]
    inside = lexicon.D @ d
    if length <= _PARALLEL * typical:
        raise PropertyError(
            f"{spec.name}: both sides have the same mean embedding, so their difference is zero. "
            "Name classes or words whose embeddings differ."
        )
    outside = float(np.linalg.norm(difference - inside)) / length
    size, rank = lexicon.D.shape
    singular = rank < size
    if singular and np.linalg.norm(inside) <= _PARALLEL * length:
        raise PropertyError(
            f"{spec.name}: the difference lies outside the {rank} of {size} directions in which "
            "the embeddings vary; after whitening nothing is left of it. Name other classes."
        )
    if singular and outside > 1e-3:
        notes.append(
            f"{outside:.1%} of the difference lies in directions in which the embeddings do not "
            "vary, and counts for nothing"
        )
    distance = float(np.linalg.norm(d))
    shuffled, pool = _shuffled(lexicon, tokens, weights, ab, spec.suffix is not None, samples, seed)
    return Direction(
        name=spec.name,
        spec=spec,
        tokens=tokens,
        weights=weights,
        a=ab[0],
        b=ab[1],
        d=d / distance,
        distance=distance,
        equation14=distance / length,
        outside=outside if singular else 0.0,
        shuffled=shuffled,
        pool=pool,
        notes=tuple(notes),
    )


def _shuffled(
    lexicon: Lexicon,
    tokens: np.ndarray,
    weights: np.ndarray,
    ab: tuple[np.ndarray, np.ndarray],
    paired: bool,
    samples: int,
    seed: int,
) -> tuple[np.ndarray, str]:
    """Deal the weights of a property out to types at random.

    To its own types where that can be done in many ways: then nothing but which type is on which
    side is random. Else to the types of the vocabulary, those that occur where that is known.

    Args:
        lexicon: The types.
        tokens: ``[term]``.
        weights: ``[term]``.
        ab: Ids of the types of both sides.
        paired: Whether types at one place of both sides belong together. Then they are exchanged
            pair by pair: dealt out one by one, stems would differ from stems, and the difference
            that their pairs share would be lost among those.
        samples: How many.
        seed: Of the dealing.
    """
    rng = np.random.default_rng(seed)
    a, b = ab
    if paired and 2 ** (len(a) - 1) >= _ENOUGH_SPLITS:  # d and −d are one direction
        table, name = lexicon.whitened[a] - lexicon.whitened[b], "pairs"

        def deal(many: int) -> np.ndarray:
            return rng.choice([-1.0, 1.0], (many, len(table)))
    else:
        own = not paired and math.comb(len(tokens), min(len(a), len(b), 10)) >= _ENOUGH_SPLITS
        pool, dealt, name = tokens, weights, "members"
        if not own:
            name = "vocabulary"
            known = lexicon.occurrences
            pool = np.arange(len(lexicon.embeddings)) if known is None else np.flatnonzero(known)
            pool = np.union1d(pool, tokens)
            dealt = np.pad(weights, (0, len(pool) - len(weights)))
        table = lexicon.whitened[pool]

        def deal(many: int) -> np.ndarray:
            return rng.permuted(np.tile(dealt, (many, 1)), axis=1)

    found = np.empty((samples, table.shape[1]))
    step = max(1, 2_000_000 // len(table))  # a few million weights at a time
    for start in range(0, samples, step):
        found[start : start + step] = deal(min(step, samples - start)) @ table
    return unit_length(found), name


@dataclass(frozen=True)
class PropertyCurve:
    """How well one property is remembered by one state, against the delay.

    Of a band, the last axis is `QUANTILES`.

    Attributes:
        direction: The property.
        state: Name of the state component.
        inputs: The classes of input words whose mean gradient was taken.
        leading: ``[n]``, the n of the subspaces H_n.
        delay: ``[delay]``.
        count: ``[delay]``, derivatives averaged.
        sigma1: ``[delay]``, the largest singular value of the whitened mean gradient.
        sigma1_stderr: ``[delay]``.
        noise_floor: ``[delay]``, what σ₁ would be with no consistent direction.
        memory: ``[delay]``, m.
        memory_stderr: ``[delay]``, by the jackknife; NaN where the result holds no blocks.
        memory_noise: ``[delay]``, ``‖N d‖ / σ₁`` with N the noise matrix: what m would be if the
            state answered to this direction with nothing consistent.
        memory_random: ``[delay, quantile]``, m of a direction that points anywhere.
        memory_shuffled: ``[delay, quantile]``, m of the property with its types dealt out anew.
        cosine: ``[delay, n]``, cosine with H_n.
        cosine_stderr: ``[delay, n]``.
        cosine_random: ``[delay, n, quantile]``.
        cosine_shuffled: ``[delay, n, quantile]``.
        share: ``[delay, n]``, (σ₁ + … + σₙ)/Σσ.
        share_stderr: ``[delay, n]``.
    """

    direction: Direction
    state: str
    inputs: tuple[str, ...]
    leading: tuple[int, ...]
    delay: np.ndarray
    count: np.ndarray
    sigma1: np.ndarray
    sigma1_stderr: np.ndarray
    noise_floor: np.ndarray
    memory: np.ndarray
    memory_stderr: np.ndarray
    memory_noise: np.ndarray
    memory_random: np.ndarray
    memory_shuffled: np.ndarray
    cosine: np.ndarray
    cosine_stderr: np.ndarray
    cosine_random: np.ndarray
    cosine_shuffled: np.ndarray
    share: np.ndarray
    share_stderr: np.ndarray

    @property
    def below(self) -> np.ndarray:
        """``[delay]``, True where σ₁ does not exceed its noise floor."""
        return ~(self.sigma1 > self.noise_floor)

    @property
    def clear(self) -> np.ndarray:
        """``[delay]``, True where σ₁ is more than two standard errors above its noise floor."""
        return self.sigma1 > self.noise_floor + 2.0 * self.sigma1_stderr

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per delay: all of the above in flat columns."""
        made = []
        for i, delay in enumerate(self.delay.tolist()):
            row: dict[str, Any] = {"delay": delay, "m": float(self.memory[i])}
            row["m_stderr"] = float(self.memory_stderr[i])
            row["m_noise"] = float(self.memory_noise[i])
            row |= _band("m_random", self.memory_random[i])
            row |= _band("m_shuffled", self.memory_shuffled[i])
            for j, n in enumerate(self.leading):
                row[f"cos{n}"] = float(self.cosine[i, j])
                row[f"cos{n}_stderr"] = float(self.cosine_stderr[i, j])
                row |= _band(f"cos{n}_random", self.cosine_random[i, j])
                row |= _band(f"cos{n}_shuffled", self.cosine_shuffled[i, j])
                row[f"share{n}"] = float(self.share[i, j])
                row[f"share{n}_stderr"] = float(self.share_stderr[i, j])
            row["sigma1"] = float(self.sigma1[i])
            row["sigma1_stderr"] = float(self.sigma1_stderr[i])
            row["noise_floor"] = float(self.noise_floor[i])
            row["below_noise"] = bool(self.below[i])
            row["clear_of_noise"] = bool(self.clear[i])
            row["count"] = int(self.count[i])
            made.append(row)
        return made


def _band(name: str, values: np.ndarray) -> dict[str, float]:
    low, median, high = (float(v) for v in values)
    return {f"{name}_low": low, f"{name}_median": median, f"{name}_high": high}


def has_blocks(tree: xr.DataTree, states: Iterable[str]) -> bool:
    """Whether a result holds what the standard errors of a property need."""
    wanted = ("block_gradient", "block_count")
    return all(name in tree[state].variables for state in states for name in wanted)


def property_curves(
    tree: xr.DataTree,
    directions: Sequence[tuple[Direction, Sequence[str]]],
    D: np.ndarray,
    *,
    states: Sequence[str] | None = None,
    leading: Sequence[int] = (1, 5),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[PropertyCurve]:
    """Measure how well properties are remembered.

    Args:
        tree: As `open_result` gives it.
        directions: Each with the groups of input words whose mean gradient is taken; of several
            the mean over all their positions (one that is in two of them counts twice).
        D: ``[embedding, direction]``, the whitening on its support.
        states: Names of state components; None (or none) means all.
        leading: The n of the subspaces H_n.
        seed: Of the random directions.
        progress: Told how many of all pairs of state and inputs are done.

    Returns:
        By property, then by state, in the order given.

    Raises:
        ResultError: The result does not have what was asked for.
    """
    names = list(states or ()) or list(tree.children)
    for name in names:
        if name not in tree.children:
            raise ResultError(
                f"The result has no state {name!r}; it has {', '.join(tree.children)}."
            )
        if "gradient" not in tree[name].variables:
            raise ResultError(
                f"The result holds no mean gradients of {name}, which a direction is multiplied "
                "with. Run mnemoscope analyze again without leaving them out."
            )
    wanted = list(dict.fromkeys(tuple(inputs) for _, inputs in directions))
    found: dict[tuple[int, str], PropertyCurve] = {}
    done = 0
    # Many small decompositions: threads inside each cost more than they give.
    with threadpool_limits(limits=1, user_api="blas"):
        for name in names:
            for inputs in wanted:
                which = [i for i, (_, g) in enumerate(directions) if tuple(g) == inputs]
                some = [directions[i][0] for i in which]
                curves = _curves(tree, name, inputs, some, D, tuple(leading), seed)
                found |= {(i, name): c for i, c in zip(which, curves, strict=True)}
                done += 1
                if progress is not None:
                    progress(done, len(names) * len(wanted))
    return [found[i, name] for i in range(len(directions)) for name in names]


def own_inputs(found: Direction) -> tuple[str, ...]:
    """The classes of both sides of a property: whose gradient is its own.

    Raises:
        PropertyError: It is not made of classes.
    """
    if not found.spec.classes:
        raise PropertyError(
            f"{found.name} is made of words, so it has no gradient of its own: --own is for "
            "properties of classes. Name the class of input words (--group)."
        )
    return found.spec.classes


def default_inputs(tree: xr.DataTree) -> tuple[str, ...]:
    """The group of all words, or the first where there is none of that name."""
    groups = [str(g) for g in tree.coords["group"].values]
    return (EVERYTHING if EVERYTHING in groups else groups[0],)


def _curves(
    tree: xr.DataTree,
    state: str,
    inputs: tuple[str, ...],
    directions: Sequence[Direction],
    D: np.ndarray,
    leading: tuple[int, ...],
    seed: int,
) -> list[PropertyCurve]:
    node, groups = tree[state].dataset, [str(g) for g in tree.coords["group"].values]
    for name in inputs:
        if name not in groups:
            raise ResultError(f"The result has no group {name!r}; it has {', '.join(groups)}.")
    rows = [groups.index(name) for name in inputs]
    counts = node["count"].values[rows].astype(np.float64)
    count = counts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = counts / np.where(count > 0, count, np.nan)
    mean = _weighted(node["gradient"].values[rows], parts)
    d = np.stack([one.d for one in directions])

    def statistic(matrix: np.ndarray) -> np.ndarray:
        return _measures(matrix, D, d, leading)[0]

    values, s, vt = _measures(mean, D, d, leading)
    errors = np.full(values.shape, np.nan)
    if has_blocks(tree, [state]):
        n = node["block_count"].values[:, rows].astype(np.float64)
        means = np.nan_to_num(node["block_gradient"].values[:, rows].astype(np.float64))
        sums = (means * n[..., None, None]).sum(axis=1)
        errors = jackknife(sums, n.sum(axis=1), statistic)
    if "noise" in node.variables:
        halves = node["noise"].values[rows]
        noise = _weighted(halves, _with_noise(halves, parts)) @ D
        floor = singular_values(noise)[..., 0]
        answer = np.linalg.norm(noise @ d.T, axis=-2)
    else:
        floor = np.full(len(count), np.nan)
        answer = np.full((len(count), len(d)), np.nan)
    if len(rows) == 1:  # known to the last digit, and known without blocks
        stored = {"normalization": 1, "group": rows[0]}
        floor = node["noise_floor"].isel(stored).values
        from_file = node["singular_values_stderr"].isel(stored).values[:, 0]
    else:
        from_file = errors[:, 0]
    rank = D.shape[1]
    above = np.where(s[:, 0] > 0, s[:, 0], np.nan)
    at_random = _quantiles(random_relative_memory(s, rank, seed=seed))
    held = np.count_nonzero(s > np.finfo(float).eps * max(mean.shape[-2:]) * s[:, :1], axis=-1)
    bands = [[_cosine_band(rank, min(n, h)) for n in leading] for h in held]
    shared: dict[str, Any] = {
        "state": state,
        "inputs": inputs,
        "leading": leading,
        "delay": tree.coords["delay"].values,
        "count": count.astype(np.int64),
        "sigma1": values[:, 0],
        "sigma1_stderr": from_file,
        "noise_floor": floor,
        "share": values[:, 1 : 1 + len(leading)],
        "share_stderr": errors[:, 1 : 1 + len(leading)],
        "memory_random": at_random,
        "cosine_random": np.array(bands),
    }
    made = []
    each = 1 + len(leading)
    for i, one in enumerate(directions):
        at = slice((i + 1) * each, (i + 2) * each)
        dealt = _along(s, vt, one.shuffled, leading)
        made.append(
            PropertyCurve(
                direction=one,
                memory=values[:, at][:, 0],
                memory_stderr=errors[:, at][:, 0],
                memory_noise=answer[:, i] / above,
                memory_shuffled=_quantiles(dealt[..., 0]),
                cosine=values[:, at][:, 1:],
                cosine_stderr=errors[:, at][:, 1:],
                cosine_shuffled=_quantiles(np.swapaxes(dealt[..., 1:], -1, -2)),
                **shared,
            )
        )
    return made


def _weighted(matrices: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """``[delay, unit, embedding]`` from ``[group, delay, unit, embedding]``.

    Args:
        matrices: NaN where a group has no count.
        parts: ``[group, delay]``, sums to 1, or NaN where no group has a count.
    """
    total = np.zeros(matrices.shape[1:])
    for matrix, part in zip(matrices, parts, strict=True):
        total += np.where(part[:, None, None] > 0, matrix, 0.0) * part[:, None, None]
    return total


def _with_noise(noise: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """``[group, delay]``: the parts among the groups that are in both halves of the corpus.

    A group of a few positions may lie in one half and has no noise. What the others show is
    somewhat more than all of them would, so nothing passes for clear that is not. NaN where the
    others hold less than half of the positions.
    """
    known = np.where(np.isfinite(noise).all(axis=(-2, -1)), np.nan_to_num(parts), 0.0)
    total = known.sum(axis=0)
    return known / np.where(total >= 0.5, total, np.nan)


def _measures(
    matrix: np.ndarray, D: np.ndarray, d: np.ndarray, leading: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Everything that follows from a mean, from one decomposition.

    Args:
        matrix: ``[delay, unit, embedding]``, not whitened.
        D: ``[embedding, direction]``.
        d: ``[property, direction]``, unit directions.
        leading: The n of the subspaces.

    Returns:
        ``[delay, 1 + n + property · (1 + n)]``: σ₁, the shares, and for each property m and its
        cosines; with the singular values ``[delay, order]`` and the right singular vectors
        ``[delay, order, direction]``.
    """
    units, size = matrix.shape[-2:]
    if units >= 2 * size and np.isfinite(matrix).all():
        # G = Q R: R has the singular values and right singular vectors of G, at less work.
        matrix = np.asarray(np.linalg.qr(matrix, mode="r"))
    _, s, vt = svd(matrix @ D)
    shares = np.stack([selectivity(s, n) for n in leading], axis=-1)
    along = _along(s, vt, d, leading)
    flat = along.reshape(len(along), -1)
    return np.concatenate([s[:, :1], shares, flat], axis=-1), s, vt


def _along(s: np.ndarray, vt: np.ndarray, d: np.ndarray, leading: Sequence[int]) -> np.ndarray:
    """``[delay, property, 1 + n]``: m and the cosines of unit directions.

    `relative_memory` and `subspace_cosine`, for many directions from one decomposition.
    """
    along = d @ np.swapaxes(vt, -1, -2)  # [delay, property, order]
    first = np.where(s[:, :1] > 0, s[:, :1], np.nan)
    eps = np.finfo(np.float64).eps
    held = s > eps * max(vt.shape[-2:]) * s[:, :1]
    m = np.linalg.norm(along * (s / first)[:, None], axis=-1)
    kept = np.where(held[:, None], along, 0.0)
    nothing = np.where(np.isnan(first), np.nan, 0.0)
    cosines = [np.linalg.norm(kept[..., :n], axis=-1) + nothing for n in leading]
    return np.minimum(np.stack([m, *cosines], axis=-1), 1.0)


def _cosine_band(rank: int, n: int) -> np.ndarray:
    return random_cosine(rank, n, QUANTILES) if n else np.full(len(QUANTILES), np.nan)


def _quantiles(values: np.ndarray) -> np.ndarray:
    """``[..., quantile]`` over the last axis; a sample without a direction has no say."""
    found = np.full((*values.shape[:-1], len(QUANTILES)), np.nan)
    for i in np.ndindex(*values.shape[:-1]):
        finite = values[i][np.isfinite(values[i])]
        if finite.size:
            found[i] = np.quantile(finite, QUANTILES)
    return found
