"""Linearise one time step of a memory model, by any of three methods.

`linearize` chooses: block rules where every operator has one, else the whole Jacobian through
the onnx-ad library; or finite differences where they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import _limits
from ..errors import NoBlockRule, NoDerivative
from ._by_blocks import block_linearization, relayed_linearization
from ._dense import dense_linearization
from ._differences import difference_linearization
from ._linearization import Jacobian, Linearization
from ._rules import rounds
from ._step import EMBEDDING, Component, Step, build_step, streams_apart, together

__all__ = [
    "EMBEDDING",
    "Component",
    "Jacobian",
    "Linearization",
    "Step",
    "block_linearization",
    "build_step",
    "dense_linearization",
    "difference_linearization",
    "linearize",
    "rounds",
    "streams_apart",
]


def linearize(
    step: Step,
    batch: int | None = 1,
    wanted: Sequence[str] | None = None,
    relays: Sequence[str] | None = None,
) -> tuple[Linearization, str | None]:
    """The exact derivative of a step, and what stood in the way of block rules, if anything.

    Args:
        step: The step.
        batch: Positions that one call takes, if block rules cover the step; None chooses.
        wanted: States that are asked for; default all.
        relays: See `block_linearization`; `relayed_linearization` finds them by default.

    Raises:
        NoBlockRule: Neither block rules nor onnx-ad cover an operator; the message names it and
            says that finite differences will do.
    """
    with _limits.limited("the derivative of a step", step.model.ByteSize()):
        return _linearize(step, batch, wanted, relays)


def _linearize(
    step: Step, batch: int | None, wanted: Sequence[str] | None, relays: Sequence[str] | None
) -> tuple[Linearization, str | None]:
    try:
        if relays is None:
            linear = relayed_linearization(step, wanted)
            relays = tuple(dict.fromkeys(relay for _, relay in linear.relayed))
            if batch not in (None, 1):
                linear = block_linearization(step, batch, relays)
        else:
            linear = block_linearization(step, batch or 1, relays)
        several = together(step, linear.working) if batch is None else 1
        if several > 1:
            linear = block_linearization(step, several, relays)
        return linear, None
    except NoDerivative:
        raise  # onnx-ad would find one, and it would be wrong
    except NoBlockRule as error:
        obstacle = str(error)
    try:
        return dense_linearization(step), obstacle
    except NoBlockRule as error:
        raise NoBlockRule(
            f"There is no exact derivative for this model: no block rule for {obstacle}; and "
            f"onnx-ad refuses: {error}. Use --method fd (finite differences) instead."
        ) from None
