"""The algebra of derivative blocks.

The derivative of a tensor v (shape S, the streams of the batch among its axes) with respect to
one source x (``[batch, n]``) is one of

- zero: not stored at all;
- a `Selection`: every element of v follows one element of x, times a factor. Identity, diagonal
  and every slice, concatenation, permutation or stack of them are selections;
- `Dense`: ``[n, *S]``, the change of v when element n of x moves in every stream at once. Streams
  do not influence each other, so this holds the Jacobian of each. Axes of length 1 stand for
  axes along which the derivative does not vary: a weight matrix is stored once for all streams;
- a `Sum` of constant ones, the same for all streams but for a factor: what gates make of weights.

All carry factors of v's shape that are multiplied in as late as possible: an elementwise
function then costs one product of v's size, not one of n times that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from ._graph import Builder, Tensor


@dataclass(frozen=True)
class Selection:
    """``dv_i = scale_i · dx_{index_i}``; index -1 marks an element that does not depend on x.

    Attributes:
        index: Integers of v's shape: positions within one stream's x.
        scale: Broadcastable to v's shape and of its rank; None means 1.
        size: n, the length of x.
    """

    index: np.ndarray
    scale: Tensor | None
    size: int


@dataclass(frozen=True)
class Dense:
    """``dv = scale · tensor[n]`` for a unit step of element n.

    Attributes:
        tensor: ``[n, *S]`` with axes of length 1 where it does not vary.
        scale: Broadcastable to v's shape and of its rank; None means 1.
    """

    tensor: Tensor
    scale: Tensor | None = None

    @property
    def size(self) -> int:
        """n, the length of x."""
        return self.tensor.shape[0]


@dataclass(frozen=True)
class Sum:
    """``dv = Σ_k scale_k · tensor_k[n]`` for a unit step of element n.

    Attributes:
        parts: At least two, whose tensors are constant and vary along the last axis of v alone.
    """

    parts: tuple[Dense, ...]

    @property
    def size(self) -> int:
        """n, the length of x."""
        return self.parts[0].size


Block = Selection | Dense | Sum
_Simple = TypeVar("_Simple", bound=Selection | Dense)


class Algebra:
    """Operations on blocks, emitted into a graph."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    def scale(self, block: Block, factor: Tensor) -> Block:
        """d(k·v) = k·dv for a factor of v's rank that does not enlarge v."""
        if isinstance(block, Sum):
            return Sum(tuple(self._scale(part, factor) for part in block.parts))
        return self._scale(block, factor)

    def _scale(self, block: _Simple, factor: Tensor) -> _Simple:
        if block.scale is not None:
            factor = self.builder.mul(block.scale, factor)
        return replace(block, scale=factor)

    def broadcast(self, block: Block, shape: tuple[int, ...]) -> Block:
        """The block of v repeated to a larger shape by the rules of broadcasting."""
        if isinstance(block, Sum):
            return self._sum([self.broadcast(part, shape) for part in block.parts])
        scale = block.scale and self.builder.lift(block.scale, len(shape))
        if isinstance(block, Selection):
            return replace(block, index=np.broadcast_to(block.index, shape), scale=scale)
        return Dense(self.builder.lift(block.tensor, len(shape), lead=1), scale)

    def dense(self, block: Block) -> Tensor:
        """The block as a tensor ``[n, *S]``, its factors multiplied in."""
        if isinstance(block, Sum):
            by_unit, lead = self._contracted(block.parts)
            flat = self.builder.turned(by_unit)
            return self.builder.reshape(flat, (block.size, *lead, by_unit.shape[0]))
        block = self._dense(block)
        if block.scale is None:
            return block.tensor
        lifted = self.builder.lift(block.scale, block.scale.rank + 1)
        return self.builder.mul(block.tensor, lifted)

    def _dense(self, block: Selection | Dense) -> Dense:
        """A selection as a matrix of ones and zeros, with its factor."""
        if isinstance(block, Dense):
            return block
        index = _compress(block.index)
        one_hot = index[None] == np.arange(block.size).reshape(-1, *(1,) * index.ndim)
        return Dense(self.builder.constant(one_hot), block.scale)

    def by_unit(self, block: Block, shape: tuple[int, int]) -> Tensor:
        """The block of a v of `shape` ``[stream, unit]``, as ``[unit, stream, n]``.

        The axis of the streams is of length 1 where all have the same.
        """
        if not isinstance(block, Sum):
            block = self._dense(block)
            if block.scale is None or not self._shared(block):
                return self.builder.turned(self.full(block, shape, [1]))
        parts = block.parts if isinstance(block, Sum) else (block,)
        tensor, _ = self._contracted(parts)
        return self.builder.expand(tensor, (shape[1], *tensor.shape[1:]))

    def _contracted(self, parts: tuple[Dense, ...]) -> tuple[Tensor, tuple[int, ...]]:
        """``Σ_k scale_k · tensor_k`` as ``[unit, lead, n]``, with the shape of the leading axes.

        For each unit a product of matrices, of factors ``[lead, k]`` by weights ``[k, n]``: the
        result is written once, where sums of scaled matrices would go through memory for each.
        """
        b, size = self.builder, parts[0].size
        rank = parts[0].tensor.rank - 1
        shape = np.broadcast_shapes(
            *(p.tensor.shape[1:] for p in parts), *(p.scale.shape for p in parts if p.scale)
        )
        lead, units, count = shape[:-1], shape[-1], math.prod(shape[:-1])
        one = b.constant(np.ones((1,) * rank))
        factors = [b.reshape(b.expand(p.scale or one, shape), (1, count, units)) for p in parts]
        weights = [
            b.reshape(b.transpose(b.expand(b.reshape(p.tensor, (size, p.tensor.shape[-1])),
                                           (size, units)), (1, 0)), (units, 1, size))
            for p in parts
        ]  # fmt: skip
        turned = b.transpose(b.concat(factors, 0), (2, 1, 0))
        return b.matmul(turned, b.concat(weights, 1)), lead

    def full(self, block: Block, shape: tuple[int, ...], axes: list[int]) -> Tensor:
        """As `dense`, repeated along those `axes` of v that a contraction will run over."""
        tensor = self.dense(block)
        wanted = list(tensor.shape)
        for axis in axes:
            wanted[axis + 1] = shape[axis]
        return self.builder.expand(tensor, tuple(wanted))

    def add(self, a: Block, b: Block) -> Block:
        """d(v + w) = dv + dw for v and w of one shape."""
        if (
            isinstance(a, Selection)
            and isinstance(b, Selection)
            and np.array_equal(a.index, b.index)
        ):
            one = self.builder.constant(np.ones((1,) * a.index.ndim))
            return replace(a, scale=self.builder.add(a.scale or one, b.scale or one))
        return self._sum([*self._parts(a), *self._parts(b)])

    def _shared(self, part: Dense) -> bool:
        """Whether it is a constant matrix for all streams, but for its factor."""
        t = part.tensor
        return t.rank > 1 and math.prod(t.shape[1:-1]) == 1 and self.builder.fixed(t)

    def _parts(self, block: Block) -> tuple[Dense, ...]:
        return block.parts if isinstance(block, Sum) else (self._dense(block),)

    def _sum(self, parts: Sequence[Block]) -> Block:
        """A sum of dense blocks, added up only where they differ from stream to stream."""
        found: dict[Tensor, Dense] = {}
        for part in parts:
            assert isinstance(part, Dense)
            if not self._shared(part):
                total = self.dense(parts[0])
                for other in parts[1:]:
                    total = self.builder.add(total, self.dense(other))
                return Dense(total)
            if part.tensor in found:  # the same matrix twice: its factors add up
                one = self.builder.constant(np.ones((1,) * (part.tensor.rank - 1)))
                a, b = (p.scale or one for p in (found[part.tensor], part))
                part = replace(part, scale=self.builder.add(a, b))
            found[part.tensor] = part
        one_only = len(found) == 1
        return next(iter(found.values())) if one_only else Sum(tuple(found.values()))

    def rearrange(self, block: Block, shape: tuple[int, ...], ids: np.ndarray) -> Block:
        """The block of w, whose elements are those of v (of `shape`) at flat positions `ids`."""
        if isinstance(block, Sum):
            return self._sum([self.rearrange(part, shape, ids) for part in block.parts])
        if isinstance(block, Selection):
            index = block.index.reshape(-1)[ids]
            scale = block.scale and self._take(block.scale, 0, shape, ids)
            return Selection(index, scale, block.size)
        # Together, so that a rearrangement cannot give the factor a finer shape than v's own.
        scale = block.scale and self._take(block.scale, 0, shape, ids)
        return Dense(self._take(block.tensor, 1, shape, ids), scale)

    def _take(self, t: Tensor, lead: int, shape: tuple[int, ...], ids: np.ndarray) -> Tensor:
        """Elements `ids` of t viewed as `shape` behind `lead` axes, by the cheapest operator."""
        b, head, tail = self.builder, t.shape[:lead], t.shape[lead:]
        every = np.arange(math.prod(tail)).reshape(tail)
        out = _compress(np.broadcast_to(every, shape).reshape(-1)[ids])
        target = head + out.shape
        flat = out.reshape(-1)
        if flat.size == every.size and np.array_equal(flat, every.reshape(-1)):
            return b.reshape(t, target)
        if flat.size:
            first, last = (np.unravel_index(i, tail) for i in (flat[0], flat[-1]))
            for axis in range(len(tail)):
                lo, hi = int(first[axis]), int(last[axis]) + 1
                part = every.take(range(lo, hi), axis=axis).reshape(-1)
                if np.array_equal(part, flat):
                    return b.reshape(b.slice(t, lead + axis, lo, hi), target)
        if flat.size == every.size and len(tail) <= 5:
            for perm in itertools.permutations(range(len(tail))):
                if np.array_equal(every.transpose(perm).reshape(-1), flat):
                    moved = (*range(lead), *(lead + p for p in perm))
                    return b.reshape(b.transpose(t, moved), target)
        table = b.reshape(t, (*head, every.size))
        picked = b.emit("Gather", [table.name, b.ints(flat)], (*head, flat.size), axis=lead)
        return b.reshape(picked, target)


def _compress(ids: np.ndarray) -> np.ndarray:
    """`ids` with length 1 along the axes on which it is constant."""
    for axis in range(ids.ndim):
        first = ids.take([0], axis=axis) if ids.shape[axis] else ids
        if ids.shape[axis] > 1 and np.array_equal(np.broadcast_to(first, ids.shape), ids):
            ids = first
    return ids
