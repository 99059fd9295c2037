"""The states of a stream: one step after another, nothing differentiated."""

from __future__ import annotations

import numpy as np

from . import _runtime
from .linearize import Step
from .linearize._step import runnable

States = dict[str, np.ndarray]
"""State → ``[1, n]``."""


class Stepper:
    """Carries the states of one stream from token to token.

    Args:
        step: The step.
        table: ``[V, E]`` embeddings.
        provider: ONNX Runtime provider.
    """

    def __init__(self, step: Step, table: np.ndarray, provider: str = _runtime.CPU) -> None:
        self._step, self._table = step, table
        # One stream is too little work for more than one thread.
        self._session = _runtime.session(runnable(step), provider, threads=1)
        self._reads = {i.name for i in self._session.get_inputs()}
        self._outputs = [c.output for c in step.components]

    def initial(self) -> States:
        """The states before the first token."""
        return {c.name: c.initial() for c in self._step.components}

    def advance(self, now: States, token: int, where: str = "") -> States:
        """The states after reading `token`; errors say `where`."""
        step = self._step
        feeds = {c.input: now[c.name] for c in step.components}
        feeds[step.embedding] = self._table[token][None]
        if step.tokens:
            feeds[step.tokens] = np.array([[token]], step.tokens_dtype)
        feeds = {n: v for n, v in feeds.items() if n in self._reads}
        outputs = _runtime.run(self._session, self._outputs, feeds, where)
        return {c.name: v for c, v in zip(step.components, outputs, strict=True)}
