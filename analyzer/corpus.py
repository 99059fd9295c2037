"""Corpora: text becomes the stream of token ids that a model reads."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ._files import printable
from .errors import CorpusError
from .roles import Level, Vocabulary

_ID = re.compile("[0-9]{1,18}")  # what int64 surely holds


@dataclass(frozen=True)
class Corpus:
    """A stream of tokens.

    Attributes:
        ids: ``[position]`` int64 token ids.
        name: Where it was read from, for reports; printable whatever the file is called.
        sha256: Of its bytes.
        lines: Number of lines.
        unknown: How many positions hold the unknown token in place of a word.
    """

    ids: np.ndarray
    name: str
    sha256: str
    lines: int
    unknown: int

    def __len__(self) -> int:
        return len(self.ids)


def read_corpus(
    path: str | Path, vocabulary: Vocabulary | None, *, level: Level | None = None
) -> Corpus:
    """Read text, one sentence a line, and look its tokens up.

    At level ``word`` tokens are separated by white space, at level ``char`` each character of a
    line is one. Every line, an empty one too, ends with the vocabulary's end-of-line token; where
    the vocabulary has none, nothing is added. Without a vocabulary the text must hold token ids.

    Args:
        path: A UTF-8 text file, or ``-`` for standard input.
        vocabulary: The model's; None if it carries none.
        level: Overrides the vocabulary's own level.

    Raises:
        CorpusError: The text is missing, empty, not UTF-8, or holds words that the vocabulary
            lacks while it has no unknown token.
    """
    name = "standard input" if str(path) == "-" else printable(path)
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    except FileNotFoundError:
        raise CorpusError(f"There is no corpus file {name}.") from None
    except OSError as error:
        raise CorpusError(f"The corpus {name} cannot be read: {error.strerror}.") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CorpusError(
            f"The corpus {name} is not UTF-8 text: byte {error.start} (line {line}) does not "
            "belong. Convert it to UTF-8 first."
        ) from None
    if not text.strip():
        raise CorpusError(f"The corpus {name} is empty; expected text, one sentence a line.")
    # Not splitlines(), which also splits at form feeds and other characters inside a line.
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    level = level or (vocabulary.level if vocabulary else "word")
    end = vocabulary.end_of_line if vocabulary else None
    if vocabulary is None and level == "char":
        raise CorpusError(
            "The model carries no vocabulary, so the corpus must hold token ids, separated by "
            "white space; characters cannot be looked up. Export the model with --vocabulary."
        )
    words: list[str] = []
    for line in lines:
        words.extend(line.split() if level == "word" else line)
        if end is not None:
            words.append(end)
    if vocabulary is None:
        return Corpus(_numbers(words, name), name, _hash(data), len(lines), 0)
    ids, unknown = _look_up(words, vocabulary, level, name)
    return Corpus(ids, name, _hash(data), len(lines), unknown)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
) -> tuple[np.ndarray, int]:
    index = {token: i for i, token in enumerate(vocabulary.tokens)}
    missing = Counter(w for w in words if w not in index)
    if missing and vocabulary.unknown is None:
        what = "words" if level == "word" else "characters"
        shown = ", ".join(repr(w) for w, _ in missing.most_common(5))
        raise CorpusError(
            f"The corpus {name} holds {missing.total()} {what} ({len(missing)} distinct) that "
            f"the vocabulary lacks, and it has no unknown token to stand for them: {shown}. "
            "Check --level, replace them, or export the model with an unknown token."
        )
    stand_in = index[vocabulary.unknown] if vocabulary.unknown is not None else -1
    if missing.total() == sum(w != vocabulary.end_of_line for w in words):
        raise CorpusError(
            f"Not one token of the corpus {name} is in the model's vocabulary; check that they "
            "belong together, and --level."
        )
    return np.array([index.get(w, stand_in) for w in words], np.int64), missing.total()
