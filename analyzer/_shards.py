"""The work of a run in shards: neighbouring input positions that are followed on their own.

A shard needs the state before its first position and nothing of other shards, and its sums are
added to theirs. So a run may stop after any shard and go on later, shards may be done on several
machines, and several of them side by side in one call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._states import AT_ONCE, States, Stepper
from .linearize import Linearization
from .sums import Plan

_WORK = 1e12  # multiplications and additions of a shard: some seconds on a processor
_LEAST, _MOST = 32, 8192  # positions
_GROUPS = 20  # with so many groups moving sums to the totals takes as long as with none twice over


@dataclass(frozen=True)
class Shard:
    """Some inputs of a corpus.

    Attributes:
        begin: Position of the first that may be followed.
        end: One past the last.
        read: One past the last position that is read: the memory of the inputs fades until there.
        follow: ``[begin … read)`` booleans, the inputs that are followed.
    """

    begin: int
    end: int
    read: int
    follow: np.ndarray

    @property
    def steps(self) -> int:
        """Positions that are read."""
        return self.read - self.begin


def shards(layout: Plan, delays: int, length: int, most: int) -> list[Shard]:
    """Cut the stretches of a plan into shards of at most `most` positions, in their order.

    Args:
        layout: The plan.
        delays: Largest delay.
        length: Positions in the corpus.
        most: See `positions_of`.
    """
    found = []
    for low, high in layout.stretches:
        number = -(-int(high - low) // most)
        edges = low + np.arange(number + 1) * int(high - low) // number
        for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            followed = np.flatnonzero(layout.block[begin:end] >= 0)
            if not followed.size:
                continue
            read = min(begin + int(followed[-1]) + delays + 1, length)
            follow = np.zeros(read - begin, bool)
            follow[followed] = True
            found.append(Shard(begin, end, read, follow))
    return found


def positions_of(linear: Linearization, delays: int, groups: int) -> int:
    """How many positions a shard has: so many that it takes seconds, whatever the machine.

    It depends on the model and the options alone, since sums are rounded shard by shard.
    """
    work = folded_work(linear) * (delays + 1) + 1
    return int(np.clip(_WORK / work * (1 + groups / _GROUPS), _LEAST, _MOST))


def folded_work(linear: Linearization) -> float:
    """Multiplications and additions of one input at one delay, dense blocks alone."""
    areas, _ = linear.dense()
    return 2.0 * linear.step.embedding_size * areas


class Carrier:
    """The exact states of the stream at ascending positions, each position read once at most.

    Args:
        stepper: Reads tokens.
        ids: ``[position]`` tokens of the corpus.
        position: Where `states` are known; default the beginning.
        states: State → ``[1, n]``; default the model's initial states.
    """

    def __init__(
        self, stepper: Stepper, ids: np.ndarray, position: int = 0, states: States | None = None
    ) -> None:
        self._stepper, self._ids = stepper, ids
        self._position = position
        self._states = stepper.initial() if states is None else states

    def at(self, position: int) -> States:
        """The states before `position`, which is no earlier than the last one asked for."""
        while self._position < position:
            ids = self._ids[self._position : min(self._position + AT_ONCE, position)]
            found = self._stepper.read(self._states, ids)
            # Not a view, which would keep all of them.
            self._states = {name: values[-1:].copy() for name, values in found.items()}
            self._position += len(ids)
        return self._states

    @property
    def known(self) -> tuple[int, States]:
        """The last position whose states are known, and they."""
        return self._position, self._states

    def know(self, position: int, states: States) -> None:
        """Take states that somebody else found on the way."""
        if position > self._position:
            self._position, self._states = position, states
