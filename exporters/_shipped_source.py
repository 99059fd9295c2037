"""A shipped model on its own interface: what it reads, in which layout, and how to run it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from mnemoscope.analyzer import _passes, _runtime
from mnemoscope.analyzer._limits import limited
from mnemoscope.analyzer.errors import ModelError
from onnx import helper, numpy_helper

from ._parity import Feeds
from ._shipped_flat import FLOAT_TYPES
from ._shipped_roles import name_pairs
from ._shipped_rounding import rounds

LENGTHS = "lengths"
ONES = "ones"
_RATES = (16000, 8000, 44100, 22050, 48000)
_LONGEST = 2**14  # steps that a file may insist on
_LARGEST_INPUT = 2**27  # elements of one input at two streams

_X_NAMES = ("x", "tokens", "token", "input_ids", "ids", "input", "inputs", "targets", "words",
            "y", "features", "feats", "audio", "samples", "data")  # fmt: skip
_STATE_NAME = re.compile(r"(^|[_./])(h|c|hx|cx|state|states|hidden|cell|cache|past|prev)s?"
                         r"(\d|$|[_./])|"
                         r"^[hc]\d*(_?(in|0|prev|n))?$", re.IGNORECASE)  # fmt: skip
_TIME = re.compile(r"time|seq|len|step|frame|^t$|^u$|^l$", re.IGNORECASE)
_BATCH = re.compile(r"batch|^n$|^b$|stream|^bs$", re.IGNORECASE)


@dataclass(frozen=True)
class Interface:
    """How a shipped model wants to be called.

    Attributes:
        x: Graph input with the tokens or with features.
        axes: A letter per axis of it: N streams, T time, E features.
        floating: Features, not tokens.
        width: E; 0 for tokens.
        batch: Number of streams that the file insists on; None when any will do.
        time: Number of steps that the file insists on; None when any will do.
        states: Other graph inputs that change from step to step → their batch axis.
        constants: Graph input → the value that it always gets, or `LENGTHS` (the number of steps,
            for every stream) or `ONES`.
        evidence: Why, per input.
    """

    x: str
    axes: str
    floating: bool
    width: int
    batch: int | None
    time: int | None
    states: dict[str, int] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)


def dims_of(value: onnx.ValueInfoProto) -> list[int | str]:
    """Declared extents: a number, or the name of a free axis (empty when it has none)."""
    return [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else d.dim_param
            for d in value.type.tensor_type.shape.dim]  # fmt: skip


class Source:
    """Runs a shipped model for any number of streams and steps that it can take."""

    def __init__(self, model: onnx.ModelProto, interface: Interface) -> None:
        self.interface = interface
        self.inputs = {i.name: i for i in model.graph.input}
        self.outputs = [o.name for o in model.graph.output]
        self._size = model.ByteSize()
        loose = onnx.ModelProto()
        loose.CopyFrom(model)
        for value in (*loose.graph.input, *loose.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.HasField("dim_param"):
                    dim.Clear()  # axes that share a name by mistake must not stop a run
        self.model = loose
        # A quantised LSTM takes a scale for the streams of each thread: as many threads as the
        # written file has, or the two would round otherwise.
        self.session = _runtime.session(loose, threads=None if rounds(loose) else 1)

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(
            helper.tensor_dtype_to_np_dtype(self.inputs[name].type.tensor_type.elem_type)
        )

    def zeros(self, batch: int) -> Feeds:
        """The state inputs for `batch` streams, all zero."""
        return {n: np.zeros(self.state_shape(n, batch), self.dtype(n))
                for n in self.interface.states}  # fmt: skip

    def state_shape(self, name: str, batch: int) -> list[int]:
        shape = dims_of(self.inputs[name])
        shape[self.interface.states[name]] = batch
        sizes = [d for d in shape if isinstance(d, int)]
        if len(sizes) < len(shape):
            raise ModelError(
                f"The size of the state {name!r} is unknown: it is declared as "
                f"{dims_of(self.inputs[name])}, and only its axis of streams may be open."
            )
        if math.prod(sizes) > _LARGEST_INPUT:
            raise ModelError(f"The state {name!r} claims {shape}, more than can be tried.")
        return sizes

    def feeds(self, values: np.ndarray, states: Feeds) -> Feeds:
        """Feeds for tokens ``[N, T]`` or features ``[N, T, E]``."""
        i = self.interface
        letters = "NTE" if i.floating else "NT"
        x, kept = values, letters
        if "T" not in i.axes:
            if values.shape[1] != 1:
                raise ModelError("This model takes one step at a time.")
            x, kept = values[:, 0], letters.replace("T", "")
        x = np.transpose(x, [kept.index(a) for a in i.axes])
        feeds: Feeds = {i.x: np.ascontiguousarray(x, dtype=self.dtype(i.x)), **states}
        for name, value in i.constants.items():
            feeds[name] = self._constant(name, value, *values.shape[:2])
        return feeds

    def _constant(self, name: str, value: Any, batch: int, time: int) -> np.ndarray:
        dtype = self.dtype(name)
        rank = len(self.inputs[name].type.tensor_type.shape.dim)
        if isinstance(value, str):
            if rank == 2:
                return np.ones((batch, time), dtype)
            return np.full((batch,)[:rank], time if value == LENGTHS else 1, dtype)
        shape = [d if isinstance(d, int) else 1 for d in dims_of(self.inputs[name])]
        axis = self.stream_axis(name)
        try:
            array = np.asarray(value, dtype)
            if axis is not None:
                shape[axis] = batch
                array = np.expand_dims(array, axis) if array.ndim == rank - 1 else array
            return np.array(np.broadcast_to(array, shape))
        except (ValueError, TypeError, OverflowError) as error:
            raise ModelError(
                f"The constant {name!r} must be one number, or a list of the shape "
                f"{[d for k, d in enumerate(shape) if k != axis]}."
            ) from error

    def stream_axis(self, name: str) -> int | None:
        """The axis of streams of a constant input; None where all its axes are fixed."""
        dims = dims_of(self.inputs[name])
        if all(isinstance(d, int) for d in dims):
            return None
        x = dims_of(self.inputs[self.interface.x])
        return _batch_axis(self.inputs[name], x[self.interface.axes.index("N")], None)

    def run(self, values: np.ndarray, states: Feeds) -> Feeds:
        """All graph outputs, by name.

        Where the file insists on a number of streams, the missing ones repeat the last.
        """
        batch, count = self.interface.batch, values.shape[0]
        if batch is None or batch == count:
            return self._run(self.feeds(values, states))
        if count > batch:
            raise ModelError(f"This model takes {batch} streams.")
        padded = np.concatenate([values, np.repeat(values[-1:], batch - count, 0)])
        wide = {n: np.concatenate([v, np.repeat(np.take(v, [-1], axis), batch - count, axis)], axis)
                for n, v in states.items() for axis in [self.interface.states[n]]}  # fmt: skip
        return self._run(self.feeds(padded, wide))

    def _run(self, feeds: Feeds) -> Feeds:
        with limited("one run of the model", self._size):
            results = _runtime.run(self.session, self.outputs, feeds)
        return {n: np.asarray(v) for n, v in zip(self.outputs, results, strict=True)}


def interfaces(
    model: onnx.ModelProto, given: dict[str, Any] | None = None
) -> Iterator[tuple[Interface, Source]]:
    """Ways to call `model` that run, the likeliest first.

    Args:
        model: A model without initialisers among its inputs.
        given: What a user said: ``tokens`` or ``features``, ``layout``, ``constants``, and
            ``states``: graph input → batch axis or None.

    Raises:
        ModelError: What was said does not fit the graph.
    """
    given = given or {}
    inputs = {i.name: i for i in model.graph.input}
    for value in inputs.values():
        if not value.type.HasField("tensor_type"):
            raise ModelError(f"The graph input {value.name!r} is not a tensor.")
    for x in _choices(model, inputs, given):
        constants, evidence = _constants(inputs, x, given)
        states = [n for n in inputs if n != x and n not in constants]
        for axes in _layouts(inputs[x], [inputs[n] for n in states], given.get("layout")):
            dims = dims_of(inputs[x])
            at = {a: dims[k] for k, a in enumerate(axes)}
            floating = inputs[x].type.tensor_type.elem_type in FLOAT_TYPES
            width = at.get("E", 0)
            if floating and not isinstance(width, int):
                width = _learned_width(model)
                if not width:
                    continue
            fixed = {a: at[a] if isinstance(at.get(a), int) else None for a in "NT"}
            axis_of = {n: _batch_axis(inputs[n], at.get("N"), given.get("states", {}).get(n))
                       for n in states}  # fmt: skip
            if any(v is None for v in axis_of.values()):
                continue
            batch: Any = fixed["N"]
            if batch is None:
                extents = [dims_of(inputs[n])[axis] for n, axis in axis_of.items()]  # type: ignore[index]
                batch = next((d for d in extents if isinstance(d, int)), None)
            time: Any = fixed["T"] if "T" in axes else 1
            interface = Interface(x, axes, floating, int(width), batch, time, axis_of, {}, evidence)  # type: ignore[arg-type]
            for values in _combinations(constants):
                trial = replace(interface, constants=values)
                source = _runs(model, trial)
                if source is not None:
                    yield trial, source
                    break


def sounds_like_state(name: str) -> bool:
    return bool(_STATE_NAME.search(name))


def unaccounted(model: onnx.ModelProto, given: dict[str, Any]) -> dict[str, str]:
    """Graph inputs that can be neither read step by step nor carried → why."""
    inputs = {i.name: i for i in model.graph.input}
    said = {*given.get("constants", {}), *given.get("states", {})}
    found = {}
    for name, value in inputs.items():
        dims = dims_of(value)
        if name in said or name in _constants(inputs, "", given)[0]:
            continue
        free = sum(isinstance(d, str) for d in dims)
        if not dims:
            found[name] = "has no axes, so it is neither read step by step nor a state"
        elif (
            free > 1
            and value.type.tensor_type.elem_type in FLOAT_TYPES
            and not isinstance(dims[-1], int)
        ):
            found[name] = f"is declared as {dims}, with more than one open axis"
    return found


def partners(model: onnx.ModelProto) -> dict[str, str]:
    """Input → output whose names belong together and whose declared shapes may agree."""
    values = {v.name: v for v in (*model.graph.input, *model.graph.output)}

    def alike(a: str, b: str) -> bool:
        left, right = (values[n].type.tensor_type for n in (a, b))
        dims = dims_of(values[a]), dims_of(values[b])
        return left.elem_type == right.elem_type and (
            not right.HasField("shape") or (len(dims[0]) == len(dims[1]) and all(
                m == n for m, n in zip(*dims, strict=True)
                if isinstance(m, int) and isinstance(n, int)))
        )  # fmt: skip

    pairs = name_pairs([i.name for i in model.graph.input], [o.name for o in model.graph.output])
    return {i: o for i, o in pairs.items() if alike(i, o)}


def _choices(
    model: onnx.ModelProto, inputs: dict[str, onnx.ValueInfoProto], given: dict[str, Any]
) -> list[str]:
    named = given.get("tokens") or given.get("features")
    if named:
        if named not in inputs:
            raise ModelError(f"The roles name {named!r} as an input; the graph has "
                             f"{', '.join(inputs)}.")  # fmt: skip
        return [named]
    fixed = {*given.get("constants", {}), *given.get("states", {})}
    ids, floats = [], []
    for name, value in inputs.items():
        element, rank = value.type.tensor_type.elem_type, len(value.type.tensor_type.shape.dim)
        if name in fixed or rank == 0:
            continue
        if element in (onnx.TensorProto.INT32, onnx.TensorProto.INT64) and rank <= 2:
            if not _is_length(name) and not _is_mask(name):
                ids.append(name)
        elif element in FLOAT_TYPES and rank in (2, 3):
            floats.append(name)
    order = {n: k for k, n in enumerate(_X_NAMES)}
    # What comes out under a name of its kind is a state before it is an input.
    pairs = partners(model)
    ids.sort(key=lambda n: (n in pairs, order.get(n.lower(), 99)))
    floats.sort(key=lambda n: (sounds_like_state(n), n in pairs, order.get(n.lower(), 99)))
    return ids if ids else [*ids, *floats]


def _is_length(name: str) -> bool:
    return bool(re.search(r"len(s|gth|gths)?\d*$|lengths?|seq_?lens?", name, re.IGNORECASE))


def _is_mask(name: str) -> bool:
    return "mask" in name.lower()


def _constants(
    inputs: dict[str, onnx.ValueInfoProto], x: str, given: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    found: dict[str, Any] = {}
    evidence: dict[str, str] = {}
    for name, value in inputs.items():
        if name == x or name in given.get("states", {}):
            continue
        element, rank = value.type.tensor_type.elem_type, len(value.type.tensor_type.shape.dim)
        integer = element in _passes.INTEGERS
        if name in given.get("constants", {}):
            found[name], evidence[name] = given["constants"][name], "as the roles say"
        elif integer and _is_length(name):
            found[name] = LENGTHS
            evidence[name] = "by its name the number of steps: 1 for every stream"
        elif _is_mask(name):
            found[name], evidence[name] = ONES, "by its name a mask: nothing is masked"
        elif element == onnx.TensorProto.BOOL and "train" in name.lower():
            found[name], evidence[name] = False, "by its name the training mode: off"
        elif integer and rank <= 1 and re.search(r"(^|_)(sr|rate|sampling|sample)", name.lower()):
            found[name] = _RATES
            evidence[name] = "by its name a sampling rate: the first usual one with which it runs"
    return found, evidence


def _combinations(constants: dict[str, Any]) -> Iterator[dict[str, Any]]:
    tried = [n for n, v in constants.items() if isinstance(v, tuple)]
    if not tried:
        yield constants
        return
    for rate in _RATES:
        yield {n: rate if n in tried else v for n, v in constants.items()}


def _layouts(
    value: onnx.ValueInfoProto, states: list[onnx.ValueInfoProto], given: str | None
) -> list[str]:
    """Orders of the axes of the input, the likeliest first."""
    dims = dims_of(value)
    floating = value.type.tensor_type.elem_type in FLOAT_TYPES
    choices = {1: ["N"], 2: ["NT", "TN"]} if not floating else {2: ["NE"], 3: ["NTE", "TNE", "NET"]}
    options = choices.get(len(dims), [])
    if given is not None:
        if given not in options:
            raise ModelError(
                f"The layout {given!r} does not fit {value.name!r}, which is declared as {dims}; "
                f"expected one of {', '.join(options) or 'none'}."
            )
        return [given]
    batches: set[Any] = set()
    for state in states:
        batches |= {d for d in dims_of(state) if isinstance(d, str) and d}

    def score(axes: str) -> int:
        points = 0
        for letter, dim in zip(axes, dims, strict=True):
            if isinstance(dim, str) and dim:
                points += 2 * (letter == "N" and (dim in batches or bool(_BATCH.search(dim))))
                points += 2 * (letter == "T" and bool(_TIME.search(dim)) and dim not in batches)
                points -= 3 * (letter == "E")
                points -= 3 * (letter == "T" and (dim in batches or bool(_BATCH.search(dim))))
            elif isinstance(dim, int):
                points += (letter == "E") * 2 - (letter != "E" and dim > 1)
        return points

    return sorted(options, key=score, reverse=True)


def _batch_axis(value: onnx.ValueInfoProto, batch: Any, given: int | None) -> int | None:
    dims = dims_of(value)
    if given is not None:
        return given if given < len(dims) else None
    if not dims:
        return None
    free = [k for k, d in enumerate(dims) if isinstance(d, str)]
    same = [k for k in free if dims[k] and dims[k] == batch]
    named = [k for k in free if _BATCH.search(str(dims[k]))]
    for places in (same, named, free):
        if len(places) == 1:
            return places[0]
    usual = 1 if len(dims) == 3 else 0
    if not free and isinstance(batch, int) and dims[usual] != batch and batch in dims:
        return dims.index(batch)
    return usual if not free or usual in free else None


def _learned_width(model: onnx.ModelProto) -> int:
    """The input width of the first recurrent node: W is ``[direction, gate·unit, width]``."""
    shapes = {t.name: t.dims for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("LSTM", "GRU", "RNN") and node.input[1] in shapes:
            return int(shapes[node.input[1]][-1])
    return 0


def example(interface: Interface, batch: int, time: int, seed: int, top: int = 2) -> np.ndarray:
    """Random tokens ``[N, T]`` below `top`, or features ``[N, T, E]``."""
    rng = np.random.default_rng(seed)
    if interface.floating:
        return rng.standard_normal((batch, time, interface.width)).astype(np.float32)
    return rng.integers(0, max(top, 1), (batch, time))


def _runs(model: onnx.ModelProto, interface: Interface) -> Source | None:
    batch, time = interface.batch or 2, interface.time or 3
    if batch * time * max(interface.width, 1) > _LARGEST_INPUT:
        raise ModelError(
            f"The input {interface.x!r} claims {batch} streams, {time} steps and "
            f"{interface.width} features, more than can be tried."
        )
    if time > _LONGEST:
        raise ModelError(
            f"The input {interface.x!r} insists on {time:,} steps at a time; at most {_LONGEST:,} "
            "can be compared with single steps. Export the model with a free axis of time."
        )
    source = Source(model, interface)
    for name, value in interface.constants.items():
        source._constant(name, value, batch, time)  # one of a wrong shape is told as such
    try:
        source.run(example(interface, batch, time, 0), source.zeros(batch))
    except ModelError:
        return None
    return source


def freeze(model: onnx.ModelProto, source: Source) -> onnx.ModelProto:
    """`model` with its constant inputs stored or, with one value per stream, made from x."""
    interface = source.interface
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    kept = [i for i in graph.input if i.name not in interface.constants]
    before = []
    for name, value in interface.constants.items():
        rank = len(source.inputs[name].type.tensor_type.shape.dim)
        dtype = source.dtype(name)
        if isinstance(value, str) and rank:
            # The extent of x gives the number of streams; T = 1, so the lengths are ones too.
            axis = f"{name}/axis"
            graph.initializer.append(
                numpy_helper.from_array(np.array([interface.axes.index("N")], np.int64), axis)
            )
            before.append(helper.make_node("Shape", [interface.x], [f"{name}/extent"]))
            before.append(helper.make_node("Gather", [f"{name}/extent", axis], [f"{name}/count"]))
            shape = f"{name}/count"
            if rank == 2:
                one = f"{name}/one"
                graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), one))
                shape = f"{name}/shape"
                before.append(helper.make_node("Concat", [f"{name}/count", one], [shape], axis=0))
            element = helper.np_dtype_to_tensor_dtype(dtype)
            fill = helper.make_tensor("value", element, [1], [1])
            before.append(helper.make_node("ConstantOfShape", [shape], [name], value=fill))
        else:
            stored = source._constant(name, value, 1, 1)
            place = source.stream_axis(name)
            if place is None:
                graph.initializer.append(numpy_helper.from_array(stored, name))
                continue
            parts = []
            for k in range(rank):
                parts.append(f"{name}/{k}")
                if k != place:
                    graph.initializer.append(
                        numpy_helper.from_array(np.array([1], np.int64), parts[-1])
                    )
            graph.initializer.append(numpy_helper.from_array(stored, f"{name}/one"))
            axis = f"{name}/axis"
            graph.initializer.append(
                numpy_helper.from_array(np.array([interface.axes.index("N")], np.int64), axis)
            )
            before += [
                helper.make_node("Shape", [interface.x], [f"{name}/extent"]),
                helper.make_node("Gather", [f"{name}/extent", axis], [parts[place]]),
                helper.make_node("Concat", parts, [f"{name}/shape"], axis=0),
                helper.make_node("Expand", [f"{name}/one", f"{name}/shape"], [name]),
            ]
    nodes = [*before, *graph.node]
    del graph.input[:], graph.node[:]
    graph.input.extend(kept)
    graph.node.extend(nodes)
    return result
