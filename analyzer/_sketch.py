"""Sampled directions: of each input, the Jacobians by a few directions instead of by all.

With Q the k directions of an input, orthonormal and each direction of a random basis among them
with probability k/E, ``E[E/k · J Q Qᵀ] = J``: sums of these have the mean of the full sums.
Directions are dealt like cards, so that neighbours cover the whole basis evenly. How much the
sample adds to the standard errors needs no formula: the blocks of the jackknife have samples of
their own.
"""

from __future__ import annotations

import numpy as np

from ._pipeline import parts_of


class Sketch:
    """Which directions of a random basis are followed for each input.

    The basis is dealt to parts for the threads, and each part has hands of its own.

    Args:
        size: E.
        directions: k, for each input.
        threads: How many parts at most.
        seed: Of the basis and of the dealing.
        dtype: Of the products.

    Attributes:
        basis: ``[embedding, direction]``, orthonormal, of uniform (Haar) distribution.
        parts: Ranges of directions, one for each part.
        hands: How many of its part an input gets, by part.
    """

    def __init__(
        self, size: int, directions: int, threads: int, seed: int, dtype: np.dtype
    ) -> None:
        rng = np.random.default_rng([seed, size])
        q, r = np.linalg.qr(rng.standard_normal((size, size)))
        # Without the signs the distribution would not be uniform (Mezzadri 2007, section 5).
        self.basis = np.ascontiguousarray(q * np.sign(np.diag(r)), dtype)
        self.parts = parts_of(size, min(threads, directions))
        edges = np.arange(len(self.parts) + 1) * directions // len(self.parts)
        self.hands = np.diff(edges).tolist()
        self._seed = seed
        self._decks: dict[int, tuple[int, np.ndarray]] = {}  # of each part the last one

    def of(self, part: int, position: int) -> np.ndarray:
        """Directions of an input, counted from the first of the part.

        Different parts may ask at the same time.
        """
        size, hand = self.parts[part].stop - self.parts[part].start, self.hands[part]
        deck, turn = divmod(position, size // hand)
        if self._decks.get(part, (-1,))[0] != deck:
            rng = np.random.default_rng([self._seed, part, deck])
            self._decks[part] = (deck, rng.permutation(size))
        return self._decks[part][1][turn * hand : (turn + 1) * hand]

    def unfold(self, sums: np.ndarray) -> None:
        """Turn sums ``[…, direction]`` into those by the embedding's coordinates, in place."""
        factor = np.empty(len(self.basis))
        for part, hand in zip(self.parts, self.hands, strict=True):
            factor[part] = (part.stop - part.start) / hand
        back = (self.basis * factor).T
        for at in np.ndindex(sums.shape[:-2]):
            sums[at] = sums[at] @ back
