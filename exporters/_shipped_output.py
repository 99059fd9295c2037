"""The output that plays the logits: its layout, and whether it gives probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from mnemoscope.analyzer import _runtime
from mnemoscope.analyzer.errors import ModelError
from onnx import helper, numpy_helper

from ._graph import copy_node
from ._parity import Feeds

# Below this a float32 softmax keeps few digits, or none.
SMALLEST = 1e-30

_MOVES = ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")


@dataclass(frozen=True)
class Output:
    """An output of one step.

    Attributes:
        axis: Its axis of streams.
        shape: Its shape for two streams.
        rows: Values ``[rows, V]`` that it took for several tokens.
    """

    axis: int
    shape: tuple[int, ...]
    rows: np.ndarray

    @property
    def width(self) -> int:
        """V."""
        return int(self.rows.shape[1])


def measure(model: onnx.ModelProto, name: str, two: list[Feeds], three: Feeds) -> Output:
    """Measure an output of the flat graph.

    Args:
        model: One step.
        name: The output.
        two: Feeds for two streams, the first of the one step that the graph was made for.
        three: The same for three.

    Raises:
        ModelError: It has no axis of streams, or several.
    """
    session = _runtime.session(model, threads=1)
    *first, last = (np.asarray(_runtime.run(session, [name], f)[0]) for f in (*two, three))
    if first[0].ndim != last.ndim:
        raise ModelError(f"The rank of the output {name!r} changes with its streams.")
    a, b = first[0].shape, last.shape
    axes = [k for k, (m, n) in enumerate(zip(a, b, strict=True)) if m != n]
    if len(axes) != 1 or (a[axes[0]], b[axes[0]]) != (2, 3):
        raise ModelError(
            f"The output {name!r} must have one axis of streams; it is {list(a)} for 2 streams and "
            f"{list(b)} for 3."
        )
    rows = [np.moveaxis(v, axes[0], 0).reshape(v.shape[axes[0]], -1) for v in (*first, last)]
    return Output(axes[0], a, np.concatenate(rows).astype(np.float64))


def are_probabilities(rows: np.ndarray) -> bool:
    """Whether every row ``[..., V]`` is a distribution: not negative, and one in sum."""
    if rows.shape[-1] < 2 or not np.issubdtype(rows.dtype, np.floating):
        return False
    sums = rows.astype(np.float64).sum(-1)
    return bool((rows >= 0).all() and (np.abs(sums - 1) < 1e-3).all())


def are_log_probabilities(rows: np.ndarray) -> bool:
    """Whether every row ``[..., V]`` holds the logarithms of a distribution."""
    return bool((rows <= 0).all()) and are_probabilities(np.exp(rows.astype(np.float64)))


def logarithm(values: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, those below `SMALLEST` as of that; in float32 at least."""
    wide = values.astype(np.result_type(values.dtype, np.float32), copy=False)
    return np.log(np.maximum(wide, wide.dtype.type(SMALLEST)))


def append_logarithm(graph: onnx.GraphProto, name: str) -> str:
    """Append nodes that give the logarithm of the probabilities `name`; returns its name.

    Where a Softmax gives them, a LogSoftmax of the same values: probabilities that a Softmax
    rounds to zero keep their digits.
    """
    makers = {o: n for n in graph.node for o in n.output}
    moved, at = [], name
    while at in makers and makers[at].op_type in _MOVES:
        moved.append(makers[at])
        at = makers[at].input[0]
    prefix = "mnemoscope/logarithm"
    maker = makers.get(at)
    if maker is None or maker.op_type != "Softmax":
        smallest = numpy_helper.from_array(np.array(SMALLEST, np.float32), f"{prefix}/smallest")
        graph.initializer.append(smallest)
        graph.node.append(helper.make_node("Max", [name, smallest.name], [f"{prefix}/bounded"]))
        graph.node.append(helper.make_node("Log", [f"{prefix}/bounded"], [prefix]))
        return prefix
    node = copy_node(maker)
    for number, part in enumerate([node, *(copy_node(n) for n in reversed(moved))]):
        if number:
            part.input[0] = f"{prefix}/{number - 1}"
        else:
            part.op_type = "LogSoftmax"
        part.name = part.name and f"{part.name}/logarithm"
        part.output[0] = f"{prefix}/{number}"
        graph.node.append(part)
    return f"{prefix}/{len(moved)}"


def bounded(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy whose output `name`, logarithms, is not below that of `SMALLEST`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inner, least = "mnemoscope/unbounded", "mnemoscope/least"
    for node in copy.graph.node:
        for names in (node.input, node.output):
            for k, value in enumerate(names):
                names[k] = inner if value == name else value
    value = np.array(np.log(SMALLEST), np.float32)
    copy.graph.initializer.append(numpy_helper.from_array(value, least))
    copy.graph.node.append(helper.make_node("Max", [inner, least], [name]))
    return copy
