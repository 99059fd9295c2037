"""`mnemoscope words`: what is remembered of each word type."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Literal

import click
from mnemoscope.analyzer.errors import MnemoscopeError

from ._analysis import analysis_options, check_step, in_bytes, progress_of
from ._keeping import checkpoint_options, keeping
from ._lazy import example
from ._output import Report, check_output, noise_mark, one_line, print_footnotes, reports
from .show import normalization_option

if TYPE_CHECKING:
    import xarray as xr
    from mnemoscope.analyzer import MemoryModel
    from mnemoscope.analyzer.words import WordTable
    from rich.console import Console

_UNEQUAL = (
    "Beware: the types were followed differently often, and by noise alone rare types then have a "
    "larger σ₁ that seems to decay more slowly. --min-count N --max-count N follows all equally."
)
_FOOTNOTES = {
    "*": "σ₁ is not above its noise floor: it means nothing.",
    "~": "σ₁ is above its noise floor by less than half of it, as chance alone often is.",
    "?": "there are too few occurrences for a noise floor: σ₁ means nothing.",
}
_SORTS = ("sigma1", "sum", "decay", "occurrences", "frequency")


@click.command(
    epilog=example(
        "mnemoscope words model.onnx corpus.txt -o words.nc --min-count 3 --frequencies train.txt",
        "mnemoscope words words.nc --sort decay --top 20",
        "mnemoscope words words.nc --figure frequency.png",
        "mnemoscope words words.nc --figure curves.png --word the --word congressional",
    )
)
@click.argument("what", nargs=-1, required=True, metavar="MODEL CORPUS | WORDS.nc")
@click.option("-o", "--output", metavar="FILE", help="Write the measures of all types here.")
@click.option("--min-count", type=click.IntRange(min=1), help="Leave out rarer types.  [1]")
@click.option(
    "--max-count",
    type=click.IntRange(min=1),
    help="Follow at most so many occurrences of a type, drawn at random.  [all]",
)
@click.option(
    "--frequencies", metavar="TEXT", help="Count the types in this training text.  [the corpus]"
)
@click.option("--word", "words", multiple=True, help="Only this type; may be repeated.  [all]")
@click.option("--state", "states", multiple=True, help="State to follow; may be repeated.  [all]")
@click.option(
    "--sort",
    type=click.Choice(_SORTS),
    default="sigma1",
    show_default=True,
    help="What the table is sorted by.",
)
@click.option("--delay", type=click.IntRange(min=0), default=0, help="Delay of σ₁ and Σσ.  [0]")
@click.option("--top", type=click.IntRange(min=1), default=10, help="Types at each end.  [10]")
@click.option(
    "--figure",
    metavar="FILE",
    help="Draw frequency against memory, or the curves of each --word (.png, .svg or .pdf).",
)
@normalization_option
@reports("json", "csv")
@checkpoint_options
@analysis_options(positions="not for words: use --max-count")
def words(
    what: tuple[str, ...],
    output: str | None,
    min_count: int | None,
    max_count: int | None,
    frequencies: str | None,
    words: tuple[str, ...],
    states: tuple[str, ...],
    sort: str,
    delay: int,
    top: int,
    figure: str | None,
    normalization: str | None,
    **options: Any,
) -> Report:
    """Measure what is remembered of each word type.

    With MODEL and CORPUS: follow each type's occurrences, fit σ₁ = a·exp(−bτ) where it is clear
    of its noise floor, and write WORDS.nc. With WORDS.nc: the types that are remembered most
    and least, how memory goes with frequency, and figures.
    """
    if figure is not None:
        check_output(figure, inputs=what, suffixes=(".png", ".svg", ".pdf"))
        if output is not None and os.path.realpath(output) == os.path.realpath(figure):
            raise MnemoscopeError(f"{output} cannot be both the output and the figure; name two.")
    if len(what) == 2:
        if output is None:
            raise click.UsageError("Give -o FILE, where the measures of all types go.")
        tree = _measure(*what, output, figure, min_count, max_count, frequencies, words, states,
                        delay, options)  # fmt: skip
    elif len(what) == 1:
        given = {"-o": output, "--min-count": min_count, "--max-count": max_count,
                 "--frequencies": frequencies,
                 **{f"--{k}": v for k, v in options.items() if k != "quiet"}}  # fmt: skip
        if options["calibrate"] is False:
            given["--no-calibrate"] = True
        extra = [k.replace("_", "-") for k, v in given.items() if v is not None and v is not False]
        if extra:
            raise click.UsageError(
                f"{', '.join(extra)}: only where MODEL and CORPUS are given; {what[0]} alone is "
                "read as a file of words."
            )
        from mnemoscope.analyzer.words import open_words

        tree = open_words(what[0])
    else:
        raise click.UsageError("Give MODEL and CORPUS, or one file of words.")
    return _report(tree, states, normalization, words, sort, delay, top, figure)


def _measure(
    model: str,
    corpus: str,
    output: str,
    figure: str | None,
    min_count: int | None,
    max_count: int | None,
    frequencies: str | None,
    words: tuple[str, ...],
    states: tuple[str, ...],
    delay: int,
    options: dict[str, Any],
) -> xr.DataTree:
    level: Literal["word", "char"] | None = options.pop("level")
    memory, quiet = options.pop("memory"), options.pop("quiet")
    for name in ("positions", "blocks"):
        if options.pop(name) is not None:
            raise click.UsageError(f"--{name} is not for words; use --max-count.")
    check_step(options["step"], options["method"])
    check_output(output, inputs=[model, corpus, *filter(None, [frequencies, figure])])
    from mnemoscope.analyzer import open_model, read_corpus, save_result
    from mnemoscope.analyzer.words import analyze_words, count_types

    every, resume = options.pop("checkpoint_every"), options.pop("resume")
    start = time.perf_counter()
    with keeping(output, every, resume, quiet) as checkpoint:
        opened = open_model(model)
        _check_early(opened, options["delays"], delay, figure, states)
        text = read_corpus(corpus, opened.vocabulary, level=level)
        training = None
        if frequencies is not None:
            training = count_types(read_corpus(frequencies, opened.vocabulary, level=level), opened)
        seed = options.pop("seed")
        with progress_of(quiet) as (progress, report):
            tree = analyze_words(
                opened,
                text,
                min_count=min_count or 1,
                max_count=max_count,
                words=list(words) or None,
                frequencies=training,
                seed=seed or 0,
                states=list(states) or None,
                memory=in_bytes(memory),
                checkpoint=checkpoint,
                progress=progress,
                report=report,
                **options,
            )
        save_result(tree, output)
        checkpoint.remove()
    if not quiet:
        seconds = time.perf_counter() - start
        click.echo(
            f"{tree.sizes['word']:,} types in {seconds:,.1f} s; written to {output}.", err=True
        )
    return tree


def _check_early(
    model: MemoryModel, delays: int | None, delay: int, figure: str | None, states: tuple[str, ...]
) -> None:
    """Refuse before the measurement what could not be shown after it."""
    most = 50 if delays is None else delays
    if delay > most:
        raise MnemoscopeError(f"There is no delay {delay} to show: the largest is {most}.")
    names = [s.name for s in model.roles.states if not states or s.name in states]
    if figure is not None and len(names) > 1:
        raise MnemoscopeError(_one_state(names))


def _one_state(names: list[str]) -> str:
    return f"A figure shows one state; choose with --state: {', '.join(names)}."


def _report(
    tree: xr.DataTree,
    states: tuple[str, ...],
    normalization: str | None,
    words: tuple[str, ...],
    sort: str,
    delay: int,
    top: int,
    figure: str | None,
) -> Report:
    from mnemoscope.analyzer.words import word_tables

    tables = word_tables(tree, states=states, normalization=normalization)
    if delay >= len(tables[0].delay):
        raise MnemoscopeError(
            f"There is no delay {delay} in this file; its largest is {tables[0].delay[-1]}."
        )
    chosen = _numbers(tables[0], words)
    if figure is not None:
        _draw(tables, chosen, delay, figure)
    rows = [row for table in tables for row in _rows(table, chosen, sort, delay)]
    data = {
        "attributes": {k: getattr(v, "item", lambda v=v: v)() for k, v in tree.attrs.items()},
        "correlations": [c for table in tables for c in _correlations(table, delay)],
        "words": rows,
    }

    def render(console: Console) -> None:
        for table in tables:
            _print_table(console, table, chosen, sort, delay, top)
            for found in _correlations(table, delay):
                console.print(found["said"], soft_wrap=True)
            if table.unequal:
                console.print(_UNEQUAL, soft_wrap=True)
            console.print()
        if figure is not None:
            console.print(f"Figure written to {figure}.")

    return Report(data, render, rows)


def _numbers(table: WordTable, words: tuple[str, ...]) -> list[int]:
    index = {str(w): i for i, w in enumerate(table.word)}
    missing = [w for w in words if w not in index]
    if missing:
        raise MnemoscopeError(
            f"No measures of {', '.join(map(repr, missing))} are there. Types are written as in "
            "the model's vocabulary; rare ones may have been left out by --min-count."
        )
    return [index[w] for w in words]


def _order(table: WordTable, chosen: list[int], sort: str, delay: int) -> list[int]:
    order = table.order(sort, delay).tolist()
    return [i for i in order if i in set(chosen)] if chosen else order


def _row(table: WordTable, i: int, delay: int) -> dict[str, Any]:
    return {
        "state": table.state,
        "normalization": table.normalization,
        "word": str(table.word[i]),
        "occurrences": int(table.occurrences[i]),
        "frequency": int(table.frequency[i]),
        "delay": int(table.delay[delay]),
        "sigma1": float(table.sigma1[i, delay]),
        "noise_floor": float(table.noise_floor[i, delay]),
        "above_noise": bool(table.above(delay)[i]),
        "clear_of_noise": bool(table.clear[i, delay]),
        "singular_value_sum": float(table.singular_value_sum[i, delay]),
        "decay_a": float(table.a[i]),
        "decay_b": float(table.b[i]),
        "decay_b_stderr": float(table.b_stderr[i]),
        "decay_r_squared": float(table.r_squared[i]),
        "decay_points": int(table.points[i]),
    }


def _rows(table: WordTable, chosen: list[int], sort: str, delay: int) -> list[dict[str, Any]]:
    return [_row(table, i, delay) for i in _order(table, chosen, sort, delay)]


def _print_table(
    console: Console, table: WordTable, chosen: list[int], sort: str, delay: int, top: int
) -> None:
    from rich.table import Table
    from rich.text import Text

    order = _order(table, chosen, sort, delay)
    what = "whitened" if table.normalization == "whitened" else "not whitened"
    console.print(
        Text(
            f"{table.state} · {len(table.word):,} types · {what} · sorted by {sort}", style="bold"
        ),
        soft_wrap=True,
    )
    printed = Table()
    printed.add_column("type", no_wrap=True)
    for heading in ("followed", "frequency", f"σ₁ at {delay}", "noise floor", "", "b ± error", "R²",
                    "delays"):  # fmt: skip
        printed.add_column(heading, justify="right", no_wrap=True)
    shown = order if len(order) <= 2 * top else [*order[:top], None, *order[-top:]]
    marks = set()
    for i in shown:
        if i is None:
            printed.add_row("…")
            continue
        row = _row(table, i, delay)
        # There is no standard error: a margin above the floor tells instead.
        mark = noise_mark(row["sigma1"], row["noise_floor"], 0.0, row["clear_of_noise"])
        marks.add(mark)
        fitted = row["decay_b"] == row["decay_b"]
        printed.add_row(
            Text(one_line(row["word"])),
            f"{row['occurrences']:,}",
            f"{row['frequency']:,}",
            f"{row['sigma1']:.3g}",
            f"{row['noise_floor']:.2g}",
            mark,
            f"{row['decay_b']:.3f} ± {row['decay_b_stderr']:.3f}" if fitted else "–",
            f"{row['decay_r_squared']:.3f}" if fitted else "–",
            f"{row['decay_points']}",
        )
    console.print(printed)
    print_footnotes(console, _FOOTNOTES, marks)


def _correlations(table: WordTable, delay: int) -> list[dict[str, Any]]:
    import numpy as np
    from mnemoscope.analyzer.words import frequency_correlation

    clear = np.where(table.clear[:, delay], table.sigma1[:, delay], np.nan)
    found = []
    for name, what, values in (("sigma1", f"σ₁ at delay {delay}", clear), ("decay", "b", table.b)):
        c = frequency_correlation(table.frequency, values)
        said = f"Rank correlation of frequency and {what}: "
        said += (
            f"{c.rho:+.3f} ± {c.stderr:.3f} ({c.types:,} types clear of noise)."
            if c.rho == c.rho
            else f"not known ({c.types} types clear of noise)."
        )
        found.append({"state": table.state, "measure": name, "rho": c.rho, "stderr": c.stderr,
                      "types": c.types, "equally_often": not table.unequal,
                      "said": said})  # fmt: skip
    return found


def _draw(tables: list[WordTable], chosen: list[int], delay: int, path: str) -> None:
    from mnemoscope.analyzer._files import replacing
    from mnemoscope.analyzer._word_plot import curves_figure, frequency_figure

    if len(tables) > 1:
        raise MnemoscopeError(_one_state([t.state for t in tables]))
    figure = (
        curves_figure(tables[0], chosen) if chosen else frequency_figure(tables[0], delay=delay)
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
