"""JAX: vmap over input positions of jacfwd through a scan, under jit."""

from __future__ import annotations

import os

import numpy as np

from .cells import Functions, Weights, step
from .peer import Peer, Unavailable
from .shapes import FIRST, Job


class Jax(Peer):
    """Compiling is not timed."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.multiple = job.shape.batch
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        try:
            import jax
        except ModuleNotFoundError as error:
            raise Unavailable("pip install '.[bench]'") from error
        numpy = jax.numpy
        functions = Functions(jax.nn.sigmoid, numpy.tanh)
        layers = [Weights(*map(numpy.asarray, w)) for w in job.weights]

        def follow(x, rest, *states):
            def one(states, y):
                new = step(functions, job.shape.cell, layers, y, states)
                return new, new

            first, _ = one(states, x)
            _, later = jax.lax.scan(one, first, rest)
            return tuple(numpy.concatenate([f[None], s]) for f, s in zip(first, later, strict=True))

        def summed(*arguments):
            return tuple(j.sum(0) for j in jax.vmap(jax.jacfwd(follow))(*arguments))

        self._run = jax.jit(summed).lower(*self._arguments(FIRST)).compile()

    def _arguments(self, low: int) -> tuple:
        at = np.arange(low, low + self.multiple)
        xs = self.job.embedded
        later = at[:, None] + np.arange(1, self.job.shape.delays + 1)
        return xs[at], xs[later], *(b[at] for b in self.job.before)

    def sums(self, start: int, stop: int) -> dict[str, np.ndarray]:
        total: list = []
        for low in range(start, stop, self.multiple):
            sums = self._run(*self._arguments(low))
            total = [a + s for a, s in zip(total, sums, strict=True)] if total else list(sums)
        return {n: np.asarray(t) for n, t in zip(self.job.names, total, strict=True)}
