"""The models that are timed, and the job that every peer does with one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from .cells import CELLS, Weights

VOCABULARY = 200
FIRST = 8  # inputs before the first that is followed, so that states are not at their start


@dataclass(frozen=True)
class Shape:
    """A model's size, and how much of it is timed.

    Attributes:
        batch: Positions that `vmap` takes at once; `positions` is a multiple of it.
        fewer: Peer → positions, where it is so slow that fewer must do.
        left_out: Peer → why it is not run.
    """

    name: str
    cell: str
    embedding: int
    hidden: int
    layers: int = 1
    delays: int = 50
    positions: int = 512
    batch: int = 32
    fewer: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        layers = f"{self.layers}-layer " if self.layers > 1 else ""
        return f"{layers}{self.cell} {self.embedding}/{self.hidden}, delays 0–{self.delays}"

    def resized(self, positions: int | None, delays: int | None) -> Shape:
        """The same with what the command asks for."""
        asked = self.positions if positions is None else positions
        whole = max(1, asked // self.batch) * self.batch
        fewer = {k: min(v, whole) for k, v in self.fewer.items()}
        return replace(self, positions=whole, fewer=fewer,
                       delays=self.delays if delays is None else delays)  # fmt: skip

    def positions_of(self, peer: str) -> int:
        return self.fewer.get(peer, self.positions)


SHAPES = {
    s.name: s
    for s in (
        Shape("lstm", "LSTM", 64, 256, fewer={"reverse": 8}),
        Shape("gru", "GRU", 64, 256, fewer={"reverse": 8}),
        Shape("two-layer", "LSTM", 200, 200, layers=2, positions=128, batch=8,
              fewer={"reverse": 4}),
        # The size of AWD-LSTM. With 50 delays the tangents alone take 1.1 GB in every peer, and a
        # position more than a tera of multiplications.
        Shape("awd", "LSTM", 400, 1150, layers=3, delays=10, positions=8, batch=2,
              left_out={"reverse": "6,900 passes for each delay: minutes a position"}),
        Shape("tiny", "LSTM", 16, 50, positions=2048, batch=64, fewer={"reverse": 32}),
    )
}  # fmt: skip


class LanguageModel(torch.nn.Module):
    """What is exported: an embedding and one recurrent module."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, shape.embedding)
        kind = getattr(torch.nn, shape.cell)
        self.core = kind(shape.embedding, shape.hidden, shape.layers, batch_first=True)
        self.output = torch.nn.Linear(shape.hidden, VOCABULARY)

    def forward(self, tokens, state=None):
        y, state = self.core(self.embedding(tokens), state)
        return self.output(y), state


class Job:
    """A model, its file, and the corpus: the same for every peer and in every process.

    Args:
        shape: Which.
        path: Its file, written if it is not there.
        threads: How many every peer may use.
    """

    def __init__(self, shape: Shape, path: Path, threads: int) -> None:
        self.shape, self.path, self.threads = shape, path, threads
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.module = LanguageModel(shape).eval().requires_grad_(False)
        length = FIRST + shape.positions + shape.delays + 1
        self.ids = np.random.default_rng(0).integers(0, VOCABULARY, length)
        if not path.exists():
            from mnemoscope.exporters import pytorch

            pytorch.export(self.module, path, vocabulary_size=VOCABULARY)

    @property
    def names(self) -> list[str]:
        """Of the states, as results name them, in the order of `cells.step`."""
        cell = self.shape.cell
        return [f"{cell.lower()}{i}.{part}" for i in range(self.shape.layers)
                for part in CELLS[cell][1]]  # fmt: skip

    @property
    def weights(self) -> list[Weights]:
        core = self.module.core
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return [Weights(*(getattr(core, f"{k}_l{i}").numpy() for k in kinds))
                for i in range(self.shape.layers)]  # fmt: skip

    @cached_property
    def embedded(self) -> np.ndarray:
        """``[position, E]``, the corpus."""
        return self.module.embedding.weight.numpy()[self.ids]

    @cached_property
    def before(self) -> list[np.ndarray]:
        """``[position, H]`` for each state, its value before each position."""
        state, found = None, []
        for x in torch.from_numpy(self.embedded):
            if state is None:
                now = (torch.zeros(self.shape.layers, self.shape.hidden),) * (
                    2 if self.shape.cell == "LSTM" else 1
                )
            else:
                now = tuple(s[:, 0] for s in (state if isinstance(state, tuple) else (state,)))
            found.append(torch.stack([p[i] for i in range(self.shape.layers) for p in now]))
            _, state = self.module.core(x[None, None], state)
        return list(torch.stack(found, 1).numpy())
