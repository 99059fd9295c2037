"""The one place where a memory model is compared with the model that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import Roles, read_roles

Feeds = dict[str, np.ndarray]
Reference = Callable[[Feeds], Feeds]

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
    import onnxruntime as ort

    roles, _ = read_roles(model)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised; the rest is noise
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise ParityError(f"ONNX Runtime cannot load the written model: {error}") from error
    names = [o.name for o in session.get_outputs()]
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
                try:
                    results = session.run(names, {roles.tokens: ids, **ours})
                except Exception as error:  # as above
                    raise ParityError(
                        f"ONNX Runtime cannot run the written model for {batch} streams: {error}"
                    ) from error
                got = dict(zip(names, results, strict=True))
                wanted = reference({roles.tokens: ids, **theirs})
                for name, value in wanted.items():
                    if allowed is None:
                        allowed = TOLERANCE.get(wanted[roles.logits].dtype, 1e-5)
                    where = f"at step {step + 1} of {batch} streams"
                    difference = _difference(name, got[name], value, where)
                    differences[name] = max(differences.get(name, 0.0), difference)
                    if not difference <= allowed:
                        raise ParityError(
                            f"The written model differs from its source in {name!r} {where}: by "
                            f"{difference:.3g} of its largest element, where {allowed:.3g} is "
                            f"allowed. A tolerance of {_round_up(difference)} would have passed."
                        )
                ours = {back[k]: got[k] for k in back}
                theirs = {back[k]: wanted[k] for k in back}
    return Parity(differences, allowed or 0.0, steps, tuple(batches))


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
        # Bring the component to the front as [batch, ...]; assignment goes through the view.
        view = np.moveaxis(feeds[state.input], state.batch_axis, 0)
        if state.layer_axis is not None:
            assert state.layer_index is not None
            after = state.layer_axis + (state.layer_axis < state.batch_axis)
            view = np.moveaxis(view, after, 0)[state.layer_index]
        view[...] = np.reshape(np.array(state.initial, view.dtype), view.shape[1:])
    return feeds


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


def _round_up(difference: float) -> str:
    """`difference` to two digits, never rounded below it."""
    return f"{difference * 1.05:.2g}"
