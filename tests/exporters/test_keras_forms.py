"""Every form of Keras model: exported, differentiated, and right at every delay; or refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow", reason="the Keras exporter needs TensorFlow")
pytest.importorskip("tf2onnx", reason="the Keras exporter needs tf2onnx")
sys.path.insert(0, str(Path(__file__).parent))

from keras_forms import FORMS, V
from mnemoscope.analyzer import Corpus, analyze, open_model
from mnemoscope.analyzer.errors import ModelError

pytestmark = [
    # h5py as TensorFlow takes it, and Keras' own deprecations.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]
DELAYS, LENGTH = 50, 120
# In float64 nothing but rounding is left, so that a wrong model cannot hide behind float32.
BARS = {("jvp", "float32"): 1e-5, ("jvp", "float64"): 1e-9, ("fd", "float32"): 5e-3}


@pytest.mark.parametrize("form", [f for f in FORMS if not f.refused], ids=lambda f: f.name)
def test_form(form, tmp_path):
    ids = np.random.default_rng(1).integers(1, V, LENGTH)
    model = open_model(form.export(tmp_path))
    wanted = form.oracle(ids, DELAYS)
    for (method, precision), bar in BARS.items():
        tree = analyze(
            model, Corpus(ids, "random", "", 1, 0), delays=DELAYS, method=method,
            precision=precision,
        )  # fmt: skip
        assert set(tree.children) == set(wanted)
        for name, truth in wanted.items():
            mean = np.asarray(tree[name]["gradient"][0], np.float64)
            error = np.linalg.norm(mean - truth, axis=(1, 2)) / np.linalg.norm(truth, axis=(1, 2))
            assert error.max() <= bar, (method, precision, name, error.max(), error.argmax())


@pytest.mark.parametrize("form", [f for f in FORMS if f.refused], ids=lambda f: f.name)
def test_refused(form, tmp_path):
    with pytest.raises(ModelError, match=f"(?s){form.refused}"):
        form.export(tmp_path)
    assert not list(tmp_path.glob("*.onnx*"))
