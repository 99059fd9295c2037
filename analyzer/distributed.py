"""A run followed by several processes: its shards are dealt to Dask workers, and sums merge.

A shard needs the state before its first position and nothing of other shards. A cheap pass over
the corpus finds these states; tasks of some neighbouring shards follow each other to the workers,
and what each of them summed comes back and is added in the order of the corpus, whichever was done
first, so that a run is repeatable. Dask does the tasks of a lost worker again on another.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from . import _memory
from ._cluster import Cluster, connected, in_order, over, result_of
from ._products import Products
from ._rows import RowProducts, RowWindow
from ._shards import Carrier, Shard
from ._states import States, Stepper
from .corpus import Corpus
from .groups import Groups
from .linearize import Linearization
from .sums import Accumulator, Partial, Plan

_MOST = 6  # shards of a task: half a minute, which a lost worker loses
_WAIT = 0.5  # seconds
_EACH = 4  # tasks of a worker at least, so that none waits long for the last


@dataclass(frozen=True)
class Engine:
    """What a worker follows shards with, and how it sums.

    Attributes:
        products: Makes the products.
        linear: The linearised step.
        delays: Largest delay.
        sizes: State → n, the states that are asked for.
        staged: Whether the whole run has staging sums.
        need: Bytes that one task takes.
        memory: Bytes that a worker may take; None means most of what is free.
        key: By which a worker knows that it has made ready for this one.
    """

    products: Callable[[], Products | RowProducts]
    linear: Linearization
    delays: int
    sizes: dict[str, int]
    staged: bool
    need: int
    memory: int | None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Task:
    """Some shards, and all that a worker has to know of the corpus.

    Attributes:
        shards: In the order of the corpus.
        tokens: ``[shard][time]``, what each reads.
        states: ``[shard]``, the states before each.
        plan: Of the positions of the shards alone, one shard after another.
        groups: Of the same positions.
        blocks: ``[block]``, the numbers of the blocks in the whole plan.
        numbers: ``[group]``, the numbers of the groups in the whole.
    """

    shards: list[Shard]
    tokens: list[np.ndarray]
    states: list[States]
    plan: Plan
    groups: Groups
    blocks: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(
        cls, shards: list[Shard], layout: Plan, groups: Groups, ids: np.ndarray, carrier: Carrier
    ) -> Task:
        """The task of some shards of a plan."""
        positions = _positions(shards)
        blocks, block = _renumbered(layout.block[positions])
        mine = groups.select(positions)
        numbers, number = _renumbered(mine.group)
        names = tuple(groups.names[n] for n in numbers)
        return cls(
            shards,
            [ids[s.begin : s.read] for s in shards],
            [carrier.at(s.begin) for s in shards],
            Plan(np.empty((0, 2), int), block, layout.half[positions], len(blocks)),
            replace(mine, names=names, group=number),
            blocks,
            numbers,
        )


def _positions(shards: list[Shard]) -> np.ndarray:
    return np.concatenate([np.arange(s.begin, s.end) for s in shards])


def _renumbered(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different numbers from 0 on, and for each of all its place among them; -1 stays."""
    different = np.unique(numbers[numbers >= 0])
    return different, np.where(numbers >= 0, np.searchsorted(different, numbers), -1)


def split(shards: Sequence[Shard], workers: int) -> list[list[Shard]]:
    """Deal neighbouring shards to tasks, so many that `workers` have several each."""
    total, longest = sum(s.steps for s in shards), max(s.steps for s in shards)
    most = max(longest, min(_MOST * longest, total // (_EACH * workers)))
    tasks: list[list[Shard]] = [[]]
    for shard in shards:
        if tasks[-1] and sum(s.steps for s in tasks[-1]) + shard.steps > most:
            tasks.append([])
        tasks[-1].append(shard)
    return tasks


def blocks_of(shards: list[Shard], layout: Plan) -> int:
    """How many blocks some shards belong to."""
    return len(_renumbered(layout.block[_positions(shards)])[0])


@dataclass
class Spread:
    """The shards of a plan, to be followed by the workers of a cluster.

    Attributes:
        cluster: Where.
        engine: With what.
        corpus: Token ids.
        shards: All of the plan's, in the order of the corpus.
        layout: The plan.
        groups: The classes of the positions.
        sums: Where the sums are added, in the order of the corpus.
        stepper: Carries the states from shard to shard.
        workers: How many there were at the end.
    """

    cluster: Cluster
    engine: Engine
    corpus: Corpus
    shards: list[Shard]
    layout: Plan
    groups: Groups
    sums: Accumulator
    stepper: Stepper
    workers: int = 0

    def carrier(self, position: int = 0, states: States | None = None) -> Carrier:
        """The states along the corpus, known before `position`; default at its beginning."""
        return Carrier(self.stepper, self.corpus.ids, position, states)

    def advance(
        self, done: int, carrier: Carrier, progress: Callable[[int, int], None] | None = None
    ) -> Generator[tuple[int, int, States]]:
        """As `Job.advance`, some neighbouring shards a task; while it waits nothing is news.

        Raises:
            MnemoscopeError: A worker raised it, or the cluster cannot be used.
        """
        with connected(self.cluster) as client:
            number = self.cluster.workers or len(client.nthreads())
            # A task too, and not scattered data: those would be lost with the workers that hold it.
            key = f"mnemoscope-engine-{self.engine.key}"
            shared = client.submit(_given, self.engine, key=key)
            parts = split(self.shards, number)
            # Parts are cut alike however many shards are done, but for the one that is begun.
            parts = _without(parts, done)
            starts: list[States] = []

            def tasks() -> Iterator:
                for i, part in enumerate(parts):
                    task = Task.of(part, self.layout, self.groups, self.corpus.ids, carrier)
                    starts.append(task.states[0])
                    key = f"mnemoscope-{self.engine.key}-{i}"
                    yield client.submit(_follow, shared, task, key=key)

            steps = sum(s.steps for s in self.shards[:done])
            total = sum(s.steps for s in self.shards)
            for i, (part, found) in enumerate(zip(parts, in_order(client, tasks()), strict=True)):
                while not over(found, _WAIT):  # so that who was asked to end need not wait
                    yield done, part[0].begin, starts[i]
                what = f"positions {part[0].begin:,} to {part[-1].end - 1:,}"
                self.sums.merge(result_of(found, what))
                done += len(part)
                steps += sum(s.steps for s in part)
                if progress:
                    progress(steps, total)
                # The states before the next part, if they are known; else those before this one.
                known = i + 1 if i + 1 < len(starts) else i
                yield done, parts[known][0].begin, starts[known]
            self.workers = max(number, len(client.nthreads()))


def _without(parts: list[list[Shard]], done: int) -> list[list[Shard]]:
    """Tasks without the first `done` shards."""
    left = []
    for part in parts:
        kept = part[done:] if done > 0 else part
        done -= len(part)
        if kept:
            left.append(kept)
    return left


def _given(engine: Engine) -> Engine:
    return engine


_ready = threading.local()  # each thread of a worker has a task of its own


def _products(engine: Engine) -> Products | RowProducts:
    from distributed import get_worker

    if getattr(_ready, "key", None) != engine.key:
        _ready.products = _ready.key = None
        need = engine.need * get_worker().state.nthreads
        advice = "Ask for fewer --delays or one --state, or start workers with more memory."
        _memory.require(need, _memory.allowed(engine.memory), "A worker", advice)
        _ready.products = engine.products()
        _ready.key = engine.key
    return _ready.products


def _follow(engine: Engine, task: Task) -> Partial:
    """On a worker: what the positions of a task sum up to."""
    products, step = _products(engine), engine.linear.step
    sums = Accumulator(task.plan, engine.delays, engine.sizes, step.embedding_size, step.dtype,
                       task.groups, products.parts, staged=engine.staged,
                       by_rows=isinstance(products, RowProducts))  # fmt: skip
    first = 0  # of the shard's positions among all of the task
    for shard, tokens, start in zip(task.shards, task.tokens, task.states, strict=True):
        shift = shard.begin - first

        def visit(window: Any, shift: int = shift) -> None:
            if isinstance(window, RowWindow):
                sums.add_input(window.position - shift, window.jacobians, window.part)
            else:
                sums.add(window.time - shift, window.inputs - shift, window.jacobians, window.part,
                         window.directions)  # fmt: skip

        for _ in products.run(tokens, start, visit, shard.begin, shard.follow):
            pass
        sums.flush()
        first += shard.end - shard.begin
    return sums.partial(task.blocks, task.numbers)
