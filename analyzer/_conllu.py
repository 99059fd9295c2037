"""CoNLL-U, the ten-column format of Universal Dependencies treebanks.

Read as https://universaldependencies.org/format.html defines it, as far as words and their classes
go: of the ten columns ID, FORM, LEMMA, UPOS, XPOS and FEATS are read and checked, the syntactic
ones are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial

from ._columns import Annotations, Column
from .errors import CorpusError
from .groups import Groups

_COLUMNS = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
_ID = re.compile(r"([0-9]{1,9})(?:([-.])([0-9]{1,9}))?")
_NOTHING = "_"


def read_conllu(
    lines: Iterable[str], name: str, end: str | None
) -> tuple[list[str], int, Annotations]:
    """Read the syntactic words of each sentence, and their classes.

    Lines of multiword tokens (``1-2``) are left out in favour of the words that they consist of,
    and so are empty nodes (``5.1``), which are no words of the text. ``_`` means no class. A
    feature of several values (``Case=Acc,Dat``) puts its word in a class for each.

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
    bank = _Treebank(end)
    try:
        for line in lines:
            bank.read(line)
        bank.finish()
    except _Invalid as error:
        raise CorpusError(
            f"The treebank {name} is not valid CoNLL-U: line {bank.line}: {error}"
        ) from None
    return bank.words, bank.sentences, bank.annotations()


class _Invalid(Exception):
    """What is wrong with a line."""


class _Treebank:
    """What was read so far.

    Attributes:
        words: All of them, and the ends of sentences.
        sentences: How many ended.
        line: Number of the last line.
    """

    def __init__(self, end: str | None) -> None:
        self.words: list[str] = []
        self.sentences = 0
        self.line = 0
        self._end = end
        self._columns = {name: Column() for name in ("upos", "xpos", "lemma", "feats")}
        self._features: dict[str, list[tuple[str, str]]] = {}
        self._sentence = _Sentence()
        self._last = ""

    def read(self, line: str) -> None:
        """Take the next line."""
        self.line += 1
        self._last = line
        if not line:
            if self._sentence.started:
                self._close()
            self._sentence = _Sentence()
        elif not line.startswith("#"):
            self._row(line)
        elif self._sentence.started:
            raise _Invalid("a comment inside a sentence; comments come before its first word.")

    def finish(self) -> None:
        """Make sure that the last line ended a sentence."""
        if self._last:
            raise _Invalid(
                "the file ends inside a sentence; a blank line must follow the last one. The file "
                "may be cut off."
            )

    def annotations(self) -> Annotations:
        """The columns that hold anything."""
        makers: dict[str, Callable[[], Groups]] = {
            name: column.groups
            for name, column in self._columns.items()
            if name != "feats" and column.contents
        }
        for feature in sorted({name for pairs in self._features.values() for name, _ in pairs}):
            makers[f"feature:{feature}"] = partial(self._feature, feature)
        return Annotations(makers)

    def _feature(self, feature: str) -> Groups:
        return self._columns["feats"].groups(
            lambda content: [value for name, value in self._features[content] if name == feature]
        )

    def _close(self) -> None:
        self._sentence.close()
        self.sentences += 1
        if self._end is not None:
            self._add(self._end)

    def _row(self, line: str) -> None:
        fields = line.split("\t")
        if len(fields) != len(_COLUMNS):
            raise _Invalid(_miscounted(line, len(fields)))
        if "" in fields:
            hollow = _COLUMNS[fields.index("")]
            raise _Invalid(f"the column {hollow} is empty; nothing is written as _.")
        if not self._sentence.take(fields[0]):
            return
        form, lemma, upos, xpos, feats = fields[1:6]
        if feats not in self._features:
            self._features[feats] = _features(feats)
        # A word may be an underscore itself: then its lemma is no gap.
        known = {"lemma": lemma} if lemma != _NOTHING or form == _NOTHING else {}
        others = {"upos": upos, "xpos": xpos, "feats": feats}
        self._add(form, **known, **{k: v for k, v in others.items() if v != _NOTHING})

    def _add(self, word: str, **contents: str) -> None:
        self.words.append(word)
        for name, column in self._columns.items():
            column.add(contents.get(name))


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
