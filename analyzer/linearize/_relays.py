"""Relays: states whose successors the same step reads on, as one layer reads the layer below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from .._passes import reads
from ._blocks import Algebra, Selection
from ._graph import Builder
from ._probe import Probe
from ._rules import STRUCTURAL, Blocks
from ._step import Component
from ._walk import walk

_MOVES = {*STRUCTURAL, "Concat", "Identity"}  # operators whose output holds elements of an input


@dataclass(frozen=True)
class Relay:
    """The successor of a state, as a source of derivatives.

    Attributes:
        state: Its name.
    """

    state: str


@dataclass(frozen=True)
class Place:
    """A tensor of the graph whose elements are those of a state's successor.

    Attributes:
        tensor: Its name.
        shape: Its shape.
        ids: ``[batch, n]``, at which flat position of the tensor each element of the state lies.
    """

    tensor: str
    shape: tuple[int, ...]
    ids: np.ndarray

    @property
    def selection(self) -> Selection:
        """The tensor by the state's successor."""
        index = np.empty(self.ids.size, np.int64)
        index[self.ids] = np.arange(self.ids.shape[1])
        return Selection(index.reshape(self.shape), None, self.ids.shape[1])

    def rearranged(self, blocks: Blocks, algebra: Algebra) -> Blocks:
        """The derivative of the state's successor, from that of the tensor."""
        return {s: algebra.rearrange(b, self.shape, self.ids) for s, b in blocks.items()}


def places_of(
    components: Sequence[Component], model: onnx.ModelProto, facts: Probe, batch: int
) -> dict[str, Place]:
    """Where the graph computes the successors of states, in the order in which it does.

    A state leaves the graph rearranged, and the layer above reads another arrangement: what is
    looked for is the tensor before either.

    Args:
        components: The states; those are left out whose successor is not one whole tensor, or
            is one that nothing else reads.
        model: A graph of operators with rules.
        facts: Its shapes and constants.
        batch: Positions of one call.
    """
    makers = {n: node for node in model.graph.node for n in node.output if n}
    found: dict[str, Place] = {}
    for component in components:
        # From the output back through what only moves elements.
        seen, todo, ends = set[int](), [component.output], list[str]()
        while todo:
            name = todo.pop()
            node = makers.get(name)
            if node is None or id(node) in seen:
                continue
            if node.op_type not in _MOVES or node.domain not in ("", "ai.onnx"):
                ends.append(name)
                continue
            seen.add(id(node))
            todo += node.input if node.op_type == "Concat" else node.input[:1]
        moved = {n for node in model.graph.node if id(node) in seen for n in node.output}
        others = [node for node in model.graph.node if id(node) not in seen]
        if not any(reads(node) & {*moved, *ends} for node in others):
            continue
        path = onnx.ModelProto()
        path.opset_import.extend(model.opset_import)
        path.graph.node.extend(n for n in model.graph.node if id(n) in seen)
        for name in ends:
            place = _place(name, component, path, facts, batch)
            if place and name not in (p.tensor for p in found.values()):
                found[component.name] = place
                break
    order = {name: i for i, name in enumerate(makers)}
    return dict(sorted(found.items(), key=lambda item: order[item[1].tensor]))


def _place(
    name: str, component: Component, path: onnx.ModelProto, facts: Probe, batch: int
) -> Place | None:
    """The tensor as the place of a state, if it holds all of the state and nothing else."""
    shape = facts.shapes.get(name)
    if shape is None or np.prod(shape) != batch * component.size:
        return None
    ids = np.arange(batch * component.size).reshape(shape)
    builder = Builder(np.dtype(np.float32))
    block = walk(path, facts, {name: ("place", ids)}, builder).blocks.get(component.output, {}).get(
        "place"
    )  # fmt: skip
    if not isinstance(block, Selection) or block.scale is not None:
        return None
    whole = np.array_equal(np.sort(block.index, None), np.arange(ids.size))
    return Place(name, shape, block.index) if whole else None
