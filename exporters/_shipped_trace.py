"""Follow states through a flat step graph, element by element.

Every element of the graph's state inputs gets a number of its own; what arrives at a recurrent
node tells where it came from, its layer and its stream. The same from the node's new state to the
graph's outputs. Numbers that arrive unchanged are evidence; names are not asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx
from mnemoscope.analyzer import _passes, _runtime
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import Kind
from onnx import helper, numpy_helper

from ._graph import depend_on
from ._shipped_flat import Carried, Feeds, Flat, constants

STREAMS = 2


@dataclass(frozen=True)
class Place:
    """Where a component lies in a graph input or output.

    Attributes:
        tensor: Its name.
        batch_axis: The axis of the streams.
        layer_axis: The axis that stacks components; None when the tensor holds one.
        layer_index: The component's place on it.
        count: How many the tensor stacks.
        order: Position of every unit within the component's slice.
    """

    tensor: str
    batch_axis: int
    layer_axis: int | None
    layer_index: int | None
    count: int
    order: tuple[int, ...]


@dataclass
class Part:
    """One component of the recurrent state.

    Attributes:
        name: Such as ``lstm0.h``.
        kind: As in the roles.
        layer: Counted from the input.
        node: What it belongs to, for the report.
        ends: Tensors of the flat graph that hold it after the step; the first is its own.
        reader: Node index and input index that read it, or None for what a loop carried.
        start: Tensor of the flat graph that holds it before the step; "" when there is none.
        batch_axis: Axis of the streams of `start` and `ends[0]`.
        before, after: Where the graph's interface keeps it, if it does.
        initial: Its value at the start of a stream, flat; None for zeros.
        evidence: What was seen.
    """

    name: str
    kind: Kind
    layer: int
    node: str
    ends: list[str]
    reader: tuple[int, int] | None
    start: str
    batch_axis: int
    before: Place | None = None
    after: Place | None = None
    initial: tuple[float, ...] | None = None
    evidence: list[str] = field(default_factory=list)
    size: int = 0


def find_parts(flat: Flat, feeds: Feeds, x: str) -> list[Part]:
    """The states of recurrent nodes and loops of a flat graph, without their places.

    Outputs that a node does not give (its Y_h, Y_c) are added to it, in place.
    """
    parts: list[Part] = []
    graph = flat.model.graph
    layer = 0
    held = depend_on(graph, {x})
    for number, node in enumerate(graph.node):
        if node.op_type in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"):
            kind = "lstm" if "LSTM" in node.op_type else node.op_type.lower()
            first = any(a.name == "layout" and a.i == 1 for a in node.attribute)
            label = f"{node.op_type} {node.name or node.output[0] or number!r}"
            letters = [("h", "hidden", 1, 5), ("c", "cell", 2, 6)][: 2 if kind == "lstm" else 1]
            while len(node.output) < 1 + len(letters):
                node.output.append("")
            for letter, role, out, into in letters:
                if not node.output[out]:
                    node.output[out] = f"mnemoscope/{layer}/Y_{letter}"
                start = node.input[into] if into < len(node.input) else ""
                ends = [node.output[out]]
                if letter == "h" and node.output[0]:
                    ends.append(node.output[0])
                parts.append(Part(f"{kind}{layer}.{letter}", role, layer, label, ends,  # type: ignore[arg-type]
                                  (number, into), start, 0 if first else 1))  # fmt: skip
            layer += 1
    loops = 0
    produced = {o for n in graph.node for o in n.output}
    for carried in flat.carried:
        if carried.end not in held or carried.end not in produced or _inside(parts, carried.end,
                                                                              flat):  # fmt: skip
            continue
        values = _evaluate(flat.model, [carried.start, carried.end], feeds)
        start, end = values[carried.start], values[carried.end]
        if start.shape != end.shape or not np.issubdtype(start.dtype, np.floating):
            continue
        if not _depends(flat, carried, feeds, start):
            continue
        axes = [a for a, n in enumerate(end.shape) if n == STREAMS]
        axis = axes[0] if axes else 0
        name = f"{carried.operator.lower()}{layer}.s{loops}"
        parts.append(Part(name, "other", layer, carried.operator, [carried.end], None,
                          carried.start, axis))  # fmt: skip
        loops += 1
    return parts


def _inside(parts: list[Part], end: str, flat: Flat) -> bool:
    """Whether a value that a loop carries is the new state of a node found already."""
    aliases = {end}
    for node in reversed(flat.model.graph.node):
        if node.op_type in _STRUCTURAL and any(o in aliases for o in node.output):
            aliases.update(node.input[:1])
    return any(e in aliases for p in parts for e in p.ends)


_STRUCTURAL = frozenset(
    {"Identity", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Slice", "Gather", "Cast"}
)


def _depends(flat: Flat, carried: Carried, feeds: Feeds, start: np.ndarray) -> bool:
    """Whether the value before the turn changes the one after: an accumulator's does not."""
    part = _passes.extract(flat.model, [carried.start], [carried.end])
    names = {i.name for i in part.graph.input}
    if carried.start not in names:
        return False
    for value in part.graph.input:
        if value.name == carried.start:
            element = helper.np_dtype_to_tensor_dtype(start.dtype)
            value.CopyFrom(helper.make_tensor_value_info(carried.start, element, None))
    noise = np.random.default_rng(3).standard_normal(start.shape).astype(start.dtype)
    given = {k: v for k, v in feeds.items() if k in names}
    seen = [_runtime.evaluate(part, [carried.end], {**given, carried.start: v})[carried.end]
            for v in (start, noise)]  # fmt: skip
    return not np.array_equal(seen[0], seen[1])


def _evaluate(model: onnx.ModelProto, names: Iterable[str], feeds: Feeds) -> Feeds:
    wanted = list(dict.fromkeys(names))
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer
              if t.name in wanted}  # fmt: skip
    known = {**stored, **{n: feeds[n] for n in wanted if n in feeds}}
    asked = [n for n in wanted if n not in known]
    if not asked:
        return known
    part = _passes.extract(model, [], asked)
    given = {i.name for i in part.graph.input}
    values = _runtime.evaluate(part, asked, {k: v for k, v in feeds.items() if k in given})
    return {**known, **values}


class _Marks:
    """Distinct numbers, and where each of them was put."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: np.dtype, seed: int) -> None:
        rng = np.random.default_rng(seed)
        sizes = {n: int(np.prod(s)) for n, s in shapes.items()}
        total = sum(sizes.values())
        # Odd multiples of 2^-24 below 1 are distinct in float32 and unlikely in any result.
        limit = 2**24 if dtype != np.float16 else 2**11
        if total > limit // 4:
            raise ModelError(f"The states hold {total:,} elements, more than can be followed.")
        drawn = rng.permutation(np.arange(1, limit, 2)[: max(2 * total, 1)])[:total]
        flat = (drawn / limit).astype(dtype)
        self.values: Feeds = {}
        self._sorted = np.argsort(flat, kind="stable")
        self._flat = flat
        self._owner, self._index = [], []
        at = 0
        for number, (name, shape) in enumerate(shapes.items()):
            self.values[name] = flat[at : at + sizes[name]].reshape(shape)
            self._owner.append(np.full(sizes[name], number))
            self._index.append(np.arange(sizes[name]))
            at += sizes[name]
        self._names = list(shapes)
        self._owners = np.concatenate(self._owner or [np.zeros(0, int)])
        self._indices = np.concatenate(self._index or [np.zeros(0, int)])

    def find(self, array: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Owner number and flat index of every element; None unless all are marks."""
        if not array.size or array.dtype != self._flat.dtype or not self._flat.size:
            return None
        ordered = self._flat[self._sorted]
        at = np.minimum(np.searchsorted(ordered, array), ordered.size - 1)
        if not np.array_equal(ordered[at], array):
            return None
        where = self._sorted[at]
        return self._owners[where], self._indices[where]

    def name(self, owner: int) -> str:
        return self._names[owner]


def trace_starts(flat: Flat, parts: list[Part], feeds: Feeds, states: Iterable[str]) -> None:
    """Find where each part comes from; one that comes from nowhere gets its initial value."""
    model = flat.model
    shapes = {n: feeds[n].shape for n in states}
    names = [p.start for p in parts if p.start]
    fixed = constants(model, names, feeds)
    ends = _evaluate(model, [p.ends[0] for p in parts], feeds)
    floats = [n for n in shapes if np.issubdtype(feeds[n].dtype, np.floating)]
    marks = _Marks({n: shapes[n] for n in floats},
                   feeds[floats[0]].dtype if floats else np.dtype(np.float32), 11)  # fmt: skip
    open_ = [n for n in names if n not in fixed]
    values = _evaluate(model, open_, {**feeds, **marks.values})
    for part in parts:
        end = ends[part.ends[0]]
        part.size = int(end.size) // STREAMS
        if not part.start:
            part.evidence.append(f"{part.node} names no initial state: it starts as zeros")
        elif part.start in fixed:
            part.initial = _initial(part, fixed[part.start], end.shape)
            shown = "zeros" if part.initial is None else "a stored value"
            part.evidence.append(f"{part.node} starts every stream from {shown}")
        else:
            found = marks.find(values[part.start])
            if found is not None:
                owners, indices = found
                part.before = _place(marks, shapes, owners, indices, part.batch_axis)
            if part.before is None:
                part.evidence.append(f"the start of {part.node} could not be followed to an input")
            else:
                letter = part.name.rpartition(".")[2]
                part.evidence.append(
                    f"input {part.before.tensor!r}{_slice(part.before)} reaches "
                    f"{'initial_' + letter if part.reader else 'the start'} of {part.node}"
                )


def trace_ends(flat: Flat, parts: list[Part], feeds: Feeds) -> None:
    """Find the graph outputs that hold the new value of each part."""
    model = flat.model
    values = _evaluate(model, [e for p in parts for e in p.ends], feeds)
    dtype = next((v.dtype for v in values.values()), np.dtype(np.float32))
    # Y and Y_h are one at T = 1; an output that holds Y is more likely what the model is for.
    sources = {f"{p.name}\0{k}": values[p.ends[0]].shape
               for p in parts for k in range(len(p.ends))}  # fmt: skip
    marks = _Marks(sources, dtype, 12)
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    given = dict(feeds)
    dead: dict[str, str] = {}
    for part in parts:
        for k, end in enumerate(part.ends):
            if end in dead:
                continue
            dead[end] = f"{end}/computed"
            given[end] = marks.values[f"{part.name}\0{k}"].reshape(values[end].shape)
            element = helper.np_dtype_to_tensor_dtype(values[end].dtype)
            cut.graph.input.append(
                helper.make_tensor_value_info(end, element, list(values[end].shape))
            )
    for node in cut.graph.node:
        for k, name in enumerate(node.output):
            node.output[k] = dead.get(name, name)
    outputs = [o.name for o in model.graph.output]
    produced = {o for n in cut.graph.node for o in n.output} | {t.name for t in
                                                                cut.graph.initializer}  # fmt: skip
    seen = {n: given[n] for n in outputs if n in dead}
    seen.update(_evaluate(cut, [n for n in outputs if n in produced], given))
    by_name = {p.name: p for p in parts}
    options: dict[str, list[tuple[int, bool, Place]]] = {p.name: [] for p in parts}
    for output, value in seen.items():
        found = marks.find(value)
        if found is None:
            continue
        owners, indices = found
        for number in np.unique(owners):
            name, _, own_end = marks.name(int(number)).partition("\0")
            part = by_name[name]
            place = _place_out(output, owners == number, indices, value.shape,
                               values[part.ends[0]].shape, part.batch_axis)  # fmt: skip
            if place is not None:
                other = part.before is None or feeds[part.before.tensor].shape != value.shape
                options[name].append((int(own_end), other, place))
    others = {n for n, v in seen.items() if np.issubdtype(v.dtype, np.floating)}
    for part in parts:
        # What follows the whole sequence is a state only where a state input of its shape waits.
        fit = [o for o in options[part.name] if not o[0] or not o[1]]
        if part.reader is None:
            fit = [o for o in fit if not o[1] or part.before is None]
        taken = {p.after.tensor for p in parts if p.after}
        for own, _, place in sorted(fit, key=lambda o: o[:2]):
            if not others - taken - {place.tensor}:
                continue  # one output must be left: the logits
            part.after = place
            y = ("Y" if own else "Y_" + part.name.rpartition(".")[2]) if part.reader else (
                "the last turn")  # fmt: skip
            part.evidence.append(f"output {place.tensor!r}{_slice(place)} holds {y} of {part.node}")
            break


def _slice(place: Place) -> str:
    if place.layer_axis is None:
        return ""
    return "[" + ":, " * place.layer_axis + f"{place.layer_index}]"


def _initial(part: Part, value: np.ndarray, shape: tuple[int, ...]) -> tuple[float, ...] | None:
    """A stored start as a flat tuple, None for zeros; every stream must start alike."""
    try:
        whole = np.broadcast_to(value, shape)
    except ValueError:
        # Stored for some other number of streams.
        axis = part.batch_axis
        if value.ndim != len(shape) or value.shape[:axis] + value.shape[axis + 1 :] != (
            shape[:axis] + shape[axis + 1 :]
        ):
            raise ModelError(
                f"The initial state of {part.node} has the shape {list(value.shape)}, its state "
                f"{list(shape)}."
            ) from None
        whole = value
    streams = np.moveaxis(whole, part.batch_axis, 0)
    if not (streams == streams[:1]).all():
        raise ModelError(
            f"{part.node} starts each stream of a batch from another state; expected one for all."
        )
    first = streams[0].reshape(-1)
    return None if not first.any() else tuple(float(v) for v in first)


def _place(
    marks: _Marks,
    shapes: dict[str, tuple[int, ...]],
    owners: np.ndarray,
    indices: np.ndarray,
    batch_axis: int,
) -> Place | None:
    """The slice of one input that filled an array, whose streams lie on `batch_axis`."""
    if len(np.unique(owners)) != 1:
        return None
    name = marks.name(int(owners.flat[0]))
    rows = np.moveaxis(indices, batch_axis, 0).reshape(indices.shape[batch_axis], -1)
    return _describe(name, shapes[name], rows)


def _place_out(
    output: str,
    mask: np.ndarray,
    indices: np.ndarray,
    shape: tuple[int, ...],
    native: tuple[int, ...],
    batch_axis: int,
) -> Place | None:
    """The slice of `output` that a part fills: where each of its elements went."""
    places = np.full(int(np.prod(native)), -1)
    places[indices[mask]] = np.flatnonzero(mask)
    if (places < 0).any() or int(mask.sum()) != places.size:
        return None
    rows = np.moveaxis(places.reshape(native), batch_axis, 0).reshape(native[batch_axis], -1)
    return _describe(output, shape, rows)


def _describe(name: str, shape: tuple[int, ...], rows: np.ndarray) -> Place | None:
    """Axes of a slice, from the flat positions ``[stream, unit]`` of its elements."""
    axes = np.unravel_index(rows, shape)
    streams = np.arange(rows.shape[0])[:, None]
    batch = [a for a in range(len(shape))
             if shape[a] == rows.shape[0] and (axes[a] == streams).all()]  # fmt: skip
    if len(batch) != 1:
        return None
    rest = [a for a in range(len(shape)) if a != batch[0]]
    still = [a for a in rest if shape[a] > 1 and (axes[a] == axes[a].flat[0]).all()]
    if len(still) > 1:
        return None
    layer = still[0] if still else None
    inner = [a for a in rest if a != layer]
    if rows.shape[1] != int(np.prod([shape[a] for a in inner])):
        return None
    order = np.zeros(rows.shape[1], int)
    for a in inner:
        order = order * shape[a] + axes[a][0]
    index = int(axes[layer].flat[0]) if layer is not None else None
    count = shape[layer] if layer is not None else 1
    return Place(name, batch[0], layer, index, count, tuple(int(v) for v in order))


__all__ = ["STREAMS", "Part", "Place", "find_parts", "trace_ends", "trace_starts"]
