"""The equations of the cells, once for every framework that writes ``@`` and slices alike."""

from __future__ import annotations

from typing import Any, NamedTuple


class Weights(NamedTuple):
    """One layer's, gates stacked in PyTorch's order: i f g o of an LSTM, r z n of a GRU."""

    input: Any  # [gates · H, E]
    hidden: Any  # [gates · H, H]
    input_bias: Any
    hidden_bias: Any


class Functions(NamedTuple):
    """What the equations need of a framework."""

    sigmoid: Any
    tanh: Any


def lstm(f: Functions, w: Weights, x, h, c):
    n = h.shape[-1]
    gates = x @ w.input.T + h @ w.hidden.T + (w.input_bias + w.hidden_bias)
    i, forget, g, o = (gates[..., k * n : (k + 1) * n] for k in range(4))
    c = f.sigmoid(forget) * c + f.sigmoid(i) * f.tanh(g)
    return f.sigmoid(o) * f.tanh(c), c


def gru(f: Functions, w: Weights, x, h):
    n = h.shape[-1]
    read, kept = x @ w.input.T + w.input_bias, h @ w.hidden.T + w.hidden_bias
    r = f.sigmoid(read[..., :n] + kept[..., :n])
    z = f.sigmoid(read[..., n : 2 * n] + kept[..., n : 2 * n])
    candidate = f.tanh(read[..., 2 * n :] + r * kept[..., 2 * n :])
    return ((1 - z) * candidate + z * h,)


CELLS = {"LSTM": (lstm, ("h", "c")), "GRU": (gru, ("h",))}
"""Cell → its equations, and what the states that they take and give are called."""


def step(f: Functions, cell: str, layers: list[Weights], x, states: tuple) -> tuple:
    """The states of all layers after one more input, in the order of the layers."""
    equations, parts = CELLS[cell]
    after: list = []
    for i, weights in enumerate(layers):
        new = equations(f, weights, x, *states[i * len(parts) : (i + 1) * len(parts)])
        x = new[0]
        after += new
    return tuple(after)
