"""The products from the other side: rows of the states instead of columns of the embedding.

`_products.py` carries ``∂state_t/∂embedding_{t-τ}`` forward in time, as many columns as the
embedding has coordinates. Where the asked states have fewer units than that, it is cheaper to carry
``∂state_t/∂state_s`` backward, as many rows as they have units, and to multiply by
``∂state_s/∂embedding_s`` at every step: the same Jacobians, an input at a time.

At step s a buffer ``[slot, rows, n]`` holds ``∂wanted_{s+τ}/∂state_s`` for the times s+τ that can
see the input at s; slots are delays. The next step, of s-1, writes them, multiplied, a slot later,
and the first slot is the selection of the rows themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ._gemm import gemm_of
from ._pipeline import Pipeline, one_thread_a_product, parts_of, processors
from ._reading import Batch, Layout, Reader, Term
from ._states import States
from .linearize import EMBEDDING, Linearization


@dataclass(frozen=True)
class RowWindow:
    """Jacobians of some units with respect to one input.

    Attributes:
        position: Of the input.
        part: Units, of the wanted states side by side.
        jacobians: ``[delay, unit of the part, E]``: a view that is soon overwritten.
    """

    position: int
    part: slice
    jacobians: np.ndarray


class RowProducts:
    """State-embedding Jacobians of a stream, one input at a time, the last input first.

    Args:
        linearization: The step and its blocks.
        max_delay: τ_max.
        wanted: Names of the states that are asked for.
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
        layout = Layout(linearization, linearization.carried(wanted), wanted)
        self._reader = Reader(linearization, layout, table, self._threads)
        step = linearization.step
        self.parts = parts_of(layout.wanted, self._threads)
        shape = (max_delay + 1, step.embedding_size)
        self._parts = [_Part(layout, step.dtype, shape, part) for part in self.parts]

    def run(
        self,
        tokens: np.ndarray,
        start: States,
        visit: Callable[[RowWindow], None],
        begin: int = 0,
        follow: np.ndarray | None = None,
        keep: int | None = None,
    ) -> Iterator[int]:
        """As `Products.run`, with windows of another kind."""
        followed = np.ones(len(tokens), bool) if follow is None else follow[: len(tokens)]
        last = np.flatnonzero(followed)[-1] if followed.any() else -1
        tokens = tokens[: last + self._max_delay + 1]
        batches = self._reader.read_back(tokens, start, begin, keep)
        for part in self._parts:
            part.alive = 0
        parts = [partial(part.advance, begin, followed, visit) for part in self._parts]
        with one_thread_a_product:
            yield from Pipeline(batches, parts, self._threads).run()

    @property
    def kept(self) -> States | None:
        """The states that the last run was to keep; None if it did not get there."""
        return self._reader.kept


class _Part:
    """Some units, carried back through all steps."""

    def __init__(
        self, layout: Layout, dtype: np.dtype, shape: tuple[int, int], part: slice
    ) -> None:
        self._layout, self._part, (delays, size) = layout, part, shape
        rows = part.stop - part.start
        self._now, self._next = (np.zeros((delays, rows, layout.width), dtype) for _ in range(2))
        self._found = np.zeros((delays, rows, size), dtype)
        self._gemm = gemm_of(dtype)
        self.alive = 0  # slots that hold something

    def advance(
        self,
        begin: int,
        followed: np.ndarray,
        visit: Callable[[RowWindow], None],
        batch: Batch,
    ) -> None:
        """Take the positions of a batch, whose numbers count down."""
        with np.errstate(over="ignore", invalid="ignore"):  # refused once, at the end
            for i in range(batch.count):
                number = batch.first - i
                self._select()
                self._pass_on(batch, i)
                if followed[number]:
                    visit(RowWindow(begin + number, self._part, self._input(batch, i)))
                self._multiply(batch, i)
                self._now, self._next = self._next, self._now

    def _select(self) -> None:
        """Put ``∂wanted_s/∂state_s`` into the first slot: what comes first are the wanted."""
        self._now[0] = 0
        rows = np.arange(self._part.stop - self._part.start)
        self._now[0, rows, self._part.start + rows] = 1
        self.alive = max(self.alive, 1)

    def _pass_on(self, batch: Batch, i: int) -> None:
        """``R[relay] += Σ_s R[s] · J[s, relay]``: what the step read on belongs to the relay."""
        rows = self._now[: self.alive].reshape(-1, self._layout.width)
        for term in reversed(self._layout.relayed):
            self._back(term, batch, i, rows, rows[:, term.source], True)

    def _input(self, batch: Batch, i: int) -> np.ndarray:
        """``Σ_x R[x] · ∂x/∂embedding`` for every slot that holds something."""
        rows = self._now[: self.alive].reshape(-1, self._layout.width)
        out = self._found[: self.alive].reshape(len(rows), -1)
        if not self._layout.new:
            out[...] = 0
        for add, term in enumerate(self._layout.new):
            self._back(term, batch, i, rows, out, bool(add))
        return self._found[: self.alive]

    def _multiply(self, batch: Batch, i: int) -> None:
        """``R'[x] = Σ_s R[s] · J[s, x]``, a slot later."""
        delays = len(self._now)
        slots = min(self.alive, delays - 1)
        old = self._now[:slots].reshape(-1, self._layout.width)
        new = self._next[1 : slots + 1].reshape(-1, self._layout.width)
        written: set[int] = set()
        for span in self._layout.spans.values():
            out = new[:, span]
            for term in self._layout.terms:
                if term.source == span:
                    self._back(term, batch, i, old, out, span.start in written)
                    written.add(span.start)
            if span.start not in written:
                out[...] = 0
        self.alive = slots + 1

    def _back(
        self, term: Term, batch: Batch, i: int, rows: np.ndarray, out: np.ndarray, add: bool
    ) -> None:
        """Add ``R[states] · J[states, source]`` to the columns of the source."""
        given = rows[:, term.states]
        if term.kind == "dense":
            turned = term.source is None  # as it lies in a batch
            self._gemm(given, batch.at(term.key, i), out, add, transposed=turned)
            return
        number = given.shape[1] // out.shape[1]
        factors = batch.at(term.key, i) if term.tensors else np.ones(given.shape[1], given.dtype)
        for values, factor in zip(np.split(given, number, 1), np.split(factors, number),
                                  strict=True):  # fmt: skip
            if add:
                out += values * factor
            else:
                np.multiply(values, factor, out=out)
            add = True


def cheaper_by_rows(linearization: Linearization, wanted: list[str]) -> bool:
    """Whether the products of `RowProducts` are clearly fewer than those of `Products`."""
    steps, inputs = linearization.dense(linearization.carried(wanted))
    sizes = {name: size for name, (_, size) in linearization.step.sources.items()}
    by_rows = sum(sizes[s] for s in wanted) * (steps + inputs)
    return by_rows < 0.8 * sizes[EMBEDDING] * steps
