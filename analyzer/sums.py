"""The one place where Jacobians are summed: per block, group and delay, and over one half.

A mean, a singular value, its standard error and its noise floor all derive from these sums.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ._memory import shown
from .errors import ResourceError
from .groups import Groups

_FLUSH = 256  # additions in single precision before they move to the double-precision totals
STAGED = 6  # staging sums held at once besides two for each group: of the block that ends
_IN_MEMORY = 2**30  # bytes of totals that are held in memory; more go to a temporary file
_RELEASE_DIRECT = 4096  # the same for additions that are not staged
_RELEASE = 8  # staging sums moved before what a temporary file holds leaves memory


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
        release: Lets what has been read of the sums leave memory, where a file holds them.
    """

    block_sum: np.ndarray
    block_count: np.ndarray
    half_sum: np.ndarray
    half_count: np.ndarray
    release: Callable[[], None] = lambda: None


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
        return int(np.count_nonzero(self.block >= 0))


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


@dataclass(frozen=True)
class Partial:
    """Sums over some positions of a plan, of the blocks and groups that they belong to.

    Attributes:
        blocks: ``[block]`` numbers in the whole plan.
        groups: ``[group]`` numbers in the whole plan.
        block_sum: ``[block, group, delay, embedding, unit]``, all states side by side.
        half_sum: ``[group, delay, embedding, unit]``.
        block_count: ``[block, group, delay]``.
        half_count: ``[group, delay]``.
    """

    blocks: np.ndarray
    groups: np.ndarray
    block_sum: np.ndarray
    half_sum: np.ndarray
    block_count: np.ndarray
    half_count: np.ndarray


def places(plan: Plan, groups: Groups, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where some inputs count.

    Args:
        plan: Their blocks and halves.
        groups: Their groups.
        inputs: ``[input]`` positions.

    Returns:
        ``[entry]`` numbers of the inputs, and ``[entry, 2]`` block and group of each, with -1 for
        the block where it is the first half that they count in.
    """
    first = groups.start[inputs]
    widths = groups.start[inputs + 1] - first
    number = np.repeat(np.arange(len(inputs)), widths)
    entry = np.arange(len(number)) + np.repeat(first - (np.cumsum(widths) - widths), widths)
    at, group = inputs[number], groups.group[entry]
    in_block = plan.block[at] >= 0
    in_half = in_block & (plan.half[at] == 0)
    found = [
        np.stack([plan.block[at], group], 1)[in_block],
        np.stack([np.full_like(group, -1), group], 1)[in_half],
    ]
    return np.concatenate([number[in_block], number[in_half]]), np.concatenate(found)


class Accumulator:
    """Adds windows of Jacobians into sums.

    In single precision additions go to a staging sum for each block, half and group, which moves
    to double precision every few hundred, so that rounding does not grow with the length of the
    corpus; where no group holds more positions than that, the totals are in single precision and
    nothing is staged. Large totals are held in a temporary file that has no name. Different parts
    of the embedding may be added by different threads.

    Args:
        plan: Where each position counts.
        max_delay: τ_max.
        sizes: State → n.
        embedding: E.
        dtype: Of the Jacobians.
        groups: The classes of the input positions.
        parts: Ranges of the embedding's coordinates in which windows come; None means whole.
        by_rows: Whether the ranges are of the states' units instead, as `add_input` takes them.
        folder: Where large totals are held; None means in memory.
        staged: Whether there are staging sums; None means where a group needs them.

    Attributes:
        staged: Whether there are staging sums.

    Raises:
        ResourceError: The folder has no room for the totals.
    """

    def __init__(
        self,
        plan: Plan,
        max_delay: int,
        sizes: Mapping[str, int],
        embedding: int,
        dtype: np.dtype,
        groups: Groups,
        parts: Sequence[slice] | None = None,
        folder: str | os.PathLike[str] | None = None,
        by_rows: bool = False,
        staged: bool | None = None,
    ) -> None:
        self._plan, self._groups, self._by_rows = plan, groups, by_rows
        ends = np.cumsum([0, *sizes.values()])
        self._spans = {
            name: slice(int(a), int(b))
            for name, a, b in zip(sizes, ends[:-1], ends[1:], strict=True)
        }
        size = Size.of(plan, groups, max_delay + 1, int(ends[-1]) * embedding, np.dtype(dtype),
                       staged)  # fmt: skip
        self.staged = size.staged
        matrix = (int(ends[-1]), embedding) if by_rows else (embedding, int(ends[-1]))
        cells = (len(groups), max_delay + 1, *matrix)
        self._held = _Held(size, folder)
        self._block_sum = self._held.zeros((plan.blocks, *cells))
        self._half_sum = self._held.zeros(cells)
        self._block_count = np.zeros((plan.blocks, *cells[:2]), np.int64)
        self._half_count = np.zeros(cells[:2], np.int64)
        kind = _Staged if size.staged else _Direct
        self._targets = {
            part.start: kind(
                self._block_sum[:, :, :, part],
                self._half_sum[:, :, part],
                np.dtype(dtype),
                self._held.release,
            )
            for part in parts or [slice(0, matrix[0])]
        }
        # Runs of neighbours that count alike: one addition each, not one per position.
        keys = np.stack([plan.block, plan.half, groups.keys()])
        changes = (keys[:, 1:] != keys[:, :-1]).any(0)
        self._run = np.concatenate([[0], np.cumsum(changes)])
        self._run_start = np.concatenate([[0], np.flatnonzero(changes) + 1])

    def add(
        self,
        time: int,
        inputs: np.ndarray,
        jacobians: np.ndarray,
        part: slice | None = None,
        directions: np.ndarray | None = None,
    ) -> None:
        """Count the Jacobians of one time step.

        Args:
            time: Position t.
            inputs: ``[slot]`` positions t-τ of the inputs, newest first.
            jacobians: ``[slot, E of the part, n]``, the states side by side in the order of
                `sizes`.
            part: Coordinates of the embedding; None means all.
            directions: ``[slot, row]`` which of the part's the rows are; None means all in order.
        """
        start = part.start if part else 0
        for low, high in self._cuts(inputs):
            newest = int(inputs[low])
            here = slice(time - newest, time - newest + high - low)
            rows = None if directions is None else directions[low:high]
            self._count(start, newest, here, jacobians[low:high], rows)

    def add_input(self, position: int, jacobians: np.ndarray, part: slice | None = None) -> None:
        """Count the Jacobians of one input.

        Args:
            position: Of the input.
            jacobians: ``[delay, unit of the part, E]``, the states side by side.
            part: Units; None means all.
        """
        here = slice(0, len(jacobians))
        self._count(part.start if part else 0, position, here, jacobians, None)

    def _count(
        self,
        start: int,
        position: int,
        delays: slice,
        jacobians: np.ndarray,
        rows: np.ndarray | None,
    ) -> None:
        """Add to all that a position, and its neighbours that count alike, belong to."""
        block, half = int(self._plan.block[position]), int(self._plan.half[position])
        if block < 0:
            return
        target, member = self._targets[start], self._groups.start
        for g in self._groups.group[member[position] : member[position + 1]].tolist():
            target.add(block, half, g, delays, jacobians, rows)
            if start == 0:  # every part sees the same positions
                self._block_count[block, g, delays] += 1
                if half == 0:
                    self._half_count[g, delays] += 1

    def _cuts(self, inputs: np.ndarray) -> Iterator[tuple[int, int]]:
        """Ranges of slots whose inputs are neighbours that count alike."""
        newest, oldest = int(inputs[0]), int(inputs[-1])
        if newest - oldest + 1 == len(inputs):  # neighbours all: no need to look at each
            last = newest
            while last >= oldest:
                first = max(oldest, int(self._run_start[self._run[last]]))
                yield newest - last, newest - first + 1
                last = first - 1
            return
        run = self._run[inputs]
        cuts = np.flatnonzero((run[1:] != run[:-1]) | (inputs[:-1] != inputs[1:] + 1)) + 1
        yield from zip([0, *cuts.tolist()], [*cuts.tolist(), len(inputs)], strict=True)

    def places(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As the function `places`, of the plan and the groups at hand."""
        return places(self._plan, self._groups, inputs)

    @property
    def most_additions(self) -> int:
        """How many additions in single precision may make a sum that is given to `add_sum`."""
        return _FLUSH

    def add_sum(self, block: int, group: int, values: np.ndarray, counts: np.ndarray) -> None:
        """Add to the totals what was summed elsewhere.

        Args:
            block: Where the inputs count; -1 for the first half.
            group: The same.
            values: ``[delay, E, n]`` sums at every delay, the states side by side.
            counts: ``[delay]``, how many Jacobians each holds.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # refused once, at the end
            if block < 0:
                self._half_sum[group] += values
                self._half_count[group] += counts
            else:
                self._block_sum[block, group] += values
                self._block_count[block, group] += counts
        self._held.release()

    def flush(self) -> None:
        """Move everything to the totals."""
        for target in self._targets.values():
            target.flush()

    @property
    def totals(self) -> dict[str, np.ndarray]:
        """All that has been added, after `flush`; what is written here counts as added."""
        return {
            "block_sum": self._block_sum,
            "block_count": self._block_count,
            "half_sum": self._half_sum,
            "half_count": self._half_count,
        }

    def partial(self, blocks: np.ndarray, groups: np.ndarray) -> Partial:
        """The sums so far, as part of a plan in which these are their blocks and groups."""
        self.flush()
        return Partial(blocks, groups, self._block_sum, self._half_sum, self._block_count,
                       self._half_count)  # fmt: skip

    def merge(self, part: Partial) -> None:
        """Add what another accumulator summed."""
        with np.errstate(over="ignore", invalid="ignore"):  # refused once, at the end
            for i, g in enumerate(part.groups):
                for j, b in enumerate(part.blocks):
                    self._block_sum[b, g] += part.block_sum[j, i]
                    self._block_count[b, g] += part.block_count[j, i]
                self._half_sum[g] += part.half_sum[i]
                self._half_count[g] += part.half_count[i]
        self._held.release()

    def release(self) -> None:
        """Let totals that a file holds leave memory until they are needed."""
        self._held.release()

    def result(self) -> dict[str, Sums]:
        """The sums so far, per state."""
        self.flush()
        self._held.release()
        return {
            name: Sums(
                self._matrices(self._block_sum, span),
                self._block_count.copy(),
                self._matrices(self._half_sum, span),
                self._half_count.copy(),
                self._held.release,
            )
            for name, span in self._spans.items()
        }

    def _matrices(self, sums: np.ndarray, span: slice) -> np.ndarray:
        """A view of the sums of one state, ``[…, unit, embedding]``."""
        return sums[..., span, :] if self._by_rows else np.swapaxes(sums[..., span], -1, -2)


@dataclass(frozen=True)
class Size:
    """How large the sums of a run are.

    Attributes:
        totals: Bytes of the totals.
        staging: Bytes of the staging sums, always in memory.
        dtype: Of the totals.
        staged: Whether there are staging sums.
    """

    totals: int
    staging: int
    dtype: np.dtype
    staged: bool

    @classmethod
    def of(
        cls,
        plan: Plan,
        groups: Groups,
        delays: int,
        cells: int,
        dtype: np.dtype,
        staged: bool | None = None,
    ) -> Size:
        """The size of the sums over `cells` pairs of a state's unit and an embedding coordinate.

        `staged` says whether there are staging sums; None means where a group needs them.
        """
        if staged is None:
            members = np.bincount(groups.group[plan.block[groups.position] >= 0], minlength=1)
            staged = dtype != np.float64 and int(members.max()) > _FLUSH
        total = np.dtype(np.float64) if staged else dtype
        matrices = len(groups) * delays * cells
        return cls(
            totals=matrices * (plan.blocks + 1) * total.itemsize,
            staging=(2 * len(groups) + STAGED) * delays * cells * dtype.itemsize * staged,
            dtype=total,
            staged=staged,
        )

    @property
    def filed(self) -> bool:
        """Whether the totals are too large to be held in memory where there is a folder."""
        return self.totals > _IN_MEMORY


class _Held:
    """Where the totals are: in memory, or in a temporary file that nobody else can see."""

    def __init__(self, size: Size, folder: str | os.PathLike[str] | None) -> None:
        self._dtype, self._used = size.dtype, 0
        self._map: mmap.mmap | None = None
        if folder is None or not size.filed:
            return
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                # All of it now: a page without room on the disk would end the process later.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size.totals)
                else:  # not on Windows, nor on macOS
                    empty = bytes(2**24)
                    for low in range(0, size.totals, len(empty)):
                        file.write(empty[: size.totals - low])
                    file.flush()
                self._map = mmap.mmap(file.fileno(), size.totals)
        except OSError as error:
            raise ResourceError(
                f"The sums need {shown(size.totals)} in a temporary file in "
                f"{Path(folder).resolve()}, which cannot be had: {error.strerror or error}. Write "
                "the output to a folder with more room, or ask for fewer groups, --blocks, "
                "--delays or states."
            ) from error

    def zeros(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of zeros."""
        if self._map is None:
            return np.zeros(shape, self._dtype)
        count = int(np.prod(shape))
        array = np.frombuffer(self._map, self._dtype, count, self._used)
        self._used += array.nbytes
        return array.reshape(shape)

    def release(self) -> None:
        """Let the pages leave this process; the system writes them to the file when it must."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _add(target: np.ndarray, values: np.ndarray, rows: np.ndarray | None) -> None:
    """``target[delay, rows[delay]] += values[delay]``; rows of one delay are different ones."""
    if rows is None:
        np.add(target, values, out=target)
    else:
        target[np.arange(len(target))[:, None], rows] += values


class _Direct:
    """Additions that go straight to the totals."""

    def __init__(
        self,
        block_sum: np.ndarray,
        half_sum: np.ndarray,
        dtype: np.dtype,
        release: Callable[[], None],
    ) -> None:
        self._block_sum, self._half_sum, self._release = block_sum, half_sum, release
        self._given = 0

    def add(
        self,
        block: int,
        half: int,
        group: int,
        delays: slice,
        values: np.ndarray,
        rows: np.ndarray | None,
    ) -> None:
        """Add ``[delay, row, n]`` values, to some rows of each delay or to all."""
        _add(self._block_sum[block, group, delays], values, rows)
        if half == 0:
            _add(self._half_sum[group, delays], values, rows)
        self._given += 1
        if self._given % _RELEASE_DIRECT == 0:
            self._release()

    def flush(self) -> None:
        """Nothing waits."""


class _Staged:
    """Staging sums of one part, by block, half and group, and the totals that they move to."""

    def __init__(
        self,
        block_sum: np.ndarray,
        half_sum: np.ndarray,
        dtype: np.dtype,
        release: Callable[[], None],
    ) -> None:
        self._block_sum, self._half_sum, self._release = block_sum, half_sum, release
        groups, self._shape, self._dtype = len(half_sum), half_sum.shape[1:], dtype
        self._most = 2 * groups + STAGED
        self._held: dict[tuple[int, int, int], np.ndarray] = {}
        self._given = 0
        self._additions: dict[tuple[int, int, int], int] = {}

    def add(
        self,
        block: int,
        half: int,
        group: int,
        delays: slice,
        values: np.ndarray,
        rows: np.ndarray | None,
    ) -> None:
        """Add ``[delay, row, n]`` values, to some rows of each delay or to all."""
        key = (block, half, group)
        # Every position is added once at each delay: this many in all make so many at each.
        if self._additions.get(key, 0) >= _FLUSH * self._shape[0]:
            self._give_up(key)
        if key in self._held:
            self._held[key] = self._held.pop(key)  # now the last to be given up
        else:
            if len(self._held) >= self._most:
                self._give_up(next(iter(self._held)))
            self._held[key] = np.zeros(self._shape, self._dtype)
        self._additions[key] = self._additions.get(key, 0) + len(values)
        _add(self._held[key][delays], values, rows)

    def _give_up(self, key: tuple[int, int, int]) -> None:
        block, half, group = key
        staged = self._held.pop(key)
        self._block_sum[block, group] += staged
        if half == 0:
            self._half_sum[group] += staged
        self._additions[key] = 0
        self._given += 1
        if self._given % _RELEASE == 0:
            self._release()

    def flush(self) -> None:
        """Move everything to the totals."""
        for key in list(self._held):
            self._give_up(key)
