"""Damage to models: each function takes a generator and a good file, and gives a bad one.

What it gives is the file's bytes, or several files by name (a `Path` as content is a link).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from mnemoscope.analyzer.roles import ROLES_KEY, VOCABULARY_KEY
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from .texts_mutated import damaged_json

Rng = np.random.Generator
Files = dict[str, bytes | Path]

HUGE = (2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
ODD = (0, -1, -2, 1, 7, -(2**31), -(2**63), *HUGE)
STRINGS = ("", "\0", "a\nb", "é\u202e\U0001f600", "../x", "step/", "h", "tokens", "weight0",
           "%s%n{}", "x" * 300_000)  # fmt: skip

MUTATORS: dict[str, Callable[[Rng, bytes], bytes | Files]] = {}


def _bytes(function: Callable[[Rng, bytes], bytes]) -> Callable:
    MUTATORS[function.__name__.strip("_").replace("_", "-")] = function
    return function


def _model(function: Callable[[Rng, onnx.ModelProto], onnx.ModelProto | Files | None]) -> Callable:
    """A mutator that edits a parsed model."""

    def mutate(rng: Rng, blob: bytes) -> bytes | Files:
        model = onnx.load_from_string(blob)
        made = function(rng, model)
        if isinstance(made, dict):
            return made
        return (model if made is None else made).SerializeToString()

    MUTATORS[function.__name__.strip("_").replace("_", "-")] = mutate
    return function


def _pick(rng: Rng, items):
    items = list(items)
    return items[int(rng.integers(len(items)))]


# Bytes.


@_bytes
def bit_flips(rng: Rng, blob: bytes) -> bytes:
    data = bytearray(blob)
    for at in rng.integers(len(data), size=int(rng.integers(1, 9))):
        data[at] ^= 1 << int(rng.integers(8))
    return bytes(data)


@_bytes
def bit_flip_in_the_graph(rng: Rng, blob: bytes) -> bytes:
    """One bit, outside weights and metadata: the likeliest to leave a model that parses."""
    model = onnx.load_from_string(blob)
    nodes = b"".join(n.SerializeToString() for n in model.graph.node)
    node = _pick(rng, model.graph.node).SerializeToString() or nodes
    start = max(blob.find(node), 0)
    data = bytearray(blob)
    at = start + int(rng.integers(len(node)))
    data[at] ^= 1 << int(rng.integers(8))
    return bytes(data)


@_bytes
def random_bytes(rng: Rng, blob: bytes) -> bytes:
    data = bytearray(blob)
    for at in rng.integers(len(data), size=int(rng.integers(1, 5))):
        data[at] = int(rng.integers(256))
    return bytes(data)


@_bytes
def high_bytes(rng: Rng, blob: bytes) -> bytes:
    """A run of 0xff: lengths and numbers become as large as a varint can say."""
    start = int(rng.integers(len(blob)))
    count = int(rng.integers(1, 12))
    return blob[:start] + b"\xff" * count + blob[start + count :]


@_bytes
def truncated(rng: Rng, blob: bytes) -> bytes:
    return blob[: int(rng.integers(len(blob)))]


@_bytes
def cut_out(rng: Rng, blob: bytes) -> bytes:
    start, stop = sorted(rng.integers(len(blob), size=2))
    return blob[:start] + blob[min(stop, start + 200) :]


@_bytes
def repeated(rng: Rng, blob: bytes) -> bytes:
    start, stop = sorted(rng.integers(len(blob), size=2))
    return blob[:stop] + blob[start:]


@_bytes
def spliced(rng: Rng, blob: bytes) -> bytes:
    """Two messages in a row merge, so that this is a graph with everything twice."""
    if rng.random() < 0.3:
        return blob + blob
    from .bases import BASES

    other = _pick(rng, BASES.values())().SerializeToString()
    return blob[: int(rng.integers(len(blob)))] + other[int(rng.integers(len(other))) :]


# The graph's wiring.


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """All nodes, those of subgraphs and functions too."""

    def walk(nodes) -> Iterator[onnx.NodeProto]:
        for node in nodes:
            yield node
            for a in node.attribute:
                yield from walk(a.g.node)

    return [*walk(model.graph.node), *(n for f in model.functions for n in walk(f.node))]


def _names(model: onnx.ModelProto) -> list[str]:
    nodes = _nodes(model)
    names = {n for node in nodes for n in (*node.input, *node.output)}
    return sorted(names | {t.name for t in model.graph.initializer})


@_model
def cycle(rng: Rng, model: onnx.ModelProto) -> None:
    at = int(rng.integers(len(model.graph.node)))
    late = _pick(rng, list(model.graph.node)[at:])
    node = model.graph.node[at]
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = _pick(rng, late.output)


@_model
def rewired(rng: Rng, model: onnx.ModelProto) -> None:
    """Inputs of nodes become other tensors, of any type and shape."""
    for _ in range(int(rng.integers(1, 3))):
        node = _pick(rng, [n for n in _nodes(model) if n.input])
        node.input[int(rng.integers(len(node.input)))] = _pick(rng, _names(model))


@_model
def shuffled(rng: Rng, model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    order = rng.permutation(len(nodes))
    del model.graph.node[:]
    model.graph.node.extend(nodes[i] for i in order)


@_model
def missing_part(rng: Rng, model: onnx.ModelProto) -> None:
    """An initialiser, node, input or output is gone."""
    parts = [model.graph.initializer, model.graph.node, model.graph.input, model.graph.output,
             model.opset_import, model.metadata_props]  # fmt: skip
    some = _pick(rng, [p for p in parts if len(p)])
    del some[int(rng.integers(len(some)))]


@_model
def repeated_part(rng: Rng, model: onnx.ModelProto) -> None:
    parts = [model.graph.initializer, model.graph.node, model.graph.input, model.graph.output,
             model.opset_import, model.metadata_props]  # fmt: skip
    some = _pick(rng, [p for p in parts if len(p)])
    some.add().CopyFrom(_pick(rng, some))


@_model
def same_names(rng: Rng, model: onnx.ModelProto) -> None:
    """Two things share a name."""
    kind = int(rng.integers(3))
    if kind == 0 and len(model.graph.initializer):
        _pick(rng, model.graph.initializer).name = _pick(rng, _names(model))
    elif kind == 1:
        node = _pick(rng, [n for n in _nodes(model) if n.output])
        node.output[int(rng.integers(len(node.output)))] = _pick(rng, _names(model))
    else:
        _pick(rng, [*model.graph.input, *model.graph.output]).name = _pick(rng, _names(model))


@_model
def strange_names(rng: Rng, model: onnx.ModelProto) -> None:
    """One tensor has a strange name everywhere, in the roles too."""
    old, new = _pick(rng, _names(model)), _pick(rng, STRINGS)
    for node in _nodes(model):
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
    for thing in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        if thing.name == old:
            thing.name = new
    for entry in model.metadata_props:
        if entry.key == ROLES_KEY:
            entry.value = entry.value.replace(json.dumps(old), json.dumps(new))


@_model
def names_not_utf8(rng: Rng, model: onnx.ModelProto) -> Files:
    old = _pick(rng, [n for n in _names(model) if n]).encode()
    return {"m.onnx": model.SerializeToString().replace(old, b"\xff" * len(old))}


# Shapes and types.


@_model
def shape_lie(rng: Rng, model: onnx.ModelProto) -> None:
    """Declared shapes: other lengths, other ranks, names for numbers."""
    infos = [*model.graph.input, *model.graph.output]
    shape = _pick(rng, infos).type.tensor_type.shape
    kind = int(rng.integers(4))
    if kind == 0 or not shape.dim:
        shape.dim.add().dim_value = _pick(rng, ODD)
    elif kind == 1:
        _pick(rng, shape.dim).dim_value = _pick(rng, ODD)
    elif kind == 2:
        del shape.dim[int(rng.integers(len(shape.dim)))]
    else:
        _pick(rng, shape.dim).dim_param = _pick(rng, ("batch", "time", "", "x" * 10_000))


@_model
def inner_shape_lie(rng: Rng, model: onnx.ModelProto) -> None:
    for _ in range(int(rng.integers(1, 4))):
        node = _pick(rng, model.graph.node)
        shape = [int(_pick(rng, ODD)) for _ in range(int(rng.integers(4)))]
        kind = _pick(rng, (1, 1, 7, 8, 10, 11, 0, 99))
        model.graph.value_info.append(
            helper.make_tensor_value_info(_pick(rng, node.output), kind, shape)
        )


@_model
def weight_shape_lie(rng: Rng, model: onnx.ModelProto) -> None:
    """A stored tensor whose dimensions say something else than its data."""
    tensors = _tensors(model)
    tensor = _pick(rng, tensors)
    kind = int(rng.integers(5))
    if kind == 0 and tensor.dims:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = _pick(rng, ODD)
    elif kind == 1:
        tensor.dims.append(_pick(rng, ODD))
    elif kind == 2:
        tensor.dims[:] = [2**32, 2**32]  # whose product is 0 in 64 bits
    elif kind == 3 and tensor.dims:
        del tensor.dims[0]
    else:
        tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data) + 1))]


@_model
def weight_data_wrong_field(rng: Rng, model: onnx.ModelProto) -> None:
    """The data of a stored tensor lie in another field than its type's, or in two."""
    tensor = _pick(rng, _tensors(model))
    if rng.random() < 0.5:
        tensor.ClearField("raw_data")
    field = _pick(rng, ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"))
    getattr(tensor, field).extend([1] * int(rng.integers(1, 40)))


@_model
def zero_size(rng: Rng, model: onnx.ModelProto) -> None:
    """A weight, state or axis without elements."""
    if rng.random() < 0.6:
        tensor = _pick(rng, [t for t in _tensors(model) if t.dims] or _tensors(model))
        shape = list(tensor.dims) or [1]
        shape[int(rng.integers(len(shape)))] = 0
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        tensor.CopyFrom(numpy_helper.from_array(np.zeros(shape, dtype), tensor.name))
    else:
        infos = [i for i in (*model.graph.input, *model.graph.output)
                 if len(i.type.tensor_type.shape.dim)]  # fmt: skip
        _pick(rng, _pick(rng, infos).type.tensor_type.shape.dim).dim_value = 0


@_model
def other_weight_shape(rng: Rng, model: onnx.ModelProto) -> None:
    """A good tensor of another shape: one longer, shorter, transposed, flat, or a scalar."""
    tensor = _pick(rng, _tensors(model))
    array = numpy_helper.to_array(tensor)
    kind = int(rng.integers(5))
    if kind == 0:
        array = array.T
    elif kind == 1:
        array = array.ravel()
    elif kind == 2 and array.ndim:
        array = np.concatenate([array, array])
    elif kind == 3 and array.ndim:
        array = array[:-1]
    else:
        array = np.asarray(array.ravel()[0])
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


@_model
def element_type(rng: Rng, model: onnx.ModelProto) -> None:
    kinds = (0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 21, 23, 99, -1, 2**31 - 1)
    kind = _pick(rng, kinds)
    if rng.random() < 0.5:
        _pick(rng, _tensors(model)).data_type = kind
    else:
        info = _pick(rng, [*model.graph.input, *model.graph.output])
        info.type.tensor_type.elem_type = kind


@_model
def value_type(rng: Rng, model: onnx.ModelProto) -> None:
    """Inputs and outputs that are sequences, maps, optionals or of no type."""
    info = _pick(rng, [*model.graph.input, *model.graph.output])
    tensor = helper.make_tensor_type_proto(1, None)
    kind = int(rng.integers(4))
    if kind == 0:
        info.type.Clear()
    elif kind == 1:
        info.type.CopyFrom(helper.make_sequence_type_proto(tensor))
    elif kind == 2:
        info.type.CopyFrom(helper.make_optional_type_proto(tensor))
    else:
        info.type.CopyFrom(helper.make_map_type_proto(TensorProto.INT64, tensor))


def _tensors(model: onnx.ModelProto) -> list[TensorProto]:
    found = list(model.graph.initializer)
    for node in _nodes(model):
        found += [a.t for a in node.attribute if a.type == AttributeProto.TENSOR]
    for sparse in model.graph.sparse_initializer:
        found += [sparse.values, sparse.indices]
    return found


# Operators and attributes.

_OPERATORS = sorted({s.name for s in onnx.defs.get_all_schemas()})


@_model
def other_operator(rng: Rng, model: onnx.ModelProto) -> None:
    """Any operator of the specification in place of one."""
    _pick(rng, _nodes(model)).op_type = _pick(rng, _OPERATORS)


@_model
def elementwise_operator(rng: Rng, model: onnx.ModelProto) -> None:
    """Another function of one tensor, likely to run: what is computed then must still be right."""
    ops = ("Relu", "Sigmoid", "Abs", "Neg", "Exp", "Sin", "Softsign", "Softplus", "Elu", "Selu",
           "Erf", "Sqrt", "Log", "Reciprocal", "Identity", "Atan", "Sinh", "HardSigmoid", "Floor",
           "Sign", "Round", "Cosh", "Asinh", "Gelu", "Mish", "LeakyRelu", "Celu", "Softmax",
           "LogSoftmax", "Hardmax", "CumSum", "Dropout", "Clip", "IsNaN", "Shrink")  # fmt: skip
    nodes = [n for n in _nodes(model) if len(n.input) == 1 and len(n.output) == 1]
    if nodes:
        node = _pick(rng, nodes)
        node.op_type = _pick(rng, ops)
        del node.attribute[:]


@_model
def binary_operator(rng: Rng, model: onnx.ModelProto) -> None:
    ops = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod", "MatMul", "PRelu", "Mean",
           "Sum", "Greater", "Equal", "Gemm", "Concat", "Einsum", "GatherElements")  # fmt: skip
    nodes = [n for n in _nodes(model) if len(n.input) == 2 and len(n.output) == 1]
    if nodes:
        _pick(rng, nodes).op_type = _pick(rng, ops)


@_model
def unknown_operator(rng: Rng, model: onnx.ModelProto) -> None:
    node = _pick(rng, _nodes(model))
    if rng.random() < 0.5:
        node.domain = _pick(rng, ("com.microsoft", "com.example", "ai.onnx.ml", "ai.onnx", "\0",
                                  "x" * 100_000))  # fmt: skip
        if rng.random() < 0.5:
            model.opset_import.append(helper.make_opsetid(node.domain, int(_pick(rng, (1, 3, 99)))))
    else:
        node.op_type = _pick(rng, ("Nothing", "", "lstm", "ATen", "PythonOp", "x" * 100_000))


@_model
def attribute(rng: Rng, model: onnx.ModelProto) -> None:
    """An attribute has another value, is gone, is there twice or is of another type."""
    nodes = [n for n in _nodes(model) if n.attribute]
    if not nodes:
        return
    node = _pick(rng, nodes)
    at = int(rng.integers(len(node.attribute)))
    kind = int(rng.integers(5))
    old = node.attribute[at]
    if kind == 0:
        del node.attribute[at]
    elif kind == 1:
        node.attribute.add().CopyFrom(old)
    elif kind == 2 and old.type == AttributeProto.INT:
        old.i = _pick(rng, ODD)
    elif kind == 3 and old.type == AttributeProto.INTS:
        old.ints[:] = [_pick(rng, ODD) for _ in range(int(rng.integers(5)))]
    else:
        old.CopyFrom(helper.make_attribute(old.name, _pick(rng, (1, -1, 2**62, 0.5, "x", [1, 2]))))


@_model
def attribute_type_lie(rng: Rng, model: onnx.ModelProto) -> None:
    """The type that an attribute states is not that of its value."""
    nodes = [n for n in _nodes(model) if n.attribute]
    if nodes:
        _pick(rng, _pick(rng, nodes).attribute).type = int(_pick(rng, (0, 1, 2, 3, 4, 5, 6, 7, 11,
                                                                      13)))  # fmt: skip


@_model
def strange_attribute(rng: Rng, model: onnx.ModelProto) -> None:
    """An attribute that the operator does not know, or a huge text."""
    node = _pick(rng, _nodes(model))
    name = _pick(rng, ("axis", "to", "perm", "hidden_size", "direction", "activations", "clip",
                       "layout", "body", "then_branch", "value", "nonsense", "input_forget",
                       "allowzero", "linear_before_reset", "batch_dims"))  # fmt: skip
    value = _pick(rng, (1, -1, 2**62, 0.5, float("nan"), "x" * 1_000_000, "reverse",
                        "bidirectional", ["Tanh", "x"], [0, 1, 2], [2**62] * 3))  # fmt: skip
    node.attribute.append(helper.make_attribute(name, value))


@_model
def inputs_of_a_node(rng: Rng, model: onnx.ModelProto) -> None:
    """Too many inputs or outputs, too few, or left out."""
    node = _pick(rng, _nodes(model))
    names = _pick(rng, (node.input, node.output))
    kind = int(rng.integers(4))
    if kind == 0 and names:
        del names[int(rng.integers(len(names)))]
    elif kind == 1 and names:
        names[int(rng.integers(len(names)))] = ""
    elif kind == 2:
        names.extend(["extra"] if names is node.output else [_pick(rng, _names(model))])
    else:
        names.extend([f"extra{i}" for i in range(1000)] if names is node.output
                     else [_pick(rng, _names(model))] * 1000)  # fmt: skip


# Versions.


@_model
def opset_lie(rng: Rng, model: onnx.ModelProto) -> None:
    kind = int(rng.integers(3))
    versions = (0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 22, 23, 24, 25,
                99, -1, 2**62)  # fmt: skip
    if kind == 0:
        model.opset_import.append(helper.make_opsetid("", int(_pick(rng, versions))))
    elif kind == 1 and rng.random() < 0.2:
        model.opset_import[0].domain = _pick(rng, ("ai.onnx", "com.microsoft", "x"))
    else:
        model.opset_import[0].version = _pick(rng, versions)


@_model
def ir_version_lie(rng: Rng, model: onnx.ModelProto) -> None:
    model.ir_version = _pick(rng, (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 99, -1, 2**62))


# Sizes: what a small file can make of itself when it runs.


def _take_state(model: onnx.ModelProto, name: str) -> tuple[int, str]:
    """Rename a new state where it is made; gives the node's place and the state's own name."""
    states = {o.name for o in model.graph.output} - {"logits", "embedding"}
    for at, node in enumerate(model.graph.node):
        for i, output in enumerate(node.output):
            if output in states:
                node.output[i] = name
                return at, output
    raise ValueError("the model makes no state")


def _into_state(model: onnx.ModelProto, huge: str, before: list[onnx.NodeProto]) -> None:
    """Let the first element of `huge` take part in the new state."""
    at, output = _take_state(model, "before_huge")
    nodes = list(model.graph.node)
    nodes[at + 1 : at + 1] = [
        *before,
        helper.make_node("ReduceMax", [huge], ["one_of_huge"], keepdims=0),
        helper.make_node("Mul", ["before_huge", "one_of_huge"], [output]),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _ints(model: onnx.ModelProto, name: str, values) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
    return name


@_model
def gigantic_tensor(rng: Rng, model: onnx.ModelProto) -> None:
    """An operator that makes a gigantic tensor out of a few bytes."""
    n = int(_pick(rng, (2**28, 2**31, 2**34, 2**40, 2**62)))
    shape = _ints(model, "huge_shape", [n])
    one = numpy_helper.from_array(np.ones(1, np.float32), "huge_one")
    model.graph.initializer.append(one)
    kind = int(rng.integers(6))
    make = helper.make_node
    if kind == 0:
        nodes = [make("ConstantOfShape", [shape], ["huge"])]
    elif kind == 1:
        nodes = [make("Expand", ["huge_one", shape], ["huge"])]
    elif kind == 2:
        nodes = [make("Tile", ["huge_one", shape], ["huge"])]
    elif kind == 3:
        start, stop, step = (_ints(model, f"huge_{i}", v) for i, v in enumerate((0, n, 1)))
        nodes = [make("Range", [start, stop, step], ["huge_range"]),
                 make("Cast", ["huge_range"], ["huge"], to=1)]  # fmt: skip
    elif kind == 4:
        nodes = [make("RandomNormal", [], ["huge"], shape=[n])]
    else:
        nodes = [make("Pad", ["huge_one", _ints(model, "huge_pads", [0, n])], ["huge"])]
    _into_state(model, "huge", nodes)


@_model
def doubling(rng: Rng, model: onnx.ModelProto) -> None:
    """A tensor that is joined with itself again and again."""
    count = int(_pick(rng, (20, 26, 32, 62, 80)))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "twice0"))
    nodes = [helper.make_node("Concat", [f"twice{i}"] * 2, [f"twice{i + 1}"], axis=0)
             for i in range(count)]  # fmt: skip
    _into_state(model, f"twice{count}", nodes)


def _loop(turns: str, inner: list[onnx.NodeProto], number: int) -> onnx.NodeProto:
    """A loop that counts; `inner` runs in each turn."""
    n = str(number)
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            *inner,
            helper.make_node("Identity", ["going" + n], ["going_out" + n]),
            helper.make_node("Add", ["sum" + n, "huge_one"], ["sum_out" + n]),
        ],
        "endless" + n,
        [info("turn" + n, 7, []), info("going" + n, 9, []), info("sum" + n, 1, [1])],
        [info("going_out" + n, 9, []), info("sum_out" + n, 1, [1])],
    )
    return helper.make_node("Loop", [turns, "huge_true", "huge_one"], ["huge" + n], body=body)


@_model
def endless_loop(rng: Rng, model: onnx.ModelProto) -> None:
    """A loop with a gigantic number of turns or none stated, alone or in another."""
    model.graph.initializer.extend([
        numpy_helper.from_array(np.ones(1, np.float32), "huge_one"),
        numpy_helper.from_array(np.array(True), "huge_true"),
    ])  # fmt: skip
    turns = "" if rng.random() < 0.3 else _ints(model, "huge_turns", _pick(rng, (2**40, 2**63 - 1)))
    nodes: list[onnx.NodeProto] = []
    for depth in range(int(rng.integers(1, 4))):
        nodes = [_loop(turns, nodes, depth)]
    _into_state(model, nodes[0].output[0], nodes)


@_model
def long_sequence(rng: Rng, model: onnx.ModelProto) -> None:
    """A Scan over a gigantic axis, or a loop that collects what it makes."""
    n = int(_pick(rng, (2**16, 2**24, 2**31, 2**40)))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "huge_one"))
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["carried!", "word!"], ["carried_out!"]),
         helper.make_node("Identity", ["carried_out!"], ["seen!"])], "long",
        [info(x, 1, [1]) for x in ("carried!", "word!")],
        [info(x, 1, [1]) for x in ("carried_out!", "seen!")])  # fmt: skip
    nodes = [
        helper.make_node("Expand", ["huge_one", _ints(model, "huge_shape", [n, 1])], ["words!"]),
        helper.make_node("Scan", ["huge_one", "words!"], ["last!", "huge"], body=body,
                         num_scan_inputs=1),
    ]  # fmt: skip
    _into_state(model, "huge", nodes)


@_model
def deep_subgraphs(rng: Rng, model: onnx.ModelProto) -> Files | None:
    """If in If in If …; protobuf gives up at about 100 messages deep, C++ recursion later."""
    depth = int(_pick(rng, (5, 15, 30, 33, 48, 60, 100, 1000, 5000)))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "huge_true"))
    info = onnx.ValueInfoProto(name="inner")
    info.type.tensor_type.elem_type = 1
    _, old = _take_state(model, "before_deep")

    # By hand, since a message this deep is one that the library refuses to copy.
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2]) + _varint(len(content)) + content

    bottom = helper.make_node("Identity", ["before_deep"], ["inner"]).SerializeToString()
    node = bottom
    for level in range(depth):
        graph = field(1, node) + field(2, b"g") + field(12, info.SerializeToString())
        out = b"inner" if level < depth - 1 else old.encode()
        branches = b"".join(
            field(5, field(1, side) + field(6, graph) + b"\xa0\x01\x05")
            for side in ((b"then_branch", b"else_branch") if level == 0 else (b"then_branch",))
        )
        if level:
            small = field(1, bottom) + field(2, b"s") + field(12, info.SerializeToString())
            branches += field(5, field(1, b"else_branch") + field(6, small) + b"\xa0\x01\x05")
        node = field(1, b"huge_true") + field(2, out) + field(4, b"If") + branches
    # A repeated field may be continued: the node goes behind those of the graph.
    return {"m.onnx": model.SerializeToString() + field(7, field(1, node))}


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


@_model
def long_chain(rng: Rng, model: onnx.ModelProto) -> None:
    """A state that passes through very many nodes."""
    count = int(_pick(rng, (300, 1200, 3000)))
    op = _pick(rng, ("Identity", "Tanh", "Neg"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "chain0"))
    nodes = [helper.make_node(op, [f"chain{i}"], [f"chain{i + 1}"]) for i in range(count)]
    _into_state(model, f"chain{count}", nodes)


@_model
def functions_in_circles(rng: Rng, model: onnx.ModelProto) -> None:
    """Functions that call themselves, each other, or one another twice, forty deep."""
    kind = int(rng.integers(4))
    count = (1, 2, 5, int(_pick(rng, (12, 18, 40))))[kind]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("circle", 1)]
    for i in range(count):
        following = f"F{(i + 1) % count}"
        body = [helper.make_node(following, ["a"], ["t"], domain="circle"),
                helper.make_node(following, ["t"], ["y"], domain="circle")]  # fmt: skip
        if kind == 3 and i == count - 1:  # ends, after 2^40 calls
            body = [helper.make_node("Identity", ["a"], ["y"])]
        model.functions.append(helper.make_function("circle", f"F{i}", ["a"], ["y"], body, opsets))
    model.opset_import.append(helper.make_opsetid("circle", 1))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "round"))
    _into_state(model, "huge", [helper.make_node("F0", ["round"], ["huge"], domain="circle")])


@_model
def functions_edited(rng: Rng, model: onnx.ModelProto) -> None:
    """Wrong inputs, outputs, names, domains or opsets of a function; or one that hides Tanh."""
    opsets = [helper.make_opsetid("", int(_pick(rng, (18, 13, 99, -1))))]
    kind = int(rng.integers(5))
    name, domain = ("Tanh", "") if kind == 0 else ("Local", "here")
    inputs = _pick(rng, (["a"], [], ["a", "a"], ["a", "b", "c"], [""]))
    outputs = _pick(rng, (["y"], [], ["y", "y"], ["nothing"], [""]))
    body = _pick(rng, ([helper.make_node("Tanh", ["a"], ["y"])], [],
                       [helper.make_node("Tanh", ["h"], ["y"])],
                       [helper.make_node("Nothing", ["a"], ["y"])]))  # fmt: skip
    for _ in range(int(rng.integers(1, 3))):
        made = helper.make_function(domain, name, inputs, outputs, body, opsets)
        if kind == 3:
            del made.opset_import[:]
        model.functions.append(made)
    if rng.random() < 0.7:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "round"))
    _into_state(model, "huge", [helper.make_node(name, ["round"], ["huge"], domain=domain)])


# Data elsewhere, and values.


@_model
def external_data(rng: Rng, model: onnx.ModelProto) -> Files | None:
    tensor = _pick(rng, [t for t in _tensors(model) if t.raw_data] or [TensorProto()])
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    location = _pick(rng, ("w.bin", "w.bin", "w.bin", "../w.bin", "/etc/passwd", "/dev/zero",
                           "link.bin", "zero.bin", "", ".", "m.onnx", "w.bin\0x", "a/../w.bin",
                           "x" * 5000, "é.bin", "\\\\host\\w.bin", "C:\\w.bin"))  # fmt: skip
    entries = {"location": location}
    if rng.random() < 0.5:
        entries["offset"] = _pick(rng, ("0", "1", "-1", "x", str(2**62), "", "1e3", "٣"))
    if rng.random() < 0.5:
        entries["length"] = _pick(rng, (str(len(data)), "0", "-1", str(2**62), "x", "1"))
    if rng.random() < 0.2:
        entries[_pick(rng, ("checksum", "nonsense", "location "))] = "x"
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    if rng.random() < 0.2:
        tensor.dims[:] = [2**31, 2**31]
    return {"m.onnx": model.SerializeToString(), "w.bin": data,
            "link.bin": Path("/etc/passwd"), "zero.bin": Path("/dev/zero")}  # fmt: skip


@_model
def weights_not_finite(rng: Rng, model: onnx.ModelProto) -> None:
    _edit_values(rng, model, (np.nan, np.inf, -np.inf))


@_model
def weights_extreme(rng: Rng, model: onnx.ModelProto) -> None:
    """Finite, and far from anything trained."""
    _edit_values(rng, model, (0, 1e-45, 1e-30, 1e10, 1e30, 3e38, -3e38, 1e4))


def _edit_values(rng: Rng, model: onnx.ModelProto, values) -> None:
    floats = [t for t in _tensors(model) if t.data_type in (1, 10, 11) and t.raw_data]
    if not floats:
        return
    tensor = _pick(rng, floats)
    array = numpy_helper.to_array(tensor).copy()
    at = rng.random(array.shape) < _pick(rng, (0.1, 0.5, 1.1))
    with np.errstate(over="ignore"):
        array = np.where(at, np.asarray(_pick(rng, values), array.dtype), array)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@_model
def integers_edited(rng: Rng, model: onnx.ModelProto) -> None:
    """Axes, shapes and indices that are stored as tensors."""
    some = [t for t in _tensors(model) if t.data_type == TensorProto.INT64 and t.raw_data]
    if some:
        tensor = _pick(rng, some)
        array = numpy_helper.to_array(tensor).copy()
        array[...] = _pick(rng, ODD)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@_model
def sparse_weights(rng: Rng, model: onnx.ModelProto) -> None:
    """A sparse tensor in place of a weight: good, or with wrong indices, order or size."""
    tensors = [t for t in model.graph.initializer if t.data_type == 1]
    if not tensors:
        return
    tensor = _pick(rng, tensors)
    dims, values = list(tensor.dims), numpy_helper.to_array(tensor).ravel()
    at = np.arange(values.size, dtype=np.int64)
    kind = int(rng.integers(6))
    if kind == 1:
        at = at[::-1].copy()
    elif kind == 2:
        at[-1:] = _pick(rng, ODD)
    elif kind == 3:
        dims = [int(_pick(rng, HUGE)), *dims[1:]]
    elif kind == 4:
        at = at[:-1]
    elif kind == 5:
        dims, values, at = [2**20, 2**20], values[:1], at[:1]
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(values, tensor.name), numpy_helper.from_array(at, "at"), dims
    ) if kind not in (4,) else _sparse(tensor.name, values, at, dims)  # fmt: skip
    model.graph.initializer.remove(tensor)
    model.graph.sparse_initializer.append(sparse)


def _sparse(name: str, values: np.ndarray, at: np.ndarray, dims: list[int]):
    made = onnx.SparseTensorProto(dims=dims)
    made.values.CopyFrom(numpy_helper.from_array(values, name))
    made.indices.CopyFrom(numpy_helper.from_array(at, "at"))
    return made


@_model
def extras(rng: Rng, model: onnx.ModelProto) -> None:
    """Parts of the format that hardly anyone writes."""
    kind = int(rng.integers(4))
    if kind == 0:
        model.training_info.add().algorithm.CopyFrom(model.graph)
    elif kind == 1:
        model.graph.quantization_annotation.add(tensor_name="h").quant_parameter_tensor_names.add(
            key="SCALE_TENSOR", value="nowhere"
        )
    elif kind == 2:
        model.doc_string = "x" * 3_000_000
        model.producer_name = "\x1b[31m\n" + "y" * 100_000
    else:
        for i in range(2000):
            model.metadata_props.add(key=f"k{i}", value="x" * 100)


# Roles and vocabulary.


def _entry(model: onnx.ModelProto, key: str) -> onnx.StringStringEntryProto | None:
    return next((p for p in model.metadata_props if p.key == key), None)


@_model
def roles_damaged(rng: Rng, model: onnx.ModelProto) -> None:
    entry = _entry(model, ROLES_KEY)
    if entry is not None:
        entry.value = damaged_json(rng, entry.value)


@_model
def vocabulary_damaged(rng: Rng, model: onnx.ModelProto) -> None:
    entry = _entry(model, VOCABULARY_KEY)
    if entry is not None:
        entry.value = damaged_json(rng, entry.value)


@_model
def metadata_not_utf8(rng: Rng, model: onnx.ModelProto) -> Files:
    return {"m.onnx": model.SerializeToString().replace(b'"tokens"', b'"to\xffens"')}


@_model
def roles_swapped(rng: Rng, model: onnx.ModelProto) -> None:
    """Roles of the right form that name the wrong tensors."""
    entry = _entry(model, ROLES_KEY)
    assert entry is not None
    roles = json.loads(entry.value)
    inputs = [i.name for i in model.graph.input]
    outputs = [o.name for o in model.graph.output]
    state = _pick(rng, roles["states"])
    kind = int(rng.integers(7))
    if kind == 0:
        other = _pick(rng, roles["states"])
        state["output"], other["output"] = other["output"], state["output"]
    elif kind == 1:
        state["input"] = _pick(rng, inputs)
    elif kind == 2:
        state["output"] = _pick(rng, outputs)
    elif kind == 3:
        roles[_pick(rng, ("embedding", "logits"))] = _pick(rng, outputs)
    elif kind == 4:
        roles["tokens"] = _pick(rng, inputs)
    elif kind == 5:
        roles["embedding"], roles["logits"] = roles["logits"], roles["embedding"]
    else:
        roles["states"].append({**state, "name": "again"})
    entry.value = json.dumps(roles)


@_model
def axes_and_initial_values(rng: Rng, model: onnx.ModelProto) -> None:
    entry = _entry(model, ROLES_KEY)
    assert entry is not None
    roles = json.loads(entry.value)
    state = _pick(rng, roles["states"])
    kind = int(rng.integers(4))
    if kind == 0:
        state["batch_axis"] = int(_pick(rng, (0, 1, 2, 3, 100, 2**31 - 1, -1)))
    elif kind == 1:
        state["layer_axis"] = _pick(rng, (0, 1, 2, 7, None))
        state["layer_index"] = _pick(rng, (0, 1, 2, 2**30, None))
    elif kind == 2:
        state["initial"] = [float(_pick(rng, (0, 1, -3, 1e300, 1e-300, 0.5)))] * int(
            _pick(rng, (0, 1, 3, 4, 4, 4, 5, 10_000))
        )
    else:
        for s in roles["states"]:
            s["batch_axis"] = int(rng.integers(3))
    entry.value = json.dumps(roles)


@_model
def mixed(rng: Rng, model: onnx.ModelProto) -> bytes | Files | None:
    """Three mutators in a row, as far as the model still parses."""
    names = [n for n in MUTATORS if n not in ("mixed", "external-data", "deep-subgraphs")]
    blob = model.SerializeToString()
    for name in (_pick(rng, names) for _ in range(3)):
        try:
            made = MUTATORS[name](rng, blob)
        except Exception:  # what one mutator needs, another has taken away
            continue
        blob = made["m.onnx"] if isinstance(made, dict) else made
    return {"m.onnx": blob}
