"""Find what the recurrent core reads of the tokens, and make it a cut point of the graph.

The embedding is where the integers end: the first floating-point tensor that is a function of
the tokens alone. That one rule covers embedding layers (Gather from a matrix), one-hot vectors
(OneHot, comparison with a range and Cast, rows of an identity matrix, Scatter into zeros).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from mnemoscope.analyzer import _runtime
from mnemoscope.analyzer._passes import reads
from mnemoscope.analyzer.errors import ModelError
from onnx import TensorProto, helper, numpy_helper

from ._graph import (
    copy_node,
    depend_on,
    element_types,
    hang_on,
    initializer_names,
    merge_twins,
    needed_nodes,
    produced_values,
    rename_values,
)

EMBEDDING = "embedding"

_FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
)


class EmbeddingError(ModelError):
    """A graph in which the embedding cannot be found, or does not cut the tokens off."""


def cut_at_embedding(
    model: onnx.ModelProto, tokens: str, *, embedding: str | None = None
) -> onnx.ModelProto:
    """Add the graph output ``embedding`` ``[batch, 1, E]`` and let the core read from it.

    Args:
        model: A step graph: its input `tokens` is an integer tensor ``[batch, 1]``.
        tokens: Name of that input.
        embedding: Name of the tensor to cut at; None looks for the one floating-point tensor
            that is computed from the tokens and nothing else floating.

    Returns:
        A new model in which no path leads from `tokens` to another output but through
        ``embedding``.

    Raises:
        EmbeddingError: There is no such tensor, or several, or the tokens are read elsewhere too.
    """
    model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    if embedding is None:
        merge_twins(graph, tokens)
    name = embedding if embedding is not None else _find(graph, tokens)
    outputs = [o.name for o in graph.output if o.name != name]
    if name not in produced_values(graph):
        raise EmbeddingError(
            f"The tensor {name!r}, asked for as the embedding, is not computed in the graph; "
            "name the output of one of its nodes."
        )
    _require_tokens_alone(graph, tokens, name)
    _require_cut(graph, tokens, name, outputs)

    prefix = needed_nodes(graph, [name], stop=set())
    core = needed_nodes(graph, outputs, stop={name})
    shape = _observe_shape(model, prefix, tokens, name)
    batch_axis, width = _axes(shape, name)
    kept = [o for o in graph.output if o.name != name]
    nodes = _rewire(graph, tokens, name, prefix, core, shape[0], batch_axis, width)

    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    del cut.graph.node[:], cut.graph.output[:], cut.graph.value_info[:]
    cut.graph.node.extend(nodes)
    cut.graph.output.extend(kept)
    element = element_types(graph).get(name, TensorProto.FLOAT)
    cut.graph.output.append(helper.make_tensor_value_info(EMBEDDING, element, ["batch", 1, width]))
    return cut


def require_true_cut(graph: onnx.GraphProto, tokens: str, embedding: str) -> None:
    """Raise EmbeddingError unless `embedding` separates `tokens` from every other output."""
    _require_tokens_alone(graph, tokens, embedding)
    outputs = [o.name for o in graph.output if o.name != embedding]
    reached = {i for node in needed_nodes(graph, outputs, stop={embedding}) for i in reads(node)}
    if tokens in reached or tokens in outputs:
        raise EmbeddingError(
            f"The embedding {embedding!r} is not a cut point: the graph reads {tokens!r} "
            "elsewhere too. Everything behind the lookup must read the embedding."
        )


def _find(graph: onnx.GraphProto, tokens: str) -> str:
    """The one floating-point tensor at which the token ids become numbers."""
    types = element_types(graph)
    held = depend_on(graph, {tokens})
    foreign = depend_on(graph, {i.name for i in graph.input} - {tokens} - initializer_names(graph))
    names = []
    for node in needed_nodes(graph, [o.name for o in graph.output], stop=set()):
        inputs = reads(node)
        from_ids = any(i in held for i in inputs) and not any(i in foreign for i in inputs)
        if from_ids and not any(i in held and types.get(i) in _FLOATS for i in inputs):
            names += [o for o in node.output if o in held and types.get(o) in _FLOATS]
    if len(names) > 1:
        names = [n for n in names if _is_read_as_numbers(graph, n, types)]
    if not names:
        raise EmbeddingError(
            "No embedding was found: no floating-point tensor of the graph is computed from the "
            f"tokens ({tokens!r}) alone. Expected a lookup in a matrix or a one-hot vector; name "
            "the tensor that the recurrent core reads with the option embedding."
        )
    if len(names) > 1:
        raise EmbeddingError(
            f"The tokens become numbers at {len(names)} places: {', '.join(map(repr, names))}. "
            "Expected one embedding; choose the tensor that everything behind it reads with the "
            "option embedding (for PyTorch: the name of the submodule that returns it)."
        )
    return names[0]


def _is_read_as_numbers(graph: onnx.GraphProto, name: str, types: dict[str, int]) -> bool:
    """Whether numbers lead from a tensor to an output; ids may be compared as numbers on the way.

    TensorFlow's lookup compares every id with 0, in floating point.
    """
    held = {name}
    for node in graph.node:
        if any(i in held for i in reads(node)):
            held.update(o for o in node.output if types.get(o, TensorProto.FLOAT) in _FLOATS)
    return any(o.name in held for o in graph.output)


def _require_tokens_alone(graph: onnx.GraphProto, tokens: str, name: str) -> None:
    others = {i.name for i in graph.input} - {tokens} - initializer_names(graph)
    if name in depend_on(graph, others) or name not in depend_on(graph, {tokens}):
        raise EmbeddingError(
            f"The embedding {name!r} must depend on the tokens ({tokens!r}) and on nothing else "
            "that changes; it does not. Name another tensor with the option embedding."
        )


def _require_cut(graph: onnx.GraphProto, tokens: str, name: str, outputs: list[str]) -> None:
    held = depend_on(graph, {tokens}, stop={name})
    leaking = [o for o in outputs if o in held]
    if leaking:
        raise EmbeddingError(
            f"The tokens reach {', '.join(map(repr, leaking))} not only through the embedding "
            f"{name!r}. Expected that the recurrent core reads its words from one tensor; name "
            "that tensor with the option embedding (for PyTorch: the submodule that returns it)."
        )


def _rewire(
    graph: onnx.GraphProto,
    tokens: str,
    name: str,
    prefix: list[onnx.NodeProto],
    core: list[onnx.NodeProto],
    first_shape: tuple[int, ...],
    batch_axis: int,
    width: int,
) -> list[onnx.NodeProto]:
    """The nodes of the new graph: tokens → embedding, then embedding → everything else."""
    others = [axis for axis in range(len(first_shape)) if axis != batch_axis]
    order = [batch_axis, *others]
    # An axis of one element may stand anywhere: moving it moves no number.
    moved = any(extent != 1 for extent in first_shape[:batch_axis])
    # A node on both sides of the cut stays with the core; the lookup gets a copy under new names.
    # What hangs on constants alone leads to no tokens, and both sides share it.
    hanging = hang_on(prefix, {tokens})
    both = {o for n in core for o in n.output if o} & {o for n in prefix for o in n.output if o}
    nodes = [copy_node(n) for n in prefix]
    renamed = {o: f"{o}.lookup" for o in both & hanging}
    if name == EMBEDDING:
        renamed[name] = f"{EMBEDDING}.raw"
    rename_values(nodes, renamed)
    raw = renamed.get(name, name)

    def constant(label: str, values: Iterable[int]) -> str:
        array = np.array(list(values), np.int64)
        tensor = f"{EMBEDDING}.{label}"
        nodes.append(
            helper.make_node("Constant", [], [tensor], value=numpy_helper.from_array(array))
        )
        return tensor

    def emit(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    source = raw
    if moved:
        source = emit("Transpose", [raw], f"{EMBEDDING}.batch_first", perm=order)
    emit("Reshape", [source, constant("shape", (-1, 1, width))], EMBEDDING)

    # The way back. The same shape as before, so that nothing behind it needs to change.
    reader = EMBEDDING
    if len(first_shape) != 3 or batch_axis != 0 or first_shape[1] != 1:
        extents = [-1 if axis == batch_axis else n for axis, n in enumerate(first_shape)]
        if moved:
            extents = [extents[axis] for axis in order]
        reader = emit("Reshape", [EMBEDDING, constant("native", extents)], f"{EMBEDDING}.read")
        if moved:
            back = [order.index(axis) for axis in range(len(order))]
            reader = emit("Transpose", [reader], f"{EMBEDDING}.moved", perm=back)

    # The core may ask for the extent of the tokens (a zero state, a view). It gets that of a
    # stand-in: zeros as many as there are tokens, made from the embedding.
    following = [copy_node(n) for n in core if not any(o in both - hanging for o in n.output)]
    replaced = {name: reader}
    if any(tokens in reads(n) for n in following):
        extent = emit("Shape", [EMBEDDING], f"{EMBEDDING}.extent", end=2)
        zero = helper.make_tensor("value", element_types(graph)[tokens], [1], [0])
        replaced[tokens] = emit("ConstantOfShape", [extent], f"{EMBEDDING}.stand_in", value=zero)
    rename_values(following, replaced)
    return nodes + following


def _axes(shapes: list[tuple[int, ...]], name: str) -> tuple[int, int]:
    """The batch axis of a tensor and how many numbers it holds per stream."""
    two, three = shapes
    differing = [a for a, (m, n) in enumerate(zip(two, three, strict=False)) if m != n]
    if len(two) != len(three) or len(differing) != 1 or three[differing[0]] != 3:
        raise EmbeddingError(
            f"The embedding {name!r} must have one batch axis; it has the shape {list(two)} for "
            f"2 streams and {list(three)} for 3. Name another tensor with the option embedding."
        )
    width = int(np.prod(two)) // 2
    if not width:
        raise EmbeddingError(
            f"The embedding {name!r} holds no numbers: its shape is {list(two)} for 2 streams. "
            "Expected at least one number for each token."
        )
    return differing[0], width


def _observe_shape(
    model: onnx.ModelProto, prefix: list[onnx.NodeProto], tokens: str, name: str
) -> list[tuple[int, ...]]:
    """The shape of the tensor `name` for 2 and for 3 streams, by running what leads to it."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.output[:], part.graph.value_info[:]
    part.graph.node.extend(prefix)
    kept = [i for i in model.graph.input if i.name == tokens]
    del part.graph.input[:]
    part.graph.input.extend(kept)
    needed = {i for node in prefix for i in reads(node)}
    initializers = [t for t in model.graph.initializer if t.name in needed]
    del part.graph.initializer[:]
    part.graph.initializer.extend(initializers)
    dtype = helper.tensor_dtype_to_np_dtype(kept[0].type.tensor_type.elem_type)
    try:
        return [
            _runtime.evaluate(part, [name], {tokens: np.zeros((n, 1), dtype)})[name].shape
            for n in (2, 3)
        ]
    except ModelError as error:
        raise EmbeddingError(
            f"The embedding {name!r} cannot be computed for 2 and for 3 streams: {error} Name "
            "another tensor with the option embedding."
        ) from error
