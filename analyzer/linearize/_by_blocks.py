"""The derivative of a step by block rules, and the relays that make it small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from ..errors import NoBlockRule
from ._blocks import Algebra, Block, Selection
from ._graph import Builder
from ._linearization import Jacobian, Linearization
from ._probe import Probe, probe
from ._relays import Place, Relay, places_of
from ._rules import Blocks
from ._step import Step, lowered
from ._walk import walk


def relayed_linearization(step: Step, wanted: Sequence[str] | None = None) -> Linearization:
    """The derivatives of one step at one position, by the relays that make the products fewest.

    A layer reads the successor of the layer below. By the successor, its derivative is one dense
    block; by all that the successor is made of, it is one for each of those. Three LSTM layers
    have 18 dense blocks, or 10 with two relays. One state after another is tried.

    Args:
        step: The step.
        wanted: States that are asked for; None means all.

    Raises:
        NoBlockRule: As `block_linearization`.
    """
    graph = _Lowered.of(step, 1)
    names = [c.name for c in step.differentiable] if wanted is None else wanted

    def cost(linear: Linearization) -> tuple[int, int]:
        return linear.dense(linear.carried(names))

    chosen: list[str] = []
    best = graph.linearized(chosen)
    for name in graph.read_on:
        found = graph.linearized([*chosen, name])
        if cost(found) < cost(best):  # at every delay, or else for new inputs
            chosen.append(name)
            best = found
    return best


def block_linearization(step: Step, batch: int = 1, relays: Sequence[str] = ()) -> Linearization:
    """The derivatives of one step by block rules.

    Args:
        step: The step.
        batch: Positions that one call is to take; more than 1 needs a step whose streams do not
            mix (see `_step.together`).
        relays: States by whose successors others are differentiated where the step reads those
            on (see `Linearization.relayed`); without effect where the graph has no such tensor.

    Raises:
        NoBlockRule: Names every operator on the way from a source to a state that has no rule.
    """
    return _Lowered.of(step, batch).linearized(relays)


@dataclass(frozen=True)
class _Lowered:
    """A step in operators that have rules, and what is known of its tensors."""

    step: Step
    batch: int
    model: onnx.ModelProto
    facts: Probe
    places: dict[str, Place]

    @classmethod
    def of(cls, step: Step, batch: int) -> _Lowered:
        model = lowered(step, batch)
        facts = probe(model, step.example(batch))
        return cls(step, batch, model, facts, places_of(step.differentiable, model, facts, batch))

    @property
    def read_on(self) -> list[str]:
        """States whose successors the step may read on."""
        return [c.name for c in self.step.differentiable if c.name in self.places]

    def linearized(self, relays: Sequence[str]) -> Linearization:
        """Walk through the graph, stopping at relays."""
        step, batch = self.step, self.batch
        sources = {
            graph_input: (name, np.broadcast_to(np.arange(size), (batch, size)))
            for name, (graph_input, size) in step.sources.items()
        }
        builder = Builder(step.dtype, f"{step.prefix}d")
        algebra = Algebra(builder)
        places = {name: place for name, place in self.places.items() if name in relays}
        stops: dict[str, Blocks] = {
            place.tensor: {Relay(name): place.selection} for name, place in places.items()
        }
        walked = walk(self.model, self.facts, sources, builder, stops)
        reached = [m for c in step.differentiable for m in walked.missing.get(c.output, ())]
        if reached:
            raise NoBlockRule("; ".join(dict.fromkeys(reached)))
        jacobians, relayed = {}, {}
        # Relays first, in the order of the graph: what one is made of is known before it is read.
        components = {c.name: c for c in step.differentiable}
        for name in [*places, *(n for n in components if n not in places)]:
            if name in places:
                place = places[name]
                found = place.rearranged(walked.stopped.get(place.tensor, {}), algebra)
            else:
                found = walked.blocks.get(components[name].output, {})
            shape = (batch, components[name].size)
            for source, (_, size) in step.sources.items():
                jacobians[name, source] = _finish(algebra, found.get(source), size, shape)
            for relay in places:
                if Relay(relay) in found:
                    size = components[relay].size
                    relayed[name, relay] = _finish(algebra, found[Relay(relay)], size, shape)
        result = onnx.ModelProto()
        result.CopyFrom(self.model)
        every = [*jacobians.values(), *relayed.values()]
        working = builder.add_to(result.graph, [j.tensor for j in every if j.tensor])
        return Linearization(step, result, jacobians, "jvp", batch, working, relayed)


def _finish(algebra: Algebra, block: Block | None, rows: int, shape: tuple[int, int]) -> Jacobian:
    """The simplest kind that holds a block of a state of `shape` ``[position, n]``."""
    if block is None:
        return Jacobian("zero", None)
    builder = algebra.builder
    if isinstance(block, Selection) and rows == shape[1]:
        own = block.index == np.arange(rows)
        if own.all() and block.scale is None:
            return Jacobian("identity", None)
        if (own | (block.index < 0)).all():
            scale = block.scale or builder.constant(np.ones((1, 1)))
            if not own.all():
                scale = builder.mul(scale, builder.constant(own))
            return Jacobian("diagonal", builder.expand(scale, (scale.shape[0], rows)).name)
    return Jacobian("dense", algebra.by_unit(block, shape).name)
