"""Central differences of one step: a black box that needs nothing but a step that runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..errors import ModelError, ResourceError
from ._linearization import Jacobian, Linearization
from ._step import Step, runnable

MAX_ELEMENTS = 2**28  # of the perturbed inputs, all together


def default_step(dtype: np.dtype) -> float:
    """eps^(1/3): where the truncation error h² meets the rounding error eps/h."""
    return float(np.cbrt(np.finfo(dtype).eps))


def difference_linearization(
    step: Step, scales: dict[str, np.ndarray], relative: float | None = None
) -> Linearization:
    """``∂f/∂x_i ≈ (f(x + h_i) - f(x - h_i)) / 2h_i``, every coordinate in one batch.

    Args:
        step: The step.
        scales: Source → ``[n]`` positive, how far each coordinate usually ranges.
        relative: h in units of `scales`; None means eps^(1/3).

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
    h = default_step(step.dtype) if relative is None else relative
    if not 0 < h < np.inf:
        raise ModelError(f"The step of differences must be a finite number above 0, not {h}.")
    model = onnx.ModelProto()
    model.CopyFrom(runnable(step))
    del model.graph.input[:], model.graph.output[:]
    before, after, jacobians, start = [], [], {}, 0

    def constant(name: str, value: np.ndarray) -> str:
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def base(name: str) -> str:
        return f"{name}/base"

    element = helper.np_dtype_to_tensor_dtype(step.dtype)
    spans = {}
    half = np.zeros((total, 1), step.dtype)
    # Rows: the point itself, every coordinate moved up, every coordinate moved down.
    for source, (name, size) in sources.items():
        width = np.asarray(scales[source], np.float64) * h
        move = np.zeros((rows, size), step.dtype)
        at = np.arange(size)
        move[1 + start + at, at] = width
        move[1 + total + start + at, at] = -width
        half[start : start + size, 0] = 1 / (2 * move[1 + start + at, at])
        spans[source] = (start, start + size)
        start += size
        moves = constant(f"{name}/moves", move)
        before.append(helper.make_node("Add", [base(name), moves], [name]))
        model.graph.input.append(helper.make_tensor_value_info(base(name), element, [1, size]))
    others = [(c.input, c.dtype, c.size) for c in step.components if not c.differentiable]
    if step.tokens:
        others.append((step.tokens, step.tokens_dtype, 1))
    for name, dtype, size in others:
        shape = constant(f"{name}/rows", np.array([rows, size], np.int64))
        before.append(helper.make_node("Expand", [base(name), shape], [name]))
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        model.graph.input.append(helper.make_tensor_value_info(base(name), kind, [1, size]))
    zero, one = (constant(f"{step.prefix}fd/{i}", np.array([i], np.int64)) for i in (0, 1))
    up = constant(f"{step.prefix}fd/up", np.array([1 + total], np.int64))
    end = constant(f"{step.prefix}fd/end", np.array([rows], np.int64))
    scale = constant(f"{step.prefix}fd/half", half)
    for c in step.components:
        after.append(helper.make_node("Slice", [c.output, zero, one, zero], [base(c.output)]))
        kind = helper.np_dtype_to_tensor_dtype(c.dtype)
        model.graph.output.append(helper.make_tensor_value_info(base(c.output), kind,
                                                                [1, c.size]))  # fmt: skip
        if not c.differentiable:
            continue
        stem = f"{step.prefix}fd/{c.name}"
        after += [
            helper.make_node("Slice", [c.output, one, up, zero], [f"{stem}/up"]),
            helper.make_node("Slice", [c.output, up, end, zero], [f"{stem}/down"]),
            helper.make_node("Sub", [f"{stem}/up", f"{stem}/down"], [f"{stem}/change"]),
            helper.make_node("Mul", [f"{stem}/change", scale], [f"{stem}/slope"]),
        ]
        for source, (low, high) in spans.items():
            name = f"{stem}/{source}"
            ends = [constant(f"{name}/{i}", np.array([v], np.int64))
                    for i, v in enumerate((low, high))]  # fmt: skip
            after.append(helper.make_node("Slice", [f"{stem}/slope", *ends, zero], [name]))
            jacobians[c.name, source] = Jacobian("dense", name)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*before, *nodes, *after])
    renamed = replace(
        step,
        embedding=base(step.embedding),
        tokens=base(step.tokens) if step.tokens else None,
        components=tuple(
            replace(c, input=base(c.input), output=base(c.output)) for c in step.components
        ),
    )
    return Linearization(renamed, model, jacobians, "fd")
