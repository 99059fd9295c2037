"""`mnemoscope show`: the memory curve as a table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from ._lazy import example
from ._output import Report, one_line, reports

if TYPE_CHECKING:
    import xarray as xr
    from mnemoscope.analyzer.tables import Curve
    from rich.console import Console

_SHOWN = ("model", "corpus", "positions", "method", "precision", "provider", "seed")
"""Attributes of a result that say how it was made, in the order of the table's first line."""

state_option = click.option(
    "--state", "states", multiple=True, help="State to show; may be repeated.  [all]"
)
normalization_option = click.option(
    "--normalization",
    type=click.Choice(["whitened", "none"]),
    help="Whether every direction of the embedding space gets unit variance.  [default: whitened]",
)
group_option = click.option("--group", help="Class of input words.  [the first]")


_FOOTNOTES = {
    "*": "σ₁ does not exceed its noise floor: an average over this many positions shows as much "
    "with no consistent direction at all.",
    "?": "there are too few positions for a noise floor or a standard error.",
    "~": "σ₁ exceeds its noise floor by less than two standard errors: no evidence either.",
}


@click.command(
    epilog=example(
        "mnemoscope show result.nc",
        "mnemoscope show result.nc --state lstm0.c --csv > curve.csv",
    )
)
@click.argument("result")
@state_option
@normalization_option
@group_option
@reports("json", "csv")
def show(
    result: str, states: tuple[str, ...], normalization: str | None, group: str | None
) -> Report:
    """Print the memory curve of RESULT as a table.

    Columns: the largest singular value σ₁ of the mean gradient with its standard error, what it
    would be by chance (the noise floor), how selective the memory is (the share of the largest
    and of the five largest singular values in the sum of all), and how many derivatives were
    averaged.
    """
    from mnemoscope.analyzer import open_result
    from mnemoscope.analyzer.tables import curves

    tree = open_result(result)
    found = curves(tree, states=states, normalization=normalization, group=group)
    whitening = _whitening(tree)
    data = {
        "result": result,
        "attributes": {k: getattr(v, "item", lambda v=v: v)() for k, v in tree.attrs.items()},
        "whitening": whitening,
        "curves": [
            {
                "state": c.state,
                "group": c.group,
                "normalization": c.normalization,
                "first_delay_below_noise": c.first_below,
                "first_delay_not_clear": c.first_unclear,
                "rows": c.rows(),
            }
            for c in found
        ],
    }
    rows = [
        {"state": c.state, "group": c.group, "normalization": c.normalization, **row}
        for c in found
        for row in c.rows()
    ]

    def render(console: Console) -> None:
        made = [f"{k} {tree.attrs[k]}" for k in _SHOWN if k in tree.attrs]
        if made:
            console.print(one_line(", ".join(made)) + "\n", soft_wrap=True)
        for curve in found:
            _print_curve(console, curve)
        marks = {_mark(row) for row in rows}
        for mark, meaning in _FOOTNOTES.items():
            if mark in marks:
                console.print(f"{mark} {meaning}", soft_wrap=True)
        _print_whitening(console, whitening, found[0].normalization)

    return Report(data, render, rows)


def _whitening(tree: xr.DataTree) -> dict[str, Any]:
    d = tree["embedding_whitening"]
    return {
        "rank": int(d.attrs["rank"]),
        "embedding_size": d.sizes["embedding"],
        "condition_number": float(d.attrs["condition_number"]),
    }


def _print_curve(console: Console, curve: Curve) -> None:
    from rich.table import Table
    from rich.text import Text

    what = "whitened" if curve.normalization == "whitened" else "not whitened"
    console.print(f"{curve.state} · inputs: {curve.group} · {what}", style="bold")
    table = Table()
    for heading in (
        "delay",
        "σ₁ ± standard error",
        "",
        "noise floor",
        "σ₁/Σσ",
        "σ₁..₅/Σσ",
        "count",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in curve.rows():
        mark = _mark(row)
        table.add_row(
            f"{row['delay']}",
            f"{row['sigma1']:.3e} ± {row['sigma1_stderr']:.0e}",
            mark,
            f"{row['noise_floor']:.1e}",
            f"{row['share1']:.3f}",
            f"{row['share5']:.3f}",
            f"{row['count']:,}",
            style="dim" if mark else None,
        )
    console.print(table)
    if curve.first_unclear is None:
        said = f"{curve.state}: clear of its noise floor at every delay."
    else:
        said = f"{curve.state}: first not clear of its noise floor at delay {curve.first_unclear}."
    console.print(Text(said + "\n"), soft_wrap=True)


def _mark(row: dict[str, Any]) -> str:
    if not (math.isfinite(row["noise_floor"]) and math.isfinite(row["sigma1_stderr"])):
        return "?"
    if row["below_noise"]:
        return "*"
    return "" if row["clear_of_noise"] else "~"


def _print_whitening(console: Console, whitening: dict[str, Any], normalization: str) -> None:
    if normalization != "whitened":
        return
    rank, size = whitening["rank"], whitening["embedding_size"]
    said = f"Whitening: condition number {whitening['condition_number']:.3g}, rank {rank}"
    if rank < size:
        said += (
            f" of {size}: the embeddings do not vary in {size - rank} direction(s), which count "
            "for nothing here"
        )
    console.print(said + ".", soft_wrap=True)
