"""A run cut into shards is the run."""

from __future__ import annotations

import models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mnemoscope.analyzer import Corpus, _shards, analyze, open_model
from mnemoscope.analyzer._shards import Carrier, folded_work, positions_of, shards
from mnemoscope.analyzer._states import Stepper
from mnemoscope.analyzer.linearize import build_step, linearize
from mnemoscope.analyzer.sums import Plan, plan


@pytest.fixture
def model(tmp_path):
    return open_model(models.save(models.MODELS["lstm"](), tmp_path / "m.onnx"))


def corpus(length):
    ids = np.random.default_rng(0).integers(0, models.V, length)
    return Corpus(ids, "random", "", 1, 0)


@settings(max_examples=100, deadline=None)
@given(
    length=st.integers(1, 400),
    delays=st.integers(0, 20),
    most=st.integers(1, 90),
    share=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**32),
)
def test_every_followed_position_is_in_one_shard(length, delays, most, share, seed):
    rng = np.random.default_rng(seed)
    layout = plan(length, delays, blocks=3, positions=max(1, int(share * length)), seed=seed)
    block = np.where(rng.random(length) < 0.5, layout.block, -1)
    layout = Plan(layout.stretches, block, layout.half, layout.blocks)
    seen = np.zeros(length, int)
    last = 0
    for shard in shards(layout, delays, length, most):
        assert last <= shard.begin < shard.end <= shard.begin + most
        at = shard.begin + np.flatnonzero(shard.follow)
        assert at[-1] < shard.end
        # The memory of its last input fades to the largest delay, or to the end of the corpus.
        assert shard.read == min(at[-1] + delays + 1, length) == shard.begin + len(shard.follow)
        seen[at] += 1
        last = shard.end
    np.testing.assert_array_equal(seen, block >= 0)


@pytest.mark.parametrize("options", [{}, {"positions": 60}, {"method": "fd"}], ids=str)
@pytest.mark.parametrize("most", [7, 32])
def test_the_sums_do_not_depend_on_the_shards(model, monkeypatch, most, options):
    def run():
        tree = analyze(model, corpus(150), delays=4, precision="float64", blocks=3, **options)
        return tree["lstm1.c"]

    whole = run()
    monkeypatch.setattr(_shards, "_LEAST", most)
    monkeypatch.setattr(_shards, "_MOST", most)
    found = run()
    for name in ("gradient", "block_gradient", "noise_floor"):
        # Of the order of additions alone.
        np.testing.assert_allclose(found[name], whole[name], rtol=0, atol=1e-13)
    np.testing.assert_array_equal(found["count"], whole["count"])


def test_states_are_read_once(model):
    step = build_step(model)
    stepper = Stepper(step, model.embeddings)
    read = []

    class Counting:
        initial = staticmethod(stepper.initial)

        def read(self, now, tokens):
            read.extend(tokens)
            return stepper.read(now, tokens)

    ids = corpus(30).ids
    carrier = Carrier(Counting(), ids)
    first = carrier.at(5)
    every = stepper.read(stepper.initial(), ids[:22])
    carrier.know(20, {name: values[19:20] for name, values in every.items()})
    carrier.know(10, first)  # older than what is known: no news
    now = carrier.at(22)
    assert read == ids[:5].tolist() + ids[20:22].tolist()
    for name, values in every.items():
        np.testing.assert_array_equal(now[name], values[-1:])


def test_shards_are_of_seconds(model):
    linear, _ = linearize(build_step(model), None)
    most = positions_of(linear, 50, 1)
    assert most == _shards._MOST  # of a tiny model
    wide = 1e12 / (51 * folded_work(linear))
    assert positions_of(linear, int(51 * wide) * 1000, 1) == _shards._LEAST
    # Two layers: h0 and c0 from h0; h1 and c1 from h1, and from what h0 has become.
    assert folded_work(linear) == 2 * models.E * models.H**2 * 6
