"""The whole Jacobian of a step through the onnx-ad library, where block rules do not reach."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .. import _runtime
from ..errors import NoBlockRule
from ._linearization import Jacobian, Linearization
from ._step import Step, lowered


def dense_linearization(step: Step) -> Linearization:
    """Every state's derivative with respect to every source, dense, in forward mode.

    Raises:
        NoBlockRule: onnx-ad has no rule for an operator either.
    """
    import onnx_ad

    try:
        model = lowered(step)
    except NoBlockRule:
        model = step.model  # onnx-ad brings its own expansion of recurrent operators
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for info in (*fixed.graph.input, *fixed.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 1
    names = [name for name, _ in step.sources.values()]
    outputs = [c.output for c in step.differentiable]
    try:
        fixed = onnx.shape_inference.infer_shapes(fixed)
        result = onnx_ad.forward(fixed, inputs=names, outputs=outputs, layout="onnx")
    except onnx_ad.UnsupportedOperator as error:
        raise NoBlockRule(str(error)) from error
    except Exception as error:
        raise NoBlockRule(f"it failed ({_runtime.said(error)})") from error
    old = {i.name for i in model.graph.input}
    seeds = [i for i in result.graph.input if i.name not in old]
    total = sum(size for _, size in step.sources.values())
    # Seeds are constants: direction k moves element k of all sources laid end to end.
    start = 0
    for (_, size), seed in zip(step.sources.values(), seeds, strict=True):
        value = np.zeros((1, size, total), step.dtype)
        value[0, np.arange(size), start + np.arange(size)] = 1
        result.graph.initializer.append(numpy_helper.from_array(value, seed.name))
        start += size
        result.graph.input.remove(seed)
    tangents = [o.name for o in result.graph.output][-len(outputs) :]
    del result.graph.output[:]
    result.graph.output.extend(model.graph.output)
    jacobians = {}
    for component, tangent in zip(step.differentiable, tangents, strict=True):
        start = 0
        stem = f"{step.prefix}dense/{component.name}"
        shape = _constant(result, f"{stem}/shape", [component.size, 1, total])
        nodes = [helper.make_node("Reshape", [tangent, shape], [f"{stem}/rows"])]
        for source, (_, size) in step.sources.items():
            name = f"{stem}/{source}"
            ends = [_constant(result, f"{name}/{i}", [v]) for i, v in
                    enumerate((start, start + size, 2))]  # fmt: skip
            nodes.append(helper.make_node("Slice", [f"{stem}/rows", *ends], [name]))
            jacobians[component.name, source] = Jacobian("dense", name)
            start += size
        result.graph.node.extend(nodes)
    working = 6 * total * total * step.dtype.itemsize
    return Linearization(step, result, jacobians, "jvp-dense", working=working)


def _constant(model: onnx.ModelProto, name: str, value: list[int]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.int64), name))
    return name
