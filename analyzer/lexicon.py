"""The types of a vocabulary: their embeddings, and the classes that they occur in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr
from scipy.sparse import csr_array

from .errors import PropertyError, ResultError

if TYPE_CHECKING:
    from .model import MemoryModel

Members = Literal["main", "every"]
"""Which types a class has: those whose main class it is, or every type that occurs in it."""

EVERYTHING = "all"
"""The group that holds every position; it is no class."""


@dataclass(frozen=True)
class Lexicon:
    """What a result says about the types of its vocabulary.

    Attributes:
        embeddings: ``[token, embedding]`` float64.
        tokens: ``[token]`` names; None where neither result nor model carries them.
        groups: ``[group]`` names of the classes, without ``all``.
        counts: ``[group, token]``, how often a type occurs in a class; None where the result
            holds no such counts.
        occurrences: ``[token]``, how often a type occurs at all; None where that is not known.
        shared: ``[group, group]``, how many positions belong to both classes.
        D: ``[embedding, direction]``, the whitening of the result on its support.
    """

    embeddings: np.ndarray
    tokens: tuple[str, ...] | None
    groups: tuple[str, ...]
    counts: csr_array | None
    occurrences: np.ndarray | None
    shared: np.ndarray
    D: np.ndarray

    @cached_property
    def mean(self) -> np.ndarray:
        """``[embedding]``, the mean over the vocabulary, each type once."""
        return self.embeddings.mean(axis=0)

    @cached_property
    def Z(self) -> np.ndarray:
        """``[direction, embedding]``, the (pseudo-)inverse of D."""
        return np.linalg.pinv(self.D)

    @cached_property
    def whitened(self) -> np.ndarray:
        """``[token, direction]``, ``Z (e − mean)``."""
        return (self.embeddings - self.mean) @ self.Z.T

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens or ())}

    def ids(self, words: Sequence[str], *, skip_unknown: bool = False) -> np.ndarray:
        """Token ids of words, each once, in their order.

        Raises:
            PropertyError: The names of the tokens are not known, or one of the words is none.
        """
        if self.tokens is None:
            raise PropertyError(
                "The names of the tokens are not known: neither the result nor the model carries "
                "a vocabulary. Export the model with --vocabulary and analyse again."
            )
        missing = [w for w in dict.fromkeys(words) if w not in self._ids]
        if missing and not skip_unknown:
            raise PropertyError(self._unknown(missing))
        found = [self._ids[w] for w in dict.fromkeys(words) if w in self._ids]
        return np.array(found, np.int64)

    def _unknown(self, missing: Sequence[str]) -> str:
        assert self.tokens is not None
        shown = ", ".join(repr(w) for w in missing[:5]) + (" …" if len(missing) > 5 else "")
        said = f"The vocabulary has no word {shown}"
        near = difflib.get_close_matches(missing[0], self.tokens, n=3)
        if near:
            said += f" (near {missing[0]!r}: {', '.join(map(repr, near))})"
        if any(len(w) > 2 and ("+" in w[1:-1] or "-" in w[1:-1]) for w in missing):
            said += "; if this is arithmetic, put spaces around + and -, as in 'king - man + woman'"
        return f"{said}. Give words as the vocabulary writes them, or leave them out."

    def occurring_in(self, classes: Iterable[str]) -> np.ndarray:
        """Ids of every type that occurs in one of the classes, ascending."""
        rows = self._rows(classes)
        assert self.counts is not None
        return np.flatnonzero(np.ravel(self.counts[rows].sum(axis=0)))

    def belonging_to(self, classes: Iterable[str]) -> np.ndarray:
        """Ids of the types whose most frequent class is one of `classes`, ascending.

        A type that occurs as often in another class belongs to neither. Where classes overlap, a
        class all of whose positions are in one of these, or that holds all positions of one of
        these, is no rival: nouns are none of NN.

        Raises:
            PropertyError: The result has no such class, or no counts.
        """
        classes = list(classes)
        rows = self._rows(classes)
        assert self.counts is not None
        rivals = np.ones(len(self.groups), bool)
        rivals[rows] = False
        size = np.diagonal(self.shared)
        for row in rows:
            within = (self.shared[row] == size) | (self.shared[row] == size[row])
            rivals &= ~(within & (self.shared[row] > 0))
        own = _largest(self.counts[rows])
        if not rivals.any():
            return np.flatnonzero(own)
        return np.flatnonzero(own > _largest(self.counts[np.flatnonzero(rivals)]))

    def members(self, classes: Sequence[str], members: Members = "main") -> np.ndarray:
        """Ids of the types of classes, ascending."""
        return self.belonging_to(classes) if members == "main" else self.occurring_in(classes)

    def _rows(self, classes: Iterable[str]) -> np.ndarray:
        classes = list(classes)
        if self.counts is None:
            raise PropertyError(
                "The result does not say which types occur in which class. Run mnemoscope analyze "
                "again with --group-by, or name the words themselves (--a-words, --b-words)."
            )
        for name in classes:
            if name not in self.groups:
                has = ", ".join(self.groups[:40]) + (" …" if len(self.groups) > 40 else "")
                raise PropertyError(
                    f"The result has no class {name!r}; it has {has or 'none'}. Name one of "
                    "these, or run mnemoscope analyze again with another --group-by."
                )
        return np.array([self.groups.index(name) for name in dict.fromkeys(classes)], np.int64)


def read_lexicon(tree: xr.DataTree, model: MemoryModel | None = None) -> Lexicon:
    """Read the types of a result.

    Args:
        tree: As `open_result` gives it.
        model: The model that was analysed, for a result without embeddings.

    Raises:
        ResultError: The embeddings are nowhere, the model is another one, or the parts of the
            result do not fit each other.
    """
    d = tree.dataset["embedding_whitening"]
    rank = int(d.attrs.get("rank", d.sizes["direction"]))
    D = np.asarray(d.values[:, :rank], np.float64)
    if model is not None:
        made_from = tree.attrs.get("model_sha256")
        if made_from != model.sha256:
            raise ResultError(
                f"The result was made from another model than {model.path.name}: it names the "
                f"file {tree.attrs.get('model', '(not stated)')} with SHA-256 "
                f"{str(made_from)[:12]}…, and this one has {model.sha256[:12]}…. Give the model "
                "that was analysed, or analyse this one."
            )
        embeddings = model.embeddings
        tokens = model.vocabulary.tokens if model.vocabulary is not None else None
    elif "embeddings" in tree.variables:
        embeddings = tree.dataset["embeddings"].values
        tokens = None
    else:
        raise ResultError(
            "The result holds no embeddings, which a property is a direction of. Give the model "
            "that was analysed (--model FILE.onnx), or run mnemoscope analyze again."
        )
    embeddings = embeddings.astype(np.float64)
    if embeddings.ndim != 2 or embeddings.shape[1] != len(D) or not len(embeddings):
        raise _damaged(f"embeddings are {list(embeddings.shape)}, its whitening {list(D.shape)}")
    if not np.isfinite(embeddings).all():
        raise _damaged("some of its embeddings are NaN or infinite")
    if rank == 0:
        raise ResultError(
            "The embeddings do not vary: all types have the same, so no two can differ by a "
            "property. Analyse a model whose embeddings were trained."
        )
    if "token" in tree.variables:
        tokens = tuple(str(t) for t in tree.dataset["token"].values)
    if tokens is not None and len(tokens) != len(embeddings):
        raise _damaged(f"{len(tokens):,} tokens have {len(embeddings):,} embeddings")
    groups = [str(g) for g in tree.coords["group"].values]
    counts = _counts(tree, groups, len(embeddings))
    occurrences = None
    if counts is not None and EVERYTHING in groups:
        occurrences = counts[[groups.index(EVERYTHING)]].toarray()[0]
    shared = _shared(tree, len(groups))
    unknown = tree.attrs.get("unknown_token")
    if model is not None and model.vocabulary is not None:
        unknown = model.vocabulary.unknown
    if counts is not None and tokens is not None and unknown in tokens:
        # It stands for all words that the vocabulary lacks, and is no type of any class.
        column = np.ones(len(tokens), np.int64)
        column[tokens.index(unknown)] = 0
        counts = csr_array(counts.multiply(column[None, :]))
        counts.eliminate_zeros()
    classes = [i for i, name in enumerate(groups) if name != EVERYTHING]
    return Lexicon(
        embeddings=embeddings,
        tokens=tokens,
        groups=tuple(groups[i] for i in classes),
        counts=None if counts is None else counts[classes],
        occurrences=occurrences,
        shared=shared[np.ix_(classes, classes)],
        D=D,
    )


def _shared(tree: xr.DataTree, groups: int) -> np.ndarray:
    if "group_shared" not in tree.variables:
        return np.zeros((groups, groups), np.int64)
    found = np.asarray(tree.dataset["group_shared"].values)
    if found.shape != (groups, groups) or found.dtype.kind not in "iu":
        raise _damaged("its table of positions that belong to two classes does not fit them")
    return found


def _counts(tree: xr.DataTree, groups: list[str], tokens: int) -> csr_array | None:
    names = ("member_group", "member_token", "member_count")
    if not all(name in tree.variables for name in names) or groups == [EVERYTHING]:
        return None
    group, token, count = (np.asarray(tree.dataset[name].values) for name in names)
    whole = all(x.ndim == 1 and x.dtype.kind in "iu" for x in (group, token, count))
    if not whole or not len(group) == len(token) == len(count):
        raise _damaged("its lists of the members of the classes do not fit each other")
    if len(group) and not (
        group.min() >= 0 and group.max() < len(groups)
        and token.min() >= 0 and token.max() < tokens
        and count.min() >= 0
    ):  # fmt: skip
        raise _damaged("its lists of the members of the classes name what is not there")
    return csr_array(
        (count.astype(np.int64), (group.astype(np.int64), token.astype(np.int64))),
        shape=(len(groups), tokens),
    )


def _largest(counts: csr_array) -> np.ndarray:
    """``[token]``, the largest count of each type."""
    return np.ravel(counts.max(axis=0).toarray())


def _damaged(what: str) -> ResultError:
    return ResultError(f"The result is damaged: {what}. Run mnemoscope analyze again.")
