"""Central differences of one step: a black box that needs nothing but a step that runs."""

from __future__ import annotations

import math

import numpy as np
from onnx import helper, numpy_helper

from .. import _passes
from ..errors import ModelError, ResourceError
from ._linearization import Jacobian, Linearization
from ._probe import probe
from ._step import Step, runnable, together

MAX_ELEMENTS = 2**28  # of the perturbed inputs, all together


def default_step(dtype: np.dtype) -> float:
    """eps^(1/3): where the truncation error h² meets the rounding error eps/h."""
    return float(np.cbrt(np.finfo(dtype).eps))


def difference_linearization(
    step: Step,
    scales: dict[str, np.ndarray],
    relative: float | None = None,
    batch: int | None = 1,
) -> Linearization:
    """``∂f/∂x_i ≈ (f(x + h_i) - f(x - h_i)) / 2h_i``, every coordinate in one batch.

    Args:
        step: The step.
        scales: Source → ``[n]`` positive, how far each coordinate usually ranges.
        relative: h in units of `scales`; None means eps^(1/3).
        batch: Positions that one call takes; None chooses.

    Raises:
        ModelError: The graph insists on a batch size, or `relative` is no width.
        ResourceError: The perturbed copies would not fit.
    """
    if step.batch is not None:
        raise ModelError(
            f"The model's batch size is fixed to {step.batch}; finite differences run all "
            "perturbations as one batch and need a batch axis of free length."
        )
    sources = step.sources
    total = sum(size for _, size in sources.values())
    rows = 2 * total + 1
    if rows * total > MAX_ELEMENTS:
        raise ResourceError(
            f"Finite differences of {total} coordinates need a batch of {rows}, more than fits. "
            "Use --method jvp, or a model with a smaller state or embedding."
        )
    plain = runnable(step)
    facts = probe(plain, step.example())
    # Of every copy: the tensors of the step, and the gates inside its recurrent operators.
    each = 2 * sum(math.prod(facts.shapes.get(o, ())) for n in plain.graph.node for o in n.output)
    working = rows * (each + total) * step.dtype.itemsize
    if batch is None:
        batch = together(step, working)
    h = default_step(step.dtype) if relative is None else relative
    if not 0 < h < np.inf:
        raise ModelError(f"The step of differences must be a finite number above 0, not {h}.")
    # The step's own names stay with the points; inside, every name gains a prefix.
    inner = f"{step.prefix}fd/"
    model = _passes.prefixed(plain, inner)
    del model.graph.input[:], model.graph.output[:]
    before, after, jacobians, start = [], [], {}, 0

    def constant(name: str, value: np.ndarray) -> str:
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    element = helper.np_dtype_to_tensor_dtype(step.dtype)
    spans = {}
    half = np.zeros((total, 1, 1), step.dtype)
    # Rows: the points themselves, every coordinate moved up, every coordinate moved down; each
    # for all positions.
    for source, (name, size) in sources.items():
        width = np.asarray(scales[source], np.float64) * h
        move = np.zeros((rows, 1, size), step.dtype)
        at = np.arange(size)
        move[1 + start + at, 0, at] = width
        move[1 + total + start + at, 0, at] = -width
        half[start : start + size, 0, 0] = 1 / (2 * move[1 + start + at, 0, at])
        spans[source] = (start, start + size)
        start += size
        moves = constant(f"{name}/moves", move)
        flat = constant(f"{name}/flat", np.array([rows * batch, size], np.int64))
        before += [
            helper.make_node("Add", [name, moves], [f"{name}/moved"]),
            helper.make_node("Reshape", [f"{name}/moved", flat], [inner + name]),
        ]
        model.graph.input.append(helper.make_tensor_value_info(name, element, [batch, size]))
    others = [(c.input, c.dtype, c.size) for c in step.components if not c.differentiable]
    if step.tokens:
        others.append((step.tokens, step.tokens_dtype, 1))
    for name, dtype, size in others:
        shape = constant(f"{name}/rows", np.array([rows, batch, size], np.int64))
        flat = constant(f"{name}/flat", np.array([rows * batch, size], np.int64))
        before += [
            helper.make_node("Expand", [name, shape], [f"{name}/all"]),
            helper.make_node("Reshape", [f"{name}/all", flat], [inner + name]),
        ]
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        model.graph.input.append(helper.make_tensor_value_info(name, kind, [batch, size]))
    zero, one, two = (constant(f"{inner}at/{i}", np.array([i], np.int64)) for i in range(3))
    up = constant(f"{inner}at/up", np.array([1 + total], np.int64))
    end = constant(f"{inner}at/end", np.array([rows], np.int64))
    scale = constant(f"{inner}at/half", half)
    for c in step.components:
        now = constant(f"{c.output}/rows", np.array([batch], np.int64))
        after.append(helper.make_node("Slice", [inner + c.output, zero, now, zero], [c.output]))
        kind = helper.np_dtype_to_tensor_dtype(c.dtype)
        model.graph.output.append(helper.make_tensor_value_info(c.output, kind, [batch, c.size]))
        if not c.differentiable:
            continue
        stem = f"{inner}slopes/{c.name}"
        shape = constant(f"{stem}/shape", np.array([rows, batch, c.size], np.int64))
        wide = constant(f"{stem}/wide/shape", np.array([total, batch * c.size], np.int64))
        apart = constant(f"{stem}/apart/shape", np.array([batch, c.size, total], np.int64))
        after += [
            helper.make_node("Reshape", [inner + c.output, shape], [f"{stem}/all"]),
            helper.make_node("Slice", [f"{stem}/all", one, up, zero], [f"{stem}/up"]),
            helper.make_node("Slice", [f"{stem}/all", up, end, zero], [f"{stem}/down"]),
            helper.make_node("Sub", [f"{stem}/up", f"{stem}/down"], [f"{stem}/change"]),
            helper.make_node("Mul", [f"{stem}/change", scale], [f"{stem}/slope"]),
            # [source, position, state] → [state, position, source], one axis after the other: ONNX
            # Runtime does that ten times as fast. The shape between keeps it from joining them.
            helper.make_node("Reshape", [f"{stem}/slope", wide], [f"{stem}/wide"]),
            helper.make_node("Transpose", [f"{stem}/wide"], [f"{stem}/tall"], perm=[1, 0]),
            helper.make_node("Reshape", [f"{stem}/tall", apart], [f"{stem}/apart"]),
            helper.make_node("Transpose", [f"{stem}/apart"], [f"{stem}/turned"], perm=[1, 0, 2]),
        ]
        for source, (low, high) in spans.items():
            name = f"{stem}/by/{source}"
            ends = [constant(f"{name}/{i}", np.array([v], np.int64))
                    for i, v in enumerate((low, high))]  # fmt: skip
            after.append(helper.make_node("Slice", [f"{stem}/turned", *ends, two], [name]))
            jacobians[c.name, source] = Jacobian("dense", name)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*before, *nodes, *after])
    return Linearization(step, model, jacobians, "fd", batch, batch * working)
