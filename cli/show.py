"""`mnemoscope show`: the memory curve as a table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from ._lazy import example
from ._output import Report, noise_mark, one_line, print_footnotes, reports

if TYPE_CHECKING:
    import xarray as xr
    from mnemoscope.analyzer.classes import ClassTable, Order
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
sort_option = click.option(
    "--sort",
    "order",
    type=click.Choice(["sigma1", "sum", "count", "name", "result"]),
    help="What classes are sorted by.  [default: sigma1]",
)

_FOOTNOTES = {
    "*": "σ₁ does not exceed its noise floor: an average over this many positions shows as much "
    "with no consistent direction at all.",
    "?": "there are too few positions for a noise floor or a standard error.",
    "~": "σ₁ exceeds its noise floor by less than two standard errors: no evidence either.",
}
_CLASS_FOOTNOTES = {
    "*": "not above its noise floor: an average over this many positions shows as much with no "
    "consistent direction at all.",
    "?": "too few positions for a noise floor or a standard error.",
    "~": "above its noise floor by less than two standard errors: too few positions to tell.",
    "o": "the file, of an earlier version, has no standard error and noise floor of Σσ; analyze "
    "again to have them.",
}


@click.command(
    epilog=example(
        "mnemoscope show result.nc",
        "mnemoscope show result.nc --state lstm0.c --csv > curve.csv",
        "mnemoscope show classes.nc --sort sum",
        "mnemoscope show classes.nc --group nouns",
    )
)
@click.argument("result")
@state_option
@normalization_option
@click.option(
    "--group", help="Class of input words whose curve to show.  [all classes side by side]"
)
@sort_option
@reports("json", "csv")
def show(
    result: str,
    states: tuple[str, ...],
    normalization: str | None,
    group: str | None,
    order: Order | None,
) -> Report:
    """Print a memory curve, or classes side by side.

    Columns of a curve: the largest singular value σ₁ of the mean gradient with its standard error,
    what it would be by chance (the noise floor), how selective the memory is (the share of the
    largest and of the five largest singular values in the sum of all), and how many derivatives
    were averaged.

    A result of several classes is shown as one line for each, with σ₁ at delay 0 and the sum of
    all singular values Σσ at the largest delay, each with its standard error and noise floor;
    --group shows the curve of one.
    """
    from mnemoscope.analyzer import open_result

    tree = open_result(result)
    data = {
        "result": result,
        "attributes": {k: getattr(v, "item", lambda v=v: v)() for k, v in tree.attrs.items()},
        "whitening": _whitening(tree),
    }
    if group is None and tree.sizes["group"] > 1:
        return _classes(tree, data, states, normalization, order)
    if order is not None:
        raise click.UsageError("--sort sorts classes; a curve is in the order of its delays.")
    return _curves(tree, data, states, normalization, group)


def _curves(
    tree: xr.DataTree,
    data: dict[str, Any],
    states: tuple[str, ...],
    normalization: str | None,
    group: str | None,
) -> Report:
    from mnemoscope.analyzer.tables import curves

    found = curves(tree, states=states, normalization=normalization, group=group)
    data["curves"] = [
        {
            "state": c.state,
            "group": c.group,
            "normalization": c.normalization,
            "first_delay_below_noise": c.first_below,
            "first_delay_not_clear": c.first_unclear,
            "rows": c.rows(),
        }
        for c in found
    ]
    rows = [
        {"state": c.state, "group": c.group, "normalization": c.normalization, **row}
        for c in found
        for row in c.rows()
    ]

    def render(console: Console) -> None:
        _print_made(console, tree)
        for curve in found:
            _print_curve(console, curve)
        print_footnotes(console, _FOOTNOTES, {curve_mark(row) for row in rows})
        _print_whitening(console, data["whitening"], found[0].normalization)

    return Report(data, render, rows)


def _classes(
    tree: xr.DataTree,
    data: dict[str, Any],
    states: tuple[str, ...],
    normalization: str | None,
    order: Order | None,
) -> Report:
    from mnemoscope.analyzer.classes import class_tables

    tables = class_tables(tree, states=states, normalization=normalization, order=order)
    data["classes"] = [
        {
            "state": t.state,
            "normalization": t.normalization,
            "last_delay": t.last,
            "rows": [row.row() for row in t.rows],
        }
        for t in tables
    ]
    rows = [
        {"state": t.state, "normalization": t.normalization, "last_delay": t.last, **row.row()}
        for t in tables
        for row in t.rows
    ]

    def render(console: Console) -> None:
        _print_made(console, tree)
        marks = {mark for table in tables for mark in _print_classes(console, table)}
        print_footnotes(console, _CLASS_FOOTNOTES, marks)
        console.print(
            "The curve of one class: mnemoscope show RESULT --group NAME.", soft_wrap=True
        )
        _print_whitening(console, data["whitening"], tables[0].normalization)

    return Report(data, render, rows)


def _print_made(console: Console, tree: xr.DataTree) -> None:
    made = [f"{k} {tree.attrs[k]}" for k in _SHOWN if k in tree.attrs]
    if made:
        console.print(one_line(", ".join(made)) + "\n", soft_wrap=True)


def _print_classes(console: Console, table: ClassTable) -> set[str]:
    """Print a table; gives the marks in it."""
    from rich.table import Table
    from rich.text import Text

    what = "whitened" if table.normalization == "whitened" else "not whitened"
    console.print(f"{table.state} · classes of inputs · {what}", style="bold")
    out = Table()
    out.add_column("class")
    both = ("± standard error", "", "noise\nfloor")
    for heading in (
        "count",
        f"σ₁ at delay {table.first}\n{both[0]}",
        *both[1:],
        f"Σσ at delay {table.last}\n{both[0]}",
        *both[1:],
    ):
        out.add_column(heading, justify="right", no_wrap=True)
    marks = set()
    for row in table.rows:
        first = noise_mark(row.sigma1, row.sigma1_floor, row.sigma1_stderr, row.sigma1_clear)
        last = noise_mark(row.sum, row.sum_floor, row.sum_stderr, row.sum_clear)
        if last == "?" and math.isfinite(row.sum) and _is_old(table):
            last = "o"
        marks |= {first, last}
        out.add_row(
            Text(one_line(row.group)),
            f"{row.count:,}",
            f"{row.sigma1:.3e} ± {row.sigma1_stderr:.0e}",
            first,
            f"{row.sigma1_floor:.1e}",
            f"{row.sum:.3e} ± {row.sum_stderr:.0e}",
            last,
            f"{row.sum_floor:.1e}",
            style="dim" if first else None,
        )
    console.print(out)
    console.print()
    return marks


def _is_old(table: ClassTable) -> bool:
    return all(math.isnan(row.sum_floor) for row in table.rows)


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
        mark = curve_mark(row)
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


def curve_mark(row: dict[str, Any]) -> str:
    """The mark of a delay, by its σ₁."""
    return noise_mark(
        row["sigma1"], row["noise_floor"], row["sigma1_stderr"], row["clear_of_noise"]
    )


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
