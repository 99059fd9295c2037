"""States whose successors a step reads on: fewer products, the same derivatives."""

from __future__ import annotations

import itertools

import models
import numpy as np
import pytest
from mnemoscope.analyzer import _runtime, open_model
from mnemoscope.analyzer.linearize import EMBEDDING, block_linearization, build_step, linearize


@pytest.fixture
def step_of(tmp_path):
    def make(proto, dtype=np.float64):
        return build_step(open_model(models.save(proto, tmp_path / "m.onnx")), np.dtype(dtype))

    return make


def feeds_of(step, batch):
    rng = np.random.default_rng(3)
    return {
        n: (v + rng.standard_normal(v.shape)).astype(v.dtype) if v.dtype.kind == "f" else v
        for n, v in step.example(batch).items()
    }


def whole(linear, feeds):
    """``[position, source, state]`` of all blocks, what goes through relays multiplied out."""
    step, batch = linear.step, linear.batch
    names = sorted({j.tensor for _, _, j in linear.blocks if j.tensor})
    values = _runtime.evaluate(linear.model, names, feeds) if names else {}
    sizes = {n: size for n, (_, size) in step.sources.items()}
    low, spans = 0, {}
    for name, size in sizes.items():
        spans[name] = slice(low, low + size)
        low += size

    def block(source, j):
        if j.kind == "identity":
            return np.broadcast_to(np.eye(sizes[source]), (batch, *[sizes[source]] * 2))
        value = values[j.tensor]
        if j.kind == "diagonal":
            return np.broadcast_to(value, (batch, value.shape[1]))[:, :, None] * np.eye(
                sizes[source]
            )
        value = value.transpose(1, 2, 0)
        return np.broadcast_to(value, (batch, *value.shape[1:]))

    total = np.zeros((batch, low, low - sizes[EMBEDDING]))
    for (state, source), j in linear.jacobians.items():
        if j.kind != "zero":
            total[:, spans[source], spans[state]] += block(source, j)
    # Relays in their order, source by source: as the products go.
    for relay in dict.fromkeys(r for _, r in linear.relayed):
        for (state, source), j in linear.relayed.items():
            if source == relay:
                total[:, :, spans[state]] += total[:, :, spans[relay]] @ block(relay, j)
    return total


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", models.ALL)
def test_the_chain_rule_holds_for_any_relays(step_of, name, batch):
    step = step_of(models.ALL[name]())
    feeds = feeds_of(step, batch)
    plain = block_linearization(step, batch)
    assert not plain.relayed
    truth = whole(plain, feeds)
    states, passed = [c.name for c in step.differentiable], 0
    for number in range(1, len(states) + 1):
        for relays in itertools.combinations(states, number):
            linear = block_linearization(step, batch, relays)
            assert all(r in relays and s != r for s, r in linear.relayed)
            passed += len(linear.relayed)
            np.testing.assert_allclose(whole(linear, feeds), truth, rtol=0, atol=1e-13)
    if name in ("lstm", "lstm-one-layer", "gru", "rnn", "stack"):
        assert passed


@pytest.mark.parametrize(
    ("kind", "blocks", "relays"),
    [
        # A layer's states by its own h, and by the h of the layer below.
        ("LSTM", 2 * 3 + 2 * 2, ["lstm0.h", "lstm1.h"]),
        ("GRU", 3 + 2, ["gru0.h", "gru1.h"]),
        ("RNN", 3 + 2, ["rnn0.h", "rnn1.h"]),
    ],
)
def test_a_stack_costs_what_its_layers_cost(step_of, kind, blocks, relays):
    step = step_of(models.fused(kind, layers=3), np.float32)
    linear, _ = linearize(step)
    by_states, by_embedding = linear.dense()
    assert by_states == blocks * models.H**2
    # The embedding reaches the first layer alone.
    assert by_embedding == (2 if kind == "LSTM" else 1) * models.E * models.H
    assert list(dict.fromkeys(r for _, r in linear.relayed)) == relays


def test_a_single_layer_has_no_relay(step_of):
    for kind in ("LSTM", "GRU", "RNN"):
        assert not linearize(step_of(models.fused(kind, layers=1)))[0].relayed


def test_relays_of_every_kind(step_of):
    linear, _ = linearize(step_of(models.stack()))
    kinds = {key: j.kind for key, j in linear.relayed.items()}
    assert kinds == {("h1", "h0"): "dense", ("h2", "h0"): "identity", ("h2", "h1"): "diagonal"}
