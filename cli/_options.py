"""Options that more than one command takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click


class Finite(click.FloatRange):
    """A number above 0 that is not infinite; a plain range lets NaN pass."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Turn text into the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


def analysis_options(*, delays: str = "50", positions: str = "all") -> Callable[..., Any]:
    """Give a command the options of an analysis; none of them has a default but None.

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
            "--state", "states", multiple=True, help="State to follow; may be repeated.  [all]"
        ),
        click.option(
            "--method",
            type=click.Choice(["jvp", "fd"]),
            help="Exact derivatives, or differences of one step for any model that runs.  "
            "[default: jvp]",
        ),
        click.option(
            "--precision", type=click.Choice(["float32", "float64"]), help="[default: float32]"
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
            "--level",
            type=click.Choice(["word", "char"]),
            help="What a token is.  [the model's]",
        ),
        click.option(
            "--memory", type=Finite(), metavar="GB", help="Most memory to use.  [from what is free]"
        ),
        click.option("--tf32", is_flag=True, default=None, help="Allow TF32 products on CUDA."),
        click.option(
            "--threads", type=click.IntRange(min=1), help="Processor threads.  [all cores]"
        ),
    )

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate
