"""The one place where a memory model is compared with the model that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx
from mnemoscope.analyzer import _runtime
from mnemoscope.analyzer._limits import limited
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import Roles, read_roles

Feeds = dict[str, np.ndarray]
Reference = Callable[[Feeds], Feeds]
# Tokens [batch, time] and states by graph input in; logits [batch, time, V] (or [batch, 1, V] of
# the last step) and the last states by graph output out.
Whole = Callable[[np.ndarray, Feeds], tuple[np.ndarray, Feeds]]

# Relative to the largest element. Two orders of summing K = 1000 float32 products differ by about
# sqrt(K)·eps = 4e-6 of the result; a wrong export differs in the first digits. float64 likewise,
# with room for the polynomial approximations of tanh and exp.
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}


class ParityError(ModelError):
    """A written model that does not compute what its source computes."""


@dataclass(frozen=True)
class Parity:
    """How well a memory model agrees with its source.

    Attributes:
        differences: Per graph output, the largest absolute difference seen, divided by the
            largest element of the source's tensor.
        tolerance: What was allowed.
        steps: Time steps compared in a row, the state fed back.
        batches: Numbers of streams compared.
    """

    differences: dict[str, float]
    tolerance: float
    steps: int
    batches: tuple[int, ...]

    @property
    def worst(self) -> float:
        """The largest of the differences."""
        return max(self.differences.values(), default=0.0)


def check_parity(
    model: onnx.ModelProto,
    reference: Reference,
    *,
    vocabulary_size: int,
    steps: int = 4,
    batches: Sequence[int] = (1, 2, 5),
    tolerance: float | None = None,
    seed: int = 0,
) -> Parity:
    """Compare a memory model, run by ONNX Runtime, with its source.

    Both run freely, each on its own states: from the initial states, and from random ones
    (floating-point states only: an integer state may be an index).

    Args:
        model: A memory model: its metadata holds the roles.
        reference: One step of the source. Takes the graph inputs by name (tokens ``[batch, 1]``
            integer, states as in the graph) and returns the logits ``[batch, 1, V]`` and the
            new states by the names of the graph outputs; others it may leave out.
        vocabulary_size: Tokens are drawn below this.
        steps: Time steps in a row.
        batches: Numbers of streams.
        tolerance: Largest difference relative to the largest element of the tensor; None takes
            1e-5 for float32 and 1e-12 for float64.
        seed: Of the random tokens and states.

    Raises:
        ParityError: A tensor differs by more; the message says which, by how much, and what
            tolerance would have passed.
    """
    roles, _ = read_roles(model)
    written = _Written(model)
    back = {s.output: s.input for s in roles.states}
    tokens_dtype = input_dtypes(model)[roles.tokens]
    random = np.random.default_rng(seed)
    differences: dict[str, float] = {}
    allowed = tolerance
    for batch in batches:
        for randomised in (False, True):
            ours = initial_states(model, roles, batch)
            if randomised:
                ours = {k: _shaken(v, random) for k, v in ours.items()}
            theirs = dict(ours)
            for step in range(steps):
                ids = random.integers(0, vocabulary_size, (batch, 1)).astype(tokens_dtype)
                got = written.run({roles.tokens: ids, **ours})
                wanted = reference({roles.tokens: ids, **theirs})
                for name, value in wanted.items():
                    if allowed is None:
                        allowed = TOLERANCE.get(wanted[roles.logits].dtype, 1e-5)
                    where = f"at step {step + 1} of {batch} streams"
                    difference = _difference(name, got[name], value, where)
                    differences[name] = max(differences.get(name, 0.0), difference)
                    if not difference <= allowed:
                        raise ParityError(_too_far(name, where, difference, allowed))
                ours = {back[k]: got[k] for k in back}
                theirs = {back[k]: wanted[k] for k in back}
    return Parity(differences, allowed or 0.0, steps, tuple(batches))


def check_sequences(
    model: onnx.ModelProto,
    whole: Whole,
    *,
    vocabulary_size: int,
    first_token: int = 0,
    lengths: Sequence[int] = (1, 7),
    batches: Sequence[int] = (1, 2, 5),
    lowest: float | None = None,
    from_random: bool = True,
    tolerance: float | None = None,
    seed: int = 0,
) -> Parity:
    """Compare a memory model, stepped by ONNX Runtime, with a source that reads whole sequences.

    From the initial states and, where the source takes states, from random ones, as in
    `check_parity`.

    Args:
        model: A memory model: its metadata holds the roles.
        whole: The source, run by its own recurrence over all steps at once.
        vocabulary_size: Tokens are drawn below this,
        first_token: and not below this.
        lengths: Numbers of time steps.
        batches: Numbers of streams.
        lowest: Logits below this count as this: a softmax rounds them to zero.
        from_random: False for a source that keeps its states to itself.
        tolerance: As in `check_parity`.
        seed: As in `check_parity`.

    Raises:
        ParityError: A tensor differs by more than the tolerance.
    """
    roles, _ = read_roles(model)
    written = _Written(model)
    dtype = input_dtypes(model)[roles.tokens]
    random = np.random.default_rng(seed)
    differences: dict[str, float] = {}
    allowed = tolerance
    for batch in batches:
        for length in lengths:
            for randomised in (False, True) if from_random else (False,):
                states = initial_states(model, roles, batch)
                if randomised:
                    states = {k: _shaken(v, random) for k, v in states.items()}
                ids = random.integers(first_token, vocabulary_size, (batch, length)).astype(dtype)
                logits, wanted = whole(ids, states)
                steps = []
                for t in range(length):
                    got = written.run({roles.tokens: ids[:, t : t + 1], **states})
                    steps.append(got[roles.logits])
                    states = {s.input: got[s.output] for s in roles.states}
                ours = np.concatenate(steps, 1)[:, length - logits.shape[1] :]
                if lowest is not None:
                    ours, logits = np.maximum(ours, lowest), np.maximum(logits, lowest)
                if allowed is None:
                    allowed = TOLERANCE.get(logits.dtype, 1e-5)
                got[roles.logits] = ours.astype(logits.dtype, copy=False)
                where = f"over {length} steps of {batch} streams"
                for name, value in {**wanted, roles.logits: logits}.items():
                    difference = _difference(name, got[name], value, where)
                    differences[name] = max(differences.get(name, 0.0), difference)
                    if not difference <= allowed:
                        raise ParityError(_too_far(name, where, difference, allowed))
    return Parity(differences, allowed or 0.0, max(lengths), tuple(batches))


class _Written:
    """The written model in ONNX Runtime."""

    def __init__(self, model: onnx.ModelProto) -> None:
        try:
            self._session = _runtime.session(model)
        except ModelError as error:
            raise ParityError(f"The written model: {error}") from error
        self._size = model.ByteSize()
        self._names = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Feeds) -> Feeds:
        try:
            with limited("one step of the model", self._size):
                results = _runtime.run(self._session, self._names, feeds)
        except ModelError as error:
            streams = len(next(iter(feeds.values())))
            raise ParityError(f"The written model, for {streams} streams: {error}") from error
        return dict(zip(self._names, results, strict=True))


def input_dtypes(model: onnx.ModelProto) -> dict[str, np.dtype]:
    """The numpy dtype of every graph input."""
    return {
        i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type)
        for i in model.graph.input
    }


def initial_states(model: onnx.ModelProto, roles: Roles, batch: int) -> Feeds:
    """The state inputs at the start of a stream, by graph input name, for `batch` streams."""
    dtypes = input_dtypes(model)
    shapes = {
        i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input
    }
    feeds: Feeds = {}
    for state in roles.states:
        if state.input not in feeds:
            shape = list(shapes[state.input])
            shape[state.batch_axis] = batch
            feeds[state.input] = np.zeros(shape, dtypes[state.input])
        if state.initial is None:
            continue
        view = state_view(feeds[state.input], state)
        view[...] = np.reshape(np.array(state.initial, view.dtype), view.shape[1:])
    return feeds


class Placed(Protocol):
    """Where a component lies in a tensor, as a `State` says it."""

    @property
    def batch_axis(self) -> int: ...
    @property
    def layer_axis(self) -> int | None: ...
    @property
    def layer_index(self) -> int | None: ...


def state_view(tensor: np.ndarray, place: Placed) -> np.ndarray:
    """One component as ``[batch, ...]``: a view, so that assigning to it changes `tensor`."""
    view = np.moveaxis(tensor, place.batch_axis, 0)
    if place.layer_axis is not None:
        axis = place.layer_axis + (place.layer_axis < place.batch_axis)
        assert place.layer_index is not None
        view = np.moveaxis(view, axis, 0)[place.layer_index]
    return view


def _shaken(value: np.ndarray, random: np.random.Generator) -> np.ndarray:
    if not np.issubdtype(value.dtype, np.floating):
        return value
    return value + random.normal(0, 0.5, value.shape).astype(value.dtype)


def _difference(name: str, got: np.ndarray, wanted: np.ndarray, where: str) -> float:
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise ParityError(
            f"The written model's {name!r} is {got.dtype} {list(got.shape)} {where}; its source "
            f"gives {wanted.dtype} {list(wanted.shape)}."
        )
    if not np.issubdtype(wanted.dtype, np.floating):
        return float(np.any(got != wanted))
    if not np.all(np.isfinite(wanted)):
        raise ParityError(f"The source's {name!r} is not finite {where}; nothing to compare with.")
    distance = float(np.max(np.abs(got - wanted), initial=0.0))
    scale = float(np.max(np.abs(wanted), initial=0.0))
    return distance / scale if scale > 0 else distance


def _too_far(name: str, where: str, difference: float, allowed: float) -> str:
    return (
        f"The written model differs from its source in {name!r} {where}: by "
        f"{difference:.3g} of its largest element, where {allowed:.3g} is "
        f"allowed. A tolerance of {_round_up(difference)} would have passed."
    )


def _round_up(difference: float) -> str:
    """`difference` to two digits, never rounded below it."""
    return f"{difference * 1.05:.2g}"
