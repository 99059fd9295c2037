"""Groups: the classes of input words that are averaged apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Groups"]


@dataclass(frozen=True)
class Groups:
    """Which classes each input position belongs to: none, one or several.

    Held as a sparse table, since thousands of classes (the words themselves) are one use of it.

    Attributes:
        names: ``[group]``, all different.
        start: ``[position + 1]`` int64; the entries of position i are
            ``group[start[i] : start[i + 1]]``.
        group: ``[entry]`` int64, numbers of groups, ascending and all different within a position.
    """

    names: tuple[str, ...]
    start: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.names)

    @property
    def positions(self) -> int:
        """Number of positions."""
        return len(self.start) - 1

    @property
    def position(self) -> np.ndarray:
        """``[entry]``, the position that each entry belongs to."""
        return np.repeat(np.arange(self.positions), np.diff(self.start))

    def at(self, position: int) -> np.ndarray:
        """The numbers of the groups that a position belongs to."""
        return self.group[self.start[position] : self.start[position + 1]]

    def count(self) -> np.ndarray:
        """``[group]``, how many positions each holds."""
        return np.bincount(self.group, minlength=len(self))

    def mask(self, name: str) -> np.ndarray:
        """``[position]`` booleans: which positions belong to a group.

        Raises:
            KeyError: There is no group of that name.
        """
        if name not in self.names:
            raise KeyError(name)
        found = np.zeros(self.positions, bool)
        found[self.position[self.group == self.names.index(name)]] = True
        return found

    def shared(self) -> np.ndarray:
        """``[group, group]`` int64, how many positions belong to both."""
        from scipy.sparse import csr_array

        ones = np.ones(len(self.group), np.int64)
        table = csr_array((ones, self.group, self.start), shape=(self.positions, len(self)))
        return np.asarray((table.T @ table).toarray(), np.int64)

    def keys(self) -> np.ndarray:
        """``[position]`` int64: equal exactly where two positions belong to the same groups."""
        known: dict[bytes, int] = {}
        found = np.empty(self.positions, np.int64)
        for i in range(self.positions):
            entry = self.at(i).tobytes()
            found[i] = known.setdefault(entry, len(known))
        return found

    @classmethod
    def everything(cls, positions: int) -> Groups:
        """One group ``all`` that holds every position."""
        return cls(("all",), np.arange(positions + 1), np.zeros(positions, np.int64))

    @classmethod
    def from_masks(cls, masks: Mapping[str, np.ndarray]) -> Groups:
        """From one ``[position]`` boolean array for each group; they may overlap."""
        table = np.stack([np.asarray(mask, bool) for mask in masks.values()], axis=1)
        return cls(tuple(masks), _starts(table.sum(1)), np.nonzero(table)[1])

    @classmethod
    def from_labels(cls, labels: Sequence[Iterable[str]]) -> Groups:
        """From the labels of each position; groups come in the order of their names."""
        return cls.from_types(np.arange(len(labels)), labels)

    @classmethod
    def from_types(cls, types: np.ndarray, labels: Sequence[Iterable[str]]) -> Groups:
        """From the number of the type of each position, and the labels of each type.

        Groups come in the order of their names; a label of no position makes none.

        Args:
            types: ``[position]`` integers.
            labels: ``[type]``.
        """
        types = np.asarray(types, np.int64)
        used = np.bincount(types, minlength=len(labels)) > 0
        unique = [sorted(set(t)) if u else [] for t, u in zip(labels, used, strict=True)]
        names = sorted({name for these in unique for name in these})
        number = {name: i for i, name in enumerate(names)}
        flat = np.array([number[name] for these in unique for name in these], np.int64)
        sizes = np.array([len(these) for these in unique], np.int64)
        start = _starts(sizes[types])
        # Entry k of a position is entry k of its type.
        first = np.repeat(_starts(sizes)[types] - start[:-1], sizes[types])
        return cls(tuple(names), start, flat[first + np.arange(len(first))])

    @classmethod
    def from_numbers(cls, names: Sequence[str], numbers: np.ndarray) -> Groups:
        """From the number of the one group of each position; -1 for none."""
        numbers = np.asarray(numbers, np.int64)
        held = numbers >= 0
        return cls(tuple(names), _starts(held.astype(np.int64)), numbers[held])

    def with_all(self) -> Groups:
        """The same, and before them a group ``all`` that holds every position.

        Raises:
            ValueError: There is a group of that name.
        """
        if "all" in self.names:
            raise ValueError("a group is called 'all', which is what all positions are called")
        added = np.insert(self.group + 1, self.start[:-1], 0)
        return Groups(("all", *self.names), self.start + np.arange(self.positions + 1), added)

    def unions(self, members: Mapping[str, Iterable[str]]) -> Groups:
        """Named unions of these groups, in the order given; they may overlap.

        Raises:
            KeyError: A union names a group that there is not.
        """
        number = {name: i for i, name in enumerate(self.names)}
        of: list[list[int]] = [[] for _ in self.names]
        for i, parts in enumerate(members.values()):
            for part in set(parts):
                of[number[part]].append(i)
        labels = [
            sorted({u for g in self.group[a:b] for u in of[g]})
            for a, b in zip(self.start[:-1], self.start[1:], strict=True)
        ]
        counts = np.array([len(these) for these in labels], np.int64)
        flat = np.array([u for these in labels for u in these], np.int64)
        return Groups(tuple(members), _starts(counts), flat)


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
