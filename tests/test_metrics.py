"""Each measure against a computation of its own, to 1e-10."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mnemoscope.analyzer import metrics
from scipy.optimize import curve_fit

RTOL = 1e-10  # float64 with condition numbers below 1e4 keeps 12 digits; two are spare


@pytest.fixture
def rng():
    return np.random.default_rng(20)


def covariance(embeddings):
    return np.cov(embeddings.astype(np.float64), rowvar=False, bias=True)


class TestWhiten:
    def test_is_the_cholesky_factor_of_the_covariance(self, rng):
        embeddings = rng.standard_normal((300, 12)) @ rng.standard_normal((12, 12)) + 3.0
        found = metrics.whiten(embeddings)
        expected = np.linalg.cholesky(covariance(embeddings))
        np.testing.assert_allclose(found.D, expected, rtol=RTOL, atol=RTOL)
        np.testing.assert_allclose(found.Z, np.linalg.inv(expected), rtol=1e-9, atol=RTOL)
        assert found.condition_number == pytest.approx(np.linalg.cond(found.Z), rel=1e-9)
        assert (found.rank, found.full_rank) == (12, True)
        white = (embeddings - embeddings.mean(axis=0)) @ found.Z.T
        np.testing.assert_allclose(covariance(white), np.eye(12), atol=RTOL)

    @pytest.mark.parametrize(
        ("name", "make", "rank"),
        [
            ("fewer types than dimensions", lambda r: r.standard_normal((5, 9)), 4),
            ("as many types as dimensions", lambda r: r.standard_normal((9, 9)), 8),
            ("one-hot", lambda r: np.eye(30), 29),
            ("one-hot float32", lambda r: np.eye(30, dtype=np.float32), 29),
            ("a dead dimension", lambda r: r.standard_normal((99, 6)) * [1, 1, 0, 1, 1, 1], 5),
            (
                "a large constant dimension",
                lambda r: np.where(np.arange(6) == 2, 1234.5678, r.standard_normal((99, 6)) * 1e-2),
                5,
            ),
            (
                "a product of rank 4 in float32",
                lambda r: (r.standard_normal((500, 4)) @ r.standard_normal((4, 16))).astype("f"),
                4,
            ),
            ("one type", lambda r: r.standard_normal((1, 3)), 0),
            ("all types alike", lambda r: np.full((7, 3), 0.1), 0),
        ],
    )
    def test_keeps_to_the_support_of_a_singular_covariance(self, rng, name, make, rank):
        embeddings = make(rng)
        found = metrics.whiten(embeddings)
        assert found.rank == rank
        assert not found.full_rank
        assert found.D.shape == (embeddings.shape[1], rank)
        cov = covariance(embeddings)
        scale = max(np.abs(cov).max(), np.abs(embeddings).max() ** 2 * 1e-6)
        # What is cut off has a standard deviation below 10 eps of float32.
        atol = 1e-10 if embeddings.dtype == np.float64 else 1e-6
        np.testing.assert_allclose(found.D @ found.D.T, cov, atol=atol * scale)
        if rank:
            np.testing.assert_allclose(found.Z, np.linalg.pinv(found.D), atol=1e-9 / scale**0.5)
            np.testing.assert_allclose(found.Z @ found.D, np.eye(rank), atol=1e-9)
            cond = np.linalg.cond(found.Z) if rank > 1 else 1.0
            assert found.condition_number == pytest.approx(cond, rel=1e-6)
        else:
            assert np.isnan(found.condition_number)

    def test_singular_values_do_not_depend_on_the_square_root(self, rng):
        embeddings, gradient = rng.standard_normal((50, 7)), rng.standard_normal((9, 7))
        values, vectors = np.linalg.eigh(covariance(embeddings))
        other_root = vectors * np.sqrt(values) @ vectors.T
        np.testing.assert_allclose(
            metrics.singular_values(gradient @ metrics.whiten(embeddings).D),
            np.linalg.svd(gradient @ other_root, compute_uv=False),
            rtol=RTOL,
        )

    def test_leaves_its_input_alone(self, rng):
        embeddings = rng.standard_normal((5, 3))
        before = embeddings.copy()
        metrics.whiten(embeddings)
        np.testing.assert_array_equal(embeddings, before)

    def test_refuses_a_vector(self):
        with pytest.raises(ValueError, match=r"\[token, embedding\], not of shape \(3,\)"):
            metrics.whiten(np.ones(3))


class TestSvd:
    def test_reconstructs_with_the_stated_signs(self, rng):
        matrix = rng.standard_normal((2, 3, 9, 6))
        u, s, vt = metrics.svd(matrix)
        np.testing.assert_allclose(np.einsum("abuk,abk,abke->abue", u, s, vt), matrix, atol=1e-12)
        largest = np.take_along_axis(vt, np.abs(vt).argmax(-1)[..., None], -1)
        assert (largest > 0).all()
        assert (np.diff(s) <= 0).all()
        np.testing.assert_allclose(s, metrics.singular_values(matrix), rtol=RTOL)

    def test_signs_do_not_depend_on_the_sign_of_left_vectors(self, rng):
        matrix = rng.standard_normal((8, 5))
        vt, flipped = metrics.svd(matrix)[2], metrics.svd(-matrix)[2]
        np.testing.assert_allclose(vt, flipped, atol=1e-12)

    def test_nan_stays_where_it_is(self, rng):
        matrix = rng.standard_normal((3, 4, 2))
        matrix[1, 0, 0] = np.nan
        expected = np.linalg.svd(matrix[[0, 2]], compute_uv=False)
        for found in (metrics.singular_values(matrix), metrics.svd(matrix)[1]):
            np.testing.assert_allclose(found[[0, 2]], expected, rtol=RTOL)
            assert np.isnan(found[1]).all()

    def test_of_nothing(self):
        assert metrics.singular_values(np.zeros((4, 3, 0))).shape == (4, 0)


class TestSelectivity:
    def test_is_the_share_of_the_leading_values(self):
        values = np.array([[4.0, 3.0, 2.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0] * 4])
        np.testing.assert_allclose(metrics.selectivity(values), [0.4, 1.0, np.nan])
        np.testing.assert_allclose(metrics.selectivity(values, 2), [0.7, 1.0, np.nan])
        np.testing.assert_allclose(metrics.selectivity(values, 5), [1.0, 1.0, np.nan])


class TestMeanAndNoise:
    def test_common_part_cancels_exactly(self, rng):
        x = rng.integers(-8, 8, (64, 5, 3)).astype(float)  # sums of integers are exact
        first = np.arange(64) % 4 < 2

        def noise(y):
            return metrics.noise_matrix(y.sum(0), np.array(64), y[first].sum(0), np.array(32))

        np.testing.assert_array_equal(noise(x), noise(x + rng.integers(-99, 99, (5, 3))))
        expected = (x[first].mean(0) - x[~first].mean(0)) / 2
        np.testing.assert_allclose(noise(x), expected, rtol=RTOL)

    def test_unequal_halves_are_means(self, rng):
        x = rng.standard_normal((10, 2, 2))
        found = metrics.noise_matrix(x.sum(0), np.array(10), x[:3].sum(0), np.array(3))
        np.testing.assert_allclose(found, (x[:3].mean(0) - x[3:].mean(0)) / 2, rtol=RTOL)

    def test_nothing_averaged_is_nan_without_a_warning(self):
        zero = np.zeros((2, 3, 3))
        count = np.array([0, 4])
        assert np.isnan(metrics.mean_matrix(zero, count)[0]).all()
        assert (metrics.mean_matrix(zero, count)[1] == 0).all()
        assert np.isnan(metrics.noise_matrix(zero, count, zero, count)).all()
        assert np.isnan(metrics.singular_values(metrics.mean_matrix(zero, count))[0]).all()


class TestJackknife:
    def test_equal_blocks_give_the_textbook_formula(self, rng):
        sums, counts = rng.standard_normal((8, 5, 4)), np.full(8, 7)
        found = metrics.jackknife(sums, counts, metrics.singular_values)
        left_out = np.stack(
            [np.linalg.svd(np.delete(sums, b, 0).sum(0) / 49, compute_uv=False) for b in range(8)]
        )
        expected = np.sqrt(7 / 8 * ((left_out - left_out.mean(0)) ** 2).sum(0))
        np.testing.assert_allclose(found, expected, rtol=RTOL)

    def test_unequal_blocks_give_the_weighted_error_of_a_mean(self, rng):
        counts = np.array([3, 50, 11, 1, 24])
        values = [rng.standard_normal((n, 1, 1)) for n in counts]
        sums = np.stack([v.sum(0) for v in values])
        found = metrics.jackknife(sums, counts, lambda mean: mean)
        n, mean = counts.sum(), sums.sum() / counts.sum()
        means = np.array([v.mean() for v in values])
        expected = np.sqrt(np.mean((means - mean) ** 2 * counts / (n - counts)))
        np.testing.assert_allclose(found, expected, rtol=RTOL)

    def test_is_unbiased_for_a_mean_over_unequal_blocks(self, rng):
        counts, trials = np.array([3, 50, 11, 1, 24, 70]), 4000
        sums = rng.standard_normal((6, trials, 1, 1)) * np.sqrt(counts)[:, None, None, None]
        many = np.repeat(counts[:, None], trials, axis=1)
        variance = metrics.jackknife(sums, many, lambda mean: mean) ** 2
        error = variance.std() / np.sqrt(trials)
        assert variance.mean() == pytest.approx(1 / counts.sum(), abs=4 * error)

    def test_an_empty_block_has_no_say_where_it_is_empty(self, rng):
        sums, counts = rng.standard_normal((6, 2, 4, 3)), np.full((6, 2), 5)
        sums[2, 1], counts[2, 1] = 0.0, 0
        found = metrics.jackknife(sums, counts, metrics.singular_values)
        others = [0, 1, 3, 4, 5]
        for delay, blocks in ((0, list(range(6))), (1, others)):
            alone = metrics.jackknife(
                sums[blocks, delay], counts[blocks, delay], metrics.singular_values
            )
            np.testing.assert_allclose(found[delay], alone, rtol=RTOL)

    @pytest.mark.parametrize("counts", [[0, 9, 0], [0, 0, 0]])
    def test_needs_two_blocks(self, counts):
        sums = np.ones((3, 2, 2)) * np.reshape(counts, (3, 1, 1))
        assert np.isnan(metrics.jackknife(sums, counts, metrics.singular_values)).all()

    def test_a_statistic_that_is_nan_has_no_error(self):
        found = metrics.jackknife(
            np.zeros((4, 2, 2)),
            np.ones(4),
            lambda mean: metrics.selectivity(metrics.singular_values(mean)),
        )
        assert np.isnan(found)

    def test_float32_sums_are_averaged_in_float64(self, rng):
        sums = rng.standard_normal((5, 3, 3)).astype(np.float32)
        found = metrics.jackknife(sums, np.full(5, 2), metrics.singular_values)
        expected = metrics.jackknife(sums.astype(float), np.full(5, 2), metrics.singular_values)
        np.testing.assert_array_equal(found, expected)


class TestFitDecay:
    @pytest.mark.parametrize("start", [0, 7])
    @pytest.mark.parametrize("b", [0.02, 0.3, 1.5])
    def test_agrees_with_curve_fit(self, rng, start, b):
        delays = np.arange(start, 40.0)
        y = 2.5 * np.exp(-b * delays)
        y = y * (1 + 0.02 * rng.standard_normal(y.size))
        (a_, b_), cov = curve_fit(
            lambda t, a, b: a * np.exp(-b * t), delays, y, [2.5, b], xtol=1e-14, ftol=1e-14
        )
        found = metrics.fit_decay(delays, y)
        # Both stop where the sum of squares no longer falls, √eps from the minimum.
        assert (found.a, found.b) == pytest.approx((a_, b_), rel=1e-6)
        errors = np.sqrt(np.diag(cov))
        assert (found.a_stderr, found.b_stderr) == pytest.approx(tuple(errors), rel=1e-4)
        assert found.time_constant == pytest.approx(1 / found.b)

    def test_recovers_an_exact_exponential_and_skips_nan(self):
        y = 3 * np.exp(-0.25 * np.arange(6))
        y[4] = np.nan
        found = metrics.fit_decay(np.arange(6), y)
        assert (found.a, found.b) == pytest.approx((3, 0.25), rel=1e-9)
        assert found.b_stderr < 1e-7

    @pytest.mark.parametrize(
        ("delays", "y"), [([], []), ([3], [1.0]), ([0, 1], [np.nan, 1.0]), ([0, 1, 2], [0.0] * 3)]
    )
    def test_says_nan_where_nothing_can_be_fitted(self, delays, y):
        assert np.isnan(metrics.fit_decay(np.array(delays), np.array(y)).b)

    def test_two_points_have_no_errors(self):
        found = metrics.fit_decay([0, 2], [1.0, 0.5])
        assert found.b == pytest.approx(np.log(2) / 2)
        assert np.isnan(found.b_stderr)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.floats(0, 1e6), min_size=0, max_size=12))
    def test_never_fails_or_warns(self, y):
        metrics.fit_decay(np.arange(len(y)), np.array(y))


def test_public_names_exist():
    assert all(hasattr(metrics, name) for name in metrics.__all__)
