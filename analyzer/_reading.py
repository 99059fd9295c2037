"""The blocks of one step after another, as the products take them.

ONNX Runtime carries the states of a stream ahead and linearises several positions in one call. What
it gives is put side by side, so that one operation serves several blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from . import _runtime
from ._states import States, Stepper
from .linearize import EMBEDDING, Jacobian, Linearization

_CARRIED = 16  # tokens at least in a call that carries the states: more gain little


@dataclass(frozen=True)
class Batch:
    """The blocks of a few positions.

    Attributes:
        first: Number of its first position among the tokens that are read.
        count: How many there are.
        values: Key of a `Term` → ``[position, n]`` (diagonal), ``[position, state, source]``
            (dense) or ``[position, embedding, state]`` (dense, by the embedding), with 1 for
            ``position`` where all have the same.
    """

    first: int
    count: int
    values: dict[str, np.ndarray]

    def at(self, key: str, position: int) -> np.ndarray:
        """The value of one position, without its axis."""
        value = self.values[key]
        return value[position if len(value) > 1 else 0]


class Reader:
    """Carries the states ahead and linearises the step, several positions in one call."""

    def __init__(
        self, linearization: Linearization, layout: Layout, table: np.ndarray, threads: int
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
        shapes = {o.name: tuple(o.shape) for o in self._session.get_outputs()}
        self._rooms = layout.rooms(shapes)
        self.kept: States | None = None

    def read(
        self, tokens: np.ndarray, start: States, begin: int, keep: int | None
    ) -> Iterator[Batch]:
        """The blocks of every position in turn, from the states before the first.

        Args:
            tokens: ``[time]`` ids.
            start: The states before the first.
            begin: Its position in the corpus.
            keep: After how many tokens the states are kept, in `kept`.
        """
        self.kept = None
        now, at_once = start, self._batch * -(-_CARRIED // self._batch)
        for first in range(0, len(tokens), at_once):
            ids = tokens[first : first + at_once]
            after = self._stepper.read(now, ids, f"near position {begin + first}")
            states = {n: np.concatenate([now[n], v]) for n, v in after.items()}
            now = {n: v[-1:] for n, v in states.items()}
            self._keep(states, keep, first, len(ids))
            for low in range(0, len(ids), self._batch):
                some = ids[low : low + self._batch]
                before = {n: v[low : low + len(some)] for n, v in states.items()}
                yield self._linearized(some, before, first + low, begin + first + low)

    def read_back(
        self, tokens: np.ndarray, start: States, begin: int, keep: int | None
    ) -> Iterator[Batch]:
        """The blocks of the same positions, the last first: `first` of a batch is its largest."""
        self.kept = None
        states = self._stepper.read(start, tokens, f"after position {begin}")
        states = {n: np.concatenate([start[n], v]) for n, v in states.items()}
        self._keep(states, keep, 0, len(tokens))
        for high in range(len(tokens), 0, -self._batch):
            numbers = np.arange(high - 1, max(high - self._batch, 0) - 1, -1)
            before = {n: v[numbers] for n, v in states.items()}
            yield self._linearized(tokens[numbers], before, high - 1, begin + high - 1)

    def _keep(self, states: States, keep: int | None, first: int, count: int) -> None:
        """Keep the states after so many tokens, if they are among those of `count` from `first`."""
        if keep is not None and first < keep <= first + count:
            self.kept = {n: v[keep - first][None].copy() for n, v in states.items()}

    def _linearized(self, ids: np.ndarray, before: States, first: int, near: int) -> Batch:
        """The blocks of some tokens, each with the states before it, ``[position, n]``."""
        step = self._step
        # The last batch is filled up: a graph is made for one number of positions.
        number = np.minimum(np.arange(self._batch), len(ids) - 1)
        filled = ids[number]
        feeds = {c.input: before[c.name][number] for c in step.components}
        feeds[step.embedding] = self._table[filled]
        if step.tokens:
            feeds[step.tokens] = filled[:, None].astype(step.tokens_dtype)
        if not self._names:
            return Batch(first, len(ids), {})
        kept = {n: v for n, v in feeds.items() if n in self._reads}
        rooms: dict[str, np.ndarray] = {}
        into: dict[str, np.ndarray] = {}
        for key, (names, shape) in self._rooms.items():
            rooms[key] = np.empty(shape, step.dtype)
            into.update(zip(names, np.split(rooms[key], len(names)), strict=True))
        given = _runtime.run(self._session, self._names, kept, f"near position {near}", into)
        values = dict(zip(self._names, given, strict=True))
        return Batch(first, len(ids), self._layout.arrange(values, rooms))


@dataclass(frozen=True)
class Term:
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
        """Its name among the values of a batch, which lie otherwise if they are inserted."""
        return ("new|" if self.source is None else "") + "|".join(self.tensors)


class Layout:
    """Where each state lies in the buffers, and which terms make up a step.

    Attributes:
        spans: State → its columns.
        width: Columns in all.
        wanted: Columns of the wanted states, which come first.
        terms: From the states before the step.
        new: From the embedding.
        relayed: From states after the step to others, in the order in which they are known.
    """

    def __init__(self, linearization: Linearization, carried: list[str], wanted: list[str]) -> None:
        sizes = {c.name: c.size for c in linearization.step.differentiable}
        self.spans: dict[str, slice] = {}
        self.width = 0
        for state in [*wanted, *(s for s in carried if s not in wanted)]:
            self.spans[state] = slice(self.width, self.width + sizes[state])
            self.width += sizes[state]
        self.wanted = sum(sizes[s] for s in wanted)
        blocks, relayed = linearization.jacobians, linearization.relayed
        self.terms = [t for source in self.spans for t in self._of(blocks, source)]
        self.new = self._of(blocks, EMBEDDING)
        relays = dict.fromkeys(r for _, r in relayed if r in self.spans)
        self.relayed = [t for relay in relays for t in self._of(relayed, relay)]

    def _of(self, blocks: dict[tuple[str, str], Jacobian], source: str) -> list[Term]:
        """The terms of a source: neighbouring blocks of a kind as one."""
        found: list[Term] = []
        for state, span in self.spans.items():
            j = blocks.get((state, source))
            if j is None or j.kind == "zero":
                continue
            names = (j.tensor,) if j.tensor else ()
            term = Term(j.kind, self.spans.get(source), span, names)
            last = found[-1] if found else None
            beside = last and last.kind == term.kind and last.states.stop == span.start
            # One operation for several states; an input comes as one block for each.
            together = term.kind == "dense" or (term.kind == "diagonal" and source != EMBEDDING)
            if last and beside and together:
                found[-1] = replace(last, states=slice(last.states.start, span.stop),
                                    tensors=last.tensors + names)  # fmt: skip
            else:
                found.append(term)
        return found

    @property
    def tensors(self) -> list[str]:
        """All that the graph has to give."""
        return sorted({name for term in self._all for name in term.tensors})

    @property
    def _all(self) -> list[Term]:
        return [*self.terms, *self.new, *self.relayed]

    def rooms(
        self, shapes: Mapping[str, tuple]
    ) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
        """Keys of terms whose blocks can be written side by side: tensors, shape of the whole.

        ONNX Runtime writes a tensor to one place: what two terms need, or one twice, is not there.
        """
        found = {}
        uses = Counter(name for term in self._all for name in term.tensors)
        for term in [*self.terms, *self.relayed]:
            given = {shapes[name] for name in term.tensors}
            once = all(uses[name] == 1 for name in term.tensors)
            if term.kind == "dense" and len(term.tensors) > 1 and len(given) == 1 and once:
                (shape,) = given
                if all(isinstance(n, int) for n in shape):
                    found[term.key] = term.tensors, (len(term.tensors) * shape[0], *shape[1:])
        return found

    def arrange(
        self, values: dict[str, np.ndarray], rooms: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """What ONNX Runtime gave, as `Batch` holds it; `rooms` by key, where they were filled."""
        arranged = {}
        for term in self._all:
            if term.key in rooms:
                arranged[term.key] = np.moveaxis(rooms[term.key], 1, 0)
                continue
            parts = [values[name] for name in term.tensors]
            if term.kind == "diagonal":
                arranged[term.key] = parts[0] if len(parts) == 1 else _side_by_side(parts)
            elif term.kind == "dense":
                positions = max(p.shape[1] for p in parts)
                parts = [np.broadcast_to(p, (len(p), positions, p.shape[2])) for p in parts]
                if term.source is not None:
                    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
                    arranged[term.key] = np.moveaxis(joined, 1, 0)  # a view
                else:  # as it is inserted: row by row
                    turned = [p.transpose(1, 2, 0) for p in parts]
                    shape = (*turned[0].shape[:2], sum(len(p) for p in parts))
                    arranged[term.key] = np.concatenate(
                        turned, 2, out=np.empty(shape, parts[0].dtype)
                    )
        return arranged


def _side_by_side(parts: list[np.ndarray]) -> np.ndarray:
    """``[position, n]`` blocks, of which some may be the same at every position, as one."""
    positions = max(len(p) for p in parts)
    return np.concatenate([np.broadcast_to(p, (positions, p.shape[1])) for p in parts], 1)
