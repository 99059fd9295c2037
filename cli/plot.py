"""`mnemoscope plot`: the memory curves as a figure."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
from mnemoscope.analyzer.errors import MnemoscopeError

from ._lazy import example
from ._output import check_output, output_option
from .show import normalization_option, sort_option, state_option

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mnemoscope.analyzer.classes import Order
    from xarray import DataTree


_MOST_CLASSES = 80
_MOST_CURVES = 49  # so many can be told apart


@click.command(
    epilog=example(
        "mnemoscope plot result.nc -o figure.png",
        "mnemoscope plot trained.nc random.nc --label trained --label random -o figure.pdf",
        "mnemoscope plot classes.nc --kind classes -o classes.png",
        "mnemoscope plot classes.nc --state lstm0.c --group nouns --group verbs -o curves.png",
    )
)
@click.argument("results", nargs=-1, required=True)
@output_option("figure (.png, .svg or .pdf)")
@click.option(
    "--kind",
    type=click.Choice(["curves", "classes"]),
    help="Memory against the delay, or the classes of words side by side.  [default: curves]",
)
@state_option
@normalization_option
@click.option(
    "--group",
    "groups",
    multiple=True,
    help="Class of input words; may be repeated.  [curves: the first; classes: all]",
)
@sort_option
@click.option(
    "--label", "labels", multiple=True, help="Name of a result, in their order.  [file name]"
)
@click.option("--title", help="Above the figure.")
def plot(
    results: tuple[str, ...],
    output: str,
    kind: str | None,
    states: tuple[str, ...],
    normalization: str | None,
    groups: tuple[str, ...],
    order: Order | None,
    labels: tuple[str, ...],
    title: str | None,
) -> None:
    """Draw what RESULTS remember.

    Curves, two panels against the delay: the largest singular value, with its error band and noise
    floor, and the selectivity. Classes, two panels with a line for each class of input words: the
    largest singular value at delay 0, and the sum of all at the largest delay.
    """
    check_output(output, inputs=results, suffixes=(".png", ".svg", ".pdf"))
    if labels and len(labels) != len(results):
        raise MnemoscopeError(
            f"{len(results)} result(s) need as many --label options, found {len(labels)}. "
            "Give one for each result, or none."
        )
    if order is not None and kind != "classes":
        raise click.UsageError("--sort sorts classes; add --kind classes.")
    from mnemoscope.analyzer import open_result
    from mnemoscope.analyzer._files import replacing

    named = list(zip(labels or _names(results), map(open_result, results), strict=True))
    groups = tuple(dict.fromkeys(groups))
    if kind == "classes":
        figure = _classes(named, states, normalization, groups, order, title)
    else:
        figure = _curves(named, states, normalization, groups, title)
    with replacing(output) as temporary:
        figure.savefig(temporary, dpi=150)
    click.echo(f"Written to {output}.")


def _curves(
    named: list[tuple[str, DataTree]],
    states: tuple[str, ...],
    normalization: str | None,
    groups: tuple[str, ...],
    title: str | None,
) -> Figure:
    from mnemoscope.analyzer.plots import memory_figure
    from mnemoscope.analyzer.tables import curves

    several = len(named) > 1
    drawn = []
    for label, tree in named:
        for group in groups or [None]:
            found = curves(tree, states=states, normalization=normalization, group=group)
            for curve in found:
                parts = [label] if several else []
                parts += [curve.state] if len(found) > 1 or not several else []
                parts += [curve.group] if len(groups) > 1 else []
                drawn.append((" · ".join(parts), curve))
    if len(drawn) > _MOST_CURVES:
        raise MnemoscopeError(
            f"{len(drawn)} curves in one figure cannot be told apart; {_MOST_CURVES} can. Choose "
            "with --state and --group."
        )
    return memory_figure(drawn, title=title)


def _classes(
    named: list[tuple[str, DataTree]],
    states: tuple[str, ...],
    normalization: str | None,
    groups: tuple[str, ...],
    order: Order | None,
    title: str | None,
) -> Figure:
    from mnemoscope.analyzer.classes import class_tables
    from mnemoscope.analyzer.plots import classes_figure

    for label, tree in named:
        number = len(groups) or tree.sizes["group"]
        if number > _MOST_CLASSES:
            raise MnemoscopeError(
                f"{label} has {number} classes, and a figure shows {_MOST_CLASSES} at most. Choose "
                "with --group, or print all of them with mnemoscope show."
            )
    return classes_figure(
        [
            (label, table)
            for label, tree in named
            for table in class_tables(
                tree, states=states, normalization=normalization, groups=groups, order=order
            )
        ],
        title=title,
    )


def _names(results: tuple[str, ...]) -> list[str]:
    """Name results by their files, and by their paths where files share a name."""
    stems = [os.path.splitext(os.path.basename(r))[0] for r in results]
    return stems if len(set(stems)) == len(stems) else list(results)
