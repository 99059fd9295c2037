"""Sets of classes to tell apart: those of the literature, and a user's own.

``docs/properties.md`` has the format of the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import PropertyError
from .lexicon import Lexicon, Members
from .properties import members_of, sides
from .property_specs import Side, Spec, check_keys, read_tables

_N = ("NN", "NNS", "NNP", "NNPS")
_V = ("VB", "VBD", "VBG", "VBN", "VBP", "VBZ")
_ADJ = ("JJ", "JJR", "JJS")
_ADV = ("RB", "RBR", "RBS")
_PRO = ("PRP", "PRP$", "WP", "WP$")


@dataclass(frozen=True)
class ClassSet:
    """Classes of types to tell apart.

    Attributes:
        name: For tables.
        sides: Name → the classes of the result, or the words, that it is made of. None means that
            every class of the result is one.
        whole: Whether it means anything only with all of its classes.
        suffix: In place of sides: words that end on it against the same words without.
    """

    name: str
    sides: Mapping[str, Side] | None = None
    whole: bool = False
    suffix: str | None = None


def _union(name: str, **parts: Sequence[str]) -> ClassSet:
    return ClassSet(name, {k: Side(classes=tuple(v)) for k, v in parts.items()}, whole=True)


def _each(name: str, tags: Sequence[str]) -> ClassSet:
    return ClassSet(name, {tag: Side(classes=(tag,)) for tag in tags})


def _between(coarse: Mapping[str, Sequence[str]]) -> list[ClassSet]:
    """Every set of word classes in the second part of table 3 of V20."""
    n, v, adj, adv, pro = coarse
    sets = [
        (n, v, adj, adv, pro), (n, v, adj, adv), (n, v, adj), (n, v), (n, adj), (n, adv),
        (v, adj), (v, adv), (adj, adv),
    ]  # fmt: skip
    return [_union("-".join(names), **{k: coarse[k] for k in names}) for names in sets]


_GENITIVE = ClassSet("genitive - non-genitive (words with and without 's)", suffix="'s")

PENN = [
    ClassSet("all tags"),
    _each("nouns", _N),
    _each("verbs", _V),
    _each("adjectives", _ADJ),
    _each("adverbs", _ADV),
    *_between({"N": _N, "V": _V, "Adj": _ADJ, "Adv": _ADV, "Pro": _PRO}),
    _union("sg-pl (NN+NNP - NNS+NNPS)", sg=("NN", "NNP"), pl=("NNS", "NNPS")),
    _union("common-proper (NN+NNS - NNP+NNPS)", common=("NN", "NNS"), proper=("NNP", "NNPS")),
    _GENITIVE,
    _union("3rd - non-3rd (VBZ - VBP)", third=("VBZ",), other=("VBP",)),
    _union("present - past tense (VBP+VBZ - VBD)", present=("VBP", "VBZ"), past=("VBD",)),
    _union("present - past participle (VBG - VBN)", present=("VBG",), past=("VBN",)),
]
"""Table 3 of V20 in the tags of the Penn Treebank. (Its note leaves VB out of the verbs, its row
of the verbs counts six tags; here they are six everywhere.)"""

UPOS = [
    ClassSet("all tags"),
    *_between(
        {"N": ("NOUN", "PROPN"), "V": ("VERB", "AUX"), "Adj": ("ADJ",), "Adv": ("ADV",),
         "Pro": ("PRON",)}
    ),
    _union("common-proper (NOUN - PROPN)", common=("NOUN",), proper=("PROPN",)),
    _union("verb-auxiliary (VERB - AUX)", verb=("VERB",), auxiliary=("AUX",)),
    _GENITIVE,
]  # fmt: skip
"""What of that table the universal parts of speech can say; they do not tell number or tense."""

SHIPPED: dict[str, list[ClassSet]] = {"penn": PENN, "upos": UPOS}


def recognise(lexicon: Lexicon) -> list[ClassSet]:
    """The shipped sets that fit the classes of a result.

    Raises:
        PropertyError: Its classes are of neither kind.
    """
    if lexicon.counts is None:
        raise PropertyError(
            "The result does not say which types occur in which class. Run mnemoscope analyze "
            "again with --group-by xpos or upos."
        )
    groups = set(lexicon.groups)
    for name, mark in (("penn", {*_N, *_V, *_ADJ}), ("upos", {"NOUN", "PROPN", "VERB", "PRON"})):
        if len(groups & mark) >= 2:
            return SHIPPED[name]
    raise PropertyError(
        f"The classes of the result ({', '.join(lexicon.groups[:20])}) are neither Penn tags nor "
        "universal parts of speech. Say which to tell apart in a file (--sets FILE.toml)."
    )


def classes_of(
    one: ClassSet, lexicon: Lexicon, *, members: Members = "main", skip_unknown: bool = False
) -> dict[str, np.ndarray]:
    """Class → ids of its types; a class that the result lacks has none.

    Raises:
        PropertyError: A word is unknown, or no word has the suffix.
    """
    if one.suffix is not None:
        a, b = sides(Spec(one.name, suffix=one.suffix), lexicon)
        return {f"with {one.suffix}": a, f"without {one.suffix}": b}
    if one.sides is None:
        parts: Mapping[str, Side] = {g: Side(classes=(g,)) for g in lexicon.groups}
    else:
        parts = one.sides
    known = set(lexicon.groups)
    found = {}
    for name, side in parts.items():
        there = Side(tuple(c for c in side.classes if c in known), side.words)
        if there.classes or there.words:
            found[name] = members_of(there, lexicon, members=members, skip_unknown=skip_unknown)
        else:
            found[name] = np.empty(0, np.int64)
    return found


def read_sets(path: str | os.PathLike[str], lexicon: Lexicon) -> list[ClassSet]:
    """Read a TOML file of sets.

    Raises:
        PropertyError: It cannot be read, holds what no set has, or names classes that the result
            lacks.
    """
    tables = read_tables(path, "set", "a file of sets")
    return [_read_set(table, where, lexicon) for where, table in tables.items()]


def _read_set(table: dict[str, Any], where: str, lexicon: Lexicon) -> ClassSet:
    classes = table.get("classes")
    rest = {k: v for k, v in table.items() if k != "classes"}
    check_keys(rest, {"name": str, "suffix": str}, where)
    if ("suffix" in table) == (classes is not None):
        raise PropertyError(f"{where} must have either classes or a suffix.")
    name = table.get("name") or where
    if classes is None:
        return ClassSet(name, suffix=table["suffix"])
    whole = isinstance(classes, dict)
    if isinstance(classes, list):
        classes = {str(c): [c] for c in classes}
    if not isinstance(classes, dict) or len(classes) < 2:
        raise PropertyError(
            f"{where}: classes must be a list of two or more classes of the result, or a table "
            "of two or more lists of them (or of {words = [...]})."
        )
    found = {}
    for key, value in classes.items():
        words = value.get("words") if isinstance(value, dict) and set(value) == {"words"} else None
        texts = value if words is None else words
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise PropertyError(
                f"{where}: class {key!r} must be a list of classes, or {{words = [...]}}, not "
                f"{value!r:.60}."
            )
        if words is not None:
            found[key] = Side(words=tuple(words))
        else:
            lexicon.occurring_in(texts)  # refuses a class that there is not
            found[key] = Side(classes=tuple(texts))
    return ClassSet(name, found, whole)
