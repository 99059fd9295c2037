"""Linear discriminants: which directions of a state space tell classes apart.

Linear discriminant analysis (LDA) takes every class for a Gaussian cloud, all of one covariance,
and asks for the directions along which their means are farthest apart in units of that
covariance. Verwimp et al. 2020 ("V20"), section 4.2.2, use it to find what an LSTM's state encodes,
and to divide the state space into the directions that encode it and the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Discriminants", "accuracy", "discriminants"]


@dataclass(frozen=True)
class Discriminants:
    """Directions that tell classes apart, the best first.

    Attributes:
        directions: ``[unit, direction]`` W: a state's coordinates are ``(state - mean) @ W``, which
            within classes are uncorrelated and of variance 1. One fewer than there are classes, or
            fewer where the states vary in fewer dimensions.
        explained: ``[direction]``, share of each in the variance between classes.
        mean: ``[unit]``, the mean state, each class weighing as it occurs.
        within: ``[unit, unit]`` S, the covariance within classes.
    """

    directions: np.ndarray
    explained: np.ndarray
    mean: np.ndarray
    within: np.ndarray

    def needed(self, share: float = 0.99) -> int:
        """Number of directions that explain `share` of the variance between classes."""
        reached = np.cumsum(self.explained) >= share - 1e-12
        return int(np.argmax(reached)) + 1 if reached.any() else len(self.explained)

    def coordinates(self, states: np.ndarray, number: int) -> np.ndarray:
        """Coordinates ``[position, direction]`` of states ``[position, unit]`` in the best few."""
        return (states - self.mean) @ self.directions[:, :number]

    def projector(self, number: int) -> np.ndarray:
        """The matrix P ``[unit, unit]`` that keeps of a state what lies in the best few directions.

        ``P = S W Wᵀ``: it projects onto the span of ``S W`` along all that the coordinates do not
        see, so ``P + (1 − P)`` divides a state, or a gradient ``[unit, embedding]``, into two parts
        that add up to it and are uncorrelated within classes. It is oblique: the rest is
        orthogonal to the directions in the metric of S, as the remaining discriminant directions
        are. Merely taking away the span of W orthogonally would leave in the rest all that is
        correlated with it, and with that the classes.
        """
        w = self.directions[:, :number]
        return self.within @ w @ w.T


def discriminants(states: np.ndarray, labels: np.ndarray) -> Discriminants:
    """Find the directions that tell the classes of states apart.

    Args:
        states: ``[position, unit]``.
        labels: ``[position]``, the class of each, two at least.

    Raises:
        ValueError: There are fewer than two classes, or no more states than classes.
    """
    fitted = _fit(states, labels)
    classes, which = np.unique(labels, return_inverse=True)
    rest = np.asarray(states, np.float64) - fitted.means_[which]
    within = rest.T @ rest / (len(rest) - len(classes))
    number = min(fitted.scalings_.shape[1], len(fitted.explained_variance_ratio_))
    w = fitted.scalings_[:, :number]
    # Versions of scikit-learn scale by the number of states, or less by that of classes.
    w = w / np.sqrt(np.einsum("ik,ij,jk->k", w, within, w))
    return Discriminants(w, fitted.explained_variance_ratio_[:number], fitted.xbar_, within)


def accuracy(
    states: np.ndarray, labels: np.ndarray, new_states: np.ndarray, new_labels: np.ndarray
) -> float:
    """Share of new states whose class LDA predicts rightly.

    Args:
        states: ``[position, unit]`` to learn from.
        labels: ``[position]``.
        new_states: ``[position, unit]`` to be tested on.
        new_labels: ``[position]``.

    Returns:
        From 0 to 1; NaN without new states.

    Raises:
        ValueError: As for `discriminants`.
    """
    if not len(new_states):
        return float("nan")
    return float(np.mean(_fit(states, labels).predict(new_states) == new_labels))


def _fit(states: np.ndarray, labels: np.ndarray) -> Any:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    if len(np.unique(labels)) < 2:  # which versions of scikit-learn let pass
        raise ValueError("linear discriminants need two classes at least")
    # Singular value decomposition: a covariance may be singular, as that of units that never move.
    return LinearDiscriminantAnalysis(solver="svd").fit(np.asarray(states, np.float64), labels)
