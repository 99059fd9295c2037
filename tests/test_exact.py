"""Mean gradients at every delay against float64 forward mode over hand-written steps."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="the oracle is torch.func")

import oracle
import torch
from mnemoscope.analyzer import Corpus, analyze, open_model
from mnemoscope.analyzer.linearize import _rules

# torch's own forward mode uses a part of torch that torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

DELAYS, LENGTH = 50, 120

# Products of exact steps in float32 keep about 3e-7 over 20 delays; rounding grows with the
# number of steps and with cancellation in the mean. Central differences lose eps^(2/3) a step.
BARS = {
    ("jvp", "float32"): 1e-5,
    ("jvp", "float64"): 1e-9,
    ("fd", "float32"): 5e-3,
    ("fd", "float64"): 1e-7,
}


@pytest.fixture(scope="module", params=oracle.CASES, ids=lambda c: c.name)
def exported(request, tmp_path_factory):
    from mnemoscope.exporters import pytorch

    case = request.param
    module = oracle.build(case)
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    pytorch.export(module, path, vocabulary=[f"w{i}" for i in range(oracle.V)])
    ids = np.random.default_rng(1).integers(0, oracle.V, LENGTH)
    wanted = oracle.mean_gradients(case, module, torch.tensor(ids), DELAYS)
    return case, open_model(path), Corpus(ids, "random", "", 1, 0), wanted


@pytest.mark.parametrize(("method", "precision"), BARS)
def test_mean_gradient(exported, method, precision):
    case, model, corpus, wanted = exported
    tree = analyze(model, corpus, delays=DELAYS, method=method, precision=precision)
    assert set(tree.children) == set(case.sizes)
    for name, truth in wanted.items():
        node = tree[name]
        np.testing.assert_array_equal(node["count"][0], LENGTH - np.arange(DELAYS + 1))
        mean = np.asarray(node["gradient"][0], np.float64)
        error = np.linalg.norm(mean - truth, axis=(1, 2)) / np.linalg.norm(truth, axis=(1, 2))
        assert error.max() <= BARS[method, precision], (name, error)


def test_planted_wrong_rule_is_caught(tmp_path, monkeypatch):
    from mnemoscope.exporters import pytorch

    case = oracle.CASES[0]
    module = oracle.build(case)
    pytorch.export(module, tmp_path / "m.onnx", vocabulary_size=oracle.V)
    ids = np.random.default_rng(1).integers(0, oracle.V, 30)
    wanted = oracle.mean_gradients(case, module, torch.tensor(ids), 5)
    right = _rules.ELEMENTWISE["Tanh"]
    monkeypatch.setitem(_rules.ELEMENTWISE, "Tanh", lambda x, y, a: right(x, y, a) * 1.001)
    tree = analyze(open_model(tmp_path / "m.onnx"), Corpus(ids, "random", "", 1, 0), delays=5)
    mean = np.asarray(tree["lstm0.h"]["gradient"][0])
    assert np.linalg.norm(mean - wanted["lstm0.h"]) > 1e-4 * np.linalg.norm(wanted["lstm0.h"])
