"""`mnemoscope analyze`: the main job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import click

from ._lazy import example
from ._options import analysis_options
from ._output import check_output, console, output_option

if TYPE_CHECKING:
    import xarray as xr


@click.command(
    epilog=example(
        "mnemoscope analyze model.onnx corpus.txt -o result.nc",
        "mnemoscope analyze model.onnx corpus.txt -o quick.nc --positions 2000 --state lstm0.c",
    )
)
@click.argument("model")
@click.argument("corpus")
@output_option("result")
@analysis_options()
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def analyze(
    model: str,
    corpus: str,
    output: str,
    level: Literal["word", "char"] | None,
    memory: float | None,
    quiet: bool,
    states: tuple[str, ...],
    **options: Any,
) -> None:
    """Measure how long MODEL remembers the words of CORPUS.

    MODEL is an ONNX file with roles, as mnemoscope export writes it. CORPUS is UTF-8 text, one
    sentence a line; - is standard input.
    """
    if options["step"] is not None and options["method"] != "fd":
        raise click.UsageError("--step is the step of finite differences; add --method fd.")
    check_output(output, inputs=[model, corpus])
    from mnemoscope.analyzer import analyze as run
    from mnemoscope.analyzer import open_model, read_corpus, save_result

    start = time.perf_counter()
    opened = open_model(model)
    text = read_corpus(corpus, opened.vocabulary, level=level)
    with show_progress(quiet) as (progress, report):
        tree = run(
            opened,
            text,
            states=list(states) or None,
            memory=None if memory is None else int(memory * 1e9),
            progress=progress,
            report=report,
            **options,
        )
    save_result(tree, output)
    if not quiet:
        _summarize(tree, output, time.perf_counter() - start)


Progress = Callable[[int, int], None]


@contextmanager
def show_progress(quiet: bool) -> Iterator[tuple[Progress | None, Callable[[str], None] | None]]:
    """Give what the analysis tells its progress and its notes to."""
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
        TextColumn("{task.fields[rate]} positions/s, left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("", total=None, rate="–")
        start: list[float] = []

        def progress(done: int, total: int) -> None:
            now = time.perf_counter()
            start[:] = start or [now, done]
            seconds = now - start[0]
            rate = f"{(done - start[1]) / seconds:,.0f}" if seconds > 0.5 else "–"
            bar.update(task, completed=done, total=total, rate=rate)

        yield progress, lambda line: out.print(line, soft_wrap=True)


def _summarize(tree: xr.DataTree, output: str, seconds: float) -> None:
    from mnemoscope.analyzer.tables import curves

    found = curves(tree)
    count = max(int(c.count.max()) for c in found)
    names = ", ".join(c.state for c in found)
    most = int(found[0].delay[-1])
    click.echo(
        f"{count:,} input positions, delays 0 to {most}, in {seconds:,.1f} s; states: {names}."
    )
    reach = ", ".join(f"{c.state} {_reach(c.first_unclear)}" for c in found)
    click.echo(f"Whitened σ₁ clear of its noise floor: {reach}.")
    click.echo(f"Written to {output}; next: mnemoscope show {output}")


def _reach(first: int | None) -> str:
    if first is None:
        return "at every delay"
    return f"up to delay {first - 1}" if first else "at no delay"
