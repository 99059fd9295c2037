"""Forward products: push the tangents of past inputs through one step after another.

The one place where Jacobians are multiplied on the CPU (`_device.py` does the same on a GPU). At
time t the states, side by side, have a buffer ``[slot, E, n]`` that holds, transposed,
``J_{t,τ} = ∂state_t/∂embedding_{t-τ}`` for each input t-τ that is followed, the newest first. A
step reads the slots of one buffer and writes them, multiplied, to a second one, a slot later if a
new input comes before them, so making room costs nothing. The two buffers then change roles. Where
every input is followed, slots are delays; inputs that are not followed cost no products.

Matrix products are nearly all of the work, and everything here serves to leave nothing else:

- ONNX Runtime carries the states ahead and linearises several positions in one call, while the
  products of those before are still running;
- the coordinates of the embedding are dealt to *parts* that need nothing of each other, so that
  each product runs on one thread, at its best, and threads do not wait for each other;
- the dense blocks that multiply one state lie side by side, so that one product serves them all.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from . import _runtime
from ._gemm import gemm_of
from ._states import States, Stepper
from .linearize import EMBEDDING, Linearization

AHEAD = 4  # batches that may wait for the products
_CONTROL = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Window:
    """Jacobians of one time step, by some coordinates of the embedding.

    Attributes:
        time: Position t of the input just read.
        inputs: ``[slot]`` positions t-τ of the inputs that are followed, newest first.
        part: Coordinates of the embedding.
        jacobians: ``[slot, E of the part, n]``, the wanted states side by side in the order in
            which they were asked for: a view that is soon overwritten.
    """

    time: int
    inputs: np.ndarray
    part: slice
    jacobians: np.ndarray


Visit = Callable[[Window], None]
"""Takes a window; windows of different parts come from different threads at the same time."""


class Products:
    """State-embedding Jacobians of a stream at every delay, one position at a time.

    Args:
        linearization: The step and its blocks.
        max_delay: τ_max.
        wanted: Names of the states that are asked for; others are carried only where one of
            these depends on them.
        table: ``[V, E]`` embeddings.
        threads: How many to use; None means one for each processor.
    """

    def __init__(
        self,
        linearization: Linearization,
        max_delay: int,
        wanted: list[str],
        table: np.ndarray,
        *,
        threads: int | None = None,
    ) -> None:
        self._max_delay, self._threads = max_delay, threads or processors()
        layout = _Layout(linearization, carried_states(linearization, wanted), wanted)
        self._reader = _Reader(linearization, layout, table, self._threads)
        step = linearization.step
        self.parts = parts_of(step.embedding_size, self._threads)
        self._parts = [_Part(layout, step.dtype, max_delay, part) for part in self.parts]

    def run(
        self,
        tokens: np.ndarray,
        start: States,
        visit: Visit,
        begin: int = 0,
        follow: np.ndarray | None = None,
        keep: int | None = None,
    ) -> Iterator[int]:
        """Read `tokens` and visit the Jacobians after each; yields how many have been read.

        Args:
            tokens: ``[time]`` ids.
            start: State → ``[1, n]``, its value before the first token.
            visit: Called for every position and part.
            begin: Time of the first token in the corpus.
            follow: ``[time]`` booleans, the tokens whose memory is followed; the others only let
                time pass. Tokens more than τ_max after the last of them are not read. None means
                all.
            keep: After how many tokens the states are kept, in `kept`.
        """
        stretch = Stretch(begin, self._max_delay, len(tokens), follow)
        batches = self._reader.read(tokens[: stretch.end], start, begin, keep)
        with _one_thread_a_product:
            yield from _Pipeline(batches, self._parts, stretch, visit, self._threads).run()

    @property
    def kept(self) -> States | None:
        """The states that the last run was to keep; None if it did not get there."""
        return self._reader.kept


class Stretch:
    """Tokens that are read one after another, and which of them are followed for how long.

    Args:
        begin: Time of the first token in the corpus.
        max_delay: τ_max.
        length: Number of tokens.
        follow: ``[time]`` booleans; None means all.

    Attributes:
        end: How many tokens have to be read.
    """

    def __init__(
        self, begin: int, max_delay: int, length: int, follow: np.ndarray | None = None
    ) -> None:
        self._begin, self._max_delay = begin, max_delay
        self._newest_first = np.flatnonzero(
            np.ones(length, bool) if follow is None else np.asarray(follow[:length], bool)
        )[::-1]
        self._upto = len(self._newest_first) - np.searchsorted(
            self._newest_first[::-1], np.arange(-max_delay, length + 1)
        )
        last = self._newest_first[0] if self._newest_first.size else -1
        self.end = int(min(length, last + max_delay + 1))

    def at(self, position: int) -> tuple[np.ndarray, bool]:
        """The inputs present after a token, newest first, and whether it is one of them.

        Args:
            position: Of the token within the stretch.
        """
        # `_upto[i]` counts the followed tokens from position i - τ_max on.
        low = self._upto[position + 1 + self._max_delay]
        high = self._upto[position]
        inputs = self._newest_first[low:high]
        return self._begin + inputs, bool(inputs.size and inputs[0] == position)

    def time(self, position: int) -> int:
        """Position in the corpus."""
        return self._begin + position


@dataclass(frozen=True)
class _Batch:
    """The blocks of a few positions.

    Attributes:
        first: Number of the first position within the stretch.
        count: How many there are.
        values: Key of a `_Term` → ``[position, n]`` (diagonal) or ``[position, source, n]``
            (dense), with 1 for ``position`` where all have the same.
    """

    first: int
    count: int
    values: dict[str, np.ndarray]

    def at(self, key: str, position: int) -> np.ndarray:
        """The value of one position."""
        value = self.values[key]
        return value[position if len(value) > 1 else 0]


class _Reader:
    """Carries the states ahead and linearises the step, several positions in one call."""

    def __init__(
        self, linearization: Linearization, layout: _Layout, table: np.ndarray, threads: int
    ) -> None:
        self._step, self._batch, self._table = linearization.step, linearization.batch, table
        self._layout = layout
        self._stepper = Stepper(self._step, table)
        self._names = layout.tensors
        model = _runtime.with_outputs(linearization.model, self._names)
        # Block rules take little time, well spent beside the products on one thread. The other
        # methods take most of it.
        cheap = linearization.method == "jvp"
        self._session = _runtime.session(model, threads=1 if cheap else threads, spinning=False)
        self._reads = {i.name for i in self._session.get_inputs()}
        self.kept: States | None = None

    def read(
        self, tokens: np.ndarray, start: States, begin: int, keep: int | None
    ) -> Iterator[_Batch]:
        """The blocks of every position in turn, from the states before the first."""
        step, now = self._step, start
        self.kept = None
        for low in range(0, len(tokens), self._batch):
            ids = tokens[low : low + self._batch]
            where = f"near position {begin + low}"
            before = []
            for i, token in enumerate(ids):
                before.append(now)
                now = self._stepper.advance(now, int(token), where)
                if low + i + 1 == keep:
                    self.kept = now
            # The last batch is filled up: a graph is made for one number of positions.
            before += [before[-1]] * (self._batch - len(ids))
            filled = np.concatenate([ids, np.repeat(ids[-1:], self._batch - len(ids))])
            feeds = {c.input: np.concatenate([b[c.name] for b in before]) for c in step.components}
            feeds[step.embedding] = self._table[filled]
            if step.tokens:
                feeds[step.tokens] = filled[:, None].astype(step.tokens_dtype)
            yield _Batch(low, len(ids), self._layout.arrange(self._run(feeds, where)))

    def _run(self, feeds: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        if not self._names:
            return {}
        kept = {n: v for n, v in feeds.items() if n in self._reads}
        values = _runtime.run(self._session, self._names, kept, where)
        return dict(zip(self._names, values, strict=True))


@dataclass(frozen=True)
class _Term:
    """What one source adds to some neighbouring columns of the buffer.

    Attributes:
        kind: ``dense``, ``diagonal`` or ``identity``.
        source: Columns of the source; None for the embedding.
        states: Columns that it adds to.
        tensors: What holds the blocks, side by side.
    """

    kind: str
    source: slice | None
    states: slice
    tensors: tuple[str, ...]

    @property
    def key(self) -> str:
        """Its name among the values of a batch."""
        return "|".join(self.tensors)


class _Layout:
    """Where each state lies in the buffers, and which terms make up a step."""

    def __init__(self, linearization: Linearization, carried: list[str], wanted: list[str]) -> None:
        sizes = {c.name: c.size for c in linearization.step.differentiable}
        self.spans: dict[str, slice] = {}
        self.width = 0
        for state in [*wanted, *(s for s in carried if s not in wanted)]:
            self.spans[state] = slice(self.width, self.width + sizes[state])
            self.width += sizes[state]
        self.wanted = sum(sizes[s] for s in wanted)
        self.terms = [t for source in self.spans for t in self._of(linearization, source)]
        self.new = self._of(linearization, EMBEDDING)

    def _of(self, linearization: Linearization, source: str) -> list[_Term]:
        """The terms of a source: neighbouring dense blocks as one."""
        found: list[_Term] = []
        for state, span in self.spans.items():
            j = linearization.jacobians[state, source]
            if j.kind == "zero":
                continue
            names = (j.tensor,) if j.tensor else ()
            term = _Term(j.kind, self.spans.get(source), span, names)
            last = found[-1] if found else None
            if last and last.kind == term.kind == "dense" and last.states.stop == span.start:
                found[-1] = replace(last, states=slice(last.states.start, span.stop),
                                    tensors=last.tensors + names)  # fmt: skip
            else:
                found.append(term)
        return found

    @property
    def tensors(self) -> list[str]:
        """All that the graph has to give."""
        return sorted({name for term in (*self.terms, *self.new) for name in term.tensors})

    def arrange(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What ONNX Runtime gave, as `_Batch` holds it."""
        arranged = {}
        for term in (*self.terms, *self.new):
            parts = [values[name] for name in term.tensors]
            if term.kind == "diagonal":
                arranged[term.key] = parts[0]
            elif term.kind == "dense":  # [source, position, state] → [position, source, states]
                shape = (max(p.shape[1] for p in parts), len(parts[0]),
                         sum(p.shape[2] for p in parts))  # fmt: skip
                out, low = np.empty(shape, parts[0].dtype), 0
                for p in parts:
                    out[:, :, low : low + p.shape[2]] = np.moveaxis(p, 1, 0)
                    low += p.shape[2]
                arranged[term.key] = out
        return arranged


class _Part:
    """Some coordinates of the embedding, carried through all steps."""

    def __init__(self, layout: _Layout, dtype: np.dtype, max_delay: int, part: slice) -> None:
        self._layout, self._part, self._max_delay = layout, part, max_delay
        shape = (max_delay + 1, part.stop - part.start, layout.width)
        self._now, self._next = np.zeros(shape, dtype), np.zeros(shape, dtype)
        self._gemm = gemm_of(dtype)
        # What comes first in a column is written there, what follows is added. Scalings first,
        # since a product can add at no cost.
        order = {"diagonal": 0, "identity": 1, "dense": 2}
        fresh, zeroed = np.ones(layout.width, bool), np.zeros(layout.width, bool)
        self._plan: list[tuple[_Term, bool]] = []
        for term in sorted(layout.terms, key=lambda t: order[t.kind]):
            here = fresh[term.states]
            self._plan.append((term, not here.all()))
            if not here.all():
                zeroed[term.states] |= here
            here[:] = False
        self._zeroed = np.flatnonzero(zeroed | fresh)
        # What a new input leaves zero has to be made so.
        self._filled = sum(
            t.states.stop - t.states.start for t in layout.new if t.kind == "dense"
        ) == layout.width  # fmt: skip

    def advance(self, batch: _Batch, stretch: Stretch, visit: Visit) -> None:
        """Take the positions of a batch."""
        with np.errstate(over="ignore", invalid="ignore"):  # refused once, at the end
            for i in range(batch.count):
                inputs, insert = stretch.at(batch.first + i)
                self._multiply(batch, i, len(inputs) - insert, int(insert))
                if insert:
                    self._insert(batch, i)
                if len(inputs):
                    rows = self._next[: len(inputs), :, : self._layout.wanted]
                    visit(Window(stretch.time(batch.first + i), inputs, self._part, rows))
                self._now, self._next = self._next, self._now

    def _multiply(self, batch: _Batch, i: int, slots: int, shift: int) -> None:
        """``T_s' = Σ_x T_x · J[s, x]`` for the first slots, written `shift` slots later."""
        if not slots:
            return
        old = self._now[:slots].reshape(-1, self._layout.width)
        new = self._next[shift : shift + slots].reshape(-1, self._layout.width)
        if self._zeroed.size:
            new[:, self._zeroed] = 0
        for term, add in self._plan:
            tangents, out = old[:, term.source], new[:, term.states]
            if term.kind == "dense":
                self._gemm(tangents, batch.at(term.key, i), out, add)
            elif term.kind == "identity":
                np.add(out, tangents, out=out) if add else np.copyto(out, tangents)
            elif add:
                out += tangents * batch.at(term.key, i)
            else:
                np.multiply(tangents, batch.at(term.key, i), out=out)

    def _insert(self, batch: _Batch, i: int) -> None:
        """Write ``∂state/∂embedding`` to the first slot."""
        out, at = self._next[0], np.arange(self._part.start, self._part.stop)
        if not self._filled:
            out[...] = 0
        for term in self._layout.new:
            if term.kind == "dense":
                out[:, term.states] = batch.at(term.key, i)[self._part]
            else:
                values = batch.at(term.key, i)[at] if term.tensors else 1
                out[at - self._part.start, term.states.start + at] = values


class _Pipeline:
    """Threads that read batches ahead and take each part through them, none waiting for all."""

    def __init__(
        self,
        batches: Iterator[_Batch],
        parts: list[_Part],
        stretch: Stretch,
        visit: Visit,
        threads: int,
    ) -> None:
        self._batches, self._parts = batches, parts
        self._stretch, self._visit = stretch, visit
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"products-{i}", daemon=True)
            for i in range(threads)
        ]
        self._ready: dict[int, _Batch] = {}  # those that a part has still to take
        self._read = 0  # batches so far
        self._reading = self._ended = False
        self._taken = [0] * len(parts)  # batches so far, by each part
        self._busy: set[int] = set()
        self._passed = 0  # positions that all parts have taken
        self._stopped = False
        self._error: BaseException | None = None

    def run(self) -> Iterator[int]:
        """Work to the end; yields how many positions are done."""
        shown, finished = 0, False
        try:
            for thread in self._threads:
                thread.start()
            while not finished:
                with self._changed:
                    while not (self._error or self._passed > shown or self._finished()):
                        self._changed.wait()
                    if self._error:
                        raise self._error
                    passed, finished = self._passed, self._finished()
                if passed > shown:
                    yield passed
                    shown = passed
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
            for thread in self._threads:
                if thread.ident is not None:  # started
                    thread.join()

    def _finished(self) -> bool:
        return self._ended and min(self._taken) == self._read

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and (job := self._choose()) is None:
                    self._changed.wait()
                if self._stopped:
                    return
            try:
                job()  # type: ignore[misc]  # not None here
            except BaseException as error:
                with self._changed:
                    self._error, self._stopped = self._error or error, True
                    self._changed.notify_all()
                return

    def _choose(self) -> Callable[[], None] | None:
        """What a free thread does next: read where a part may soon wait, else the last part."""
        may_read = not (self._reading or self._ended) and self._read - min(self._taken) < AHEAD
        free = [p for p, n in enumerate(self._taken) if p not in self._busy and n < self._read]
        if may_read and (not free or self._read - max(self._taken) < AHEAD // 2):
            self._reading = True
            return self._read_one
        if not free:
            return None
        part = min(free, key=lambda p: self._taken[p])
        self._busy.add(part)
        return lambda: self._take_one(part)

    def _read_one(self) -> None:
        batch = next(self._batches, None)
        with self._changed:
            self._reading = False
            if batch is None:
                self._ended = True
            else:
                self._ready[self._read] = batch
                self._read += 1
            self._changed.notify_all()

    def _take_one(self, part: int) -> None:
        number = self._taken[part]
        self._parts[part].advance(self._ready[number], self._stretch, self._visit)
        with self._changed:
            self._busy.discard(part)
            self._taken[part] += 1
            if min(self._taken) > number:
                self._passed += self._ready.pop(number).count
            self._changed.notify_all()


class _OneThreadAProduct:
    """While any products run, BLAS uses one thread in each; the limit holds for the process."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._limit: threadpool_limits | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._limit = threadpool_limits(1, user_api="blas")
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._limit is not None:
                self._limit.restore_original_limits()


_one_thread_a_product = _OneThreadAProduct()


def processors() -> int:
    """How many processors this process may use: of the machine, or of its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = (_CONTROL / "cpu.max").read_text().split()
        return max(1, min(count or 1, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no control groups, or no limit ("max")
        return count or 1


def parts_of(size: int, threads: int) -> list[slice]:
    """Coordinates 0 … size-1 dealt to as many parts as there are threads."""
    number = min(size, threads)
    edges = np.arange(number + 1) * size // number
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]


def carried_states(linearization: Linearization, wanted: list[str]) -> list[str]:
    """`wanted` and the states that they depend on through any number of steps."""
    needed = set(wanted)
    while True:
        more = {
            source
            for (state, source), j in linearization.jacobians.items()
            if state in needed and source != EMBEDDING and j.kind != "zero"
        }
        if more <= needed:
            return [c.name for c in linearization.step.differentiable if c.name in needed]
        needed |= more
