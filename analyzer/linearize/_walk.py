"""Walk a step graph once and emit a graph that also computes its derivative blocks."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from .._passes import reads
from ..errors import NoBlockRule, NoDerivative
from ._blocks import Algebra, Block, Selection
from ._graph import Builder, Tensor
from ._linearization import Jacobian, Linearization
from ._probe import Probe, probe
from ._rules import ZERO, Blocks, Part, Use, differentiate, parts_of, rounds
from ._step import Step, lowered


def block_linearization(step: Step, batch: int = 1) -> Linearization:
    """The derivatives of one step by block rules.

    Args:
        step: The step.
        batch: Positions that one call is to take; more than 1 needs a step whose streams do not
            mix (see `_step.together`).

    Raises:
        NoBlockRule: Names every operator on the way from a source to a state that has no rule.
    """
    model = lowered(step, batch)
    feeds = step.example(batch)
    facts = probe(model, feeds)
    sources = {
        graph_input: (name, np.broadcast_to(np.arange(size), (batch, size)))
        for name, (graph_input, size) in step.sources.items()
    }
    builder = Builder(step.dtype, f"{step.prefix}d")
    blocks, missing = walk(model, facts, sources, builder)
    reached = [m for c in step.differentiable for m in missing.get(c.output, ())]
    if reached:
        raise NoBlockRule("; ".join(dict.fromkeys(reached)))
    algebra = Algebra(builder)
    jacobians = {}
    for component in step.differentiable:
        for name, (_, size) in step.sources.items():
            block = blocks.get(component.output, {}).get(name)
            shape = (batch, component.size)
            jacobians[component.name, name] = _finish(algebra, block, size, shape)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.node.extend(builder.nodes)
    result.graph.initializer.extend(builder.initializers)
    return Linearization(step, result, jacobians, "jvp", batch, builder.bytes)


def walk(
    model: onnx.ModelProto,
    facts: Probe,
    sources: dict[str, tuple[str, np.ndarray]],
    builder: Builder,
) -> tuple[dict[str, Blocks], dict[str, tuple[str, ...]]]:
    """Derivatives of every tensor of a graph.

    Args:
        model: A graph of operators with rules (see `_lower.lower`).
        facts: Its shapes and constants.
        sources: Graph input → source name and, for each element of the input, its position in
            the source; positions repeat along the axis of the streams.
        builder: Takes the nodes that compute the blocks.

    Returns:
        Tensor name → blocks per source; and tensor name → what stood in the way, for tensors
        whose derivative could not be found.
    """
    algebra = Algebra(builder)
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    blocks: dict[str, Blocks] = {
        graph_input: {name: Selection(index, None, int(index.max(initial=-1)) + 1)}
        for graph_input, (name, index) in sources.items()
    }
    missing: dict[str, tuple[str, ...]] = {}
    joined: dict[str, list[Part]] = {}

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
        if not obstacles:
            joined[node.output[0]] = parts_of(use)
    return blocks, missing


def _is_zero(block: Block) -> bool:
    """Whether a selection selects nothing: one layer's share of another layer's state."""
    return isinstance(block, Selection) and bool((block.index < 0).all())


def _is_float(facts: Probe, name: str) -> bool:
    return name in facts.dtypes and np.issubdtype(facts.dtypes[name], np.floating)


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
    return Jacobian("dense", algebra.full(block, shape, [1]).name)
