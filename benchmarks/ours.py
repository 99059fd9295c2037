"""This project's methods, through `analyze`: the main job and nothing but it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from mnemoscope.analyzer import Corpus, Groups, analyze, open_model

from .cells import CELLS
from .peer import Peer
from .shapes import Job

BLOCKS = 2  # of the jackknife; the ends of blocks cost the same in a short and a long corpus


class _Summed(Exception):
    """All positions are summed."""


class Ours(Peer):
    """`jvp` or `fd`.

    Args:
        job: The job.
        method: Which.
        groups: How many groups the positions are dealt to, one each.
        options: Further ones of `analyze`.
    """

    def __init__(self, job: Job, method: str = "jvp", groups: int = 1, **options: Any) -> None:
        super().__init__(job)
        self._options = options
        self._model, self._method, self._groups = open_model(job.path), method, groups
        self._enough = 1  # positions that take long enough to be timed

    def sums(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """States of the last layer only: all below feed it, and their measures take minutes."""
        ids = self.job.ids[: stop + self.job.shape.delays]
        mask = np.zeros(len(ids), bool)
        mask[start:stop] = True
        names = self.job.names[-len(CELLS[self.job.shape.cell][1]) :]
        tree = self._analyze(ids, groups=Groups.from_masks({"followed": mask}), states=names)
        # A mean times its count is the sum again.
        found = {n: tree[n].to_dataset().isel(group=0) for n in names}
        return {n: (d["gradient"] * d["count"]).to_numpy() for n, d in found.items()}

    def seconds(self, positions: int) -> float:
        """Of that many positions at full delays, by the difference of two corpora.

        Reading and linearising the model takes the same for both, and so do the positions before
        every delay has an input, and drops out. The longer corpus has more positions than asked
        for where they would take less than twice what drops out, whose noise would hide them.
        """
        least = self.job.shape.delays + 1
        fixed = self.until_summed(least)
        self._enough = max(self._enough, positions)
        while (whole := self.until_summed(least + self._enough)) < 3 * fixed:
            self._enough *= 2
        return (whole - fixed) * positions / self._enough

    def until_summed(self, positions: int) -> float:
        """From the call until the last position of a corpus is summed.

        What comes after, the measures (singular values, errors), does not depend on the corpus's
        length, so that the run is broken off there.
        """
        ids = np.resize(self.job.ids, positions)
        dealt = np.random.default_rng(0).integers(0, self._groups, positions)
        groups = Groups.from_numbers([f"group{i}" for i in range(self._groups)], dealt)

        def progress(done: int, total: int) -> None:
            if done == total:
                raise _Summed

        began = time.perf_counter()
        try:
            self._analyze(ids, groups=groups, progress=progress)
        except _Summed:
            return time.perf_counter() - began
        raise RuntimeError("analyze never said that all positions are done")

    def _analyze(self, ids: np.ndarray, **options):
        return analyze(
            self._model,
            Corpus(ids, "random", "", 1, 0),
            delays=self.job.shape.delays,
            method=self._method,
            provider="cpu",
            threads=self.job.threads,
            blocks=BLOCKS,
            calibrate=False,  # which would choose for a long corpus and not for a short one
            **self._options,
            **options,
        )
