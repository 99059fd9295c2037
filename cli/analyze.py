"""`mnemoscope analyze`: the main job."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import click

from ._analysis import analysis_options, check_step, in_bytes, progress_of
from ._lazy import example
from ._output import check_output, output_option

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
@click.option("--state", "states", multiple=True, help="State to follow; may be repeated.  [all]")
@analysis_options()
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
    check_step(options["step"], options["method"])
    check_output(output, inputs=[model, corpus])
    from mnemoscope.analyzer import analyze as run
    from mnemoscope.analyzer import open_model, read_corpus, save_result

    start = time.perf_counter()
    opened = open_model(model)
    text = read_corpus(corpus, opened.vocabulary, level=level)
    with progress_of(quiet) as (progress, report):
        tree = run(
            opened,
            text,
            states=list(states) or None,
            memory=in_bytes(memory),
            progress=progress,
            report=report,
            **options,
        )
    save_result(tree, output)
    if not quiet:
        _summarize(tree, output, time.perf_counter() - start)


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
