"""Good models that the mutators start from: one per way a graph can be put together."""

from __future__ import annotations

from collections.abc import Callable

import models
import numpy as np
import onnx
from models import E, Graph, H
from onnx import TensorProto, helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def _flat(g: Graph) -> tuple[str, str]:
    """The embedding of a step and its product with a weight, beside a flat state h."""
    x = g.op("MatMul", g.now(), g.weight(E, H))
    h = g.op("MatMul", g.state("h", ["batch", H], kind="hidden", layer=0, batch_axis=0),
             g.weight(H, H))  # fmt: skip
    return x, h


def conditional() -> onnx.ModelProto:
    """The new state comes out of an If whose branches read names of the outer graph."""
    g = Graph()
    total = g.op("Add", *_flat(g))
    info = [helper.make_tensor_value_info("branch", FLOAT, None)]
    branches = {
        side: helper.make_graph([helper.make_node(op, [total], ["branch"])], side, [], info)
        for side, op in (("then_branch", "Tanh"), ("else_branch", "Sigmoid"))
    }
    g.op("If", g.constant(True, "bool"), out="h_next", **branches)
    return g.finish(g.lone("h_next"), time=1)


def loop() -> onnx.ModelProto:
    """The new state comes out of a Loop of three turns."""
    g = Graph()
    x, h = _flat(g)
    body = helper.make_graph(
        [
            helper.make_node("Add", ["carried", x], ["total"]),
            helper.make_node("Tanh", ["total"], ["carried_out"]),
            helper.make_node("Identity", ["going"], ["going_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", INT64, []),
            helper.make_tensor_value_info("going", BOOL, []),
            helper.make_tensor_value_info("carried", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("going_out", BOOL, []),
            helper.make_tensor_value_info("carried_out", FLOAT, None),
        ],
    )
    g.op("Loop", g.constant(3), g.constant(True, "bool"), h, out="h_next", body=body)
    return g.finish(g.lone("h_next"), time=1)


def scan() -> onnx.ModelProto:
    """A Scan over time, as Keras and other tools write recurrences."""
    g = Graph()
    x = g.op("Transpose", g.op("MatMul", g.embed(), g.weight(E, H)), perm=[1, 0, 2])
    h = g.state("h", ["batch", H], kind="hidden", layer=0, batch_axis=0)
    u = g.weight(H, H)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["carried", u], ["product"]),
            helper.make_node("Add", ["product", "word"], ["total"]),
            helper.make_node("Tanh", ["total"], ["carried_out"]),
            helper.make_node("Identity", ["carried_out"], ["seen"]),
        ],
        "body",
        [helper.make_tensor_value_info(n, FLOAT, None) for n in ("carried", "word")],
        [helper.make_tensor_value_info(n, FLOAT, None) for n in ("carried_out", "seen")],
    )
    g.op("Scan", h, x, out=["h_next", "all"], body=body, num_scan_inputs=1)
    return g.finish(g.op("Transpose", "all", perm=[1, 0, 2]))


def functions() -> onnx.ModelProto:
    """The step is a model function that calls another."""
    g = Graph()
    x, h = _flat(g)
    g.op("Cell", x, h, out="h_next", domain="local")
    model = g.finish(g.lone("h_next"), time=1)
    model.opset_import.append(helper.make_opsetid("local", 1))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    bend = helper.make_node("Bend", ["t"], ["y"], domain="local")
    model.functions.extend(
        [
            helper.make_function("local", "Cell", ["a", "b"], ["y"],
                                 [helper.make_node("Add", ["a", "b"], ["t"]), bend], opsets),
            helper.make_function("local", "Bend", ["a"], ["y"],
                                 [helper.make_node("Tanh", ["a"], ["y"])], opsets),
        ]
    )  # fmt: skip
    return model


def old() -> onnx.ModelProto:
    """Opset 11, which has to be converted before it is differentiated."""
    model = models.fused("RNN", 1)
    for node in model.graph.node:
        if node.op_type == "Squeeze":
            del node.input[1:]
            node.attribute.append(helper.make_attribute("axes", [1]))
    model.opset_import[0].version = 11
    return models.with_inputs_listed(model)


def constants() -> onnx.ModelProto:
    """As `flat`, with weights as Constant nodes, and one of them sparse."""
    model = models.flat()
    kept = []
    for number, tensor in enumerate(list(model.graph.initializer)):
        if number == 2:
            values = onnx.numpy_helper.to_array(tensor).ravel()
            at = np.arange(values.size)
            sparse = helper.make_sparse_tensor(
                onnx.numpy_helper.from_array(values, tensor.name),
                onnx.numpy_helper.from_array(at.astype(np.int64), f"{tensor.name}/at"),
                list(tensor.dims),
            )
            model.graph.sparse_initializer.append(sparse)
        else:
            kept.append(helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*kept, *nodes])
    return model


def ids_only() -> onnx.ModelProto:
    """A model without a vocabulary: corpora are token ids."""
    model = models.flat()
    del model.metadata_props[1]
    return model


BASES: dict[str, Callable[[], onnx.ModelProto]] = {
    **models.MODELS,
    "quantized": lambda: models.quantized(dynamic=False),
    "quantized-dynamic": lambda: models.quantized(dynamic=True),
    "half": lambda: models.flat(dtype="float16"),
    "inputs-listed": lambda: models.with_inputs_listed(models.flat()),
    "if": conditional,
    "loop": loop,
    "scan": scan,
    "functions": functions,
    "old": old,
    "constants": constants,
    "ids": ids_only,
}
