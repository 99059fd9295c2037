"""Forward products: push the tangents of past inputs through one step after another.

One of the places where Jacobians are multiplied (`_streams.py` does the same on a GPU). At
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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ._gemm import gemm_of
from ._pipeline import Pipeline, one_thread_a_product, parts_of, processors
from ._reading import Batch, Layout, Reader, Term
from ._sketch import Sketch
from ._states import States
from .linearize import Linearization


@dataclass(frozen=True)
class Window:
    """Jacobians of one time step, by some coordinates of the embedding.

    Attributes:
        time: Position t of the input just read.
        inputs: ``[slot]`` positions t-τ of the inputs that are followed, newest first.
        part: Coordinates of the embedding; or directions of a sketch.
        jacobians: ``[slot, E of the part, n]``, the wanted states side by side in the order in
            which they were asked for: a view that is soon overwritten.
        directions: ``[slot, row]`` which directions of the part the rows are; None where they are
            all of its coordinates.
    """

    time: int
    inputs: np.ndarray
    part: slice
    jacobians: np.ndarray
    directions: np.ndarray | None = None


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
        sketch: Directions that stand for all coordinates of the embedding; None means all.
    """

    def __init__(
        self,
        linearization: Linearization,
        max_delay: int,
        wanted: list[str],
        table: np.ndarray,
        *,
        threads: int | None = None,
        sketch: Sketch | None = None,
    ) -> None:
        self._max_delay, self._threads = max_delay, threads or processors()
        layout = Layout(linearization, linearization.carried(wanted), wanted)
        self._reader = Reader(linearization, layout, table, self._threads)
        step = linearization.step
        if sketch is None:
            self.parts = parts_of(step.embedding_size, self._threads)
            deals: list[_Deal | None] = [None] * len(self.parts)
        else:
            self.parts = sketch.parts
            deals = [_Deal(sketch, i) for i in range(len(self.parts))]
        self._parts = [
            _Part(layout, step.dtype, max_delay, part, deal)
            for part, deal in zip(self.parts, deals, strict=True)
        ]

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
        parts = [partial(part.advance, stretch, visit) for part in self._parts]
        with one_thread_a_product:
            yield from Pipeline(batches, parts, self._threads).run()

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


class _Part:
    """Some coordinates of the embedding, carried through all steps."""

    def __init__(
        self,
        layout: Layout,
        dtype: np.dtype,
        max_delay: int,
        part: slice,
        deal: _Deal | None = None,
    ) -> None:
        self._layout, self._part, self._max_delay, self._deal = layout, part, max_delay, deal
        rows = part.stop - part.start if deal is None else deal.hand
        shape = (max_delay + 1, rows, layout.width)
        self._directions = np.zeros(shape[:2], np.int64)
        self._now, self._next = np.zeros(shape, dtype), np.zeros(shape, dtype)
        self._gemm = gemm_of(dtype)
        # What comes first in a column is written there, what follows is added. Scalings first,
        # since a product can add at no cost.
        order = {"diagonal": 0, "identity": 1, "dense": 2}
        fresh, zeroed = np.ones(layout.width, bool), np.zeros(layout.width, bool)
        self._plan: list[tuple[Term, bool]] = []
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

    def advance(self, stretch: Stretch, visit: Visit, batch: Batch) -> None:
        """Take the positions of a batch."""
        with np.errstate(over="ignore", invalid="ignore"):  # refused once, at the end
            for i in range(batch.count):
                inputs, insert = stretch.at(batch.first + i)
                self._multiply(batch, i, len(inputs) - insert, int(insert))
                if insert:
                    self._insert(batch, i, int(inputs[0]))
                if len(inputs):
                    self._pass_on(batch, i, len(inputs))
                    rows = self._next[: len(inputs), :, : self._layout.wanted]
                    directions = None if self._deal is None else self._directions[: len(inputs)]
                    time = stretch.time(batch.first + i)
                    visit(Window(time, inputs, self._part, rows, directions))
                self._now, self._next = self._next, self._now

    def _multiply(self, batch: Batch, i: int, slots: int, shift: int) -> None:
        """``T_s' = Σ_x T_x · J[s, x]`` for the first slots, written `shift` slots later."""
        if not slots:
            return
        old = self._now[:slots].reshape(-1, self._layout.width)
        new = self._next[shift : shift + slots].reshape(-1, self._layout.width)
        if self._zeroed.size:
            new[:, self._zeroed] = 0
        for term, add in self._plan:
            self._apply(term, batch, i, old, new, add)

    def _pass_on(self, batch: Batch, i: int, slots: int) -> None:
        """``T_s' += Σ_r T_r' · J[s, r]`` for all slots: what the step read of its own states."""
        new = self._next[:slots].reshape(-1, self._layout.width)
        for term in self._layout.relayed:
            self._apply(term, batch, i, new, new, True)

    def _apply(
        self, term: Term, batch: Batch, i: int, old: np.ndarray, new: np.ndarray, add: bool
    ) -> None:
        """Multiply the columns of the source, and write or add them to those of the states."""
        tangents, out = old[:, term.source], new[:, term.states]
        if term.kind == "dense":
            self._gemm(tangents, batch.at(term.key, i), out, add, transposed=True)
        elif term.kind == "identity":
            np.add(out, tangents, out=out) if add else np.copyto(out, tangents)
        else:
            # All states that the source scales into in one pass, while its row is at hand.
            number = out.shape[1] // tangents.shape[1]
            out = out.reshape(len(out), number, -1)  # a view
            factor = batch.at(term.key, i).reshape(number, -1)
            if add:
                out += tangents[:, None] * factor
            else:
                np.multiply(tangents[:, None], factor, out=out)

    def _insert(self, batch: Batch, i: int, position: int) -> None:
        """Write ``∂state/∂embedding`` to the first slot."""
        out = self._next[0]
        if not self._filled:
            out[...] = 0
        if self._deal is not None:
            directions = self._deal.sketch.of(self._deal.part, position)
            self._directions[1:] = self._directions[:-1]
            self._directions[0] = directions
            basis = self._deal.basis[directions]
        at = np.arange(self._part.start, self._part.stop)
        for term in self._layout.new:
            if term.kind == "dense":
                blocks = batch.at(term.key, i)
                if self._deal is None:
                    out[:, term.states] = blocks[self._part]
                else:
                    self._gemm(basis, blocks, out[:, term.states], False)
            elif self._deal is None:
                values = batch.at(term.key, i)[at] if term.tensors else 1
                out[at - self._part.start, term.states.start + at] = values
            else:
                out[:, term.states] = basis * (batch.at(term.key, i) if term.tensors else 1)


class _Deal:
    """The hands of one part."""

    def __init__(self, sketch: Sketch, part: int) -> None:
        self.sketch, self.part, self.hand = sketch, part, sketch.hands[part]
        self.basis = np.ascontiguousarray(sketch.basis.T[sketch.parts[part]])  # [direction, E]
