"""The main job: a model and a corpus become a result."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from . import _memory, _runtime
from ._device import DeviceProducts
from ._files import printable
from ._products import AHEAD, Products, Window, carried_states
from ._states import Stepper
from ._version import __version__
from .corpus import Corpus
from .errors import CorpusError, MnemoscopeError
from .grouping import require_followed
from .groups import Groups
from .linearize import Linearization, Step, build_step, difference_linearization, linearize
from .model import MemoryModel
from .sums import Accumulator, Plan, plan

if TYPE_CHECKING:
    import xarray as xr

Method = Literal["jvp", "fd"]
Precision = Literal["float32", "float64"]

_BLOCK_GRADIENT_LIMIT = 2**28  # bytes of the result file spent on the means of each block
_SCALE_POSITIONS = 1000  # positions that tell how far each state coordinate ranges


def analyze(
    model: MemoryModel,
    corpus: Corpus,
    *,
    delays: int | None = None,
    states: list[str] | None = None,
    method: Method | None = None,
    precision: Precision | None = None,
    provider: str | None = None,
    positions: int | None = None,
    seed: int | None = None,
    blocks: int | None = None,
    step: float | None = None,
    memory: int | None = None,
    tf32: bool | None = None,
    threads: int | None = None,
    groups: Mapping[str, np.ndarray] | None = None,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> xr.DataTree:
    """Average the state-embedding Jacobians of a model over a corpus, at every delay.

    The Jacobian ``J_{t,τ} = ∂state_t / ∂embedding_{t-τ}`` is the product of the derivatives of
    single steps (Verwimp et al. 2020, section 3). Every input position counts; the state is
    carried through the whole corpus from the model's initial state, so that delay τ is seen by
    all positions but the last τ.

    Args:
        model: A memory model.
        corpus: Token ids.
        delays: Largest delay, inclusive of 0; default 50.
        states: Names of state components; default all that have a derivative.
        method: ``jvp`` (exact; default) or ``fd`` (central differences of each step).
        precision: ``float32`` (default) or ``float64``.
        provider: ``auto`` (default), ``cpu`` or ``cuda``.
        positions: Follow a random sample of this many input positions; default all.
        seed: Of the sample and of the halves behind the noise floor; default 0.
        blocks: Contiguous blocks of the jackknife; default 10.
        step: Of ``fd``, in units of each coordinate's own range; default eps^(1/3).
        memory: Bytes that the run may take; default 80 % of what is free.
        tf32: Let CUDA round factors of matrix products to TF32; default False.
        threads: How many to use on the CPU; default one for each processor.
        groups: Group → ``[position]`` booleans, classes of input positions that are averaged
            apart; default one group ``all``.
        progress: Called with positions done and in all.
        report: Called with one line about each choice made.

    Returns:
        The tree that a result file holds (``docs/result-format.md``).

    Raises:
        MnemoscopeError: The call or the input does not fit; see its subclasses.
    """
    from . import result  # here, since xarray takes as long to import as all else together

    began = time.monotonic()
    say = report or (lambda line: None)
    delays = 50 if delays is None else delays
    seed = 0 if seed is None else seed
    blocks = 10 if blocks is None else blocks
    _check_choice("method", method, get_args(Method))
    _check_choice("precision", precision, get_args(Precision))
    _check_numbers(corpus, delays, positions, blocks, threads)
    _check_vocabulary(model, corpus)
    provider_name, line = _runtime.choose_provider(provider)
    say(line)
    step_graph = build_step(model, np.dtype(precision or "float32"))
    wanted = _check_states(step_graph, states)
    result.check_state_names(wanted)
    if corpus.unknown:
        share = corpus.unknown / len(corpus)
        say(f"{corpus.unknown:,} of {len(corpus):,} tokens ({share:.1%}) are unknown to the model.")
    if step_graph.tokens:
        say(
            "The core also reads the tokens themselves; what reaches the state on that way, past "
            "the embedding, is not measured."
        )
    chosen = groups or {"all": np.ones(len(corpus), bool)}
    for name, mask in chosen.items():
        if np.shape(mask) != (len(corpus),):
            raise MnemoscopeError(
                f"The group {name!r} needs one boolean for each of the {len(corpus)} positions, "
                f"not an array of shape {np.shape(mask)}."
            )
    layout = plan(len(corpus), delays, blocks=blocks, positions=positions, seed=seed)
    require_followed(Groups.from_masks(chosen), layout.block >= 0)
    sizes = {c.name: c.size for c in step_graph.differentiable if c.name in wanted}
    need = _Need(layout, delays, sizes, len(chosen), step_graph, model)
    budget = _memory.allowed(memory)
    _memory.require(need.least(), budget, "This run", need.advice)
    table = model.embeddings_in(step_graph.dtype)
    batch = None if provider_name == _runtime.CPU else 1
    if method == "fd":
        scales = _scales(step_graph, corpus, table, provider_name)
        linear = difference_linearization(step_graph, scales, step, batch)
    else:
        if step is not None:
            raise MnemoscopeError("A step width belongs to --method fd; jvp is exact.")
        linear, obstacle = linearize(step_graph, batch)
        if obstacle:
            say(f"No block rule for {obstacle}: dense derivatives through onnx-ad, more slowly.")
    if positions is not None and positions >= len(corpus):
        say(f"The corpus has {len(corpus):,} positions, so all of them are followed.")
    whole = need.whole(linear)
    say(f"Memory: about {_memory.shown(whole)} of {_memory.shown(budget)} allowed.")
    _memory.require(whole, budget, "This run", need.advice)
    products: Products | DeviceProducts
    if provider_name == _runtime.CPU:
        products = Products(linear, delays, wanted, table, threads=threads)
    else:
        products = DeviceProducts(
            linear, delays, wanted, table, provider=provider_name, tf32=bool(tf32)
        )
    sums = Accumulator(layout, delays, sizes, step_graph.embedding_size, step_graph.dtype, chosen,
                       products.parts)  # fmt: skip

    def visit(window: Window) -> None:
        sums.add(window.time, window.first, window.jacobians, window.part)

    total, before = _work(layout, delays, len(corpus)), 0
    starts = _states_at(step_graph, corpus, table, layout.stretches[:, 0], provider_name)
    for (low, high), start in zip(layout.stretches, starts, strict=True):
        tokens, done = corpus.ids[low : high + delays], 0
        for done in products.run(tokens, start, visit, int(low), int(high - low)):
            if progress:
                progress(before + done, total)
        before += done
    found = sums.result()
    if not all(np.isfinite(s.block_sum).all() for s in found.values()):
        raise MnemoscopeError(
            "The Jacobians overflowed: the state's derivatives grow without bound on this "
            "corpus. Try --precision float64 or fewer --delays."
        )
    attributes = {
        "model": printable(model.path.name),
        "model_sha256": model.sha256,
        "vocabulary_sha256": _vocabulary_hash(model),
        **{f"source_{k}": v for k, v in model.roles.source.items()},
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256,
        "corpus_positions": len(corpus),
        "corpus_unknown": corpus.unknown,
        "positions": layout.inputs,
        "stretches": len(layout.stretches),
        "blocks": layout.blocks,
        "method": linear.method,
        "step": step,
        "provider": provider_name,
        "precision": str(step_graph.dtype),
        "tf32": bool(tf32),
        "seed": seed,
        "threads": threads,
        "versions": _versions(),
        "wall_seconds": time.monotonic() - began,
    }
    info = {
        c.name: {"kind": c.state.kind, "layer": c.state.layer}
        for c in step_graph.differentiable
        if c.name in wanted
    }
    return result.build(
        found,
        groups=list(chosen),
        embeddings=model.embeddings,  # whose own rounding says which directions are absent
        state_info=info,
        attributes=attributes,
        block_gradient_limit=_BLOCK_GRADIENT_LIMIT,
        precision=str(step_graph.dtype),
    )


def _check_choice(what: str, given: Any, known: tuple[str, ...]) -> None:
    if given is not None and given not in known:
        raise MnemoscopeError(f"The {what} must be {' or '.join(known)}, not {given!r}.")


def _check_numbers(
    corpus: Corpus, delays: int, positions: int | None, blocks: int, threads: int | None
) -> None:
    if delays < 0:
        raise MnemoscopeError(f"The largest delay must be 0 or more, not {delays}.")
    if delays >= len(corpus):
        raise CorpusError(
            f"The corpus has {len(corpus)} positions, too few for a delay of {delays}: it needs "
            f"at least {delays + 1}. Use a longer corpus or a smaller --delays."
        )
    if positions is not None and positions < 1:
        raise MnemoscopeError(f"The number of positions must be 1 or more, not {positions}.")
    if blocks < 2:
        raise MnemoscopeError(f"The jackknife needs at least 2 blocks, not {blocks}.")
    if threads is not None and threads < 1:
        raise MnemoscopeError(f"The number of threads must be 1 or more, not {threads}.")


def _check_vocabulary(model: MemoryModel, corpus: Corpus) -> None:
    top = int(corpus.ids.max())
    if top >= model.vocabulary_size or int(corpus.ids.min()) < 0:
        raise CorpusError(
            f"The corpus holds token id {top}; the model knows the ids 0 to "
            f"{model.vocabulary_size - 1}."
        )


def _check_states(step: Step, states: list[str] | None) -> list[str]:
    known = [c.name for c in step.differentiable]
    if not known:
        raise MnemoscopeError("Every state of this model is an integer; none has a derivative.")
    for name in states or ():
        if name not in known:
            raise MnemoscopeError(
                f"The model has no differentiable state {name!r}; it has {', '.join(known)}."
            )
    return [n for n in known if n in states] if states else known


@dataclass(frozen=True)
class _Need:
    """Bytes that a run holds at once; each term is an upper bound, measured in the tests."""

    layout: Plan
    delays: int
    sizes: dict[str, int]
    groups: int
    step: Step
    model: MemoryModel

    def least(self) -> int:
        """What is known before the step is linearised."""
        proto = self.model.proto.ByteSize()
        table = self.model.vocabulary_size * self.step.embedding_size
        totals = Accumulator.bytes_needed(
            self.layout.blocks,
            self.groups,
            self.delays + 1,
            list(self.sizes.values()),
            self.step.embedding_size,
            self.step.dtype.itemsize,
        )
        # The result takes means, noise and a jackknife replica beside the sums; whitening takes
        # three tables in double precision; the file is parsed, cut, written out and loaded.
        return (
            self._tangents(list(self.sizes))
            + 2 * totals
            + table * (2 * self.step.dtype.itemsize + 24)
            + 4 * proto
        )

    def whole(self, linear: Linearization) -> int:
        """With the states that are carried along, and the derivatives."""
        item, sources = self.step.dtype.itemsize, linear.step.sources
        more = self._tangents(carried_states(linear, list(self.sizes)))
        dense = sum(
            sources[source][1] * sources[state][1]
            for (state, source), j in linear.jacobians.items()
            if j.kind == "dense"
        )
        return (
            self.least()
            - self._tangents(list(self.sizes))
            + more
            # The batches that wait for the products, one as it comes and one being arranged.
            + (AHEAD + 3) * linear.batch * dense * item
            + linear.working
            + 8 * linear.model.ByteSize()
        )

    def _tangents(self, states: list[str]) -> int:
        """Two buffers, and what the products hold besides (on a GPU two more)."""
        width = sum(c.size for c in self.step.differentiable if c.name in states)
        rows = (self.delays + 1) * self.step.embedding_size
        return 4 * rows * width * self.step.dtype.itemsize

    @property
    def advice(self) -> str:
        """What to ask less of."""
        return (
            f"Ask for fewer --delays (now {self.delays}), one --state (now "
            f"{', '.join(self.sizes)}), fewer --blocks (now {self.layout.blocks}), or raise "
            "--memory."
        )


def _work(layout: Plan, delays: int, length: int) -> int:
    """Time steps in all: inputs and the steps after each stretch in which its memory fades."""
    ends = np.minimum(layout.stretches[:, 1] + delays, length)
    return int((ends - layout.stretches[:, 0]).sum())


def _states_at(
    step: Step, corpus: Corpus, table: np.ndarray, times: np.ndarray, provider: str
) -> Iterator[dict[str, np.ndarray]]:
    """The exact states before each of the ascending `times`: read the corpus up to there."""
    now = {c.name: c.initial() for c in step.components}
    stepper = Stepper(step, table, provider)
    position = 0
    for time_ in times:
        for token in corpus.ids[position:time_]:
            now = stepper.advance(now, int(token))
        position = time_
        yield now


def _scales(step: Step, corpus: Corpus, table: np.ndarray, provider: str) -> dict[str, np.ndarray]:
    """How far each coordinate ranges: root mean square over the start of the corpus."""
    stepper = Stepper(step, table, provider)
    now = {c.name: c.initial() for c in step.components}
    squares = {c.name: np.zeros(c.size) for c in step.differentiable}
    count = min(_SCALE_POSITIONS, len(corpus))
    for token in corpus.ids[:count]:
        now = stepper.advance(now, int(token))
        for name, total in squares.items():
            total += np.square(now[name][0], dtype=np.float64)
    ranges = {name: np.sqrt(total / count) for name, total in squares.items()}
    ranges["embedding"] = np.sqrt(np.square(table, dtype=np.float64).mean(0))
    return {name: _usable(r) for name, r in ranges.items()}


def _usable(ranges: np.ndarray) -> np.ndarray:
    """Ranges within a factor of 100 of the middle one.

    A coordinate that hardly moves still needs a step that rounding does not swallow, and one that
    a single entry made enormous must not step out of the region that the model works in.
    """
    moving = ranges[ranges > 0]
    middle = max(float(np.median(moving)) if moving.size else 0.0, 1e-6)
    return np.clip(ranges, middle / 100, middle * 100)


def _vocabulary_hash(model: MemoryModel) -> str | None:
    """Which id is which token, so that one-hot embeddings of two models can be told apart."""
    if model.vocabulary is None:
        return None
    text = json.dumps(model.vocabulary.tokens, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _versions() -> dict[str, str]:
    versions = {"mnemoscope": __version__}
    for name in ("numpy", "onnx", "onnx-ad", "onnxruntime-gpu", "onnxruntime", "xarray"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
