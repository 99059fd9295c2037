"""The engines that can follow a model, the choice between them, and how finely they work.

All give the same Jacobians: `_products.py` by columns of the embedding, `_rows.py` by rows of the
states, `_streams.py` for many shards side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from . import _memory, _runtime
from ._calibration import SECONDS, Calibration, Candidates, Choice, worth_it
from ._job import Job
from ._pipeline import processors
from ._products import Products
from ._rows import RowProducts, cheaper_by_rows
from ._shards import Carrier, Shard, folded_work, positions_of, shards
from ._sketch import Sketch
from ._states import States, Stepper
from ._stream_count import (
    MOST_KEYS,
    StreamNeed,
    at_small_steps,
    evened,
    fitting,
    keys_of,
    length_of,
    may_pay,
    summable,
)
from ._streams import Streams
from .corpus import Corpus
from .errors import MnemoscopeError
from .groups import Groups
from .linearize import (
    Linearization,
    Step,
    difference_linearization,
    linearize,
    rounds,
    streams_apart,
)
from .sums import Accumulator, Plan

_TREADS = 0.1  # a few of the 255 treads that eight bits give a coordinate, in units of its range
_TRIED = 8  # streams run together to see whether they keep apart
_OF_CARD = 0.6  # of what a GPU has free, since ONNX Runtime takes memory in powers of two
_CARRIED = 200  # tokens that tell how long carrying the states takes
_SCALE_POSITIONS = 1000  # positions that tell how far each state coordinate ranges

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What is asked of the engines; None leaves a choice to them.

    Attributes:
        delays: Largest delay.
        states: Names of those that are summed.
        method: ``jvp`` or ``fd``.
        step: Of ``fd``, in units of each coordinate's own range.
        provider: ONNX Runtime provider.
        tf32: Whether CUDA may round factors to TF32.
        threads: On the CPU.
        streams: Side by side.
        chunk: Positions linearised in one call.
        sketch: Directions that stand for all of the embedding space.
        seed: Of those.
        side: Of the products.
        workers: Whether the engines run on the workers of a cluster, one stream a task.
        calibrate: Whether to find out what is fastest here.
        before: What the run that this one goes on with had chosen (`Checkpoint.choices`) for the
            first plan; the same choice gives the same bits. What is asked for comes first.
    """

    delays: int
    states: list[str]
    method: str | None
    step: float | None
    provider: str
    tf32: bool
    threads: int | None
    streams: int | None
    chunk: int | None
    sketch: int | None
    seed: int
    side: Literal["columns", "rows"] | None
    workers: bool
    calibrate: bool
    before: Mapping[str, int]


class Engines:
    """What can follow a step over a corpus.

    Args:
        step: The step.
        corpus: Token ids.
        embeddings: ``[V, E]`` in the precision of the step.
        options: What is asked of them.
        say: Takes a line about each choice.

    Attributes:
        sketch: The directions that stand for all; None means all.
        tf32_error: How far TF32 moved the means of a few inputs, relatively, once it was measured.

    Raises:
        MnemoscopeError: The options do not fit the model.
    """

    def __init__(
        self, step: Step, corpus: Corpus, embeddings: np.ndarray, options: Options, say: Say
    ) -> None:
        self._step, self._corpus, self._embeddings = step, corpus, embeddings
        self._options, self._say = options, say
        self._on_cpu = options.provider == _runtime.CPU
        self._threads = options.threads or processors()
        self.sketch = self._dealt(options.sketch)
        self._choices: dict[tuple, Choice] = {}
        self._found: Choice | None = None
        self._relays: tuple[str, ...] | None = None
        self._linear: dict[int, Linearization] = {}
        self._natural: int | None = None  # positions of a call that suit the step
        self._scales: dict[str, np.ndarray] | None = None
        self.tf32_error: float | None = None

    def linearization(self, batch: int | None = None) -> Linearization:
        """The step linearised for so many positions a call; None means as many as suit it."""
        batch = self._natural if batch is None else batch
        if batch is None or batch not in self._linear:
            options = self._options
            number = 1 if batch is None and not self._on_cpu else batch
            if options.method == "fd":
                if self._scales is None:
                    self._warn_of_treads()
                    self._scales = _scales(self._step, self._corpus, self._embeddings)
                found = difference_linearization(self._step, self._scales, options.step, number)
            else:
                found, obstacle = linearize(self._step, number, options.states, self._relays)
                self._relays = tuple(dict.fromkeys(r for _, r in found.relayed))
                if obstacle and not self._linear:
                    self._say(f"No block rule for {obstacle}: dense derivatives through onnx-ad, "
                              "more slowly.")  # fmt: skip
            self._natural = found.batch if batch is None else self._natural
            batch = found.batch
            self._linear[batch] = found
        return self._linear[batch]

    def choice(
        self, layout: Plan, groups: Groups, fits: Callable[[Choice], bool] | None = None
    ) -> Choice:
        """How the positions of a plan are followed.

        Args:
            layout: Which they are.
            groups: Their classes.
            fits: Whether memory holds what a choice needs.
        """
        key = (layout.stretches.tobytes(), layout.inputs, len(groups))
        if key not in self._choices:  # which is then what it was, whatever is free by now
            usual = self._usual(layout, groups)
            if self._options.before and not self._choices:
                better: Choice | None = self._as_before(usual, layout, groups)
            else:
                better = self._calibrated(usual, layout, groups, fits or (lambda choice: True))
            self._choices[key] = better or usual
            # Each holds a copy of the weights.
            used = {self._natural, *(c.streams or c.chunk for c in self._choices.values())}
            self._linear = {n: of for n, of in self._linear.items() if n in used}
        return self._choices[key]

    def shards(self, layout: Plan, groups: Groups) -> list[Shard]:
        """The positions of a plan as they are followed, one shard after another."""
        return self._cut(layout, groups, self.choice(layout, groups).streams)

    def beside(self, layout: Plan, groups: Groups, choice: Choice) -> StreamNeed:
        """What the streams of a choice hold."""
        cut, linear = self._cut(layout, groups, choice.streams), self.linearization(choice.streams)
        return self._beside(linear, layout, groups, cut, choice.streams)

    def make(self, layout: Plan, groups: Groups) -> Products | RowProducts | Streams:
        """The engine that is chosen for a plan."""
        choice = self.choice(layout, groups)
        if not choice.streams:
            return self.maker(choice)()
        if self._options.tf32:
            self.tf32_error = self._measure_tf32(choice, layout)
        summing = summable(self.beside(layout, groups, choice).keys)
        return self._streams(choice, self._options.tf32, summing)

    def maker(self, choice: Choice) -> Callable[[], Products | RowProducts]:
        """What makes the engine for one stream on the CPU, here or on a worker."""
        options = self._options
        linear = self.linearization(choice.chunk)
        given = (linear, options.delays, options.states, self._embeddings)
        if choice.rows:
            return partial(RowProducts, *given, threads=choice.threads)
        return partial(Products, *given, threads=choice.threads, sketch=self.sketch)

    def accumulator(
        self,
        layout: Plan,
        groups: Groups,
        parts: list[slice] | None = None,
        scratch: str | None = None,
        rows: bool = False,
    ) -> Accumulator:
        """Where the Jacobians of a plan are added."""
        sizes = {s: self._step.sources[s][1] for s in self._options.states}
        return Accumulator(layout, self._options.delays, sizes, self._step.embedding_size,
                           self._step.dtype, groups, parts, scratch, rows)  # fmt: skip

    def stepper(self) -> Stepper:
        """What carries the states: on the CPU, since one stream is little work, on any provider."""
        return Stepper(self._step, self._embeddings)

    def _usual(self, layout: Plan, groups: Groups) -> Choice:
        """What formulas say, on any machine."""
        linear = self.linearization()
        return Choice(self._by_rows(linear, layout), self._count(linear, layout, groups),
                      self._threads, self._chunk(linear, self._options.chunk))  # fmt: skip

    def _chunk(self, linear: Linearization, asked: int | None) -> int:
        """Positions that one call linearises."""
        chunk = min(asked or linear.batch, len(self._corpus))
        if not self._on_cpu or chunk in (1, linear.batch):
            return chunk if self._on_cpu else linear.batch
        _memory.require(chunk * linear.working // linear.batch, _memory.available(),
                        f"Linearising {chunk:,} positions in one call",
                        "Ask for a smaller --chunk.")  # fmt: skip
        if linear.method == "jvp-dense" or not streams_apart(self._step, min(chunk, _TRIED)):
            self._say("One position a call: side by side they would influence each other.")
            return 1
        return chunk

    def _by_rows(self, linear: Linearization, layout: Plan) -> bool:
        if self.sketch is not None or not self._on_cpu:
            return False
        if self._options.side is not None:
            return self._options.side == "rows"
        return _whole(layout) and cheaper_by_rows(linear, self._options.states)

    def _count(self, linear: Linearization, layout: Plan, groups: Groups) -> int:
        """How many shards are followed side by side; 0 where it is one, by the engines for one."""
        asked, alone = self._options.streams, 0 if self._on_cpu else 1
        if self._options.workers or asked == 1 or (self._on_cpu and self.sketch is not None):
            return alone
        count = asked or 0
        if not count and self._on_cpu:
            if self._streams_may_pay(linear, layout):
                delays = self._options.delays + 1
                count = at_small_steps(linear, delays, layout.inputs, len(groups))
            if not count:
                return alone
        if not self._apart(linear):
            if asked:
                self._say("One stream: side by side they would influence each other.")
            return alone
        if not count:
            cut = self._cut(layout, groups, 1)
            # Many streams may well be in all blocks at once.
            most = min(len(groups) * (layout.blocks + 1), MOST_KEYS)
            beside = replace(self._beside(linear, layout, groups, cut, 1), keys=most)
            count = fitting(beside, layout.inputs, int(_memory.of_card() * _OF_CARD))
        count = evened(len(self._cut(layout, groups, count)), count)
        return alone if count == 1 else count

    def _streams_may_pay(self, linear: Linearization, layout: Plan) -> bool:
        # Streams multiply the delays of inputs that nobody follows too, and sum all classes.
        return _whole(layout) and not self._by_rows(linear, layout)

    def _apart(self, linear: Linearization) -> bool:
        return linear.method != "jvp-dense" and streams_apart(self._step, _TRIED)

    def _cut(self, layout: Plan, groups: Groups, count: int) -> list[Shard]:
        most = positions_of(self.linearization(), self._options.delays, len(groups))
        if count:
            most = length_of(layout, most, count)
        return shards(layout, self._options.delays, len(self._corpus), most)

    def _beside(
        self, linear: Linearization, layout: Plan, groups: Groups, cut: list[Shard], count: int
    ) -> StreamNeed:
        carried = linear.carried(self._options.states)
        return StreamNeed(
            linear,
            sum(c.size for c in self._step.differentiable if c.name in carried),
            sum(self._step.sources[s][1] for s in self._options.states),
            self._options.delays + 1,
            keys_of(layout, groups, cut, count),
            max(shard.steps for shard in cut),
        )

    def _streams(self, choice: Choice, tf32: bool, summing: bool) -> Streams:
        return Streams(self.linearization(choice.streams), self._options.delays,
                       self._options.states, self._embeddings, provider=self._options.provider,
                       tf32=tf32, threads=choice.threads, summing=summing)  # fmt: skip

    def _measure_tf32(self, choice: Choice, layout: Plan) -> float:
        """Follow a few inputs with TF32 and without: how far the means are apart, relatively."""
        window = self._options.delays + 1
        some = shards(layout, self._options.delays, len(self._corpus), window)[: choice.streams]
        found = []
        for tf32 in (True, False):
            sums = self.accumulator(*_everything(len(self._corpus)))
            products = self._streams(choice, tf32, True)
            job = Job(self._corpus, some, products, sums, self.stepper())
            job.follow(some, job.carrier())
            found.append(sums.result())
        rounded, exact = found
        error = max(_distance(rounded[s].half_sum[0], exact[s].half_sum[0]) for s in exact)
        inputs = sum(int(shard.follow.sum()) for shard in some)
        self._say(f"TF32 moves the mean of {inputs:,} positions by up to {error:.1e} of its size.")
        return error

    @property
    def calibrated(self) -> bool:
        """Whether trials have said what is fastest."""
        return self._found is not None

    def _as_before(self, usual: Choice, layout: Plan, groups: Groups) -> Choice:
        """The usual choice with what the run before had chosen, and nothing more was asked for."""
        options = self._options
        before = {n: v for n, v in options.before.items() if getattr(options, n, None) is None}
        linear = self.linearization()
        found = replace(usual, threads=before.get("threads", usual.threads))
        if "chunk" in before:
            found = replace(found, chunk=self._chunk(linear, before["chunk"]))
        count = before.get("streams", 1)
        if 1 < count <= len(self._cut(layout, groups, count)) and self._apart(linear):
            found = replace(found, streams=count)
        elif count == 1 and "streams" in before:
            found = replace(found, streams=0 if self._on_cpu else 1)
        if options.before.get("calibrated"):  # which later plans go by
            self._found = found
        return found

    def _calibrated(
        self, usual: Choice, layout: Plan, groups: Groups, fits: Callable[[Choice], bool]
    ) -> Choice | None:
        """What is fastest on this machine; None where finding out would not pay."""
        options = self._options
        if not (self._on_cpu and options.calibrate) or options.workers or usual.rows:
            return None
        if not fits(usual):  # and the run is about to be refused
            return None
        if self._found is not None:  # for another plan: bits should not depend on their number
            return replace(usual, threads=self._found.threads, chunk=self._found.chunk)
        linear, delays = self.linearization(), options.delays + 1
        threads, chunks, streams = [usual.threads], [usual.chunk], [usual.streams]
        if options.threads is None and self.sketch is None:  # whose parts are those of the threads
            threads += [processors() // 2, 1]
        if options.chunk is None:
            chunks += [usual.chunk // 2, usual.chunk // 4]
        if (
            options.streams is None
            and self.sketch is None
            and self._streams_may_pay(linear, layout)
        ):
            counts = may_pay(linear, delays, layout.inputs, len(groups))
            even = [evened(len(self._cut(layout, groups, n)), n) for n in counts]
            streams += [0, *(n for n in even if n > 1)]
        candidates = Candidates(
            *([n for n in dict.fromkeys(v) if n or v is streams]
              for v in (streams, threads, chunks))
        )  # fmt: skip
        work = folded_work(linear) * delays
        if not candidates.number or not worth_it(work, layout.inputs, delays, candidates.number):
            return None
        if len(candidates.streams) > 1 and not usual.streams and not self._apart(linear):
            candidates = replace(candidates, streams=[0])
        key = {
            "operators": [node.op_type for node in linear.model.graph.node],
            "sources": {s: size for s, (_, size) in self._step.sources.items()},
            "work": [work, linear.working / linear.batch],
            "states": options.states,
            "delays": options.delays,
            "method": linear.method,
            "precision": str(self._step.dtype),
            "sketch": options.sketch,
        }
        trial = partial(self._seconds, layout, groups)
        self._found = Calibration(trial, fits, self._say).best(usual, candidates, key)
        return self._found

    def _seconds(self, layout: Plan, groups: Groups, choice: Choice) -> float | None:
        """Of one position of a plan, once every delay has its input; None if it cannot be told."""
        cut = self._cut(layout, groups, choice.streams)
        some = cut[: choice.streams or 1]
        job = self._job(choice, layout, groups, some)
        began, first, now, done = 0.0, 0, 0.0, 0
        steps = job.side_by_side(some, _Still(job.stepper.initial()))
        try:
            for done in steps:
                now = time.perf_counter()
                if not first:
                    if done >= (self._options.delays + 1) * len(some):
                        began, first = now, done
                elif now - began >= SECONDS:
                    break
        except MnemoscopeError:
            return None
        finally:
            steps.close()
        if not first or now - began < SECONDS / 4:
            return None
        step = (now - began) / (done - first)
        if not choice.streams:
            return step
        # Streams stand still after their last shard, multiply what only fades, and wait for the
        # pass that carries the states, which the engines for one stream do beside the products.
        rounds = [cut[i : i + choice.streams] for i in range(0, len(cut), choice.streams)]
        whole = sum(choice.streams * max(s.steps for s in shards) for shards in rounds)
        began, states = time.perf_counter(), job.stepper.initial()
        job.stepper.read(states, self._corpus.ids[:_CARRIED])
        carried = (time.perf_counter() - began) / min(_CARRIED, len(self._corpus))
        return step * whole / layout.inputs + carried

    def _job(self, choice: Choice, layout: Plan, groups: Groups, some: list[Shard]) -> Job:
        """Make ready to follow a few shards by some choice."""
        products: Products | RowProducts | Streams
        products = self._streams(choice, False, True) if choice.streams else self.maker(choice)()
        sums = self.accumulator(layout, groups, products.parts)
        return Job(self._corpus, some, products, sums, self.stepper())

    def _warn_of_treads(self) -> None:
        op = next((n.op_type for n in self._step.model.graph.node if rounds(n.op_type)), None)
        if op and (self._options.step is None or self._options.step < _TREADS):
            self._say(
                f"Warning: {op} rounds its input, and a step of the differences that is narrower "
                "than what it rounds to sees stairs instead of slopes. Try --step 0.1 to 0.5; "
                "what two such steps agree on is the model's."
            )

    def _dealt(self, directions: int | None) -> Sketch | None:
        size = self._step.embedding_size
        if directions is None or directions == size:
            return None
        if not 1 <= directions < size:
            raise MnemoscopeError(
                f"A sketch takes 1 to {size} directions, as many as the embedding has, not "
                f"{directions}."
            )
        if not self._on_cpu:
            raise MnemoscopeError("A sketch runs on the CPU only: use --provider cpu.")
        return Sketch(size, directions, self._threads, self._options.seed, self._step.dtype)


class _Still(Carrier):
    """Gives the same states everywhere: for trials, in which values are of no matter."""

    def __init__(self, states: States) -> None:
        self._states = states

    def at(self, position: int) -> States:
        return self._states

    def know(self, position: int, states: States) -> None:
        pass


def _whole(layout: Plan) -> bool:
    """Whether every position of the stretches is followed.

    Rows and streams are carried past inputs that nobody follows, columns are not.
    """
    return layout.inputs == sum(int(high - low) for low, high in layout.stretches)


def _everything(length: int) -> tuple[Plan, Groups]:
    """All positions as one block."""
    nothing = np.zeros(length, int)
    return Plan(np.array([[0, length]]), nothing, nothing, 1), Groups.everything(length)


def _distance(found: np.ndarray, truth: np.ndarray) -> float:
    """The largest relative error of a matrix, by Frobenius norm; ``[delay, unit, embedding]``."""
    sizes = np.linalg.norm(truth.astype(np.float64), axis=(-2, -1))
    apart = np.linalg.norm(found.astype(np.float64) - truth, axis=(-2, -1))
    return float((apart[sizes > 0] / sizes[sizes > 0]).max(initial=0.0))


def _scales(step: Step, corpus: Corpus, table: np.ndarray) -> dict[str, np.ndarray]:
    """How far each coordinate ranges: root mean square over the start of the corpus."""
    stepper = Stepper(step, table)
    now, ids = stepper.initial(), corpus.ids[:_SCALE_POSITIONS]
    squares = {c.name: np.zeros(c.size) for c in step.differentiable}
    for some in np.array_split(ids, -(-len(ids) // 50)):
        found = stepper.read(now, some)
        now = {name: values[-1:] for name, values in found.items()}
        for name, total in squares.items():
            total += np.square(found[name], dtype=np.float64).sum(0)
    ranges = {name: np.sqrt(total / len(ids)) for name, total in squares.items()}
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
