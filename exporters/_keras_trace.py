"""From a function of TensorFlow, one time step, to a step graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import tensorflow as tf
from mnemoscope.analyzer._passes import reads
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import OPSET
from onnx import TensorProto, helper, numpy_helper

from ._graph import copy_node, element_types
from ._quiet import silenced

_WHOLE = frozenset({TensorProto.INT32, TensorProto.INT64})
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE})
_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_SHAPE_ONLY = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze"})


def trace(step: Callable, signature: Sequence[tf.TensorSpec]) -> onnx.ModelProto:
    """Convert `step` with tf2onnx.

    Args:
        step: Takes tensors as in `signature` and returns a tuple of tensors.
        signature: Named; the names must not be those of the results.

    Returns:
        The graph, its inputs and outputs in the order of the arguments and results.

    Raises:
        ModelError: The function cannot be traced or converted.
    """
    import tf2onnx

    try:
        # tf2onnx reports its progress, and what it is about to raise.
        with silenced("tf2onnx", "tensorflow"):
            model, _ = tf2onnx.convert.from_function(
                tf.function(step, autograph=False), input_signature=list(signature), opset=OPSET
            )
    except ModelError:
        raise
    except Exception as error:  # tf2onnx and TensorFlow raise whatever went wrong inside them
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise ModelError(
            f"One time step of the model cannot be converted: {type(error).__name__}: {first}"
        ) from error
    graph = model.graph
    foreign = sorted({n.op_type for n in graph.node if n.domain not in ("", "ai.onnx")})
    unknown = [n.op_type for n in graph.node if n.domain == "" and not _defined(n.op_type)]
    if foreign or unknown:
        names = ", ".join(sorted({*foreign, *unknown}))
        raise ModelError(
            f"One time step of the model uses what ONNX does not have: {names}. Express it by "
            "operations that tf2onnx supports."
        )
    wanted = [spec.name for spec in signature]
    found = {i.name.partition(":")[0]: i for i in graph.input}
    if sorted(found) != sorted(wanted):
        raise ModelError(f"Expected the graph inputs {wanted}, found {sorted(found)}.")
    ordered = [found[name] for name in wanted]
    del graph.input[:]
    graph.input.extend(ordered)
    _keep_integers(model)
    _join_log_softmax(graph)
    _spell_one_hot(graph)
    opsets = [o for o in model.opset_import if o.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    return model


def _defined(op_type: str) -> bool:
    return onnx.defs.has(op_type)


def _keep_integers(model: onnx.ModelProto) -> None:
    """Let ids that become floats on the way to their lookup stay integers.

    Keras declares inputs as float32 unless told otherwise, and a lookup casts them back; tf2onnx
    compares integers as floats. The embedding is where the integers end (`_embedding`), and these
    casts are no end. Ids are far below 2²⁴, so that nothing is lost either way.
    """
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = element_types(inferred)
    types.update({v.name: v.type.tensor_type.elem_type for v in inferred.value_info})
    makers = {o: n for n in graph.node for o in n.output}
    constants = {t.name: t for t in graph.initializer}

    def whole(name: str) -> str | None:
        """The integer tensor that the float tensor `name` is a cast of."""
        maker = makers.get(name)
        if maker is not None and maker.op_type == "Cast" and types.get(name) in _FLOATS:
            source = maker.input[0]
            return source if types.get(source) in _WHOLE else None
        return None

    for node in graph.node:
        if node.op_type == "Cast" and types.get(node.output[0]) in _WHOLE:
            # Reshapes in between move integers as well as floats, where nobody else reads them.
            first = node
            while (inner := makers.get(first.input[0])) and inner.op_type in _SHAPE_ONLY:
                if sum(first.input[0] in reads(n) for n in graph.node) != 1:
                    break
                first = inner
            first.input[0] = whole(first.input[0]) or first.input[0]
        elif node.op_type in _COMPARISONS:
            sources = [whole(name) for name in node.input]
            kinds = {types[s] for s in sources if s}
            if len(kinds) != 1:
                continue
            for k, (name, source) in enumerate(zip(tuple(node.input), sources, strict=True)):
                if source is None and name in constants:
                    value = numpy_helper.to_array(constants[name])
                    if not np.array_equal(value, np.trunc(value)):
                        break
                    source = f"{name}.{node.name}.whole"
                    dtype = helper.tensor_dtype_to_np_dtype(next(iter(kinds)))
                    graph.initializer.append(numpy_helper.from_array(value.astype(dtype), source))
                if source is None:
                    break
                sources[k] = source
            else:
                node.input[:] = sources
    used = {i for n in graph.node for i in reads(n)} | {o.name for o in graph.output}
    kept = [copy_node(n) for n in graph.node if n.op_type != "Cast" or n.output[0] in used]
    del graph.node[:]
    graph.node.extend(kept)


def _join_log_softmax(graph: onnx.GraphProto) -> None:
    """Log of Softmax → LogSoftmax, which keeps the digits of small probabilities."""
    makers = {o: n for n in graph.node for o in n.output}
    outputs = {o.name for o in graph.output}
    for node in graph.node:
        if node.op_type != "Log":
            continue
        path = [node]
        maker = makers.get(node.input[0])
        while maker is not None and maker.op_type in _SHAPE_ONLY:
            path.append(maker)
            maker = makers.get(maker.input[0])
        if maker is None or maker.op_type != "Softmax":
            continue
        # The probabilities may have other readers, such as a state.
        between = [p.input[0] for p in path]
        readers = sum(sum(i in between for i in reads(n)) for n in graph.node)
        if readers == len(path) and not outputs & set(between):
            maker.op_type = "LogSoftmax"
            node.op_type = "Identity"


def _spell_one_hot(graph: onnx.GraphProto) -> None:
    """OneHot → comparison with a range: ONNX Runtime has no OneHot of float64."""
    constants = {t.name: t for t in graph.initializer}
    nodes = []
    for node in graph.node:
        axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
        if node.op_type != "OneHot" or axis != -1 or not {*node.input[1:]} <= {*constants}:
            nodes.append(copy_node(node))
            continue
        depth, values = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
        if not np.array_equal(values, [0, 1]):
            nodes.append(copy_node(node))
            continue
        name, output = node.name or node.output[0], node.output[0]
        ids = np.arange(int(depth.item()), dtype=np.int64)
        graph.initializer.append(numpy_helper.from_array(ids, f"{name}.range"))
        last = numpy_helper.from_array(np.array([-1], np.int64), f"{name}.last")
        graph.initializer.append(last)
        element = helper.np_dtype_to_tensor_dtype(values.dtype)
        nodes += [
            helper.make_node("Cast", [node.input[0]], [f"{name}.ids"], to=TensorProto.INT64),
            helper.make_node("Unsqueeze", [f"{name}.ids", f"{name}.last"], [f"{name}.column"]),
            helper.make_node("Equal", [f"{name}.column", f"{name}.range"], [f"{name}.same"]),
            helper.make_node("Cast", [f"{name}.same"], [output], name=name, to=element),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
