"""Which input words are averaged together: the classes of a corpus, by column or lexicon."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from ._toml import parse_toml
from ._tsv import read_classes
from .corpus import Corpus, read_text
from .errors import CorpusError, GroupError
from .groups import Groups
from .roles import Vocabulary

COLUMNS = ("upos", "xpos", "lemma", "word", "label")
FEATURE = "feature:"
MOST_GROUPS = 500
"""How many classes may be averaged apart in one run; each has matrices at every delay."""


def group_positions(
    corpus: Corpus,
    vocabulary: Vocabulary | None,
    by: str,
    *,
    unions: Mapping[str, Iterable[str]] | None = None,
    report: Callable[[str], None] | None = None,
) -> Groups:
    """Sort the positions of a corpus into classes, after a first one ``all`` of every position.

    The class is that of the word at the position, which is the *input* of the model there. A word
    may have several classes, or none: then it counts in ``all`` only, as ends of lines do.

    A class of the corpus that is itself called ``all`` becomes ``<by>:all``.

    Args:
        corpus: With its annotations.
        vocabulary: The model's; None if it carries none. Words are then called by their ids.
        by: A column (``upos``, ``xpos``, ``lemma``, ``label``, ``feature:<Name>``), ``word`` for
            the tokens that the model reads, or the path of a lexicon, which gives the classes of
            words: ``word<TAB>class`` or ``word<TAB>class|class`` on each line.
        unions: Name → classes that are put together under it, in place of the single ones.
        report: Called with one line about each thing worth knowing.

    Raises:
        GroupError: The corpus lacks the column, no position has a class, a union holds nothing, or
            there are more than `MOST_GROUPS` classes.
        CorpusError: The lexicon cannot be read.
    """
    say = report or (lambda line: None)
    if by == "word":
        groups, shown = _tokens(corpus, vocabulary), by
    elif by in COLUMNS or by.startswith(FEATURE):
        groups, shown = _column(corpus, by), by
    else:
        groups, shown = _by_lexicon(corpus, vocabulary, by, say), Path(by).stem
    bad = next((name for name in groups.names if "\0" in name), None)
    if bad is not None:
        raise GroupError(f"The class {bad!r:.60} has a null character in its name; rename it.")
    if unions is not None:
        groups = _unite(groups, unions, by, say)
    if len(groups) > MOST_GROUPS:
        raise GroupError(
            f"--group-by {by} makes {len(groups):,} classes; at most {MOST_GROUPS} are averaged "
            "apart in one run. Name the ones you want in a file for --groups, choose a coarser "
            "column, or use mnemoscope words, which measures single words."
        )
    if "all" in groups.names:
        name = f"{shown}:all"
        while name in groups.names:
            name += "'"
        say(f"A class of the corpus is called all, as all positions are; it is shown as {name}.")
        renamed = tuple(name if n == "all" else n for n in groups.names)
        groups = Groups(renamed, groups.start, groups.group)
    return groups.with_all()


def those_followed(
    groups: Groups, followed: np.ndarray, report: Callable[[str], None] | None = None
) -> Groups:
    """Leave out classes none of whose positions are followed: they have no mean.

    Args:
        groups: All classes.
        followed: ``[position]`` booleans.
        report: Called with one line that names what is left out.

    Raises:
        GroupError: No class is left, or none but ``all``.
    """
    counts = np.bincount(groups.group[followed[groups.position]], minlength=len(groups))
    kept = [name for name, count in zip(groups.names, counts, strict=True) if count]
    if len(kept) == len(groups):
        return groups
    lost = [name for name in groups.names if name not in kept]
    said = f"The sample of {int(followed.sum()):,} positions holds none of {_shown(lost)}"
    if kept in ([], ["all"]):
        raise GroupError(f"{said}: no class is left. Follow more --positions or all of them.")
    if report is not None:
        report(f"{said}; left out. Follow more --positions or all of them to have them.")
    return groups.unions({name: [name] for name in kept})


def read_unions(path: str | Path) -> dict[str, list[str]]:
    """Read named unions of classes, such as ``nouns = ["NN", "NNS", "NNP", "NNPS"]``.

    Args:
        path: A TOML file that holds nothing but such lines.

    Raises:
        GroupError: It is no such file.
    """
    try:
        _, text, name = read_text(path, "groups")
    except CorpusError as error:
        raise GroupError(str(error)) from None
    try:
        data = parse_toml(text)
    except ValueError as error:
        raise GroupError(f"{name} is not valid TOML: {error}.") from None
    if not data:
        raise GroupError(f'{name} names no group; expected lines such as nouns = ["NN", "NNS"].')
    for key, value in data.items():
        wrong = None
        if not isinstance(value, list):
            wrong = f"{key} is no list of classes"
        elif not value:
            wrong = f"{key} is an empty list"
        elif not all(isinstance(v, str) for v in value):
            wrong = f"{key} holds something that is no text"
        elif key == "all":
            wrong = "all is what all positions are called"
        elif not key.strip() or "\0" in key:
            wrong = f"{key!r} is no name"
        if wrong:
            raise GroupError(
                f'{name}: {wrong}; expected lines such as nouns = ["NN", "NNS"], each with a name '
                "of your own."
            )
    return data


def _tokens(corpus: Corpus, vocabulary: Vocabulary | None) -> Groups:
    ids, numbers = np.unique(corpus.ids, return_inverse=True)
    return Groups.from_types(numbers, [[_token(int(i), vocabulary)] for i in ids])


def _token(i: int, vocabulary: Vocabulary | None) -> str:
    return vocabulary.tokens[i] if vocabulary and 0 <= i < len(vocabulary.tokens) else str(i)


def _column(corpus: Corpus, by: str) -> Groups:
    if by in corpus.annotations:
        return corpus.annotations[by]
    has = list(corpus.annotations)
    features = [n.removeprefix(FEATURE) for n in has if n.startswith(FEATURE)]
    if by.startswith(FEATURE) and features:
        raise GroupError(
            f"No word of the corpus {corpus.name} has the feature {by.removeprefix(FEATURE)!r}; "
            f"there are {', '.join(features)}."
        )
    columns = [n for n in has if not n.startswith(FEATURE)] + ["word"]
    if features:
        columns.append(f"{FEATURE}{features[0]} and {len(features) - 1} other features")
    advice = (
        ""
        if has
        else " A treebank (.conllu) has upos, xpos, lemma and features, a table (.tsv) has label; "
        "with text, give a lexicon file."
    )
    raise GroupError(
        f"The corpus {corpus.name} has no column {by}; it has {', '.join(columns)}.{advice}"
    )


def _by_lexicon(
    corpus: Corpus, vocabulary: Vocabulary | None, by: str, say: Callable[[str], None]
) -> Groups:
    try:
        _, text, name = read_text(by, "lexicon")
    except CorpusError as error:
        raise GroupError(
            f"--group-by {by} is neither a column ({', '.join(COLUMNS)}, {FEATURE}NAME) nor a "
            f"lexicon that can be read: {error}"
        ) from None
    tags = read_classes(text.replace("\r\n", "\n").removesuffix("\n").split("\n"), name)
    # The word as it was written: the model may not know it, the lexicon does.
    ids, numbers = np.unique(corpus.ids, return_inverse=True)
    labels = [tags.get(_token(int(i), vocabulary), set()) for i in ids]
    written = sorted(set(corpus.unknown_words.values()))
    number = {word: len(ids) + i for i, word in enumerate(written)}
    for position, word in corpus.unknown_words.items():
        numbers[position] = number[word]
    groups = Groups.from_types(numbers, labels + [tags.get(word, set()) for word in written])
    held = int((np.diff(groups.start) > 0).sum())
    if not held:
        raise GroupError(
            f"The lexicon {name} ({len(tags):,} words) has no class for any word of the corpus "
            f"{corpus.name}; check that they spell words alike, capitals included."
        )
    say(
        f"The lexicon {name} gives a class to {held:,} of {len(corpus):,} positions "
        f"({held / len(corpus):.1%})."
    )
    return groups


def _unite(
    groups: Groups, unions: Mapping[str, Iterable[str]], by: str, say: Callable[[str], None]
) -> Groups:
    wanted = {name: list(dict.fromkeys(members)) for name, members in unions.items()}
    known = set(groups.names)
    for name, members in wanted.items():
        missing = [m for m in members if m not in known]
        if len(missing) == len(members):
            raise GroupError(
                f"The group {name} would be empty: no word of the corpus has the class "
                f"{_shown(missing)} in {by}, which has {_shown(groups.names)}. Check the spelling, "
                "or leave the group out."
            )
        if missing:
            say(f"Group {name}: no word of the corpus has the class {_shown(missing)}.")
    return groups.unions({n: [m for m in members if m in known] for n, members in wanted.items()})


def _shown(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
