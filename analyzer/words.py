"""Single words: what a model remembers of each type of a corpus.

The mean gradients of thousands of types do not fit in memory at once. They are found in passes
over the corpus, each of which follows only the positions of its own types, so that the products
of all passes together are those of one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from ._checkpoint import Checkpoint, opened
from ._identity import hashed
from ._pipeline import processors
from ._run import Run
from .corpus import Corpus
from .errors import CorpusError, MnemoscopeError, ResultError
from .groups import Groups
from .metrics import fit_decay, mean_matrix, noise_matrix, whiten
from .model import MemoryModel
from .sums import Plan

if TYPE_CHECKING:
    import xarray as xr

    from .sums import Sums

FORMAT = "mnemoscope words"
FORMAT_VERSION = 1
CLEAR = 1.5
"""How many times its noise floor σ₁ must be to be clear of it.

The floor comes from one split of a few occurrences and is as random as σ₁ itself: of means without
any consistent direction about half exceed it, but at most one in eight this many times
(``docs/words.md`` has the measurement).
"""
_CURVE = ("normalization", "word", "delay")
_ROOT_COLUMNS = ("word", "token", "occurrences", "frequency")
_MEASURES = ("sigma1", "noise_floor", "singular_value_sum")
_FREQUENT = 256  # positions of a type above which its sums need double precision
_AT_ONCE = 2**20  # entries of a type's matrices that a thread decomposes together


_FIT = {
    "decay_a": "as sigma1",
    "decay_b": "1 / time step",
    "decay_a_stderr": "as sigma1",
    "decay_b_stderr": "1 / time step",
    "decay_r_squared": "1",
    "decay_points": "delays",
}
"""Units of what is fitted to each type's curve."""


def analyze_words(
    model: MemoryModel,
    corpus: Corpus,
    *,
    min_count: int = 1,
    max_count: int | None = None,
    words: Sequence[str] | None = None,
    frequencies: Mapping[str, int] | None = None,
    seed: int = 0,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    checkpoint_every: float | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[str], None] | None = None,
    **options: Any,
) -> xr.DataTree:
    """Average the state-embedding Jacobians of each word type over its occurrences.

    Verwimp et al. 2020, section 4.3.4. σ₁ of a mean over few occurrences is raised by noise: with
    no consistent direction at all it would be the noise floor, which is found for each type from
    two halves of its own occurrences (neighbours within the largest delay fall in one half).
    Comparing frequent with rare types is fair only at equal numbers of occurrences (`max_count`).

    Args:
        model: A memory model.
        corpus: Token ids.
        min_count: Leave out types with fewer occurrences.
        max_count: Follow at most so many occurrences of a type, drawn at random; None means all.
        words: Only these types, however rare; None means all.
        frequencies: Type → its frequency in the training text; default that in the corpus.
        seed: Of the halves and of the drawing.
        checkpoint: As `analyze` takes it, and so are the next two.
        checkpoint_every: Seconds.
        resume: Go on. The passes are those of the run that was ended, whatever memory is free.
        progress: Called with positions done and in all.
        report: Called with one line about each choice made.
        options: As `analyze` takes them: ``delays``, ``states``, ``method``, ``precision``,
            ``provider``, ``step``, ``memory``, ``tf32``, ``threads``, ``streams``, ``chunk``,
            ``calibrate``.

    Returns:
        The tree that a file of words holds (``docs/words.md``).

    Raises:
        MnemoscopeError: The call or the input does not fit; see its subclasses.
    """
    from . import result

    began = time.monotonic()
    say = report or (lambda line: None)
    types = _types(model, corpus, min_count, words)
    rng = np.random.default_rng(seed)
    places = _places(corpus.ids, types, max_count, rng)
    with opened(checkpoint, checkpoint_every, resume, report) as kept:
        before = kept.choices() if kept else None
        run = Run(model, corpus, report=report, before=before, **options)
        result.check_state_names(list(run.sizes))
        counts = np.array([len(p) for p in places])
        working = processors() * sum(
            _working(units, run.step.embedding_size, run.delays + 1) for units in run.sizes.values()
        )
        begun = kept.values() if kept and kept.resumes else {}
        passes = list(_passes(run, counts, working, begun.get("passes")))
        say(
            f"{len(types):,} types, {counts.sum():,} occurrences, in {len(passes)} pass"
            f"{'es' * (len(passes) > 1)} over the corpus."
        )
        whitening = whiten(model.embeddings)
        shape = (len(result.NORMALIZATIONS), len(types), run.delays + 1)
        found = {state: {n: np.full(shape, np.nan) for n in _MEASURES} for state in run.sizes}
        held = np.zeros(shape[1:], np.int64)
        measured = {f"{n}/{i}": a for i, of in enumerate(found.values()) for n, a in of.items()}
        measured["held"] = held
        first, named = int(begun.get("pass", 0)), hashed(types, *places)
        work = [_steps(_stretches(places, members, run.delays), run.delays) for members in passes]
        for i, members in enumerate(passes):
            # A plan is as long as the corpus, so they are held one at a time; those of passes that
            # are done are made all the same, for the random numbers that they take.
            layout, groups = _plan(places, members, len(corpus), run.delays, rng)
            if i < first:
                continue
            key = None
            if kept:
                key = {**run.key(layout, groups), "seed": seed, "types": named, "pass": i}
                if begun and i == first:
                    begun = kept.values(key)
                    for name, array in measured.items():
                        array[...] = begun[name]
                sizes = np.array([len(members) for members in passes])
                kept.found_before = {**measured, "passes": sizes, "pass": np.array(i)}
            sums = run.sums(layout, groups, working, _later(progress, work, i), kept, key,
                            restore=i == first)  # fmt: skip
            held[members] = next(iter(sums.values())).block_count[0]
            for state in found:
                for name, values in _measures(sums[state], whitening.D).items():
                    found[state][name][:, members] = values
            del sums  # the only reference: the next pass needs the room
    of_text = count_types(corpus, model) if frequencies is None else frequencies
    return _build(model, run, types, counts, held, found, of_text, {
        **run.attributes, "seed": seed, "min_count": min_count, "max_count": max_count,
        "passes": len(passes),
        "wall_seconds": time.monotonic() - began + (kept.seconds_before if kept else 0.0),
    })  # fmt: skip


def _steps(stretches: np.ndarray, delays: int) -> int:
    """About how many time steps it takes to follow what lies in some stretches."""
    return int((stretches[:, 1] - stretches[:, 0] + delays).sum())


def _later(
    progress: Callable[[int, int], None] | None, work: Sequence[int], number: int
) -> Callable[[int, int], None] | None:
    """Progress of one pass, of so much work, as part of all."""
    if progress is None:
        return None
    tell, before, total = progress, sum(work[:number]), sum(work)
    return lambda done, there: tell(before + work[number] * done // there, total)


def _types(
    model: MemoryModel, corpus: Corpus, min_count: int, words: Iterable[str] | None
) -> np.ndarray:
    """``[type]`` token ids, the most frequent first."""
    if min_count < 1:
        raise MnemoscopeError(
            f"The least number of occurrences must be 1 or more, not {min_count}."
        )
    count = np.bincount(corpus.ids, minlength=model.vocabulary_size)
    if words is not None:
        chosen = _ids(model, words)
        absent = [w for w, i in chosen.items() if not count[i]]
        if absent:
            raise CorpusError(f"The corpus {corpus.name} does not hold {', '.join(absent[:5])!r}.")
        kept = np.array(sorted(set(chosen.values())), np.int64)
    else:
        kept = np.flatnonzero(count >= min_count)
    if not kept.size:
        raise CorpusError(
            f"No type occurs {min_count} times in the corpus {corpus.name}; the most frequent "
            f"occurs {count.max()} times. Use a longer corpus or a smaller --min-count."
        )
    return kept[np.argsort(-count[kept], kind="stable")]


def _ids(model: MemoryModel, words: Iterable[str]) -> dict[str, int]:
    if model.vocabulary is None:
        raise CorpusError("The model carries no vocabulary, so words cannot be looked up by name.")
    index = {token: i for i, token in enumerate(model.vocabulary.tokens)}
    words = list(words)
    missing = [w for w in words if w not in index]
    if missing:
        raise CorpusError(
            f"The model's vocabulary has no {', '.join(map(repr, missing[:5]))}"
            f"{' …' if len(missing) > 5 else ''}. Words are looked up as they are written."
        )
    return {w: index[w] for w in words}


def _places(
    ids: np.ndarray, types: np.ndarray, max_count: int | None, rng: np.random.Generator
) -> list[np.ndarray]:
    """For each type the positions that are followed, ascending."""
    if max_count is not None and max_count < 1:
        raise MnemoscopeError(f"The most occurrences must be 1 or more, not {max_count}.")
    order = np.argsort(ids, kind="stable")
    low, high = (np.searchsorted(ids[order], types, side) for side in ("left", "right"))
    places = [order[a:b] for a, b in zip(low, high, strict=True)]
    if max_count is None:
        return places
    return [p if len(p) <= max_count else np.sort(rng.choice(p, max_count, False)) for p in places]


def _passes(
    run: Run, counts: np.ndarray, working: int, sizes: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Numbers of the types of each pass, those like in number together.

    Args:
        run: Says how many memory holds.
        counts: ``[type]``, occurrences that are followed.
        working: Bytes that the measures take while the sums are held.
        sizes: How many types each pass has, where that is settled.
    """
    order = np.argsort(-counts, kind="stable")
    if sizes is not None:
        yield from np.split(order, np.cumsum(sizes)[:-1])
        return
    frequent = int((counts > _FREQUENT).sum())
    for part in (order[:frequent], order[frequent:]):
        while part.size:
            most = run.most_groups(int(counts[part[0]]), working)
            number = -(-len(part) // -(-len(part) // most))  # passes of one size
            yield part[:number]
            part = part[number:]


def _plan(
    places: Sequence[np.ndarray],
    members: np.ndarray,
    length: int,
    delays: int,
    rng: np.random.Generator,
) -> tuple[Plan, Groups]:
    """One block; halves dealt within each type, occurrences near each other to the same."""
    number, half = np.full(length, -1, np.int64), np.full(length, -1, np.int64)
    for i, member in enumerate(members):
        at = places[member]
        number[at] = i
        chunk, first = 0, at[0]
        side = int(rng.integers(2))
        for position in at:
            if position - first > delays:
                chunk, first = chunk + 1, position
            half[position] = (chunk + side) % 2
    block = np.where(number >= 0, 0, -1)
    groups = Groups.from_numbers([str(m) for m in members], number)
    return Plan(_stretches(places, members, delays), block, half, 1), groups


def _stretches(places: Sequence[np.ndarray], members: np.ndarray, delays: int) -> np.ndarray:
    """``[stretch, 2]``, where the types of a pass are followed."""
    followed = np.sort(np.concatenate([places[m] for m in members]))
    cuts = np.flatnonzero(np.diff(followed) > delays) + 1
    return np.array([[p[0], p[-1] + 1] for p in np.split(followed, cuts)])


def _measures(sums: Sums, d: np.ndarray) -> dict[str, np.ndarray]:
    """``[normalization, type, delay]`` measures of each type's mean."""
    delays, units, size = sums.half_sum.shape[1:]
    step = _together(units, size, delays)

    def of_type(g: int) -> np.ndarray:
        found = []
        for low in range(0, delays, step):
            here = slice(low, low + step)
            total, count = np.asarray(sums.block_sum[0, g, here]), sums.block_count[0, g, here]
            half, half_count = sums.half_sum[g, here], sums.half_count[g, here]
            mean = _leading(mean_matrix(total, count), d)
            noise = _leading(noise_matrix(total, count, half, half_count), d)
            found.append(np.stack([mean[..., 0], noise[..., 0], mean[..., 1]]))
        return np.concatenate(found, axis=-1)

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(processors()) as pool:
        found = np.stack(list(pool.map(of_type, range(sums.block_count.shape[1]))), axis=2)
    return dict(zip(_MEASURES, found, strict=True))


def _together(units: int, size: int, delays: int) -> int:
    """How many delays a thread decomposes together."""
    return min(delays, max(1, _AT_ONCE // (max(units, size) * size)))


def _working(units: int, size: int, delays: int) -> int:
    """Bytes that a thread of `_measures` takes, as measured in the tests."""
    return _together(units, size, delays) * 8 * 4 * (units + size) * size


def _leading(matrix: np.ndarray, d: np.ndarray) -> np.ndarray:
    """σ₁ and Σσ, plain and whitened, of many matrices.

    From the eigenvalues of ``Gᵀ G``, several times faster than a decomposition of G. σ₁ loses
    nothing; singular values below 1e-8 σ₁ are lost in Σσ.

    Args:
        matrix: ``[delay, unit, embedding]``.
        d: ``[embedding, direction]``.

    Returns:
        ``[normalization, delay, 2]``; NaN for a matrix that is not finite.
    """
    # Scaled, so that squares neither overflow nor underflow.
    scale = np.abs(matrix).max((-2, -1), keepdims=True)
    finite = np.isfinite(scale[:, 0, 0])
    scaled = np.where(
        finite[:, None, None] & (scale > 0), matrix / np.where(scale > 0, scale, 1), 0
    )
    gram = np.swapaxes(scaled, -1, -2) @ scaled
    out = []
    for g in (gram, d.T @ gram @ d):
        values = (
            np.sqrt(np.maximum(np.linalg.eigvalsh(g), 0)) if g.shape[-1] else np.zeros((len(g), 1))
        )
        both = np.stack([values[:, -1], values.sum(-1)], -1) * scale[:, :, 0]
        out.append(np.where(finite[:, None], both, np.nan))
    return np.stack(out)


def _build(
    model: MemoryModel,
    run: Run,
    types: np.ndarray,
    counts: np.ndarray,
    held: np.ndarray,
    found: Mapping[str, Mapping[str, np.ndarray]],
    frequencies: Mapping[str, int],
    attributes: dict[str, Any],
) -> xr.DataTree:
    """The tree of a file of words, with the fitted decays."""
    import xarray as xr

    from .result import NORMALIZATIONS, encode_attributes

    per_unit = "none: state / embedding; whitened: state / standard deviation of the embedding"
    names = _names(model, types)
    root = xr.Dataset(
        {
            "token": ("word", types, {"long_name": "token id", "units": "1"}),
            "occurrences": (
                "word", counts, {"long_name": "input positions that were followed", "units": "1"}
            ),
            "count": (
                ("word", "delay"), held, {"long_name": "derivatives in each mean", "units": "1"}
            ),
        },
        coords={
            "word": ("word", np.array(names, dtype=str), {"long_name": "type", "units": "1"}),
            "delay": (
                "delay",
                np.arange(run.delays + 1),
                {"long_name": "words read since", "units": "time step"},
            ),
            "normalization": ("normalization", np.array(NORMALIZATIONS)),
        },
        attrs={"format": FORMAT, "format_version": FORMAT_VERSION, **encode_attributes(attributes)},
    )  # fmt: skip
    root["frequency"] = xr.Variable(
        "word",
        np.array([frequencies.get(n, 0) for n in names], np.int64),
        {"long_name": "occurrences in the training text, or else in the corpus", "units": "1"},
    )
    children = {}
    for state, measures in found.items():
        data = {n: xr.Variable(_CURVE, v, {"units": per_unit}) for n, v in measures.items()}
        for name, values in _fits(np.arange(run.delays + 1), measures).items():
            data[name] = xr.Variable(_CURVE[:2], values, {"units": _FIT[name]})
        children[f"/{state}"] = xr.Dataset(data, attrs=encode_attributes(run.state_info[state]))
    return xr.DataTree.from_dict({"/": root, **children})


def _names(model: MemoryModel, types: np.ndarray) -> list[str]:
    if model.vocabulary is None:
        return [str(t) for t in types]
    return [model.vocabulary.tokens[t] for t in types]


def _fits(delays: np.ndarray, measures: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """σ₁ = a exp(−b τ), fitted up to the first delay at which σ₁ is not clear of noise."""
    sigma1, floor = measures["sigma1"], measures["noise_floor"]
    found = {name: np.full(sigma1.shape[:2], np.nan) for name in _FIT}
    clear = np.logical_and.accumulate(sigma1 > CLEAR * floor, axis=-1)
    found["decay_points"] = clear.sum(-1).astype(np.float64)
    for i in np.ndindex(sigma1.shape[:2]):
        if clear[i].sum() < 3:  # two points fit any exponential
            continue
        fit = fit_decay(delays[clear[i]], sigma1[i][clear[i]])
        found["decay_a"][i], found["decay_b"][i] = fit.a, fit.b
        found["decay_a_stderr"][i], found["decay_b_stderr"][i] = fit.a_stderr, fit.b_stderr
        found["decay_r_squared"][i] = fit.r_squared
    return found


@dataclass(frozen=True)
class WordTable:
    """What one state component remembers of each type.

    Attributes:
        state: Its name.
        normalization: ``whitened`` or ``none``.
        delay: ``[delay]``.
        word: ``[word]``, the types.
        occurrences: ``[word]``, input positions that were followed.
        frequency: ``[word]``, occurrences in the training text, or else in the corpus.
        sigma1: ``[word, delay]``.
        noise_floor: ``[word, delay]``; NaN where all occurrences are near each other.
        singular_value_sum: ``[word, delay]``.
        a: ``[word]``, fitted value at delay 0; NaN where fewer than three are clear.
        b: ``[word]``, fitted rate.
        b_stderr: ``[word]``, from the residuals of the fit.
        r_squared: ``[word]``.
        points: ``[word]``, how many delays were fitted.
    """

    state: str
    normalization: str
    delay: np.ndarray
    word: np.ndarray
    occurrences: np.ndarray
    frequency: np.ndarray
    sigma1: np.ndarray
    noise_floor: np.ndarray
    singular_value_sum: np.ndarray
    a: np.ndarray
    b: np.ndarray
    b_stderr: np.ndarray
    r_squared: np.ndarray
    points: np.ndarray

    def order(self, by: str, delay: int = 0) -> np.ndarray:
        """Numbers of the types, the largest first; those without the value are left out.

        Args:
            by: ``sigma1`` or ``sum`` (at `delay`), ``decay``, ``occurrences`` or ``frequency``.
            delay: One of the delays.
        """
        values = {
            "sigma1": self.sigma1[:, delay],
            "sum": self.singular_value_sum[:, delay],
            "decay": self.b,
            "occurrences": self.occurrences,
            "frequency": self.frequency,
        }[by].astype(np.float64)
        known = np.flatnonzero(np.isfinite(values))
        return known[np.argsort(-values[known], kind="stable")]

    @property
    def unequal(self) -> bool:
        """Whether some types were followed more often than others, which biases comparisons."""
        return bool(np.ptp(self.occurrences) > 0)

    def above(self, delay: int = 0) -> np.ndarray:
        """``[word]`` booleans: whether σ₁ exceeds its noise floor at a delay.

        Of types without any consistent direction, nearly half do so by chance.
        """
        return self.sigma1[:, delay] > self.noise_floor[:, delay]

    @property
    def clear(self) -> np.ndarray:
        """``[word, delay]`` booleans: whether σ₁ is more than `CLEAR` times its noise floor."""
        return self.sigma1 > CLEAR * self.noise_floor


def open_words(path: str | os.PathLike[str]) -> xr.DataTree:
    """Read a file of words, all of it, and close it.

    Raises:
        ResultError: The file is missing, damaged, or holds something else.
    """
    from .result import read_tree

    return read_tree(path, _check)


def _check(tree: xr.DataTree, shown: str) -> None:
    from .result import NORMALIZATIONS

    if tree.attrs.get("format") != FORMAT or tree.attrs.get("format_version") != FORMAT_VERSION:
        raise ResultError(
            f"{shown} is a netCDF file, but no file of words of version {FORMAT_VERSION}: its "
            f"format is {tree.attrs.get('format')!r}, version "
            f"{tree.attrs.get('format_version')}. Give a file that mnemoscope words wrote."
        )
    dims: dict[str, tuple[str, ...]] = dict.fromkeys(_MEASURES, _CURVE)
    dims |= dict.fromkeys(_FIT, _CURVE[:2])
    root: dict[str, tuple[str, ...]] = dict.fromkeys(_ROOT_COLUMNS, ("word",))
    root |= {"delay": ("delay",), "normalization": _CURVE[:1], "count": ("word", "delay")}
    wanted = [(tree, "the root", root)]
    wanted += [(node, f"state {name}", dims) for name, node in tree.children.items()]
    for node, where, variables in wanted:
        for name, axes in variables.items():
            found = node.variables.get(name)
            if (
                found is None
                or found.dims != axes
                or (found.dtype.kind in "iuf") == (name in ("word", "normalization"))
            ):
                raise ResultError(
                    f"{shown} says that it is a file of words, but {where} has no variable {name} "
                    f"of its kind with the axes {', '.join(axes)}. Run mnemoscope words again."
                )
    if not tree.children or tuple(tree.coords["normalization"].values.tolist()) != NORMALIZATIONS:
        raise ResultError(
            f"{shown} says that it is a file of words, but it holds no state, or other "
            "normalizations. Run mnemoscope words again."
        )


def word_tables(
    tree: xr.DataTree, *, states: Iterable[str] | None = None, normalization: str | None = None
) -> list[WordTable]:
    """Pick tables from a file of words.

    Args:
        tree: As `analyze_words` or `open_words` gives it.
        states: Names of state components; None (or none) means all.
        normalization: ``whitened`` (None means that) or ``none``.

    Raises:
        ResultError: The file does not have what was asked for.
    """
    normalization = normalization or "whitened"
    names = list(states or ()) or list(tree.children)
    for name in names:
        if name not in tree.children:
            known = ", ".join(tree.children)
            raise ResultError(f"The file of words has no state {name!r}; it has {known}.")
    i = tree.coords["normalization"].values.tolist().index(normalization)
    root = {n: v.values for n, v in tree.variables.items()}
    tables = []
    for name in names:
        data = {n: v.values[i] for n, v in tree[name].data_vars.items()}
        tables.append(
            WordTable(
                state=name,
                normalization=normalization,
                delay=root["delay"],
                word=root["word"],
                occurrences=root["occurrences"],
                frequency=root["frequency"],
                sigma1=data["sigma1"],
                noise_floor=data["noise_floor"],
                singular_value_sum=data["singular_value_sum"],
                a=data["decay_a"],
                b=data["decay_b"],
                b_stderr=data["decay_b_stderr"],
                r_squared=data["decay_r_squared"],
                points=data["decay_points"],
            )
        )
    return tables


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation between the frequency of types and a measure.

    Attributes:
        rho: From -1 to 1; NaN for fewer than ten types or values that are all the same.
        stderr: Its standard error, by leaving out a tenth of the types at a time.
        types: How many types have both.
    """

    rho: float
    stderr: float
    types: int


def frequency_correlation(frequency: np.ndarray, values: np.ndarray) -> RankCorrelation:
    """Correlate the ranks of frequency and of a measure.

    Args:
        frequency: ``[word]``.
        values: ``[word]``; NaN are left out.
    """
    from scipy.stats import spearmanr

    kept = np.isfinite(values)
    x, y = np.asarray(frequency, np.float64)[kept], values[kept]
    count = len(x)

    def rho(here: np.ndarray) -> float:
        a, b = x[here], y[here]
        if count < 10 or np.ptp(a) == 0 or np.ptp(b) == 0:
            return float("nan")
        return float(spearmanr(a, b).statistic)

    everyone = np.arange(count)
    # Types come by falling frequency: dealt in turns, each tenth is like the whole.
    left = np.array([rho(everyone[everyone % 10 != i]) for i in range(10)])
    stderr = np.sqrt(0.9 * ((left - left.mean()) ** 2).sum())
    return RankCorrelation(rho(everyone), float(stderr), count)


def count_types(corpus: Corpus, model: MemoryModel) -> dict[str, int]:
    """How often each type of a model's vocabulary occurs in a text."""
    count = np.bincount(corpus.ids, minlength=model.vocabulary_size)
    return dict(zip(_names(model, np.arange(len(count))), count.tolist(), strict=True))
