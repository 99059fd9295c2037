"""Decide which tensor of a shipped model plays which part, and why."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from mnemoscope.analyzer import _passes, _runtime
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import RESERVED, State
from onnx import helper

from ._parity import Feeds, state_view
from ._shipped_flat import Flat, flatten
from ._shipped_free import free_batch
from ._shipped_output import Output, measure
from ._shipped_roles import is_complete, kind_of, name_pairs
from ._shipped_rounding import rounds, unrounded
from ._shipped_source import (
    Interface,
    Source,
    example,
    freeze,
    interfaces,
    partners,
    sounds_like_state,
    unaccounted,
)
from ._shipped_trace import STREAMS, Part, Place, find_parts, trace_ends, trace_starts

_LOGITS = ("logits", "log_softmax", "log_probs", "logprobs", "outputs", "output", "y", "probs",
           "out")  # fmt: skip
_ORDERINGS = 24

# Two orders of float32 summation; a wrong pairing differs in the first digits.
_SAME = 1e-4
# Where a scale is taken over a whole run, a run of three steps rounds otherwise than three runs:
# by up to 0.3 of a quantised LSTM's state, while a wrong pair differs by about 1.
_SAME_ROUNDED = 0.5


class Undecided(ModelError):
    """Roles that the evidence does not decide.

    Attributes:
        known: What was found all the same, in the form of a file of roles.
    """

    def __init__(self, message: str, known: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.known = known or {}


@dataclass
class Slot:
    """A state tensor of the memory model and the components in it.

    Attributes:
        input, output: Names in the memory model.
        parts: Its components, in their order along the layer axis.
        kept: The tensor is one of the shipped model's own interface.
    """

    input: str
    output: str
    parts: list[Part]
    kept: bool


@dataclass
class Plan:
    """Everything that is needed to write the memory model.

    Attributes:
        rows: Of the table in which tokens are looked up; 0 when unknown.
        probabilities: The output gives the probabilities of the tokens; their logarithm is written.
    """

    interface: Interface
    source: Source
    flat: Flat
    feeds: Feeds
    slots: list[Slot]
    parts: list[Part]
    logits: str
    evidence: dict[str, list[str]] = field(default_factory=dict)
    rows: int = 0
    probabilities: bool = False

    @property
    def rounds(self) -> bool:
        """Whether a scale of rounding is taken from the data: dynamic quantisation."""
        return rounds(self.flat.model)

    @cached_property
    def steady(self) -> Source:
        """The shipped model without its rounding, where that can be had; else as it is."""
        twin = unrounded(self.source.model) if self.rounds else None
        if twin is not None:
            with contextlib.suppress(ModelError):
                return Source(twin, self.interface)
        return self.source

    @cached_property
    def output(self) -> Output:
        """The output that plays the logits."""
        i = self.interface
        turns = []
        for seed in (5, 21, 22):
            x = example(i, STREAMS, 1, seed)
            turns.append({**self.feeds, **{k: v for k, v in self.source.feeds(x, {}).items()
                                           if k == i.x}})  # fmt: skip
        wider = {}
        for name, value in self.feeds.items():
            axis = i.axes.index("N") if name == i.x else i.states[name]
            wider[name] = np.repeat(np.take(value, [0], axis), 3, axis)
        return measure(self.flat.model, self.logits, [self.feeds, *turns], wider)

    @property
    def on_interface(self) -> bool:
        """Whether the shipped model takes and gives every component."""
        return all(p.before is not None and p.after is not None for p in self.parts)

    def read(self, outputs: Feeds, part: Part) -> np.ndarray:
        """A component's new value ``[N, n]`` from the shipped model's outputs."""
        assert part.after is not None
        return _take(outputs[part.after.tensor], part.after)

    def put(self, states: Feeds, part: Part, value: np.ndarray) -> None:
        """Write a component's value ``[N, n]`` into the shipped model's inputs, in place."""
        if part.before is not None:
            _write(states[part.before.tensor], part.before, value)

    def next(self, outputs: Feeds, states: Feeds) -> Feeds:
        """The state inputs of the following step."""
        new = {k: v.copy() for k, v in states.items()}
        for part in self.parts:
            self.put(new, part, self.read(outputs, part))
        return new


def _take(tensor: np.ndarray, place: Place) -> np.ndarray:
    rows = state_view(tensor, place)
    return rows.reshape(rows.shape[0], -1)[:, list(place.order)]


def _write(tensor: np.ndarray, place: Place, value: np.ndarray) -> None:
    rows = state_view(tensor, place)
    flat = np.empty((rows.shape[0], value.shape[1]), tensor.dtype)
    with np.errstate(over="ignore"):  # an infinite state shows where it is compared
        flat[:, list(place.order)] = value
    rows[...] = flat.reshape(rows.shape)


def make_plan(model: onnx.ModelProto, given: dict[str, Any]) -> Plan:
    """The first reading of a model that its evidence supports.

    Raises:
        Undecided: No reading passes, or several do.
        ModelError: The model cannot be run.
    """
    said: dict[str, Any] = dict(given)
    said["states"] = {s["input"]: s.get("batch_axis") for s in given.get("states", [])}
    problems: list[str] = []
    known: list[dict[str, Any]] = []
    found: Plan | None = None
    for interface, source in interfaces(model, said):
        if found is not None and not _rivals(found.interface.x, interface.x):
            continue
        known.append({})
        try:
            plan = _plan(model, interface, source, given, known[-1])
        except Undecided as error:
            problems.append(f"with {interface.x!r} as {interface.axes}: {error}")
            continue
        except ModelError:
            if found is None:
                raise
            continue
        if found is None:
            found = plan
            # Another input can be the one that is read only if this one can be a state: if an
            # output has its name, and not every other input was followed to a state.
            if interface.x not in partners(model) or all(p.ends for p in plan.parts if p.before):
                return plan
            continue
        both = (found.interface.x, plan.interface.x)
        raise Undecided(
            f"{' and '.join(map(repr, both))} both serve as the input that is read, the other as a "
            "state; name the one that is read as tokens or features",
            {},
        )
    if found is not None:
        return found
    if not known:
        raise _not_run(model, given, said)
    reason = "; ".join(dict.fromkeys(problems))[:700]
    best = max(known, key=lambda k: ("states" in k, "logits" in k))
    if best.get("states"):
        reason += (". A state is paired under states; an input that is no state gets its value "
                   "under constants")  # fmt: skip
    raise Undecided(reason, best)


def _rivals(first: str, second: str) -> bool:
    """Whether `second` may be read as well as `first`: not if it alone is called a state."""
    return first != second and (sounds_like_state(first) or not sounds_like_state(second))


def _not_run(model: onnx.ModelProto, given: dict[str, Any], said: dict[str, Any]) -> Undecided:
    """No way was found to run the model: why."""
    odd = unaccounted(model, said)
    if odd:
        name = next(iter(odd))
        reason = (
            f"nothing says what {'; '.join(f'the input {n!r} is: it {w}' for n, w in odd.items())}."
            f' If it always has the same value, give that: "constants": {{"{name}": 1.0}}'
        )
        # What else is open, with some value in its place.
        ones = {**given.get("constants", {}), **dict.fromkeys(odd, 1.0)}
        known: dict[str, Any] = {}
        try:
            make_plan(model, {**given, "constants": ones})
        except Undecided as error:
            reason, known = f"{reason}. Then, {error}", error.known
        except ModelError:
            pass  # nothing more can be said
        return Undecided(reason, {**known, "constants": dict.fromkeys(odd)})
    inputs = {i.name: [d.dim_value or d.dim_param for d in i.type.tensor_type.shape.dim]
              for i in model.graph.input}  # fmt: skip
    shown = ", ".join(f"{n} {s}" for n, s in itertools.islice(inputs.items(), 12))
    return Undecided(
        "No way was found to run the model: none of its inputs serves as tokens (integer, "
        f"[N, T] or [T, N]) or features. Its inputs are {shown:.400}."
        + "".join(
            f" The roles put the streams on axis {axis} of {name!r}."
            for name, axis in said["states"].items()
            if axis is not None
        )
    )


def _plan(
    model: onnx.ModelProto,
    interface: Interface,
    source: Source,
    given: dict[str, Any],
    known: dict[str, Any],
) -> Plan:
    """The plan for one way to call the model; what was found is put into `known` on the way."""
    known["features" if interface.floating else "tokens"] = interface.x
    known["layout"] = interface.axes
    frozen = freeze(model, source)
    feeds, frozen = _step_feeds(frozen, source)
    flat = flatten(frozen, feeds)
    _check_layout(flat, interface, feeds)
    outputs = _outputs(flat, feeds)
    said = given.get("states", [])
    pairs: dict[str, list[str]] = {}
    if said and all(map(is_complete, said)):
        states = [State(**s) for s in said]
        parts = _parts_as_said(states, feeds, outputs, x=interface.x, metadata="metadata" in given)
    else:
        parts = find_parts(flat, feeds, interface.x)
        trace_starts(flat, parts, feeds, interface.states)
        trace_ends(flat, parts, feeds)
        _refuse_computed_starts(parts)
        parts = _traced_and_said(parts, said, outputs)
        parts, pairs = _by_name(source, parts, feeds, outputs, said)
    known["states"] = [_as_roles(p, pairs) for p in parts if p.before]
    evidence = {interface.x: [_said_of_x(interface)]}
    for name, why in interface.evidence.items():
        value = interface.constants[name]
        shown = {"lengths": "the number of steps", "ones": "ones"}.get(str(value), str(value))
        evidence[name] = [f"{why}; stored as {shown}"]
    for note in flat.notes:
        evidence.setdefault("graph", []).append(note)
    taken = {p.after.tensor for p in parts if p.after} | {o for os in pairs.values() for o in os}
    with contextlib.suppress(ModelError):
        known["logits"] = _choose_logits(outputs, taken, given, interface)
    lost = [f"the input {n!r} {list(feeds[n].shape)} has no output of its shape and type"
            for n, o in pairs.items() if not o]  # fmt: skip
    if lost:
        raise Undecided("; ".join(lost))
    if not parts:
        raise Undecided(
            "no recurrent state was found: no LSTM, GRU or RNN node, no Scan or Loop that carries "
            "a value, and no input and output whose names belong together"
        )
    logits = _choose_logits(outputs, taken, given, interface)
    plan = Plan(interface, source, flat, feeds, [], parts, logits, evidence)
    if pairs:
        _settle(plan, pairs)
    prove(plan)
    plan.slots = _slots(plan)
    why = "as the roles say" if "logits" in given else "the output that is no state"
    evidence[logits] = [why]
    plan.rows = _rows_of_table(flat, interface)
    return plan


def _step_feeds(frozen: onnx.ModelProto, source: Source) -> tuple[Feeds, onnx.ModelProto]:
    """One step of two streams, and the graph, edited where it insists on other extents."""
    interface = source.interface
    feeds: Feeds = source.feeds(example(interface, STREAMS, 1, 5), source.zeros(STREAMS))
    feeds = {k: v for k, v in feeds.items() if k not in interface.constants}
    graph = frozen.graph
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.Clear()
    for value in graph.input:
        rank = feeds[value.name].ndim
        element = value.type.tensor_type.elem_type
        value.CopyFrom(helper.make_tensor_value_info(value.name, element, [None] * rank))
    if interface.batch is not None or (interface.time or 1) > 1:
        for value in graph.output:
            element = value.type.tensor_type.elem_type
            rank = len(value.type.tensor_type.shape.dim)
            value.CopyFrom(helper.make_tensor_value_info(value.name, element, [None] * rank))
        del graph.value_info[:]
        frozen = free_batch(frozen, source, feeds)
    try:
        _runtime.evaluate(frozen, [o.name for o in frozen.graph.output], feeds)
    except ModelError as error:
        raise Undecided(f"it does not run for {STREAMS} streams and one step ({error})") from error
    return feeds, frozen


def _check_layout(flat: Flat, interface: Interface, feeds: Feeds) -> None:
    """What the first recurrent node reads is ``[time, batch, width]``."""
    node = next((n for n in flat.model.graph.node
                 if n.op_type in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")), None)  # fmt: skip
    if node is None:
        return
    if node.input[0] in feeds:
        shape = feeds[node.input[0]].shape
    else:
        part = _passes.extract(flat.model, [], [node.input[0]])
        names = {i.name for i in part.graph.input}
        value = _runtime.evaluate(part, [node.input[0]],
                                  {k: v for k, v in feeds.items() if k in names})  # fmt: skip
        shape = value[node.input[0]].shape
    if any(a.name == "layout" and a.i == 1 for a in node.attribute):
        shape = (shape[1], shape[0], *shape[2:])
    if shape[:2] != (1, STREAMS):
        raise Undecided(
            f"the first {node.op_type} then reads {list(shape)} for {STREAMS} streams and 1 step "
            "(expected [time, batch, width])"
        )


def _outputs(flat: Flat, feeds: Feeds) -> Feeds:
    return _runtime.evaluate(flat.model, [o.name for o in flat.model.graph.output], feeds)


def _refuse_computed_starts(parts: list[Part]) -> None:
    """A part whose start is computed from the words has no start of its own."""
    for part in parts:
        if (
            part.before is None
            and part.start
            and part.evidence[-1:]
            and ("could not be followed" in part.evidence[-1])
        ):
            raise Undecided(
                f"the initial state of {part.node} is computed, from a state or from the words, "
                "by more than moving elements"
            )


def _said_of_x(interface: Interface) -> str:
    what = "features" if interface.floating else "token ids"
    free = [f"{n} fixed to {v}" for n, v in (("streams", interface.batch), ("time", interface.time))
            if v is not None and not (n == "time" and "T" not in interface.axes)]  # fmt: skip
    kind = "floating point" if interface.floating else "integer"
    return (f"{what} {list(interface.axes)}: {kind}, runs in this layout"
            + (f" ({', '.join(free)})" if free else ""))  # fmt: skip


def _whole(tensor: str, batch_axis: int, size: int) -> Place:
    return Place(tensor, batch_axis, None, None, 1, tuple(range(size)))


def _traced_and_said(parts: list[Part], said: list[dict[str, Any]], outputs: Feeds) -> list[Part]:
    """Traced parts under what the roles say of their tensors, which must not contradict it."""
    for part in parts:
        if part.before is None:
            continue
        entry = next((e for e in said if e["input"] == part.before.tensor
                      and e.get("layer_index") in (None, part.before.layer_index)), {})  # fmt: skip
        output = entry.get("output")
        if output is not None and part.after is None and output in outputs:
            part.after = replace(part.before, tensor=output)
            part.evidence.append(f"{output!r} continues {part.before.tensor!r}, as the roles say")
        elif output is not None and part.after and part.after.tensor != output:
            raise ModelError(
                f"The roles pair {part.before.tensor!r} with {output!r}, but tracing shows that "
                f"{part.after.tensor!r} holds the new state of {part.node}."
            )
        if part.before.layer_index is None or "layer_index" in entry:
            part.name = entry.get("name", part.name)
            part.kind = entry.get("kind", part.kind)
            part.layer = entry.get("layer", part.layer)
            part.initial = entry.get("initial", part.initial)
            _check_initial(part.name, part.initial, len(part.before.order))
    return parts


def _part_said(entry: dict[str, Any], part: Part, feeds: Feeds, outputs: Feeds) -> Part:
    """A part that tracing did not reach, as the roles say: a whole tensor or a slice of one."""
    assert part.before is not None
    name, shape = part.before.tensor, feeds[part.before.tensor].shape
    output, axis = entry.get("output"), entry.get("batch_axis", part.batch_axis)
    layer, index = entry.get("layer_axis"), entry.get("layer_index")
    called, initial = entry.get("name", name), entry.get("initial")
    before = _placed(called, name, shape, axis, layer, index)
    _check_initial(called, initial, len(before.order))
    after = None
    if output is not None:
        _check_pair(name, shape, output, outputs, called)
        after = replace(before, tensor=output)
    return replace(part, name=entry.get("name", part.name), kind=entry.get("kind", part.kind),
                   layer=entry.get("layer", part.layer), batch_axis=axis, before=before,
                   after=after, initial=initial, size=len(before.order),
                   evidence=["as the roles say"] if after else [])  # fmt: skip


def _as_roles(part: Part, open_: dict[str, list[str]]) -> dict[str, Any]:
    """A part as an entry of the roles, with what is open as null."""
    before, after = part.before, part.after
    assert before is not None
    entry: dict[str, Any] = {"name": part.name, "input": before.tensor,
                             "output": after.tensor if after else None}  # fmt: skip
    if before.tensor in open_:
        entry["candidates"] = open_[before.tensor]
    if after is not None and before != replace(after, tensor=before.tensor):
        return entry  # kept otherwise on the way out: for the tracing to say
    entry |= {"kind": part.kind, "layer": part.layer, "batch_axis": before.batch_axis}
    if before.layer_axis is not None:
        entry |= {"layer_axis": before.layer_axis, "layer_index": before.layer_index}
    return entry


def _by_name(
    source: Source,
    parts: list[Part],
    feeds: Feeds,
    outputs: Feeds,
    said: list[dict[str, Any]],
) -> tuple[list[Part], dict[str, list[str]]]:
    """Parts for the state inputs that tracing did not reach.

    Returns:
        The parts; and input → outputs of its shape, among which only behaviour decides.
    """
    unknown = [s["input"] for s in said if s["input"] not in feeds]
    if unknown:
        raise ModelError(f"The roles name {unknown[0]!r} as input of a state; the graph's inputs "
                         f"are {', '.join(sorted(feeds))}.")  # fmt: skip
    given = {s["input"]: [e for e in said if e["input"] == s["input"]] for s in said}
    traced_in = {p.before.tensor for p in parts if p.before}
    traced_out = {p.after.tensor for p in parts if p.after}
    left = [n for n in source.interface.states if n not in traced_in]
    fixed = {s["output"] for s in said if "output" in s}
    free = [o for o in outputs if o not in traced_out | fixed]
    found = list(parts)
    for part in found:
        _remark_on_names(part)
    if not left:
        return found, {}
    alike = {n: [o for o in free if outputs[o].shape == feeds[n].shape
                 and outputs[o].dtype == feeds[n].dtype] for n in left}  # fmt: skip
    named = {i: o for i, o in name_pairs(left, free).items() if o in alike[i]}
    open_: dict[str, list[str]] = {}
    for number, name in enumerate(left):
        options = [o for o in alike[name] if o not in named.values()]
        rivals = [n for n in left if n not in named and alike[n] == alike[name]]
        axis = source.interface.states[name]
        size = feeds[name].size // STREAMS
        part = Part(_tidy(name), kind_of(name), number, f"input {name!r}", [], None, name, axis,
                    before=_whole(name, axis, size), size=size)  # fmt: skip
        if any("output" in e for e in given.get(name, [])):
            found.extend(_part_said(e, part, feeds, outputs) for e in given[name])
            continue
        if name in given:
            part = _part_said(given[name][0], part, feeds, outputs)
        if name in named:
            part.after = _whole(named[name], axis, size)
            part.evidence.append(f"the names {name!r} and {named[name]!r} belong together, and "
                                 f"their shapes agree: {list(feeds[name].shape)}")  # fmt: skip
        elif len(options) == 1 and len(rivals) == 1 and source.interface.time is None:
            part.after = _whole(options[0], axis, size)
            part.evidence.append(f"{options[0]!r} is the only output with the shape and type of "
                                 f"{name!r}: {list(feeds[name].shape)}")  # fmt: skip
        else:
            open_[name] = options
        found.append(part)
    return found, open_


def _remark_on_names(part: Part) -> None:
    """Say where tracing contradicts the names."""
    for place, after in ((part.before, False), (part.after, True)):
        if place is None or part.reader is None:
            continue
        said = kind_of(place.tensor.lower().removeprefix("next_").removeprefix("new_")
                       if after else place.tensor)  # fmt: skip
        if said in ("cell", "hidden") and said != part.kind:
            part.evidence.append(
                f"the name {place.tensor!r} sounds like a {said} state, but tracing shows the "
                f"{part.kind} state, and tracing wins"
            )


def _tidy(name: str) -> str:
    clean = "".join(c if c.isprintable() and c != "/" else "." for c in name)
    return clean if clean not in RESERVED else f"state.{clean}"


def _check_pair(before: str, shape: tuple[int, ...], after: str, outputs: Feeds, name: str) -> None:
    """Refuse an output that the graph does not have, or that has another shape."""
    if after not in outputs:
        raise ModelError(f"The roles name {after!r} as output of the state {name!r}; the graph's "
                         f"outputs are {', '.join(sorted(outputs))}.")  # fmt: skip
    if outputs[after].shape != shape:
        raise ModelError(
            f"The roles pair {before!r} {list(shape)} with {after!r} "
            f"{list(outputs[after].shape)}; a state must keep its shape."
        )


def _placed(
    name: str,
    tensor: str,
    shape: tuple[int, ...],
    batch: int,
    layer: int | None,
    index: int | None,
) -> Place:
    """Where a state lies, as the roles say; refused if the axes do not fit."""
    axes = [a for a in (batch, layer) if a is not None]
    if max(axes) >= len(shape) or shape[batch] != STREAMS:
        raise ModelError(
            f"The roles' axes of the state {name!r} do not fit {list(shape)} for {STREAMS} streams."
        )
    if layer is not None and index is not None and index >= shape[layer]:
        raise ModelError(f"The roles put the state {name!r} at place {index} of an axis of "
                         f"{shape[layer]}.")  # fmt: skip
    count = shape[layer] if layer is not None else 1
    size = int(np.prod(shape)) // STREAMS // count
    return Place(tensor, batch, layer, index, count, tuple(range(size)))


def _check_initial(name: str, initial: tuple[float, ...] | None, size: int) -> None:
    if initial is not None and len(initial) != size:
        raise ModelError(
            f"The initial value of the state {name!r} has {len(initial)} elements; its tensor has "
            f"{size} for each stream."
        )


def _parts_as_said(
    states: list[State], feeds: Feeds, outputs: Feeds, *, x: str, metadata: bool
) -> list[Part]:
    parts = []
    why = "the file's own metadata says so" if metadata else "as the roles say"
    for s in states:
        if s.input not in feeds:
            raise ModelError(f"The roles name {s.input!r} as input of the state {s.name!r}; the "
                             f"graph's inputs are {', '.join(sorted(feeds))}.")  # fmt: skip
        shape = feeds[s.input].shape
        _check_pair(s.input, shape, s.output, outputs, s.name)
        before = _placed(s.name, s.input, shape, s.batch_axis, s.layer_axis, s.layer_index)
        size = len(before.order)
        _check_initial(s.name, s.initial, size)
        after = replace(before, tensor=s.output)
        parts.append(Part(s.name, s.kind, s.layer, f"state {s.name!r}", [], None, s.input,
                          s.batch_axis, before, after, s.initial, [why], size))  # fmt: skip
    unsaid = [n for n in feeds if n != x and n not in {s.input for s in states}]
    if unsaid:
        raise Undecided(f"the roles leave {', '.join(map(repr, unsaid))} without a part")
    return parts


def _choose_logits(
    outputs: Feeds, taken: set[str], given: dict[str, Any], interface: Interface
) -> str:
    if "logits" in given:
        if given["logits"] not in outputs:
            raise ModelError(f"The roles name {given['logits']!r} as logits; the graph's outputs "
                             f"are {', '.join(outputs)}.")  # fmt: skip
        shape = list(outputs[given["logits"]].shape)
        if 0 in shape:
            raise ModelError(f"The logits {given['logits']!r} hold no numbers: their shape is "
                             f"{shape}. Expected one number for each token.")  # fmt: skip
        return str(given["logits"])
    left = [n for n, v in outputs.items() if n not in taken and v.size
            and np.issubdtype(v.dtype, np.floating)]  # fmt: skip
    if len(left) == 1:
        return left[0]
    named = [n for n in left if n.lower() in _LOGITS]
    if len(named) == 1:
        return named[0]
    raise Undecided(
        f"the outputs that could be the logits are {', '.join(map(repr, left)) or 'none'}; "
        "expected one"
    )


def _settle(plan: Plan, open_: dict[str, list[str]]) -> None:
    """Pair what neither tracing nor names pair, by behaviour: one pairing alone may pass."""
    parts = {p.before.tensor: p for p in plan.parts if p.before and p.before.tensor in open_}
    names = list(open_)
    if plan.interface.time is not None or len(names) > 4:
        raise Undecided(_ambiguous(open_))
    passed = []
    for choice in itertools.islice(itertools.product(*open_.values()), _ORDERINGS):
        if len(set(choice)) < len(choice):
            continue
        for name, output in zip(names, choice, strict=True):
            parts[name].after = _whole(output, parts[name].batch_axis, parts[name].size)
        try:
            prove(plan, quiet=True)
        except Undecided:
            continue
        passed.append(choice)
    if len(passed) != 1:
        raise Undecided(_ambiguous(open_))
    for name, output in zip(names, passed[0], strict=True):
        parts[name].after = _whole(output, parts[name].batch_axis, parts[name].size)
        parts[name].evidence.append(
            f"of the outputs of its shape, {output!r} alone continues {name!r}: several steps in "
            "one run equal runs of one step with this pairing and with no other"
        )


def _ambiguous(open_: dict[str, list[str]]) -> str:
    parts = []
    for name, outputs in open_.items():
        if len(outputs) > 1:
            which = f"{' or '.join(map(repr, outputs))}, which have its shape"
        else:
            which = (
                f"{outputs[0]!r}, the only output of its shape, but neither their names nor "
                "tracing say so, and one step at a time cannot show it"
            )
        parts.append(f"the input {name!r} may belong to {which}")
    return "; ".join(parts)


def prove(plan: Plan, *, quiet: bool = False) -> None:
    """Hold the pairs against the model's behaviour.

    The state output changes with the input; fed back, it changes the next output; and where time
    is free, one run of T steps equals T runs of one step.

    Raises:
        Undecided: A pair fails.
    """
    i, source = plan.interface, plan.source
    streams, time = i.batch or STREAMS, i.time or 1
    first, second = (example(i, streams, time, s, top=8) for s in (21, 22))
    if not i.floating:
        first, second = np.zeros_like(first), np.ones_like(second)
    zero = source.zeros(streams)
    for part in plan.parts:
        if part.initial is not None and part.before is not None:
            plan.put(zero, part, np.tile(np.array(part.initial), (streams, 1)))
    try:
        one, other = source.run(first, zero), source.run(second, zero)
    except ModelError as error:
        raise Undecided(f"it does not run: {error}") from error
    for part in plan.parts:
        if part.after is None or not np.issubdtype(one[part.after.tensor].dtype, np.floating):
            continue
        a, b = plan.read(one, part), plan.read(other, part)
        if np.array_equal(a, b):
            raise Undecided(
                f"the output {part.after.tensor!r} does not change with {i.x!r}, so it is no "
                f"state of {part.node}"
            )
        if not quiet:
            part.evidence.append(f"{part.after.tensor!r} changes with {i.x!r}")
    if not plan.on_interface:
        return
    following = plan.next(one, zero)
    base = source.run(second, following)
    for part in plan.parts:
        changed = {k: v.copy() for k, v in following.items()}
        assert part.before is not None
        assert part.after is not None
        if not np.issubdtype(changed[part.before.tensor].dtype, np.floating):
            continue
        plan.put(changed, part, plan.read(other, part) + 0.25)
        moved = source.run(second, changed)
        if all(np.array_equal(moved[n], base[n]) for n in moved):
            raise Undecided(f"feeding {part.before.tensor!r} back changes no output")
        if not quiet:
            part.evidence.append("fed back, it changes the next step")
    if i.time is not None:
        for part in plan.parts:
            if not part.ends and not quiet:
                part.evidence.append("the file takes a fixed number of steps, so no run of several "
                                     "can show whether the pair is right")  # fmt: skip
        return
    steps = 3
    steady = plan.steady
    x = example(i, streams, steps, 23, top=2)
    whole = steady.run(x, zero)
    states = zero
    for t in range(steps):
        last = steady.run(x[:, t : t + 1], states)
        states = plan.next(last, states)
    for part in plan.parts:
        assert part.after is not None
        a, b = plan.read(whole, part), plan.read(last, part)
        exact = not plan.rounds or steady is not source
        if not _same(a, b, _SAME if exact else _SAME_ROUNDED):
            raise Undecided(
                f"{steps} steps in one run end with another {part.after.tensor!r} than {steps} "
                f"runs of one step: the pairing with {part.before and part.before.tensor!r} "
                "contradicts the model's behaviour"
            )
        if not quiet:
            part.evidence.append(f"one run of {steps} steps equals {steps} runs of one step"
                                 + (" (to its rounding)" if not exact else
                                    " (when its rounding is left out)" if plan.rounds else "")
                                 )  # fmt: skip


def _same(a: np.ndarray, b: np.ndarray, within: float) -> bool:
    scale = float(np.max(np.abs(a), initial=0.0)) or 1.0
    return float(np.max(np.abs(a.astype(float) - b.astype(float)), initial=0.0)) <= within * scale


def _slots(plan: Plan) -> list[Slot]:
    """State tensors of the memory model: the shipped ones where they serve, else own ones."""
    slots: list[Slot] = []
    by_input: dict[str, list[Part]] = {}
    for part in plan.parts:
        by_input.setdefault(part.before.tensor if part.before else f"\0{part.name}", []).append(
            part
        )
    for name, parts in by_input.items():
        parts.sort(key=lambda p: p.before.layer_index or 0 if p.before else 0)
        before, after = [p.before for p in parts], [p.after for p in parts]
        fits = all(
            b is not None and a is not None and b.order == a.order
            and (b.batch_axis, b.layer_axis, b.layer_index, b.count)
            == (a.batch_axis, a.layer_axis, a.layer_index, a.count)
            for b, a in zip(before, after, strict=True)
        )  # fmt: skip
        whole = (
            fits
            and len({a.tensor for a in after if a}) == 1
            and (
                len(parts) == before[0].count  # type: ignore[union-attr]
            )
        )
        if whole:
            slots.append(Slot(name, after[0].tensor, parts, True))  # type: ignore[union-attr]
            continue
        for part in parts:
            if not part.ends:
                raise Undecided(f"the state {part.name!r} is not kept whole by its tensors")
            slots.append(Slot(f"{part.name}_in", f"{part.name}_out", [part], False))
            missing = [w for w, p in (("input", part.before), ("output", part.after)) if p is None]
            part.evidence.append(
                f"added to the graph's interface: it had no {' and no '.join(missing)}"
                if missing
                else "cut at the node: its input and output keep it in different layouts"
            )
    return slots


def _rows_of_table(flat: Flat, interface: Interface) -> int:
    """The number of rows of the table in which tokens are looked up; 0 when unknown."""
    if interface.floating:
        return 0
    stored = {t.name: t for t in flat.model.graph.initializer}
    for node in flat.model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            stored[node.output[0]] = node.attribute[0].t
    held = {interface.x}
    for node in flat.model.graph.node:
        if node.op_type == "Gather" and node.input[1] in held and node.input[0] in stored:
            table = stored[node.input[0]]
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            if len(table.dims) == 2 and axis == 0:
                return int(table.dims[0])
        if node.op_type in ("Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity",
                            "Clip", "Where", "Max", "Min", "Flatten") and (
            set(node.input) & held
        ):  # fmt: skip
            held.update(node.output)
    return 0


__all__ = ["Plan", "Slot", "Undecided", "make_plan", "prove"]
