"""What the commands about types and their classes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ._output import console

if TYPE_CHECKING:
    import xarray as xr
    from mnemoscope.analyzer.lexicon import Lexicon
    from mnemoscope.analyzer.separability import Separability
    from rich.console import Console

model_option = click.option(
    "--model",
    metavar="FILE",
    help="The model that was analysed, for a result that does not hold its embeddings.",
)
members_option = click.option(
    "--members",
    type=click.Choice(["main", "every"]),
    default="main",
    help="Which types a class has: those that are this more often than anything else, or every "
    "type that occurs as this.  [default: main]",
)
skip_option = click.option(
    "--skip-unknown", is_flag=True, help="Leave out words that the vocabulary lacks."
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    help="Of all that is drawn at random.  [default: 0]",
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print no notes and no progress.")


def read_types(tree: xr.DataTree, model: str | None) -> Lexicon:
    """Read the types of a result, from a model file where one is named."""
    from mnemoscope.analyzer import open_model
    from mnemoscope.analyzer.lexicon import read_lexicon

    return read_lexicon(tree, open_model(model) if model else None)


def left_out(name: str, error: Exception) -> str:
    """Say that something is left out, and why; some errors begin with its name already."""
    said = str(error)
    return f"Left out: {said if said.startswith(f'{name}:') else f'{name}: {said}'}"


@contextmanager
def bar_of(what: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Give what long work tells its progress to: a bar on a terminal, None elsewhere."""
    out = console(stderr=True)
    if quiet or not out.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_separability(out: Console, found: list[Separability]) -> None:
    """Print accuracies on held-out types next to what chance gives."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("classes", overflow="fold")
    headings = ("types", "held out", "validation", "accuracy ± standard error", "majority",
                "shuffled labels", "separable")  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="right")
    for one in found:
        table.add_row(
            f"{one.name} ({len(one.sizes)})",
            f"{one.types:,}",
            f"{one.tested:,}",
            f"{one.validation:.3f}",
            f"{one.accuracy:.3f} ± {one.stderr:.3f}",
            f"{one.majority:.3f}",
            f"{one.shuffled:.3f} ± {one.shuffled_spread:.3f}",
            "yes" if one.separable else "no",
            style=None if one.separable else "yellow",
        )
    out.print(table)
