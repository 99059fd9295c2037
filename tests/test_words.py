"""Single words: each type's measures against those of the same positions averaged as groups."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import models
import numpy as np
import pytest
from mnemoscope.analyzer import Corpus, analyze, metrics, open_model, words
from mnemoscope.analyzer._run import Run
from mnemoscope.analyzer.errors import CorpusError, MnemoscopeError, ResourceError
from mnemoscope.analyzer.groups import Groups
from mnemoscope.analyzer.sums import Plan, Sums
from mnemoscope.analyzer.words import _places, _plan, analyze_words

DELAYS = 4


def stream(length=400, seed=0):
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, models.V + 1)
    return Corpus(rng.choice(models.V, length, p=share / share.sum()), "random", "", 1, 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_model(models.save(models.fused(layers=1), tmp_path_factory.mktemp("m") / "m.onnx"))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_each_type_as_a_group_of_its_own(model, precision):
    corpus = stream()
    tree = analyze_words(model, corpus, delays=DELAYS, precision=precision)
    ids = tree["token"].values
    assert sorted(ids) == sorted(set(corpus.ids))
    masks = {str(i): corpus.ids == i for i in ids}
    whole = analyze(model, corpus, delays=DELAYS, precision=precision,
                    groups=Groups.from_masks(masks))  # fmt: skip
    np.testing.assert_array_equal(tree["occurrences"], [m.sum() for m in masks.values()])
    assert (np.diff(tree["occurrences"]) <= 0).all()
    rtol = 1e-5 if precision == "float32" else 1e-9
    for state in whole.children:
        values = whole[state]["singular_values"].values
        np.testing.assert_allclose(tree[state]["sigma1"], values[..., 0], rtol=rtol)
        np.testing.assert_allclose(
            tree[state]["singular_value_sum"], values.sum(-1), rtol=10 * rtol
        )
        np.testing.assert_array_equal(tree["count"], whole[state]["count"])


def test_passes_make_no_difference(model, monkeypatch):
    corpus, said = stream(), []
    one = analyze_words(model, corpus, delays=DELAYS, report=said.append)
    assert any("in 1 pass " in line for line in said)
    monkeypatch.setattr(Run, "most_groups", lambda self, members, after: 3)
    seen = []
    many = analyze_words(model, corpus, delays=DELAYS, report=said.append,
                         progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    assert many.attrs["passes"] == -(-len(one["token"]) // 3)
    for state in one.children:
        np.testing.assert_allclose(many[state]["sigma1"], one[state]["sigma1"], rtol=1e-5)
    done, total = zip(*seen, strict=True)
    assert (np.diff(done) > 0).all()
    assert set(total) == {done[-1]}


def test_the_sums_of_a_pass_are_gone_before_the_next(model, monkeypatch):
    monkeypatch.setattr(Run, "most_groups", lambda self, members, after: 3)
    whole, alive = Run.sums, []

    def sums(self, *arguments, **options):
        gc.collect()
        assert not any(there() is not None for there in alive)
        found = whole(self, *arguments, **options)
        for of_state in found.values():
            base = of_state.block_sum
            while base.base is not None:
                base = base.base
            alive.append(weakref.ref(base))
        return found

    monkeypatch.setattr(Run, "sums", sums)
    tree = analyze_words(model, stream(), delays=DELAYS, states=["lstm0.c"])
    assert tree.attrs["passes"] > 2
    assert len(alive) == tree.attrs["passes"]


def test_as_many_types_as_memory_holds(model):
    corpus = stream(3000)
    for members in (5, 1000):  # summed in single precision, and staged
        for memory in (2**21, 2**24):
            run = Run(model, corpus, delays=200, memory=memory)
            most = run.most_groups(members)
            for number, fits in ((most, True), (2 * most, False)):
                groups = Groups.from_numbers(
                    [str(i) for i in range(number)],
                    np.where(np.arange(3000) < members, 0, -1),
                )
                layout = Plan(np.array([[0, 3000]]), np.zeros(3000, int), np.zeros(3000, int), 1)
                need = run._need(layout, groups, 0).whole(run.engines.linearization())
                assert (need <= memory) == fits


@pytest.mark.parametrize("shape", [(128, 32, 51), (32, 128, 9), (300, 300, 3), (20, 400, 2)])
def test_measures_stay_below_their_estimate(monkeypatch, shape):
    monkeypatch.setattr(words, "_AT_ONCE", 2**17)
    monkeypatch.setattr(words, "processors", lambda: 2)
    units, size, delays = shape
    rng = np.random.default_rng(0)
    total, half = rng.standard_normal((2, 4, delays, size, units)).swapaxes(-1, -2)
    count = np.full((4, delays), 6)
    sums, d = Sums(total[None], count[None], half, count // 2), rng.standard_normal((size, size))
    tracemalloc.start()
    found = words._measures(sums, d)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 2 * words._working(units, size, delays) < 4 * taken
    # In portions of a few delays, the numbers are those of all delays at once.
    monkeypatch.setattr(words, "_AT_ONCE", 2**40)
    for name, values in words._measures(sums, d).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12)


def test_measures_count_in_the_memory_of_a_run(model, monkeypatch):
    said = {}
    for factor in (0, 1000):
        one = [words._working(models.H, models.E, DELAYS + 1) * factor]
        monkeypatch.setattr(words, "_working", lambda *_, n=one: n[0])
        said[factor] = []
        analyze_words(model, stream(), delays=DELAYS, report=said[factor].append)
        monkeypatch.undo()
    least, more = (next(x for x in said[f] if x.startswith("Memory")) for f in said)
    assert least != more
    monkeypatch.setattr(words, "_working", lambda *_: 2**40)
    with pytest.raises(ResourceError, match="would need about"):
        analyze_words(model, stream(), delays=DELAYS, memory=2**30)


def test_halves_are_dealt_within_each_type():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 5, 500)
    types = np.arange(5)
    places = _places(ids, types, None, rng)
    layout, groups = _plan(places, types, len(ids), 10, rng)
    assert layout.inputs == 500
    for g in range(5):
        at = places[g]
        np.testing.assert_array_equal(np.flatnonzero(groups.mask(str(g))), at)
        half = layout.half[at]
        assert 0.3 < half.mean() < 0.7
        # Where the half changes, the two occurrences begin chunks further apart than the delays.
        first = at[0]
        for position, side, before in zip(at[1:], half[1:], half[:-1], strict=True):
            assert (side != before) == (position - first > 10)
            if side != before:
                first = position


def test_stretches_leave_out_what_is_far_from_any_input():
    places = [np.array([3, 5, 40]), np.array([90])]
    layout, _ = _plan(places, np.arange(2), 100, 10, np.random.default_rng(0))
    np.testing.assert_array_equal(layout.stretches, [[3, 6], [40, 41], [90, 91]])
    assert set(np.flatnonzero(layout.block >= 0)) == {3, 5, 40, 90}


def test_noise_floor_of_types_without_a_direction(model):
    """A type's floor is what two halves of its own occurrences differ by."""
    corpus = stream(2000)
    tree = analyze_words(model, corpus, delays=DELAYS, seed=1)
    state = tree["lstm0.h"]
    rare = tree["occurrences"].values == 1
    assert np.isnan(state["noise_floor"].values[:, rare]).all()
    often = tree["occurrences"].values > 50
    ratio = (state["noise_floor"] / state["sigma1"]).values[1][often]
    assert (ratio < 1).mean() > 0.9
    few = analyze_words(model, corpus, delays=DELAYS, max_count=5, words=None, seed=1)
    more = few["lstm0.h"]["noise_floor"].values[1][often] > state["noise_floor"].values[1][often]
    assert more.mean() > 0.8


def test_chosen_words_and_fewest_and_most_occurrences(model):
    corpus = stream()
    names = model.vocabulary.tokens if model.vocabulary else None
    tree = analyze_words(model, corpus, delays=1, min_count=20, max_count=7)
    count = np.bincount(corpus.ids, minlength=models.V)
    assert sorted(tree["token"].values) == np.flatnonzero(count >= 20).tolist()
    assert (tree["occurrences"].values == 7).all()
    again = analyze_words(model, corpus, delays=1, min_count=20, max_count=7)
    for state in tree.children:
        np.testing.assert_array_equal(tree[state]["sigma1"], again[state]["sigma1"])
    if names is None:
        with pytest.raises(CorpusError, match="no vocabulary"):
            analyze_words(model, corpus, delays=1, words=["the"])


@pytest.mark.parametrize(
    ("options", "said"),
    [({"min_count": 0}, "1 or more, not 0"), ({"max_count": 0}, "1 or more, not 0"),
     ({"min_count": 1000}, "No type occurs 1000 times")],
)  # fmt: skip
def test_bad_numbers(model, options, said):
    with pytest.raises(MnemoscopeError, match=said):
        analyze_words(model, stream(), delays=1, **options)


def test_fits_of_planted_decays():
    delays = np.arange(30)
    rates, floor = np.array([0.1, 0.66]), np.full((1, 2, 30), 1e-3)
    sigma1 = 3.0 * np.exp(-rates[:, None] * delays)[None]
    found = words._fits(delays, {"sigma1": sigma1, "noise_floor": floor})
    np.testing.assert_allclose(found["decay_b"][0], rates, rtol=1e-9)
    np.testing.assert_allclose(found["decay_a"][0], 3, rtol=1e-9)
    np.testing.assert_allclose(found["decay_r_squared"][0], 1, rtol=1e-9)
    clear = sigma1[0, 1] > words.CLEAR * 1e-3
    np.testing.assert_array_equal(found["decay_points"][0], [30, clear.sum()])
    assert clear.sum() < (sigma1[0, 1] > 1e-3).sum()
    # A tail that rises out of the noise by chance is not fitted.
    sigma1[0, 0, 10:] = 1e-4
    sigma1[0, 0, 20] = 1.0
    again = words._fits(delays, {"sigma1": sigma1, "noise_floor": floor})
    assert again["decay_points"][0, 0] == 10
    np.testing.assert_allclose(again["decay_b"][0, 0], 0.1, rtol=1e-9)


@pytest.mark.parametrize("occurrences", [3, 6, 20])
def test_noise_is_hardly_ever_fitted(monkeypatch, occurrences):
    """Types without any consistent direction, whose noise shows in the same way at all delays."""
    rng = np.random.default_rng(occurrences)
    types, delays = 300, 3
    one = rng.standard_normal((types, occurrences, 1, 8, 4))
    each = rng.standard_normal((types, occurrences, delays, 8, 4))
    fading = 0.7 ** np.arange(delays)[:, None, None]
    jacobians = fading * (0.8 * one + 0.6 * each)
    count = np.full((types, delays), occurrences)
    sums = Sums(jacobians.sum(1)[None], count[None], jacobians[:, ::2].sum(1),
                np.full((types, delays), len(range(0, occurrences, 2))))  # fmt: skip
    measures = words._measures(sums, np.eye(4))
    above = measures["sigma1"] > measures["noise_floor"]
    assert 0.3 < above.mean() < 0.65
    assert (measures["sigma1"] > words.CLEAR * measures["noise_floor"]).mean() < 0.1
    fitted = {}
    for margin in (1.0, words.CLEAR):
        monkeypatch.setattr(words, "CLEAR", margin)
        fitted[margin] = np.isfinite(words._fits(np.arange(delays), measures)["decay_b"]).mean()
    assert fitted[1.0] > 0.1
    assert fitted[1.5] < 0.03


def test_r_squared_is_that_of_the_residuals():
    delays = np.arange(20.0)
    values = np.exp(-0.2 * delays) + 0.05 * np.random.default_rng(0).standard_normal(20)
    fit = metrics.fit_decay(delays, values)
    residuals = values - fit.a * np.exp(-fit.b * delays)
    expected = 1 - (residuals**2).sum() / ((values - values.mean()) ** 2).sum()
    assert fit.r_squared == pytest.approx(expected, abs=1e-12)
