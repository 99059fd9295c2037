"""What a graph computes for one concrete input: every shape, and every value that is constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from .. import _runtime
from .._passes import reads

_SHAPE_ONLY = frozenset({"Shape", "Size"})
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
     "Multinomial"}
)  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """Concrete facts of a graph at one batch size.

    Attributes:
        shapes: Tensor name → shape, for every tensor of the main graph.
        dtypes: Tensor name → numpy type.
        constants: Tensor name → value, for those that no input's value influences.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]
    constants: dict[str, np.ndarray]


Feeds = dict[str, np.ndarray]
Evaluate = Callable[[onnx.ModelProto, Sequence[str], Feeds], Feeds]


def probe(model: onnx.ModelProto, feeds: Feeds, evaluate: Evaluate = _runtime.evaluate) -> Probe:
    """Run `model` once on `feeds` with every tensor as an output.

    A value counts as constant when it derives from initialisers and from shapes only: with the
    batch size fixed, a shape is a number. `evaluate` gives the values of named tensors.
    """
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    fixed = set(constants)
    names = []
    for node in model.graph.node:
        outputs = [n for n in node.output if n]
        names += outputs
        inputs = reads(node)
        if node.op_type in _SHAPE_ONLY or (node.op_type not in _RANDOM and inputs <= fixed):
            fixed.update(outputs)
    values = dict(feeds)
    values.update(evaluate(model, names, feeds))
    for name in fixed - set(constants):
        if name in values:
            constants[name] = values[name]
    every = {**constants, **values}
    return Probe(
        {n: tuple(v.shape) for n, v in every.items()},
        {n: v.dtype for n, v in every.items()},
        constants,
    )
