"""What every method of linearisation delivers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx

from ._step import Step

BlockKind = Literal["zero", "identity", "diagonal", "dense"]


@dataclass(frozen=True)
class Jacobian:
    """The derivative of one state with respect to one source.

    Attributes:
        kind: Its structure.
        tensor: Graph tensor that holds it for each of the positions that one call takes:
            ``[position, n]`` for ``diagonal``, ``[source, position, state]`` (transposed, so that
            rows of tangents multiply it from the left) for ``dense``, with 1 for ``position``
            where all have the same; None for ``zero`` and ``identity``.
    """

    kind: BlockKind
    tensor: str | None


@dataclass(frozen=True)
class Linearization:
    """A step graph that also computes the blocks of its Jacobian.

    Attributes:
        step: The step that it linearises.
        model: ONNX graph with the inputs of `step`, for `batch` positions at once, computing the
            states' successors under the names of `step` and the tensors of `jacobians`.
        jacobians: (state, source) → block, for every differentiable state and every source
            (the states' names and ``embedding``).
        method: ``jvp``, ``jvp-dense`` (through onnx-ad) or ``fd``.
        batch: Positions that one call linearises, each from a state of its own.
        working: Bytes that one call takes at most.
    """

    step: Step
    model: onnx.ModelProto
    jacobians: dict[tuple[str, str], Jacobian]
    method: str
    batch: int = 1
    working: int = 0
