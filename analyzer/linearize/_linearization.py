"""What every method of linearisation delivers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import onnx

from ._step import EMBEDDING, Step

BlockKind = Literal["zero", "identity", "diagonal", "dense"]


@dataclass(frozen=True)
class Jacobian:
    """The derivative of one state with respect to one source.

    Attributes:
        kind: Its structure.
        tensor: Graph tensor that holds it for each of the positions that one call takes:
            ``[position, n]`` for ``diagonal``, ``[state, position, source]`` for ``dense``, with 1
            for ``position`` where all have the same; None for ``zero`` and ``identity``.
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
        relayed: (state, relay) → block: the derivative with respect to the *successor* of another
            state, a relay, which the step reads on, as a layer reads what the layer below it has
            just computed. What reaches the state through a relay is left out of `jacobians`:
            ``dstate' = Σ_source jacobians · dsource + Σ_relay relayed · drelay'``. In an order in
            which every relay's own derivative comes first.
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
    relayed: dict[tuple[str, str], Jacobian] = field(default_factory=dict)

    @property
    def blocks(self) -> list[tuple[str, str, Jacobian]]:
        """``(state, source or relay, block)`` of all that are not zero."""
        every = [*self.jacobians.items(), *self.relayed.items()]
        return [(state, source, j) for (state, source), j in every if j.kind != "zero"]

    def carried(self, wanted: Sequence[str]) -> list[str]:
        """`wanted` and the states that they depend on through any number of steps."""
        needed = set(wanted)
        while True:
            more = {x for state, x, _ in self.blocks if state in needed and x != EMBEDDING}
            if more <= needed:
                return [c.name for c in self.step.differentiable if c.name in needed]
            needed |= more

    def dense(self, states: Sequence[str] | None = None) -> tuple[int, int]:
        """Elements of the dense blocks: of those by states and relays, and by the embedding.

        Args:
            states: Those that are carried; None means all.
        """
        sizes = {name: size for name, (_, size) in self.step.sources.items()}
        by_states = by_embedding = 0
        for state, source, j in self.blocks:
            if j.kind != "dense" or (states is not None and state not in states):
                continue
            if source == EMBEDDING:
                by_embedding += sizes[state] * sizes[source]
            elif states is None or source in states:
                by_states += sizes[state] * sizes[source]
        return by_states, by_embedding
