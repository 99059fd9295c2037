"""Central differences of one step: a black box that needs nothing but a step that runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .. import _passes
from ..errors import ModelError
from ._linearization import Jacobian, Linearization
from ._probe import probe
from ._step import Step, runnable, together

_AT_ONCE = 2**28  # bytes that perturbed copies of a step may work with, all together


def default_step(dtype: np.dtype) -> float:
    """eps^(1/3): where the truncation error h² meets the rounding error eps/h."""
    return float(np.cbrt(np.finfo(dtype).eps))


def difference_linearization(
    step: Step,
    scales: dict[str, np.ndarray],
    relative: float | None = None,
    batch: int | None = 1,
) -> Linearization:
    """``∂f/∂x_i ≈ (f(x + h_i) - f(x - h_i)) / 2h_i``, as many coordinates at once as fit.

    Args:
        step: The step.
        scales: Source → ``[n]`` positive, how far each coordinate usually ranges.
        relative: h in units of `scales`; None means eps^(1/3).
        batch: Positions that one call takes; None chooses.

    Raises:
        ModelError: The graph insists on a batch size, or `relative` is no width.
    """
    if step.batch is not None:
        raise ModelError(
            f"The model's batch size is fixed to {step.batch}; finite differences run "
            "perturbations as one batch and need a batch axis of free length."
        )
    h = default_step(step.dtype) if relative is None else relative
    if not 0 < h < np.inf:
        raise ModelError(f"The step of differences must be a finite number above 0, not {h}.")
    total = sum(size for _, size in step.sources.values())
    plain = runnable(step)
    facts = probe(plain, step.example())
    # Of every copy: the tensors of the step, and the gates inside its recurrent operators.
    each = 2 * sum(math.prod(facts.shapes.get(o, ())) for n in plain.graph.node for o in n.output)
    copy = 2 * (each + total) * step.dtype.itemsize  # a coordinate moved up, and down
    if batch is None:
        batch = together(step, total * copy)
    slices = -(-total // max(1, _AT_ONCE // (batch * copy)))
    size = -(-total // slices)
    graph = _Differences(step, plain, scales, h, batch, size)
    jacobians = graph.in_slices(slices)
    return Linearization(step, graph.model, jacobians, "fd", batch, batch * size * copy)


class _Differences:
    """A graph of a step and its differences.

    Args:
        step: The step.
        plain: Its graph as it runs.
        scales: Source → how far each coordinate ranges.
        h: In units of those.
        batch: Positions.
        size: Coordinates that are moved at once.
    """

    def __init__(
        self,
        step: Step,
        plain: onnx.ModelProto,
        scales: dict[str, np.ndarray],
        h: float,
        batch: int,
        size: int,
    ) -> None:
        self._step, self._scales, self._h = step, scales, h
        self._batch, self._size, self._rows = batch, size, 2 * size
        self._own, self._inner = f"{step.prefix}fd/", f"{step.prefix}fd-step/"
        self.model = onnx.ModelProto()
        self.model.CopyFrom(plain)
        graph = self.model.graph
        # Inside, every name but those of the weights gains a prefix.
        weights = {t.name for t in (*graph.initializer, *graph.sparse_initializer)}
        self._moved_step = _passes.prefixed(plain, self._inner, weights).graph.node
        del graph.input[:], graph.output[:]
        for name, dtype, width in self._inputs():
            graph.input.append(self._info(name, dtype, batch, width))
        for c in step.components:
            graph.output.append(self._info(c.output, c.dtype, batch, c.size))
        self._nodes: list[onnx.NodeProto] = []

    def in_slices(self, slices: int) -> dict[tuple[str, str], Jacobian]:
        """Add the differences, a slice of the coordinates after the other."""
        step, graph = self._step, self.model.graph
        sizes = {source: size for source, (_, size) in step.sources.items()}
        ends = np.cumsum([0, *sizes.values()])
        spans = dict(zip(sizes, itertools.pairwise(ends), strict=True))
        widths = {s: self._widths(s) for s in sizes}
        halves = np.zeros(slices * self._size, step.dtype)
        halves[: ends[-1]] = np.concatenate([1 / (2 * w) for w in widths.values()])
        # Numbers past the last coordinate move nothing.
        numbers = np.arange(slices * self._size)
        shape = (slices, self._size) if slices > 1 else (self._size,)
        given = [self._constant("coordinates", numbers.reshape(shape)),
                 self._constant("halves", halves.reshape(shape))]  # fmt: skip
        names = [f"{self._own}slope/{c.name}" for c in step.differentiable]
        if slices == 1:
            self._differ(given[0], given[1], widths, spans, names)
            graph.node.extend(self._nodes)
        else:
            each = [f"{name}/slice" for name in names]
            inside = [f"{name}/slice" for name in given]
            self._differ(inside[0], inside[1], widths, spans, each)
            body = helper.make_graph(
                self._nodes, f"{self._own}slice",
                [self._info(inside[0], np.dtype(np.int64), self._size),
                 self._info(inside[1], step.dtype, self._size)],
                [self._info(n, step.dtype, c.size, self._batch, self._size)
                 for n, c in zip(each, step.differentiable, strict=True)],
            )  # fmt: skip
            whole = [f"{name}/slices" for name in names]
            graph.node.append(
                helper.make_node("Scan", given, whole, body=body, num_scan_inputs=2,
                                 scan_output_axes=[2] * len(names))
            )  # fmt: skip
            for name, parts, c in zip(names, whole, step.differentiable, strict=True):
                flat = self._constant(f"{name}/flat", [c.size, self._batch, slices * self._size])
                graph.node.append(helper.make_node("Reshape", [parts, flat], [name]))
        return self._by_source(names, spans)

    def _inputs(self) -> list[tuple[str, np.dtype, int]]:
        """What the step reads: name, type, width."""
        step = self._step
        found = [(step.embedding, step.dtype, step.embedding_size)]
        found += [(c.input, c.dtype, c.size) for c in step.components]
        return [*found, (step.tokens, step.tokens_dtype, 1)] if step.tokens else found

    def _widths(self, source: str) -> np.ndarray:
        return (np.asarray(self._scales[source], np.float64) * self._h).astype(self._step.dtype)

    def _differ(
        self,
        coordinates: str,
        halves: str,
        widths: dict[str, np.ndarray],
        spans: dict[str, tuple[int, int]],
        slopes: Sequence[str],
    ) -> None:
        """Move some coordinates up and down, run the step, and take the slopes.

        Args:
            coordinates: ``[coordinate]`` numbers among all sources laid end to end.
            halves: ``[coordinate]`` 1 / 2h.
            widths: Source → h.
            spans: Source → its first number and one past its last.
            slopes: What the slopes are called, ``[state, position, coordinate]``.
        """
        step, batch, size = self._step, self._batch, self._size
        moving = {graph_input: source for source, (graph_input, _) in step.sources.items()}
        kind = helper.np_dtype_to_tensor_dtype(step.dtype)
        column = self._emit("Reshape", [coordinates, self._constant("column", [size, 1])])
        for name, _, width in self._inputs():
            if name in moving:
                source = moving[name]
                own = self._constant(f"{name}/own", np.arange(*spans[source])[None])
                here = self._emit("Cast", [self._emit("Equal", [column, own])], to=kind)
                up = self._emit("Mul", [here, self._constant(f"{name}/h", widths[source][None])])
                moves = self._emit("Concat", [up, self._emit("Neg", [up])], axis=0)
                apart = self._constant(f"{name}/apart", [self._rows, 1, width])
                copies = self._emit("Add", [name, self._emit("Reshape", [moves, apart])])
            else:
                whole = self._constant(f"{name}/rows", [self._rows, batch, width])
                copies = self._emit("Expand", [name, whole])
            flat = self._constant(f"{name}/flat", [self._rows * batch, width])
            self._emit("Reshape", [copies, flat], self._inner + name)
        self._nodes += self._moved_step
        half = self._emit("Reshape", [halves, self._constant("half", [size, 1])])
        for c, slope in zip(step.differentiable, slopes, strict=True):
            wide = self._constant(f"{slope}/wide", [self._rows, batch * c.size])
            rows = self._emit("Reshape", [self._inner + c.output, wide])
            ends = [self._constant(f"at/{n}", [n]) for n in (0, size, self._rows)]
            above = self._emit("Slice", [rows, ends[0], ends[1], ends[0]])
            below = self._emit("Slice", [rows, ends[1], ends[2], ends[0]])
            change = self._emit("Mul", [self._emit("Sub", [above, below]), half])
            # [coordinate, position, state] → [state, position, coordinate], one axis after the
            # other: ONNX Runtime does that ten times as fast. The shape between keeps it from
            # joining them.
            tall = self._emit("Transpose", [change], perm=[1, 0])
            apart = self._constant(f"{slope}/apart", [batch, c.size, size])
            self._emit("Transpose", [self._emit("Reshape", [tall, apart])], slope, perm=[1, 0, 2])

    def _by_source(
        self, slopes: Sequence[str], spans: dict[str, tuple[int, int]]
    ) -> dict[tuple[str, str], Jacobian]:
        jacobians = {}
        axis = self._constant("axis", [2])
        for c, slope in zip(self._step.differentiable, slopes, strict=True):
            for source, span in spans.items():
                name = f"{slope}/by/{source}"
                ends = [self._constant(f"at/{n}", [n]) for n in span]
                self.model.graph.node.append(
                    helper.make_node("Slice", [slope, *ends, axis], [name])
                )
                jacobians[c.name, source] = Jacobian("dense", name)
        return jacobians

    def _emit(self, op: str, inputs: list[str], out: str | None = None, **attributes) -> str:
        name = out or f"{self._own}{op}/{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def _constant(self, name: str, value: np.ndarray | list[int]) -> str:
        full = f"{self._own}{name}"
        if full not in {t.name for t in self.model.graph.initializer}:
            self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), full))
        return full

    @staticmethod
    def _info(name: str, dtype: np.dtype, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)
