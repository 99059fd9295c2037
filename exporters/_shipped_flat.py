"""One time step of any ONNX model as a flat graph: no functions, branches or loops.

What decides a branch or the number of turns of a loop is, at one step, a constant: a frozen input,
or the extent of an axis. Such branches and loops are written out, so that the recurrent nodes
inside them can be traced, and differentiated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from mnemoscope.analyzer import _passes, _runtime
from mnemoscope.analyzer._passes import reads
from mnemoscope.analyzer.errors import ModelError
from onnx import TensorProto, helper, numpy_helper

from ._graph import copy_node, rename_values

RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")

_TURNS = 64  # of a loop that is written out; over one time step a loop turns once
_BODIES = 256  # written out in all: a damaged file may nest them
_NODES = 200_000

Feeds = dict[str, np.ndarray]


@dataclass
class Carried:
    """A value that a Scan or Loop carried from turn to turn, in the flat graph."""

    start: str
    end: str
    operator: str


@dataclass
class Flat:
    """A flat step graph.

    Attributes:
        model: The graph.
        carried: What its loops carried.
        notes: What was written out, for the report.
    """

    model: onnx.ModelProto
    carried: list[Carried] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without local functions, and without initialisers among its inputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if copy.functions:
        try:
            copy = onnx.inliner.inline_local_functions(copy)
        except Exception as error:  # what it raises is not documented
            raise ModelError(f"The model's functions cannot be expanded: {error}") from error
    stored = {t.name for t in copy.graph.initializer}
    kept = [i for i in copy.graph.input if i.name not in stored]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    copy.ir_version = max(copy.ir_version, 4)
    return copy


def opset_of(model: onnx.ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def flatten(model: onnx.ModelProto, feeds: Feeds) -> Flat:
    """Write out branches and loops whose course does not depend on data.

    Args:
        model: A graph without functions, frozen inputs stored.
        feeds: One step of two streams.

    Returns:
        The flat graph; control flow that depends on data is left in it.
    """
    flat = Flat(without_functions(model))
    left: set[str] = set()
    bodies = 0
    while True:
        graph = flat.model.graph
        place = next((k for k, n in enumerate(graph.node)
                      if not n.domain and n.op_type in ("If", "Loop", "Scan")
                      and n.output[0] not in left), None)  # fmt: skip
        if place is None:
            return flat
        node = copy_node(graph.node[place])
        new = _written_out(flat, node, feeds, bodies)
        if new is None:
            left.add(node.output[0])
            continue
        bodies += 1
        nodes = [*graph.node[:place], *new, *graph.node[place + 1 :]]
        if bodies > _BODIES or len(nodes) > _NODES:
            raise ModelError("The model nests more branches and loops than can be written out.")
        del graph.node[:]
        graph.node.extend(nodes)
        del graph.value_info[:]


def constants(model: onnx.ModelProto, names: Iterable[str], feeds: Feeds) -> Feeds:
    """The values among `names` that hang on stored tensors and on extents alone."""
    fixed = {t.name for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Shape", "Size") or (
            reads(node) <= fixed and not node.op_type.startswith(("Random", "Bernoulli"))
        ):
            fixed.update(o for o in node.output if o)
    stored = {t.name: t for t in model.graph.initializer}
    wanted = [n for n in dict.fromkeys(names) if n in fixed]
    values = {n: numpy_helper.to_array(stored[n]) for n in wanted if n in stored}
    computed = [n for n in wanted if n not in stored]
    if computed:
        part = _passes.extract(model, [], computed)
        given = {i.name for i in part.graph.input}
        values.update(
            _runtime.evaluate(part, computed, {k: v for k, v in feeds.items() if k in given})
        )
    return values


def _written_out(
    flat: Flat, node: onnx.NodeProto, feeds: Feeds, number: int
) -> list[onnx.NodeProto] | None:
    bodies = {a.name: a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH}
    prefix = f"{node.op_type}.{number}/"
    if node.op_type == "If":
        found = constants(flat.model, [node.input[0]], feeds)
        if node.input[0] not in found:
            return None
        taken = "then_branch" if bool(found[node.input[0]].reshape(-1)[0]) else "else_branch"
        body, outputs = _inline(flat, bodies[taken], [], prefix)
        flat.notes.append(f"If {node.name or node.output[0]!r} takes its {taken.split('_')[0]}")
        return body + _name(outputs, node.output)
    if node.op_type == "Scan":
        return _scan(flat, node, bodies["body"], feeds, prefix)
    return _loop(flat, node, bodies["body"], feeds, prefix)


def _scan(
    flat: Flat, node: onnx.NodeProto, body: onnx.GraphProto, feeds: Feeds, prefix: str
) -> list[onnx.NodeProto] | None:
    """One turn: Y = body(state, X[0]); a scan of one element runs the same in either direction."""
    if opset_of(flat.model) < 9:
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name != "body"}
    scanned = attributes["num_scan_inputs"]
    states = len(node.input) - scanned
    axes = attributes.get("scan_input_axes", [0] * scanned)
    first = list(node.input)[states:]
    shapes = _shapes(flat.model, first, feeds)
    if any(n not in shapes or shapes[n][axis] != 1 for n, axis in zip(first, axes, strict=True)):
        return None
    if any(attributes.get("scan_input_directions", [])):
        raise ModelError(
            "A Scan of the model runs backwards: its state at a time depends on later words, so "
            "that how long a word is remembered has no answer."
        )
    zero = _store(flat, np.array(0, np.int64), f"{prefix}first")
    given, nodes = _starts(list(node.input)[:states], prefix)
    starts = list(given)
    for k, (name, axis) in enumerate(zip(first, axes, strict=True)):
        given.append(f"{prefix}x{k}")
        nodes.append(helper.make_node("Gather", [name, zero], [given[-1]], axis=axis))
    inner, outputs = _inline(flat, body, given, prefix)
    nodes += inner + _name(outputs[:states], node.output[:states])
    out_axes = attributes.get("scan_output_axes", [0] * (len(outputs) - states))
    for name, out, axis in zip(outputs[states:], node.output[states:], out_axes, strict=False):
        if out:
            nodes.append(_unsqueeze(flat, name, out, axis))
    for k in range(states):
        flat.carried.append(Carried(starts[k], outputs[k], "Scan"))
    flat.notes.append(f"Scan {node.name or node.output[0]!r} written out for one step")
    return nodes


def _loop(
    flat: Flat, node: onnx.NodeProto, body: onnx.GraphProto, feeds: Feeds, prefix: str
) -> list[onnx.NodeProto] | None:
    """As many turns as one time step asks for."""
    model = flat.model
    known = constants(model, [n for n in node.input[:2] if n], feeds)
    if any(n and n not in known for n in node.input[:2]):
        return None
    most = int(known[node.input[0]].reshape(-1)[0]) if node.input[0] else _TURNS + 1
    going = not node.input[1] or bool(known[node.input[1]].reshape(-1)[0])
    count = len(node.input) - 2
    values, nodes = _starts(list(node.input)[2:], prefix)
    starts = list(values)
    scanned: list[list[str]] = [[] for _ in range(len(body.output) - 1 - count)]
    turn = 0
    while going and turn < most:
        if turn == _TURNS:
            return None
        at = f"{prefix}{turn}/"
        number = _store(flat, np.array(turn, np.int64), f"{at}turn")
        true = _store(flat, np.array(True), f"{at}going")
        inner, outputs = _inline(flat, body, [number, true, *values], at)
        nodes += inner
        values = outputs[1 : 1 + count]
        for part, name in zip(scanned, outputs[1 + count :], strict=True):
            part.append(name)
        turn += 1
        if turn < most:
            trial = onnx.ModelProto()
            trial.CopyFrom(model)
            kept = list(trial.graph.node)
            before = next(k for k, n in enumerate(kept) if n.output[:1] == node.output[:1])
            del trial.graph.node[:]
            trial.graph.node.extend([*kept[:before], *nodes])
            found = constants(trial, [outputs[0]], feeds)
            if outputs[0] not in found:
                return None
            going = bool(found[outputs[0]].reshape(-1)[0])
    if turn == 0:
        return None
    nodes += _name(values, node.output[:count])
    for parts, out in zip(scanned, node.output[count:], strict=False):
        if not out:
            continue
        raised = [f"{out}/{k}" for k in range(len(parts))]
        nodes += [_unsqueeze(flat, a, b, 0) for a, b in zip(parts, raised, strict=True)]
        nodes.append(helper.make_node("Concat", raised, [out], axis=0))
    for start, end in zip(starts, values, strict=True):
        flat.carried.append(Carried(start, end, "Loop"))
    turns = f"{turn} turn{'s' * (turn > 1)}"
    flat.notes.append(f"Loop {node.name or node.output[0]!r} written out: {turns} a step")
    return nodes


def _shapes(model: onnx.ModelProto, names: list[str], feeds: Feeds) -> dict[str, tuple[int, ...]]:
    part = _passes.extract(model, [], names)
    given = {i.name for i in part.graph.input}
    stored = {t.name: tuple(t.dims) for t in model.graph.initializer}
    shapes = {n: stored[n] for n in names if n in stored}
    shapes.update({n: feeds[n].shape for n in names if n in feeds})
    asked = [n for n in dict.fromkeys(names) if n not in shapes]
    values = _runtime.evaluate(part, asked, {k: v for k, v in feeds.items() if k in given})
    return {**shapes, **{n: v.shape for n, v in values.items()}}


def _inline(
    flat: Flat, body: onnx.GraphProto, given: list[str], prefix: str
) -> tuple[list[onnx.NodeProto], list[str]]:
    """The nodes of `body` under new names, and the new names of its outputs."""
    new = {i.name: name for i, name in zip(body.input, given, strict=False)}
    for tensor in body.initializer:
        new[tensor.name] = f"{prefix}{tensor.name}"
        stored = flat.model.graph.initializer.add()
        stored.CopyFrom(tensor)
        stored.name = new[tensor.name]
    for node in body.node:
        new.update({o: f"{prefix}{o}" for o in node.output if o})
    nodes = [copy_node(n) for n in body.node]
    rename_values(nodes, new)
    for node in nodes:
        node.name = f"{prefix}{node.name}" if node.name else ""
    return nodes, [new.get(o.name, o.name) for o in body.output]


def _starts(values: list[str], prefix: str) -> tuple[list[str], list[onnx.NodeProto]]:
    """Names of their own for the values that a loop starts from: two may share one tensor."""
    names = [f"{prefix}start{k}" for k in range(len(values))]
    return names, _name(values, names)


def _name(values: Iterable[str], names: Iterable[str]) -> list[onnx.NodeProto]:
    pairs = zip(values, names, strict=False)
    return [helper.make_node("Identity", [a], [b]) for a, b in pairs if b]


def _unsqueeze(flat: Flat, value: str, out: str, axis: int) -> onnx.NodeProto:
    if opset_of(flat.model) < 13:  # until then the axes were an attribute
        return helper.make_node("Unsqueeze", [value], [out], axes=[axis])
    axes = _store(flat, np.array([axis], np.int64), f"{out}/axis")
    return helper.make_node("Unsqueeze", [value, axes], [out])


def _store(flat: Flat, value: Any, name: str) -> str:
    flat.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def refuse_backward(model: onnx.ModelProto) -> None:
    """Raise ModelError when a recurrent node, at any depth, reads later words."""
    nodes = [n for f in model.functions for n in f.node]
    nodes += [n for graph in _passes.graphs(model.graph) for n in graph.node]
    for node in nodes:
        direction = next((a.s.decode("utf-8", "replace") for a in node.attribute
                          if a.name == "direction"), "forward")  # fmt: skip
        if node.op_type in RECURRENT and direction != "forward":
            raise ModelError(
                f"The {node.op_type} {node.name or node.output[0]!r} is {direction}: its state at "
                "a time depends on later words, so that how long a word is remembered has no "
                "answer. State gradients need a model that reads forwards."
            )


FLOAT_TYPES = frozenset(
    {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
)
