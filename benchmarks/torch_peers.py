"""PyTorch's own ways: forward mode, the same compiled, and reverse mode."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch.func import jacfwd, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from .cells import Functions, Weights, step
from .peer import Peer, Unavailable
from .shapes import FIRST, Job

FUNCTIONS = Functions(torch.sigmoid, torch.tanh)


class _Torch(Peer):
    def __init__(self, job: Job, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(job)
        self._layers = [Weights(*(torch.tensor(a, dtype=dtype) for a in w)) for w in job.weights]
        self._xs = torch.tensor(job.embedded, dtype=dtype)
        self._before = [torch.tensor(b, dtype=dtype) for b in job.before]

    def _step(self, x, states: tuple) -> tuple:
        return step(FUNCTIONS, self.job.shape.cell, self._layers, x, states)


class ForwardMode(_Torch):
    """vmap over input positions of jacfwd through the steps that follow each."""

    def __init__(self, job: Job, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(job, dtype)
        self.multiple = job.shape.batch
        self._jacobian = vmap(jacfwd(self._follow))
        self._run = self._summed

    def _follow(self, x, rest, *states):
        states = self._step(x, states)
        found = [states]
        for y in rest:
            states = self._step(y, states)
            found.append(states)
        return tuple(torch.stack(s) for s in zip(*found, strict=True))

    def _summed(self, xs, rest, *states):
        return tuple(j.sum(0) for j in self._jacobian(xs, rest, *states))

    def _arguments(self, low: int) -> tuple:
        at = torch.arange(low, low + self.multiple)
        later = at[:, None] + torch.arange(1, self.job.shape.delays + 1)
        return self._xs[at], self._xs[later], *(b[at] for b in self._before)

    @torch.no_grad()
    def sums(self, start: int, stop: int) -> dict[str, np.ndarray]:
        total: list[torch.Tensor] = []
        for low in range(start, stop, self.multiple):
            sums = self._run(*self._arguments(low))
            total = [a + s for a, s in zip(total, sums, strict=True)] if total else list(sums)
        return {n: t.numpy() for n, t in zip(self.job.names, total, strict=True)}


class Compiled(ForwardMode):
    """The same under torch.compile; compiling, a minute or more, is not timed.

    The transforms are resolved by tracing first: torch.compile fails on vmap(jacfwd) with an
    internal error (PyTorch issues 151196 and 160508) after which forward mode is out of order in
    the whole process.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        arguments = self._arguments(FIRST)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated functions that it calls itself
            try:
                self._run = torch.compile(make_fx(self._summed)(*arguments), dynamic=False)
                self._run(*arguments)
            except Exception as error:  # whatever a compiler may meet
                raise Unavailable(f"torch.compile failed: {_first_line(error)}") from error


class ReverseMode(_Torch):
    """One pass for each unit of each state at each delay, those of a state batched."""

    def sums(self, start: int, stop: int) -> dict[str, np.ndarray]:
        shape = self.job.shape
        units = torch.eye(shape.hidden)
        total = {
            n: torch.zeros(shape.delays + 1, shape.hidden, shape.embedding) for n in self.job.names
        }
        for s in range(start, stop):
            x = self._xs[s].clone().requires_grad_()
            states = tuple(b[s] for b in self._before)
            for delay in range(shape.delays + 1):
                states = self._step(self._xs[s + delay] if delay else x, states)
                for name, value in zip(self.job.names, states, strict=True):
                    (rows,) = torch.autograd.grad(
                        value, x, units, retain_graph=True, is_grads_batched=True
                    )
                    total[name][delay] += rows
        return {n: t.numpy() for n, t in total.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
