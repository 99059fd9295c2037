"""Small edits of ONNX graphs. Each returns a new model and states what it needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .errors import ModelError

INTEGERS = (
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    TensorProto.BOOL,
)
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """`graph` and all graphs inside its nodes."""
    yield graph
    yield from inner_graphs(graph.node)


def inner_graphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """All graphs inside `nodes`, at any depth."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)
            for inner in attribute.graphs:
                yield from graphs(inner)


def reads(node: onnx.NodeProto) -> set[str]:
    """Names that `node` reads from its graph, those read by its subgraphs included."""
    names = {n for n in node.input if n}
    for attribute in node.attribute:
        inner = list(attribute.graphs)
        if attribute.type == onnx.AttributeProto.GRAPH:
            inner.append(attribute.g)
        for graph in inner:
            local = {i.name for i in graph.input} | {t.name for t in graph.initializer}
            for child in graph.node:
                names |= reads(child) - local
                local |= set(child.output)
            names |= {o.name for o in graph.output} - local
    return names


def extract(model: onnx.ModelProto, inputs: Iterable[str], outputs: list[str]) -> onnx.ModelProto:
    """The part of `model` that computes `outputs`, cut at `inputs`.

    Requires names of tensors of the main graph; a name in `inputs` may be any of them and is
    then no longer computed. The graph's inputs are those of `inputs` and of the old inputs that
    are still needed; types of cut tensors are left open where the model does not state them.
    """
    cut = set(inputs)
    needed, nodes = set(outputs), []
    for node in reversed(model.graph.node):
        if any(o in needed and o not in cut for o in node.output if o):
            nodes.append(node)
            needed |= reads(node)
    # Initialisers before inputs: until IR version 4 each stood in both lists.
    initializers = [t for t in model.graph.initializer if t.name in needed - cut]
    stored = {t.name for t in initializers}
    typed = {v.name: v for v in (*model.graph.value_info, *model.graph.input,
                                 *model.graph.output)}  # fmt: skip
    old = [i.name for i in model.graph.input if i.name in needed and i.name not in stored]
    names = list(dict.fromkeys([*old, *(n for n in inputs if n in needed)]))
    result = onnx.ModelProto()
    # Until version 3 every initialiser stood among the inputs, where none stands here.
    result.ir_version = max(model.ir_version, 4)
    result.opset_import.extend(model.opset_import)
    result.functions.extend(model.functions)
    result.graph.name = model.graph.name or "part"
    result.graph.node.extend(reversed(nodes))
    result.graph.initializer.extend(initializers)
    result.graph.input.extend(typed.get(n, onnx.ValueInfoProto(name=n)) for n in names)
    result.graph.output.extend(typed.get(n, onnx.ValueInfoProto(name=n)) for n in outputs)
    return result


def to_precision(model: onnx.ModelProto, dtype: np.dtype | type) -> onnx.ModelProto:
    """`model` with every floating-point tensor in `dtype` (float32 or float64).

    Declared shapes and types of inner tensors are dropped; they are inferred again on loading.
    """
    target = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for graph in (*graphs(result.graph),):
        del graph.value_info[:]
        for tensor in graph.initializer:
            _convert(tensor, dtype)
        for info in (*graph.input, *graph.output):
            if info.type.tensor_type.elem_type in FLOATS:
                info.type.tensor_type.elem_type = target
        for node in graph.node:
            _spell_out(node)
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    _convert(attribute.t, dtype)
                # Cast, EyeLike and the random operators name an element type.
                if attribute.name in ("to", "dtype") and attribute.i in FLOATS:
                    attribute.i = target
    return result


def _spell_out(node: onnx.NodeProto) -> None:
    """Write constants of an implied type as tensors, whose type can be changed."""
    for attribute in node.attribute:
        if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            value = helper.get_attribute_value(attribute)
            tensor = numpy_helper.from_array(np.asarray(value, np.float32))
            attribute.CopyFrom(helper.make_attribute("value", tensor))
    if node.op_type == "ConstantOfShape" and not node.attribute:
        tensor = numpy_helper.from_array(np.zeros(1, np.float32))
        node.attribute.append(helper.make_attribute("value", tensor))


def _convert(tensor: TensorProto, dtype: np.dtype | type) -> None:
    target = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if tensor.data_type in FLOATS and tensor.data_type != target:
        array = numpy_helper.to_array(tensor).astype(dtype)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def weights(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every stored floating-point tensor: initialisers and constants, in subgraphs too."""
    nodes = [n for f in model.functions for n in f.node]
    for graph in graphs(model.graph):
        nodes.extend(graph.node)
        yield from (t for t in graph.initializer if t.data_type in FLOATS)
        for sparse in graph.sparse_initializer:
            yield sparse.values
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in FLOATS:
                yield attribute.t


def check_finite(model: onnx.ModelProto) -> None:
    """Refuse weights that are not numbers.

    Raises:
        ModelError: A stored tensor holds NaN, or an infinity, apart from lone ones and from
            masks of zeros and minus infinities.
    """
    for tensor in weights(model):
        array = numpy_helper.to_array(tensor)
        finite = np.isfinite(array) if array.size > 1 else ~np.isnan(array)
        # What attention adds before its softmax: zero here, minus infinity there.
        mask = np.isneginf(array) | (array == 0)
        if not finite.all() and not mask.all():
            bad = int(array.size - finite.sum())
            raise ModelError(
                f"The weight {tensor.name!r} holds {bad} values that are NaN or infinite; every "
                "weight must be finite. The training probably diverged: use an earlier checkpoint."
            )


def prefixed(model: onnx.ModelProto, prefix: str, but: Collection[str] = ()) -> onnx.ModelProto:
    """`model` with `prefix` before the name of every node, and tensor `but` some, in subgraphs too.

    Unlike ``onnx.compose.add_prefix``, which leaves initialisers that a subgraph reads alone.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for graph in graphs(result.graph):
        for node in graph.node:
            node.name = node.name and prefix + node.name
            for names in (node.input, node.output):
                names[:] = [prefix + n if n and n not in but else n for n in names]
        for named in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
            if named.name not in but:
                named.name = prefix + named.name
    return result


def fresh_prefix(model: onnx.ModelProto, stem: str) -> str:
    """A prefix that no name in the main graph starts with."""
    names = {n for node in model.graph.node for n in (*node.output, *node.input)}
    names |= {i.name for i in (*model.graph.input, *model.graph.initializer)}
    prefix = f"{stem}/"
    while any(n.startswith(prefix) for n in names):
        prefix = "_" + prefix
    return prefix
