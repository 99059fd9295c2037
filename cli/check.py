"""`mnemoscope check`: a budget for what a model must remember, for continuous integration."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click
from mnemoscope.analyzer.errors import MnemoscopeError

from ._analysis import analysis_options, check_step, in_bytes, is_result, progress_of
from ._lazy import example
from ._output import Report, check_output, one_line, reports

if TYPE_CHECKING:
    import xarray as xr
    from mnemoscope.analyzer.budget import Budget, Verdict
    from rich.console import Console

_POSITIONS = 2000
_STYLES = {"passed": "", "failed": "bold red", "undecided": "yellow"}


@click.command(
    epilog=example(
        "mnemoscope check result.nc --write-budget budget.toml",
        "mnemoscope check model.onnx --corpus corpus.txt --budget budget.toml",
        "mnemoscope check new.nc --budget budget.toml --baseline old.nc --junit memory.xml",
    )
)
@click.argument("model_or_result")
@click.option("--budget", metavar="FILE", help="What must hold (TOML; see docs/check.md).")
@click.option(
    "--baseline",
    metavar="FILE",
    help="Result or model for [[baseline]]; a budget without it allows a loss of 10 %.",
)
@click.option(
    "--reference",
    metavar="FILE",
    help="Result or model for [[parity]]; a budget without it tolerates 0.01.",
)
@click.option("--corpus", metavar="FILE", help="Text to analyse a model on.")
@click.option(
    "--write-budget", metavar="FILE", help="Draft a budget that passes, instead of checking one."
)
@click.option("--force", is_flag=True, help="Let --write-budget replace a file.")
@click.option("--strict", is_flag=True, help="Fail on what is undecided too.")
@click.option("--junit", metavar="FILE", help="Write a JUnit XML report here.")
@click.option("--github", is_flag=True, help="Print annotations for a GitHub workflow.")
@click.option(
    "--state",
    "states",
    multiple=True,
    help="Check, or draft for, this state only; may be repeated.",
)
@analysis_options(delays="the largest that the budget mentions", positions=f"{_POSITIONS:,}")
@reports("json")
def check(
    model_or_result: str,
    budget: str | None,
    baseline: str | None,
    reference: str | None,
    corpus: str | None,
    write_budget: str | None,
    force: bool,
    strict: bool,
    junit: str | None,
    github: bool,
    states: tuple[str, ...],
    quiet: bool,
    **options: Any,
) -> Report:
    """Check MODEL_OR_RESULT against a budget.

    A budget says how far and how much a model must remember. It fails only by more than the
    statistical error; what the data cannot decide is undecided. A model needs --corpus, and takes
    the options of mnemoscope analyze, here or in the budget's [analysis] table; a result has been
    analysed already. Exit status: 0 passed, 1 failed, 2 the input or the call is wrong.
    """
    _check_call(budget, write_budget, strict, junit, github)
    _check_force(write_budget, force)
    from mnemoscope.analyzer import budget as budgets

    given = {k: v for k, v in options.items() if v is not None}
    extra = [*given, *(["corpus"] if corpus else [])]
    files = [f for f in (model_or_result, budget, baseline, reference, corpus) if f]
    for output in (junit, write_budget):
        if output:
            check_output(output, inputs=files)
    if junit:
        from ._junit import discard_junit

        discard_junit(junit)
    began = time.perf_counter()
    read = budgets.read_budget(budget) if budget else None
    if junit and read:
        check_output(junit, inputs=_named_files(read))
    if states and read:
        _check_states(states, read)
    load = _Loader(corpus, given, states, read, quiet)
    models = [f for f in (model_or_result, baseline, reference) if f and not is_result(f)]
    if extra and not models and not (read and _names_models(read)):
        named = ", ".join(f"--{name}" for name in extra)
        raise click.UsageError(
            f"{named} belong(s) to the analysis of a model, and {model_or_result} is a result."
        )
    before = {f: load(f) for f in (baseline, reference) if f and is_result(f)}
    load.match(read, before.get(baseline or ""), before.get(reference or ""))
    tree = _only(load(model_or_result), states, model_or_result)
    if write_budget:
        return _write_draft(budgets.draft(tree, source=model_or_result), write_budget, quiet)
    assert read is not None
    others = [load(f) if f else None for f in (baseline, reference)]
    read = budgets.completed(read, tree, *others)
    verdicts = budgets.check(tree, read, baseline=others[0], reference=others[1], load=load)
    failing = {"failed", "undecided"} if strict else {"failed"}
    if junit:
        from ._junit import write_junit

        write_junit(junit, verdicts, read.path, failing, time.perf_counter() - began)
    passed = not any(v.status in failing for v in verdicts)
    data = {
        "checked": model_or_result,
        "budget": budget,
        "sigma": read.sigma,
        "strict": strict,
        "passed": passed,
        "counts": {s: sum(v.status == s for v in verdicts) for s in _STYLES},
        "notes": read.notes(),
        "verdicts": [_plain(v) for v in verdicts],
    }

    def render(console: Console) -> None:
        if not quiet:
            _print_table(console, verdicts, read.notes())
        else:
            for v in verdicts:
                if v.status in failing:
                    click.echo(f"{v.name}: {v.message}.", err=True)
        if github:
            for line in github_annotations(verdicts, read.path, failing):
                click.echo(line)

    return Report(data, render, passed=passed)


def _check_call(
    budget: str | None, write_budget: str | None, strict: bool, junit: str | None, github: bool
) -> None:
    if (budget is None) == (write_budget is None):
        raise click.UsageError("Give either --budget to check, or --write-budget to draft one.")
    asked = [n for n, v in (("--strict", strict), ("--junit", junit), ("--github", github)) if v]
    context = click.get_current_context()
    if context.params.get("as_json"):
        asked.append("--json")
        if github:
            raise click.UsageError("--json and --github both print to stdout; give one.")
    if write_budget and asked:
        raise click.UsageError(f"--write-budget checks nothing; leave out {', '.join(asked)}.")


def _check_force(write_budget: str | None, force: bool) -> None:
    if force and not write_budget:
        raise click.UsageError("--force belongs to --write-budget; nothing else replaces a file.")
    if write_budget and not force and os.path.exists(write_budget):
        raise MnemoscopeError(
            f"{write_budget} is there already, and may have been edited: name another file, or "
            "add --force to replace it."
        )


def _check_states(states: tuple[str, ...], budget: Budget) -> None:
    for rule in budget.rules:
        for name in rule.values.get("state", ()):
            if name not in states:
                raise click.UsageError(
                    f"--state leaves out {name}, which {rule.where} of the budget is about. Name "
                    "it too, or leave --state out."
                )


def _only(tree: xr.DataTree, states: tuple[str, ...], path: str) -> xr.DataTree:
    """A result with the states that are asked for; with all where none is."""
    known = list(tree.children)
    for name in states:
        if name not in known:
            raise MnemoscopeError(f"{path} has no state {name!r}; it has {', '.join(known)}.")
    return tree.drop_nodes([n for n in known if n not in states]) if states else tree


def _named_files(budget: Budget) -> list[str]:
    """The paths of the files that the bounds name."""
    return [budget.beside(r.values["file"]) for r in budget.rules if "file" in r.values]


def _names_models(budget: Budget) -> bool:
    return any(not is_result(f) for f in _named_files(budget))


class _Loader:
    """Reads results and analyses models, each once, all in one way."""

    def __init__(
        self,
        corpus: str | None,
        given: dict[str, Any],
        states: tuple[str, ...],
        budget: Budget | None,
        quiet: bool,
    ) -> None:
        self._corpus, self._quiet, self._budget = corpus, quiet, budget
        stated = dict(budget.analysis) if budget else {}
        if given.get("method") == "jvp" and "step" not in given:
            stated.pop("step", None)
        self._options = {"positions": _POSITIONS, **stated, **given}
        self._states = list(states) or (budget.states if budget else None)
        check_step(self._options.get("step"), self._options.get("method"))
        self._done: dict[str, xr.DataTree] = {}

    def match(
        self, budget: Budget | None, baseline: xr.DataTree | None, reference: xr.DataTree | None
    ) -> None:
        """Choose how many delays a model is followed for, where nobody has said."""
        if budget is None or "delays" in self._options:
            return
        # A horizon is compared over the baseline's delays; a sample's places depend on them.
        wanted = [budget.largest_delay]
        both = baseline is not None, reference is not None
        for rule in budget.completed(baseline=0 if both[0] else None, reference=both[1]).rules:
            other: xr.DataTree | None = None
            if rule.kind == "parity" or "horizon_loss" in rule.values:
                other = reference if rule.kind == "parity" else baseline
                file = rule.values.get("file")
                if other is None and file and is_result(budget.beside(file)):
                    other = self(budget.beside(file))
            if other is not None:
                wanted.append(int(other.sizes["delay"]) - 1)
        found = [d for d in wanted if d is not None]
        if found:
            self._options["delays"] = max(found)

    def __call__(self, path: str) -> xr.DataTree:
        if path not in self._done:
            if is_result(path):
                from mnemoscope.analyzer import open_result

                self._done[path] = open_result(path)
            else:
                self._done[path] = self._analyze(path)
        return self._done[path]

    def _analyze(self, path: str) -> xr.DataTree:
        from mnemoscope.analyzer import analyze, open_model, read_corpus

        opened = open_model(path)
        if self._corpus is None:
            raise MnemoscopeError(
                f"{path} is a model, and a model is analysed on a text: add --corpus FILE, or "
                "check the result that mnemoscope analyze wrote."
            )
        options = dict(self._options)
        if self._budget:
            delays = options.get("delays", self._budget.largest_delay)
            names = [s.name for s in opened.roles.states]
            self._budget.require(names, 50 if delays is None else delays, "the model")
        corpus = read_corpus(self._corpus, opened.vocabulary, level=options.pop("level", None))
        memory = options.pop("memory", None)
        with progress_of(self._quiet) as (progress, report):
            return analyze(
                opened,
                corpus,
                states=self._states,
                memory=in_bytes(memory),
                progress=progress,
                report=report,
                **options,
            )


def _write_draft(text: str, path: str, quiet: bool) -> Report:
    from mnemoscope.analyzer._files import replacing

    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    said = f"Written to {path}; next: mnemoscope check MODEL_OR_RESULT --budget {path}"
    return Report({"written": path}, lambda console: None if quiet else click.echo(said))


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {
        "state": verdict.state,
        "name": verdict.name,
        "kind": verdict.rule.kind,
        "table": verdict.rule.where,
        "line": verdict.rule.line,
        "bound": verdict.what,
        "status": verdict.status,
        "measured": verdict.measured,
        "stderr": verdict.stderr,
        "found": verdict.found,
        "positions_needed": verdict.positions,
        "note": verdict.note,
    }


def _print_table(console: Console, verdicts: list[Verdict], notes: list[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for heading in ("verdict", "state", "budget", "found"):
        table.add_column(heading, overflow="fold")
    for v in verdicts:
        own = v.rule.values.get("name")
        table.add_row(
            v.status,
            Text(v.state),
            Text(f"{own}: {v.what}" if own else v.what),
            Text(v.found),
            style=_STYLES[v.status],
        )
    console.print(table)
    for v in verdicts:
        if v.note:
            console.print(Text(f"{v.status}: {v.name}: {v.note}."), soft_wrap=True)
    for note in notes:
        console.print(f"Note: {one_line(note)}", soft_wrap=True)
    counts = {s: sum(v.status == s for v in verdicts) for s in _STYLES}
    console.print(", ".join(f"{n} {s}" for s, n in counts.items() if n) + ".")


def github_annotations(verdicts: list[Verdict], path: str, failing: set[str]) -> list[str]:
    """Workflow commands of GitHub: ``::error file=…,line=…,title=…::message``.

    What fails the check is an error, what else is undecided a warning.
    """
    lines = []
    for v in verdicts:
        if v.status == "passed":
            continue
        properties: dict[str, Any] = {"file": path, "line": v.rule.line, "title": v.name}
        shown = ",".join(f"{k}={_property(str(p))}" for k, p in properties.items() if p is not None)
        level = "error" if v.status in failing else "warning"
        lines.append(f"::{level} {shown}::{_data(v.message)}")
    return lines


def _data(text: str) -> str:
    """Escape a message; GitHub's own toolkit replaces these characters, % first."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Escape the value of a property, which : and , would end."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
