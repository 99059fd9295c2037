"""The states of a stream: one step after another, nothing differentiated."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from . import _runtime
from .linearize import Step
from .linearize._step import runnable

States = dict[str, np.ndarray]
"""State → ``[1, n]``."""

AT_ONCE = 256  # tokens read in one call: more gain nothing
_BYTES = 2**24  # of the states after them


class Stepper:
    """Carries the states of one stream from token to token, on the CPU.

    Args:
        step: The step.
        table: ``[V, E]`` embeddings.
    """

    def __init__(self, step: Step, table: np.ndarray) -> None:
        self._step, self._table = step, table
        # One stream is too little work for more than one thread.
        self._session = _runtime.session(_over_time(step), threads=1)

    def initial(self) -> States:
        """The states before the first token."""
        return {c.name: c.initial() for c in self._step.components}

    def read(self, now: States, tokens: np.ndarray, where: str = "") -> States:
        """The states after each token.

        Args:
            now: Those before the first.
            tokens: ``[time]`` ids.
            where: What errors say.

        Returns:
            State → ``[time, n]``.
        """
        step = self._step
        found = {c.name: np.empty((len(tokens), c.size), c.dtype) for c in step.components}
        each = sum(c.size * c.dtype.itemsize for c in step.components)
        at_once = max(1, min(AT_ONCE, _BYTES // each))
        for low in range(0, len(tokens), at_once):
            ids = tokens[low : low + at_once]
            feeds = {_outer(step, c.input): now[c.name] for c in step.components}
            feeds[_outer(step, step.embedding)] = self._table[ids][:, None]
            if step.tokens:
                integers = ids[:, None, None].astype(step.tokens_dtype)
                feeds[_outer(step, step.tokens)] = integers
            names = [_outer(step, c.output) for c in step.components]
            values = _runtime.run(self._session, names, feeds, where)
            for c, value in zip(step.components, values, strict=True):
                found[c.name][low : low + len(ids)] = value[:, 0]
            now = {n: v[low + len(ids) - 1][None] for n, v in found.items()}
        return found


def _outer(step: Step, name: str) -> str:
    """What an input or output of a step is called for all of time."""
    return f"{step.prefix}time/{name}"


def _over_time(step: Step) -> onnx.ModelProto:
    """The step in a loop over the tokens, giving the states after each.

    In one call, since calls cost as much as what they compute.
    """
    inner = runnable(step)
    model, body = onnx.ModelProto(), onnx.GraphProto(name="step")
    model.CopyFrom(inner)
    body.node.extend(inner.graph.node)
    graph = model.graph
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]

    def info(name: str, dtype: np.dtype, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)

    read = [(step.embedding, step.dtype, step.embedding_size)]
    if step.tokens:
        read.append((step.tokens, step.tokens_dtype, 1))
    kept = []
    for c in step.components:
        body.input.append(info(c.input, c.dtype, 1, c.size))
        body.output.append(info(c.output, c.dtype, 1, c.size))
        graph.input.append(info(_outer(step, c.input), c.dtype, 1, c.size))
        graph.output.append(info(_outer(step, c.output), c.dtype, "time", 1, c.size))
        copy = f"{c.output}/kept"
        body.node.append(helper.make_node("Identity", [c.output], [copy]))
        kept.append(info(copy, c.dtype, 1, c.size))
    body.output.extend(kept)
    for name, dtype, size in read:
        body.input.append(info(name, dtype, 1, size))
        graph.input.append(info(_outer(step, name), dtype, "time", 1, size))
    last = [_outer(step, f"{c.output}/last") for c in step.components]
    every = [o.name for o in graph.output]
    loop = helper.make_node("Scan", [i.name for i in graph.input], [*last, *every], body=body,
                            num_scan_inputs=len(read))  # fmt: skip
    graph.node.append(loop)
    return model
