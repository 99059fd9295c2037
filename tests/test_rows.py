"""Products by rows of the states: the same sums as by columns of the embedding."""

from __future__ import annotations

import models
import numpy as np
import pytest
from mnemoscope.analyzer import Corpus, _shards, open_model
from mnemoscope.analyzer._rows import RowProducts, cheaper_by_rows
from mnemoscope.analyzer._run import Run
from mnemoscope.analyzer.groups import Groups
from mnemoscope.analyzer.linearize import build_step, linearize
from mnemoscope.analyzer.sums import Plan, plan

DELAYS, LENGTH = 4, 90


@pytest.fixture
def opened(tmp_path):
    def make(name):
        return open_model(models.save(models.ALL[name](), tmp_path / "m.onnx"))

    return make


def corpus():
    ids = np.random.default_rng(0).integers(0, models.V, LENGTH)
    return Corpus(ids, "random", "", 1, 0)


def groups():
    rng = np.random.default_rng(3)
    some = rng.random(LENGTH) < 0.4
    return Groups.from_masks({"all": np.ones(LENGTH, bool), "some": some, "none": some & False})


def both(model, layout, **options):
    found = []
    for side in ("columns", "rows"):
        run = Run(model, corpus(), delays=DELAYS, side=side, **options)
        found.append(run.sums(layout, groups()))
    return found


def agree(columns, rows, bar):
    assert rows.keys() == columns.keys()
    for name, of_state in columns.items():
        for kind in ("block_count", "half_count"):
            np.testing.assert_array_equal(getattr(rows[name], kind), getattr(of_state, kind))
        for kind in ("block_sum", "half_sum"):
            there, wanted = getattr(rows[name], kind), getattr(of_state, kind)
            assert there.shape == wanted.shape
            scale = max(float(np.abs(wanted).max()), 1e-30)
            np.testing.assert_allclose(there, wanted, rtol=0, atol=bar * scale)


@pytest.mark.parametrize("name", models.ALL)
@pytest.mark.parametrize("positions", [None, 40])
def test_every_model(opened, name, positions):
    layout = plan(LENGTH, DELAYS, blocks=3, positions=positions)
    # Sums of some tens of products, each of them a few additions: 1e-13 in double precision.
    agree(*both(opened(name), layout, precision="float64"), 1e-13)


@pytest.mark.parametrize("options", [{"method": "fd"}, {}, {"threads": 1}, {"threads": 3}], ids=str)
def test_options(opened, options):
    layout = plan(LENGTH, DELAYS, blocks=2)
    agree(*both(opened("lstm"), layout, **options), 1e-5)


def test_one_state_of_several(opened):
    layout = plan(LENGTH, DELAYS, blocks=2)
    for state in ("lstm0.c", "lstm1.h"):
        agree(*both(opened("lstm"), layout, states=[state], precision="float64"), 1e-13)


def test_shards_and_inputs_that_are_not_followed(opened, monkeypatch):
    monkeypatch.setattr(_shards, "_LEAST", 7)
    monkeypatch.setattr(_shards, "_MOST", 7)
    layout = plan(LENGTH, DELAYS, blocks=2)
    block = np.where(np.random.default_rng(1).random(LENGTH) < 0.3, layout.block, -1)
    sparse = Plan(layout.stretches, block, layout.half, layout.blocks)
    agree(*both(opened("lstm"), sparse, precision="float64"), 1e-13)


def test_errors_reach_the_caller(opened):
    model = opened("lstm")
    step = build_step(model)
    linear, _ = linearize(step, None)
    products = RowProducts(linear, DELAYS, ["lstm0.h"], model.embeddings)
    start = {c.name: c.initial() for c in step.components}

    def visit(window):
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        list(products.run(corpus().ids, start, visit))


def test_the_cheaper_side_is_chosen(tmp_path, monkeypatch):
    def products(embedding, states, **options):
        monkeypatch.setattr(models, "E", embedding)
        model = open_model(models.save(models.fused(layers=3), tmp_path / "m.onnx"))
        run = Run(model, corpus(), delays=DELAYS, states=states, **options)
        linear = run.engines.linearization()
        layout = plan(LENGTH, DELAYS, blocks=2)
        return run.job(layout, Groups.everything(LENGTH)).products, linear

    top, linear = products(12, ["lstm2.h"])
    assert isinstance(top, RowProducts)
    # Dense from h to both states of its layer, and to both of the layer above: 6 + 4 squares. The
    # embedding reaches two states.
    n, e, squares = models.H, 12, 10
    for states in (["lstm2.h"], ["lstm2.h", "lstm2.c"]):
        by_rows = len(states) * n * (squares * n * n + 2 * n * e)
        assert cheaper_by_rows(linear, states) == (by_rows < 0.8 * e * squares * n * n)
    for embedding, options in ((4, {}), (12, {"sketch": 3})):
        assert not isinstance(products(embedding, ["lstm2.h"], **options)[0], RowProducts)
    assert not isinstance(products(12, None)[0], RowProducts)
