"""The same weights in PyTorch and in Keras remember the same."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the sample carries weights between frameworks")
pytest.importorskip("tensorflow", reason="the sample carries weights between frameworks")
pytest.importorskip("tf2onnx", reason="the sample carries weights between frameworks")

SAMPLE = Path(__file__).parent.parent / "samples" / "carry.py"


@pytest.fixture(scope="module")
def carry():
    spec = importlib.util.spec_from_file_location("carry", SAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["carry"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_same_weights_same_memory(carry, kind, tmp_path):
    found = carry.memories(kind, tmp_path, sizes=(20, 6, 8), positions=120)
    for name in ("keras", "torch again"):
        assert carry.difference(found[name], found["torch"]) < 1e-4


def test_swapped_gates_would_be_seen(carry, tmp_path, monkeypatch):
    monkeypatch.setattr(carry, "_reordered", lambda matrix, kind: matrix)
    found = carry.memories("GRU", tmp_path, sizes=(20, 6, 8), positions=120)
    assert carry.difference(found["keras"], found["torch"]) > 1e-2
    assert np.isfinite(found["keras"]).all()
