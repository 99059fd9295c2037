"""The algebra of derivative blocks.

The derivative of a tensor v (shape S, the streams of the batch among its axes) with respect to
one source x (``[batch, n]``) is one of

- zero: not stored at all;
- a `Selection`: every element of v follows one element of x, times a factor. Identity, diagonal
  and every slice, concatenation, permutation or stack of them are selections;
- `Dense`: ``[n, *S]``, the change of v when element n of x moves in every stream at once. Streams
  do not influence each other, so this holds the Jacobian of each. Axes of length 1 stand for
  axes along which the derivative does not vary: a weight matrix is stored once for all streams.

Both carry a factor of v's shape that is multiplied in as late as possible: an elementwise
function then costs one product of v's size, not one of n times that.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

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


Block = Selection | Dense


class Algebra:
    """Operations on blocks, emitted into a graph."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    def scale(self, block: Block, factor: Tensor) -> Block:
        """d(k·v) = k·dv for a factor of v's rank that does not enlarge v."""
        if block.scale is not None:
            factor = self.builder.mul(block.scale, factor)
        return replace(block, scale=factor)

    def broadcast(self, block: Block, shape: tuple[int, ...]) -> Block:
        """The block of v repeated to a larger shape by the rules of broadcasting."""
        scale = block.scale and self.builder.lift(block.scale, len(shape))
        if isinstance(block, Selection):
            return replace(block, index=np.broadcast_to(block.index, shape), scale=scale)
        return Dense(self.builder.lift(block.tensor, len(shape), lead=1), scale)

    def dense(self, block: Block) -> Tensor:
        """The block as a tensor ``[n, *S]``, its factor multiplied in."""
        if isinstance(block, Selection):
            index = _compress(block.index)
            one_hot = index[None] == np.arange(block.size).reshape(-1, *(1,) * index.ndim)
            tensor = self.builder.constant(one_hot)
        else:
            tensor = block.tensor
        if block.scale is not None:
            tensor = self.builder.mul(tensor, self.builder.lift(block.scale, block.scale.rank + 1))
        return tensor

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
        return Dense(self.builder.add(self.dense(a), self.dense(b)))

    def rearrange(self, block: Block, shape: tuple[int, ...], ids: np.ndarray) -> Block:
        """The block of w, whose elements are those of v (of `shape`) at flat positions `ids`."""
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
