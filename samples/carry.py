"""One model in two frameworks: weights carried from PyTorch to Keras and back.

``python samples/carry.py`` builds a small LSTM, GRU and RNN language model in PyTorch, gives its
weights to a Keras model and those of that one to a second PyTorch model, exports all three, and
prints by how much their memories differ: the largest relative difference of the mean
state-embedding Jacobians at any delay. Needs torch, tensorflow and tf2onnx.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import torch
from mnemoscope.analyzer import Corpus, analyze, open_model
from mnemoscope.exporters import pytorch, tensorflow

KINDS = ("LSTM", "GRU", "RNN")


class LanguageModel(torch.nn.Module):
    """Embedding, one recurrent layer, output.

    Args:
        kind: One of `KINDS`.
        vocabulary: Number of tokens.
        embedding: Size of the embedding.
        units: Size of the state.
    """

    def __init__(self, kind: str, vocabulary: int, embedding: int, units: int) -> None:
        super().__init__()
        self.kind = kind
        self.embedding = torch.nn.Embedding(vocabulary, embedding)
        self.core = getattr(torch.nn, kind)(embedding, units, batch_first=True)
        self.output = torch.nn.Linear(units, vocabulary)

    def forward(self, tokens, state=None):
        y, state = self.core(self.embedding(tokens), state)
        return self.output(y), state


def _reordered(matrix: np.ndarray, kind: str) -> np.ndarray:
    """Gates along the first axis, from one framework's order to the other's and back.

    LSTM: both keep i, f, g, o. GRU: PyTorch r, z, n; Keras z, r, h.
    """
    if kind != "GRU":
        return matrix
    first, second, last = np.split(matrix, 3)
    return np.concatenate([second, first, last])


def to_keras(module: LanguageModel) -> keras.Model:
    """A Keras model with the weights of `module`."""
    weights = {k: v.detach().numpy() for k, v in module.state_dict().items()}
    vocabulary, embedding = weights["embedding.weight"].shape
    units = weights["core.weight_hh_l0"].shape[1]
    layer = {
        "LSTM": keras.layers.LSTM,
        "GRU": keras.layers.GRU,  # reset_after, as PyTorch and cuDNN have it
        "RNN": keras.layers.SimpleRNN,
    }[module.kind](units, return_sequences=True)
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int64"),
            keras.layers.Embedding(vocabulary, embedding),
            layer,
            keras.layers.Dense(vocabulary),
        ]
    )
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    inputs, recurrent, b_inputs, b_recurrent = (
        _reordered(weights[f"core.{name}"], module.kind) for name in names
    )
    # Only the candidate of a GRU tells the two biases apart.
    bias = np.stack([b_inputs, b_recurrent]) if module.kind == "GRU" else b_inputs + b_recurrent
    model.layers[0].set_weights([weights["embedding.weight"]])
    layer.set_weights([inputs.T, recurrent.T, bias])
    model.layers[2].set_weights([weights["output.weight"].T, weights["output.bias"]])
    return model


def to_torch(model: keras.Model) -> LanguageModel:
    """A PyTorch model with the weights of `model`, as `to_keras` builds it."""
    table, layer, dense = model.layers
    kind = {"SimpleRNN": "RNN"}.get(type(layer).__name__, type(layer).__name__)
    inputs, recurrent, bias = layer.get_weights()
    matrix, offset = dense.get_weights()
    (embeddings,) = table.get_weights()
    module = LanguageModel(kind, *embeddings.shape, recurrent.shape[0])
    biases = bias if kind == "GRU" else np.stack([bias, np.zeros_like(bias)])
    values = {
        "embedding.weight": embeddings,
        "core.weight_ih_l0": _reordered(inputs.T, kind),
        "core.weight_hh_l0": _reordered(recurrent.T, kind),
        "core.bias_ih_l0": _reordered(biases[0], kind),
        "core.bias_hh_l0": _reordered(biases[1], kind),
        "output.weight": matrix.T,
        "output.bias": offset,
    }
    module.load_state_dict({k: torch.tensor(np.array(v)) for k, v in values.items()})
    return module


def memories(
    kind: str, folder: Path, *, sizes=(50, 16, 24), delays: int = 50, positions: int = 300
) -> dict[str, np.ndarray]:
    """Mean gradients of one model in three guises.

    Args:
        kind: One of `KINDS`.
        folder: Where the memory models are written.
        sizes: Vocabulary, embedding, units.
        delays: Largest delay.
        positions: Length of the random corpus.

    Returns:
        Guise → ``[delay, unit, embedding]`` of the hidden state.
    """
    torch.manual_seed(0)
    module = LanguageModel(kind, *sizes).eval()
    carried = to_keras(module)
    guises = {"torch": module, "keras": carried, "torch again": to_torch(carried).eval()}
    ids = np.random.default_rng(0).integers(0, sizes[0], positions)
    found = {}
    for name, guise in guises.items():
        path = folder / f"{kind}-{name}.onnx"
        if isinstance(guise, torch.nn.Module):
            pytorch.export(guise, path)
        else:
            tensorflow.export(guise, path)
        tree = analyze(open_model(path), Corpus(ids, "random", "", 1, 0), delays=delays)
        found[name] = np.asarray(tree[f"{kind.lower()}0.h"]["gradient"][0], np.float64)
    return found


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest relative difference (Frobenius norm) at any delay."""
    norms = np.linalg.norm(b, axis=(1, 2))
    return float((np.linalg.norm(a - b, axis=(1, 2)) / norms).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            found = memories(kind, Path(folder))
            for name in ("keras", "torch again"):
                print(f"{kind:4} torch and {name:12} {difference(found[name], found['torch']):.1e}")


if __name__ == "__main__":
    main()
