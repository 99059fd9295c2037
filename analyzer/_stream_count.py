"""How many streams run side by side: what keeps a device busy, and what its memory holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._shards import Shard, folded_work
from .groups import Groups
from .linearize import Linearization
from .sums import Plan, places

_BUSY = 2e10  # multiplications and additions of a step beside which a GPU's launches are nothing
_MOST = 512
_LENGTH = 4  # windows of delays that a stream has at least: in one of five steps memory only fades
_SMALL, _FEW, _ON_CPU = 2e7, 4, 16  # work of a step, groups, streams: see docs/performance.md
MOST_KEYS = (
    128  # blocks and groups beyond which sums of all streams take longer than their products
)


@dataclass(frozen=True)
class StreamNeed:
    """Bytes that streams hold where they run; each term is an upper bound, measured in the tests.

    Attributes:
        linear: A linearisation of the step, of any number of positions.
        carried: Units of the states whose tangents are carried.
        wanted: Units of those that are asked for.
        delays: How many, 0 included.
        keys: Sums at once.
        steps: Time steps of a stream.
    """

    linear: Linearization
    carried: int
    wanted: int
    delays: int
    keys: int
    steps: int

    def bytes(self, streams: int) -> int:
        """Of so many streams."""
        step = self.linear.step
        item = step.dtype.itemsize
        matrix = self.delays * step.embedding_size
        dense = sum(self.linear.dense())
        each = (
            # Two buffers; turned round; and up to three terms of a sum.
            6 * matrix * self.carried * item
            + 2 * dense * item
            + self.linear.working // self.linear.batch
        )
        if not summable(self.keys):  # the Jacobians of a step come to the host
            return streams * (each + matrix * self.wanted * item)
        # Which input counts where, as truths, as numbers and added up; of the sums two buffers,
        # what is added, and the states side by side.
        weights = (self.steps + self.delays) * self.keys * (5 + 2 * item)
        return streams * (each + weights) + 4 * self.keys * matrix * self.wanted * item


def keys_of(layout: Plan, groups: Groups, shards: list[Shard], streams: int) -> int:
    """The most sums that shards side by side add to."""
    most = 0
    for low in range(0, len(shards), streams):
        inputs = np.concatenate(
            [s.begin + np.flatnonzero(s.follow) for s in shards[low : low + streams]]
        )
        most = max(most, len(np.unique(places(layout, groups, inputs)[1], axis=0)))
    return most


def summable(keys: int) -> bool:
    """Whether so many sums are kept where the streams run."""
    return keys <= MOST_KEYS


def at_small_steps(linear: Linearization, delays: int, inputs: int, groups: int) -> int:
    """Streams on the CPU where a step of one is so little work that its calls cost more; else 0."""
    work = folded_work(linear) * delays
    if linear.batch == 1 or work > _SMALL or groups > _FEW:
        return 0
    count = min(_ON_CPU, inputs // (_LENGTH * delays))
    return count if count >= _ON_CPU // 2 else 0


def may_pay(linear: Linearization, delays: int, inputs: int, groups: int) -> list[int]:
    """Numbers of streams on the CPU that are worth a trial: up to ten times the usual work."""
    if linear.batch == 1 or folded_work(linear) * delays > 10 * _SMALL or groups > _FEW:
        return []
    most = inputs // (_LENGTH * delays)
    return [n for n in (_ON_CPU // 2, _ON_CPU, 2 * _ON_CPU) if n <= most]


def fitting(need: StreamNeed, inputs: int, free: int) -> int:
    """Streams that keep a GPU busy, fit into its memory, and are long enough to be worth it.

    Args:
        need: What they need.
        inputs: Positions that are followed.
        free: Bytes of the GPU.
    """
    step = folded_work(need.linear) * need.delays + 1
    most = min(_MOST, _BUSY / step, inputs / (_LENGTH * need.delays))
    count = 1
    # Powers of two, so that what else runs on the GPU seldom changes the number.
    while 2 * count <= most and need.bytes(2 * count) <= free:
        count *= 2
    return count


def evened(shards: int, streams: int) -> int:
    """Streams that take so many shards in as many rounds, but with none left for the last alone."""
    rounds = -(-shards // streams)
    return -(-shards // rounds)


def length_of(layout: Plan, most: int, streams: int) -> int:
    """Positions of a shard: as short as they may be without a further round of all streams."""
    total = int((layout.stretches[:, 1] - layout.stretches[:, 0]).sum())
    rounds = -(-total // (streams * most))
    return -(-total // (streams * rounds))
