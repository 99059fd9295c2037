"""Many models over one corpus: the checkpoints of a training, seeds, quantisations."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _memory
from ._analyze import analyze
from ._cluster import cluster_of, connected, in_order, result_of
from ._verdicts import Horizon, critical, fraction_horizon
from ._version import __version__
from .corpus import Corpus, read_corpus
from .errors import CorpusError, MnemoscopeError, ResultError
from .model import MemoryModel, open_model
from .result import open_result, save_result
from .roles import Level, Vocabulary
from .tables import Curve, curves

if TYPE_CHECKING:
    import xarray as xr

FRACTION = 0.05
"""The horizon of a sweep is the last delay at which σ₁ is this part of what it is at delay 0."""

_KEY = "sweep_key"
_SIGMA = 2.0  # standard errors that count
_LAST_NUMBER = r"(\d+)(?!.*\d)"


@dataclass
class Entry:
    """One model of a sweep.

    Attributes:
        name: Told apart from all others.
        model: Its file.
        result: Where its result is.
        step: Training step; None where the name has none.
        series: What the name is without its step: models of one training share it.
        error: Why there is no result; None where there is one.
        fresh: Whether it was analysed now; False where its result was there.
    """

    name: str
    model: str
    result: str
    step: int | None = None
    series: str = ""
    error: str | None = None
    fresh: bool = False


@dataclass(frozen=True)
class Memory:
    """What one state of one model remembers.

    Attributes:
        entry: The model.
        curve: σ₁ and its errors against the delay, whitened.
        horizon: How far σ₁ is at least `FRACTION` of what it is at delay 0.
    """

    entry: Entry
    curve: Curve
    horizon: Horizon


def entries_of(models: Sequence[str], folder: str, pattern: str | None = None) -> list[Entry]:
    """The models in the order of their training steps.

    A model is named by its file, and by its folders too where files share a name.

    Args:
        models: Files.
        folder: Where results go.
        pattern: Regular expression whose first group is the step in a name; None means the last
            number. Where not every name has a step, none counts.

    Raises:
        MnemoscopeError: A model is named twice, or the pattern is none or has no group.
    """
    if len({os.path.realpath(m) for m in models}) < len(models):
        raise MnemoscopeError("A model is named twice; name each once.")
    try:
        found = re.compile(pattern or _LAST_NUMBER)
    except re.error as error:
        raise MnemoscopeError(f"The step pattern is no regular expression: {error}.") from error
    if found.groups < 1:
        raise MnemoscopeError(
            f"The step pattern {pattern!r} has no group that is the step, such as step(\\d+)."
        )
    names = _names(models)
    entries = [
        Entry(n, m, os.path.join(folder, f"{n}.nc")) for n, m in zip(names, models, strict=True)
    ]
    matches = [found.search(e.name) for e in entries]
    if all(m and m[1] and m[1].isdecimal() for m in matches):
        for entry, match in zip(entries, matches, strict=True):
            assert match
            entry.step = int(match[1])
            entry.series = f"{entry.name[: match.start(1)]}N{entry.name[match.end(1) :]}"
    return sorted(entries, key=lambda e: (e.step is None, e.step, e.series, _natural(e.name)))


def _names(models: Sequence[str]) -> list[str]:
    parts = [Path(os.path.abspath(m)).with_suffix("").parts[1:] for m in models]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def _natural(name: str) -> list[Any]:
    """A key that puts ``a9`` before ``a10``."""
    return [(not p.isdecimal(), int(p) if p.isdecimal() else p) for p in re.split(r"(\d+)", name)]


@dataclass
class Sweep:
    """The analyses of many models over one corpus.

    Attributes:
        corpus: Its file.
        level: What a token is; None means what the model says.
        options: As `analyze` takes them.
        scheduler: Address of a Dask scheduler whose workers take a model each; None for none.
        workers: The same with so many processes here; None for one model after another.
    """

    corpus: str
    level: Level | None = None
    options: dict[str, Any] = field(default_factory=dict)
    scheduler: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        self._read: tuple[Vocabulary | None, Corpus] | None = None

    def run(
        self, entries: Sequence[Entry], progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Analyse the models that have no result yet; what fails is said in their entries.

        Raises:
            MnemoscopeError: Nothing can be analysed at all.
        """
        if not os.path.isfile(self.corpus):
            raise CorpusError(f"There is no corpus file {self.corpus}.")
        cluster = cluster_of(self.scheduler, self.workers)
        options = dict(self.options)
        if cluster:
            options["threads"] = options.get("threads") or cluster.threads
            options["calibrate"] = False  # beside others nothing can be timed
        if cluster and cluster.workers:  # they share what there is
            options["memory"] = _memory.allowed(options.get("memory")) // cluster.workers
        with connected(cluster) if cluster else nullcontext() as client:

            def tasks() -> Iterator[tuple[Entry, Any]]:
                sent: tuple[Corpus, Any] | None = None
                for entry in entries:
                    work = self._work(entry)
                    if work is None or client is None:
                        yield entry, work
                        continue
                    model, corpus, key = work
                    if sent is None or sent[0] is not corpus:
                        sent = corpus, client.submit(_given, corpus, pure=False)
                    yield (
                        entry,
                        client.submit(_analyse, model, sent[1], key, options, pure=False),
                    )

            ordered = tasks() if client is None else in_order(client, tasks())
            for i, (entry, task) in enumerate(ordered):
                try:
                    if task is not None:
                        if client is None:
                            model, corpus, key = task
                            tree = _analyse(model, corpus, key, options)
                        else:
                            tree = result_of(task, f"the analysis of {entry.model}")
                        save_result(tree, entry.result)
                        entry.fresh = True
                except MnemoscopeError as error:
                    entry.error = str(error)
                if progress:
                    progress(i + 1, len(entries))

    def _work(self, entry: Entry) -> tuple[MemoryModel, Corpus, str] | None:
        """What is to be analysed; None where that is done, or cannot be."""
        try:
            model = open_model(entry.model)
            corpus = self._corpus_for(model.vocabulary)
            key = _key_of(model, corpus, self.options)
            if not os.path.exists(entry.result):
                return model, corpus, key
            found = open_result(entry.result).attrs.get(_KEY)
            if found is None:
                raise ResultError(
                    f"{entry.result} is there and no part of a sweep; write to another folder."
                )
            return None if found == key else (model, corpus, key)
        except MnemoscopeError as error:
            entry.error = str(error)
            return None

    def _corpus_for(self, vocabulary: Vocabulary | None) -> Corpus:
        """The corpus as ids; the models of a training share a vocabulary, so it is read once."""
        if self._read is None or self._read[0] != vocabulary:
            read = read_corpus(self.corpus, vocabulary, level=self.level)
            # Its classes are not asked for, and need not travel.
            plain = Corpus(read.ids, read.name, read.sha256, read.lines, read.unknown)
            self._read = vocabulary, plain
        return self._read[1]


def _key_of(model: MemoryModel, corpus: Corpus, options: dict[str, Any]) -> str:
    """By which a result is known to be that of a model, a corpus and options."""
    _ = model.sha256  # found here, where the file is
    # Not the file's hash: weights may lie beside it.
    weights = hashlib.sha256(model.proto.SerializeToString(deterministic=True)).hexdigest()
    ids = hashlib.sha256(corpus.ids.tobytes()).hexdigest()
    how = ("memory", "threads", "chunk", "calibrate")  # but for rounding, results are the same
    asked = {k: v for k, v in options.items() if v is not None and k not in how}
    text = json.dumps([__version__, weights, corpus.sha256, ids, asked], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _given(corpus: Corpus) -> Corpus:
    return corpus


def _analyse(model: MemoryModel, corpus: Corpus, key: str, options: dict[str, Any]) -> xr.DataTree:
    tree = analyze(model, corpus, **options)
    tree.attrs[_KEY] = key
    return tree


def memories(entries: Sequence[Entry]) -> dict[str, list[Memory]]:
    """State → what each model remembers in it, in the order of the models.

    Raises:
        ResultError: A result cannot be read.
    """
    found: dict[str, list[Memory]] = {}
    for entry in entries:
        if entry.error is not None:
            continue
        tree = open_result(entry.result)
        for curve in curves(tree):
            errors = np.full(len(curve.delay), critical(_SIGMA, int(tree.attrs["blocks"])))
            columns = (curve.sigma1, curve.sigma1_stderr, curve.noise_floor, errors)
            horizon = fraction_horizon(*columns, FRACTION)
            found.setdefault(curve.state, []).append(Memory(entry, curve, horizon))
    return found
