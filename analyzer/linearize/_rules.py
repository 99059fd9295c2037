"""The derivative of every operator, as a rule on blocks: the one place for operator rules.

Grouped by algebra. A new elementwise function is one line of `ELEMENTWISE`, a new operator that
only moves elements one line of `STRUCTURAL`; any other is a function in `RULES`. Operators
without an entry here but with a function body in the ONNX specification are expanded first
(`_lower.py`). Rules hold from opset 13 on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from ..errors import NoBlockRule
from ._blocks import Algebra, Block, Dense, Selection
from ._graph import Builder, Expr, Tensor

Blocks = dict[Hashable, Block]
"""The derivative of one tensor: source name → block; a source that is absent means zero."""


@dataclass(frozen=True)
class Part:
    """One operand of a Concat.

    Attributes:
        blocks: Its derivative.
        shape: Its shape.
        ids: Flat positions of its elements in the joined tensor, ascending.
    """

    blocks: Blocks
    shape: tuple[int, ...]
    ids: np.ndarray


@dataclass
class Use:
    """One node, with all that its rule may ask."""

    node: onnx.NodeProto
    attributes: dict[str, Any]
    inputs: list[Tensor | None]
    outputs: list[Tensor | None]
    blocks: list[Blocks]
    constants: list[np.ndarray | None]
    builder: Builder
    algebra: Algebra
    opset: int
    parts: list[Part] = field(default_factory=list)  # of input 0, if a Concat made it

    @property
    def sources(self) -> list[Hashable]:
        """The sources that any input depends on."""
        return list(dict.fromkeys(s for b in self.blocks for s in b))

    def x(self, i: int) -> Tensor:
        """Input i, which must be present."""
        tensor = self.inputs[i] if i < len(self.inputs) else None
        if tensor is None:
            raise NoBlockRule(f"{self.node.op_type} lacks its input {i}")
        return tensor

    def constant(self, i: int) -> np.ndarray | None:
        """The value of input i where it is present and known before the run."""
        return self.constants[i] if i < len(self.constants) else None

    def has(self, i: int) -> bool:
        """Whether input i is present."""
        return i < len(self.inputs) and self.inputs[i] is not None

    def y(self, i: int = 0) -> Tensor:
        """Output i."""
        tensor = self.outputs[i]
        assert tensor is not None
        return tensor

    def refuse(self, why: str) -> NoBlockRule:
        """The error for a use of the operator that the rule does not cover."""
        return NoBlockRule(f"{self.node.op_type} {why}")


Rule = Callable[[Use], list[Blocks]]


def differentiate(use: Use) -> list[Blocks]:
    """The blocks of each output of a node.

    Raises:
        NoBlockRule: The operator, or this use of it, has no rule.
    """
    op = use.node.op_type
    if use.node.domain not in ("", "ai.onnx") or op not in RULES:
        raise NoBlockRule(op if not use.node.domain else f"{use.node.domain}.{op}")
    return RULES[op](use)


# Elementwise functions: dy = f'(x) dx, with x the argument, y the value, a the attributes.

Derivative = Callable[[Expr, Expr, dict[str, Any]], Expr]


def _positive(x: Expr) -> Expr:
    return x.where("Greater", 0.0)


def _piecewise(mask: Expr, inside: Expr | float, outside: Expr | float) -> Expr:
    """Inside where the mask is 1, else outside; both finite."""
    return mask * inside + (1.0 - mask) * outside


def _bump(x: Expr) -> Expr:
    """The derivative of the sigmoid, ``t / (1 + t)²`` with ``t = exp(−|x|)``.

    As y (1 − y) it would lose all digits where y rounds to 1: beyond 17 in single precision, and
    recurrent cells do saturate so far.
    """
    t = (-x.apply("Abs")).apply("Exp")
    return t / ((1.0 + t) * (1.0 + t))


def _gelu(x: Expr, y: Expr, a: dict[str, Any]) -> Expr:
    if a.get("approximate", b"none") == b"tanh":
        k = math.sqrt(2 / math.pi)
        inner = k * (x + 0.044715 * x * x * x)
        slope = k * (1.0 + 3 * 0.044715 * x * x)
        return 0.5 * (1.0 + inner.apply("Tanh")) + 2.0 * x * _bump(2.0 * inner) * slope
    cdf = 0.5 * (1.0 + (x * math.sqrt(0.5)).apply("Erf"))
    return cdf + x * (-0.5 * x * x).apply("Exp") * (1 / math.sqrt(2 * math.pi))


def _mish(x: Expr, y: Expr, a: dict[str, Any]) -> Expr:
    soft = x.apply("Softplus")
    return soft.apply("Tanh") + 4.0 * x * _bump(2.0 * soft) * x.apply("Sigmoid")


ELEMENTWISE: dict[str, Derivative] = {
    "Neg": lambda x, y, a: Expr(x.builder, x.builder.constant(-np.ones((1,) * x.tensor.rank))),
    "Abs": lambda x, y, a: x.apply("Sign"),
    "Exp": lambda x, y, a: y,
    "Log": lambda x, y, a: 1.0 / x,
    "Sqrt": lambda x, y, a: 0.5 / y,
    "Reciprocal": lambda x, y, a: -(y * y),
    "Sin": lambda x, y, a: x.apply("Cos"),
    "Cos": lambda x, y, a: -x.apply("Sin"),
    "Erf": lambda x, y, a: (2 / math.sqrt(math.pi)) * (-(x * x)).apply("Exp"),
    "Sigmoid": lambda x, y, a: _bump(x),
    "Tanh": lambda x, y, a: 4.0 * _bump(2.0 * x),
    "Relu": lambda x, y, a: _positive(x),
    "LeakyRelu": lambda x, y, a: _piecewise(_positive(x), 1.0, a.get("alpha", 0.01)),
    "ThresholdedRelu": lambda x, y, a: x.where("Greater", a.get("alpha", 1.0)),
    # y = alpha (exp x - 1) below zero, so its derivative there is y + alpha.
    "Elu": lambda x, y, a: _piecewise(_positive(x), 1.0, y + a.get("alpha", 1.0)),
    "Celu": lambda x, y, a: _piecewise(_positive(x), 1.0, y / a.get("alpha", 1.0) + 1.0),
    "Selu": lambda x, y, a: _piecewise(
        _positive(x),
        a.get("gamma", 1.0507010221481323),
        y + a.get("gamma", 1.0507010221481323) * a.get("alpha", 1.6732631921768188),
    ),
    "Softplus": lambda x, y, a: x.apply("Sigmoid"),
    "Softsign": lambda x, y, a: 1.0 / ((1.0 + x.apply("Abs")) * (1.0 + x.apply("Abs"))),
    "HardSigmoid": lambda x, y, a: (
        a.get("alpha", 0.2) * y.where("Greater", 0.0) * y.where("Less", 1.0)
    ),
    "HardSwish": lambda x, y, a: _piecewise(
        x.where("GreaterOrEqual", 3.0), 1.0, x.where("Greater", -3.0) * (x / 3.0 + 0.5)
    ),
    "Gelu": _gelu,
    "Mish": _mish,
}


def _elementwise(use: Use) -> list[Blocks]:
    x, y = (Expr(use.builder, t) for t in (use.x(0), use.y()))
    slope = ELEMENTWISE[use.node.op_type](x, y, use.attributes).tensor
    return [{s: use.algebra.scale(b, slope) for s, b in use.blocks[0].items()}]


def _clip(use: Use) -> list[Blocks]:
    """d clip(x) = [min ≤ x ≤ max] dx; the bounds are constants of the derivative."""
    if any(use.blocks[1:]):
        raise use.refuse("with a bound that depends on the state")
    x, slope = Expr(use.builder, use.x(0)), None
    for i, op in ((1, "GreaterOrEqual"), (2, "LessOrEqual")):
        if use.has(i):
            inside = x.where(op, Expr(use.builder, use.x(i)))
            slope = inside if slope is None else slope * inside
    if slope is None:
        return [dict(use.blocks[0])]
    return [{s: use.algebra.scale(b, slope.tensor) for s, b in use.blocks[0].items()}]


# Linear operators: the derivative of the value is the operator applied to the derivative.


def _identity(use: Use) -> list[Blocks]:
    """dy = dx: Identity, a Cast between float types, Dropout at inference."""
    return [dict(use.blocks[0])] + [{}] * (len(use.outputs) - 1)


def _dropout(use: Use) -> list[Blocks]:
    training = use.constant(2)
    if use.has(2) and (training is None or bool(training)):
        raise use.refuse("in training mode")
    return _identity(use)


def _sum(use: Use, signs: tuple[float, ...] | None = None) -> list[Blocks]:
    """d(v + w) = dv + dw, each repeated to the common shape."""
    result: Blocks = {}
    shape = use.y().shape
    for i, blocks in enumerate(use.blocks):
        for source, block in blocks.items():
            term = use.algebra.broadcast(block, shape)
            if signs and signs[i] != 1:
                sign = use.builder.constant(np.full((1,) * len(shape), signs[i]))
                term = use.algebra.scale(term, sign)
            result[source] = use.algebra.add(result[source], term) if source in result else term
    return [result]


def _mean(use: Use) -> list[Blocks]:
    return _sum(use, (1 / len(use.inputs),) * len(use.inputs))


def _reduce(use: Use) -> list[Blocks]:
    """d(Σ x) = Σ dx and d(mean x) = mean dx over constant axes."""
    shape = use.x(0).shape
    axes = use.attributes.get("axes")
    if use.has(1):
        if use.constant(1) is None:
            raise use.refuse("over axes known only at run time")
        axes = use.constant(1).tolist()  # type: ignore[union-attr]
    if not axes:
        axes = [] if use.attributes.get("noop_with_empty_axes", 0) else list(range(len(shape)))
    axes = sorted(a % len(shape) for a in axes)
    keep = bool(use.attributes.get("keepdims", 1))
    result: Blocks = {}
    for source, block in use.blocks[0].items():
        tensor = use.algebra.full(block, shape, axes)
        tensor = use.builder.reduce_sum(tensor, [a + 1 for a in axes], keep)
        scale = None
        if use.node.op_type == "ReduceMean":
            count = math.prod(shape[a] for a in axes)
            scale = use.builder.constant(np.full((1,) * (tensor.rank - 1), 1 / count))
        result[source] = Dense(tensor, scale)
    return [result]


def _where(use: Use) -> list[Blocks]:
    """dy = dv where the condition holds, else dw."""
    b, shape = use.builder, use.y().shape
    condition = b.lift(use.x(0), len(shape))
    zero = b.constant(0.0)
    result: Blocks = {}
    for i in (1, 2):
        for source, block in use.blocks[i].items():
            wide = use.algebra.broadcast(block, shape)
            # Where on the finished values, since 0 times an infinite slope would be NaN.
            if isinstance(wide, Selection):
                value = wide.scale or b.constant(np.ones((1,) * len(shape)))
                chosen = np.broadcast_shapes(condition.shape, value.shape)
            else:
                value = use.algebra.dense(wide)
                chosen = np.broadcast_shapes((1, *condition.shape), value.shape)
            pair = [value.name, zero.name] if i == 1 else [zero.name, value.name]
            masked = b.emit("Where", [condition.name, *pair], chosen)
            term: Block = (
                Selection(wide.index, masked, wide.size)
                if isinstance(wide, Selection)
                else Dense(masked)
            )
            result[source] = use.algebra.add(result[source], term) if source in result else term
    return [result]


# Structural operators: every element of the result is an element of an operand. Which one is
# found by running the operator itself on the positions of the elements.

STRUCTURAL = (
    "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Gather", "Expand",
    "Split", "Tile", "GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth",
)  # fmt: skip


def _structural(use: Use) -> list[Blocks]:
    if use.node.op_type == "Gather" and use.constant(1) is None:
        return _gather_at_run_time(use)
    if any(t is not None and use.constant(i) is None for i, t in enumerate(use.inputs) if i):
        raise use.refuse("with parameters known only at run time")
    shape = use.x(0).shape
    ids = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    whole = Part(use.blocks[0], shape, ids.reshape(-1))
    result = []
    for out in _run_on(use, ids):
        # What was joined and is taken apart again, such as the layers of a stacked state, keeps
        # its own derivative: that of one layer by a later one stays zero.
        part = next((p for p in use.parts if np.isin(out, p.ids).all()), whole)
        local = np.searchsorted(part.ids, out)
        result.append(
            {s: use.algebra.rearrange(b, part.shape, local) for s, b in part.blocks.items()}
        )
    return result


def parts_of(use: Use) -> list[Part]:
    """What a Concat joined in the node's first output, with the places of the pieces.

    Operators that keep the order of the elements hand on what they were given.
    """
    if use.node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"):
        return use.parts
    if use.node.op_type != "Concat":
        return []
    axis = use.attributes["axis"] % use.y().rank
    shapes = [use.x(i).shape for i in range(len(use.inputs))]
    places = np.arange(math.prod(use.y().shape)).reshape(use.y().shape)
    ends = np.cumsum([s[axis] for s in shapes])[:-1]
    return [
        Part(b, s, p.reshape(-1))
        for b, s, p in zip(use.blocks, shapes, np.split(places, ends, axis), strict=True)
    ]


def _run_on(use: Use, ids: np.ndarray) -> list[np.ndarray]:
    """The node's outputs for integer data `ids`, by the reference evaluator."""
    feeds = {name: use.constants[i] for i, name in enumerate(use.node.input) if name and i}
    feeds[use.node.input[0]] = ids
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in feeds.items()
        if v is not None
    ]
    outputs = [helper.make_tensor_value_info(n, onnx.TensorProto.INT64, None)
               for n in use.node.output]  # fmt: skip
    graph = helper.make_graph([use.node], "positions", infos, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", use.opset)])
    return [np.asarray(v) for v in ReferenceEvaluator(model).run(None, feeds)]


def _gather_at_run_time(use: Use) -> list[Blocks]:
    """d x[i] = dx[i] with indices that the run computes."""
    data, indices = use.x(0), use.x(1)
    axis = use.attributes.get("axis", 0) % data.rank
    result: Blocks = {}
    for source, block in use.blocks[0].items():
        t = use.algebra.full(block, data.shape, [axis])
        shape = t.shape[: axis + 1] + indices.shape + t.shape[axis + 2 :]
        result[source] = Dense(
            use.builder.emit("Gather", [t.name, indices.name], shape, axis=axis + 1)
        )
    return [result]


def _concat(use: Use) -> list[Blocks]:
    """d[v, w] = [dv, dw]; an operand that does not depend on the source gives zeros."""
    if len(use.inputs) == 1:
        return [dict(use.blocks[0])]
    axis = use.attributes["axis"] % use.y().rank
    shapes = [use.x(i).shape for i in range(len(use.inputs))]
    result: Blocks = {}
    for source in use.sources:
        blocks = [b.get(source) for b in use.blocks]
        present = [b for b in blocks if b is not None]
        chosen = [b if isinstance(b, Selection) else None for b in blocks]
        if len(present) == sum(b is not None for b in chosen):
            index = np.concatenate(
                [b.index if b else np.full(s, -1) for b, s in zip(chosen, shapes, strict=True)],
                axis,
            )
            scale = None
            if any(b and b.scale for b in chosen):
                one = use.builder.constant(np.ones((1,) * len(shapes[0])))
                parts = [
                    use.builder.expand((b.scale if b else None) or one, s)
                    for b, s in zip(chosen, shapes, strict=True)
                ]
                scale = use.builder.concat(parts, axis)
            result[source] = Selection(index, scale, present[0].size)
            continue
        tensors = [
            use.algebra.full(b, s, list(range(len(s))))
            if b is not None
            else use.builder.constant(np.zeros((present[0].size, *s)))
            for b, s in zip(blocks, shapes, strict=True)
        ]
        result[source] = Dense(use.builder.concat(tensors, axis + 1))
    return [result]


# Products: d(v · w) = dv · w + v · dw.


def _scaled(use: Use, i: int, factor: Tensor) -> Blocks:
    """factor · dx_i in the shape of the result."""
    shape = use.y().shape
    factor = use.builder.lift(factor, len(shape))
    return {
        s: use.algebra.scale(use.algebra.broadcast(b, shape), factor)
        for s, b in use.blocks[i].items()
    }


def _total(use: Use, *terms: Blocks) -> list[Blocks]:
    result: Blocks = {}
    for term in terms:
        for source, block in term.items():
            result[source] = use.algebra.add(result[source], block) if source in result else block
    return [result]


def _mul(use: Use) -> list[Blocks]:
    return _total(use, _scaled(use, 0, use.x(1)), _scaled(use, 1, use.x(0)))


def _div(use: Use) -> list[Blocks]:
    """d(v / w) = dv / w - (v / w) dw / w."""
    w, y = Expr(use.builder, use.x(1)), Expr(use.builder, use.y())
    first = _scaled(use, 0, (1.0 / w).tensor) if use.blocks[0] else {}
    second = _scaled(use, 1, (-y / w).tensor) if use.blocks[1] else {}
    return _total(use, first, second)


def _pow(use: Use) -> list[Blocks]:
    """d(vʷ) = w vʷ⁻¹ dv + vʷ ln(v) dw."""
    b = use.builder
    to = helper.np_dtype_to_tensor_dtype(b.dtype)
    v = Expr(b, use.x(0))
    w = Expr(b, b.emit("Cast", [use.x(1).name], use.x(1).shape, to=to))
    first, second = {}, {}
    if use.blocks[0]:
        less = (w - 1.0).tensor
        power = b.emit("Pow", [v.tensor.name, less.name], use.y().shape)
        first = _scaled(use, 0, b.mul(w.tensor, power))
    if use.blocks[1]:
        # 0ʷ ln 0 is 0 for w > 0, as its limit; computed as it stands it would be NaN.
        zero = b.emit("Equal", [v.tensor.name, b.constant(0.0).name], v.tensor.shape)
        safe = b.emit("Where", [zero.name, b.constant(1.0).name, v.tensor.name], v.tensor.shape)
        second = _scaled(use, 1, (Expr(b, use.y()) * Expr(b, safe).apply("Log")).tensor)
    return _total(use, first, second)


def _matmul(use: Use) -> list[Blocks]:
    """d(V · W) = dV · W + V · dW."""
    b, algebra = use.builder, use.algebra
    v, w = use.x(0), use.x(1)
    # A vector is a matrix of one row (left) or one column (right).
    left = b.reshape(v, (1, *v.shape)) if v.rank == 1 else v
    right = b.reshape(w, (*w.shape, 1)) if w.rank == 1 else w
    rank = max(left.rank, right.rank)
    whole = (*np.broadcast_shapes(left.shape[:-2], right.shape[:-2]), left.shape[-2],
             right.shape[-1])  # fmt: skip

    def matrix(block: Block, x: Tensor, as_matrix: Tensor) -> Block:
        ids = np.arange(math.prod(x.shape)).reshape(as_matrix.shape)
        return algebra.rearrange(block, x.shape, ids)

    def vector(block: Block) -> Block:
        shape = use.y().shape
        ids = np.arange(math.prod(whole)).reshape(shape)
        return algebra.rearrange(block, whole, ids)

    first: Blocks = {}
    for source, block in use.blocks[0].items():
        block = matrix(block, v, left)
        product = _rows(use, block, use.constant(1)) if right.rank == 2 and w.rank == 2 else None
        if product is None:
            t = algebra.full(block, left.shape, [left.rank - 1])
            other = right if right.rank == 2 else b.lift(right, rank)
            product = Dense(b.matmul(b.lift(t, rank, lead=1), other))
        first[source] = vector(product)
    second: Blocks = {}
    for source, block in use.blocks[1].items():
        t = algebra.full(matrix(block, w, right), right.shape, [right.rank - 2])
        second[source] = vector(Dense(b.matmul(b.lift(left, rank), b.lift(t, rank, lead=1))))
    return _total(use, first, second)


def _rows(use: Use, block: Block, weight: np.ndarray | None) -> Block | None:
    """d(V · W) for a selection V and a constant W: rows of W, no product needed.

    ``dy[n] = scale[k(n)] · W[k(n)]`` where element k(n) of V follows element n of the source;
    without a factor several elements may follow one.
    """
    if not isinstance(block, Selection) or weight is None:
        return None
    last = block.index.reshape(-1, block.index.shape[-1])
    if not np.array_equal(last, np.broadcast_to(last[:1], last.shape)):
        return None
    follows = last[0]
    kept = np.flatnonzero(follows >= 0)
    lead = (1,) * (block.index.ndim - 1)
    rows = np.zeros((block.size, weight.shape[1]), weight.dtype)
    if block.scale is None:
        np.add.at(rows, follows[kept], weight[kept])
        return Dense(use.builder.constant(rows.reshape(block.size, *lead, -1)))
    if len(set(follows[kept])) != kept.size:
        return None
    b, shape = use.builder, block.index.shape
    rows[follows[kept]] = weight[kept]
    position = np.zeros(block.size, np.int64)
    position[follows[kept]] = kept
    scale = b.expand(block.scale, (*block.scale.shape[:-1], shape[-1]))
    if not np.array_equal(position, np.arange(shape[-1])):
        picked = (*scale.shape[:-1], block.size)
        scale = b.emit("Gather", [scale.name, b.ints(position)], picked, axis=scale.rank - 1)
    front = b.transpose(scale, (scale.rank - 1, *range(scale.rank - 1)))
    column = b.reshape(front, (*front.shape, 1))
    return Dense(b.mul(column, b.constant(rows.reshape(block.size, *lead, -1))))


def _einsum(use: Use) -> list[Blocks]:
    """A contraction is linear in each operand: put the direction axis in front of that one."""
    equation = use.attributes["equation"].decode().replace(" ", "")
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if "->" not in equation:
        letters = [c for c in left if c.isalpha()]
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
        right = ("..." if "..." in left else "") + right
    free = next(c for c in "zyxwvutsrqponmlkjihgfedcba" if c not in equation)
    parts = []
    for i, blocks in enumerate(use.blocks):
        varied = [free + t if j == i else t for j, t in enumerate(terms)]
        result: Blocks = {}
        for source, block in blocks.items():
            shape = use.x(i).shape
            tensor = use.algebra.full(block, shape, list(range(len(shape))))
            names = [tensor.name if j == i else use.x(j).name for j in range(len(terms))]
            result[source] = Dense(
                use.builder.emit(
                    "Einsum",
                    names,
                    (block.size, *use.y().shape),
                    equation=",".join(varied) + "->" + free + right,
                )
            )
        parts.append(result)
    return _total(use, *parts)


# Normalisations: a function of a whole axis, linearised in closed form.


def _reduce_like(use: Use, t: Expr, axes: list[int], op: str) -> Expr:
    shape = tuple(1 if i in axes else n for i, n in enumerate(t.tensor.shape))
    b = use.builder
    total = b.reduce_sum(t.tensor, axes, keepdims=True)
    if op == "sum":
        return Expr(b, total)
    return Expr(b, total) * (1 / (math.prod(t.tensor.shape) / math.prod(shape)))


def _softmax(use: Use) -> list[Blocks]:
    """d softmax = y (dx - Σ y dx); d log-softmax = dx - Σ softmax(x) dx."""
    b, y = use.builder, Expr(use.builder, use.y())
    axis = use.attributes.get("axis", -1) % use.y().rank
    log = use.node.op_type == "LogSoftmax"
    p = y.apply("Exp") if log else y
    front = Expr(b, b.lift(p.tensor, p.tensor.rank + 1))
    result: Blocks = {}
    for source, block in use.blocks[0].items():
        dx = Expr(b, use.algebra.full(block, use.y().shape, [axis]))
        inner = dx - _reduce_like(use, front * dx, [axis + 1], "sum")
        result[source] = Dense(inner.tensor, None if log else p.tensor)
    return [result]


def _layer_normalization(use: Use) -> list[Blocks]:
    """y = γ x̂ + β: dx̂ = r (dx - mean dx - x̂ mean(x̂ dx)), r the inverse deviation."""
    b, x = use.builder, Expr(use.builder, use.x(0))
    rank = use.x(0).rank
    axes = list(range(use.attributes.get("axis", -1) % rank, rank))
    shifted = [a + 1 for a in axes]
    centred = x - _reduce_like(use, x, axes, "mean")
    variance = _reduce_like(use, centred * centred, axes, "mean")
    r = 1.0 / (variance + use.attributes.get("epsilon", 1e-5)).apply("Sqrt")
    normal = centred * r
    front = Expr(b, b.lift(normal.tensor, rank + 1))
    hat: Blocks = {}
    mean: Blocks = {}
    inverse: Blocks = {}
    for source, block in use.blocks[0].items():
        dx = Expr(b, use.algebra.full(block, use.x(0).shape, axes))
        dmean = _reduce_like(use, dx, shifted, "mean")
        along = _reduce_like(use, front * dx, shifted, "mean")
        hat[source] = Dense((dx - dmean - front * along).tensor, r.tensor)
        mean[source] = Dense(dmean.tensor)
        inverse[source] = Dense(along.tensor, (-r * r).tensor)
    terms = [{s: use.algebra.scale(d, b.lift(use.x(1), rank)) for s, d in hat.items()}]
    terms.append(_scaled(use, 1, normal.tensor))
    if use.has(2):
        terms.append({s: use.algebra.broadcast(d, use.y().shape)
                      for s, d in use.blocks[2].items()})  # fmt: skip
    return [*_total(use, *terms), mean, inverse][: len(use.outputs)]


def _extremum(use: Use) -> list[Blocks]:
    """The derivative of the operand that is chosen; at a tie, of the first."""
    b, y = use.builder, Expr(use.builder, use.y())
    terms, free = [], None
    for i in range(len(use.inputs)):
        wide = Expr(b, b.expand(b.lift(use.x(i), y.tensor.rank), y.tensor.shape))
        op = "GreaterOrEqual" if use.node.op_type == "Max" else "LessOrEqual"
        mask = wide.where(op, y)
        chosen = mask if free is None else mask * free
        free = (1.0 - mask) if free is None else free * (1.0 - mask)
        terms.append(_scaled(use, i, chosen.tensor))
    return _total(use, *terms)


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(STRUCTURAL, _structural),
    "Clip": _clip,
    "Identity": _identity,
    "Cast": _identity,
    "CastLike": _identity,
    "Dropout": _dropout,
    "Add": _sum,
    "Sum": _sum,
    "Sub": lambda use: _sum(use, (1, -1)),
    "Mean": _mean,
    "ReduceSum": _reduce,
    "ReduceMean": _reduce,
    "Where": _where,
    "Concat": _concat,
    "Mul": _mul,
    "Div": _div,
    "Pow": _pow,
    "MatMul": _matmul,
    "Einsum": _einsum,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "LayerNormalization": _layer_normalization,
    "Max": _extremum,
    "Min": _extremum,
}

LOWERED = ("Gemm", "LSTM", "GRU", "RNN")
"""Operators that `_lower.py` rewrites into ones that have a rule."""


def rounds(op: str) -> bool:
    """Whether an operator computes with rounded numbers, as those of quantised models do.

    Its derivative is zero almost everywhere, which would read as "nothing is remembered".
    """
    return "Quantize" in op or "Integer" in op or op.startswith("QLinear")


ZERO = frozenset((
    "Shape", "Size", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or",
    "Not", "Xor", "IsNaN", "IsInf", "Sign", "Floor", "Ceil", "Round", "ArgMax", "ArgMin", "NonZero",
    "ConstantOfShape", "EyeLike", "Hardmax", "RandomUniformLike", "RandomNormalLike",
))  # fmt: skip
"""Operators whose derivative is zero wherever it exists."""
