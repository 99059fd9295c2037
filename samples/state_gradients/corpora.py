"""The texts of the study: one sentence a line, cut to size; the treebank also with its tags.

From a treebank come ``train.txt``, ``valid.txt``, ``test.txt``, ``valid.conllu`` (the validation
sentences with their tags, the same tokens as the text) and ``lexicon.tsv`` (word, tab, tags joined
by ``|``: those that the word has at least a tenth of the time in the training sentences). From
plain text come the three texts. ``whole.txt`` is the training text before it was cut.

A genitive ``'s`` (XPOS ``POS``) is joined to the word before it, with the feature
``Genitive=Yes``, as in the paper's own text, where it is part of the word (section 5.2.2:
*japan's* against *japan*).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mnemoscope.analyzer._conllu import Word, read_sentences
from mnemoscope.analyzer._files import replacing
from mnemoscope.analyzer._tsv import read_classes

from .scales import Amount

PARTS = ("train", "valid", "test")
_EWT = {"train": "train", "valid": "dev", "test": "test"}
_LEXICON_SHARE = 0.1


class NoCorpus(Exception):
    """A corpus is not where it was looked for; the message says what was expected there."""


@dataclass(frozen=True)
class Source:
    """A corpus on disk.

    Attributes:
        name: ``ewt``, ``wikitext-2`` or ``ptb``.
        paths: Part → file.
        tagged: Whether it is a treebank.
    """

    name: str
    paths: dict[str, Path]
    tagged: bool

    def digest(self) -> dict[str, str]:
        """Part → hash of its bytes."""
        return {part: sha256(path) for part, path in self.paths.items()}


def find(name: str, data: Path, ptb: Path | None = None) -> Source:
    """Find a corpus.

    Args:
        name: ``ewt``, ``wikitext-2`` (below `data`) or ``ptb`` (in the folder `ptb`).
        data: Folder with ``ud-english-ewt/`` and ``wikitext-2/``.
        ptb: Folder with ``ptb.train.txt``, ``ptb.valid.txt`` and ``ptb.test.txt``, or the same
            names without ``ptb.``.

    Raises:
        NoCorpus: A file is missing.
    """
    if name == "ewt":
        folder = data / "ud-english-ewt"
        paths = {part: folder / f"en_ewt-ud-{_EWT[part]}.conllu" for part in PARTS}
    elif name == "wikitext-2":
        paths = {part: data / "wikitext-2" / f"{part}.txt" for part in PARTS}
    else:
        if ptb is None:
            raise NoCorpus("the Penn Treebank text is not free; give its folder with --ptb")
        prefix = "ptb." if (ptb / "ptb.train.txt").exists() else ""
        paths = {part: ptb / f"{prefix}{part}.txt" for part in PARTS}
    for path in paths.values():
        if not path.is_file():
            raise NoCorpus(f"there is no file {path}")
    return Source(name, paths, tagged=name == "ewt")


def prepare(source: Source, amount: Amount, folder: Path) -> None:
    """Write the texts of a corpus, and what its tags give, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        most = getattr(amount, part)
        path = source.paths[part]
        if not source.tagged:
            lines = [" ".join(line.split()) for line in _lines(path)]
            _write(folder / f"{part}.txt", _cut(lines, most))
            if part == "train":
                _write(folder / "whole.txt", lines)
            continue
        whole = list(join_genitives(read_treebank(path)))
        sentences = list(take(whole, most))
        _write(folder / f"{part}.txt", (" ".join(w.form for w in s) for s in sentences))
        if part == "valid":
            _write(folder / "valid.conllu", as_conllu(sentences))
        if part == "train":
            _write(folder / "whole.txt", (" ".join(w.form for w in s) for s in whole))
            _write(folder / "lexicon.tsv", lexicon(sentences))


def read_treebank(path: Path) -> Iterator[list[Word]]:
    """The sentences of a CoNLL-U file, as syntactic words.

    A space inside a form becomes ``_``: a text whose tokens are separated by white space cannot
    hold it.

    Raises:
        CorpusError: A line is not what the format says.
    """
    for sentence in read_sentences(_lines(path), str(path)):
        yield [replace(word, form=re.sub(r"\s", "_", word.form)) for word in sentence]


def join_genitives(sentences: Iterable[list[Word]]) -> Iterator[list[Word]]:
    """Join each genitive marker to the word before it, which keeps its own tags."""
    for sentence in sentences:
        joined: list[Word] = []
        for word in sentence:
            if word.xpos == "POS" and joined:
                last = joined[-1]
                given = [] if last.features == "_" else last.features.split("|")
                features = "|".join(sorted([*given, "Genitive=Yes"], key=str.lower))
                joined[-1] = replace(last, form=last.form + word.form, features=features)
            else:
                joined.append(word)
        yield joined


def take(sentences: Iterable[list[Word]], most: int | None) -> Iterator[list[Word]]:
    """The first sentences that together have `most` tokens or fewer, ends of line counted."""
    left = most
    for sentence in sentences:
        if left is not None:
            left -= len(sentence) + 1
            if left < 0:
                return
        yield sentence


def as_conllu(sentences: Iterable[list[Word]]) -> Iterator[str]:
    """Lines of a CoNLL-U file without syntax."""
    for sentence in sentences:
        for i, w in enumerate(sentence, 1):
            yield "\t".join((str(i), w.form, w.lemma, w.upos, w.xpos, w.features, *("_",) * 4))
        yield ""


def lexicon(sentences: Iterable[list[Word]]) -> Iterator[str]:
    """Lines ``word<TAB>tag|tag``: the tags that a word has at least a tenth of the time."""
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for sentence in sentences:
        for word in sentence:
            if word.xpos != "_":
                seen[word.form][word.xpos] += 1
    for form in sorted(seen):
        least = _LEXICON_SHARE * seen[form].total()
        tags = sorted(tag for tag, count in seen[form].items() if count >= least)
        yield f"{form}\t{'|'.join(tags)}"


def tags_of(folder: Path, lexicon_: Path | None = None) -> set[str]:
    """The tags that occur in the validation text of a prepared corpus.

    Args:
        folder: Of the corpus.
        lexicon_: Where its tags come from; None means its own treebank.
    """
    if lexicon_ is None:
        return {w.xpos for sentence in read_treebank(folder / "valid.conllu") for w in sentence}
    words = {w for line in _lines(folder / "valid.txt") for w in line.split()}
    known = read_classes(_lines(lexicon_), str(lexicon_))
    return set().union(*(known.get(word, ()) for word in words))


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n").removesuffix("\r")


def _cut(lines: Iterable[str], most: int | None) -> Iterator[str]:
    left = most
    for line in lines:
        if left is not None:
            left -= len(line.split()) + 1
            if left < 0:
                return
        yield line


def _write(path: Path, lines: Iterable[str]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
