"""The one place where Jacobians are summed: per block, group and delay, and over one half.

A mean, a singular value, its standard error and its noise floor all derive from these sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_FLUSH = 256  # additions in single precision before they move to the double-precision totals
_STAGED = 8  # staging sums held at once; a window rarely spans more blocks and halves


@dataclass
class Sums:
    """Sums of state-embedding Jacobians of one state component.

    Attributes:
        block_sum: ``[block, group, delay, unit, embedding]``, sum over the input positions of a
            block that belong to a group.
        block_count: ``[block, group, delay]`` integers, how many Jacobians each sum holds.
        half_sum: ``[group, delay, unit, embedding]``, the same over the input positions that
            fell in the first of the two random halves, all blocks together.
        half_count: ``[group, delay]`` integers.
    """

    block_sum: np.ndarray
    block_count: np.ndarray
    half_sum: np.ndarray
    half_count: np.ndarray


@dataclass(frozen=True)
class Plan:
    """Which input positions are followed, and where each is counted.

    Attributes:
        stretches: ``[stretch, 2]`` first input position of each, and one past its last.
        block: ``[position]`` jackknife block of each position, -1 where it is not followed.
        half: ``[position]`` 0 or 1.
        blocks: Number of blocks.
    """

    stretches: np.ndarray
    block: np.ndarray
    half: np.ndarray
    blocks: int

    @property
    def inputs(self) -> int:
        """Number of positions that are followed."""
        return int((self.stretches[:, 1] - self.stretches[:, 0]).sum())


def plan(
    length: int, max_delay: int, *, blocks: int, positions: int | None = None, seed: int = 0
) -> Plan:
    """Choose input positions and deal them to blocks and halves.

    All positions form one stretch, cut into `blocks` contiguous blocks. A sample of `positions`
    is drawn as stretches of equal length at random places that do not overlap, `blocks` of them
    or a multiple, and block i holds stretches i, i + blocks, and so on.

    Chunks of 2 (max_delay + 1) neighbours fall together in one half, at random and balanced:
    neighbouring Jacobians share a state and are correlated, so halves dealt position by position
    would be too alike and understate the noise. What correlation is left across the borders of
    chunks lowers the floor by a few per cent.

    Args:
        length: Positions in the corpus.
        max_delay: τ_max.
        blocks: Jackknife blocks.
        positions: Sample size; None means all.
        seed: Of the sample and of the halves.
    """
    rng = np.random.default_rng(seed)
    blocks = min(blocks, length)
    block = np.full(length, -1, np.int64)
    if positions is None or positions >= length:
        stretches = np.array([[0, length]])
        block[:] = np.arange(length) * blocks // length
    else:
        blocks = min(blocks, positions)
        # Stretches long enough to share most of the work of the products, yet several a block,
        # so that one odd passage is not a whole block.
        per_block = int(np.clip(positions // (blocks * 2 * (max_delay + 1)), 1, 4))
        number = blocks * per_block
        sizes = np.full(number, positions // number)
        sizes[: positions % number] += 1
        gaps = np.sort(rng.integers(0, length - positions + 1, number))
        starts = gaps + np.concatenate([[0], np.cumsum(sizes)[:-1]])
        stretches = np.stack([starts, starts + sizes], 1)
        for i, (low, high) in enumerate(stretches):
            block[low:high] = i % blocks
    chunk = np.full(length, -1, np.int64)
    count = 0
    for low, high in stretches:
        # An even number of chunks of nearly one size, so that the halves are of one size too.
        length_ = int(high - low)
        pairs = max(1, round(length_ / (4 * (max_delay + 1))))
        number = min(2 * pairs, length_)
        chunk[low:high] = count + np.arange(length_) * number // length_
        count += number
    sides = rng.permutation(np.arange(count) % 2)
    half = np.where(chunk >= 0, sides[chunk], -1)
    return Plan(stretches, block, half, blocks)


class Accumulator:
    """Adds windows of Jacobians into sums.

    Additions go to a single-precision staging sum per block and half (when the Jacobians are in
    single precision), which moves to double precision every few hundred, so that rounding does
    not grow with the length of the corpus. Different parts of the embedding may be added by
    different threads.

    Args:
        plan: Where each position counts.
        max_delay: τ_max.
        sizes: State → n.
        embedding: E.
        dtype: Of the Jacobians.
        groups: Group → ``[position]`` booleans, the input positions that belong to it.
        parts: Ranges of the embedding's coordinates in which windows come; None means whole.
    """

    def __init__(
        self,
        plan: Plan,
        max_delay: int,
        sizes: Mapping[str, int],
        embedding: int,
        dtype: np.dtype,
        groups: Mapping[str, np.ndarray],
        parts: Sequence[slice] | None = None,
    ) -> None:
        self._plan = plan
        self._groups = [np.asarray(mask, bool) for mask in groups.values()]
        shape = (len(self._groups), max_delay + 1)
        ends = np.cumsum([0, *sizes.values()])
        self._spans = {
            name: slice(int(a), int(b))
            for name, a, b in zip(sizes, ends[:-1], ends[1:], strict=True)
        }
        cells = (*shape, embedding, int(ends[-1]))
        self._block_sum = np.zeros((plan.blocks, *cells))
        self._half_sum = np.zeros(cells)
        self._block_count = np.zeros((plan.blocks, *shape), np.int64)
        self._half_count = np.zeros(shape, np.int64)
        self._staging = {
            part.start: _Staging(
                self._block_sum[:, :, :, part], self._half_sum[:, :, part], np.dtype(dtype)
            )
            for part in parts or [slice(0, embedding)]
        }
        # Runs of neighbours that count alike: one addition each, not one per position.
        keys = np.stack([plan.block, plan.half, *self._groups])
        self._edges = np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(0)) + 1

    def add(self, time: int, first: int, jacobians: np.ndarray, part: slice | None = None) -> None:
        """Count the Jacobians of one time step.

        Args:
            time: Position t.
            first: Smallest delay among them.
            jacobians: ``[delay, E of the part, n]`` from `first` on, the states side by side in
                the order of `sizes`.
            part: Coordinates of the embedding; None means all.
        """
        start = part.start if part else 0
        staging = self._staging[start]
        newest = time - first
        oldest = newest - len(jacobians) + 1
        cuts = self._edges[
            np.searchsorted(self._edges, oldest, "right") : np.searchsorted(
                self._edges, newest, "right"
            )
        ]
        for low, high in zip([oldest, *cuts], [*cuts, newest + 1], strict=True):
            key = (int(self._plan.block[low]), int(self._plan.half[low]))
            members = [g for g, mask in enumerate(self._groups) if mask[low]]
            if key[0] < 0 or not members:
                continue
            # Positions low … high-1 are delays time-high+1 … time-low.
            here = slice(time - high + 1, time - low + 1)
            there = slice(here.start - first, here.stop - first)
            staged = staging.at(key)
            for g in members:
                target = staged[g, here]
                np.add(target, jacobians[there], out=target)
                if start == 0:  # every part sees the same positions
                    self._block_count[key[0], g, here] += 1
                    if key[1] == 0:
                        self._half_count[g, here] += 1

    def result(self) -> dict[str, Sums]:
        """The sums so far, per state."""
        for staging in self._staging.values():
            staging.flush()
        return {
            name: Sums(
                np.swapaxes(self._block_sum[..., span], -1, -2),
                self._block_count.copy(),
                np.swapaxes(self._half_sum[..., span], -1, -2),
                self._half_count.copy(),
            )
            for name, span in self._spans.items()
        }

    @staticmethod
    def bytes_needed(
        blocks: int, groups: int, delays: int, sizes: list[int], embedding: int, itemsize: int
    ) -> int:
        """Memory of the totals and of the staging sums."""
        cells = groups * delays * embedding * sum(sizes)
        return cells * (8 * (blocks + 1) + _STAGED * itemsize)


class _Staging:
    """Staging sums of one part, by block and half, and the totals that they move to."""

    def __init__(self, block_sum: np.ndarray, half_sum: np.ndarray, dtype: np.dtype) -> None:
        self._block_sum, self._half_sum, self._dtype = block_sum, half_sum, dtype
        self._held: dict[tuple[int, int], np.ndarray] = {}
        self._free: list[np.ndarray] = []
        self._additions: dict[tuple[int, int], int] = {}

    def at(self, key: tuple[int, int]) -> np.ndarray:
        """The staging sums of a block and half, for one more addition."""
        if self._additions.get(key, 0) >= _FLUSH:
            self._give_up(key)
        if key in self._held:
            self._held[key] = self._held.pop(key)  # now the last to be given up
        else:
            if len(self._held) >= _STAGED:
                self._give_up(next(iter(self._held)))
            self._held[key] = (
                self._free.pop() if self._free else np.zeros(self._half_sum.shape, self._dtype)
            )
        self._additions[key] = self._additions.get(key, 0) + 1
        return self._held[key]

    def _give_up(self, key: tuple[int, int]) -> None:
        staged = self._held.pop(key)
        self._block_sum[key[0]] += staged
        if key[1] == 0:
            self._half_sum += staged
        staged[...] = 0
        self._free.append(staged)
        self._additions[key] = 0

    def flush(self) -> None:
        """Move everything to the totals."""
        for key in list(self._held):
            self._give_up(key)
