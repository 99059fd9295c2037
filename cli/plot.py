"""`mnemoscope plot`: the memory curves as a figure."""

from __future__ import annotations

import os

import click
from mnemoscope.analyzer.errors import MnemoscopeError

from ._lazy import example
from ._output import check_output, output_option
from .show import group_option, normalization_option, state_option


@click.command(
    epilog=example(
        "mnemoscope plot result.nc -o figure.png",
        "mnemoscope plot trained.nc random.nc --label trained --label random -o figure.pdf",
    )
)
@click.argument("results", nargs=-1, required=True)
@output_option("figure (.png, .svg or .pdf)")
@state_option
@normalization_option
@group_option
@click.option(
    "--label", "labels", multiple=True, help="Name of a result, in their order.  [file name]"
)
@click.option("--title", help="Above the figure.")
def plot(
    results: tuple[str, ...],
    output: str,
    states: tuple[str, ...],
    normalization: str | None,
    group: str | None,
    labels: tuple[str, ...],
    title: str | None,
) -> None:
    """Draw the memory curves of RESULTS.

    Two panels against the delay: the largest singular value, with its error band and noise
    floor, and the selectivity.
    """
    check_output(output, inputs=results, suffixes=(".png", ".svg", ".pdf"))
    if labels and len(labels) != len(results):
        raise MnemoscopeError(
            f"{len(results)} result(s) need as many --label options, found {len(labels)}. "
            "Give one for each result, or none."
        )
    from mnemoscope.analyzer import open_result
    from mnemoscope.analyzer._files import replacing
    from mnemoscope.analyzer.plots import memory_figure
    from mnemoscope.analyzer.tables import curves

    named = []
    for path, label in zip(results, labels or _names(results), strict=True):
        found = curves(open_result(path), states=states, normalization=normalization, group=group)
        for curve in found:
            alone = len(found) == 1 and len(results) > 1
            both = label if alone else f"{label} · {curve.state}"
            named.append((both if len(results) > 1 else curve.state, curve))
    figure = memory_figure(named, title=title)
    with replacing(output) as temporary:
        figure.savefig(temporary, dpi=150)
    click.echo(f"Written to {output}.")


def _names(results: tuple[str, ...]) -> list[str]:
    """Name results by their files, and by their paths where files share a name."""
    stems = [os.path.splitext(os.path.basename(r))[0] for r in results]
    return stems if len(set(stems)) == len(stems) else list(results)
