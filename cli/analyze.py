"""`mnemoscope analyze`: the main job."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Literal

import click

from ._analysis import Finite, analysis_options, check_step, in_bytes, progress_of
from ._lazy import example
from ._output import check_output, output_option

if TYPE_CHECKING:
    import xarray as xr

_NAMED = 4  # classes at each end of the summary


@click.command(
    epilog=example(
        "mnemoscope analyze model.onnx corpus.txt -o result.nc",
        "mnemoscope analyze model.onnx corpus.txt -o quick.nc --positions 2000 --state lstm0.c",
        "mnemoscope analyze model.onnx treebank.conllu -o classes.nc --group-by upos",
    )
)
@click.argument("model")
@click.argument("corpus")
@output_option("result")
@click.option("--state", "states", multiple=True, help="State to follow; may be repeated.  [all]")
@click.option(
    "--group-by",
    metavar="WHAT",
    help="Average classes of input words apart: upos, xpos, lemma, word, label, feature:NAME, or "
    "a lexicon FILE.",
)
@click.option(
    "--groups",
    "unions",
    metavar="FILE",
    help='TOML file of classes to put together, such as nouns = ["NN", "NNS"].',
)
@click.option(
    "--keep-blocks",
    type=Finite(),
    metavar="GB",
    help="Room in the result for the means of each block, from which properties get their "
    "standard errors.  [0.27]",
)
@click.option(
    "--sketch",
    type=click.IntRange(min=1),
    metavar="K",
    help="Follow K random directions of the embedding space for each position: faster, with larger "
    "standard errors.  [all]",
)
@analysis_options()
def analyze(
    model: str,
    corpus: str,
    output: str,
    level: Literal["word", "char"] | None,
    memory: float | None,
    quiet: bool,
    states: tuple[str, ...],
    group_by: str | None,
    unions: str | None,
    keep_blocks: float | None,
    **options: Any,
) -> None:
    """Measure how long MODEL remembers the words of CORPUS.

    MODEL is an ONNX file with roles, as mnemoscope export writes it. CORPUS is UTF-8 text, one
    sentence a line; - is standard input. A treebank (.conllu) or a table of words and labels
    (.tsv) has classes of words that --group-by can tell apart.
    """
    check_step(options["step"], options["method"])
    if unions is not None and group_by is None:
        raise click.UsageError(
            "--groups puts classes together; say which with --group-by, such as --group-by xpos."
        )
    check_output(output, inputs=[model, corpus, *filter(None, (group_by, unions))])
    from mnemoscope.analyzer import analyze as run
    from mnemoscope.analyzer import open_model, read_corpus, save_result
    from mnemoscope.analyzer.grouping import group_positions, read_unions
    from mnemoscope.analyzer.result import encode_attributes

    start = time.perf_counter()
    opened = open_model(model)
    members = None if unions is None else read_unions(unions)
    text = read_corpus(corpus, opened.vocabulary, level=level)
    with progress_of(quiet) as (progress, report):
        if group_by is not None:
            options["groups"] = group_positions(
                text, opened.vocabulary, group_by, unions=members, report=report
            )
        tree = run(
            opened,
            text,
            states=list(states) or None,
            memory=in_bytes(memory),
            keep_blocks=in_bytes(keep_blocks),
            scratch=os.path.dirname(os.path.realpath(output)),
            progress=progress,
            report=report,
            **options,
        )
    if group_by is not None:
        tree.attrs.update(encode_attributes({"group_by": group_by, "unions": members}))
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
    if tree.sizes["group"] > 1:
        _summarize_classes(tree)
    click.echo(f"Written to {output}; next: mnemoscope show {output}")


def _summarize_classes(tree: xr.DataTree) -> None:
    from mnemoscope.analyzer.classes import class_tables

    table = class_tables(tree)[-1]
    clear = [row.group for row in table.rows if row.sigma1_clear and row.group != "all"]
    unclear = [row.group for row in table.rows if not row.sigma1_clear and row.group != "all"]
    said = f"{len(clear) + len(unclear)} classes; by {table.state} at delay 0"
    if not clear:
        said = f"{len(unclear)} classes, none of them clear of noise by {table.state} at delay 0."
    elif len(clear) > 2 * _NAMED:
        said += f", most: {', '.join(clear[:_NAMED])}; least: {', '.join(clear[-_NAMED:])}."
    else:
        said += f", from most to least: {', '.join(clear)}."
    click.echo(said)
    if unclear:
        more = f" and {len(unclear) - 2 * _NAMED} more" if len(unclear) > 2 * _NAMED else ""
        click.echo(
            f"Too few positions to rise above noise: {', '.join(unclear[: 2 * _NAMED])}{more}."
        )


def _reach(first: int | None) -> str:
    if first is None:
        return "at every delay"
    return f"up to delay {first - 1}" if first else "at no delay"
