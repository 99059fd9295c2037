"""`mnemoscope separability`: whether the embedding space tells classes of types apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from mnemoscope.analyzer.errors import PropertyError

from ._lazy import example
from ._output import Report, reports
from ._properties import (
    bar_of,
    left_out,
    members_option,
    model_option,
    print_separability,
    quiet_option,
    read_types,
    seed_option,
    skip_option,
)

if TYPE_CHECKING:
    from mnemoscope.analyzer.lexicon import Members
    from rich.console import Console


@click.command(
    epilog=example(
        "mnemoscope separability result.nc",
        "mnemoscope separability result.nc --sets my-classes.toml --csv > table.csv",
    )
)
@click.argument("result")
@click.option(
    "--sets",
    metavar="penn|upos|FILE",
    help="Classes to tell apart: shipped for Penn tags and universal parts of speech, or a TOML "
    "file (docs/properties.md).  [what the result's classes are]",
)
@members_option
@model_option
@skip_option
@seed_option
@quiet_option
@reports("json", "csv")
def separability(
    result: str,
    sets: str | None,
    members: Members,
    model: str | None,
    skip_unknown: bool,
    seed: int,
    quiet: bool,
) -> Report:
    """Tell classes of types apart by their embeddings.

    For every set of classes: the accuracy on held-out types, next to always naming the largest
    class and to the same procedure on permuted labels. This is table 3 of Verwimp et al. 2020.
    Sets that the corpus cannot fill are left out, and said.
    """
    from mnemoscope.analyzer import open_result
    from mnemoscope.analyzer import separability as probe
    from mnemoscope.analyzer import separability_sets as shipped

    tree = open_result(result)
    lexicon = read_types(tree, model)
    if sets is None:
        asked = shipped.recognise(lexicon)
    elif sets in shipped.SHIPPED:
        asked = shipped.SHIPPED[sets]
    else:
        asked = shipped.read_sets(sets, lexicon)
    found, missing = [], []
    with bar_of("Classifying", quiet) as progress:
        for i, one in enumerate(asked):
            if progress is not None:
                progress(i, len(asked))
            try:
                classes = shipped.classes_of(
                    one,
                    lexicon,
                    members=members,
                    skip_unknown=skip_unknown,
                )
                found.append(
                    probe.separability(
                        one.name,
                        classes,
                        lexicon.whitened,
                        whole=one.whole,
                        paired=one.suffix is not None,
                        seed=seed,
                    )
                )
            except PropertyError as error:
                missing.append((one.name, error))
    if not found:
        raise PropertyError(f"No set of classes can be told apart. {missing[0][1]}")
    if not quiet:
        for name, why in missing:
            click.echo(left_out(name, why), err=True)
    rows = [one.row() for one in found]
    data = {
        "result": result,
        "members": members,
        "seed": seed,
        "sets": [
            {
                **one.row(),
                "sizes": dict(one.sizes),
                "left_out": dict(one.left_out),
                "ambiguous": one.ambiguous,
                "available": one.available,
            }
            for one in found
        ],
        "left_out": [{"set": name, "why": str(why)} for name, why in missing],
    }

    def render(out: Console) -> None:
        print_separability(out, found)
        for one in found:
            if one.left_out:
                small = ", ".join(f"{k} {n}" for k, n in one.left_out.items())
                out.print(
                    f"{one.name}: classes with fewer than {probe.FEWEST} types left out: {small}.",
                    soft_wrap=True,
                )
        out.print(
            "Separable: the accuracy exceeds both baselines by more than two standard errors.",
            soft_wrap=True,
        )

    return Report(data, render, rows)
