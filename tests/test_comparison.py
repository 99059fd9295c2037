"""The comparison of two results, on sums made by hand and on real analyses."""

from __future__ import annotations

import dataclasses
from itertools import product

import models
import numpy as np
import pytest
import xarray as xr
from mnemoscope.analyzer import analyze, compare, open_model
from mnemoscope.analyzer._differences import relative_size
from mnemoscope.analyzer.comparison import (
    ALPHA,
    recorded_options,
    sign_flip_test,
    t_test,
)
from mnemoscope.analyzer.corpus import Corpus
from mnemoscope.analyzer.errors import ResultError
from mnemoscope.analyzer.metrics import principal_angles, relative_difference
from mnemoscope.analyzer.plots import comparison_figure
from mnemoscope.analyzer.result import build, open_result, save_result
from mnemoscope.analyzer.sums import Sums
from scipy import stats

BLOCKS, EACH, DELAYS, UNITS, SIZE, TYPES = 10, 40, 8, 6, 4, 50
TABLE = np.random.default_rng(99).standard_normal((TYPES, SIZE)) @ np.diag([2.0, 1.0, 0.5, 0.3])
COMMON = np.exp(-0.4 * np.arange(DELAYS))[:, None, None] * np.random.default_rng(7).standard_normal(
    (UNITS, SIZE)
)  # the true mean gradient of most results below, [delay, unit, embedding]


def noise(seed, scale=0.3, units=UNITS, size=SIZE):
    """What the corpus does: ``[half, block, delay, unit, embedding]`` errors of half-block means.

    Neighbouring delays share most of theirs, as those of real results do.
    """
    rng = np.random.default_rng(seed)
    white = rng.standard_normal((2, BLOCKS, DELAYS, units, size))
    slow = rng.standard_normal((2, BLOCKS, 1, units, size))
    shape = np.exp(-0.4 * np.arange(DELAYS))[:, None, None]
    return scale * shape * (0.6 * white + 0.8 * slow)


def tree(mean=COMMON, errors=0.0, *, table=TABLE, names=("lstm0.c",), keep=True, **attributes):
    """A result whose block means are `mean` plus `errors`."""
    halves = np.broadcast_to(mean + errors, (2, BLOCKS, *mean.shape)) * (EACH / 2)
    counts = np.full((BLOCKS, 1, len(mean)), EACH)
    sums = Sums(halves.sum(0)[:, None], counts, halves[0].sum(0)[None], counts.sum(0) // 2)
    made = {
        "model_sha256": "m",
        "corpus_sha256": "c",
        "corpus": "c.txt",
        "corpus_positions": BLOCKS * EACH,
        "positions": BLOCKS * EACH,
        "stretches": 1,
        "blocks": BLOCKS,
        "seed": 0,
        "method": "jvp",
        "precision": "float64",
    }
    return build(
        {name: sums for name in names},
        groups=["all"],
        embeddings=table,
        state_info={},
        attributes={**made, **attributes},
        precision="float64",
        block_gradient_limit=2**28 if keep else 0,
    )


def only(comparison):
    (state,) = comparison.states
    return state


class TestKnownDifferences:
    def test_identical_results(self):
        a = tree(errors=noise(1))
        found = compare(a, a)
        state = only(found)
        assert found.tolerance == 0
        assert (found.same_space, state.paired, state.test) == (True, True, "gradient")
        for name in ("gradient", "sigma1", "share1", "share5", "gradient_stderr", "sigma1_stderr"):
            np.testing.assert_array_equal(getattr(state, name), np.zeros(DELAYS), name)
        assert np.nanmax(state.angles5) < 1e-5
        assert state.first_difference is None
        assert not state.differs.any()

    @pytest.mark.parametrize("normalization", ["whitened", "none"])
    def test_a_tenth_more(self, normalization):
        errors = noise(2)
        a, b = tree(1.1 * COMMON, 1.1 * errors, model_sha256="n"), tree(errors=errors)
        state = only(compare(a, b, normalization=normalization))
        np.testing.assert_allclose(state.gradient, 0.1, rtol=1e-10)
        np.testing.assert_allclose(state.sigma1, 0.1, rtol=1e-10)
        # The ratio is the same whichever block is left out: paired, it has no error.
        np.testing.assert_allclose(state.sigma1_stderr, 0, atol=1e-12)
        np.testing.assert_allclose(state.gradient_stderr, 0, atol=1e-12)
        np.testing.assert_allclose(state.share1, 0, atol=1e-12)
        assert np.nanmax(state.angles1) < 1e-5
        assert state.tolerance == pytest.approx(0.1)

    def test_the_formula_whitened_by_the_reference(self):
        other = COMMON + 0.2 * np.random.default_rng(3).standard_normal(COMMON.shape)
        state = only(compare(tree(other, model_sha256="n"), tree()))
        root = np.linalg.cholesky(np.cov(TABLE, rowvar=False, bias=True))
        expected = [
            np.linalg.norm((x - y) @ root) / np.linalg.norm(y @ root)
            for x, y in zip(other, COMMON, strict=True)
        ]
        np.testing.assert_allclose(state.gradient, expected, rtol=1e-9)
        plain = only(compare(tree(other, model_sha256="n"), tree(), normalization="none"))
        expected = np.linalg.norm(other - COMMON, axis=(1, 2)) / np.linalg.norm(COMMON, axis=(1, 2))
        np.testing.assert_allclose(plain.gradient, expected, rtol=1e-9)

    def test_direction_matters(self):
        a, b = tree(2 * COMMON, model_sha256="n"), tree()
        np.testing.assert_allclose(only(compare(a, b)).sigma1, 1)
        np.testing.assert_allclose(only(compare(b, a)).sigma1, -0.5)


class TestSpaces:
    def rotated(self, **attributes):
        q = np.linalg.qr(np.random.default_rng(4).standard_normal((SIZE, SIZE)))[0]
        errors = noise(5)
        a = tree(COMMON @ q.T, errors @ q.T, table=TABLE @ q.T, model_sha256="n", **attributes)
        return a, tree(errors=errors)

    def test_a_rotated_embedding_space_is_found_and_only_invariants_compared(self):
        found = compare(*self.rotated())
        state = only(found)
        assert not found.same_space
        assert "Only what does not depend on the basis is compared" in found.notes[0]
        np.testing.assert_allclose(state.sigma1, 0, atol=1e-10)
        np.testing.assert_allclose(state.share5, 0, atol=1e-10)
        assert np.isnan(state.gradient).all()
        assert np.isnan(state.angles5).all()
        assert (state.measure, state.test) == ("sigma1", "sigma1")
        assert state.first_difference is None
        assert found.tolerance < 1e-10

    def test_taking_it_for_the_same_would_be_wrong(self):
        """The check is needed: the same memory, compared as if in one basis, looks different."""
        state = only(compare(*self.rotated(), basis="same"))
        assert state.gradient.min() > 0.1

    @pytest.mark.parametrize("lacking", ["A", "B", "AB"])
    def test_only_two_hashes_say_that_the_model_is_the_same(self, lacking):
        a, b = self.rotated()
        a.attrs["model_sha256"] = b.attrs["model_sha256"]
        assert compare(a, b).same_space
        for which, side in zip("AB", (a, b), strict=True):
            if which in lacking:
                del side.attrs["model_sha256"]
        assert not compare(a, b).same_space

    def test_it_can_be_said(self):
        assert not compare(tree(), tree(), basis="different").same_space

    def test_other_sizes(self):
        wide = np.random.default_rng(1).standard_normal((TYPES, SIZE + 1))
        a = tree(np.ones((DELAYS, UNITS, SIZE + 1)), table=wide, model_sha256="n")
        found = compare(a, tree())
        assert "5 entries in A and 4 in B" in found.notes[0]
        assert np.isfinite(only(found).sigma1).all()
        with pytest.raises(ResultError, match=r"cannot be the same.*Leave --basis out"):
            compare(a, tree(), basis="same")

    def test_eight_bits_are_the_same_table_and_other_numbers_are_not(self):
        rng = np.random.default_rng(11)
        table = rng.standard_normal((1000, SIZE))
        step = np.abs(table).max() / 127
        rounded = np.round(table / step) * step
        other = rng.standard_normal((1000, SIZE))
        make = {"model_sha256": "n"}
        assert compare(tree(table=rounded, **make), tree(table=table)).same_space
        assert not compare(tree(table=other, **make), tree(table=table)).same_space

    def test_one_hot_of_another_vocabulary(self):
        """Any order of the words has the same covariance, so the words themselves must tell."""
        make = {"table": np.eye(SIZE), "model_sha256": "n"}
        b = tree(table=np.eye(SIZE), vocabulary_sha256="x")
        assert not compare(tree(vocabulary_sha256="y", **make), b).same_space
        assert compare(tree(vocabulary_sha256="x", **make), b).same_space

    def test_singular_whitening_has_no_one_square_root(self):
        """Its eigenvectors are free where eigenvalues are equal; the comparison must not see it."""
        mean = COMMON
        a, b = tree(table=np.eye(SIZE)), tree(mean, table=np.eye(SIZE))
        d = a["embedding_whitening"].values
        rank = int(a["embedding_whitening"].attrs["rank"])
        q = np.linalg.qr(np.random.default_rng(0).standard_normal((rank, rank)))[0]
        d[:, :rank] = d[:, :rank] @ q
        state = only(compare(a, b))
        np.testing.assert_allclose(state.gradient, 0, atol=1e-12)
        assert np.nanmax(state.angles1) < 1e-5

    def test_other_numbers_of_units_compare_directions(self):
        twice = np.concatenate([COMMON, COMMON], axis=1)
        state = only(compare(tree(twice, model_sha256="n"), tree()))
        assert state.no_gradients == "the state has 12 units in A and 6 in B"
        assert state.no_angles is None
        np.testing.assert_allclose(state.sigma1, np.sqrt(2) - 1, rtol=1e-10)
        assert np.nanmax(state.angles1) < 1e-5
        assert np.isnan(state.gradient).all()

    def test_without_matrices(self):
        a = tree(errors=noise(3))
        node = a["lstm0.c"].to_dataset(inherit=False)
        a["lstm0.c"] = xr.DataTree(node.drop_vars(["gradient", "noise", "block_gradient"]))
        state = only(compare(a, tree(errors=noise(3))))
        assert "A hold(s) no mean gradients" in state.no_gradients
        np.testing.assert_array_equal(state.sigma1, 0)
        assert (state.measure, state.tolerance) == ("sigma1", 0)


class TestAngles:
    @pytest.mark.parametrize("degrees", [0.0, 1e-6, 30.0, 90.0])
    def test_a_turned_direction(self, degrees):
        x = np.radians(degrees)
        a = np.outer(np.ones(UNITS), [np.cos(x), np.sin(x), 0, 0])
        b = np.outer(np.arange(1, UNITS + 1), [-1.0, 0, 0, 0])
        np.testing.assert_allclose(principal_angles(a, b, 1), [degrees], atol=1e-9, rtol=1e-6)

    def test_five_against_the_cosines_of_the_definition(self):
        rng = np.random.default_rng(8)
        a, b = rng.standard_normal((2, 3, 20, 9))
        found = principal_angles(a, b, 5)
        for i in range(3):
            v, w = (np.linalg.svd(m[i])[2][:5] for m in (a, b))
            cosines = np.linalg.svd(v @ w.T)[1]
            np.testing.assert_allclose(np.cos(np.radians(found[i][::-1])), cosines, atol=1e-10)
        assert (np.diff(found) <= 0).all()

    def test_fewer_directions_than_asked(self):
        a = np.random.default_rng(0).standard_normal((4, 3))
        assert principal_angles(a, a, 5).shape == (3,)
        thin = np.outer([1.0, 2, 3, 4], [1.0, 0, 0])
        assert np.isnan(principal_angles(thin, a, 2)).all()
        assert np.isnan(principal_angles(np.zeros((4, 3)), a, 1)).all()
        assert np.isnan(principal_angles(np.full((4, 3), np.nan), a, 1)).all()

    def test_in_results(self):
        """The second direction of A is the best of B: 90°, and as subspaces of all four 0."""
        u = np.linalg.qr(np.random.default_rng(2).standard_normal((UNITS, SIZE)))[0]
        v = np.linalg.qr(np.random.default_rng(3).standard_normal((SIZE, SIZE)))[0]
        fade = np.ones((DELAYS, 1, 1))
        a = fade * (u @ np.diag([4.0, 3, 2, 1]) @ v.T)
        b = fade * (u @ np.diag([3.0, 4, 2, 1]) @ v.T)
        found = compare(tree(a, model_sha256="n"), tree(b), normalization="none")
        np.testing.assert_allclose(only(found).angles1[:, 0], 90)
        assert only(found).angles5.shape == (DELAYS, 5)
        np.testing.assert_allclose(only(found).angles5[:, :SIZE], 0, atol=1e-5)

    def test_halves_tell_what_noise_does(self):
        quiet = only(compare(tree(errors=noise(1, 0.01)), tree(errors=noise(2, 0.01))))
        loud = only(compare(tree(errors=noise(1, 2.0)), tree(errors=noise(2, 2.0))))
        assert quiet.halves1.max() < 2 < 10 < loud.halves1.max()


# Three ways in which two results can be noisy, and the test that each calls for.
def paired(seed, change=0.0):
    shared = noise([1, seed], 0.5)
    own = noise([2, seed], 0.05)
    return tree(COMMON + change, shared + own, model_sha256="n"), tree(errors=shared)


def independent(seed, change=0.0):
    a = tree(COMMON + change, noise([1, seed]), model_sha256="n", seed=1, stretches=10)
    return a, tree(errors=noise([2, seed]), stretches=10)


def without_blocks(seed, change=0.0):
    a = tree(COMMON + change, noise([1, seed], 0.1), model_sha256="n", keep=False)
    return a, tree(errors=noise([2, seed], 0.1), keep=False)


CASES = {"paired": paired, "independent": independent, "without blocks": without_blocks}


def only_in(held, result, delays=slice(None)):
    """The result as if its group occurred in the first blocks only, at some delays.

    Rebuilt from the means of the blocks that are left, with a curve to match.
    """
    node = result["lstm0.c"]
    block = node["block_gradient"].values
    sums = block * EACH
    counts = node["block_count"].values.copy()
    counts[held:, :, delays] = 0
    sums[held:, :, delays] = 0
    half = Sums(sums, counts, sums.sum(0) / 2, counts.sum(0) // 2)
    rebuilt = build({"lstm0.c": half}, groups=["all"], embeddings=TABLE, state_info={},
                    attributes=dict(result.attrs), precision="float64")  # fmt: skip
    floor = node["noise_floor"].values
    for name, variable in rebuilt["lstm0.c"].data_vars.items():
        node[name][...] = variable.values
    node["noise_floor"][...] = floor
    return result


class TestBeyondNoise:
    @pytest.mark.parametrize("case", CASES)
    def test_noise_alone_is_not_reported(self, case):
        """Of 100 pairs without a difference at most 5 % may be said to differ; 1 % are meant."""
        alarms = [only(compare(*CASES[case](s))).first_difference is not None for s in range(100)]
        assert np.mean(alarms) <= 0.05

    @pytest.mark.parametrize(("blocks", "draws"), [(8, 2000), (10, 2000), (14, 200)])
    def test_the_chance_of_a_false_alarm_is_the_stated_one(self, blocks, draws):
        """Within four standard errors of what the sign flips promise."""
        rng = np.random.default_rng(blocks)
        alarms = 0
        for _ in range(draws):
            slow = rng.standard_normal((1, blocks, 3))
            x = 0.5 * rng.standard_normal((6, blocks, 3)) + slow
            alarms += (sign_flip_test(x @ x.swapaxes(1, 2)) <= ALPHA).any()
        patterns = 2 ** (blocks - 1)
        promised = np.floor(ALPHA * patterns) / patterns
        assert abs(alarms / draws - promised) <= 4 * np.sqrt(promised / draws)

    @pytest.mark.parametrize("case", ["paired", "independent"])
    @pytest.mark.parametrize("start", [0, 3, 7])
    def test_a_difference_from_a_delay_on_is_found_there(self, case, start):
        change = np.zeros_like(COMMON)
        size = {"paired": 0.5, "independent": 2.0}[case]
        change[start:] = size * COMMON[start:]
        first = [only(compare(*CASES[case](s, change))).first_difference for s in range(20)]
        # None late; and of twenty, noise may make one early (the test's own 1 %).
        assert all(f is not None and f <= start for f in first)
        assert sum(f == start for f in first) >= 19

    def test_a_difference_of_sigma1_is_found_without_blocks(self):
        change = np.zeros_like(COMMON)
        change[3:] = COMMON[3:]
        state = only(compare(*without_blocks(0, change)))
        assert (state.test, state.first_difference) == ("sigma1", 3)

    def test_pairing_finds_what_independent_errors_hide(self):
        change = 0.1 * COMMON
        a, b = paired(0, change)
        assert only(compare(a, b)).first_difference is not None
        a.attrs["corpus_sha256"] = "another"
        state = only(compare(a, b))
        assert not state.paired
        # Block i of A still stands beside block i of B; other blocks make them strangers.
        b_ = b["lstm0.c"]
        for name in ("block_gradient", "block_count"):
            b_[name][...] = np.roll(b_[name].values, 1, axis=0)
        assert only(compare(a, b)).first_difference is None

    def test_rounding_is_not_a_difference(self):
        """A systematic difference below what the analyses guarantee is not the models'."""
        change = 5e-6 * COMMON
        a, b = tree(COMMON + change, precision="float32"), tree(precision="float32")
        state = only(compare(a, b))
        assert state.p_value.max() <= ALPHA
        assert state.resolution == pytest.approx(2e-5)
        assert state.first_difference is None
        a.attrs["precision"] = b.attrs["precision"] = "float64"
        assert only(compare(a, b)).first_difference == 0

    @pytest.mark.parametrize("case", ["paired", "independent"])
    def test_standard_errors_are_the_spread_over_repetitions(self, case):
        found = [only(compare(*CASES[case](s, 0.3 * COMMON))) for s in range(100)]
        for name in ("sigma1", "share1", "gradient"):
            spread = np.std([getattr(s, name)[2] for s in found], ddof=1)
            errors = np.sqrt(np.mean([getattr(s, f"{name}_stderr")[2] ** 2 for s in found]))
            # 100 repetitions know a spread to 7 %, and each error of ten blocks is known to 24 %.
            assert errors == pytest.approx(spread, rel=0.25), name

    def test_noise_alone_has_the_size_that_is_said(self):
        for case in CASES.values():
            found = [only(compare(*case(s))) for s in range(40)]
            size = np.sqrt(np.mean([s.gradient[2] ** 2 for s in found]))
            said = np.sqrt(np.mean([s.gradient_noise[2] ** 2 for s in found]))
            assert said == pytest.approx(size, rel=0.15), case

    def test_few_blocks_fall_back_to_sigma1(self):
        a = tree(errors=noise(1))
        kept = a.isel(block=slice(4))
        kept.attrs["blocks"] = 4
        state = only(compare(kept, kept))
        assert state.test == "sigma1"
        assert state.first_difference is None

    @pytest.mark.parametrize(
        ("held", "test", "freedom"), [(5, "sigma1", 4), (7, "sigma1", 6), (8, "gradient", None),
                                      (1, "none", None)]
    )  # fmt: skip
    def test_only_blocks_that_hold_the_group_count(self, held, test, freedom):
        """Twice as much in every block that there is; with seven, no sign pattern is rare."""
        errors = noise(1, 0.1)
        a = only_in(held, tree(2 * COMMON, 1.9 * errors, model_sha256="n"))
        b = only_in(held, tree(errors=errors))
        state = only(compare(a, b))
        assert state.test == test
        if test == "none":
            assert np.isnan(state.p_value).all()
            return
        assert state.first_difference == 0
        if freedom:
            size = np.abs(state.sigma1 / state.sigma1_stderr)
            tested = np.isfinite(state.p_value)
            smallest = (2 * stats.t.sf(size, freedom))[tested].min()
            assert state.p_value[tested].min() == pytest.approx(smallest * tested.sum())

    def test_a_delay_with_few_blocks_is_not_tested(self):
        a, b = tree(2 * COMMON, noise(1, 0.1), model_sha256="n"), tree(errors=noise(1, 0.1))
        for side in (a, b):
            only_in(5, side, delays=slice(4, None))
        state = only(compare(a, b))
        assert state.test == "gradient"
        assert (state.p_value[:4] <= ALPHA).all()
        assert np.isnan(state.p_value[4:]).all()
        assert not state.differs[4:].any()

    def test_other_numbers_of_blocks(self):
        a, b = tree(errors=noise(1)), tree(errors=noise(2), model_sha256="n")
        b = b.isel(block=slice(9))
        b.attrs["blocks"] = 9
        state = only(compare(a, b))
        assert (state.paired, state.test) == (False, "gradient")
        assert np.isfinite(state.gradient_stderr).all()


class TestSignFlips:
    def test_against_every_pattern_by_hand(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((2, 4, 3)) + np.array([1.0, 0.2])[:, None, None]
        r = np.array(
            [
                [np.square(np.array(s) @ d).sum() / np.square(d).sum() for d in x]
                for s in product((1, -1), repeat=4)
            ]
        )
        now = r[0]
        first = int(np.argmax(now))
        expected = np.empty(2)
        expected[first] = (r.max(1) >= now[first] - 1e-12).mean()
        other = 1 - first
        expected[other] = max(expected[first], (r[:, other] >= now[other] - 1e-12).mean())
        np.testing.assert_allclose(sign_flip_test(x @ x.swapaxes(1, 2)), expected)

    def test_all_alike(self):
        np.testing.assert_allclose(sign_flip_test(np.ones((3, 10, 10))), 2.0**-9)

    def test_nothing(self):
        np.testing.assert_array_equal(sign_flip_test(np.zeros((3, 10, 10))), 1)

    def test_tiny_differences(self):
        x = np.full((2, 10, 1), 1e-140)
        np.testing.assert_allclose(sign_flip_test(x @ x.swapaxes(1, 2)), 2.0**-9)


def test_t_with_holm():
    difference = np.array([3.0, 0.0, np.nan, -6.0, 1.0])
    stderr = np.array([1.0, 1.0, 1.0, 1.0, np.nan])
    p = 2 * stats.t.sf([6.0, 3.0], 9)
    expected = [max(2 * p[1], 3 * p[0]), 1.0, np.nan, 3 * p[0], np.nan]
    np.testing.assert_allclose(t_test(difference, stderr, 9), expected)


def test_relative_size():
    found = relative_size([0.0, 1.0, 3.0, np.nan, np.nan, 1.0], [0.0, 0.0, 2.0, 1.0, 0.0, np.nan])
    np.testing.assert_array_equal(found, [0.0, np.inf, 1.5, np.nan, np.nan, np.nan])


def test_relative_difference():
    found = relative_difference([0.0, 1.0, 3.0, np.nan], [0.0, 0.0, 2.0, 1.0])
    np.testing.assert_array_equal(found, [0.0, np.inf, 0.5, np.nan])


class TestEdges:
    def test_nothing_remembered_by_either(self):
        """Beyond the memory of both, 0/0 is no difference."""
        gone = COMMON.copy()
        gone[5:] = 0
        state = only(compare(tree(gone), tree(gone)))
        for name in ("gradient", "sigma1", "share1", "share5"):
            np.testing.assert_array_equal(getattr(state, name), 0, name)
        assert state.tolerance == 0
        assert np.isnan(state.angles1[5:]).all()

    def test_nothing_in_the_reference(self):
        gone = COMMON.copy()
        gone[5:] = 0
        for case in ("same", "different"):
            state = only(compare(tree(errors=noise(1, 0.01)), tree(gone), basis=case))
            assert np.isinf(getattr(state, state.measure)[5:]).all()
            assert np.isinf(state.tolerance)
            assert state.worst == 5
            assert state.differs[5:].all()
        state = only(compare(tree(gone), tree()))
        np.testing.assert_array_equal(state.gradient[5:], 1)

    def test_no_input_of_a_group(self):
        empty = tree(errors=noise(1))
        node = empty["lstm0.c"]
        for name in node.data_vars:
            axis = node[name].dims.index("delay")
            index = (slice(None),) * axis + (7,)
            node[name][index] = 0 if "count" in name else np.nan
        state = only(compare(empty, tree(errors=noise(1))))
        assert np.isnan(state.gradient[7])
        assert np.isnan(state.sigma1[7])
        assert not state.differs[7]
        assert np.isfinite(state.gradient[:7]).all()
        assert np.isfinite(state.tolerance)

    def test_a_group_in_one_block_against_nothing(self):
        """No scatter is known, and B has nothing to be relative to: no number, and no crash."""
        a = only_in(1, tree(errors=noise(1), model_sha256="n"))
        b = only_in(1, tree(0 * COMMON))
        state = only(compare(a, b))
        assert np.isinf(state.gradient).all()
        assert np.isnan(state.gradient_noise).all()
        assert state.test == "none"

    def test_other_delays(self):
        a = tree(errors=noise(1)).isel(delay=slice(5))
        found = compare(a, tree(errors=noise(1)))
        assert "A has delays 0 to 4, B 0 to 7: 0 to 4 are compared." in found.notes
        assert only(found).delay.tolist() == [0, 1, 2, 3, 4]
        assert found.tolerance == 0
        assert only(found).paired

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"corpus_sha256": "d"}, "The corpora differ"),
            ({"corpus_positions": 401}, "a delay is not as much text"),
            ({"corpus_positions": "many\x1b"}, "to A and 400 to B: a delay is not as much text"),
            ({"corpus_positions": np.array([1, 2])}, "a delay is not as much text"),
            ({"corpus_unknown": "many"}, '"many" tokens of the corpus are unknown to A and 1'),
            ({"corpus_unknown": 3}, "do not read the same words"),
        ],
    )
    def test_notes(self, changes, said):
        found = compare(tree(**{"corpus_unknown": 1, **changes}), tree(corpus_unknown=1))
        assert said in " ".join(found.notes)

    @pytest.mark.parametrize(
        "changes",
        [
            {"corpus_sha256": "d"},
            {"corpus_positions": 500},
            {"positions": 300},
            {"stretches": 3},
            {"blocks": 9},
        ],
    )
    def test_not_paired(self, changes):
        assert not only(compare(tree(**changes), tree())).paired

    def test_a_sample_is_paired_only_with_its_own_seed(self):
        sample = {"corpus_positions": 10_000, "stretches": 10}
        assert only(compare(tree(**sample), tree(**sample))).paired
        assert not only(compare(tree(seed=1, **sample), tree(**sample))).paired
        assert only(compare(tree(seed=1), tree())).paired

    def test_groups(self):
        with pytest.raises(ResultError, match="A has no group 'verb'; A has all; B has all"):
            compare(tree(), tree(), group="verb")


class TestStates:
    def test_by_name_and_the_rest_is_reported(self):
        found = compare(tree(names=("h", "c", "x")), tree(names=("c", "h", "y")))
        assert [(s.a, s.b) for s in found.states] == [("h", "h"), ("c", "c")]
        assert (found.unmatched_a, found.unmatched_b) == (["x"], ["y"])

    def test_by_match(self):
        a, b = tree(names=("lstm0.h", "lstm0.c")), tree(names=("h", "lstm0.h"))
        found = compare(a, b, match={"lstm0.c": "lstm0.h", "lstm0.h": "h"})
        assert [(s.a, s.b) for s in found.states] == [("lstm0.h", "h"), ("lstm0.c", "lstm0.h")]
        assert found.tolerance == 0

    def test_a_taken_partner_is_not_matched_by_name_too(self):
        found = compare(tree(names=("h", "c")), tree(names=("h", "c")), match={"c": "h"})
        assert [(s.a, s.b) for s in found.states] == [("c", "h")]
        assert (found.unmatched_a, found.unmatched_b) == (["h"], ["c"])

    def test_a_selection(self):
        found = compare(tree(names=("h", "c")), tree(names=("h",)), states=["h"])
        assert [s.a for s in found.states] == ["h"]
        assert not found.unmatched_a

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"match": {"z": "h"}}, "A has no state 'z'; it has h, c"),
            ({"match": {"h": "z"}}, "B has no state 'z'; it has h, g"),
            ({"match": {"h": "h", "c": "h"}}, "Two states of A are matched with 'h'"),
            ({"states": ["z"]}, "A has no state 'z'"),
            ({"states": ["c"]}, "The states c of A have no partner in B.*--match"),
        ],
    )
    def test_refusals(self, options, said):
        with pytest.raises(ResultError, match=said):
            compare(tree(names=("h", "c")), tree(names=("h", "g")), **options)

    def test_none_in_common(self):
        with pytest.raises(ResultError, match="A has no partner in B: A has h; B has g"):
            compare(tree(names=("h",)), tree(names=("g",)))


@pytest.fixture(scope="module")
def analyses(tmp_path_factory):
    """One model, analysed in four ways on one corpus."""
    path = models.save(models.fused(layers=2), tmp_path_factory.mktemp("m") / "m.onnx")
    model = open_model(path)
    ids = np.random.default_rng(0).integers(0, models.V, 240)
    corpus = Corpus(ids, "c", "c", 1, 0)
    return {
        (method, precision): analyze(
            model, corpus, delays=12, method=method, precision=precision, provider="cpu"
        )
        for method in ("jvp", "fd")
        for precision in ("float32", "float64")
    }


class TestAnalyses:
    def test_precisions(self, analyses):
        found = compare(analyses["jvp", "float32"], analyses["jvp", "float64"])
        assert [s.a for s in found.states] == ["lstm0.h", "lstm1.h", "lstm0.c", "lstm1.c"]
        assert 0 < found.tolerance < 1e-5
        assert all(s.paired for s in found.states)
        assert [s.first_difference for s in found.states] == [None] * 4

    def test_methods(self, analyses):
        found = compare(analyses["fd", "float64"], analyses["jvp", "float64"])
        assert 0 < found.tolerance < 1e-7
        assert [s.first_difference for s in found.states] == [None] * 4
        found = compare(analyses["fd", "float32"], analyses["jvp", "float32"])
        assert 0 < found.tolerance < 5e-3
        assert [s.first_difference for s in found.states] == [None] * 4

    def test_through_files(self, analyses, tmp_path):
        before = compare(analyses["jvp", "float32"], analyses["jvp", "float64"])
        opened = []
        for i, key in enumerate([("jvp", "float32"), ("jvp", "float64")]):
            save_result(analyses[key], tmp_path / f"{i}.nc")
            opened.append(open_result(tmp_path / f"{i}.nc"))
        after = compare(*opened)
        assert after.tolerance == before.tolerance

    def test_recorded_options_make_the_same_plan(self, tmp_path):
        path = models.save(models.flat(), tmp_path / "m.onnx")
        model = open_model(path)
        corpus = Corpus(np.random.default_rng(0).integers(0, models.V, 300), "c", "c", 1, 0)
        first = analyze(model, corpus, delays=3, positions=100, seed=5, blocks=8, method="fd",
                        step=1e-3, precision="float64", provider="cpu")  # fmt: skip
        options = recorded_options(first)
        assert options == {
            "delays": 3, "positions": 100, "seed": 5, "blocks": 8, "method": "fd", "step": 1e-3,
            "precision": "float64",
        }  # fmt: skip
        second = analyze(model, corpus, provider="cpu", **options)
        state = only(compare(second, first))
        assert state.paired
        assert state.tolerance == 0
        assert "positions" not in recorded_options(analyze(model, corpus, delays=3, provider="cpu"))


class TestFigure:
    @pytest.mark.parametrize("tolerance", [None, 0.0, 0.1])
    def test_every_kind_is_drawn(self, tmp_path, tolerance):
        gone = COMMON.copy()
        gone[5:] = 0
        for i, (a, b) in enumerate(
            [
                (tree(errors=noise(1)), tree(errors=noise(2), seed=2)),
                (tree(), tree()),
                (tree(2 * COMMON, names=("h", "c")), tree(names=("h", "c"))),
                (tree(), tree(gone)),
                (tree(gone), tree(gone)),
                TestSpaces().rotated(),
                (tree().isel(delay=slice(1)), tree()),
            ]
        ):
            found = compare(a, b)
            figure = comparison_figure(found, ("a $x", "b"), tolerance=tolerance)
            columns = 2 if found.states[0].no_angles else 3
            assert len(figure.axes) == columns * len(found.states)
            figure.savefig(tmp_path / f"{i}.png", dpi=40)

    def test_each_panel_has_a_legend_of_its_own(self):
        found = compare(tree(2 * COMMON, names=("h", "c")), tree(names=("h", "c")))
        figure = comparison_figure(found, ("x" * 40, "b"), tolerance=0.1)
        assert figure.legends == []
        last = [a.get_legend() for a in figure.axes[-3:]]
        said = [[t.get_text() for t in legend.get_texts()] for legend in last]
        assert said[0][:3] == ["A: …" + "x" * 29, "B: b", "their noise floors"]
        assert "mean gradients" in said[1]
        assert "$\\sigma_1$" in said[1]
        assert "tolerance 0.1" in said[1]
        assert said[2][:2] == ["best direction", "best five directions"]
        assert [t for t in said[2] if "halves" in t]

    def test_no_empty_panel_where_directions_are_not_compared(self):
        found = compare(*TestSpaces().rotated())
        figure = comparison_figure(found, ("a", "b"))
        assert len(figure.axes) == 2
        assert figure.get_supxlabel().startswith("Directions are not compared: the covariances")
        said = [t.get_text() for t in figure.axes[1].get_legend().get_texts()]
        assert "mean gradients" not in said


def test_the_dataclass_is_whole():
    state = only(compare(tree(errors=noise(1)), tree(errors=noise(2), seed=1)))
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if isinstance(value, np.ndarray):
            assert len(value) == DELAYS, field.name
    row = state.rows()[3]
    assert row["gradient"] == state.gradient[3]
    assert row["angles5"] == pytest.approx(state.angles5[3].tolist(), nan_ok=True)
