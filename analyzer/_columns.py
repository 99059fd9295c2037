"""The columns of a tagged corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from .groups import Groups


class Column:
    """What stands in one column at each position; each distinct content is kept once."""

    def __init__(self) -> None:
        self._number: dict[str | None, int] = {}
        self._numbers: list[int] = []

    @property
    def contents(self) -> list[str]:
        """The distinct contents, in the order in which they came."""
        return [content for content in self._number if content is not None]

    def add(self, content: str | None) -> None:
        """Append one position; None where nothing stands."""
        self._numbers.append(self._number.setdefault(content, len(self._number)))

    def groups(self, labels: Callable[[str], Iterable[str]] = lambda content: [content]) -> Groups:
        """The classes of each position.

        Args:
            labels: The classes that a content stands for; itself, unless said otherwise.
        """
        return Groups.from_types(
            np.array(self._numbers, np.int64),
            [() if content is None else labels(content) for content in self._number],
        )


class Annotations(Mapping[str, Groups]):
    """Columns by name, each made into groups when it is asked for.

    A treebank has dozens of features, of which an analysis wants one; a damaged one may name
    thousands.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Groups]] | None = None) -> None:
        self._makers = dict(makers or {})

    def __getitem__(self, name: str) -> Groups:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)
