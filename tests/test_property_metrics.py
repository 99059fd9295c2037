"""Relative memory and subspace cosine against plain arithmetic, and what must always hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mnemoscope.analyzer.metrics import (
    random_cosine,
    random_relative_memory,
    relative_memory,
    singular_values,
    subspace_cosine,
    svd,
    unit_length,
    whiten,
)

TIGHT = 1e-10

ENTRIES = st.floats(-100, 100, allow_subnormal=False).map(lambda x: round(x, 3))


@st.composite
def problems(draw):
    """A matrix ``[unit, embedding]`` that is not zero and a direction that is not."""
    units, size = draw(st.integers(1, 7)), draw(st.integers(1, 6))
    g = draw(arrays(np.float64, (units, size), elements=ENTRIES).filter(lambda a: a.any()))
    d = draw(arrays(np.float64, size, elements=ENTRIES).filter(lambda a: a.any()))
    return g, d


def by_hand(g, d, n):
    """The same from the eigenvectors of GᵀG, written out."""
    values, vectors = np.linalg.eigh(g.T @ g)
    order = np.argsort(values)[::-1]
    v = vectors[:, order[:n]]
    d = d / np.sqrt(sum(x * x for x in d))
    moved = [sum(g[i, j] * d[j] for j in range(len(d))) for i in range(len(g))]
    m = np.sqrt(sum(x * x for x in moved)) / np.sqrt(values.max())
    return m, np.sqrt(((v.T @ d) ** 2).sum())


class TestAgainstHand:
    @pytest.mark.parametrize("shape", [(9, 4), (4, 4), (3, 6), (1, 3)])
    @pytest.mark.parametrize("n", [1, 2])
    def test_random_matrices(self, shape, n):
        rng = np.random.default_rng(sum(shape))
        for _ in range(20):
            g, d = rng.standard_normal(shape), rng.standard_normal(shape[1])
            if n > min(shape):
                continue
            m, cosine = by_hand(g, d, n)
            assert abs(relative_memory(g, d) - m) < TIGHT
            assert abs(subspace_cosine(g, d, n) - cosine) < TIGHT

    def test_whitened_jacobian_of_known_numbers(self):
        """Two units over two entries: everything can be worked out on paper."""
        # Covariance diag(4, 1), so D = diag(2, 1) and Z = diag(1/2, 1).
        embeddings = np.array([[2.0, 1.0], [-2.0, 1.0], [2.0, -1.0], [-2.0, -1.0]])
        w = whiten(embeddings)
        np.testing.assert_allclose(w.D, np.diag([2.0, 1.0]), atol=1e-15)
        g = np.array([[1.0, 0.0], [0.0, 0.5]])  # whitened: diag(2, 0.5)
        difference = np.array([2.0, 1.0])  # whitened: (1, 1), at unit length (1, 1)/√2
        d = w.Z @ difference
        m = np.sqrt(2.0**2 + 0.5**2) / np.sqrt(2) / 2.0
        assert abs(relative_memory(g @ w.D, d) - m) < TIGHT
        assert abs(subspace_cosine(g @ w.D, d, 1) - np.sqrt(0.5)) < TIGHT
        # Equation 14 scales before whitening: its m is this one times ‖Z u‖.
        u = difference / np.sqrt(5)
        eq14 = np.linalg.norm(g @ w.D @ w.Z @ u) / 2.0
        assert abs(eq14 - m * np.linalg.norm(w.Z @ u)) < TIGHT
        assert abs(eq14 - m) > 0.1  # not the same thing

    def test_batched(self):
        rng = np.random.default_rng(0)
        g, d = rng.standard_normal((3, 4, 6, 5)), rng.standard_normal((4, 5))
        m, cosine = relative_memory(g, d), subspace_cosine(g, d, 2)
        assert m.shape == cosine.shape == (3, 4)
        for i in np.ndindex(3, 4):
            expected = by_hand(g[i], d[i[1]], 2)
            assert abs(m[i] - expected[0]) < TIGHT
            assert abs(cosine[i] - expected[1]) < TIGHT

    def test_a_wrong_formula_would_be_seen(self):
        """Scaled before whitening, or the left vectors in place of the right ones."""
        rng = np.random.default_rng(1)
        g, d = rng.standard_normal((5, 5)), rng.standard_normal(5)
        m, cosine = by_hand(g, d, 1)
        u, _, _ = svd(g)
        assert abs(abs(u[:, 0] @ d) / np.linalg.norm(d) - cosine) > 1e-3
        assert abs(np.linalg.norm(g @ d) / singular_values(g)[0] - m) > 1e-3


class TestAlways:
    @given(problems(), st.integers(1, 7))
    def test_bounds(self, problem, n):
        g, d = problem
        for value in (relative_memory(g, d), subspace_cosine(g, d, n)):
            assert 0.0 <= value <= 1.0

    @given(problems(), st.floats(1e-150, 1e150))
    def test_lengths_do_not_matter(self, problem, scale):
        g, d = problem
        for measure in (relative_memory, lambda a, b: subspace_cosine(a, b, 1)):
            assert abs(measure(g, -scale * d) - measure(g, d)) < 1e-9
        assert abs(relative_memory(scale * g, d) - relative_memory(g, d)) < 1e-9

    @given(problems())
    def test_first_singular_vector_is_remembered_fully(self, problem):
        g, _ = problem
        v1 = svd(g)[2][0]
        assert abs(relative_memory(g, v1) - 1) < TIGHT
        assert abs(subspace_cosine(g, v1, 1) - 1) < TIGHT

    @given(problems(), st.integers(1, 6))
    def test_cosine_grows_with_n_and_ends_at_the_row_space(self, problem, n):
        g, d = problem
        a, b = subspace_cosine(g, d, n), subspace_cosine(g, d, n + 1)
        assert b >= a - 1e-12
        assert relative_memory(g, d) <= subspace_cosine(g, d, 6) + 1e-9

    @given(st.integers(0, 2**32 - 1), st.integers(1, 4))
    def test_rotation_of_the_embedding_space(self, seed, n):
        rng = np.random.default_rng(seed)
        g, d = rng.standard_normal((6, 5)), rng.standard_normal(5)
        q, _ = np.linalg.qr(rng.standard_normal((5, 5)))
        # e → q e, hence ∂s/∂e → ∂s/∂e qᵀ
        assert abs(relative_memory(g @ q.T, q @ d) - relative_memory(g, d)) < TIGHT
        s = singular_values(g)
        if s[n - 1] - s[n] > 1e-3 * s[0]:  # else the n best directions are hardly determined
            assert abs(subspace_cosine(g @ q.T, q @ d, n) - subspace_cosine(g, d, n)) < TIGHT

    @given(st.integers(0, 2**32 - 1), st.integers(1, 4))
    def test_any_invertible_map_once_whitened(self, seed, n):
        """Whitened, nothing depends on the basis or the scales of the embedding space."""
        rng = np.random.default_rng(seed)
        e, g = rng.standard_normal((30, 5)), rng.standard_normal((6, 5))
        u, _, vt = np.linalg.svd(rng.standard_normal((5, 5)))
        a = u * rng.uniform(0.2, 5.0, 5) @ vt
        found = []
        for table, jacobian in ((e, g), (e @ a.T + 1.0, g @ np.linalg.inv(a))):
            w = whiten(table)
            d = w.Z @ (table[:10].mean(0) - table[10:].mean(0))
            found.append(
                (relative_memory(jacobian @ w.D, d), subspace_cosine(jacobian @ w.D, d, n))
            )
        s = singular_values(g @ whiten(e).D)
        assert abs(found[0][0] - found[1][0]) < TIGHT
        if s[n - 1] - s[n] > 1e-3 * s[0]:
            assert abs(found[0][1] - found[1][1]) < TIGHT

    @given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.floats(1e-3, 1e3))
    def test_both_agree_where_the_memory_is_a_projection(self, seed, n, sigma):
        """V20, equation 23: G = σ₁ U_n V_nᵀ."""
        rng = np.random.default_rng(seed)
        u, _ = np.linalg.qr(rng.standard_normal((6, n)))
        v, _ = np.linalg.qr(rng.standard_normal((5, n)))
        g, d = sigma * u @ v.T, rng.standard_normal(5)
        m = relative_memory(g, d)
        assert abs(m - subspace_cosine(g, d, n)) < TIGHT
        # The rank is n: asking for more directions gives no more.
        assert abs(m - subspace_cosine(g, d, n + 2)) < TIGHT
        assert abs(m - np.linalg.norm(v.T @ unit_length(d))) < TIGHT


class TestNothing:
    def test_is_nan(self):
        g, d = np.eye(3), np.ones(3)
        for bad in (np.zeros((3, 3)), np.full((3, 3), np.nan), np.diag([np.inf, 1, 1])):
            assert np.isnan(relative_memory(bad, d))
            assert np.isnan(subspace_cosine(bad, d))
        for bad in (np.zeros(3), np.full(3, np.nan)):
            assert np.isnan(relative_memory(g, bad))
            assert np.isnan(subspace_cosine(g, bad))
        both = relative_memory(np.stack([g, np.zeros((3, 3))]), d)
        assert np.isnan(both).tolist() == [False, True]


class TestChance:
    @pytest.mark.parametrize(("r", "n"), [(2, 1), (64, 1), (64, 5), (10, 9)])
    def test_cosine_is_what_sampling_finds(self, r, n):
        x = np.random.default_rng(0).standard_normal((20000, r))
        cosine = np.linalg.norm(unit_length(x)[:, :n], axis=1)
        q = (0.025, 0.5, 0.975)
        # The rank of a sample quantile scatters by √(q(1−q)/samples); five times that either way.
        for p, found in zip(q, random_cosine(r, n, q), strict=True):
            assert abs((cosine < found).mean() - p) < 5 * np.sqrt(p * (1 - p) / len(x))

    def test_the_whole_space(self):
        assert random_cosine(3, 3).tolist() == random_cosine(3, 5).tolist() == [1, 1, 1]

    def test_memory_of_equal_values_is_one(self):
        np.testing.assert_allclose(random_relative_memory(np.full(5, 2.0), 5), 1.0)

    def test_memory_is_that_of_random_directions(self):
        """Directions drawn in another basis, through the measure itself."""
        rng = np.random.default_rng(3)
        g = rng.standard_normal((8, 6)) * [5, 1, 1, 0.1, 0.1, 0.1]
        drawn = relative_memory(g, rng.standard_normal((20000, 6)))
        told = random_relative_memory(singular_values(g), 6, samples=20000, seed=1)
        for p in (0.025, 0.5, 0.975):
            assert abs((drawn < np.quantile(told, p)).mean() - p) < 0.01

    def test_one_direction_of_many(self):
        """Rank one: m is the cosine with the first direction, whose distribution is known."""
        m = random_relative_memory(np.array([2.0]), 64, samples=20000)
        for p, expected in zip((0.025, 0.5, 0.975), random_cosine(64, 1), strict=True):
            assert abs((m < expected).mean() - p) < 0.01

    def test_batched_and_nothing(self):
        values = np.array([[3.0, 1.0], [0.0, 0.0], [np.nan, np.nan]])
        m = random_relative_memory(values, 4, samples=7)
        assert m.shape == (3, 7)
        assert np.isnan(m).all(axis=1).tolist() == [False, True, True]
