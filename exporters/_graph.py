"""Questions about an ONNX graph: who reads what, who depends on whom."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from mnemoscope.analyzer._passes import reads

# Their results depend on the extent of a tensor, never on what it holds.
_EXTENT_ONLY = frozenset({"Shape", "Size"})


def depend_on(graph: onnx.GraphProto, sources: Iterable[str], stop: Iterable[str] = ()) -> set[str]:
    """The values whose content depends on the content of `sources`, `stop` left out."""
    stopped = set(stop)
    held = set(sources) - stopped
    for node in graph.node:
        if node.op_type not in _EXTENT_ONLY and any(i in held for i in reads(node)):
            held.update(o for o in node.output if o and o not in stopped)
    return held


def needed_nodes(
    graph: onnx.GraphProto, outputs: Iterable[str], stop: set[str]
) -> list[onnx.NodeProto]:
    """The nodes that compute `outputs` from the graph's inputs and from `stop`, in order."""
    wanted = set(outputs) - stop
    nodes = []
    for node in reversed(graph.node):
        if any(o in wanted for o in node.output if o):
            nodes.append(node)
            wanted.update(i for i in reads(node) if i not in stop)
    return nodes[::-1]


def rename_values(nodes: Iterable[onnx.NodeProto], new: dict[str, str]) -> None:
    """Rename values in `nodes` and in what their subgraphs read and return."""
    for node in nodes:
        for names in (node.input, node.output):
            for k, value in enumerate(names):
                names[k] = new.get(value, value)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                graph = attribute.g
                local = {i.name for i in graph.input} | {t.name for t in graph.initializer}
                seen = {k: v for k, v in new.items() if k not in local}
                rename_values(graph.node, seen)
                for value in graph.output:
                    value.name = seen.get(value.name, value.name)


def hang_on(nodes: Iterable[onnx.NodeProto], sources: set[str]) -> set[str]:
    """The values that hang on `sources` in any way, extents included."""
    held = set(sources)
    for node in nodes:
        if any(i in held for i in reads(node)):
            held.update(o for o in node.output if o)
    return held


def merge_twins(graph: onnx.GraphProto, source: str) -> None:
    """Compute once what is computed from `source` twice in the same way, in place.

    A lookup written twice (a layer and a residual that both embed the tokens) is one lookup.
    """
    outputs = {o.name for o in graph.output}
    hanging = hang_on(graph.node, {source})
    first: dict[bytes, onnx.NodeProto] = {}
    same: dict[str, str] = {}
    kept = []
    for node in graph.node:
        rename_values([node], same)
        key = copy_node(node)
        key.name = ""
        del key.output[:]
        twin = first.setdefault(key.SerializeToString(deterministic=True), node)
        if twin is node or not hanging.issuperset(node.output) or outputs & set(node.output):
            kept.append(copy_node(node))
        else:
            same.update(zip(node.output, twin.output, strict=True))
    del graph.node[:]
    graph.node.extend(kept)


def copy_node(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def produced_values(graph: onnx.GraphProto) -> set[str]:
    return {o for node in graph.node for o in node.output if o}


def initializer_names(graph: onnx.GraphProto) -> set[str]:
    return {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}


def element_types(graph: onnx.GraphProto) -> dict[str, int]:
    types = {t.name: t.data_type for t in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types
