"""What a memory model is made of, as plain data."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import numpy_helper

from . import _passes, _runtime
from ._files import printable
from .errors import NoBlockRule, NoDerivative
from .linearize import block_linearization, build_step
from .model import MemoryModel


def describe(model: MemoryModel) -> dict[str, Any]:
    """The facts that ``mnemoscope inspect`` prints; every value can be written as JSON.

    Raises:
        ModelError: The model's recurrent core does not run.
    """
    step = build_step(model)
    proto, roles, vocabulary = model.proto, model.roles, model.vocabulary
    arrays = [numpy_helper.to_array(t) for t in _passes.weights(proto)]
    blocks: dict[str, dict[str, str]] | None
    obstacle: str | None = None
    missing: list[str] = []
    try:
        linear = block_linearization(step)
        blocks = {
            c.name: {s: linear.jacobians[c.name, s].kind for s in step.sources}
            for c in step.differentiable
        }
    except NoBlockRule as error:
        blocks, obstacle = None, str(error).rstrip(".")
        if not isinstance(error, NoDerivative):
            missing = obstacle.split("; ")
    return {
        "path": printable(model.path),
        "ir_version": proto.ir_version,
        "opset": {o.domain or "ai.onnx": o.version for o in proto.opset_import},
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "roles": {
            "tokens": roles.tokens,
            "embedding": roles.embedding,
            "logits": roles.logits,
            "normalized": roles.normalized,
        },
        "embedding_size": step.embedding_size,
        "states": [
            {
                "name": c.name,
                "kind": c.state.kind,
                "layer": c.state.layer,
                "size": c.size,
                "dtype": str(np.dtype(c.dtype)),
                "differentiated": c.differentiable,
                "input": c.state.input,
                "output": c.state.output,
                "initial": "zeros" if c.state.initial is None else "stored",
            }
            for c in step.components
        ],
        "vocabulary": None
        if vocabulary is None
        else {
            "size": len(vocabulary.tokens),
            "level": vocabulary.level,
            "unknown": vocabulary.unknown,
            "end_of_line": vocabulary.end_of_line,
        },
        "source": dict(roles.source),
        "parameters": {
            "count": int(sum(a.size for a in arrays)),
            "bytes": int(sum(a.nbytes for a in arrays)),
        },
        "blocks": blocks,
        "obstacle": obstacle,
        "operators_without_rule": missing,
        "providers": _runtime.providers(),
    }
