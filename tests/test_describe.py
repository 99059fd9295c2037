"""What `mnemoscope inspect` says of a model."""

from __future__ import annotations

import json

import models
import numpy as np
import pytest
from mnemoscope.analyzer import describe, open_model
from mnemoscope.analyzer.linearize import _rules
from onnx import helper, numpy_helper


@pytest.fixture
def told(tmp_path):
    def call(proto):
        data = describe(open_model(models.save(proto, tmp_path / "m.onnx")))
        assert json.loads(json.dumps(data)) == data
        return data

    return call


def test_blocks_of_an_lstm(told):
    assert told(models.fused(layers=1))["blocks"] == {
        "lstm0.h": {"lstm0.h": "dense", "lstm0.c": "diagonal", "embedding": "dense"},
        "lstm0.c": {"lstm0.h": "dense", "lstm0.c": "diagonal", "embedding": "dense"},
    }


def test_a_lower_layer_does_not_read_a_higher_one(told):
    blocks = told(models.fused("GRU", layers=3))["blocks"]
    for low in range(3):
        for high in range(3):
            expected = "zero" if high > low else "dense"
            assert blocks[f"gru{low}.h"][f"gru{high}.h"] == expected


def test_states(told):
    data = told(models.counter(dtype="float16"))
    assert [(s["name"], s["dtype"], s["differentiated"]) for s in data["states"]] == [
        ("n", "int64", False),
        ("h", "float32", True),
    ]
    assert data["blocks"] == {"h": {"h": "dense", "embedding": "dense"}}
    assert data["embedding_size"] == models.E
    assert data["vocabulary"]["size"] == models.V


def test_identity_and_zero(told):
    g = models.Graph()
    x = g.now()
    h = g.state("h", ["batch", 3], kind="hidden", layer=0, batch_axis=0)
    s = g.state("s", ["batch", 3], kind="other", layer=0, batch_axis=0)
    g.op("Add", s, x, out="s_next")
    g.op("Mul", x, g.constant(np.full((1, 3), 2.0), "float32"), out="h_next")
    g.op("Identity", h)
    assert told(g.finish(g.lone(x), 3, time=1))["blocks"] == {
        "h": {"h": "zero", "s": "zero", "embedding": "diagonal"},
        "s": {"h": "zero", "s": "identity", "embedding": "identity"},
    }


def test_an_operator_without_a_rule(told, monkeypatch):
    monkeypatch.delitem(_rules.RULES, "Tanh")
    data = told(models.flat())
    assert data["blocks"] is None
    assert "Tanh" in data["obstacle"]
    assert data["operators_without_rule"] == ["Tanh"]


def test_parameters_are_counted(told):
    weights = models.V * models.E + models.E * models.H + models.H**2 + models.H * models.V
    assert told(models.flat())["parameters"] == {"count": weights, "bytes": 4 * weights}
    assert told(models.flat(dtype="float16"))["parameters"]["bytes"] == 2 * weights


def test_layers_stacked_and_reshaped_keep_their_own_blocks(tmp_path):
    """What torch writes for two layers: states joined, reshaped, and taken apart by layer."""
    model = models.fused("LSTM", layers=2)
    for output in [n for n in model.graph.node if n.op_type == "Concat"]:
        joined = output.output[0]
        output.output[0] = f"{joined}/joined"
        model.graph.initializer.append(
            numpy_helper.from_array(np.array([2, -1, models.H]), f"{joined}/shape")
        )
        model.graph.node.append(
            helper.make_node("Reshape", [f"{joined}/joined", f"{joined}/shape"], [joined])
        )
    blocks = describe(open_model(models.save(model, tmp_path / "m.onnx")))["blocks"]
    names = list(blocks)
    low, high = (n for n in names if n.endswith("0.c")), (n for n in names if n.endswith("1.c"))
    (c0,), (c1,) = tuple(low), tuple(high)
    assert blocks[c0][c0] == "diagonal"
    assert blocks[c0][c1] == "zero"
    assert blocks[c1][c0] == "dense"
