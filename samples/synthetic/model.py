"""The one-hot LSTM of Verwimp et al. (2020, section 4.2.1), and its training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class OneHotLSTM(nn.Module):
    """One LSTM layer that reads one-hot vectors, and an output layer.

    Args:
        tokens: V, the end of a line included.
        hidden: Units.
    """

    def __init__(self, tokens: int, hidden: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.core = nn.LSTM(tokens, hidden, batch_first=True)
        self.output = nn.Linear(hidden, tokens)
        with torch.no_grad():
            # The usual start for long dependencies: at first, gates forget little.
            self.core.bias_ih_l0[hidden : 2 * hidden] += 1

    def forward(self, tokens, state=None):
        y, state = self.core(F.one_hot(tokens, self.tokens).float(), state)
        return self.output(y), state


def streams(ids: np.ndarray, batch: int, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and targets ``[batch, steps]`` of the corpus, cut in `batch` streams."""
    length = (len(ids) - 1) // batch
    inputs = torch.from_numpy(ids[: batch * length].reshape(batch, length))
    targets = torch.from_numpy(ids[1 : batch * length + 1].reshape(batch, length))
    for start in range(0, length, steps):
        here = slice(start, start + steps)
        yield inputs[:, here].long(), targets[:, here].long()


def train(
    ids: np.ndarray,
    checkpoint: Path,
    *,
    tokens: int,
    hidden: int,
    batch: int,
    steps: int,
    epochs: int,
    learning_rate: float = 0.05,
    clip: float = 5.0,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda epoch, loss: None,
) -> OneHotLSTM:
    """Train with Adagrad, going on where `checkpoint`, written after every epoch, left off.

    The loss is summed over the steps and averaged over the streams, the gradient's norm clipped,
    and Adagrad's accumulators start at 0.1: so does the code that the paper was published with.
    The size of the loss matters to the last two.

    Args:
        ids: ``[position]`` int8 or wider.
        checkpoint: A file; need not exist.
        tokens: V.
        hidden: Units.
        batch: Streams that are read side by side.
        steps: Through which gradients are taken; the state is carried on.
        epochs: Times that the corpus is read.
        learning_rate: Of Adagrad.
        clip: Largest norm of the gradient.
        seed: Of the weights at the start.
        report: Called after each epoch with its number and the training loss per token.
    """
    torch.manual_seed(seed)
    model = OneHotLSTM(tokens, hidden)
    optimizer = torch.optim.Adagrad(
        model.parameters(), learning_rate, initial_accumulator_value=0.1
    )
    first = 0
    if checkpoint.exists():
        held = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(held["model"])
        optimizer.load_state_dict(held["optimizer"])
        first = held["epochs"]
    for epoch in range(first, epochs):
        state, total, count = None, 0.0, 0
        for inputs, targets in streams(ids, batch, steps):
            logits, state = model(inputs, state)
            state = tuple(part.detach() for part in state)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
            optimizer.zero_grad()
            (loss / batch).backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            total, count = total + loss.item(), count + targets.numel()
        report(epoch + 1, total / count)
        written = checkpoint.with_suffix(".tmp")
        held = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**held, "epochs": epoch + 1}, written)
        os.replace(written, checkpoint)
    return model.eval()
