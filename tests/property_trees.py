"""Results with embeddings, tokens and members, built by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import xarray as xr
from mnemoscope.analyzer.result import build
from mnemoscope.analyzer.sums import Sums

SIZE, UNITS, DELAYS, BLOCKS, EACH = 6, 9, 4, 5, 200

# Class → its words, with how often each occurs there.
CLASSES = {
    "NN": {f"noun{i}": 5 for i in range(30)} | {"run": 3, "even": 2},
    "NNS": {f"nouns{i}": 4 for i in range(25)},
    "VB": {f"verb{i}": 6 for i in range(20)} | {"run": 7, "even": 2},
    "UH": {"oh": 1},
    "FW": {},
}
EXTRA = ("king", "queen", "man", "woman", "cat", "cat's", "dog", "dog's", "e-mail", "C++", "same1",
         "same2")  # fmt: skip


def vocabulary() -> list[str]:
    """All tokens; ids are their places."""
    return [*dict.fromkeys(w for words in CLASSES.values() for w in words), *EXTRA]


def embeddings(seed: int = 0) -> np.ndarray:
    """``[token, embedding]``: nouns and plurals differ along a direction, others do not."""
    tokens = vocabulary()
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((len(tokens), SIZE)) * [1, 2, 1, 0.5, 1, 1]
    for i, token in enumerate(tokens):
        if token.startswith("nouns"):
            table[i, 0] += 6
        elif token.startswith("noun"):
            table[i, 0] -= 6
    index = {t: i for i, t in enumerate(tokens)}
    table[index["queen"]] = table[index["king"]] + table[index["woman"]] - table[index["man"]]
    table[index["same2"]] = table[index["same1"]]
    return table.astype(np.float32)


def sums(seed: int, groups: list[str], strength: float = 1.0, size: int = SIZE) -> Sums:
    """Gradients with a common part that fades below their noise at the last delay."""
    rng = np.random.default_rng(seed)
    shape = (len(groups), DELAYS, UNITS, size)
    fading = np.exp(-2.5 * np.arange(DELAYS))[:, None, None]
    common = strength * fading * rng.standard_normal((1, *shape[1:]))
    common = common + 0.2 * fading * rng.standard_normal(shape)
    noise = 0.2 * np.sqrt(EACH) * rng.standard_normal((2, BLOCKS, *shape))
    halves = EACH / 2 * common + noise / np.sqrt(2)
    counts = np.full((BLOCKS, *shape[:2]), EACH)
    return Sums(halves.sum(0), counts, halves[0].sum(0), counts.sum(0) // 2)


def property_tree(
    *,
    states=("lstm0.h", "lstm0.c"),
    table=None,
    tokens=True,
    members=True,
    unions=(),
    **options,
) -> xr.DataTree:
    """A result with everything that a property needs."""
    table = embeddings() if table is None else table
    groups = ["all", *CLASSES, *unions]
    return build(
        {name: sums(i, groups, size=table.shape[1]) for i, name in enumerate(states)},
        groups=groups,
        embeddings=table,
        state_info={name: {"kind": "cell", "layer": 0} for name in states},
        attributes={"model": "m.onnx", "model_sha256": "0" * 64, "corpus": "c.txt"},
        tokens=vocabulary() if tokens else None,
        members=_members(groups, unions) if members else None,
        shared=_shared(groups, unions) if members else None,
        **options,
    )


def _members(groups: list[str], unions: Sequence[str]) -> np.ndarray:
    """``[member, 3]``: group, token, count."""
    counts: dict[str, Counter[str]] = {k: Counter(v) for k, v in CLASSES.items()}
    counts["all"] = sum(counts.values(), Counter())
    counts |= {union: counts["NN"] + counts["NNS"] for union in unions}
    index = {t: i for i, t in enumerate(vocabulary())}
    rows = [(groups.index(g), index[w], n) for g, words in counts.items() for w, n in words.items()]
    return np.array(rows, np.int64)


def _shared(groups: list[str], unions: Sequence[str]) -> np.ndarray:
    """``[group, other]``: positions in both; a union holds those of NN and NNS."""
    parts = {g: {g} for g in CLASSES} | {u: {"NN", "NNS"} for u in unions} | {"all": {*CLASSES}}
    size = {g: sum(Counter(words).values()) for g, words in CLASSES.items()}
    return np.array([[sum(size[p] for p in parts[a] & parts[b]) for b in groups] for a in groups])
