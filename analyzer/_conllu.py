"""CoNLL-U, the ten-column format of Universal Dependencies treebanks.

Read as https://universaldependencies.org/format.html defines it, as far as words and their classes
go: of the ten columns ID, FORM, LEMMA, UPOS, XPOS and FEATS are read and checked, the syntactic
ones are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

from ._columns import Annotations, Column
from .errors import CorpusError

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
    words: list[str] = []
    upos, xpos, lemma, feats = columns = [Column() for _ in range(4)]
    features: dict[str, list[tuple[str, str]]] = {}
    sentences = 0
    sentence = _Sentence()

    def refuse(number: int, what: str) -> CorpusError:
        return CorpusError(f"The treebank {name} is not valid CoNLL-U: line {number}: {what}")

    number, line = 0, ""
    for number, line in enumerate(lines, 1):
        if not line:
            if sentence.started:
                if sentence.covered > sentence.words:
                    raise refuse(
                        number,
                        f"the sentence ends at word {sentence.words}, but a multiword token "
                        f"announced words up to {sentence.covered}.",
                    )
                sentences += 1
                if end is not None:
                    words.append(end)
                    for column in columns:
                        column.add(None)
            sentence = _Sentence()
        elif line.startswith("#"):
            if sentence.started:
                raise refuse(
                    number, "a comment inside a sentence; comments come before its first word."
                )
        else:
            fields = line.split("\t")
            if len(fields) != len(_COLUMNS):
                raise refuse(number, _miscounted(line, len(fields)))
            if "" in fields:
                raise refuse(
                    number,
                    f"the column {_COLUMNS[fields.index('')]} is empty; nothing is written as _.",
                )
            wrong = sentence.take(fields[0])
            if wrong:
                raise refuse(number, wrong)
            if not sentence.is_word:
                continue
            form = fields[1]
            if fields[5] not in features:
                try:
                    features[fields[5]] = _features(fields[5])
                except ValueError:
                    raise refuse(
                        number,
                        f"the features {fields[5]!r:.60} are not of the form Name=Value|Name=Value.",
                    ) from None
            words.append(form)
            # A word may be an underscore itself: then its lemma is no gap.
            lemma.add(None if fields[2] == _NOTHING != form else fields[2])
            for column, content in zip((upos, xpos, feats), fields[3:6], strict=True):
                column.add(None if content == _NOTHING else content)
    if line:
        raise refuse(
            number,
            "the file ends inside a sentence; a blank line must follow the last one. The file may "
            "be cut off.",
        )
    found = {"upos": upos.groups, "xpos": xpos.groups, "lemma": lemma.groups}
    makers = {
        key: maker
        for (key, maker), column in zip(found.items(), columns, strict=False)
        if column.contents
    }
    for feature in sorted({key for pairs in features.values() for key, _ in pairs}):

        def values(content: str, feature: str = feature) -> list[str]:
            return [value for key, value in features[content] if key == feature]

        makers[f"feature:{feature}"] = partial(feats.groups, values)
    return words, sentences, Annotations(makers)


def _features(content: str) -> list[tuple[str, str]]:
    """Pairs of name and value.

    Raises:
        ValueError: The content is not of the form.
    """
    pairs = []
    for part in content.split("|") if content != _NOTHING else ():
        name, _, values = part.partition("=")
        if not name or "" in values.split(","):
            raise ValueError
        pairs += [(name, value) for value in values.split(",")]
    return pairs


class _Sentence:
    """Checks the ids of one sentence.

    Attributes:
        started: Whether anything but comments was read.
        words: Syntactic words so far.
        covered: The last word of the multiword tokens so far.
        is_word: Whether the last id was that of a syntactic word.
    """

    def __init__(self) -> None:
        self.started = False
        self.words = 0
        self.covered = 0
        self.is_word = False
        self._empty = 0

    def take(self, text: str) -> str | None:
        """Take the next id; what is wrong with it, if anything."""
        self.started = True
        match = _ID.fullmatch(text)
        if not match:
            return f"the id {text!r:.30} is no word (3), multiword token (3-4) or empty node (3.1)."
        first, kind, second = int(match[1]), match[2], int(match[3] or 0)
        self.is_word = kind is None
        if kind == ".":
            self._empty += 1
            wanted = f"{self.words}.{self._empty}"
            right = (first, second) == (self.words, self._empty)
        else:
            self._empty = 0
            wanted = f"{self.words + 1}" if kind is None else f"{self.words + 1}-…"
            right = first == self.words + 1
            if kind == "-":
                if right and (second < first or first <= self.covered):
                    return f"the multiword token {text} is empty or overlaps the one before."
                self.covered = max(self.covered, second)
            else:
                self.words += 1
        return None if right else f"the id {text} is out of order; expected {wanted}."


def _miscounted(line: str, found: int) -> str:
    said = f"expected {len(_COLUMNS)} columns separated by tabs, found {found}"
    if line.isspace():
        return f"{said}: the line holds white space; a blank line between sentences must be empty."
    if found == 1 and len(line.split()) >= len(_COLUMNS):
        return f"{said}; its columns are separated by spaces."
    return f"{said}."
