"""The step graph: one time step as a function of flat vectors.

``(embedding [batch, E], state [batch, n] ...) → (state [batch, n] ...)``, whatever the layout of
the tensors that carry the states in the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .. import _limits, _memory, _passes, _runtime
from .._double import write_out
from ..errors import ModelError
from ..model import MemoryModel
from ..roles import OPSET, State
from ._lower import inline, lower, time_first

EMBEDDING = "embedding"
"""The name of the embedding among the sources of a derivative."""

_COPIES = 8  # of the states, while a step is built and tried

# Positions linearised in one call: enough that the calls themselves cost nothing, few enough that
# what they compute with stays about as large as a processor's cache.
_TOGETHER, _TOGETHER_BYTES = 32, 2**24


@dataclass(frozen=True)
class Component:
    """A differentiated or carried state of the step graph.

    Attributes:
        state: Its role.
        size: Elements per stream.
        input: Graph input ``[batch, size]``.
        output: Graph output ``[batch, size]``.
        dtype: Element type; integer components are carried, not differentiated.
    """

    state: State
    size: int
    input: str
    output: str
    dtype: np.dtype

    @property
    def name(self) -> str:
        """The state's name."""
        return self.state.name

    @property
    def differentiable(self) -> bool:
        """Whether the component has a derivative."""
        return bool(np.issubdtype(self.dtype, np.floating))

    def initial(self) -> np.ndarray:
        """The value at the start of a stream, ``[1, size]``."""
        if self.state.initial is None:
            return np.zeros((1, self.size), self.dtype)
        given = np.asarray(self.state.initial, np.float64)
        if given.size != self.size:
            raise ModelError(
                f"The initial value of state {self.name} has {given.size} elements, its tensor "
                f"has {self.size}."
            )
        with np.errstate(over="ignore", invalid="ignore"):
            value = given.astype(self.dtype)
            kept = np.isfinite(value) if self.differentiable else value == given
        if not kept.all():
            raise ModelError(
                f"The initial value of state {self.name} holds {given[~kept][0]:g}, which "
                f"{self.dtype} cannot."
            )
        return value.reshape(1, -1)


@dataclass(frozen=True)
class Step:
    """One time step of a memory model in one precision.

    Attributes:
        model: ONNX graph with inputs `embedding`, every component's `input` and, where the graph
            reads the tokens past the embedding, `tokens`.
        embedding: Graph input ``[batch, E]``.
        embedding_size: E.
        components: All states, in the order of the roles.
        tokens: Graph input ``[batch, 1]`` integers; None when the core does not read them.
        tokens_dtype: Their type.
        dtype: Of the computation.
        prefix: A prefix that is free for further names.
        batch: The batch size that the graph insists on; None when any will do.
    """

    model: onnx.ModelProto
    embedding: str
    embedding_size: int
    components: tuple[Component, ...]
    tokens: str | None
    tokens_dtype: np.dtype
    dtype: np.dtype
    prefix: str
    batch: int | None

    @property
    def differentiable(self) -> tuple[Component, ...]:
        """The components that have a derivative."""
        return tuple(c for c in self.components if c.differentiable)

    @property
    def sources(self) -> dict[str, tuple[str, int]]:
        """What derivatives are taken with respect to: name → graph input, size."""
        states = {c.name: (c.input, c.size) for c in self.differentiable}
        return {**states, EMBEDDING: (self.embedding, self.embedding_size)}

    def example(self, batch: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
        """Feeds that the graph accepts: random embeddings, initial states."""
        rng = np.random.default_rng(seed)
        feeds = {c.input: np.repeat(c.initial(), batch, 0).astype(c.dtype) for c in self.components}
        x = rng.standard_normal((batch, self.embedding_size)) * 0.1
        feeds[self.embedding] = x.astype(self.dtype)
        if self.tokens:
            feeds[self.tokens] = np.zeros((batch, 1), self.tokens_dtype)
        return feeds


def build_step(model: MemoryModel, dtype: np.dtype | type = np.float32) -> Step:
    """Cut a memory model down to its recurrent core at time = 1.

    Raises:
        ModelError: The core reads an input that no role covers, or does not run.
    """
    with _limits.limited("one step of the model", model.proto.ByteSize()):
        return _build_step(model, np.dtype(dtype))


def _build_step(model: MemoryModel, dtype: np.dtype) -> Step:
    roles = model.roles
    proto = model.proto
    if any(o.domain in ("", "ai.onnx") and o.version < 13 for o in proto.opset_import):
        try:
            proto = onnx.version_converter.convert_version(proto, OPSET)
        except Exception as error:
            raise ModelError(
                "The model's operators are older than opset 13 and cannot be converted: "
                f"{_runtime.said(error)}. Export it again at opset {OPSET}."
            ) from error
    outputs = list(dict.fromkeys(s.output for s in roles.states))
    core = time_first(inline(_passes.extract(proto, [roles.embedding], outputs)))
    core = _passes.to_precision(core, dtype)
    prefix = _passes.fresh_prefix(core, "step")
    graph = core.graph
    wanted = {s.input for s in roles.states} | {roles.embedding, roles.tokens}
    strange = [i.name for i in graph.input if i.name not in wanted]
    if strange:
        raise ModelError(
            f"The recurrent core reads the input{'s' * (len(strange) > 1)} {', '.join(strange)}, "
            "which no role covers; list it among the states or store it as a constant."
        )
    if roles.embedding not in {i.name for i in graph.input}:
        raise ModelError(
            f"No state depends on the embedding {roles.embedding!r}: there is nothing to remember."
        )
    types = {i.name: i.type.tensor_type.elem_type for i in proto.graph.input}
    tokens = next((i for i in graph.input if i.name == roles.tokens), None)
    size = int(model.embed(np.zeros(1, np.int64)).shape[1])
    edit = _Edit(prefix)
    inputs = [helper.make_tensor_value_info(f"{prefix}{EMBEDDING}", _onnx(dtype),
                                            ["batch", size])]  # fmt: skip
    # The rank of the embedding in the graph is [batch, time, E], by the contract.
    edit.front("Reshape", [inputs[0].name, edit.ints([-1, 1, size])], roles.embedding)
    components, batch = [], None
    groups = _tensors(roles.states)
    # Before anything of these sizes is made: a file may claim any.
    width = size + sum(math.prod(model.state_shape(s)[0]) for s in roles.states)
    _memory.require(_COPIES * width * dtype.itemsize, _memory.available(), "One step of this model",
                    f"Its states have {width - size:,} elements.")  # fmt: skip
    for group in groups:
        shape, _ = model.state_shape(group[0])
        element = types[group[0].input]
        kind = dtype if element in _passes.FLOATS else helper.tensor_dtype_to_np_dtype(element)
        for state in group:
            part = Component(state, math.prod(shape), f"{prefix}{state.name}",
                             f"{prefix}next/{state.name}", np.dtype(kind))  # fmt: skip
            components.append(part)
            inputs.append(helper.make_tensor_value_info(part.input, _onnx(part.dtype),
                                                        ["batch", part.size]))  # fmt: skip
        _join(edit, group, components[-len(group) :], shape)
        declared = next(i for i in proto.graph.input if i.name == group[0].input)
        fixed = declared.type.tensor_type.shape.dim[group[0].batch_axis].dim_value
        batch = fixed or batch
    order = {s.name: i for i, s in enumerate(roles.states)}
    components.sort(key=lambda c: order[c.name])
    result = onnx.ModelProto()
    result.CopyFrom(core)
    del result.graph.node[:], result.graph.input[:], result.graph.output[:]
    del result.graph.value_info[:]
    result.graph.node.extend([*edit.before, *graph.node, *edit.after])
    result.graph.initializer.extend(edit.initializers)
    result.graph.input.extend(inputs + ([tokens] if tokens is not None else []))
    result.graph.output.extend(
        helper.make_tensor_value_info(c.output, _onnx(c.dtype), ["batch", c.size])
        for c in components
    )
    tokens_dtype = np.dtype(helper.tensor_dtype_to_np_dtype(types[roles.tokens]))
    step = Step(result, inputs[0].name, size, tuple(components), tokens and tokens.name,
                tokens_dtype, dtype, prefix, batch)  # fmt: skip
    _check_runs(step)
    return step


def _check_runs(step: Step) -> None:
    """A step that does not do what its roles say is found here, where a message can say so."""
    names = [c.output for c in step.components]
    values = _runtime.run(_runtime.session(runnable(step)), names, step.example())
    for c, value in zip(step.components, values, strict=True):
        if value.shape != (1, c.size):
            raise ModelError(
                f"State {c.name} enters a step as {c.size} values and leaves it as {value.size}; "
                f"a state must keep its size. Are {c.state.input!r} and {c.state.output!r} the "
                "same state?"
            )


def together(step: Step, size: int) -> int:
    """How many positions one call may linearise, each as a stream of its own.

    Args:
        step: The step.
        size: Bytes that a call for one position works with.
    """
    batch = min(_TOGETHER, max(1, _TOGETHER_BYTES // max(size, 1)))
    return batch if batch > 1 and streams_apart(step, batch) else 1


def streams_apart(step: Step, batch: int) -> bool:
    """Whether a batch of streams gives what each gives alone; a core may well insist on one."""
    if step.batch is not None:
        return False
    made = _runtime.session(runnable(step))
    names = [c.output for c in step.components]
    rng = np.random.default_rng(1)
    for width in (0.3, 3.0):  # small values, and such as switch what depends on a threshold
        feeds = {
            n: (v + width * rng.standard_normal(v.shape)).astype(v.dtype)
            if np.issubdtype(v.dtype, np.floating)
            else v + np.arange(batch, dtype=v.dtype)[:, None] % 2  # counters and tokens differ too
            for n, v in step.example(batch).items()
        }
        try:
            whole = _runtime.run(made, names, feeds)
            alone = [_runtime.run(made, names, {n: v[[i]] for n, v in feeds.items()})
                     for i in range(batch)]  # fmt: skip
        except ModelError:
            return False
        for i, (c, value) in enumerate(zip(step.components, whole, strict=True)):
            one_by_one = np.concatenate([a[i] for a in alone])
            if value.shape != (batch, c.size) or not np.allclose(
                value, one_by_one, rtol=1e-3, atol=1e-4, equal_nan=True
            ):
                return False
    return True


def runnable(step: Step) -> onnx.ModelProto:
    """The step's graph in a form that ONNX Runtime can execute in the step's precision.

    ONNX Runtime lacks some operators in double precision, so those are written out.
    """
    if step.dtype == np.float64 and any(
        n.op_type in ("LSTM", "GRU", "RNN") for n in step.model.graph.node
    ):
        return write_out(lowered(step))
    return write_out(step.model)


def lowered(step: Step, batch: int = 1) -> onnx.ModelProto:
    """The step's graph in operators that have block rules, for a batch of that size."""
    # Shapes are learned in single precision, in which every recurrent operator runs.
    single = _passes.to_precision(step.model, np.float32)
    with np.errstate(over="ignore"):  # the values are of no matter
        feeds = {
            n: v.astype(np.float32) if v.dtype == np.float64 else v
            for n, v in step.example(batch).items()
        }
    if step.dtype == np.float64:
        # Lower in single precision for its shapes; weights then come from the double graph.
        done = _passes.to_precision(lower(single, feeds), np.float64)
        exact = {t.name: t for t in step.model.graph.initializer}
        for tensor in done.graph.initializer:
            if tensor.name in exact:
                tensor.CopyFrom(exact[tensor.name])
        return done
    return lower(single, feeds)


def _onnx(dtype: np.dtype) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _tensors(states: tuple[State, ...]) -> list[list[State]]:
    """States by the tensor that carries them, in layer order."""
    groups: dict[str, list[State]] = {}
    for state in states:
        groups.setdefault(state.input, []).append(state)
    for group in groups.values():
        group.sort(key=lambda s: s.layer_index or 0)
        if len({(s.output, s.batch_axis, s.layer_axis) for s in group}) > 1:
            raise ModelError(
                f"The states {', '.join(s.name for s in group)} share the tensor "
                f"{group[0].input!r}, but not their output and axes."
            )
        indices = [s.layer_index for s in group]
        if group[0].layer_axis is None and len(group) > 1:
            raise ModelError(f"Two states claim the whole tensor {group[0].input!r}.")
        if group[0].layer_axis is not None and indices != list(range(len(group))):
            raise ModelError(
                f"The states of the stacked tensor {group[0].input!r} must cover its layers "
                f"0, 1, …; found {indices}."
            )
    if len({s.output for s in states}) < len(groups):
        raise ModelError("Two states claim one output; each must have its own.")
    return list(groups.values())


class _Edit:
    """Nodes before and after the core that translate between layouts."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.before: list[onnx.NodeProto] = []
        self.after: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def fresh(self) -> str:
        count = len(self.before) + len(self.after) + len(self.initializers)
        return f"{self.prefix}layout/{count}"

    def ints(self, values: list[int] | int) -> str:
        name = self.fresh()
        self.initializers.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def front(self, op: str, inputs: list[str], out: str | None = None, **attributes) -> str:
        name = out or self.fresh()
        self.before.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def back(self, op: str, inputs: list[str], out: str | None = None, **attributes) -> str:
        name = out or self.fresh()
        self.after.append(helper.make_node(op, inputs, [name], **attributes))
        return name


def _join(edit: _Edit, states: list[State], parts: list[Component], shape: tuple[int, ...]) -> None:
    """Build the model's state tensor from flat components, and take its successor apart."""
    first = states[0]
    stacked = first.layer_axis is not None
    # Without the layer axis the batch axis may move one place forward.
    batch = first.batch_axis
    if stacked and first.layer_axis < first.batch_axis:  # type: ignore[operator]
        batch -= 1
    rank = len(shape) + 1
    to_model = [*range(1, batch + 1), 0, *range(batch + 1, rank)]
    to_flat = [batch, *(a for a in range(rank) if a != batch)]
    pieces = []
    for part in parts:
        last = None if stacked else first.input
        if to_model == list(range(rank)):
            t = edit.front("Reshape", [part.input, edit.ints([-1, *shape])], last)
        else:
            t = edit.front("Reshape", [part.input, edit.ints([-1, *shape])])
            t = edit.front("Transpose", [t], last, perm=to_model)
        if stacked:
            t = edit.front("Unsqueeze", [t, edit.ints([first.layer_axis])])  # type: ignore[list-item]
        pieces.append(t)
    if stacked:
        edit.front("Concat", pieces, first.input, axis=first.layer_axis)
    for state, part in zip(states, parts, strict=True):
        t = state.output
        if stacked:
            t = edit.back("Gather", [t, edit.ints(state.layer_index)], axis=state.layer_axis)  # type: ignore[arg-type]
        if to_flat != list(range(rank)):
            t = edit.back("Transpose", [t], perm=to_flat)
        edit.back("Reshape", [t, edit.ints([-1, part.size])], part.output)
