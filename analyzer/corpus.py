"""Corpora: text becomes the stream of token ids that a model reads, and its classes."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ._columns import Annotations
from ._conllu import read_conllu
from ._files import printable
from ._tsv import read_tsv
from .errors import CorpusError
from .groups import Groups
from .roles import Level, Vocabulary

_ID = re.compile("[0-9]{1,18}")  # what int64 surely holds
_TAGGED = {".conllu": read_conllu, ".tsv": read_tsv}
_HOLDS = {
    ".conllu": "a treebank in CoNLL-U",
    ".tsv": "a word, a tab and its class on each line",
}


@dataclass(frozen=True)
class Corpus:
    """A stream of tokens.

    Attributes:
        ids: ``[position]`` int64 token ids.
        name: Where it was read from, for reports; printable whatever the file is called.
        sha256: Of its bytes.
        lines: Number of lines, or of sentences where it is tagged.
        unknown: How many positions hold the unknown token in place of a word.
        annotations: Column → the classes of each position: ``upos``, ``xpos``, ``lemma`` and
            ``feature:<Name>`` of a treebank, ``label`` of a table; nothing for text. The
            end-of-line token belongs to no class.
        unknown_words: Position → the word there that the unknown token stands for.
    """

    ids: np.ndarray
    name: str
    sha256: str
    lines: int
    unknown: int
    annotations: Mapping[str, Groups] = field(default_factory=Annotations)
    unknown_words: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


def read_corpus(
    path: str | Path, vocabulary: Vocabulary | None, *, level: Level | None = None
) -> Corpus:
    """Read a corpus and look its tokens up.

    What it holds is told by its name: ``.conllu`` a treebank, ``.tsv`` a word, a tab and its
    classes on each line (several with ``|`` between them, ``_`` for none; a blank line ends a
    sentence), anything else text, one sentence a line.

    At level ``word`` tokens of text are separated by white space, at level ``char`` each character
    of a line is one. Every line of text, an empty one too, and every sentence of a tagged corpus
    ends with the vocabulary's end-of-line token; where the vocabulary has none, nothing is added.
    Without a vocabulary the tokens must be ids.

    Of a treebank the syntactic words are read: those of a multiword token (``don't``) one by one
    (``do``, ``n't``), and no empty nodes. A word that the vocabulary lacks becomes the unknown
    token and keeps its classes. Nothing changes the case of a word.

    Args:
        path: A UTF-8 file, or ``-`` for text from standard input.
        vocabulary: The model's; None if it carries none.
        level: Overrides the vocabulary's own level.

    Raises:
        CorpusError: The corpus is missing, empty, not UTF-8, not of its format, or holds words
            that the vocabulary lacks while it has no unknown token.
    """
    data, text, name = read_text(path, "corpus")
    suffix = "" if str(path) == "-" else Path(path).suffix.lower()
    expected = _HOLDS.get(suffix, "text, one sentence a line")
    if not text.strip():
        raise CorpusError(f"The corpus {name} is empty; expected {expected}.")
    level = level or (vocabulary.level if vocabulary else "word")
    end = vocabulary.end_of_line if vocabulary else None
    if vocabulary is None and level == "char":
        raise CorpusError(
            "The model carries no vocabulary, so the corpus must hold token ids, separated by "
            "white space; characters cannot be looked up. Export the model with --vocabulary."
        )
    if suffix == ".conllu" and level == "char":
        raise CorpusError(
            f"The treebank {name} holds words; it cannot be read at level char. Give text, or a "
            ".tsv file with a character and its class on each line."
        )
    # Not splitlines(), which also splits at form feeds and other characters inside a line.
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    annotations: Mapping[str, Groups] = Annotations()
    if suffix in _TAGGED:
        words, count, annotations = _TAGGED[suffix](lines, name, end)
        if not count:
            raise CorpusError(f"The corpus {name} holds no word; expected {expected}.")
    else:
        words, count = [], len(lines)
        for line in lines:
            words.extend(line.split() if level == "word" else line)
            if end is not None:
                words.append(end)
    missing: dict[int, str] = {}
    if vocabulary is None:
        ids = _numbers(words, name)
    else:
        ids, missing = _look_up(words, vocabulary, level, name)
    digest = hashlib.sha256(data).hexdigest()
    return Corpus(ids, name, digest, count, len(missing), annotations, missing)


def read_text(path: str | Path, what: str) -> tuple[bytes, str, str]:
    """Read a UTF-8 file, or standard input for ``-``.

    Args:
        path: Of the file.
        what: It is called in messages.

    Returns:
        Its bytes, its text without a byte-order mark, and its printable name.

    Raises:
        CorpusError: It is missing, cannot be read, or is not UTF-8.
    """
    name = "standard input" if str(path) == "-" else printable(path)
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    except FileNotFoundError:
        raise CorpusError(f"There is no {what} file {name}.") from None
    except OSError as error:
        raise CorpusError(f"The {what} {name} cannot be read: {error.strerror}.") from None
    try:
        return data, data.decode("utf-8-sig"), name
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CorpusError(
            f"The {what} {name} is not UTF-8 text: byte {error.start} (line {line}) does not "
            "belong. Convert it to UTF-8 first."
        ) from None


def _numbers(words: list[str], name: str) -> np.ndarray:
    bad = next((w for w in words if not _ID.fullmatch(w)), None)
    if bad is not None:
        raise CorpusError(
            f"The model carries no vocabulary, so the corpus {name} must hold token ids; found "
            f"{bad!r:.60}. Export the model with --vocabulary to analyze text."
        )
    return np.array(words, np.int64)


def _look_up(
    words: list[str], vocabulary: Vocabulary, level: Level, name: str
) -> tuple[np.ndarray, dict[int, str]]:
    """Token ids, and the words that the unknown token stands for, by position."""
    index = {token: i for i, token in enumerate(vocabulary.tokens)}
    missing = {i: w for i, w in enumerate(words) if w not in index}
    if missing and vocabulary.unknown is None:
        what = "words" if level == "word" else "characters"
        counts = Counter(missing.values())
        shown = ", ".join(repr(w) for w, _ in counts.most_common(5))
        raise CorpusError(
            f"The corpus {name} holds {len(missing)} {what} ({len(counts)} distinct) that "
            f"the vocabulary lacks, and it has no unknown token to stand for them: {shown}. "
            "Check --level, replace them, or export the model with an unknown token."
        )
    stand_in = index[vocabulary.unknown] if vocabulary.unknown is not None else -1
    if len(missing) == sum(w != vocabulary.end_of_line for w in words):
        raise CorpusError(
            f"Not one token of the corpus {name} is in the model's vocabulary; check that they "
            "belong together, and --level."
        )
    return np.array([index.get(w, stand_in) for w in words], np.int64), missing
