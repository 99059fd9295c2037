"""Whether classes of types can be told apart in the embedding space by a linear classifier.

Verwimp et al. 2020 ("V20"), appendix 9. A property is a difference of class means; that makes
sense only where a hyperplane separates the classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from .errors import PropertyError

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

FEWEST = 5
"""Types that a class must have: one for each part of the held-out test."""

_PARTS = 5  # the types are cut in five; each part is held out once
_FOLDS = 3  # of the search, within the types that are not held out
_STRENGTHS = (0.01, 0.1, 1.0, 10.0)
_ONE_PART = 1000  # from this many types on one part is held out: its error is below 3.6 %
_MOST = 10_000  # types, drawn with a seed, classes in proportion
_WORK = 1_000_000  # types · directions · classes in the search


@dataclass(frozen=True)
class Separability:
    """How well a linear classifier tells classes of types apart.

    Attributes:
        name: Of the set of classes.
        sizes: Class → number of types that took part.
        left_out: Class → number of types, of classes too small to take part.
        ambiguous: Types of several of the classes, which took no part.
        available: Types before the cap on their number.
        tested: Held-out types.
        validation: Cross-validated accuracy of the chosen settings on types not held out.
        accuracy: On the held-out types.
        stderr: Of `accuracy`: ``√(p (1 − p) / tested)`` with p the accuracy had one more type been
            right and one more wrong, so that it is never 0.
        majority: Accuracy of always naming the largest class, on the same types.
        shuffled: Mean accuracy of the same procedure on permuted labels.
        shuffled_spread: Its standard deviation over the permutations.
        chosen: The settings chosen, most often first where they differ between parts.
    """

    name: str
    sizes: Mapping[str, int]
    left_out: Mapping[str, int]
    ambiguous: int
    available: int
    tested: int
    validation: float
    accuracy: float
    stderr: float
    majority: float
    shuffled: float
    shuffled_spread: float
    chosen: str

    @property
    def separable(self) -> bool:
        """Whether `accuracy` exceeds both baselines by more than two standard errors."""
        return self.accuracy - max(self.majority, self.shuffled) > 2.0 * self.stderr

    @property
    def types(self) -> int:
        """How many types took part."""
        return sum(self.sizes.values())

    def row(self) -> dict[str, Any]:
        """Plain columns."""
        return {
            "set": self.name,
            "classes": len(self.sizes),
            "types": self.types,
            "tested": self.tested,
            "validation": self.validation,
            "accuracy": self.accuracy,
            "stderr": self.stderr,
            "majority": self.majority,
            "shuffled": self.shuffled,
            "shuffled_spread": self.shuffled_spread,
            "separable": self.separable,
            "chosen": self.chosen,
        }


def separability(
    name: str,
    classes: Mapping[str, np.ndarray],
    whitened: np.ndarray,
    *,
    whole: bool = False,
    paired: bool = False,
    permutations: int = 5,
    seed: int = 0,
) -> Separability:
    """Train logistic regression to tell classes apart, and test it on held-out types.

    The embeddings are whitened: it is the space in which a property is a direction, a penalty
    weighs all its directions alike, and the solvers converge in a few steps. (V20 used the
    embeddings as they are. Without a penalty the two would be the same classifier.)

    The types are cut in five parts, classes in proportion. With the others a search, itself
    cross-validated in three folds, chooses penalty (L1, L2), strength (C = 0.01 … 10) and class
    weights (none, balanced); a classifier with that choice, trained on them all, is tested on the
    part held out. Up to 1,000 types every part is held out once, and each type tested once; of
    more types one part is. The control does the same with permuted labels, one part for each
    permutation. Words in pairs (`paired`) are held out and drawn pair by pair, and the control
    exchanges the labels within pairs: what a classifier has learned of *cat*, with its label,
    would mislead it about *cat's*.

    Bounded work: at most 10,000 types take part, and in the search so many that
    types · directions · classes ≤ 1,000,000 (but at least 300, and 6 for each class), drawn with
    the seed, classes in proportion.

    Args:
        name: Of the set.
        classes: Class → ``[type]`` token ids. A type of several classes takes no part.
        whitened: ``[token, direction]``.
        whole: Whether every class must take part; else those that are too small are left out.
        paired: Whether there are two classes, and the types at one place of both belong together.
        permutations: Of the labels, at least 2.
        seed: Of parts, folds, caps and permutations.

    Raises:
        PropertyError: Fewer than two classes have the five types that it takes, or, with `whole`,
            not all of them.
    """
    ids = np.concatenate([*classes.values(), np.empty(0, np.int64)])
    unique, times = np.unique(ids, return_counts=True)
    several = unique[times > 1]
    alone = {k: np.setdiff1d(v, several) for k, v in classes.items()}
    small = {k: len(v) for k, v in alone.items() if len(v) < FEWEST}
    kept = {k: v for k, v in alone.items() if k not in small}
    if len(kept) < 2 or (whole and small):
        found = ", ".join(f"{k} {len(v):,}" for k, v in alone.items()) or "no class"
        wanted = max(len(classes), 2) if whole else 2
        raise PropertyError(
            f"{name}: {wanted} classes with at least {FEWEST} types each are needed, found "
            f"{found}. Analyse a larger corpus, or join classes."
        )
    names = list(kept)
    tokens = np.concatenate(list(kept.values()))
    y = np.repeat(np.arange(len(names)), [len(v) for v in kept.values()])
    pair = _pairs(classes, len(whitened))[tokens] if paired else None
    rng = np.random.default_rng(seed)
    some = _sample(y, _MOST, rng, pair)
    x, y, pair = whitened[tokens[some]], y[some], None if pair is None else pair[some]
    with threadpool_limits(limits=1, user_api="blas"), warnings.catch_warnings():
        # A solver that stops early gives a classifier all the same, and it is tested.
        warnings.simplefilter("ignore")
        parts = _PARTS if len(y) < _ONE_PART else 1
        runs = [_run(x, y, pair, part, seed, rng) for part in range(parts)]
        controls = [
            _run(x, _permuted(y, pair, rng), pair, k % _PARTS, seed, rng)
            for k in range(permutations)
        ]
    tested = sum(run.tested for run in runs)
    right = sum(run.right for run in runs) / tested
    p = (right * tested + 1) / (tested + 2)
    chance = np.array([c.right / c.tested for c in controls])
    chosen = [run.chosen for run in runs]
    return Separability(
        name=name,
        sizes={k: int(n) for k, n in zip(names, np.bincount(y), strict=True)},
        left_out=small,
        ambiguous=len(several),
        available=len(tokens),
        tested=tested,
        validation=float(np.mean([run.validation for run in runs])),
        accuracy=right,
        stderr=float(np.sqrt(p * (1 - p) / tested)),
        majority=sum(run.majority for run in runs) / tested,
        shuffled=float(chance.mean()),
        shuffled_spread=float(chance.std(ddof=1)),
        chosen=max(chosen, key=chosen.count),
    )


@dataclass(frozen=True)
class _Run:
    tested: int
    right: int
    majority: int
    validation: float
    chosen: str


def _run(
    x: np.ndarray,
    y: np.ndarray,
    pair: np.ndarray | None,
    part: int,
    seed: int,
    rng: np.random.Generator,
) -> _Run:
    """Search, train and test with one part held out."""
    from sklearn.base import clone
    from sklearn.dummy import DummyClassifier
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, StratifiedKFold

    fold = StratifiedKFold if pair is None else StratifiedGroupKFold
    cut = fold(_PARTS, shuffle=True, random_state=seed % 2**32)
    train, test = list(cut.split(x, y, pair))[part]
    classes = len(np.unique(y))
    few = max(_WORK // (x.shape[1] * classes), 300, 6 * classes)
    searched = train[_sample(y[train], few, rng, None if pair is None else pair[train])]
    search = GridSearchCV(
        _model({}),
        _grid(classes),
        scoring="accuracy",
        cv=fold(_FOLDS, shuffle=True, random_state=seed % 2**32),
        refit=False,
    )
    search.fit(x[searched], y[searched], groups=None if pair is None else pair[searched])
    model = clone(search.estimator).set_params(**search.best_params_)
    model.fit(x[train], y[train])
    largest = DummyClassifier(strategy="most_frequent").fit(x[train], y[train])
    return _Run(
        tested=len(test),
        right=int((model.predict(x[test]) == y[test]).sum()),
        majority=int((largest.predict(x[test]) == y[test]).sum()),
        validation=float(search.best_score_),
        chosen=_said(search.best_params_),
    )


def _model(settings: Mapping[str, Any]) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    # A tolerance in proportion to what is asked: an accuracy, not weights.
    return LogisticRegression(tol=1e-2, max_iter=100, random_state=0, **settings)


def _grid(classes: int) -> list[dict[str, Any]]:
    """The settings to search: L2 by L-BFGS; L1 by coordinate descent, or SAGA for many classes."""
    common = {"C": _STRENGTHS, "class_weight": [None, "balanced"]}
    return [
        {**_penalty("l2"), "solver": ["lbfgs"], **common},
        {**_penalty("l1"), "solver": ["liblinear" if classes == 2 else "saga"], **common},
    ]


def _penalty(which: str) -> dict[str, list[Any]]:
    """Name a penalty as this release of scikit-learn does."""
    if _model({}).get_params().get("penalty") in (None, "deprecated"):  # from 1.8 on
        return {"l1_ratio": [1.0 if which == "l1" else 0.0]}
    return {"penalty": [which]}


def _said(chosen: Mapping[str, Any]) -> str:
    l1 = chosen.get("l1_ratio") == 1.0 or chosen.get("penalty") == "l1"
    weights = ", balanced" if chosen["class_weight"] else ""
    return f"{'L1' if l1 else 'L2'}, C = {chosen['C']:g}{weights}"


def _pairs(classes: Mapping[str, np.ndarray], vocabulary: int) -> np.ndarray:
    """``[token]``, the same number where two types belong together, be it through others."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    a, b = classes.values()
    edges = csr_array((np.ones(len(a), bool), (a, b)), shape=(vocabulary, vocabulary))
    return np.asarray(connected_components(edges, directed=False)[1])


def _permuted(y: np.ndarray, pair: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Labels exchanged at random, those of pairs within each pair."""
    if pair is None:
        return rng.permutation(y)
    found = np.empty_like(y)
    found[np.argsort(pair, kind="stable")] = y[np.lexsort((rng.random(len(y)), pair))]
    return found


def _sample(
    y: np.ndarray, most: int, rng: np.random.Generator, pair: np.ndarray | None = None
) -> np.ndarray:
    """Indices of at most about `most` entries, classes in proportion; of each at least five.

    Of pairs, both or none.
    """
    if len(y) <= most:
        return np.arange(len(y))
    share = most / len(y)
    if pair is not None:
        pairs = np.unique(pair)
        return np.flatnonzero(np.isin(pair, rng.permutation(pairs)[: round(share * len(pairs))]))
    found = []
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        n = min(len(members), max(FEWEST, round(share * len(members))))
        found.append(rng.choice(members, n, replace=False))
    return np.sort(np.concatenate(found))
