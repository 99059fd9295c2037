"""A model made ready to be followed over a corpus."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Literal, get_args

import numpy as np

from . import _memory, _runtime
from ._calibration import Choice
from ._checkpoint import Checkpoint, follow
from ._cluster import Cluster, cluster_of
from ._engines import Engines, Options
from ._files import printable
from ._identity import hashed, versions, vocabulary_hash
from ._job import Job
from ._need import Need
from ._rows import RowProducts
from .corpus import Corpus
from .distributed import Engine, Spread, blocks_of, split
from .errors import CorpusError, MnemoscopeError
from .groups import Groups
from .linearize import Linearization, Step, build_step
from .model import MemoryModel
from .sums import STAGED, Plan, Sums

Method = Literal["jvp", "fd"]
Precision = Literal["float32", "float64"]

_MOST_THREADS = 1024  # more than any machine has a use for; a system refuses to start many more


class Run:
    """A model made ready to be followed over a corpus, any number of times.

    Arguments are those of `analyze`, but for `scratch`, without which sums are held in memory, and
    `side`: ``columns`` of the embedding or ``rows`` of the states (default what is cheaper), and
    `before`: what `Checkpoint.choices` says of the run that this one goes on with.

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
        chunk: int | None = None,
        calibrate: bool | None = None,
        sketch: int | None = None,
        seed: int = 0,
        side: Literal["columns", "rows"] | None = None,
        scratch: str | os.PathLike[str] | None = None,
        scheduler: str | None = None,
        workers: int | None = None,
        report: Callable[[str], None] | None = None,
        before: Mapping[str, int] | None = None,
    ) -> None:
        say = self._say = report or (lambda line: None)
        self.delays = 50 if delays is None else delays
        _check_choice("method", method, get_args(Method))
        _check_choice("precision", precision, get_args(Precision))
        _check_numbers(corpus, self.delays, threads=threads, streams=streams, chunk=chunk)
        _check_numbers(corpus, self.delays, threads=(before or {}).get("threads"))
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
        self._model, self._corpus, self._step_width = model, corpus, step
        self._budget, self._given_memory = _memory.allowed(memory), memory
        self._given_threads, self._given_chunk = threads, chunk
        # A file that lies in memory saves none.
        self._volatile = scratch is not None and _memory.holds(scratch)
        self._scratch = None if self._volatile or scratch is None else os.fspath(scratch)
        self.embeddings = model.embeddings_in(self.step.dtype)
        if self._cluster is not None and threads is None:
            threads = self._cluster.threads
        options = Options(
            delays=self.delays,
            states=list(self.sizes),
            method=method,
            step=step,
            provider=self._provider,
            tf32=bool(tf32),
            threads=threads,
            streams=streams,
            chunk=chunk,
            sketch=sketch,
            seed=seed,
            side=side,
            workers=self._cluster is not None,
            calibrate=calibrate is not False,
            before=before or {},
        )
        self.engines = Engines(self.step, corpus, self.embeddings, options, say)
        self.attributes = {
            "model": printable(model.path.name),
            "model_sha256": model.sha256,
            "vocabulary_sha256": vocabulary_hash(model),
            "unknown_token": model.vocabulary.unknown if model.vocabulary else None,
            **{f"source_{k}": v for k, v in model.roles.source.items()},
            "corpus": corpus.name,
            "corpus_sha256": corpus.sha256,
            "corpus_positions": len(corpus),
            "corpus_unknown": corpus.unknown,
            "step": step,
            "provider": self._provider,
            "precision": str(self.step.dtype),
            "tf32": options.tf32,
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
        if (sketch := self.engines.sketch) is not None:
            for of_state in found.values():
                sketch.unfold(of_state.block_sum)
                sketch.unfold(of_state.half_sum)
        if not all(map(_finite, found.values())):
            raise MnemoscopeError(
                "The Jacobians overflowed: the state's derivatives grow without bound on this "
                "corpus. Try --precision float64 or fewer --delays."
            )
        return found

    def job(self, layout: Plan, groups: Groups, after: int = 0) -> Job:
        """Make ready to follow the positions of a plan; the arguments and errors of `sums`."""
        need = self._need(layout, groups, after)
        _memory.require(need.least(), self._budget, "This run", need.advice)
        choice, _ = self._chosen(
            layout, groups, lambda c: self._whole(need, layout, groups, c) <= self._budget
        )
        whole = self._whole(need, layout, groups, choice)
        filed = f" and {_memory.shown(need.size.totals)} in a temporary file" if need.filed else ""
        self._say(
            f"Memory: about {_memory.shown(whole)} of {_memory.shown(self._budget)} allowed{filed}."
        )
        _memory.require(whole, self._budget, "This run", need.advice)
        if choice.streams:
            self._say(f"Streams side by side: {choice.streams}.")
        products = self.engines.make(layout, groups)
        if self.engines.tf32_error is not None:
            self.attributes["tf32_error"] = self.engines.tf32_error
        sums = self.engines.accumulator(
            layout, groups, products.parts, self._scratch, isinstance(products, RowProducts)
        )
        shards = self.engines.shards(layout, groups)
        return Job(self._corpus, shards, products, sums, self.engines.stepper())

    def _whole(self, need: Need, layout: Plan, groups: Groups, choice: Choice) -> int:
        """Bytes that it takes to follow a plan in some way."""
        if not choice.streams:
            return need.whole(self.engines.linearization(choice.chunk), choice.rows)
        streams = choice.streams if self._provider == _runtime.CPU else 0
        beside = self.engines.beside(layout, groups, choice).bytes(streams)
        return need.with_streams(self.engines.linearization(choice.streams), beside)

    def _chosen(
        self, layout: Plan, groups: Groups, fits: Callable[[Choice], bool] | None = None
    ) -> tuple[Choice, Linearization]:
        """How a plan is followed, which the result then says."""
        choice = self.engines.choice(layout, groups, fits)
        linear = self.engines.linearization(choice.streams or choice.chunk)
        on_cpu = self._provider == _runtime.CPU
        self.attributes |= {
            "method": linear.method,
            "streams": max(1, choice.streams),
            "threads": choice.threads if on_cpu else self._given_threads,
            "chunk": None if choice.streams else choice.chunk,
        }
        return choice, linear

    def key(self, layout: Plan, groups: Groups) -> dict[str, Any]:
        """All that the sums of a plan depend on, bit by bit, but for the machine."""
        choice, linear = self._chosen(layout, groups)
        cut = [(s.begin, s.end, s.read) for s in self.engines.shards(layout, groups)]
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
            "tf32": self.attributes["tf32"],
            "sketch": self.engines.sketch and self.engines.sketch.named,
            "rows": choice.rows,
            **{name: self.attributes[name] for name in ("threads", "streams")},
            "chunk": choice.chunk,
            "calibrated": int(self.engines.calibrated),
            "sample and halves (--seed)": hashed(layout.block, layout.half),
            "shards": hashed(np.array(cut)),
            **versions(),
            "scipy": version("scipy"),  # whose matrix products these are
        }

    def _spread(self, cluster: Cluster, layout: Plan, groups: Groups, after: int) -> Spread:
        """What a `job` would follow, to be followed by the workers of a cluster."""
        if self._provider != _runtime.CPU:
            raise MnemoscopeError("Workers follow on the CPU only: use --provider cpu.")
        choice, linear = self._chosen(layout, groups)
        shards, here = self.engines.shards(layout, groups), self._need(layout, groups, after)
        # A task has sums of the blocks of its own, and those again as they are sent.
        blocks = max(blocks_of(part, layout) for part in split(shards, 1))
        sent = here.size.totals // (layout.blocks + 1) * (blocks + 1)
        need = replace(
            here, layout=replace(layout, blocks=blocks), after=sent, scratch=False
        ).whole(linear, choice.rows)
        self._say(
            f"Memory: about {_memory.shown(here.least())} here and {_memory.shown(need)} for each "
            "task of a worker."
        )
        local = (cluster.workers or 0) * need
        _memory.require(here.least() + local, self._budget, "This run", here.advice)
        sums = self.engines.accumulator(layout, groups, None, self._scratch, choice.rows)
        engine = Engine(
            self.engines.maker(choice), linear, self.delays, self.sizes, sums.staged, need,
            self._given_memory if cluster.scheduler else None,
        )  # fmt: skip
        self.attributes["scheduler"] = cluster.scheduler
        stepper = self.engines.stepper()
        return Spread(cluster, engine, self._corpus, shards, layout, groups, sums, stepper)

    @property
    def cells(self) -> int:
        """Pairs of a unit of a wanted state and a coordinate of the embedding."""
        return sum(self.sizes.values()) * self.step.embedding_size

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
        return max(1, (self._budget - need.whole(self.engines.linearization())) // each)

    def _need(self, layout: Plan, groups: Groups, after: int) -> Need:
        sketch = self.engines.sketch
        return Need(layout, self.delays, self.sizes, groups, self.step, self._model, after,
                     self._scratch is not None, self._volatile,
                     sum(sketch.hands) if sketch else None, self._given_chunk)  # fmt: skip


def _finite(sums: Sums) -> bool:
    for block in sums.block_sum:
        for matrices in block:
            if not np.isfinite(matrices).all():
                return False
        sums.release()
    return True


def _check_choice(what: str, given: Any, known: tuple[str, ...]) -> None:
    if given is not None and given not in known:
        raise MnemoscopeError(f"The {what} must be {' or '.join(known)}, not {given!r}.")


def _check_numbers(corpus: Corpus, delays: int, **numbers: int | None) -> None:
    if delays < 0:
        raise MnemoscopeError(f"The largest delay must be 0 or more, not {delays}.")
    if delays >= len(corpus):
        raise CorpusError(
            f"The corpus has {len(corpus)} positions, too few for a delay of {delays}: it needs "
            f"at least {delays + 1}. Use a longer corpus or a smaller --delays."
        )
    names = {"threads": "threads", "streams": "streams", "chunk": "positions in a chunk"}
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise MnemoscopeError(f"The number of {names[name]} must be 1 or more, not {number}.")
    threads = numbers.get("threads")
    if threads is not None and threads > _MOST_THREADS:
        raise MnemoscopeError(
            f"The number of threads must be {_MOST_THREADS:,} or less, not {threads}."
        )


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
