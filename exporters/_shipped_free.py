"""Free a number of streams or steps that was written into a graph's constants."""

from __future__ import annotations

import numpy as np
import onnx
from mnemoscope.analyzer import _passes, _runtime
from mnemoscope.analyzer.errors import ModelError
from onnx import helper, numpy_helper

from ._parity import Feeds
from ._shipped_flat import RECURRENT, constants
from ._shipped_source import Source, example


def free_batch(model: onnx.ModelProto, source: Source, feeds: Feeds) -> onnx.ModelProto:
    """Rewrite the shapes of Reshape nodes that name a fixed number of streams or steps.

    A Reshape whose stored shape fits the extents that the file insists on gets -1 where the
    streams lie and 1 where the steps lie. Others stay; whether the result is right is for the
    comparison with the shipped file to say.

    Args:
        model: The graph with one step, its declared extents open.
        source: The shipped file, which tells those extents.
        feeds: One step of two streams.
    """
    interface = source.interface
    streams, steps = interface.batch, interface.time or 1
    result = onnx.ModelProto()
    result.CopyFrom(model)
    fixed = {}
    if streams is not None or steps > 1:
        values = example(interface, streams or 2, steps, 5)
        whole = source.feeds(values, source.zeros(streams or 2))
        fixed = {k: v for k, v in whole.items() if k in feeds}
    stored = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    for node in result.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            stored[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    if streams is not None:
        _free_starts(result, model, fixed, streams)
    for number, node in enumerate(result.graph.node):
        if node.op_type not in ("Reshape", "Expand") or node.input[1] not in stored:
            continue
        shape = [int(v) for v in np.atleast_1d(stored[node.input[1]])]
        if 0 in shape:
            continue
        try:
            now = _shape(result, node.input[0], feeds)
            then = _shape(model, node.input[0], fixed)
        except ModelError:
            return result
        new = _freed(node.op_type, shape, then, now, streams or 2, steps)
        if new is not None and new != shape:
            name = f"mnemoscope/freed/{number}"
            result.graph.initializer.append(numpy_helper.from_array(np.array(new, np.int64), name))
            node.input[1] = name
    return result


def _free_starts(
    result: onnx.ModelProto, model: onnx.ModelProto, fixed: Feeds, streams: int
) -> None:
    """Initial states stored for a number of streams: the first one's, for as many as there are."""
    nodes = []
    for number, node in enumerate(result.graph.node):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.op_type in RECURRENT:
            names = [n for n in node.input[5:7] if n]
            for place, name in enumerate(node.input[5:7], start=5):
                value = constants(model, names, fixed).get(name)
                if value is None or value.ndim != 3 or value.shape[1] != streams:
                    continue
                if not (value == value[:, :1]).all():
                    continue  # streams that start from different states: for the tracing to refuse
                stem = f"mnemoscope/start/{number}/{place}"
                for part, array in (("one", value[:, :1]), ("ones", np.array([1])),
                                    ("axis", np.array([1]))):  # fmt: skip
                    result.graph.initializer.append(
                        numpy_helper.from_array(np.ascontiguousarray(array), f"{stem}/{part}")
                    )
                nodes += [
                    helper.make_node("Shape", [node.input[0]], [f"{stem}/extents"]),
                    helper.make_node("Gather", [f"{stem}/extents", f"{stem}/axis"],
                                     [f"{stem}/count"]),
                    helper.make_node("Concat", [f"{stem}/ones", f"{stem}/count", f"{stem}/ones"],
                                     [f"{stem}/shape"], axis=0),
                    helper.make_node("Expand", [f"{stem}/one", f"{stem}/shape"], [stem]),
                ]  # fmt: skip
                copy.input[place] = stem
        nodes.append(copy)
    del result.graph.node[:]
    result.graph.node.extend(nodes)


def _shape(model: onnx.ModelProto, name: str, feeds: Feeds) -> tuple[int, ...]:
    if name in feeds:
        return tuple(feeds[name].shape)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return tuple(tensor.dims)
    part = _passes.extract(model, [], [name])
    given = {i.name for i in part.graph.input}
    return tuple(
        _runtime.evaluate(part, [name], {k: v for k, v in feeds.items() if k in given})[name].shape
    )


def _freed(
    op: str,
    shape: list[int],
    then: tuple[int, ...],
    now: tuple[int, ...],
    streams: int,
    steps: int,
) -> list[int] | None:
    """The shape for another number of streams (2 in `now`) and one step; None if none fits."""
    if op == "Expand" or then == now:
        return None
    total = int(np.prod(then))
    if -1 in shape:
        known = int(np.prod([d for d in shape if d != -1]))
        if known == 0 or total % known:
            return None
        shape = [total // known if d == -1 else d for d in shape]
    if int(np.prod(shape)) != total:
        return None
    wanted = int(np.prod(now))
    changed = [k for k, (a, b) in enumerate(zip(then, now, strict=True)) if a != b]
    lead = int(np.prod(then[: changed[0]])) if changed else 1
    options = []
    for k, extent in enumerate(shape):
        if extent % streams:
            continue
        rest = [d for j, d in enumerate(shape) if j != k]
        for other in (None, *(j for j, d in enumerate(shape) if j != k and d == steps)):
            sizes = list(shape)
            if steps > 1 and other is not None:
                sizes[other] = 1
            elif steps > 1 and extent % (streams * steps):
                continue
            rest = [d for j, d in enumerate(sizes) if j != k]
            product = int(np.prod(rest))
            if wanted % product:
                continue
            new = list(sizes)
            new[k] = -1
            before = int(np.prod(shape[:k]))
            options.append(((before != lead, extent != streams, k), new))
            if steps == 1:
                break
    return min(options)[1] if options else None
