"""The state of a PyTorch module, in whatever nesting, as a flat list of batched tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from mnemoscope.analyzer.errors import ModelError
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ._torch_recurrent import RecurrentCalls

Tensors = list[torch.Tensor]

METHODS = ("init_hidden", "initial_state", "init_state")
# Batch sizes that tell a batch axis from any other; primes, so that no product is mistaken.
_ONE, _OTHER = 5, 7
# So many ways to start are tried before the search for a learned initial state gives up.
_COMBINATIONS = 2000


@dataclass(frozen=True)
class Leaf:
    """One tensor of the state.

    Attributes:
        path: Where it sits in the state that the module takes, such as ``[0]['h']``.
        batch_axis: Axis of the streams.
        lockstep: The module's own tensor (or number) has no batch axis: all streams share it.
            From outside it gets one in front.
        initial: Value at the start of a stream, without the batch axis.
    """

    path: str
    batch_axis: int
    lockstep: bool
    initial: torch.Tensor

    def start(self, batch: int) -> torch.Tensor:
        """The initial value for `batch` streams."""
        value = self.initial.unsqueeze(self.batch_axis)
        return value.repeat_interleave(batch, self.batch_axis)


class Passed:
    """Calls ``forward(tokens, state) -> (logits, state)``."""

    def __init__(self, module: torch.nn.Module, example: Any, leaves: list[Leaf]) -> None:
        pairs, self._spec = _flatten(example)
        self.module = module
        self.leaves = leaves
        self._paths = [path for path, _ in pairs]
        self._template = [value for _, value in pairs]
        self._carried = [k for k, value in enumerate(self._template) if _is_state(value)]

    def __call__(self, tokens: torch.Tensor, states: Tensors) -> tuple[torch.Tensor, Tensors]:
        """One run over `tokens` in the module's own layout."""
        values = list(self._template)
        for k, leaf, state in zip(self._carried, self.leaves, states, strict=True):
            values[k] = state[0] if leaf.lockstep else state
        result = self.module(tokens, pytree.tree_unflatten(values, self._spec))
        logits, state = split_result(result)
        after = self._aligned(state)
        new = []
        for k, leaf, before in zip(self._carried, self.leaves, states, strict=True):
            value = torch.as_tensor(after[k])
            if leaf.lockstep:
                value = value.unsqueeze(0).expand_as(before)
            if value.shape != before.shape or value.dtype != before.dtype:
                raise ModelError(
                    f"The state {leaf.path or 'tensor'} changes from {before.dtype} "
                    f"{list(before.shape)} to {value.dtype} {list(value.shape)} in one step; "
                    "expected a state of one shape and type (a cache that grows is none)."
                )
            new.append(value)
        return logits, new

    def _aligned(self, state: Any) -> list[Any]:
        """The returned state's leaves in the order of the given one's: dicts keep none."""
        pairs, _ = _flatten(state)
        by_path = dict(pairs)
        if set(by_path) == set(self._paths):
            return [by_path[path] for path in self._paths]
        if len(pairs) == len(self._paths):
            return [value for _, value in pairs]
        raise ModelError(
            f"The module takes a state of {len(self._paths)} tensors and returns one of "
            f"{len(pairs)}; expected the same nesting."
        )


class Promoted:
    """Calls ``forward(tokens) -> logits``, the recurrent modules' states given from outside."""

    def __init__(
        self, module: torch.nn.Module, calls: RecurrentCalls, groups: list[int], leaves: list[Leaf]
    ) -> None:
        self.module = module
        self.leaves = leaves
        self._calls = calls
        self._groups = groups

    def __call__(self, tokens: torch.Tensor, states: Tensors) -> tuple[torch.Tensor, Tensors]:
        """One step over `tokens` in the module's own layout."""
        rest = iter(states)
        self._calls.reset([tuple(itertools.islice(rest, size)) for size in self._groups])
        try:
            logits = logits_of(self.module(tokens))
            after = [state for call in self._calls.calls for state in call.after]
        finally:
            calls, self._calls.given = self._calls.calls, None
        if len(calls) != len(self._groups):
            raise ModelError(
                f"The recurrent modules were called {len(calls)} times in one step, and "
                f"{len(self._groups)} times in another; {_WRITE_STATE}"
            )
        return logits, after


Caller = Passed | Promoted
_WRITE_STATE = (
    "write the model as forward(tokens, state) -> (logits, state), so that the state can be carried"
)


def passed_from_example(module: torch.nn.Module, make: Callable[[int], Any], how: str) -> Passed:
    """A caller whose initial state `make` returns for a number of streams.

    Raises:
        ModelError: The state is random, differs between streams, or is no state.
    """
    one, again, other = (_flatten(make(n))[0] for n in (_ONE, _ONE, _OTHER))
    leaves = []
    for (path, a), (_, b), (_, c) in zip(one, again, other, strict=True):
        if not _is_state(a):
            continue
        a, b, c = (torch.as_tensor(x) for x in (a, b, c))
        if not torch.equal(a, b):
            raise ModelError(f"{how} returns a random state; expected the same one at each call.")
        leaves.append(_leaf(path, a, c))
    if not leaves:
        raise ModelError(f"{how} returns no tensors; expected the initial state.")
    return Passed(module, make(_ONE), leaves)


def passed_from_none(
    module: torch.nn.Module, start: Callable[[torch.Tensor], Any], tokens_of: Callable[[int], Any]
) -> tuple[Passed, str]:
    """A caller for a module that makes its own initial state, which is found by experiment.

    Zeros come first; then every tensor that the module computes on the way, has the shape of the
    state and does not depend on the tokens. What the first step from the right one gives is what
    the module gives by itself.

    Args:
        module: The module.
        start: Runs it on tokens without a state.
        tokens_of: Makes one random token per stream, ``[N, 1]`` in the module's layout.

    Returns:
        The caller, and how the initial state was found.
    """
    tokens = tokens_of(_ONE)
    _, state = split_result(start(tokens))
    _, wider = split_result(start(tokens_of(_OTHER)))
    pairs, others = _flatten(state)[0], _flatten(wider)[0]
    leaves = []
    for (path, a), (_, b) in zip(pairs, others, strict=True):
        if _is_state(a):
            a, b = torch.as_tensor(a), torch.as_tensor(b)
            leaves.append(_leaf(path, torch.zeros_like(a), torch.zeros_like(b)))
    if not leaves:
        raise ModelError("The module returns a state that holds no tensors.")

    first = _watch(start, tokens)
    second = _watch(start, tokens_of(_ONE))
    options: list[Tensors] = []
    for leaf in leaves:
        found = [torch.zeros_like(leaf.initial)]
        if not leaf.lockstep:
            shape = leaf.start(_ONE).shape
            for value in first:
                if value.shape != shape or value.dtype != leaf.initial.dtype:
                    continue
                if not any(v.shape == shape and torch.equal(v, value) for v in second):
                    continue
                single = value.select(leaf.batch_axis, 0)
                same = torch.equal(value, single.unsqueeze(leaf.batch_axis).expand_as(value))
                if same and not any(torch.equal(single, f) for f in found):
                    found.append(single.clone())
        options.append(found)
    wanted = start(tokens)
    for values in itertools.islice(itertools.product(*options), _COMBINATIONS):
        tried = [
            Leaf(leaf.path, leaf.batch_axis, leaf.lockstep, value)
            for leaf, value in zip(leaves, values, strict=True)
        ]
        caller = Passed(module, state, tried)
        try:
            got = caller(tokens, [leaf.start(_ONE) for leaf in tried])
        except ModelError:
            raise
        except Exception:  # whatever a user's forward raises on a state that it cannot start from
            continue
        if _same_result(got, split_result(wanted)):
            learned = any(bool(value.any()) for value in values)
            return caller, "learned, found inside the module" if learned else "zeros"
    raise ModelError(
        "The initial state that the module makes for itself (state=None) could not be found: it "
        "is not zeros, nor a tensor of the state's shape that does not depend on the tokens. Give "
        "the module a method initial_state(batch) that returns it."
    )


def promote(
    module: torch.nn.Module, calls: RecurrentCalls, tokens_of: Callable[[int], Any]
) -> tuple[Promoted, str]:
    """A caller for ``forward(tokens) -> logits``: the recurrent modules' states become inputs.

    Raises:
        ModelError: No recurrent module of torch.nn is called, or its initial state depends on
            the tokens.
    """
    runs = []
    for batch in (_ONE, _ONE, _OTHER):
        calls.reset()
        module(tokens_of(batch))
        runs.append(calls.calls)
    calls.reset()
    one, again, other = runs
    if not one:
        raise ModelError(
            "forward(tokens) returns no state, and the module calls no nn.LSTM, nn.GRU, nn.RNN or "
            f"cell of torch.nn whose state could be taken out; {_WRITE_STATE}."
        )
    leaves = []
    for k, call in enumerate(one):
        for which, after in enumerate(call.after):
            wide = other[k].after[which]
            value, same, wider = (
                torch.zeros_like(x) if c.before is None else c.before[which]
                for x, c in ((after, call), (after, again[k]), (wide, other[k]))
            )
            if value.shape != after.shape or not torch.equal(value, same):
                raise ModelError(
                    f"The initial state of the {type(call.module).__name__} depends on the "
                    f"tokens, so it is not one state per stream to start from; {_WRITE_STATE}."
                )
            name = "hc"[which]
            leaves.append(_leaf(f"{type(call.module).__name__} {k}, {name}", value, wider))
    learned = any(bool(leaf.initial.any()) for leaf in leaves)
    how = "learned" if learned else "zeros"
    return (
        Promoted(module, calls, [len(call.after) for call in one], leaves),
        f"{how}, taken out of the recurrent modules",
    )


def shapes_to_state(shapes: Any, batch: int, dtype: torch.dtype) -> Any:
    """Zeros in the nesting of `shapes`, whose innermost lists are ints and ``"N"``."""
    if isinstance(shapes, dict):
        return {k: shapes_to_state(v, batch, dtype) for k, v in shapes.items()}
    if isinstance(shapes, (list, tuple)) and shapes:
        if all(isinstance(x, int) or x == "N" for x in shapes):
            if "N" not in shapes:
                raise ModelError(
                    f'The state shape {list(shapes)} has no batch axis; write "N" for it, as in '
                    '[2, "N", 256].'
                )
            return torch.zeros([batch if x == "N" else int(x) for x in shapes], dtype=dtype)
        return tuple(shapes_to_state(x, batch, dtype) for x in shapes)
    raise ModelError(
        f'Expected state shapes as nested lists whose innermost are ints and "N", as in '
        f'[[2, "N", 256], [2, "N", 256]]; found {shapes!r}.'
    )


def split_result(result: Any) -> tuple[torch.Tensor, Any]:
    """The two parts that a forward with a state returns."""
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        what = f"{len(result)} values" if isinstance(result, (tuple, list)) else type(result)
        raise ModelError(f"Expected forward to return (logits, state), it returns {what}.")
    return _tensor(result[0]), result[1]


def logits_of(result: Any) -> torch.Tensor:
    """The logits that a forward returns, whether or not it returns anything besides."""
    return _tensor(result[0] if isinstance(result, (tuple, list)) and result else result)


def has_state(result: Any) -> bool:
    """Whether a forward returned (logits, state)."""
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        return False
    return any(isinstance(x, torch.Tensor) and x.dim() > 0 for _, x in _flatten(result[1])[0])


def _leaf(path: str, one: torch.Tensor, other: torch.Tensor) -> Leaf:
    """Tell the batch axis of a state from its values for 5 and for 7 streams."""
    if one.dim() != other.dim():
        raise ModelError(f"The state {path} changes its number of axes with the batch size.")
    differing = [a for a in range(one.dim()) if one.shape[a] != other.shape[a]]
    if not differing:
        return Leaf(path, 0, True, one.clone())
    axis = differing[0]
    if len(differing) > 1 or (one.shape[axis], other.shape[axis]) != (_ONE, _OTHER):
        raise ModelError(
            f"The state {path or 'tensor'} has the shape {list(one.shape)} for {_ONE} streams and "
            f"{list(other.shape)} for {_OTHER}; expected one batch axis."
        )
    single = one.select(axis, 0)
    if not torch.equal(one, single.unsqueeze(axis).expand_as(one)):
        raise ModelError(
            f"The initial state {path or 'tensor'} differs between streams; expected one initial "
            "state for all."
        )
    return Leaf(path, axis, False, single.clone())


def _flatten(tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    pairs, spec = pytree.tree_flatten_with_path(tree)
    return [(pytree.keystr(path), leaf) for path, leaf in pairs], spec


def _is_state(value: Any) -> bool:
    # Flags and None are part of the call, not of what is remembered.
    return isinstance(value, torch.Tensor) or (
        isinstance(value, (int, float)) and not isinstance(value, bool)
    )


def _tensor(value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise ModelError(
            f"Expected forward to return logits as a tensor, found a {type(value).__name__}."
        )
    return value


def _watch(start: Callable[[torch.Tensor], Any], tokens: torch.Tensor) -> Tensors:
    """Every tensor that is read or computed while the module runs."""
    seen: Tensors = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for value in pytree.tree_leaves((args, kwargs, result)):
                if isinstance(value, torch.Tensor):
                    seen.append(value)
            return result

    with Watch():
        start(tokens)
    return seen


def _same_result(got: tuple[torch.Tensor, Tensors], wanted: tuple[torch.Tensor, Any]) -> bool:
    if not close(got[0], wanted[0]):
        return False
    values = [torch.as_tensor(v) for _, v in _flatten(wanted[1])[0] if _is_state(v)]
    # A lockstep state comes back with a batch axis in front.
    return all(
        close(a if a.dim() == b.dim() else a[0], b) for a, b in zip(got[1], values, strict=True)
    )


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> bool:
    """Whether two tensors agree, relative to the largest element.

    1e-4: other batch sizes take other kernels (1e-6 apart in float32); a wrong layout or state
    changes the first digits.
    """
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    scale = float(b.abs().max()) if b.numel() else 0.0
    distance = float((a - b).abs().max()) if b.numel() else 0.0
    return distance <= tolerance * max(scale, 1e-30)
