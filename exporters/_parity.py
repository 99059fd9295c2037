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

# Relative to how much a tensor varies (`_Comparison`). Two orders of summing K = 1000 float32
# products differ by about sqrt(K)·eps = 4e-6 of the result; a wrong export differs in the first
# digits. float64 likewise, with room for the polynomial approximations of tanh and exp.
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}
# Steps of a long run: a convolution or a window reaches back so far, seldom further.
LONG = 96
# Times the drift of a run with disturbed states that a difference may be: one run's is a sample.
_DRIFTS = 8.0
# Above the first a difference is hardly rounding, above the second no tolerance makes sense.
_LARGE, _GROSS = 1e-3, 0.1


class ParityError(ModelError):
    """A written model that does not compute what its source computes."""


@dataclass(frozen=True)
class Parity:
    """How well a memory model agrees with its source.

    Attributes:
        differences: Per graph output, the largest absolute difference seen, divided by how much
            the source's tensor varies: half the range of the element over streams and steps, at
            least the median of that over all elements, plus a tenth of the element itself (which
            float32 holds to 1e-7 only). A constant that is added to logits hides nothing so.
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
    (floating-point states only: an integer state may be an index). Of the largest batch, the
    first and the last stream are run alone too.

    Args:
        model: A memory model: its metadata holds the roles.
        reference: One step of the source. Takes the graph inputs by name (tokens ``[batch, 1]``
            integer, states as in the graph) and returns the logits ``[batch, 1, V]`` and the
            new states by the names of the graph outputs; others it may leave out.
        vocabulary_size: Tokens are drawn below this.
        steps: Time steps in a row.
        batches: Numbers of streams.
        tolerance: Largest difference relative to how much the tensor varies (`Parity`); None
            takes 1e-5 for float32 and 1e-12 for float64.
        seed: Of the random tokens and states.

    Raises:
        ParityError: A tensor differs by more, or a stream alone gives other results than in a
            batch; the message says which, by how much, and what tolerance would have passed.
    """
    roles, _ = read_roles(model)
    written = _Written(model, roles)
    dtype = input_dtypes(model)[roles.tokens]
    random = np.random.default_rng(seed)
    found = _Comparison(roles, tolerance)
    for batch in batches:
        for randomised in (False, True):
            ours = initial_states(model, roles, batch)
            if randomised:
                ours = {k: _shaken(v, random) for k, v in ours.items()}
            theirs = dict(ours)
            for step in range(steps):
                ids = random.integers(0, vocabulary_size, (batch, 1)).astype(dtype)
                got = written.run({roles.tokens: ids, **ours})
                wanted = reference({roles.tokens: ids, **theirs})
                where = f"at step {step + 1} of {batch} streams"
                for name, value in wanted.items():
                    found.add(name, got[name], value, where, randomised)
                if batch == max(batches):
                    written.add_alone(found, {roles.tokens: ids, **ours}, got, where, randomised)
                ours = {s.input: got[s.output] for s in roles.states}
                theirs = {s.input: wanted[s.output] for s in roles.states}
    return found.judged(steps, batches)


def check_sequences(
    model: onnx.ModelProto,
    whole: Whole,
    *,
    vocabulary_size: int,
    tokens: np.ndarray | None = None,
    lengths: Sequence[int] = (1, 7),
    long: int | None = None,
    batches: Sequence[int] = (1, 2, 5),
    lowest: float | None = None,
    from_random: bool = True,
    tolerance: float | None = None,
    seed: int = 0,
) -> Parity:
    """Compare a memory model, stepped by ONNX Runtime, with a source that reads whole sequences.

    From the initial states and, where the source takes states, from random ones, and streams
    alone, as in `check_parity`. Rounding may grow from step to step: a difference counts only as
    far as it exceeds several times the drift of a second run of the memory model, whose states
    are moved by a rounding or two at every step.

    Args:
        model: A memory model: its metadata holds the roles.
        whole: The source, run by its own recurrence over all steps at once.
        vocabulary_size: V.
        tokens: The ids that a stream may hold; None for all.
        lengths: Numbers of time steps.
        long: Number of time steps of one more comparison, of the smallest batch from its initial
            states: it shows a source that reads further back than its states reach in `lengths`.
        batches: Numbers of streams.
        lowest: Logits below this count as this: a softmax rounds them to zero.
        from_random: False for a source that keeps its states to itself.
        tolerance: As in `check_parity`.
        seed: As in `check_parity`.

    Raises:
        ParityError: A tensor differs by more than the tolerance, or a stream alone gives other
            results than in a batch.
    """
    roles, _ = read_roles(model)
    written = _Written(model, roles)
    dtype = input_dtypes(model)[roles.tokens]
    random = np.random.default_rng(seed)
    choice = np.arange(vocabulary_size) if tokens is None else np.asarray(tokens)
    found = _Comparison(roles, tolerance)
    starts = (False, True) if from_random else (False,)
    runs = [(n, length, r) for n in batches for length in lengths for r in starts]
    if long is not None:
        runs.append((min(batches), long, False))
    for batch, length, randomised in runs:
        states = initial_states(model, roles, batch)
        if randomised:
            states = {k: _shaken(v, random) for k, v in states.items()}
        ids = random.choice(choice, (batch, length)).astype(dtype)
        where = f"over {length} steps of {batch} streams"
        logits, wanted = whole(ids, states)
        steps, beside = [], []
        moved = states
        for t in range(length):
            feeds = {roles.tokens: ids[:, t : t + 1], **states}
            got = written.run(feeds)
            other = written.run({**feeds, **moved})
            if t == 0:
                _require_same(got, other)
            steps.append(got[roles.logits])
            beside.append(other[roles.logits])
            if batch == max(batches) and length != long:
                written.add_alone(found, feeds, got, where, randomised)
            states = {s.input: got[s.output] for s in roles.states}
            moved = {s.input: _rounded(other[s.output], random) for s in roles.states}
        last = slice(length - logits.shape[1], length)
        ours, second = np.concatenate(steps, 1)[:, last], np.concatenate(beside, 1)[:, last]
        if lowest is not None:
            ours, second = np.maximum(ours, lowest), np.maximum(second, lowest)
            logits = np.maximum(logits, lowest)
        ours, second = (x.astype(logits.dtype, copy=False) for x in (ours, second))
        got, other = {**got, roles.logits: ours}, {**other, roles.logits: second}
        for name, value in {**wanted, roles.logits: logits}.items():
            found.add(name, got[name], value, where, randomised, beside=other[name])
    return found.judged(max(length for _, length, _ in runs), batches)


@dataclass
class _Pair:
    """What was found and what was expected: ``[sample, element]``, a sample per stream and step."""

    got: np.ndarray
    wanted: np.ndarray
    where: str
    alone: bool
    drift: np.ndarray | float


class _Comparison:
    """Collects results of both sides; how large a difference is shows when all are seen."""

    def __init__(self, roles: Roles, tolerance: float | None) -> None:
        self._logits = roles.logits
        self._called = {s.output: s.name for s in roles.states if s.layer_axis is None}
        self._axes = {s.output: s.batch_axis for s in roles.states}
        self._tolerance = tolerance
        # Random states vary more than those of a stream: what follows them is judged apart.
        self._pairs: dict[tuple[str, bool], list[_Pair]] = {}

    def add(
        self,
        name: str,
        got: np.ndarray,
        wanted: np.ndarray,
        where: str,
        randomised: bool,
        *,
        alone: bool = False,
        beside: np.ndarray | None = None,
    ) -> None:
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            raise ParityError(
                f"The written model's {name!r} is {got.dtype} {list(got.shape)} {where}; its "
                f"source gives {wanted.dtype} {list(wanted.shape)}."
            )
        if np.issubdtype(wanted.dtype, np.floating) and not np.all(np.isfinite(wanted)):
            raise ParityError(
                f"The source's {name!r} is not finite {where}; nothing to compare with."
            )
        drift: np.ndarray | float = 0.0
        if beside is not None and np.issubdtype(wanted.dtype, np.floating):
            # The median over the elements: a constant as large as 1e9 drifts by its own rounding.
            apart = np.abs(self._samples(name, got) - self._samples(name, beside))
            drift = _DRIFTS * np.nan_to_num(np.median(apart, axis=1, keepdims=True))
        ours, theirs = self._samples(name, got), self._samples(name, wanted)
        pair = _Pair(ours, theirs, where, alone, drift)
        self._pairs.setdefault((name, randomised), []).append(pair)

    def judged(self, steps: int, batches: Sequence[int]) -> Parity:
        """The largest differences, if all are allowed."""
        logits = next(
            p for (n, _), pairs in self._pairs.items() for p in pairs if n == self._logits
        )
        usual = TOLERANCE.get(logits.wanted.dtype, 1e-5)
        allowed = usual if self._tolerance is None else self._tolerance
        largest: dict[bool, tuple[float, str, str]] = {}
        differences: dict[str, float] = {}
        for (name, _), pairs in self._pairs.items():
            varies = _variation(pairs)
            for pair in pairs:
                found = _difference(pair, varies, usual)
                if not pair.alone:
                    differences[name] = max(differences.get(name, 0.0), found)
                if found > largest.get(pair.alone, (-1.0, "", ""))[0]:
                    largest[pair.alone] = found, name, pair.where
        for alone, (found, name, where) in sorted(largest.items()):
            if not found <= allowed:
                say = _not_alone if alone else _too_far
                called = self._called.get(name, name)
                raise ParityError(say(called, where, found, allowed))
        return Parity(differences, allowed, steps, tuple(batches))

    def _samples(self, name: str, value: np.ndarray) -> np.ndarray:
        """Streams (and steps) in front, everything else flattened behind."""
        if name == self._logits:
            return value.reshape(-1, value.shape[-1])
        front = np.moveaxis(value, self._axes.get(name, 0), 0)
        return front.reshape(len(front), -1)


def _variation(pairs: Sequence[_Pair]) -> np.ndarray | float:
    """How much each element varies from sample to sample, at least as much as the median does."""
    low = np.min([p.wanted.min(axis=0) for p in pairs], axis=0).astype(np.float64)
    high = np.max([p.wanted.max(axis=0) for p in pairs], axis=0).astype(np.float64)
    varies = (high - low) / 2
    if not np.issubdtype(pairs[0].wanted.dtype, np.floating) or not varies.size:
        return 1.0
    rounding = 8 * np.finfo(pairs[0].wanted.dtype).eps * np.maximum(np.abs(low), np.abs(high))
    if np.any(varies > rounding):
        return np.maximum(varies, np.median(varies[varies > rounding]))
    # One sample, or a constant: its elements vary among themselves, or are all the same.
    typical = float(np.median(np.abs(low - np.median(low))))
    return typical or float(np.max(np.abs(low))) or 1.0


def _difference(pair: _Pair, varies: np.ndarray | float, usual: float) -> float:
    if not np.issubdtype(pair.wanted.dtype, np.floating):
        return float(np.any(pair.got != pair.wanted))
    if not pair.wanted.size:
        return 0.0
    size = varies + np.abs(pair.wanted) / 10
    distance = np.abs(pair.got.astype(np.float64) - pair.wanted)
    # What exceeds the usual tolerance does not count the drift; a tolerance does not multiply it.
    found = np.maximum(distance / (size + pair.drift / usual), (distance - pair.drift) / size)
    return float(np.nan_to_num(np.max(found), nan=np.inf))


class _Written:
    """The written model in ONNX Runtime."""

    def __init__(self, model: onnx.ModelProto, roles: Roles) -> None:
        self._axes = {roles.tokens: 0, roles.logits: 0}
        for state in roles.states:
            self._axes[state.input] = self._axes[state.output] = state.batch_axis
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

    def add_alone(
        self, found: _Comparison, feeds: Feeds, got: Feeds, where: str, randomised: bool
    ) -> None:
        """Run the first and the last stream of a batch alone, and add both results to `found`."""
        streams = len(feeds[next(iter(feeds))])
        for k in {0, streams - 1} if streams > 1 else ():
            one = {n: _stream(x, self._axes[n], k) for n, x in feeds.items()}
            for name, value in self.run(one).items():
                if name in self._axes:
                    wanted = _stream(got[name], self._axes[name], k)
                    found.add(name, value, wanted, where, randomised, alone=True)


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
        with np.errstate(over="ignore"):  # an infinite value shows where it is compared
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


def _require_same(one: Feeds, two: Feeds) -> None:
    """Raise ParityError unless two runs on the same inputs agree: else drift means nothing."""
    for name, value in one.items():
        room = 1e-3 * float(np.max(np.abs(value), initial=0.0))
        if np.isfinite(room) and not np.allclose(value, two[name], rtol=0, atol=room):
            raise ParityError(
                f"The written model gives another {name!r} when it is run again on the same "
                "inputs: it draws random numbers. Take out what does, such as a dropout that "
                "is on in inference too."
            )


def _rounded(value: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """`value` as other roundings might have left it: 2 units of the last place away."""
    if not np.issubdtype(value.dtype, np.floating):
        return value
    signs = random.choice([-1, 1], value.shape).astype(value.dtype)
    return value + 2 * np.finfo(value.dtype).eps * signs * np.abs(value)


def _stream(value: np.ndarray, axis: int, k: int) -> np.ndarray:
    return np.ascontiguousarray(np.take(value, [k], axis))


def _too_far(name: str, where: str, difference: float, allowed: float) -> str:
    message = (
        f"The written model differs from its source in {name!r} {where}: by {difference:.3g} of "
        f"what it varies by, where {allowed:.3g} is allowed."
    )
    if difference > _LARGE:
        message += (
            " That is no rounding. Likely causes: the source mixes time steps outside its "
            "recurrence (convolution over time, attention, pooling), or keeps something from step "
            "to step that is not among the states. Expected a model in which one step reads one "
            "token and the states."
        )
    if difference > _GROSS:
        return message
    return f"{message} A tolerance of {_round_up(difference)} would have passed."


def _not_alone(name: str, where: str, difference: float, allowed: float) -> str:
    return (
        f"The streams of a batch influence one another: a stream alone gives another {name!r} than "
        f"in the batch, {where}: by {difference:.3g} of what it varies by, where {allowed:.3g} is "
        "allowed. Expected that nothing is computed across the batch axis; take out what averages "
        "or normalises over the batch."
    )


def _round_up(difference: float) -> str:
    """`difference` to two digits, never rounded below it."""
    return f"{difference * 1.05:.2g}"
