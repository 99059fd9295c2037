"""Write a shipped ONNX model as a memory model.

The file is run to find out how it wants to be called; its states are traced through one flat time
step, its pairs of inputs and outputs proven by behaviour; the written file is compared with the
shipped one, on the shipped one's own interface.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from mnemoscope.analyzer import _passes, _runtime
from mnemoscope.analyzer._limits import limited
from mnemoscope.analyzer._version import __version__
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.linearize import build_step
from mnemoscope.analyzer.model import MemoryModel, load_proto
from mnemoscope.analyzer.roles import OPSET, ROLES_KEY, Level, Roles, State, Vocabulary, read_roles
from onnx import TensorProto, helper, numpy_helper

from ._embedding import EMBEDDING
from ._graph import rename_values
from ._memory_model import build_memory_model, hash_weights, require_writable, save
from ._parity import LONG, Feeds, Parity, ParityError, check_parity, check_sequences, state_view
from ._report import Report
from ._shipped_flat import opset_of, refuse_backward, without_functions
from ._shipped_output import (
    append_logarithm,
    are_log_probabilities,
    are_probabilities,
    bounded,
    logarithm,
)
from ._shipped_plan import Plan, Slot, Undecided, make_plan
from ._shipped_roles import RolesNeeded, read_given, write_template
from ._shipped_rounding import unrounded
from ._shipped_source import Source
from ._vocabulary import VocabularyOptions

__all__ = ["Report", "RolesNeeded", "export"]

_LARGEST_TABLE = 2**28  # bytes
_FEATURES = "mnemoscope/features"

# Half precision keeps 11 bits; sums over a few hundred products and a few steps lose some of them.
_HALF = 2e-2
# One tread of eight bits is 1/255 of the range: where two runs differ in the last bit of a float,
# a rounding may fall to either side. Over a sequence the scales differ too.
_ROUNDED, _ROUNDED_SEQUENCE = 1e-2, 0.1


def export(
    model: str | os.PathLike[str] | onnx.ModelProto,
    path: str | os.PathLike[str],
    *,
    roles: str | os.PathLike[str] | dict[str, Any] | None = None,
    vocabulary: str | os.PathLike[str] | Sequence[str] | Vocabulary | None = None,
    level: Level | None = None,
    unknown: str | None = None,
    end_of_line: str | None = None,
    features: str | os.PathLike[str] | np.ndarray | None = None,
    seed: int | None = None,
    tolerance: float | None = None,
) -> Report:
    """Write a shipped ONNX model as a memory model; None always means: find out.

    Args:
        model: The shipped file (external data beside it), or the model itself.
        path: The ONNX file to write.
        roles: JSON file (see ``docs/shipped.md``) or its content: what inference cannot decide.
        vocabulary: File with the tokens in any form that `read_tokens` knows, or the tokens.
        level: ``word`` or ``char``.
        unknown: Token that stands for all that the vocabulary lacks.
        end_of_line: Token that ends a line.
        features: For a model that reads floating-point features: table ``[V, E]``, or a ``.npy``
            file with one; token k is its row k. None takes the identity: token k is the unit
            vector along feature k.
        seed: Of the random tokens and states of the comparison; None is 0.
        tolerance: Largest difference from the shipped file, relative to how much each tensor
            varies (`Parity`); None is 1e-5 for float32.

    Returns:
        What was found, and why.

    Raises:
        RolesNeeded: The evidence does not decide; ``<path>.roles.json`` was written for a user to
            complete.
        ModelError: The model cannot be used, or the written file would not agree with it; nothing
            is written then.
    """
    said = VocabularyOptions(vocabulary, level, unknown, end_of_line)
    return write(model, path, said, roles=roles, features=features, seed=seed, tolerance=tolerance)


def write(
    model: str | os.PathLike[str] | onnx.ModelProto,
    path: str | os.PathLike[str],
    said: VocabularyOptions,
    *,
    keras_reserved: bool = False,
    roles: str | os.PathLike[str] | dict[str, Any] | None = None,
    features: str | os.PathLike[str] | np.ndarray | None = None,
    seed: int | None = None,
    tolerance: float | None = None,
) -> Report:
    """As `export`; `said` is what a user says of the tokens, as in `VocabularyOptions.make`."""
    target = require_writable(path)
    given = read_given(roles)
    file = None if isinstance(model, onnx.ModelProto) else Path(model)
    with limited("reading the model", file.stat().st_size if file and file.is_file() else 0):
        proto = model if isinstance(model, onnx.ModelProto) else load_proto(Path(model))
        _passes.check_finite(proto)
        refuse_backward(proto)
        original = without_functions(proto)
    if not given:
        given, stored = _from_metadata(proto)
        if said.source is None:
            said = replaced(said, source=stored)
    half = _is_half(original)
    wide = _passes.to_precision(original, np.float32) if half else original
    try:
        plan = make_plan(wide, given)
    except Undecided as error:
        raise _roles_needed(error, target, given, original) from error
    notes = []
    if half:
        notes.append("The shipped file computes in half precision; the written one in float32.")
    table, size = _tokens(plan, features, notes)
    free = plan.output.width != size
    if free:
        notes.append(
            f"The output {plan.logits!r} has {plan.output.width:,} numbers for {size:,} tokens: it "
            "is no distribution over them. It plays the logits, and state gradients do not use it; "
            "nothing that needs the probability of a token can be computed."
        )
        if said.source is None:
            numbers = tuple(map(str, range(size)))
            said = replaced(said, source=numbers, level=said.level or "word")
            notes.append('No --vocabulary: the tokens are called "0", "1", ... by their ids.')
    elif are_probabilities(plan.output.rows):
        plan.probabilities = True
        plan.evidence[plan.logits].append(
            "gives probabilities (not negative, 1 in sum): their logarithm is written as logits"
        )
    words = said.make(size, keras_reserved=keras_reserved, notes=notes)
    step, slots, named = _assemble(plan, table, given.get("embedding"))
    states = _states(plan, slots)
    described = Roles(
        tokens="tokens",
        embedding=EMBEDDING,
        states=states,
        logits="logits",
        normalized=plan.probabilities or are_log_probabilities(plan.output.rows),
        source={
            "framework": f"onnx ({proto.producer_name or 'unknown producer'})"[:100],
            "framework_version": proto.producer_version[:100],
            "exporter_version": __version__,
            "weights_sha256": hash_weights(
                (f"{k}", numpy_helper.to_array(t)) for k, t in enumerate(_passes.weights(original))
            ),
        },
    )
    inputs = {i.name: i.name for i in step.graph.input}
    outputs = {o.name: o.name for o in step.graph.output}
    written = build_memory_model(
        step, described, words, inputs=inputs, outputs=outputs,
        embedding=named,
    )  # fmt: skip
    if free:
        _free_width(written)
    parity = _compare(written, plan, table, size, notes, seed or 0, tolerance)
    if half:
        _compare_half(written, original, plan, table, size, notes, seed or 0)
    _check_analyzer(written, target)
    save(written, target)
    width = next(o for o in written.graph.output if o.name == EMBEDDING)
    return Report(
        path=str(target),
        tokens=f"{plan.interface.x} [{', '.join(plan.interface.axes)}]",
        logits=plan.logits,
        vocabulary_size=size,
        embedding_size=width.type.tensor_type.shape.dim[-1].dim_value,
        normalized=described.normalized,
        states=states,
        initial="as the file starts" if any(s.initial is not None for s in states) else "zeros",
        route="the shipped graph",
        parity=parity,
        notes=tuple(notes),
        evidence=_evidence(plan),
    )


def _from_metadata(proto: onnx.ModelProto) -> tuple[dict[str, Any], Vocabulary | None]:
    """Roles and vocabulary that the file itself carries."""
    if not any(p.key == ROLES_KEY for p in proto.metadata_props):
        return {}, None
    roles, vocabulary = read_roles(proto)
    states = [{k: v for k, v in asdict(s).items() if v is not None} for s in roles.states]
    given = {"tokens": roles.tokens, "layout": "NT", "logits": roles.logits,
             "embedding": roles.embedding, "states": states, "metadata": True}  # fmt: skip
    return given, vocabulary


def _roles_needed(
    error: Undecided, target: Path, given: dict[str, Any], model: onnx.ModelProto
) -> RolesNeeded:
    """What is open, after writing a template with what is known beside `target`."""
    reason = f"The roles of this model cannot be decided: {str(error).rstrip('.')}."
    template = target.with_name(f"{target.name}.roles.json")
    if os.path.lexists(template):
        # It may hold a user's work.
        return RolesNeeded(
            f"{reason} {template} exists and was left as it is: complete it and give it with "
            "--roles, or move it away for a new template."
        )
    said = {k: v for k, v in given.items() if k not in ("metadata", "version")}
    known = {**said, **error.known}
    known["constants"] = {**error.known.get("constants", {}), **said.get("constants", {})}
    write_template(template, known, [i.name for i in model.graph.input],
                   [o.name for o in model.graph.output])  # fmt: skip
    return RolesNeeded(
        f"{reason} A template was written to {template}: complete it and give it with --roles."
    )


def _is_half(model: onnx.ModelProto) -> bool:
    kinds = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return any(t.data_type in kinds for t in _passes.weights(model)) or any(
        i.type.tensor_type.elem_type in kinds for i in model.graph.input
    )


def _tokens(plan: Plan, features: Any, notes: list[str]) -> tuple[np.ndarray | None, int]:
    """The table of features ``[V, E]``, for a model that reads such, and V."""
    i = plan.interface
    if i.floating:
        table = _table(features, i.width)
        what = (
            f"token k is row k of the given table of {len(table):,}" if features is not None
            else f"token k is the unit vector along feature k of {i.width:,} (one-hot)"
        )  # fmt: skip
        notes.append(
            f"The input {i.x!r} is floating point, so it is itself the embedding: {what}. State "
            f"gradients are derivatives with respect to {i.x!r}."
        )
        return table, len(table)
    if features is not None:
        raise ModelError(f"This model reads token ids ({i.x!r}); it has no use for --features.")
    return None, plan.rows or plan.output.width


def _table(features: Any, width: int) -> np.ndarray:
    if features is None:
        if width * width * 4 > _LARGEST_TABLE:
            raise ModelError(
                f"The input has {width:,} features, too many for one unit vector each; give "
                "rows of your own with --features."
            )
        return np.eye(width, dtype=np.float32)
    if isinstance(features, np.ndarray):
        table = features
    else:
        try:
            table = np.load(os.fspath(features), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ModelError(
                f"Cannot read the features {os.fspath(features)!r}: expected a .npy file with a "
                f"table [V, {width}] ({str(error)[:200]})."
            ) from error
    if (
        not isinstance(table, np.ndarray)
        or table.ndim != 2
        or table.shape[1] != width
        or (not len(table) or not np.issubdtype(table.dtype, np.number))
    ):
        shape = list(getattr(table, "shape", []))
        raise ModelError(f"The features must be a table [V, {width}] of numbers, found {shape}.")
    table = table.astype(np.float32)
    if not np.isfinite(table).all():
        raise ModelError("The features hold NaN or infinity; every row must be finite.")
    return table


def _assemble(
    plan: Plan, table: np.ndarray | None, embedding: str | None
) -> tuple[onnx.ModelProto, list[Slot], str | None]:
    """The step graph that `build_memory_model` takes, and the embedding's name in it, if said."""
    i = plan.interface
    model = _converted(plan.flat.model)
    graph = model.graph
    # Names of the contract must be free for what they mean there.
    new = {name: f"mnemoscope/given/{name}" for name in ("tokens", "logits", "embedding")}
    # A file that an exporter wrote has these already.
    computed = [o for n in graph.node for o in n.output]
    new.update({o: f"given.{o}" for o in computed if o.startswith(f"{EMBEDDING}.")})
    for name in ("layout", "logits/shape", "logits/first", "table", "features", "logarithm"):
        new[f"mnemoscope/{name}"] = f"mnemoscope/given/{name}"
    rename_values(graph.node, new)
    for node in graph.node:
        node.name = f"given.{node.name}" if node.name else ""
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = new.get(value.name, value.name)
    x, logits = new.get(i.x, i.x), new.get(plan.logits, plan.logits)

    def ints(name: str, values: list[int]) -> str:
        full = f"mnemoscope/{name}"
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), full))
        return full

    before: list[onnx.NodeProto] = []
    after: list[onnx.NodeProto] = []
    info = helper.make_tensor_value_info
    element = TensorProto.INT64
    source = "tokens"
    if table is not None:
        stored = "mnemoscope/table"
        graph.initializer.append(numpy_helper.from_array(table, stored))
        before.append(helper.make_node("Gather", [stored, source], [_FEATURES]))
        source = _FEATURES
    else:
        element = next(v.type.tensor_type.elem_type for v in graph.input if v.name == x)
    sizes = {"N": -1, "T": 1, "E": i.width}
    before.append(
        helper.make_node("Reshape", [source, ints("layout", [sizes[a] for a in i.axes])], [x])
    )
    inputs = [info("tokens", element, ["batch", 1])]
    outputs = []
    axis, width = plan.output.axis, plan.output.width
    perm = [axis, *(a for a in range(len(plan.output.shape)) if a != axis)]
    if plan.probabilities:
        logits = append_logarithm(graph, logits)
    after.append(helper.make_node("Transpose", [logits], ["mnemoscope/logits/first"], perm=perm))
    after.append(
        helper.make_node("Reshape", ["mnemoscope/logits/first",
                                     ints("logits/shape", [-1, 1, width])], ["logits"])
    )  # fmt: skip
    outputs.append(info("logits", TensorProto.FLOAT, ["batch", 1, width]))
    slots = []
    values = _native(plan)
    nodes = graph.node
    for slot in plan.slots:
        # Safe names: those of the contract and of what the graph computes stay apart.
        wide = replaced(slot, input=new.get(slot.input, slot.input),
                        output=new.get(slot.output, slot.output))  # fmt: skip
        shape: list[Any]
        if slot.kept:
            shape = list(plan.feeds[slot.input].shape)
            kind = plan.feeds[slot.input].dtype
            shape[slot.parts[0].before.batch_axis] = "batch"  # type: ignore[union-attr]
            if wide.output in {v.name for v in (*graph.input,)}:
                after.append(helper.make_node("Identity", [wide.output], [f"{wide.output}/out"]))
                wide = replaced(wide, output=f"{wide.output}/out")
        else:
            part = slot.parts[0]
            shape, kind = list(values[part.ends[0]].shape), values[part.ends[0]].dtype
            shape[part.batch_axis] = "batch"
            if part.reader is not None:
                node, place = nodes[_index_of(nodes, part.ends[0])], part.reader[1]
                while len(node.input) <= place:
                    node.input.append("")
                node.input[place] = wide.input
            else:
                producer = nodes[_index_of(nodes, part.start)]
                producer.output[0] = f"{part.start}/unused"
                rename_values(nodes, {part.start: wide.input})
            after.append(helper.make_node("Identity", [part.ends[0]], [wide.output]))
        onnx_kind = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        inputs.append(info(wide.input, onnx_kind, shape))
        outputs.append(info(wide.output, onnx_kind, shape))
        slots.append(wide)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.input[:], result.graph.output[:]
    del result.graph.value_info[:]
    result.graph.node.extend([*before, *nodes, *after])
    result.graph.input.extend(inputs)
    result.graph.output.extend(outputs)
    asked = [o.name for o in outputs]
    produced = {o for n in result.graph.node for o in n.output}
    if embedding is not None and new.get(embedding, embedding) in produced:
        asked.append(new.get(embedding, embedding))
    needed = _passes.extract(result, [], asked)
    kept = {n.output[0] for n in needed.graph.node}
    nodes_kept = [n for n in result.graph.node if n.output[0] in kept]
    del result.graph.node[:]
    result.graph.node.extend(nodes_kept)
    if table is not None:
        return result, slots, _FEATURES
    return result, slots, None if embedding is None else new.get(embedding, embedding)


def _index_of(nodes: Any, output: str) -> int:
    return next(k for k, n in enumerate(nodes) if output in n.output)


def _native(plan: Plan) -> Feeds:
    names = [p.ends[0] for s in plan.slots if not s.kept for p in s.parts]
    return _runtime.evaluate(plan.flat.model, list(dict.fromkeys(names)), plan.feeds)


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    """The flat graph at the opset of memory models."""
    version = opset_of(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if version == OPSET:
        return result
    others = [o for o in model.opset_import if o.domain not in ("", "ai.onnx")]
    try:
        converted = onnx.version_converter.convert_version(result, OPSET)
    except Exception as error:  # its errors share no base class
        first = (str(error).strip().splitlines() or ["no message"])[0][:200]
        raise ModelError(
            f"The model is written at opset {version} and cannot be converted to {OPSET} "
            f"({first}). Export it again at opset {OPSET}."
        ) from error
    known = {o.domain for o in converted.opset_import}
    converted.opset_import.extend(o for o in others if o.domain not in known)
    return converted


def _states(plan: Plan, slots: list[Slot]) -> tuple[State, ...]:
    states = []
    for slot in slots:
        for part in slot.parts:
            place = part.before if slot.kept else None
            states.append(
                State(
                    name=part.name,
                    input=slot.input,
                    output=slot.output,
                    kind=part.kind,
                    layer=part.layer,
                    batch_axis=place.batch_axis if place else part.batch_axis,
                    layer_axis=place.layer_axis if place else None,
                    layer_index=place.layer_index if place else None,
                    initial=part.initial,
                )
            )
    order = {p.name: k for k, p in enumerate(plan.parts)}
    return tuple(sorted(states, key=lambda s: order[s.name]))


def _free_width(model: onnx.ModelProto) -> None:
    """Leave the width of the logits open: the vocabulary alone says how many tokens there are."""
    for output in model.graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[-1].dim_param = "output"


def _rows(table: np.ndarray | None, ids: np.ndarray) -> np.ndarray:
    return ids if table is None else table[ids]


def _compare(
    written: onnx.ModelProto,
    plan: Plan,
    table: np.ndarray | None,
    size: int,
    notes: list[str],
    seed: int,
    tolerance: float | None,
) -> Parity:
    """Hold the written model against the shipped one, by every way that the latter allows."""
    i, source = plan.interface, plan.source
    if plan.probabilities:
        written = bounded(written, "logits")
    batches = (1, 2, 5) if i.batch is None else tuple(n for n in (1, 2, 5) if n <= i.batch)
    twin = unrounded(written) if plan.steady is not source else None
    roles, _ = read_roles(written)
    # Without the rounding, where the file rounds and that can be left out.
    exact, shipped = (written, source) if twin is None else (twin, plan.steady)

    def steps(
        model: onnx.ModelProto, source: Source, streams: Sequence[int], within: float | None
    ) -> Parity:
        """Single steps on the shipped model's own interface."""
        return check_parity(model, _reference(plan, source, table, roles), vocabulary_size=size,
                            batches=streams, tolerance=within, seed=seed)  # fmt: skip

    def sequences(
        model: onnx.ModelProto, source: Source, count: int, streams: Sequence[int],
        within: float | None, long: int | None = None,
    ) -> Parity:  # fmt: skip
        """Whole sequences from their start."""
        return check_sequences(
            model, lambda ids, _: (_sequence(plan, source, table, ids), {}), vocabulary_size=size,
            lengths=(count,), long=long, batches=streams, from_random=False, tolerance=within,
            seed=seed,
        )  # fmt: skip

    found = []
    single = i.time in (None, 1)
    if plan.rounds and single:
        # One stream: a scale for all of a batch lets streams influence one another.
        near = _ROUNDED if tolerance is None else tolerance
        found.append(
            steps(written, source, batches[:1], near) if plan.on_interface
            else sequences(written, source, 1, batches[:1], near)
        )  # fmt: skip
    if plan.on_interface and single and not (plan.rounds and twin is None):
        found.append(steps(exact, shipped, batches, tolerance))
    if plan.rounds:
        notes.append(
            "The file rounds with scales taken from each run, so steps round otherwise than whole "
            "sequences; exact derivatives do not exist (use --method fd with a wide --step). "
            f"Single steps were compared with the rounding ({_ROUNDED:g} allowed unless "
            "--tolerance says otherwise)"
            + (", and whole sequences without it." if twin is not None else ".")
        )
    if i.time != 1:
        rough = plan.rounds and twin is None
        within = _ROUNDED_SEQUENCE if rough and tolerance is None else tolerance
        # A file that insists on many steps is slow to follow.
        few = batches[:1] if rough or (i.time or 1) > LONG else batches
        long = LONG if i.time is None else None
        found.append(sequences(exact, shipped, i.time or 6, few, within, long))
        if long:
            plan.evidence[plan.logits].append(
                f"one run of {long} steps gives the logits of as many single steps"
            )
        if not plan.on_interface:
            notes.append(
                "States were added to the graph's interface, so the written file was compared "
                "with the shipped one over whole sequences from their start."
            )
    if not found:
        found.append(sequences(exact, shipped, 1, batches, tolerance))
        notes.append(
            "The shipped file takes one step and does not carry its state: only that one step "
            "could be compared."
        )
    merged: dict[str, float] = {}
    for parity in found:
        for name, value in parity.differences.items():
            merged[name] = max(merged.get(name, 0.0), value)
    return Parity(merged, found[0].tolerance, max(p.steps for p in found), batches)


def _reference(plan: Plan, source: Source, table: np.ndarray | None, roles: Roles):
    """One step of the shipped model, under the names of the written one."""
    states = {s.name: s for s in roles.states}

    def step(feeds: Feeds) -> Feeds:
        ids = feeds[roles.tokens]
        own = source.zeros(len(ids))
        for part in plan.parts:
            rows = state_view(feeds[states[part.name].input], states[part.name])
            rows = rows.reshape(len(ids), -1)
            assert part.before is not None
            kept = states[part.name].layer_axis is not None or any(
                s.kept and part in s.parts for s in plan.slots
            )
            plan.put(own, part, rows[:, list(part.before.order)] if kept else rows)
        outputs = source.run(_rows(table, ids), own)
        result = {roles.logits: _step_logits(plan, outputs, len(ids), 1)}
        for part in plan.parts:
            state = states[part.name]
            assert part.after is not None
            kept = any(s.kept and part in s.parts for s in plan.slots)
            value = plan.read(outputs, part)[: len(ids)]
            if kept:
                whole = np.empty_like(value)
                whole[:, list(part.after.order)] = value
                value = whole
            if state.output not in result:
                result[state.output] = np.zeros_like(feeds[state.input])
            target = state_view(result[state.output], state)
            target[...] = value.reshape(target.shape)
        return result

    return step


def _step_logits(plan: Plan, outputs: Feeds, count: int, steps: int) -> np.ndarray:
    """The shipped logits as ``[N, T, V]``, or ``[N, 1, V]`` where only the last step is given."""
    value = outputs[plan.logits]
    streams = plan.interface.batch or count
    width, axis = plan.output.width, plan.output.axis
    if plan.probabilities:
        value = logarithm(value)
    given = value.size // (streams * width)
    if value.size != streams * width * given or given not in (1, steps):
        raise ParityError(
            f"The output {plan.logits!r} is {list(value.shape)} for {streams} streams and {steps} "
            f"steps; expected {width} numbers for each, or for the last step alone."
        )
    if value.ndim > axis and value.shape[axis] == streams:
        first = np.moveaxis(value, axis, 0)
        rest = first.shape[1:]
        single = [n for k, n in enumerate(plan.output.shape) if k != axis]
        if given == 1:
            return np.ascontiguousarray(first[:count].reshape(count, 1, width))
        times = [a for a, (m, n) in enumerate(zip(rest, single, strict=True)) if m != n]
        if len(times) == 1 and rest[times[0]] == steps:
            moved = np.moveaxis(first, times[0] + 1, 1)
            return np.ascontiguousarray(moved[:count].reshape(count, steps, width))
    # Streams and steps in one axis: in the order of the input's axes, as frameworks flatten.
    if value.shape[axis] == streams * given:
        rows = np.moveaxis(value, axis, 0).reshape(streams * given, width)
        time_first = plan.interface.axes.find("T") < plan.interface.axes.find("N")
        shape = (given, streams, width) if time_first else (streams, given, width)
        rows = rows.reshape(shape)
        return np.ascontiguousarray((rows.swapaxes(0, 1) if time_first else rows)[:count])
    raise ParityError(f"The layout of the output {plan.logits!r} {list(value.shape)} is unknown.")


def _sequence(plan: Plan, source: Source, table: np.ndarray | None, ids: np.ndarray) -> np.ndarray:
    """The shipped model's logits over whole sequences from their start, ``[N, T or 1, V]``."""
    states = source.zeros(len(ids))
    for part in plan.parts:
        if part.initial is not None and part.before is not None:
            plan.put(states, part, np.tile(np.array(part.initial), (len(ids), 1)))
    outputs = source.run(_rows(table, ids), states)
    return _step_logits(plan, outputs, len(ids), ids.shape[1])


def _compare_half(
    written: onnx.ModelProto,
    original: onnx.ModelProto,
    plan: Plan,
    table: np.ndarray | None,
    size: int,
    notes: list[str],
    seed: int,
) -> None:
    """The written model against the shipped one in its own half precision."""
    source = Source(original, plan.interface)
    steps = plan.interface.time or 6
    # A softmax in half precision keeps few digits of what is smaller.
    lowest = float(np.log(1e-4)) if plan.probabilities else None
    worst = check_sequences(
        written, lambda ids, _: (_sequence(plan, source, table, ids).astype(np.float32), {}),
        vocabulary_size=size, lengths=(steps,), batches=(1,), from_random=False,
        lowest=lowest, tolerance=_HALF, seed=seed,
    ).worst  # fmt: skip
    notes.append(f"In its own half precision the shipped file differs by {worst:.1e}.")


def _check_analyzer(written: onnx.ModelProto, target: Path) -> None:
    """Let the analyzer build its step, before the file is put in place."""
    roles, vocabulary = read_roles(written)
    build_step(MemoryModel(target, written, roles, vocabulary))


def _evidence(plan: Plan) -> tuple[tuple[str, str], ...]:
    lines = [(name, "; ".join(dict.fromkeys(why))) for name, why in plan.evidence.items()]
    for part in plan.parts:
        lines.append((part.name, "; ".join(dict.fromkeys(part.evidence))))
    return tuple(lines)
