"""The step graph of a stack of TensorFlow 1 cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from mnemoscope.analyzer.roles import IR_VERSION, OPSET
from onnx import TensorProto, helper, numpy_helper

from ._tf1_cells import Cell


class _Graph:
    """Collects nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Any, name: str) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def __call__(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def split(self, value: str, names: Sequence[str], layer: int) -> list[str]:
        outputs = [f"{name}_{layer}" for name in names]
        node = helper.make_node("Split", [value], outputs, axis=1, num_outputs=len(names))
        self.nodes.append(node)
        return outputs

    def linear(self, x: str, kernel: np.ndarray, bias: np.ndarray, name: str) -> str:
        product = self("MatMul", x, self.constant(kernel, f"{name}.kernel"))
        return self("Add", product, self.constant(bias, f"{name}.bias"))


def step_graph(
    cells: Sequence[Cell],
    table: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray,
    forget_bias: float,
) -> onnx.ModelProto:
    """One time step: ``tokens_in`` and ``state_K_in`` in, ``logits_out`` and states out.

    Args:
        cells: From the first layer to the last.
        table: Embeddings ``[V, E]``.
        weights: Of the output, ``[H, V]``.
        bias: Of the output, ``[V]``.
        forget_bias: Added to an LSTM's forget gate.
    """
    dtype = weights.dtype
    g = _Graph()
    element = helper.np_dtype_to_tensor_dtype(dtype)
    inputs = [helper.make_tensor_value_info("tokens_in", TensorProto.INT64, ["batch", 1])]
    outputs = [helper.make_tensor_value_info("logits_out", element, ["batch", 1, weights.shape[1]])]
    one = g.constant(np.array([1], np.int64), "one")
    x = g("Gather", g.constant(table, "table"), "tokens_in")
    x = g("Squeeze", x, one)
    k = 0
    for layer, cell in enumerate(cells):
        state = []
        for size in cell.sizes.values():
            inputs.append(helper.make_tensor_value_info(f"state_{k}_in", element, ["batch", size]))
            outputs.append(
                helper.make_tensor_value_info(f"state_{k}_next_out", element, ["batch", size])
            )
            state.append(f"state_{k}_in")
            k += 1
        new = _cell(g, cell, layer, x, state, forget_bias)
        for value, old in zip(new, state, strict=True):
            g("Identity", value, output=f"{old.removesuffix('_in')}_next_out")
        x = new[0]
    logits = g.linear(x, weights, bias.astype(dtype), "output")
    g("Unsqueeze", logits, one, output="logits_out")
    graph = helper.make_graph(g.nodes, "step", inputs, outputs, g.constants)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )


def _cell(
    g: _Graph, cell: Cell, layer: int, x: str, state: list[str], forget_bias: float
) -> list[str]:
    """The new states, h first."""
    name = f"{cell.kind}{layer}"
    h = state[0]
    total = g.linear(g("Concat", x, h, axis=1), cell.kernel, cell.bias, name)
    if cell.kind == "rnn":
        return [g("Tanh", total)]
    if cell.kind == "gru":
        assert cell.candidate is not None
        r, u = g.split(g("Sigmoid", total), "ru", layer)
        read = g("Concat", x, g("Mul", r, h), axis=1)
        n = g("Tanh", g.linear(read, *cell.candidate, f"{name}.candidate"))
        whole = g.constant(np.ones(1, cell.kernel.dtype), f"{name}.one")
        return [g("Add", g("Mul", u, h), g("Mul", g("Sub", whole, u), n))]
    c = state[1]
    i, j, f, o = g.split(total, "ijfo", layer)

    def peep(gate: str, value: str, of: str) -> str:
        if gate not in cell.peepholes:
            return value
        return g("Add", value, g("Mul", g.constant(cell.peepholes[gate], f"{name}.w_{gate}"), of))

    f = g("Add", f, g.constant(np.full(1, forget_bias, cell.kernel.dtype), f"{name}.forget_bias"))
    kept = g("Mul", g("Sigmoid", peep("f", f, c)), c)
    new = g("Add", kept, g("Mul", g("Sigmoid", peep("i", i, c)), g("Tanh", j)))
    h = g("Mul", g("Sigmoid", peep("o", o, new)), g("Tanh", new))
    if cell.projection is not None:
        h = g("MatMul", h, g.constant(cell.projection, f"{name}.projection"))
    return [h, new]
