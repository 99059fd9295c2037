"""Which part of which state tensor is which layer's h or c."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mnemoscope.analyzer.roles import State, rename_states

from ._torch_interface import Interface
from ._torch_recurrent import Component, RecurrentCalls, components
from ._torch_state import Leaf

_STREAMS = 5


@dataclass(frozen=True)
class _Part:
    """A component and its place on the layer axis of its tensor."""

    component: Component | None
    axis: int | None = None
    index: int | None = None


def name_states(
    interface: Interface, calls: RecurrentCalls, names: Sequence[str] | None, seed: int
) -> tuple[State, ...]:
    """Describe every state tensor: input ``state_K``, output ``state_K_next``, its components.

    One step is run from random states; what a recurrent module returned and what the model
    returned as its state are the same numbers where they are the same thing.

    Raises:
        ModelError: `names` are not as many as there are components, or not distinct.
    """
    random = torch.Generator().manual_seed(seed)
    leaves = interface.caller.leaves
    states = [_shaken(leaf.start(_STREAMS), random) for leaf in leaves]
    tokens = torch.randint(0, interface.vocabulary_size, (_STREAMS, 1), generator=random)
    calls.reset()
    _, after = interface.caller(tokens.t() if interface.time_major else tokens, states)
    known = components(calls.calls)
    calls.reset()

    found: list[State] = []
    unnamed = 0
    for k, (leaf, value) in enumerate(zip(leaves, after, strict=True)):
        for part in _parts(value, leaf, known):
            component = part.component
            if component is None:
                name, kind, layer = f"state{unnamed}", "other", unnamed
                unnamed += 1
            else:
                name, kind, layer = component.name, component.kind, component.layer
                known.remove(component)
            found.append(
                State(
                    name,
                    f"state_{k}",
                    f"state_{k}_next",
                    kind,  # type: ignore[arg-type]
                    layer,
                    leaf.batch_axis,
                    part.axis,
                    part.index,
                    _initial(leaf, part),
                )
            )
    return rename_states(found, names)


def _parts(value: torch.Tensor, leaf: Leaf, known: list[Component]) -> list[_Part]:
    whole = _match(value, leaf.batch_axis, known)
    if whole is not None:
        return [_Part(whole)]
    for axis in range(value.dim()):
        if axis == leaf.batch_axis or leaf.lockstep:
            continue
        rest = leaf.batch_axis - (axis < leaf.batch_axis)
        matches = [_match(one, rest, known) for one in value.unbind(axis)]
        if matches and all(m is not None for m in matches):
            return [_Part(m, axis, index) for index, m in enumerate(matches)]
    return [_Part(None)]


def _match(value: torch.Tensor, batch_axis: int, known: list[Component]) -> Component | None:
    if not value.is_floating_point():
        return None
    flat = value.movedim(batch_axis, 0).reshape(value.shape[batch_axis], -1)
    for component in known:
        if component.value.shape == flat.shape and torch.equal(component.value, flat):
            return component
    return None


def _initial(leaf: Leaf, part: _Part) -> tuple[float, ...] | None:
    value = leaf.initial
    if part.axis is not None:
        # The initial value has no batch axis.
        value = value.select(part.axis - (leaf.batch_axis < part.axis), part.index or 0)
    if not bool(value.any()):
        return None
    return tuple(float(x) for x in value.flatten())


def _shaken(value: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    # An integer may be an index: it stays what it is.
    if not value.is_floating_point():
        return value
    return value + 0.5 * torch.randn(value.shape, generator=random, dtype=value.dtype)
