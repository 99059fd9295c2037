"""A small builder of ONNX graphs whose tensors have known shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph under construction: its name and concrete shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)


class Builder:
    """Collects nodes and constants; every method that emits returns the new `Tensor`.

    Shape changes that change nothing emit nothing.
    """

    def __init__(self, dtype: np.dtype, prefix: str = "d") -> None:
        self.dtype = np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._prefix = prefix
        self._count = 0
        self._constants: dict[tuple, Tensor] = {}
        self._emitted: dict[tuple, Tensor] = {}
        self._fixed: set[str] = set()  # what is made of constants when the graph is loaded

    def fresh(self) -> str:
        """A name that nothing else in the graph has."""
        self._count += 1
        return f"{self._prefix}:{self._count}"

    def constant(self, value: Any, dtype: Any = None) -> Tensor:
        """A constant of the builder's float type, or of `dtype`; equal small ones are shared."""
        array = np.asarray(value, dtype=self.dtype if dtype is None else dtype)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 64 else None
        if key is not None and key in self._constants:
            return self._constants[key]
        tensor = Tensor(self.fresh(), array.shape)
        self.initializers.append(numpy_helper.from_array(array, tensor.name))
        self._fixed.add(tensor.name)
        if key is not None:
            self._constants[key] = tensor
        return tensor

    def ints(self, values: Any) -> str:
        """An int64 constant; its name."""
        return self.constant(values, np.int64).name

    def emit(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes) -> Tensor:
        """A node with one output of the given shape; what has been emitted before is shared."""
        key = (op, *inputs, repr(sorted(attributes.items())))
        if key not in self._emitted:
            name = self.fresh()
            self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
            if self._fixed.issuperset(inputs):
                self._fixed.add(name)
            self._emitted[key] = Tensor(name, tuple(int(n) for n in shape))
        return self._emitted[key]

    def add_to(self, graph: onnx.GraphProto, outputs: Iterable[str]) -> int:
        """Add what computes some tensors; what nobody needs would be computed all the same.

        Returns:
            Bytes of all tensors that a run computes for them, were they held at once.
        """
        needed, sizes = set(outputs), {t.name: math.prod(t.shape) for t in self._emitted.values()}
        kept, size = [], 0
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
                if node.output[0] not in self._fixed:
                    size += sizes[node.output[0]]
        graph.node.extend(reversed(kept))
        graph.initializer.extend(t for t in self.initializers if t.name in needed)
        return size * self.dtype.itemsize

    def fixed(self, t: Tensor) -> bool:
        """Whether it is made of constants alone, so that no run computes it."""
        return t.name in self._fixed

    def binary(self, op: str, a: Tensor, b: Tensor) -> Tensor:
        """Add, Sub, Mul or Div with broadcasting."""
        return self.emit(op, [a.name, b.name], np.broadcast_shapes(a.shape, b.shape))

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """a + b."""
        return self.binary("Add", a, b)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        """A times b, elementwise."""
        return self.binary("Mul", a, b)

    def reshape(self, t: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The same elements under another shape."""
        if t.shape == tuple(shape):
            return t
        assert math.prod(t.shape) == math.prod(shape), (t, shape)
        return self.emit("Reshape", [t.name, self.ints(list(shape))], shape)

    def lift(self, t: Tensor, rank: int, lead: int = 0) -> Tensor:
        """Insert axes of length 1 after the `lead` leading ones, up to `rank` axes behind them."""
        missing = rank - (t.rank - lead)
        return self.reshape(t, t.shape[:lead] + (1,) * missing + t.shape[lead:])

    def expand(self, t: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Repeat along axes of length 1."""
        if t.shape == tuple(shape):
            return t
        return self.emit("Expand", [t.name, self.ints(list(shape))], shape)

    def transpose(self, t: Tensor, perm: tuple[int, ...]) -> Tensor:
        """Permute axes."""
        if tuple(perm) == tuple(range(t.rank)):
            return t
        return self.emit("Transpose", [t.name], tuple(t.shape[p] for p in perm), perm=list(perm))

    def turned(self, t: Tensor) -> Tensor:
        """Of ``[a, b, c]`` the ``[c, b, a]``."""
        a, b, c = t.shape
        # In two moves of one axis each, which ONNX Runtime does ten times as fast as one of all.
        # The shape between keeps it from joining them.
        flat = self.transpose(self.reshape(t, (a, b * c)), (1, 0))
        return self.transpose(self.reshape(flat, (b, c, a)), (1, 0, 2))

    def slice(self, t: Tensor, axis: int, start: int, stop: int) -> Tensor:
        """A contiguous range along one axis."""
        if (start, stop) == (0, t.shape[axis]):
            return t
        shape = (*t.shape[:axis], stop - start, *t.shape[axis + 1 :])
        inputs = [t.name, self.ints([start]), self.ints([stop]), self.ints([axis])]
        return self.emit("Slice", inputs, shape)

    def concat(self, parts: list[Tensor], axis: int) -> Tensor:
        """Join along one axis."""
        shape = list(parts[0].shape)
        shape[axis] = sum(p.shape[axis] for p in parts)
        return self.emit("Concat", [p.name for p in parts], tuple(shape), axis=axis)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Batched matrix product of tensors of rank 2 or more."""
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        return self.emit("MatMul", [a.name, b.name], (*lead, a.shape[-2], b.shape[-1]))

    def reduce_sum(self, t: Tensor, axes: list[int], keepdims: bool) -> Tensor:
        """Sum over `axes`."""
        if not axes:
            return t
        shape = tuple(
            1 if i in axes else n for i, n in enumerate(t.shape) if keepdims or i not in axes
        )
        return self.emit("ReduceSum", [t.name, self.ints(axes)], shape, keepdims=int(keepdims))


class Expr:
    """A tensor that takes Python arithmetic, so that a derivative reads as its formula."""

    def __init__(self, builder: Builder, tensor: Tensor) -> None:
        self.builder, self.tensor = builder, tensor

    def _wrap(self, other: Expr | float) -> Tensor:
        if isinstance(other, Expr):
            return other.tensor
        return self.builder.constant(other)

    def _binary(self, op: str, a: Tensor, b: Tensor) -> Expr:
        return Expr(self.builder, self.builder.binary(op, a, b))

    def __add__(self, other: Expr | float) -> Expr:
        return self._binary("Add", self.tensor, self._wrap(other))

    def __sub__(self, other: Expr | float) -> Expr:
        return self._binary("Sub", self.tensor, self._wrap(other))

    def __mul__(self, other: Expr | float) -> Expr:
        return self._binary("Mul", self.tensor, self._wrap(other))

    def __truediv__(self, other: Expr | float) -> Expr:
        return self._binary("Div", self.tensor, self._wrap(other))

    def __radd__(self, other: float) -> Expr:
        return self._binary("Add", self._wrap(other), self.tensor)

    def __rsub__(self, other: float) -> Expr:
        return self._binary("Sub", self._wrap(other), self.tensor)

    def __rmul__(self, other: float) -> Expr:
        return self._binary("Mul", self._wrap(other), self.tensor)

    def __rtruediv__(self, other: float) -> Expr:
        return self._binary("Div", self._wrap(other), self.tensor)

    def __neg__(self) -> Expr:
        return self.apply("Neg")

    def apply(self, op: str, *others: Expr | float, **attributes) -> Expr:
        """An elementwise operator on this tensor (and on scalars or tensors of its shape)."""
        names = [self.tensor.name, *(self._wrap(o).name for o in others)]
        return Expr(self.builder, self.builder.emit(op, names, self.tensor.shape, **attributes))

    def where(self, op: str, bound: Expr | float) -> Expr:
        """1 where `self op bound` holds (op: Greater, Less, GreaterOrEqual, LessOrEqual)."""
        mask = self.builder.emit(op, [self.tensor.name, self._wrap(bound).name], self.tensor.shape)
        to = helper.np_dtype_to_tensor_dtype(self.builder.dtype)
        return Expr(self.builder, self.builder.emit("Cast", [mask.name], mask.shape, to=to))
