"""Sampled directions: unbiased, evenly dealt, with their variance in the standard errors."""

from __future__ import annotations

import models
import numpy as np
import pytest
from mnemoscope.analyzer import Corpus, MnemoscopeError, analyze, open_model
from mnemoscope.analyzer._sketch import Sketch

E = 8


@pytest.fixture
def model(tmp_path, monkeypatch):
    def make(name="lstm"):
        monkeypatch.setattr(models, "E", E)
        return open_model(models.save(models.MODELS[name](), tmp_path / "m.onnx"))

    return make


def corpus(length, seed=0):
    ids = np.random.default_rng(seed).integers(0, models.V, length)
    return Corpus(ids, "random", "", 1, 0)


@pytest.mark.parametrize(("size", "directions", "threads"),
                         [(8, 4, 1), (8, 4, 2), (9, 4, 2), (5, 1, 4), (64, 7, 3)])  # fmt: skip
def test_directions_are_dealt_evenly(size, directions, threads):
    sketch = Sketch(size, directions, threads, 3, np.dtype(np.float64))
    assert sum(sketch.hands) == directions
    np.testing.assert_allclose(sketch.basis.T @ sketch.basis, np.eye(size), atol=1e-13)
    count = np.zeros(size)
    positions = 4000
    for position in range(positions):
        for part, where in enumerate(sketch.parts):
            given = sketch.of(part, position)
            assert len(set(given.tolist())) == sketch.hands[part]
            count[where.start + given] += 1
    factor = np.concatenate([np.full(p.stop - p.start, h / (p.stop - p.start))
                             for p, h in zip(sketch.parts, sketch.hands, strict=True)])  # fmt: skip
    # Every deck gives each of its cards once, but for those left over when hands do not divide it.
    assert np.abs(count / positions - factor).max() < 4 * np.sqrt(0.25 / positions)
    if all((p.stop - p.start) % h == 0 for p, h in zip(sketch.parts, sketch.hands, strict=True)):
        assert np.ptp(count) <= 1
    # The same whoever asks first.
    other = Sketch(size, directions, threads, 3, np.dtype(np.float64))
    np.testing.assert_array_equal(other.of(0, 1234), sketch.of(0, 1234))
    assert (Sketch(size, directions, threads, 4, np.dtype(np.float64)).basis != sketch.basis).any()


@pytest.mark.parametrize("name", ["lstm", "gru", "slots"])
def test_the_mean_is_the_full_one(model, name):
    """Over many seeds; a planted factor of 5 % is seen."""
    opened, text = model(name), corpus(60)
    options = {"delays": 3, "precision": "float64", "blocks": 2}
    full = {
        n: c["gradient"].values[0] for n, c in analyze(opened, text, **options).children.items()
    }
    runs = 25
    seen: dict[str, list] = {n: [] for n in full}
    for seed in range(runs):
        tree = analyze(opened, text, sketch=3, seed=seed, **options)
        for n, values in seen.items():
            values.append(tree[n]["gradient"].values[0])
    for n, truth in full.items():
        error = np.mean(seen[n], 0) - truth
        spread = np.std(seen[n], 0, ddof=1) / np.sqrt(runs)
        # Of all entries together, in units of their own spread: 1 on average, with E entries a row
        # that hang together little.
        known = spread > 1e-12
        z2 = np.mean((error[known] / spread[known]) ** 2)
        assert z2 < 2.0
        biased = np.mean(((error + 0.05 * truth)[known] / spread[known]) ** 2)
        assert biased > z2


def test_consistent_jacobians_need_no_sample(tmp_path, monkeypatch):
    """Where all positions have one Jacobian, evenly dealt directions give it without error."""
    monkeypatch.setattr(models, "E", E)
    g = models.Graph(dtype="float64")
    x = g.now()
    h = g.state("h", ["batch", models.H], kind="hidden", layer=0, batch_axis=0)
    g.op("Add", g.op("MatMul", x, g.weight(E, models.H)),
         g.op("MatMul", h, g.weight(models.H, models.H)), out="h_next")  # fmt: skip
    opened = open_model(models.save(g.finish(g.lone("h_next"), time=1), tmp_path / "m.onnx"))
    text = corpus(40 + 3)
    full = analyze(opened, text, delays=3, precision="float64", blocks=2)["h"]["gradient"].values
    tree = analyze(opened, text, delays=3, precision="float64", blocks=2, sketch=4, threads=2)
    # 40 inputs at delay 3: twenty whole decks of each part.
    found = tree["h"]["gradient"].values
    np.testing.assert_allclose(found[0, 3], full[0, 3], rtol=0, atol=1e-12)
    assert np.abs(found[0, 2] - full[0, 2]).max() > 1e-6  # 41 inputs


def test_the_errors_hold_the_sample(model):
    """The jackknife's error of σ₁ against its spread over corpora, with and without a sketch."""
    opened = model()
    spread, said = {}, {}
    for sketch in (None, 2):
        values, errors = [], []
        for seed in range(20):
            tree = analyze(opened, corpus(600, seed), delays=2, sketch=sketch, seed=seed,
                           states=["lstm1.c"])  # fmt: skip
            values.append(tree["lstm1.c"]["singular_values"].values[0, 0, :, 0])
            errors.append(tree["lstm1.c"]["singular_values_stderr"].values[0, 0, :, 0])
        spread[sketch], said[sketch] = np.std(values, 0, ddof=1), np.mean(errors, 0)
    # Twenty corpora know a spread to 16 %, the jackknife of ten blocks its error to 25 %.
    for sketch in spread:
        ratio = said[sketch] / spread[sketch]
        assert (ratio > 0.6).all()
        assert (ratio < 1.6).all()
    assert (spread[2] > spread[None]).all()


def test_all_directions_are_no_sample(model):
    opened, text = model(), corpus(50)
    whole = analyze(opened, text, delays=2, blocks=2)["lstm0.h"]["gradient"].values
    every = analyze(opened, text, delays=2, blocks=2, sketch=E)["lstm0.h"]["gradient"].values
    np.testing.assert_array_equal(every, whole)


@pytest.mark.parametrize("k", [0, -1, E + 1])
def test_refused(model, k):
    with pytest.raises(MnemoscopeError, match=f"1 to {E} directions"):
        analyze(model(), corpus(50), delays=2, sketch=k)
