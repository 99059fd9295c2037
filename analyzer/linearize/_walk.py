"""Walk a graph once and emit nodes that compute the derivative of each of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper

from .._passes import reads
from ..errors import NoBlockRule, NoDerivative
from ._blocks import Algebra, Block, Selection
from ._graph import Builder, Tensor
from ._probe import Probe
from ._rules import ZERO, Blocks, Part, Use, differentiate, parts_of, rounds


class Walked(NamedTuple):
    """What a walk found.

    Attributes:
        blocks: Tensor name → blocks per source.
        missing: Tensor name → what stood in the way, for tensors whose derivative could not be
            found.
        stopped: Tensor name → the blocks that the walk had found where it was told to stop.
    """

    blocks: dict[str, Blocks]
    missing: dict[str, tuple[str, ...]]
    stopped: dict[str, Blocks]


def walk(
    model: onnx.ModelProto,
    facts: Probe,
    sources: dict[str, tuple[str, np.ndarray]],
    builder: Builder,
    stops: Mapping[str, Blocks] | None = None,
) -> Walked:
    """Derivatives of every tensor of a graph.

    Args:
        model: A graph of operators with rules (see `_lower.lower`).
        facts: Its shapes and constants.
        sources: Graph input → source name and, for each element of the input, its position in
            the source; positions repeat along the axis of the streams.
        builder: Takes the nodes that compute the blocks.
        stops: Tensor name → blocks that what reads it goes on from, by a source of its own.
    """
    algebra = Algebra(builder)
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    blocks: dict[str, Blocks] = {
        graph_input: {name: Selection(index, None, int(index.max(initial=-1)) + 1)}
        for graph_input, (name, index) in sources.items()
    }
    missing: dict[str, tuple[str, ...]] = {}
    joined: dict[str, list[Part]] = {}
    stopped: dict[str, Blocks] = {}
    stops = stops or {}

    def tensor(name: str) -> Tensor | None:
        return Tensor(name, facts.shapes[name]) if name in facts.shapes else None

    for node in model.graph.node:
        outputs = [n for n in node.output if n]
        names = reads(node)
        if not any(n in blocks or n in missing for n in names):
            continue
        if rounds(node.op_type):
            raise NoDerivative(
                f"{node.op_type} rounds its input, so the model has no derivative that means "
                "anything. Use --method fd, with a --step wider than the steps it rounds to."
            )
        standard = node.domain in ("", "ai.onnx")
        if (standard and node.op_type in ZERO) or not any(_is_float(facts, n) for n in outputs):
            continue
        obstacles = tuple(dict.fromkeys(m for n in sorted(names) for m in missing.get(n, ())))
        use = Use(
            node=node,
            attributes={a.name: helper.get_attribute_value(a) for a in node.attribute},
            inputs=[tensor(n) if n else None for n in node.input],
            outputs=[tensor(n) if n else None for n in node.output],
            blocks=[blocks.get(n, {}) for n in node.input],
            constants=[facts.constants.get(n) for n in node.input],
            builder=builder,
            algebra=algebra,
            opset=opset,
            parts=joined.get(node.input[0], []),
        )
        try:
            found = differentiate(use)
        except NoBlockRule as error:
            obstacles = (*obstacles, str(error))
            found = []
        if obstacles:
            missing.update(dict.fromkeys(outputs, obstacles))
        for name, derivative in zip(node.output, found, strict=False):
            kept = {s: b for s, b in derivative.items() if not _is_zero(b)}
            if name and kept and _is_float(facts, name):
                blocks[name] = kept
                if name in stops:
                    stopped[name], blocks[name] = kept, stops[name]
        if not obstacles:
            joined[node.output[0]] = parts_of(use)
    return Walked(blocks, missing, stopped)


def _is_zero(block: Block) -> bool:
    """Whether a selection selects nothing: one layer's share of another layer's state."""
    return isinstance(block, Selection) and bool((block.index < 0).all())


def _is_float(facts: Probe, name: str) -> bool:
    return name in facts.dtypes and np.issubdtype(facts.dtypes[name], np.floating)
