"""`mnemoscope sweep`: many models over one corpus."""

from __future__ import annotations

import glob
import math
import os
from typing import TYPE_CHECKING, Any

import click
from mnemoscope.analyzer.errors import MnemoscopeError

from ._analysis import analysis_options, check_step, cluster_options, in_bytes, progress_of
from ._lazy import example
from ._output import Report, one_line, reports

if TYPE_CHECKING:
    from mnemoscope.analyzer.sweep import Entry, Memory
    from rich.console import Console

_USUAL = (0, 5, 20)
"""Delays in the table and the figure, beside the largest."""
_SAID = 5  # models that failed, in the message


@click.command(
    epilog=example(
        "mnemoscope sweep 'checkpoints/*.onnx' corpus.txt -o sweep --positions 5000",
        "mnemoscope sweep 'runs/*/step-*.onnx' corpus.txt -o sweep --workers 8 --state lstm0.c",
        "mnemoscope sweep seed*-int8.onnx corpus.txt -o sweep --step-pattern 'seed(\\d+)'",
    )
)
@click.argument("models", nargs=-1, required=True)
@click.argument("corpus")
@click.option("-o", "--output", required=True, metavar="FOLDER", help="Write the results here.")
@click.option("--state", "states", multiple=True, help="State to follow; may be repeated.  [all]")
@click.option(
    "--at",
    "delays_shown",
    type=click.IntRange(min=0),
    multiple=True,
    help="Delay in the table and the figure; may be repeated.  [0, 5, 20 and the largest]",
)
@click.option(
    "--step-pattern",
    metavar="REGEX",
    help="What its first group finds in a model's name is the training step.  [the last number]",
)
@reports("json", "csv")
@cluster_options
@analysis_options()
def sweep(
    models: tuple[str, ...],
    corpus: str,
    output: str,
    states: tuple[str, ...],
    delays_shown: tuple[int, ...],
    step_pattern: str | None,
    scheduler: str | None,
    workers: int | None,
    level: Any,
    memory: float | None,
    quiet: bool,
    **options: Any,
) -> Report:
    """Measure many models over one corpus.

    MODELS are checkpoints of a training, seeds or quantisations; a pattern such as
    'checkpoints/*.onnx' is expanded. Each model's result goes to FOLDER/NAME.nc; those that are
    there already, of the same model, corpus and options, are kept, so that a sweep can be stopped
    and gone on with. FOLDER/sweep.png draws memory against the training step. A model that cannot
    be analysed does not stop the others; it is named at the end, with exit status 2.

    With --workers or --scheduler each worker takes a model at a time.
    """
    check_step(options["step"], options["method"])
    largest = 50 if options["delays"] is None else options["delays"]
    if max(delays_shown, default=0) > largest:
        raise click.UsageError(f"--at {max(delays_shown)}: the largest delay is {largest}.")
    files = _files(models)
    try:
        os.makedirs(output, exist_ok=True)
    except OSError as error:
        raise MnemoscopeError(
            f"The folder {output} cannot be made: {error.strerror}. Name another."
        ) from error
    from mnemoscope.analyzer._files import replacing
    from mnemoscope.analyzer.sweep import Sweep, entries_of, memories

    entries = entries_of(files, output, step_pattern)
    with progress_of(quiet, "models") as (progress, _):
        work = Sweep(corpus, level, {**options, "states": list(states) or None,
                     "memory": in_bytes(memory)}, scheduler, workers)  # fmt: skip
        work.run(entries, progress)
    problem = _problem(entries)
    found = memories(entries)
    if not found:
        raise MnemoscopeError(problem or "There is no model.")
    shown = sorted(set(delays_shown)) or sorted({d for d in _USUAL if d < largest} | {largest})
    from mnemoscope.analyzer._sweep_plot import sweep_figure

    figure = os.path.join(output, "sweep.png")
    with replacing(figure) as temporary:
        sweep_figure(found, shown).savefig(temporary, dpi=150)
    return _report(entries, found, shown, figure, problem)


def _files(models: tuple[str, ...]) -> list[str]:
    """The files that the arguments name; a pattern that a shell left alone is expanded."""
    found: list[str] = []
    for model in models:
        if os.path.exists(model) or not glob.has_magic(model):
            found.append(model)
            continue
        matching = sorted(glob.glob(model, recursive=True))
        if not matching:
            raise MnemoscopeError(f"No file is called like {model}.")
        found += matching
    return found


def _problem(entries: list[Entry]) -> str | None:
    """Which models failed, and why."""
    failed = [e for e in entries if e.error is not None]
    if not failed:
        return None
    said = " ".join(f"{e.model}: {e.error}" for e in failed[:_SAID])
    more = f" And {len(failed) - _SAID} more." if len(failed) > _SAID else ""
    return f"{len(failed)} of {len(entries)} models could not be analysed. {said}{more}"


def _report(
    entries: list[Entry],
    found: dict[str, list[Memory]],
    delays: list[int],
    figure: str,
    problem: str | None,
) -> Report:
    rows = [row for state in found.values() for m in state for row in _rows(m, delays)]
    data = {
        "figure": figure,
        "models": [
            {"model": e.model, "name": e.name, "step": e.step, "error": e.error,
             "result": None if e.error else e.result, "analysed_now": e.fresh}
            for e in entries
        ],
        "rows": rows,
    }  # fmt: skip

    def render(console: Console) -> None:
        for state, of_state in found.items():
            _print(console, state, of_state, delays)
        kept = sum(e.error is None and not e.fresh for e in entries)
        if kept:
            console.print(f"{kept} of {len(entries)} results were there already.")
        console.print(f"Drawn in {figure}.", soft_wrap=True)

    return Report(data, render, rows, problem=problem)


def _rows(m: Memory, delays: list[int]) -> list[dict[str, Any]]:
    from mnemoscope.analyzer._sweep_plot import horizon_range

    least, most = horizon_range(m)
    by_delay = m.curve.rows()
    return [
        {
            "model": m.entry.name,
            "step": m.entry.step,
            "state": m.curve.state,
            **{k: by_delay[d][k] for k in
               ("delay", "sigma1", "sigma1_stderr", "noise_floor", "clear_of_noise")},
            "horizon": m.horizon.measured,
            "horizon_least": None if least < 0 else least,
            "horizon_most": None if most < 0 else most,
        }
        for d in delays
    ]  # fmt: skip


def _print(console: Console, state: str, found: list[Memory], delays: list[int]) -> None:
    from mnemoscope.analyzer.sweep import FRACTION
    from rich.table import Table

    console.print(f"{state} · whitened σ₁ ± standard error", style="bold")
    table = Table()
    table.add_column("model", no_wrap=True)
    for heading in ("step", *(f"delay {d}" for d in delays), "horizon"):
        table.add_column(heading, justify="right", no_wrap=True)
    for m in found:
        rows = _rows(m, delays)
        cells = [
            f"{r['sigma1']:.3e} ± {r['sigma1_stderr']:.0e}{'' if r['clear_of_noise'] else ' ~'}"
            for r in rows
        ]
        table.add_row(
            one_line(m.entry.name),
            "" if m.entry.step is None else f"{m.entry.step:,}",
            *cells,
            _horizon(rows[0]),
        )
    console.print(table)
    console.print(
        f"horizon: last delay with σ₁ at least {FRACTION:.0%} of that at delay 0, and what it may "
        "be; ~ not clear of the noise floor.\n",
        soft_wrap=True,
    )


def _horizon(row: dict[str, Any]) -> str:
    value, least, most = (row[k] for k in ("horizon", "horizon_least", "horizon_most"))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "none"
    return f"{value}" if least == most == value else f"{value} ({least or 0} to {most or value})"
