"""Groups: the classes of input words that are averaged apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

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
        table = self._table()
        return np.asarray((table.T @ table).toarray(), np.int64)

    def keys(self) -> np.ndarray:
        """``[position]`` int64: equal exactly where two positions belong to the same groups."""
        widths = np.diff(self.start)
        rows = np.full((self.positions, max(1, int(widths.max(initial=0)))), -1)
        rows[np.arange(rows.shape[1]) < widths[:, None]] = self.group
        return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)

    def select(self, positions: np.ndarray) -> Groups:
        """The same groups of some of the positions, in the order given."""
        sizes = np.diff(self.start)[positions]
        start = _starts(sizes)
        first = np.repeat(self.start[positions] - start[:-1], sizes)
        return Groups(self.names, start, self.group[first + np.arange(len(first))])

    def _table(self) -> csr_array:
        """``[position, group]``, 1 where a position belongs to a group."""
        from scipy.sparse import csr_array

        ones = np.ones(len(self.group), np.int64)
        return csr_array((ones, self.group, self.start), shape=(self.positions, len(self)))

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
        from scipy.sparse import csr_array

        number = {name: i for i, name in enumerate(self.names)}
        pairs = [(number[p], i) for i, parts in enumerate(members.values()) for p in set(parts)]
        part, union = np.array(pairs, np.int64).reshape(-1, 2).T
        of = csr_array((np.ones(len(part), np.int64), (part, union)),
                       shape=(len(self), len(members)))  # fmt: skip
        found = csr_array(self._table() @ of)
        found.sort_indices()
        return Groups(
            tuple(members), *(np.asarray(x, np.int64) for x in (found.indptr, found.indices))
        )


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
