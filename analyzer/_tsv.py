"""Words and their classes, one word a line: tagged corpora and lexicons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from ._columns import Annotations, Column
from .errors import CorpusError

_NOTHING = "_"
_FORM = "expected a word, a tab and its classes (several with | between them, _ for none)"


def read_tsv(
    lines: Iterable[str], name: str, end: str | None
) -> tuple[list[str], int, Annotations]:
    """Read a tagged corpus: ``word<TAB>class`` or ``word<TAB>class|class``, ``_`` for no class.

    A blank line ends a sentence; further ones are ignored, and the last sentence needs none. No
    character is special at the start of a line: ``#`` is a word like others.

    Args:
        lines: Without their ends.
        name: Of the file, for messages.
        end: Put after every sentence, without a class; None for nothing.

    Returns:
        The words; the number of sentences; the column ``label``, if it holds anything.

    Raises:
        CorpusError: A line is not of that form; the message gives its number.
    """
    words: list[str] = []
    column = Column()
    sentences, open_ = 0, False

    def close() -> None:
        nonlocal sentences, open_
        sentences, open_ = sentences + 1, False
        if end is not None:
            words.append(end)
            column.add(None)

    for row in _rows(lines, f"The corpus {name}"):
        if row is not None:
            open_ = True
            words.append(row[0])
            column.add(None if row[1] == _NOTHING else row[1])
        elif open_:
            close()
    if open_:
        close()
    makers = {"label": partial(column.groups, _labels)} if column.contents else {}
    return words, sentences, Annotations(makers)


def read_classes(lines: Iterable[str], name: str) -> dict[str, set[str]]:
    """Read the classes of words, in the same form; a word on several lines has all their classes.

    Raises:
        CorpusError: A line is not of that form; the message gives its number.
    """
    found: dict[str, set[str]] = {}
    for row in _rows(lines, f"The lexicon {name}"):
        if row is not None:
            found.setdefault(row[0], set()).update(_labels(row[1]))
    return found


def _rows(lines: Iterable[str], shown: str) -> Iterator[tuple[str, str] | None]:
    """The word and the classes on each line; None for a blank one."""
    for number, line in enumerate(lines, 1):
        if not line:
            yield None
            continue
        fields = line.split("\t")
        wrong = (
            f"found {len(fields)} columns"
            if len(fields) != 2
            else "there is no word before the tab"
            if not fields[0]
            else "a class is empty"
            if "" in fields[1].split("|")
            else None
        )
        if wrong:
            raise CorpusError(f"{shown}, line {number}: {_FORM}; {wrong}.")
        yield fields[0], fields[1]


def _labels(content: str) -> list[str]:
    return [] if content == _NOTHING else content.split("|")
