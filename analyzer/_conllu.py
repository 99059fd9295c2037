"""CoNLL-U, the ten-column format of Universal Dependencies treebanks.

Read as https://universaldependencies.org/format.html defines it, as far as words and their classes
go: of the ten columns ID, FORM, LEMMA, UPOS, XPOS and FEATS are read and checked, the syntactic
ones are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from ._columns import Annotations, Column
from .errors import CorpusError
from .groups import Groups

_COLUMNS = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
_ID = re.compile(r"([0-9]{1,9})(?:([-.])([0-9]{1,9}))?")
_NOTHING = "_"


@dataclass(frozen=True, slots=True)
class Word:
    """A syntactic word of a treebank, as its columns are written: ``_`` where they say nothing."""

    form: str
    lemma: str
    upos: str
    xpos: str
    features: str


def read_conllu(
    lines: Iterable[str], name: str, end: str | None
) -> tuple[list[str], int, Annotations]:
    """Read the syntactic words of each sentence, and their classes.

    ``_`` means no class. A feature of several values (``Case=Acc,Dat``) puts its word in a class
    for each.

    Args:
        lines: Without their ends; what follows the last line end counts as a line unless empty.
        name: Of the file, for messages.
        end: Put after every sentence, without a class; None for nothing.

    Returns:
        The words; the number of sentences; columns ``upos``, ``xpos``, ``lemma`` and
        ``feature:<Name>``, those that hold anything.

    Raises:
        CorpusError: A line is not what the format says; the message gives its number.
    """
    words: list[str] = []
    columns = {column: Column() for column in ("upos", "xpos", "lemma", "features")}
    sentences = 0
    for sentence in read_sentences(lines, name):
        sentences += 1
        for word in sentence:
            words.append(word.form)
            for column, kept in columns.items():
                content = getattr(word, column)
                # A word may be an underscore itself: then its lemma is no gap.
                gap = content == _NOTHING and not (column == "lemma" and word.form == _NOTHING)
                kept.add(None if gap else content)
        if end is not None:
            words.append(end)
            for kept in columns.values():
                kept.add(None)
    features = columns.pop("features")
    makers: dict[str, Callable[[], Groups]] = {
        column: kept.groups for column, kept in columns.items() if kept.contents
    }
    pairs = {content: _features(content) for content in features.contents}
    for feature in sorted({key for found in pairs.values() for key, _ in found}):
        makers[f"feature:{feature}"] = partial(_feature, features, pairs, feature)
    return words, sentences, Annotations(makers)


def _feature(column: Column, pairs: dict[str, list[tuple[str, str]]], feature: str) -> Groups:
    return column.groups(lambda content: [value for key, value in pairs[content] if key == feature])


def read_sentences(lines: Iterable[str], name: str) -> Iterator[list[Word]]:
    """Read the syntactic words, sentence by sentence.

    Lines of multiword tokens (``1-2``) are left out in favour of the words that they consist of,
    and so are empty nodes (``5.1``), which are no words of the text.

    Args:
        lines: As `read_conllu` takes them.
        name: Of the file, for messages.

    Raises:
        CorpusError: A line is not what the format says; the message gives its number.
    """
    number, last = 0, ""
    words: list[Word] = []
    ids = _Sentence()
    checked: set[str] = set()
    try:
        for number, last in enumerate(lines, 1):  # noqa: B007 - both are needed after the loop
            if not last:
                if ids.started:
                    ids.close()
                    yield words
                words, ids = [], _Sentence()
            elif not last.startswith("#"):
                word = _word(last, ids)
                if word is None:
                    continue
                if word.features not in checked:
                    _features(word.features)
                    checked.add(word.features)
                words.append(word)
            elif ids.started:
                raise _Invalid("a comment inside a sentence; comments come before its first word.")
        if last:
            raise _Invalid(
                "the file ends inside a sentence; a blank line must follow the last one. The file "
                "may be cut off."
            )
    except _Invalid as error:
        raise CorpusError(
            f"The treebank {name} is not valid CoNLL-U: line {number}: {error}"
        ) from None


class _Invalid(Exception):
    """What is wrong with a line."""


def _word(line: str, ids: _Sentence) -> Word | None:
    """The word on a line; None for a multiword token or an empty node."""
    fields = line.split("\t")
    if len(fields) != len(_COLUMNS):
        raise _Invalid(_miscounted(line, len(fields)))
    if "" in fields:
        hollow = _COLUMNS[fields.index("")]
        raise _Invalid(f"the column {hollow} is empty; nothing is written as _.")
    return Word(*fields[1:6]) if ids.take(fields[0]) else None


def _features(content: str) -> list[tuple[str, str]]:
    """Pairs of name and value."""
    pairs = []
    for part in content.split("|") if content != _NOTHING else ():
        name, _, values = part.partition("=")
        if not name or "" in values.split(","):
            raise _Invalid(
                f"the features {content!r:.60} are not of the form Name=Value|Name=Value."
            )
        pairs += [(name, value) for value in values.split(",")]
    return pairs


class _Sentence:
    """Checks the ids of one sentence.

    Attributes:
        started: Whether anything but comments was read.
    """

    def __init__(self) -> None:
        self.started = False
        self._words = 0
        self._covered = 0  # the last word of the multiword tokens so far
        self._empty = 0  # empty nodes since the last word

    def take(self, text: str) -> bool:
        """Check the next id; gives whether it is that of a word."""
        self.started = True
        match = _ID.fullmatch(text)
        if not match:
            raise _Invalid(
                f"the id {text!r:.30} is no word (3), multiword token (3-4) or empty node (3.1)."
            )
        first, kind, second = int(match[1]), match[2], int(match[3] or 0)
        if kind == ".":
            self._empty += 1
            wanted = f"{self._words}.{self._empty}"
            right = (first, second) == (self._words, self._empty)
        else:
            self._empty = 0
            wanted = f"{self._words + 1}" + (f"-{self._words + 2}" if kind else "")
            right = first == self._words + 1
        if not right:
            raise _Invalid(f"the id {text} is out of order; expected {wanted}.")
        if kind == "-":
            if second < first or first <= self._covered:
                raise _Invalid(f"the multiword token {text} is empty or overlaps the one before.")
            self._covered = second
        elif kind is None:
            self._words += 1
        return kind is None

    def close(self) -> None:
        """Check that all announced words came."""
        if not self._words:
            raise _Invalid("the sentence holds no word.")
        if self._covered > self._words:
            raise _Invalid(
                f"the sentence ends at word {self._words}, but a multiword token announced words "
                f"up to {self._covered}."
            )


def _miscounted(line: str, found: int) -> str:
    said = f"expected {len(_COLUMNS)} columns separated by tabs, found {found}"
    if line.isspace():
        return f"{said}: the line holds white space; a blank line between sentences must be empty."
    if found == 1 and len(line.split()) >= len(_COLUMNS):
        return f"{said}; its columns are separated by spaces."
    return f"{said}."
