"""What every method of linearisation delivers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx

from ._step import Step

BlockKind = Literal["zero", "identity", "diagonal", "dense"]


@dataclass(frozen=True)
class Jacobian:
    """The derivative of one state with respect to one source, for one stream.

    Attributes:
        kind: Its structure.
        tensor: Graph tensor that holds it: ``[1, n]`` for ``diagonal``, ``[source, state]``
            (transposed, so that rows of tangents multiply it from the left) for ``dense``; None
            for ``zero`` and ``identity``.
    """

    kind: BlockKind
    tensor: str | None


@dataclass(frozen=True)
class Linearization:
    """A step graph that also computes the blocks of its Jacobian.

    Attributes:
        step: The step that it linearises.
        model: ONNX graph with the inputs of `step`, computing the states' successors under the
            names of `step` and the tensors of `jacobians`.
        jacobians: (state, source) → block, for every differentiable state and every source
            (the states' names and ``embedding``).
        method: ``jvp``, ``jvp-dense`` (through onnx-ad) or ``fd``.
    """

    step: Step
    model: onnx.ModelProto
    jacobians: dict[tuple[str, str], Jacobian]
    method: str
