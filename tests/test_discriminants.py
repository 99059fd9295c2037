"""Linear discriminants against the generalised eigenproblem and Gaussian densities, by scipy."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.analyzer.discriminants import accuracy, discriminants
from scipy.linalg import eigh, subspace_angles
from scipy.stats import multivariate_normal


def planted(seed=0, n=900, size=8, classes=5):
    """Classes whose means differ along two directions, in a noise that correlates everything."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    means = np.zeros((classes, size))
    means[:, :2] = 4 * rng.standard_normal((classes, 2))
    mixing = rng.standard_normal((size, size))
    return (means[labels] + rng.standard_normal((n, size))) @ mixing, labels


def scatter(states, labels):
    """Covariance within classes, N − C degrees of freedom, and between the classes' means."""
    mean = states.mean(0)
    within = np.zeros((states.shape[1],) * 2)
    between = np.zeros_like(within)
    for label in set(labels.tolist()):
        mine = states[labels == label]
        within += (mine - mine.mean(0)).T @ (mine - mine.mean(0))
        between += len(mine) * np.outer(mine.mean(0) - mean, mine.mean(0) - mean)
    return within / (len(states) - len(set(labels.tolist()))), between


def test_against_the_generalised_eigenproblem():
    states, labels = planted()
    within, between = scatter(states, labels)
    values, vectors = eigh(between, within)
    values, vectors = values[::-1], vectors[:, ::-1]
    found = discriminants(states, labels)
    np.testing.assert_allclose(found.within, within, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.explained, values[:4] / values.sum(), rtol=1e-9, atol=1e-12)
    for number in (1, 2, 3):
        angles = subspace_angles(found.directions[:, :number], vectors[:, :number])
        assert angles.max() < 1e-6
    np.testing.assert_allclose(
        found.directions.T @ within @ found.directions, np.eye(4), rtol=0, atol=1e-10
    )
    assert found.needed(0.99) == 2
    assert found.needed(1.0) <= 4
    np.testing.assert_allclose(found.mean, states.mean(0), rtol=1e-9, atol=1e-12)


def test_the_projector_divides_the_classes_from_the_rest():
    states, labels = planted()
    found = discriminants(states, labels)
    p = found.projector(2)
    np.testing.assert_allclose(p @ p, p, rtol=0, atol=1e-10)
    assert np.linalg.matrix_rank(p, tol=1e-8) == 2
    # The coordinates see all of the part and nothing of the rest.
    w = found.directions[:, :2]
    np.testing.assert_allclose(w.T @ p, w.T, rtol=0, atol=1e-10)
    # The two parts are uncorrelated within classes.
    rest = np.eye(len(p)) - p
    np.testing.assert_allclose(p @ found.within @ rest.T, 0, atol=1e-9)
    half = len(states) // 2
    first, second = slice(0, half), slice(half, None)
    parts = {"part": states @ p.T, "rest": states @ rest.T}
    q, _ = np.linalg.qr(w)
    parts["orthogonal rest"] = states - states @ q @ q.T
    said = {k: accuracy(v[first], labels[first], v[second], labels[second])
            for k, v in parts.items()}  # fmt: skip
    whole = accuracy(states[first], labels[first], states[second], labels[second])
    majority = np.bincount(labels[second]).max() / half
    assert said["part"] == pytest.approx(whole, abs=0.03)
    assert whole > majority + 0.3
    assert said["rest"] < majority + 0.05
    # What the docstring warns of.
    assert said["orthogonal rest"] > said["rest"] + 0.1


def test_a_change_of_basis_changes_nothing():
    states, labels = planted()
    rng = np.random.default_rng(3)
    basis = rng.standard_normal((8, 8))
    found, other = discriminants(states, labels), discriminants(states @ basis.T, labels)
    np.testing.assert_allclose(other.explained, found.explained, rtol=1e-8, atol=1e-12)
    expected = basis @ found.projector(2) @ np.linalg.inv(basis)
    np.testing.assert_allclose(other.projector(2), expected, rtol=0, atol=1e-8)


def test_accuracy_against_gaussian_densities():
    states, labels = planted()
    half = len(states) // 2
    train, test = slice(0, half), slice(half, None)
    within, _ = scatter(states[train], labels[train])
    scores = [
        multivariate_normal(states[train][labels[train] == c].mean(0), within).logpdf(states[test])
        + np.log(np.mean(labels[train] == c))
        for c in range(5)
    ]
    expected = np.mean(np.argmax(scores, 0) == labels[test])
    found = accuracy(states[train], labels[train], states[test], labels[test])
    # Versions of scikit-learn take N or N − C degrees of freedom, which may move a state or two.
    assert found == pytest.approx(expected, abs=2.5 / half)
    assert np.isnan(accuracy(states, labels, states[:0], labels[:0]))


def test_units_that_never_move():
    states, labels = planted()
    wide = np.concatenate([states, np.zeros((len(states), 2))], 1)
    found, plain = discriminants(wide, labels), discriminants(states, labels)
    np.testing.assert_allclose(found.explained, plain.explained, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.projector(2)[:8, :8], plain.projector(2), atol=1e-8)
    assert not found.projector(2)[8:].any()


def test_one_class():
    with pytest.raises(ValueError, match="class"):
        discriminants(np.eye(4), np.zeros(4, int))
