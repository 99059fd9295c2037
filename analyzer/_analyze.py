"""The main job: a model and a corpus become a result."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ._checkpoint import Checkpoint, opened
from ._run import Method, Precision, Run
from .corpus import Corpus
from .errors import MnemoscopeError
from .grouping import those_followed
from .groups import Groups
from .model import MemoryModel
from .sums import plan

if TYPE_CHECKING:
    import xarray as xr

_BLOCK_GRADIENT_LIMIT = 2**28  # bytes of the result file spent on the means of each block


def analyze(
    model: MemoryModel,
    corpus: Corpus,
    *,
    delays: int | None = None,
    states: list[str] | None = None,
    method: Method | None = None,
    precision: Precision | None = None,
    provider: str | None = None,
    positions: int | None = None,
    seed: int | None = None,
    blocks: int | None = None,
    step: float | None = None,
    memory: int | None = None,
    tf32: bool | None = None,
    threads: int | None = None,
    streams: int | None = None,
    chunk: int | None = None,
    calibrate: bool | None = None,
    sketch: int | None = None,
    groups: Groups | None = None,
    keep_blocks: int | None = None,
    scratch: str | os.PathLike[str] | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    checkpoint_every: float | None = None,
    resume: bool = False,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> xr.DataTree:
    """Average the state-embedding Jacobians of a model over a corpus, at every delay.

    The Jacobian ``J_{t,τ} = ∂state_t / ∂embedding_{t-τ}`` is the product of the derivatives of
    single steps (Verwimp et al. 2020, section 3). Every input position counts; the state is
    carried through the whole corpus from the model's initial state, so that delay τ is seen by
    all positions but the last τ.

    Args:
        model: A memory model.
        corpus: Token ids.
        delays: Largest delay, inclusive of 0; default 50.
        states: Names of state components; default all that have a derivative.
        method: ``jvp`` (exact; default) or ``fd`` (central differences of each step).
        precision: ``float32`` (default) or ``float64``.
        provider: ``auto`` (default), ``cpu`` or ``cuda``.
        positions: Follow a random sample of this many input positions; default all.
        seed: Of the sample and of the halves behind the noise floor; default 0.
        blocks: Contiguous blocks of the jackknife; default 10.
        step: Of ``fd``, in units of each coordinate's own range; default eps^(1/3).
        memory: Bytes that the run may take; default 80 % of what is free.
        tf32: Let CUDA round factors of matrix products to TF32; default False.
        threads: How many to use on the CPU; default one for each processor, or what is faster.
        streams: Parts of the corpus that are followed side by side, one call for all; default on
            a GPU as many as keep it busy and fit, on the CPU several for small models.
        chunk: Positions that are linearised in one call on the CPU; default as many as suit the
            model.
        calibrate: Before a long run on the CPU, try for some seconds which of the `threads`,
            `streams` and `chunk` that were left open are fastest on this machine, and keep them
            for runs of such a model to come; default True.
        sketch: Follow so many directions of the embedding space for each input instead of all of
            it: fewer products, an estimate with the same mean and larger standard errors.
        groups: Classes of input positions that are averaged apart; default one group ``all``.
            Those that hold none of the sample are left out.
        keep_blocks: Bytes of the result that the mean of each block may take, from which other
            measures get their standard errors; default 256 MiB, and none are kept if all of them
            together need more.
        scratch: Folder for a temporary file that holds sums of more than 1 GiB; default that of
            temporary files. One that is itself held in memory (tmpfs) is not used.
        checkpoint: File that the sums are kept in now and then, so that a run that was ended can
            go on; default none. It stays there: remove it when the result is saved. Or a
            `Checkpoint` that has been entered, which the two options below do not concern.
        checkpoint_every: Seconds between checkpoints; default 60; 0 means never.
        resume: Go on from the checkpoint if it is there. The result is bit by bit that of a run
            which nothing ended.
        scheduler: Address of a Dask scheduler whose workers follow the positions; `threads` is
            then that of each task (default 1) and `memory` that of each worker.
        workers: The same with so many processes on this machine, which share its processors.
        progress: Called with positions done and in all.
        report: Called with one line about each choice made.

    Returns:
        The tree that a result file holds (``docs/result-format.md``).

    Raises:
        MnemoscopeError: The call or the input does not fit; see its subclasses.
    """
    from . import result  # here, since xarray takes as long to import as all else together

    began = time.monotonic()
    say = report or (lambda line: None)
    seed = 0 if seed is None else seed
    blocks = 10 if blocks is None else blocks
    if positions is not None and positions < 1:
        raise MnemoscopeError(f"The number of positions must be 1 or more, not {positions}.")
    if blocks < 2:
        raise MnemoscopeError(f"The jackknife needs at least 2 blocks, not {blocks}.")
    chosen = Groups.everything(len(corpus)) if groups is None else groups
    if chosen.positions != len(corpus):
        raise MnemoscopeError(
            f"The groups are those of {chosen.positions} positions; the corpus has {len(corpus)}."
        )
    result.check_group_names(list(chosen.names))
    with opened(checkpoint, checkpoint_every, resume, report) as kept:
        run = Run(
            model,
            corpus,
            delays=delays,
            states=states,
            method=method,
            precision=precision,
            provider=provider,
            step=step,
            memory=memory,
            tf32=tf32,
            threads=threads,
            streams=streams,
            chunk=chunk,
            calibrate=calibrate,
            sketch=sketch,
            seed=seed,
            scratch=tempfile.gettempdir() if scratch is None else scratch,
            scheduler=scheduler,
            workers=workers,
            report=report,
            before=kept.choices() if kept else None,
        )
        result.check_state_names(list(run.sizes))
        layout = plan(len(corpus), run.delays, blocks=blocks, positions=positions, seed=seed)
        chosen = those_followed(chosen, layout.block >= 0, report)
        if positions is not None and positions >= len(corpus):
            say(f"The corpus has {len(corpus):,} positions, so all of them are followed.")
        keep_blocks = _BLOCK_GRADIENT_LIMIT if keep_blocks is None else keep_blocks
        after = result.bytes_needed(
            len(chosen), layout.blocks, run.delays + 1, run.cells, run.step.dtype, keep_blocks
        )
        found = run.sums(layout, chosen, after, progress, kept)
    attributes = {
        **run.attributes,
        "positions": layout.inputs,
        "stretches": len(layout.stretches),
        "blocks": layout.blocks,
        "seed": seed,
        "wall_seconds": time.monotonic() - began + (kept.seconds_before if kept else 0.0),
    }
    return result.build(
        found,
        groups=list(chosen.names),
        embeddings=model.embeddings,  # whose own rounding says which directions are absent
        state_info=run.state_info,
        attributes=attributes,
        block_gradient_limit=keep_blocks,
        precision=str(run.step.dtype),
        tokens=model.vocabulary.tokens if model.vocabulary else None,
        members=None if groups is None else _members(corpus, chosen),
        shared=None if groups is None else chosen.shared(),
    )


def _members(corpus: Corpus, groups: Groups) -> np.ndarray:
    """``[member, 3]``: group, token, and how often the token is an input in the group."""
    pairs = np.stack([groups.group, corpus.ids[groups.position]], axis=1)
    found, count = np.unique(pairs, axis=0, return_counts=True)
    return np.concatenate([found, count[:, None]], axis=1)
