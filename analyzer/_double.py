"""Operators that ONNX Runtime's CPU provider lacks in double precision, written out."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from numpy.polynomial import chebyshev
from onnx import TensorProto, helper, inliner, numpy_helper

# Functions of the specification whose body ONNX Runtime does not expand by itself at every opset.
_FUNCTIONS = ("Elu", "Celu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Selu",
              "Softplus", "Softsign", "ThresholdedRelu")  # fmt: skip


def write_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with Erf (and functions that need it) and OneHot written out, where in double.

    Applied to what is run, after differentiation: the formula for erf has a kink at 0 in parts
    that cancels in its value and not in a derivative taken part by part.
    """
    model = _without_double_one_hot(model)
    if all(i.type.tensor_type.elem_type != TensorProto.DOUBLE for i in model.graph.input):
        return model
    present = {n.op_type for n in model.graph.node if n.domain in ("", "ai.onnx")}
    functions = [("", op) for op in _FUNCTIONS if op in present]
    if functions:
        model = _with_defaults(model)
        model = inliner.inline_selected_functions(model, functions, inline_schema_functions=True)
    if all(n.op_type != "Erf" for n in model.graph.node):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for node in model.graph.node:
        if node.op_type == "Erf":
            _erf(result.graph, node.input[0], node.output[0])
        else:
            result.graph.node.append(node)
    return result


def _without_double_one_hot(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with OneHot of doubles as a choice between its two values."""
    double = {t.name for t in model.graph.initializer if t.data_type == TensorProto.DOUBLE}
    double |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"
               and any(a.t.data_type == TensorProto.DOUBLE for a in n.attribute)}  # fmt: skip
    if not any(n.op_type == "OneHot" and n.input[2] in double for n in model.graph.node):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for node in model.graph.node:
        if node.op_type != "OneHot" or node.input[2] not in double:
            result.graph.node.append(node)
            continue
        out = node.output[0]
        stem = f"{out}/one-hot"
        values = {"unit": np.array([0, 1], np.float32), 0: np.array(0), 1: np.array(1)}
        names = {k: f"{stem}/{k}" for k in values}
        result.graph.initializer.extend(
            numpy_helper.from_array(v, names[k]) for k, v in values.items()
        )
        hot = helper.make_node("OneHot", [*node.input[:2], names["unit"]], [f"{stem}/hot"])
        hot.attribute.extend(node.attribute)
        result.graph.node.extend(
            [
                hot,
                helper.make_node("Cast", [f"{stem}/hot"], [f"{stem}/where"], to=TensorProto.BOOL),
                helper.make_node("Gather", [node.input[2], names[0]], [f"{stem}/off"]),
                helper.make_node("Gather", [node.input[2], names[1]], [f"{stem}/on"]),
                helper.make_node("Where", [f"{stem}/where", f"{stem}/on", f"{stem}/off"], [out]),
            ]
        )
    return result


def _with_defaults(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the defaults of `_FUNCTIONS` written as attributes; inlining loses them."""
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in result.graph.node:
        if node.op_type in _FUNCTIONS and node.domain in ("", "ai.onnx"):
            present = {a.name for a in node.attribute}
            for name, attribute in onnx.defs.get_schema(node.op_type, opset).attributes.items():
                if name not in present and attribute.default_value.name:
                    node.attribute.append(attribute.default_value)
    return result


@cache
def _coefficients() -> np.ndarray:
    """Chebyshev coefficients of log(erfc(z) exp(z²) / t) for t = 2 / (2 + z) in (0, 1]."""
    from scipy.special import erfcx

    def target(y: np.ndarray) -> np.ndarray:
        t = (y + 1) / 2
        return np.log(erfcx(2 / t - 2) / t)

    return chebyshev.chebinterpolate(target, 30)


def _erf(graph: onnx.GraphProto, x: str, out: str) -> None:
    """erf(x) = sign(x) (1 - t exp(P(t) - x²)), good to 4e-16."""
    count = 0

    def op(kind: str, *inputs: str, name: str | None = None) -> str:
        nonlocal count
        count += 1
        result = name or f"{out}/erf/{count}"
        graph.node.append(helper.make_node(kind, list(inputs), [result], name=result))
        return result

    def number(value: float) -> str:
        nonlocal count
        count += 1
        name = f"{out}/erf/{count}"
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float64), name))
        return name

    two = number(2.0)
    t = op("Div", two, op("Add", op("Abs", x), two))
    y = op("Sub", op("Mul", t, two), number(1.0))
    double_y = op("Mul", y, two)
    # Clenshaw's recurrence for the Chebyshev sum.
    coefficients = _coefficients()
    later, after = number(float(coefficients[-1])), number(0.0)
    for c in coefficients[-2:0:-1]:
        step = op("Sub", op("Mul", double_y, later), after)
        later, after = op("Add", step, number(float(c))), later
    last = op("Sub", op("Mul", y, later), after)
    total = op("Add", last, number(float(coefficients[0])))
    tail = op("Mul", t, op("Exp", op("Sub", total, op("Mul", x, x))))
    op("Mul", op("Sign", x), op("Sub", number(1.0), tail), name=out)
