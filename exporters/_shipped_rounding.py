"""Dynamically quantised graphs without the rounding of what they compute.

Such a graph takes the scale of its rounding from each run, so that three steps in one run differ
from three runs of one step by the rounding alone. Its twin keeps the rounded weights and computes
in floating point: in the twin both must agree, and what differs is the memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from mnemoscope.analyzer._passes import reads
from onnx import helper, numpy_helper

from ._graph import copy_node

# Operators that move elements and keep their type.
_MOVES = ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Gather", "Slice", "Concat",
          "Flatten", "Expand")  # fmt: skip


def rounds(model: onnx.ModelProto) -> bool:
    """Whether a scale of rounding is taken from the data: dynamic quantisation."""
    return any(n.op_type.startswith("Dynamic") for n in model.graph.node)


def unrounded(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy of `model` that does not round; None where an operator's twin is not known."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            stored[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    nodes: list[onnx.NodeProto] = []
    wide: set[str] = set()  # floating point where the graph has eight bits

    def store(name: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    for number, given in enumerate(graph.node):
        node, key = copy_node(given), f"mnemoscope/unrounded/{number}"
        if node.op_type == "DynamicQuantizeLinear":
            x, (y, scale, zero) = node.input[0], node.output
            nodes.append(helper.make_node("Identity", [x], [y]))
            wide.add(y)
            store(scale, np.array(1))
            store(zero, np.array(0))
        elif node.op_type in ("MatMulInteger", "ConvInteger") and node.input[0] in wide:
            weights = stored.get(node.input[1])
            zero = stored.get(node.input[3]) if len(node.input) > 3 else np.array(0)
            if weights is None or zero is None:
                return None
            if node.op_type == "ConvInteger" and zero.ndim:
                zero = zero.reshape(-1, *(1,) * (weights.ndim - 1))
            node.input[1:] = [store(key, weights.astype(np.float32) - zero.astype(np.float32))]
            node.op_type = node.op_type.removesuffix("Integer")
            nodes.append(node)
        elif node.op_type == "DynamicQuantizeLSTM":
            names = list(node.input)
            for place, its in ((1, names[8:10]), (2, names[10:12])):
                values = [stored[n] for n in (names[place], *its) if n in stored]
                if len(values) < 3:
                    return None
                names[place] = store(f"{key}/{place}", _dequantized(*values))
            del node.input[:]
            node.input.extend(names[:8])
            node.op_type, node.domain = "LSTM", ""
            nodes.append(node)
        else:
            if node.op_type.startswith("Dynamic") or _inner_rounding([node]):
                return None
            if reads(node) & wide:
                if node.op_type not in _MOVES:
                    return None
                wide.update(node.output)
            nodes.append(node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return twin


def _dequantized(value: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """``[direction, in, gate·unit]``, one scale per tensor or per column → an LSTM's weights."""
    shape = (value.shape[0], 1, -1) if scale.size > 1 else (1, 1, 1)
    wide = value.astype(np.float32) - zero.astype(np.float32).reshape(
        shape if zero.size > 1 else (1, 1, 1)
    )
    return np.ascontiguousarray((wide * scale.reshape(shape)).transpose(0, 2, 1))


def _inner_rounding(nodes: Iterable[onnx.NodeProto]) -> bool:
    return any(
        n.op_type.startswith("Dynamic") or _inner_rounding(a.g.node)
        for node in nodes for a in node.attribute if a.type == onnx.AttributeProto.GRAPH
        for n in a.g.node
    )  # fmt: skip


__all__ = ["rounds", "unrounded"]
