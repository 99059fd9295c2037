"""How to analyse: the options and the progress bar of every command that runs an analysis."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from ._output import console


class Finite(click.FloatRange):
    """A number from 0 on, or above 0, that is not infinite; a plain range lets NaN pass."""

    def __init__(self, *, above: bool = True) -> None:
        super().__init__(min=0, min_open=above)

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Turn text into the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


def is_result(path: str) -> bool:
    """Tell a result from a model: by its first bytes, or by its name where they are not HDF5's."""
    with suppress(OSError), open(path, "rb") as file:
        if file.read(8) == b"\x89HDF\r\n\x1a\n":
            return True
    return os.path.splitext(path)[1].lower() == ".nc"


def analysis_options(
    *, delays: str = "50", positions: str = "all"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of an analysis, all None where they are not given.

    Their names are those of `mnemoscope.analyzer.analyze`, but for ``level``, which is the
    corpus', ``memory``, which is in gigabytes, and ``quiet``.

    Args:
        delays: What the help calls the default of ``--delays``.
        positions: The same of ``--positions``.
    """
    options = (
        click.option(
            "--delays",
            type=click.IntRange(min=0),
            help=f"Largest delay, 0 included.  [default: {delays}]",
        ),
        click.option(
            "--method",
            type=click.Choice(["jvp", "fd"]),
            help="Exact derivatives, or differences of one step for any model that runs.  "
            "[default: jvp]",
        ),
        click.option(
            "--precision",
            type=click.Choice(["float32", "float64"]),
            help="Of all that is computed.  [default: float32]",
        ),
        click.option(
            "--provider",
            type=click.Choice(["auto", "cuda", "cpu"]),
            help="Where to run.  [default: auto]",
        ),
        click.option(
            "--positions",
            type=click.IntRange(min=1),
            help=f"Sample about this many input positions.  [{positions}]",
        ),
        click.option(
            "--seed", type=click.IntRange(min=0), help="Of sample and halves.  [default: 0]"
        ),
        click.option(
            "--blocks",
            type=click.IntRange(min=2),
            help="Parts of the corpus for the standard errors.  [default: 10]",
        ),
        click.option(
            "--step",
            type=Finite(),
            help="Step of the differences (--method fd).  [from the precision and the scale]",
        ),
        click.option(
            "--level", type=click.Choice(["word", "char"]), help="What a token is.  [the model's]"
        ),
        click.option(
            "--memory",
            type=Finite(),
            metavar="GB",
            help="Most memory to use.  [from what is free]",
        ),
        click.option("--tf32", is_flag=True, default=None, help="Allow TF32 products on CUDA."),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            help="Processor threads.  [all cores, or what is faster]",
        ),
        click.option(
            "--streams",
            type=click.IntRange(min=1),
            help="Parts of the corpus to follow side by side.  [from model and device, or what is "
            "faster]",
        ),
        click.option(
            "--chunk",
            type=click.IntRange(min=1),
            help="Positions to linearise in one call.  [from the model, or what is faster]",
        ),
        click.option(
            "--calibrate/--no-calibrate",
            default=None,
            help="Before a long run, try which threads, streams and chunk are fastest here, and "
            "keep what was found.  [calibrate]",
        ),
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say who shares its work."""
    for option in (
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            help="Share the work among so many processes here (extra: distributed).",
        ),
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            help="Share it among the workers of a Dask scheduler that you trust, tcp://host:8786.",
        ),
    ):
        command = option(command)
    return command


def check_step(step: float | None, method: str | None) -> None:
    """Refuse a step where no differences are taken.

    Raises:
        click.UsageError: The two do not fit.
    """
    if step is not None and method != "fd":
        raise click.UsageError("--step is the step of finite differences; add --method fd.")


def in_bytes(memory: float | None) -> int | None:
    """Turn ``--memory`` into bytes."""
    return None if memory is None else int(memory * 1e9)


Progress = Callable[[int, int], None]


@contextmanager
def progress_of(
    quiet: bool, unit: str = "positions"
) -> Iterator[tuple[Progress | None, Callable[[str], None] | None]]:
    """Give what the analysis tells its progress, in units, and its notes to."""
    if quiet:
        yield None, None
        return
    out = console(stderr=True)
    if not out.is_terminal:
        yield None, lambda line: out.print(line, soft_wrap=True)
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("Analysing"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn(f"{{task.fields[rate]}} {unit}/s, left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("", total=None, rate="–")
        start: list[float] = []

        def progress(done: int, total: int) -> None:
            now = time.perf_counter()
            start[:] = start or [now, done]
            seconds = now - start[0]
            each = (done - start[1]) / seconds if seconds > 0.5 else math.nan
            rate = "–" if math.isnan(each) else f"{each:,.0f}" if each >= 10 else f"{each:.2g}"
            bar.update(task, completed=done, total=total, rate=rate)

        yield progress, lambda line: out.print(line, soft_wrap=True)
