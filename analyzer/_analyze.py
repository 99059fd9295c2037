"""The main job: a model and a corpus become a result."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from . import _memory, _runtime
from ._checkpoint import Checkpoint, follow, later, opened
from ._cluster import Cluster, cluster_of
from ._files import printable
from ._pipeline import AHEAD, processors
from ._products import Products, Window
from ._reading import carried_states
from ._rows import RowProducts, RowWindow, cheaper_by_rows
from ._shards import Carrier, Shard, positions_of, shards
from ._sketch import Sketch
from ._states import States, Stepper
from ._stream_count import (
    MOST_KEYS,
    Need,
    at_small_steps,
    evened,
    fitting,
    keys_of,
    length_of,
    summable,
)
from ._streams import Streams
from ._version import __version__
from .corpus import Corpus
from .distributed import Engine, Spread, blocks_of, split
from .errors import CorpusError, MnemoscopeError
from .grouping import those_followed
from .groups import Groups
from .linearize import (
    Linearization,
    Step,
    build_step,
    difference_linearization,
    linearize,
    rounds,
    streams_apart,
)
from .model import MemoryModel
from .sums import STAGED, Accumulator, Plan, Size, Sums, plan

if TYPE_CHECKING:
    import xarray as xr

Method = Literal["jvp", "fd"]
Precision = Literal["float32", "float64"]

_BLOCK_GRADIENT_LIMIT = 2**28  # bytes of the result file spent on the means of each block
_TREADS = 0.1  # a few of the 255 treads that eight bits give a coordinate, in units of its range
_TRIED = 8  # streams run together to see whether they keep apart
_OF_CARD = 0.6  # of what a GPU has free, since ONNX Runtime takes memory in powers of two
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
    streams: int | None = None,
    sketch: int | None = None,
    groups: Groups | None = None,
    keep_blocks: int | None = None,
    scratch: str | os.PathLike[str] | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    checkpoint_every: float | None = None,
    resume: bool = False,
    scheduler: str | None = None,
    workers: int | None = None,
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
        streams: Parts of the corpus that are followed side by side, one call for all; default on
            a GPU as many as keep it busy and fit, on the CPU several for small models.
        sketch: Follow so many directions of the embedding space for each input instead of all of
            it: fewer products, an estimate with the same mean and larger standard errors.
        groups: Classes of input positions that are averaged apart; default one group ``all``.
            Those that hold none of the sample are left out.
        keep_blocks: Bytes of the result that the mean of each block may take, from which other
            measures get their standard errors; default 256 MiB, and none are kept if all of them
            together need more.
        scratch: Folder for a temporary file that holds sums of more than 1 GiB; default that of
            temporary files. One that is itself held in memory (tmpfs) is not used.
        checkpoint: File that the sums are kept in now and then, so that a run that was ended can
            go on; default none. It stays there: remove it when the result is saved. Or a
            `Checkpoint` that has been entered, which the two options below do not concern.
        checkpoint_every: Seconds between checkpoints; default 60; 0 means never.
        resume: Go on from the checkpoint if it is there. The result is bit by bit that of a run
            which nothing ended.
        scheduler: Address of a Dask scheduler whose workers follow the positions; `threads` is
            then that of each task (default 1) and `memory` that of each worker.
        workers: The same with so many processes on this machine, which share its processors.
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
    seed = 0 if seed is None else seed
    blocks = 10 if blocks is None else blocks
    if positions is not None and positions < 1:
        raise MnemoscopeError(f"The number of positions must be 1 or more, not {positions}.")
    if blocks < 2:
        raise MnemoscopeError(f"The jackknife needs at least 2 blocks, not {blocks}.")
    chosen = Groups.everything(len(corpus)) if groups is None else groups
    if chosen.positions != len(corpus):
        raise MnemoscopeError(
            f"The groups are those of {chosen.positions} positions; the corpus has {len(corpus)}."
        )
    result.check_group_names(list(chosen.names))
    with opened(checkpoint, checkpoint_every, resume, report) as kept:
        run = Run(
            model,
            corpus,
            delays=delays,
            states=states,
            method=method,
            precision=precision,
            provider=provider,
            step=step,
            memory=memory,
            tf32=tf32,
            threads=threads,
            streams=streams,
            sketch=sketch,
            seed=seed,
            scratch=tempfile.gettempdir() if scratch is None else scratch,
            scheduler=scheduler,
            workers=workers,
            report=report,
        )
        result.check_state_names(list(run.sizes))
        layout = plan(len(corpus), run.delays, blocks=blocks, positions=positions, seed=seed)
        chosen = those_followed(chosen, layout.block >= 0, report)
        if positions is not None and positions >= len(corpus):
            say(f"The corpus has {len(corpus):,} positions, so all of them are followed.")
        keep_blocks = _BLOCK_GRADIENT_LIMIT if keep_blocks is None else keep_blocks
        after = result.bytes_needed(
            len(chosen), layout.blocks, run.delays + 1, run.cells, run.step.dtype, keep_blocks
        )
        found = run.sums(layout, chosen, after, progress, kept)
    attributes = {
        **run.attributes,
        "positions": layout.inputs,
        "stretches": len(layout.stretches),
        "blocks": layout.blocks,
        "seed": seed,
        "wall_seconds": time.monotonic() - began + (kept.seconds_before if kept else 0.0),
    }
    return result.build(
        found,
        groups=list(chosen.names),
        embeddings=model.embeddings,  # whose own rounding says which directions are absent
        state_info=run.state_info,
        attributes=attributes,
        block_gradient_limit=keep_blocks,
        precision=str(run.step.dtype),
        tokens=model.vocabulary.tokens if model.vocabulary else None,
        members=None if groups is None else _members(corpus, chosen),
        shared=None if groups is None else chosen.shared(),
    )


class Run:
    """A model made ready to be followed over a corpus, any number of times.

    Arguments are those of `analyze`, but for `scratch`, without which sums are held in memory, and
    `side`: ``columns`` of the embedding or ``rows`` of the states (default what is cheaper).

    Attributes:
        delays: Largest delay.
        step: The step that is differentiated.
        sizes: State → n, the states that are asked for.
        state_info: State → what describes it.
        attributes: What a result says of the run.
        embeddings: ``[V, E]`` in the precision of the run.

    Raises:
        MnemoscopeError: The call or the input does not fit; see its subclasses.
    """

    def __init__(
        self,
        model: MemoryModel,
        corpus: Corpus,
        *,
        delays: int | None = None,
        states: list[str] | None = None,
        method: Method | None = None,
        precision: Precision | None = None,
        provider: str | None = None,
        step: float | None = None,
        memory: int | None = None,
        tf32: bool | None = None,
        threads: int | None = None,
        streams: int | None = None,
        sketch: int | None = None,
        seed: int = 0,
        side: Literal["columns", "rows"] | None = None,
        scratch: str | os.PathLike[str] | None = None,
        scheduler: str | None = None,
        workers: int | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        say = self._say = report or (lambda line: None)
        self.delays = 50 if delays is None else delays
        _check_choice("method", method, get_args(Method))
        _check_choice("precision", precision, get_args(Precision))
        _check_numbers(corpus, self.delays, threads, streams)
        self._cluster = cluster_of(scheduler, workers)
        _check_vocabulary(model, corpus)
        if step is not None and method != "fd":
            raise MnemoscopeError("A step width belongs to --method fd; jvp is exact.")
        self._provider, line = _runtime.choose_provider(provider)
        say(line)
        self.step = build_step(model, np.dtype(precision or "float32"))
        wanted = _check_states(self.step, states)
        if corpus.unknown:
            share = corpus.unknown / len(corpus)
            say(f"{corpus.unknown:,} of {len(corpus):,} tokens ({share:.1%}) are unknown to the "
                "model.")  # fmt: skip
        if self.step.tokens:
            say(
                "The core also reads the tokens themselves; what reaches the state on that way, "
                "past the embedding, is not measured."
            )
        self.sizes = {c.name: c.size for c in self.step.differentiable if c.name in wanted}
        self._model, self._corpus, self._method, self._step_width = model, corpus, method, step
        self._budget, self._tf32 = _memory.allowed(memory), bool(tf32)
        self._given_memory = memory
        self._threads = threads or (self._cluster.threads if self._cluster else processors())
        # A file that lies in memory saves none.
        self._volatile = scratch is not None and _memory.holds(scratch)
        self._scratch, self._side = None if self._volatile else scratch, side
        self._sketch = self._dealt(sketch, seed)
        self._asked, self._counts = streams, dict[tuple, int]()
        self._linear: dict[int | None, Linearization] = {}
        self._scales: dict[str, np.ndarray] | None = None
        self.embeddings = model.embeddings_in(self.step.dtype)
        self.attributes = {
            "model": printable(model.path.name),
            "model_sha256": model.sha256,
            "vocabulary_sha256": _vocabulary_hash(model),
            "unknown_token": model.vocabulary.unknown if model.vocabulary else None,
            **{f"source_{k}": v for k, v in model.roles.source.items()},
            "corpus": corpus.name,
            "corpus_sha256": corpus.sha256,
            "corpus_positions": len(corpus),
            "corpus_unknown": corpus.unknown,
            "method": method or "jvp",
            "step": step,
            "provider": self._provider,
            "precision": str(self.step.dtype),
            "tf32": self._tf32,
            "threads": threads,
            "sketch": sketch,
            "versions": versions(),
        }
        self.state_info = {
            c.name: {"kind": c.state.kind, "layer": c.state.layer}
            for c in self.step.differentiable
            if c.name in wanted
        }

    def sums(
        self,
        layout: Plan,
        groups: Groups,
        after: int = 0,
        progress: Callable[[int, int], None] | None = None,
        kept: Checkpoint | None = None,
        key: Mapping[str, Any] | None = None,
        restore: bool = True,
    ) -> dict[str, Sums]:
        """Follow the positions of a plan.

        Args:
            layout: Which they are.
            groups: The classes that they belong to.
            after: Bytes that the caller will need while it holds the sums.
            progress: Called with positions done and in all.
            kept: The checkpoint to go on from and to keep up to date.
            key: What the run is; default the `key` of the plan.
            restore: Whether the checkpoint, if there, is of this plan.

        Raises:
            MnemoscopeError: They need too much memory, or their Jacobians overflow.
        """
        work: Job | Spread
        if self._cluster is None:
            work = self.job(layout, groups, after)
        else:
            work = self._spread(self._cluster, layout, groups, after)
        if kept is None:
            for _ in work.advance(0, work.carrier(), progress):
                pass
        else:
            key = self.key(layout, groups) if key is None else key
            follow(work, kept, key, progress, self._say, restore=restore)
        if isinstance(work, Spread):
            self.attributes["workers"] = work.workers
        found = work.sums.result()
        if self._sketch is not None:
            for of_state in found.values():
                self._sketch.unfold(of_state.block_sum)
                self._sketch.unfold(of_state.half_sum)
        if not all(map(_finite, found.values())):
            raise MnemoscopeError(
                "The Jacobians overflowed: the state's derivatives grow without bound on this "
                "corpus. Try --precision float64 or fewer --delays."
            )
        return found

    def job(self, layout: Plan, groups: Groups, after: int = 0) -> Job:
        """Make ready to follow the positions of a plan; the arguments and errors of `sums`."""
        step = self.step
        need = self._need(layout, groups, after)
        _memory.require(need.least(), self._budget, "This run", need.advice)
        count, cut = self.streams(layout, groups), self.shards(layout, groups)
        if count:
            linear = self._linearization(count)
            beside = self._side_by_side(linear, layout, groups, cut, count)
            on_cpu = self._provider == _runtime.CPU
            whole = need.with_streams(linear, beside.bytes(count if on_cpu else 0))
        else:
            linear = self._linearization()
            whole = need.whole(linear, self._by_rows(linear, layout))
        filed = f" and {_memory.shown(need.size.totals)} in a temporary file" if need.filed else ""
        self._say(
            f"Memory: about {_memory.shown(whole)} of {_memory.shown(self._budget)} allowed{filed}."
        )
        _memory.require(whole, self._budget, "This run", need.advice)
        products: Products | RowProducts | Streams
        if count:
            self._say(f"Streams side by side: {count}.")
            if self._tf32:
                self._measure_tf32(linear, layout)
            products = self._streams(linear, self._tf32, summable(beside.keys))
        else:
            products = self._products(linear, layout)
        self.attributes["streams"] = max(1, count)
        sums = Accumulator(layout, self.delays, self.sizes, step.embedding_size, step.dtype,
                           groups, products.parts, self._scratch,
                           isinstance(products, RowProducts))  # fmt: skip
        # On the CPU, whatever the provider: one stream is too little work for anything else.
        stepper = Stepper(step, self.embeddings)
        return Job(self._corpus, cut, products, sums, stepper)

    def key(self, layout: Plan, groups: Groups) -> dict[str, Any]:
        """All that the sums of a plan depend on, bit by bit, but for the machine."""
        linear = self._linearization()
        cut = [(s.begin, s.end, s.read) for s in self.shards(layout, groups)]
        return {
            "model": self._model.sha256,
            "corpus": hashed(self._corpus.ids),
            "groups": hashed(groups.start, groups.group, *groups.names),
            "positions": layout.inputs,
            "blocks": layout.blocks,
            "delays": self.delays,
            "states": list(self.sizes),
            "method": linear.method,
            "step": self._step_width,
            "precision": str(self.step.dtype),
            "provider": self._provider,
            "tf32": self._tf32,
            "threads": self._threads if self._provider == _runtime.CPU else None,
            "sketch": self._sketch and self._sketch.named,
            "rows": self._by_rows(linear, layout),
            "streams": self.streams(layout, groups),
            "sample and halves (--seed)": hashed(layout.block, layout.half, np.array(cut)),
            **versions(),
            "scipy": version("scipy"),  # whose matrix products these are
        }

    def _spread(self, cluster: Cluster, layout: Plan, groups: Groups, after: int) -> Spread:
        """What a `job` would follow, to be followed by the workers of a cluster."""
        if self._provider != _runtime.CPU:
            raise MnemoscopeError("Workers follow on the CPU only: use --provider cpu.")
        linear, step, table = self._linearization(), self.step, self.embeddings
        shards = self.shards(layout, groups)
        here, by_rows = self._need(layout, groups, after), self._by_rows(linear, layout)
        # A task has sums of the blocks of its own, and those again as they are sent.
        blocks = max(blocks_of(part, layout) for part in split(shards, 1))
        sent = here.size.totals // (layout.blocks + 1) * (blocks + 1)
        need = replace(
            here, layout=replace(layout, blocks=blocks), after=sent, scratch=False
        ).whole(linear, by_rows)
        self._say(
            f"Memory: about {_memory.shown(here.least())} here and {_memory.shown(need)} for each "
            "task of a worker."
        )
        local = (cluster.workers or 0) * need
        _memory.require(here.least() + local, self._budget, "This run", here.advice)
        sums = Accumulator(layout, self.delays, self.sizes, step.embedding_size, step.dtype,
                           groups, None, self._scratch, by_rows)  # fmt: skip
        engine = Engine(
            self._products_of(linear, by_rows), linear, self.delays, self.sizes, sums.staged, need,
            self._given_memory if cluster.scheduler else None,
        )  # fmt: skip
        self.attributes |= {"scheduler": cluster.scheduler, "threads": self._threads}
        stepper = Stepper(step, table)
        return Spread(cluster, engine, self._corpus, shards, layout, groups, sums, stepper)

    @property
    def cells(self) -> int:
        """Pairs of a unit of a wanted state and a coordinate of the embedding."""
        return sum(self.sizes.values()) * self.step.embedding_size

    def shards(self, layout: Plan, groups: Groups) -> list[Shard]:
        """The positions of a plan as they are followed, one shard after another."""
        return self._cut(layout, groups, self.streams(layout, groups))

    def streams(self, layout: Plan, groups: Groups) -> int:
        """How many shards are followed side by side; 0 where it is one, by the engines for one."""
        key = (layout.stretches.tobytes(), layout.inputs, len(groups))
        if key not in self._counts:  # which is then what it was, whatever is free by now
            self._counts[key] = self._count(layout, groups)
        return self._counts[key]

    def _count(self, layout: Plan, groups: Groups) -> int:
        on_cpu, linear = self._provider == _runtime.CPU, self._linearization()
        alone = 0 if on_cpu else 1
        if self._cluster is not None:
            return alone
        if self._asked == 1 or (on_cpu and self._sketch is not None):
            return alone
        count = self._asked or 0
        if not count and on_cpu:
            inside = sum(int(high - low) for low, high in layout.stretches)
            # Streams multiply the delays of inputs that nobody follows too, and sum all classes.
            if layout.inputs == inside and not self._by_rows(linear, layout):
                count = at_small_steps(linear, self.delays + 1, layout.inputs, len(groups))
            if not count:
                return alone
        if linear.method == "jvp-dense" or not streams_apart(self.step, _TRIED):
            if self._asked:
                self._say("One stream: side by side they would influence each other.")
            return alone
        if not count:
            shards = self._cut(layout, groups, 1)
            # Many streams may well be in all blocks at once.
            most = min(len(groups) * (layout.blocks + 1), MOST_KEYS)
            beside = replace(self._side_by_side(linear, layout, groups, shards, 1), keys=most)
            count = fitting(beside, layout.inputs, int(_memory.of_card() * _OF_CARD))
        count = evened(len(self._cut(layout, groups, count)), count)
        return alone if count == 1 else count

    def _cut(self, layout: Plan, groups: Groups, count: int) -> list[Shard]:
        most = positions_of(self._linearization(), self.delays, len(groups))
        if count:
            most = length_of(layout, most, count)
        return shards(layout, self.delays, len(self._corpus), most)

    def _side_by_side(
        self, linear: Linearization, layout: Plan, groups: Groups, cut: list[Shard], count: int
    ) -> Need:
        carried = carried_states(linear, list(self.sizes))
        return Need(
            linear,
            sum(c.size for c in self.step.differentiable if c.name in carried),
            sum(self.sizes.values()),
            self.delays + 1,
            keys_of(layout, groups, cut, count),
            max(shard.steps for shard in cut),
        )

    def _streams(self, linear: Linearization, tf32: bool, summing: bool) -> Streams:
        return Streams(linear, self.delays, list(self.sizes), self.embeddings,
                       provider=self._provider, tf32=tf32,
                       threads=self._threads,
                       summing=summing)  # fmt: skip

    def _measure_tf32(self, linear: Linearization, layout: Plan) -> None:
        """Follow a few inputs with TF32 and without, and keep how far the means are apart."""
        window, length = self.delays + 1, len(self._corpus)
        some = shards(layout, self.delays, length, window)[: linear.batch]
        whole = Plan(np.array([[0, length]]), np.zeros(length, int), np.zeros(length, int), 1)
        found = []
        for tf32 in (True, False):
            sums = Accumulator(whole, self.delays, self.sizes, self.step.embedding_size,
                               self.step.dtype, Groups.everything(length))  # fmt: skip
            job = Job(self._corpus, some, self._streams(linear, tf32, True), sums,
                      Stepper(self.step, self.embeddings))  # fmt: skip
            job.follow(some, job.carrier())
            found.append(sums.result())
        rounded, exact = found
        error = max(_distance(rounded[s].half_sum[0], exact[s].half_sum[0]) for s in exact)
        self.attributes["tf32_error"] = error
        inputs = sum(int(shard.follow.sum()) for shard in some)
        self._say(f"TF32 moves the mean of {inputs:,} positions by up to {error:.1e} of its size.")

    def most_groups(self, members: int, after: int = 0) -> int:
        """How many groups of so many members, in one block, can be summed at once in memory.

        Args:
            members: Of each group.
            after: As `sums` takes it.
        """
        one = Groups.from_numbers(
            ["group"], np.where(np.arange(len(self._corpus)) < members, 0, -1)
        )
        length = len(self._corpus)
        layout = Plan(np.array([[0, length]]), np.zeros(length, int), np.zeros(length, int), 1)
        need = self._need(layout, one, after)
        # As many again count their staging sums twice over, which one does not.
        each = need.size.totals + 2 * need.size.staging // (2 + STAGED)
        return max(1, (self._budget - need.whole(self._linearization())) // each)

    def _need(self, layout: Plan, groups: Groups, after: int) -> _Need:
        return _Need(layout, self.delays, self.sizes, groups, self.step, self._model, after,
                     self._scratch is not None, self._volatile,
                     sum(self._sketch.hands) if self._sketch else None)  # fmt: skip

    def _linearization(self, batch: int | None = None) -> Linearization:
        """The step linearised for so many positions a call; None chooses."""
        if batch not in self._linear:
            number = 1 if batch is None and self._provider != _runtime.CPU else batch
            if self._method == "fd":
                if self._scales is None:
                    self._warn_of_treads()
                    self._scales = _scales(self.step, self._corpus, self.embeddings, self._provider)
                found = difference_linearization(self.step, self._scales, self._step_width, number)
            else:
                found, obstacle = linearize(self.step, number)
                if obstacle and not self._linear:
                    self._say(f"No block rule for {obstacle}: dense derivatives through onnx-ad, "
                              "more slowly.")  # fmt: skip
            self._linear[batch] = found
        self.attributes["method"] = self._linear[batch].method
        return self._linear[batch]

    def _warn_of_treads(self) -> None:
        op = next((n.op_type for n in self.step.model.graph.node if rounds(n.op_type)), None)
        if op and (self._step_width is None or self._step_width < _TREADS):
            self._say(
                f"Warning: {op} rounds its input, and a step of the differences that is narrower "
                "than what it rounds to sees stairs instead of slopes. Try --step 0.1 to 0.5; "
                "what two such steps agree on is the model's."
            )

    def _products(self, linear: Linearization, layout: Plan) -> Products | RowProducts:
        return self._products_of(linear, self._by_rows(linear, layout))()

    def _products_of(
        self, linear: Linearization, by_rows: bool
    ) -> Callable[[], Products | RowProducts]:
        """What makes the products of one stream on the CPU, here or on a worker."""
        given = (linear, self.delays, list(self.sizes), self.embeddings)
        if by_rows:
            return partial(RowProducts, *given, threads=self._threads)
        return partial(Products, *given, threads=self._threads, sketch=self._sketch)

    def _by_rows(self, linear: Linearization, layout: Plan) -> bool:
        if self._sketch is not None or self._provider != _runtime.CPU:
            return False
        if self._side is not None:
            return self._side == "rows"
        # Rows are carried past inputs that nobody follows, columns are not.
        inside = sum(int(high - low) for low, high in layout.stretches)
        return layout.inputs == inside and cheaper_by_rows(linear, list(self.sizes))

    def _dealt(self, directions: int | None, seed: int) -> Sketch | None:
        size = self.step.embedding_size
        if directions is None or directions == size:
            return None
        if not 1 <= directions < size:
            raise MnemoscopeError(
                f"A sketch takes 1 to {size} directions, as many as the embedding has, not "
                f"{directions}."
            )
        if self._provider != _runtime.CPU:
            raise MnemoscopeError("A sketch runs on the CPU only: use --provider cpu.")
        return Sketch(size, directions, self._threads, seed, self.step.dtype)


@dataclass(frozen=True)
class Job:
    """The shards of a plan, and what they are followed with.

    Attributes:
        corpus: Token ids.
        shards: All of the plan's, in the order of the corpus.
        products: What follows them.
        sums: Where their Jacobians are added.
        stepper: Carries the states from shard to shard.
    """

    corpus: Corpus
    shards: list[Shard]
    products: Products | RowProducts | Streams
    sums: Accumulator
    stepper: Stepper

    def carrier(self, position: int = 0, states: States | None = None) -> Carrier:
        """The states along the corpus, known before `position`; default at its beginning."""
        return Carrier(self.stepper, self.corpus.ids, position, states)

    def advance(
        self, done: int, carrier: Carrier, progress: Callable[[int, int], None] | None = None
    ) -> Generator[tuple[int, int, States]]:
        """Follow all shards but the first `done`.

        Yields:
            After some shards: how many are done in all, a position, and the states before it.
        """
        before, total = (sum(s.steps for s in part) for part in (self.shards[:done], self.shards))
        while done < len(self.shards):
            some = self.shards[done : done + self.at_once]
            self.follow(some, carrier, later(progress, before, total))
            before += sum(shard.steps for shard in some)
            done += len(some)
            yield done, *carrier.known

    def follow(
        self,
        shards: Sequence[Shard],
        carrier: Carrier,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Follow some shards, one after another, and move their sums to the totals.

        Args:
            shards: In the order of the corpus.
            carrier: The states before the first.
            progress: Called with steps done and in all.
        """
        before, total = 0, sum(shard.steps for shard in shards)
        for low in range(0, len(shards), self.at_once):
            some = shards[low : low + self.at_once]
            for done in self._side_by_side(some, carrier):
                if progress:
                    progress(before + done, total)
            self.sums.flush()
            before += sum(shard.steps for shard in some)

    @property
    def at_once(self) -> int:
        """How many shards are followed side by side: only after so many are the sums whole."""
        return self.products.count if isinstance(self.products, Streams) else 1

    def _side_by_side(self, some: Sequence[Shard], carrier: Carrier) -> Iterator[int]:
        """Follow so many shards; yields time steps done."""
        if isinstance(self.products, Streams):
            starts = [carrier.at(shard.begin) for shard in some]
            yield from self.products.run(self.corpus.ids, some, starts, self.sums)
            return
        (shard,) = some
        tokens = self.corpus.ids[shard.begin : shard.read]
        start, keep = carrier.at(shard.begin), shard.end - shard.begin
        yield from self.products.run(tokens, start, self._visit, shard.begin, shard.follow, keep)
        if self.products.kept is not None:
            carrier.know(shard.end, self.products.kept)

    def _visit(self, window: Window | RowWindow) -> None:
        if isinstance(window, RowWindow):
            self.sums.add_input(window.position, window.jacobians, window.part)
        else:
            self.sums.add(window.time, window.inputs, window.jacobians, window.part,
                          window.directions)  # fmt: skip


def _finite(sums: Sums) -> bool:
    for block in sums.block_sum:
        for matrices in block:
            if not np.isfinite(matrices).all():
                return False
        sums.release()
    return True


def _members(corpus: Corpus, groups: Groups) -> np.ndarray:
    """``[member, 3]``: group, token, and how often the token is an input in the group."""
    pairs = np.stack([groups.group, corpus.ids[groups.position]], axis=1)
    found, count = np.unique(pairs, axis=0, return_counts=True)
    return np.concatenate([found, count[:, None]], axis=1)


def _check_choice(what: str, given: Any, known: tuple[str, ...]) -> None:
    if given is not None and given not in known:
        raise MnemoscopeError(f"The {what} must be {' or '.join(known)}, not {given!r}.")


def _distance(found: np.ndarray, truth: np.ndarray) -> float:
    """The largest relative error of a matrix, by Frobenius norm; ``[delay, unit, embedding]``."""
    sizes = np.linalg.norm(truth.astype(np.float64), axis=(-2, -1))
    apart = np.linalg.norm(found.astype(np.float64) - truth, axis=(-2, -1))
    return float((apart[sizes > 0] / sizes[sizes > 0]).max(initial=0.0))


def _check_numbers(corpus: Corpus, delays: int, threads: int | None, streams: int | None) -> None:
    if delays < 0:
        raise MnemoscopeError(f"The largest delay must be 0 or more, not {delays}.")
    if delays >= len(corpus):
        raise CorpusError(
            f"The corpus has {len(corpus)} positions, too few for a delay of {delays}: it needs "
            f"at least {delays + 1}. Use a longer corpus or a smaller --delays."
        )
    if threads is not None and threads < 1:
        raise MnemoscopeError(f"The number of threads must be 1 or more, not {threads}.")
    if streams is not None and streams < 1:
        raise MnemoscopeError(f"The number of streams must be 1 or more, not {streams}.")


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
    groups: Groups
    step: Step
    model: MemoryModel
    after: int  # what is made of the sums while they are held
    scratch: bool  # whether there is a folder for large totals
    volatile: bool = False  # whether it was not used, since its files would lie in memory
    sketch: int | None = None  # directions that are followed for each input

    @property
    def size(self) -> Size:
        """Of the sums."""
        cells = sum(self.sizes.values()) * self.step.embedding_size
        return Size.of(self.layout, self.groups, self.delays + 1, cells, self.step.dtype)

    @property
    def filed(self) -> bool:
        """Whether a temporary file holds the totals."""
        return self.scratch and self.size.filed

    def least(self) -> int:
        """What is known before the step is linearised."""
        proto = self.model.proto.ByteSize()
        table = self.model.vocabulary_size * self.step.embedding_size
        size, item = self.size, self.step.dtype.itemsize
        # Of what a file holds, the block at hand is in memory until it is let go.
        totals = size.totals // (self.layout.blocks + 1) if self.filed else size.totals
        # Whitening takes three tables in double precision; the file is parsed, cut, written out
        # and loaded.
        columns = min(self._columns, sum(self.sizes.values()))
        return (
            self._tangents(list(self.sizes), columns)
            + totals
            + max(size.staging, self.after)
            + table * (2 * item + 24)
            + 4 * proto
        )

    def whole(self, linear: Linearization, by_rows: bool = False) -> int:
        """With the states that are carried along, and the derivatives."""
        item = self.step.dtype.itemsize
        carried, wanted = carried_states(linear, list(self.sizes)), sum(self.sizes.values())
        least = min(self._columns, wanted)
        if by_rows:
            found = (self.delays + 1) * wanted * self.step.embedding_size * item
            more = self._tangents(carried, wanted) + found
        else:
            more = self._tangents(carried, self._columns)
        dense = sum(linear.dense())
        return (
            self.least()
            - self._tangents(list(self.sizes), least)
            + more
            # The batches that wait for the products, one as it comes and one being arranged.
            + (AHEAD + 3) * linear.batch * dense * item
            + linear.working
            + 8 * linear.model.ByteSize()
        )

    def with_streams(self, linear: Linearization, beside: int) -> int:
        """With streams side by side that hold `beside` here, instead of one."""
        least = min(self._columns, sum(self.sizes.values()))
        tangents = self._tangents(list(self.sizes), least)
        return self.least() - tangents + beside + 8 * linear.model.ByteSize()

    @property
    def _columns(self) -> int:
        """Of the embedding that are carried."""
        return self.sketch or self.step.embedding_size

    def _tangents(self, states: list[str], number: int) -> int:
        """Two buffers of so many columns or rows, and what the products hold besides."""
        width = sum(c.size for c in self.step.differentiable if c.name in states)
        return 4 * (self.delays + 1) * number * width * self.step.dtype.itemsize

    @property
    def advice(self) -> str:
        """What to ask less of."""
        disk = ""
        if self.volatile and self.size.filed:
            disk = "write the output to a folder that is not in memory (tmpfs), "
        return (
            f"Ask for fewer --delays (now {self.delays}), one --state (now "
            f"{', '.join(self.sizes)}), fewer --blocks (now {self.layout.blocks}), {disk}or raise "
            "--memory."
        )


def _scales(step: Step, corpus: Corpus, table: np.ndarray, provider: str) -> dict[str, np.ndarray]:
    """How far each coordinate ranges: root mean square over the start of the corpus."""
    stepper = Stepper(step, table, provider)
    now = stepper.initial()
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


def hashed(*parts: np.ndarray | str) -> str:
    """SHA-256 of arrays and texts, one after another."""
    found = hashlib.sha256()
    for part in parts:
        data = (
            part.encode("utf-8", "surrogatepass")
            if isinstance(part, str)
            else np.ascontiguousarray(part).tobytes()
        )
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()


def versions() -> dict[str, str]:
    """Library → the version that runs here."""
    versions = {"mnemoscope": __version__}
    for name in ("numpy", "onnx", "onnx-ad", "onnxruntime-gpu", "onnxruntime", "xarray"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
