"""The command: ``python -m samples.state_gradients``, from the root of the repository."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import click
from mnemoscope.analyzer._files import replacing

from . import claims, corpora, study
from .engine import (
    DONE,
    STALE,
    UNAVAILABLE,
    Busy,
    Engine,
    Outcome,
    duration,
    stopped_by_signals,
)
from .scales import SCALES

SAMPLES = Path(__file__).resolve().parents[1]
FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option(
    "--scale",
    type=click.Choice(list(SCALES)),
    default="small",
    help="small: an hour on two cores; full: overnight; tiny: a test of the steps.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("../shared/data"),
    help="Folder with ud-english-ewt/, wikitext-2/.",
)
@click.option(
    "-o",
    "--output",
    type=FOLDER,
    default=Path("runs/state_gradients"),
    help="Folder of the run; run again to go on.",
)
@click.option(
    "--corpus",
    type=click.Choice(["ewt", "wikitext-2", "ptb"]),
    help="The main corpus.  [ewt; wikitext-2 at full scale]",
)
@click.option(
    "--ptb",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the Penn Treebank text (ptb.train.txt, ...), where you have it.",
)
@click.option(
    "--vectors",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Word vectors for 6b, as text of word2vec or GloVe.  [trained on all corpora]",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="For training; auto takes a CUDA device where there is one.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="STEP|FIGURE",
    help="Do this and what it needs; may be repeated (see --list).",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="Start no step that is likely to end later than this.",
)
@click.option("--list", "listing", is_flag=True, help="Show what is done and what is left.")
@click.option("--dry-run", is_flag=True, help="Show the commands that would run.")
@click.option(
    "--publish",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.md",
    help="Write the page here too, and its figures into images/ beside it.",
)
@click.pass_context
def main(
    context: click.Context,
    scale: str,
    data: Path,
    output: Path,
    corpus: str | None,
    ptb: Path | None,
    vectors: Path | None,
    device: str,
    only: tuple[str, ...],
    minutes: float | None,
    listing: bool,
    dry_run: bool,
    publish: Path | None,
) -> None:
    """Do the experiments of Verwimp et al. (2020): train, export, analyse, draw, judge.

    Every step is skipped when it is done and its settings are unchanged, so run it again after a
    stop. The page is reproduction.md in the folder of the run.

    Example: python -m samples.state_gradients --scale small --data ../shared/data
    """  # fmt: skip
    options = study.Options(SCALES[scale], scale, data, corpus, ptb, vectors, device)
    try:
        steps = study.steps(options)
    except corpora.NoCorpus as error:
        raise click.UsageError(
            f"The corpus {options.main} is not there: {error}. --data names the folder of the "
            "corpora, --corpus another one."
        ) from error
    engine = Engine(output, steps, {"samples": SAMPLES}, click.echo)
    try:
        names = engine.select(only)
    except KeyError as error:
        raise click.UsageError(
            f"There is no step or figure {error.args[0]!r}; there are "
            f"{', '.join(study.names(steps))}."
        ) from error
    if listing or dry_run:
        _show(engine, names, commands=dry_run)
        return
    output.mkdir(parents=True, exist_ok=True)
    try:
        with stopped_by_signals(), engine.alone():
            _describe(output, options, steps)
            outcome = engine.run(only, minutes)
            if publish is not None:
                publish.parent.mkdir(parents=True, exist_ok=True)
                claims.publish(output, publish)
    except Busy as error:
        raise click.UsageError(str(error)) from error
    except KeyboardInterrupt:
        click.echo("Stopped; run the same command again to go on.", err=True)
        context.exit(130)
    _report(outcome, output, publish)
    context.exit(1 if outcome.failed else 0)


def _show(engine: Engine, names: list[str], *, commands: bool) -> None:
    """List steps with their state and time; with `commands` only those left, as they would run."""
    left = 0.0
    width = max(map(len, names))
    for name in names:
        step, state = engine.steps[name], engine.state(name)
        guess = engine.estimate(name)
        if state == UNAVAILABLE:
            note = f"not available: {engine.lacking(name)}"
        elif state == DONE:
            note = f"done in {duration(guess)}"
        else:
            left += guess
            why = " (settings changed)" if state == STALE else ""
            note = f"to do{why}, about {duration(guess)}"
        if not commands:
            click.echo(f"{name:{width}}  {note}  {' '.join(step.figures)}".rstrip())
        elif state not in (DONE, UNAVAILABLE):
            what = shlex.join(("python", *step.command)) if step.command else f"({step.title})"
            click.echo(f"{name:{width}}  {what}")
    click.echo(f"left: about {duration(left)}")


def _report(outcome: Outcome, output: Path, publish: Path | None) -> None:
    click.echo(
        f"{len(outcome.done)} steps done, {len(outcome.skipped)} were done before, "
        f"{len(outcome.failed)} failed, {len(outcome.blocked)} could not run, "
        f"{len(outcome.left)} left for lack of time"
    )
    for name, why in outcome.failed.items():
        click.echo(f"  failed: {name}: {why}")
    for name, why in outcome.blocked.items():
        click.echo(f"  not run: {name}: {why}")
    for name in outcome.left:
        click.echo(f"  left: {name}")
    page = output / "reproduction.md"
    if page.exists():
        click.echo(f"The page is {page}{f' and {publish}' if publish else ''}.")


def _describe(output: Path, options: study.Options, steps: list[study.Step]) -> None:
    """Note what the run is, for its page."""
    scale = options.scale
    call = ["python", "-m", "samples.state_gradients", "--scale", options.scale_name]
    for name, value in (("--corpus", options.corpus), ("--ptb", options.ptb and "PTB"),
                        ("--vectors", options.vectors and options.vectors.name)):  # fmt: skip
        call += [name, str(value)] if value else []
    call += ["--data", "DATA"]
    amount = scale.amounts[options.main]
    tokens = f"{amount.train:,}" if amount.train else "all"
    positions = f"{scale.positions:,}" if scale.positions else "all"
    missing = {s.name: s.unavailable for s in steps if s.unavailable}
    there = [s.name.removeprefix("texts-") for s in steps if s.name.startswith("texts-")]
    said: dict[str, Any] = {
        "call": " ".join(call),
        "scale": options.scale_name,
        "corpus": options.main,
        "corpora": ", ".join(c for c in there if f"texts-{c}" not in missing),
        "sizes": (
            f"{tokens} training tokens, {scale.vocabulary or 'all':,} words, embedding "
            f"{scale.embedding}, {'/'.join(map(str, scale.hidden))} units, {scale.epochs} epochs "
            f"of {scale.batch} × {scale.steps}, {positions} positions analysed"
        ),
        "machine": _machine(),
        "versions": ", ".join(
            f"{name} {_version(name)}"
            for name in ("mnemoscope", "torch", "onnxruntime", "numpy", "gensim")
        ),
        "steps": [s.name for s in steps],
        "unavailable": missing,
    }
    with replacing(output / "study.json") as temporary:
        temporary.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def _machine() -> str:
    name = platform.processor() or platform.machine()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            name = next(x.partition(":")[2].strip() for x in file if x.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    said = f"{name}, {count} cores"
    try:
        import torch

        if torch.cuda.is_available():
            said += f", {torch.cuda.get_device_name()}"
    except ImportError:
        pass
    return f"{said}, Python {platform.python_version()}"


def _version(name: str) -> str:
    for package in (name, f"{name}-gpu"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "–"


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m samples.state_gradients"))
