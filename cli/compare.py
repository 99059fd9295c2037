"""`mnemoscope compare`: whether two models, or two results, remember the same."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click
from mnemoscope.analyzer.errors import MnemoscopeError

from ._analysis import (
    Finite,
    analysis_options,
    check_step,
    in_bytes,
    is_result,
    progress_of,
)
from ._lazy import example
from ._output import Report, check_output, one_line, output_option, reports
from .show import group_option, normalization_option

if TYPE_CHECKING:
    import xarray as xr
    from mnemoscope.analyzer.comparison import Comparison, StateComparison
    from mnemoscope.analyzer.model import MemoryModel
    from rich.console import Console

_MADE = ("model", "corpus", "positions", "method", "precision", "provider", "seed")
_USUAL = (0, 1, 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50)
"""Delays in the table, beside the last, the first that differs and the worst."""
_WIDE = 145
"""Characters that a line with all columns may take."""

_MEASURES = {
    "gradient": "relative difference of the mean gradients",
    "sigma1": "relative difference of σ₁",
}


@click.command(
    epilog=example(
        "mnemoscope compare new.nc old.nc",
        "mnemoscope compare new.nc old.nc --state lstm0.c --csv > difference.csv",
        "mnemoscope compare keras.onnx torch.onnx --corpus corpus.txt --positions 2000 \\",
        "    --tolerance 1e-4",
        "mnemoscope compare int8.onnx fp32.nc --corpus corpus.txt --method fd --step 0.2",
    )
)
@click.argument("a")
@click.argument("b")
@click.option(
    "--corpus", help="Text to analyse a model on; needed where A or B is one.", metavar="FILE"
)
@click.option(
    "--match",
    "matches",
    multiple=True,
    metavar="A=B",
    help="State of A and the state of B that it belongs to; may be repeated.  [same names]",
)
@click.option(
    "--state", "states", multiple=True, help="State of A to compare; may be repeated.  [all]"
)
@normalization_option
@group_option
@click.option(
    "--basis",
    type=click.Choice(["auto", "same", "different"]),
    help="Whether both have the same embedding space.  [default: auto, from the embeddings]",
)
@click.option(
    "--tolerance",
    type=Finite(above=False),
    help="Fail (status 1) if the mean gradients differ by more, relative to B, at any delay.",
)
@click.option("--all-delays", is_flag=True, help="Print every delay, not a selection.")
@output_option("figure (.png, .svg or .pdf)", required=False)
@analysis_options()
@reports("json", "csv")
def compare(
    a: str,
    b: str,
    corpus: str | None,
    matches: tuple[str, ...],
    states: tuple[str, ...],
    normalization: str | None,
    group: str | None,
    basis: Any,
    tolerance: float | None,
    all_delays: bool,
    output: str | None,
    quiet: bool,
    **options: Any,
) -> Report:
    """Compare what A remembers with what B, the reference, does.

    A and B are results (.nc) or memory models (.onnx) from any framework, in any precision. Models
    are analysed on --corpus: two models with the options given here, one model with those of the
    result beside it, unless they are given here.

    Printed per state and delay: the relative difference of the mean gradients and what noise
    alone would make it; those of σ₁ and of the selectivity; the angle between the best remembered
    directions, and the largest between the subspaces of the best five. Then the delay from which
    they differ beyond noise, and the tolerance that would have passed.
    """
    if output is not None:
        inputs = [a, b, *([corpus] if corpus else [])]
        check_output(output, inputs=inputs, suffixes=(".png", ".svg", ".pdf"))
    match = _parse_matches(matches)
    sides = [_open(a), _open(b)]
    _check_options(sides, corpus, options, group)
    from mnemoscope.analyzer.comparison import compare as run
    from mnemoscope.analyzer.comparison import match_states

    names_a, names_b = (side.states() for side in sides)
    pairs, left_a, left_b = match_states(names_a, names_b, match, list(states))
    if tolerance is not None and (left_a or left_b):
        raise MnemoscopeError(
            f"A tolerance must not pass over states: {_unmatched(left_a, left_b)} "
            "Name partners with --match A=B, or the states to test with --state."
        )
    if tolerance is not None:
        _check_gradients(sides, pairs)
    recorded = next((s.recorded() for s in sides if s.tree is not None), {})
    asked = {k: v for k, v in options.items() if v is not None}
    trees = [
        side.analyzed(corpus, list(wanted), {**recorded, **asked}, quiet)
        for side, wanted in zip(sides, zip(*pairs, strict=True), strict=True)
    ]
    found = run(
        *trees,
        match=dict(pairs),
        states=[x for x, _ in pairs],
        normalization=normalization,
        group=group,
        basis=basis,
    )
    found = replace(found, unmatched_a=left_a, unmatched_b=left_b)
    needed = found.tolerance
    if tolerance is not None and any(math.isnan(s.tolerance) for s in found.states):
        empty = next(s.a for s in found.states if math.isnan(s.tolerance))
        raise MnemoscopeError(
            f"The state {empty} cannot be held against a tolerance: at no delay do both results "
            f"have derivatives for the group {found.group!r}."
        )
    passed = None if tolerance is None else needed <= tolerance
    labels = _labels(a, b)
    if output is not None:
        from mnemoscope.analyzer._files import replacing
        from mnemoscope.analyzer.plots import comparison_figure

        figure = comparison_figure(found, labels, tolerance=tolerance)
        with replacing(output) as temporary:
            figure.savefig(temporary, dpi=150)

    def render(console: Console) -> None:
        if quiet:
            if passed is False:
                click.echo(_verdict(found, tolerance, passed), err=True)
            return
        for which, path, tree in zip("AB", (a, b), trees, strict=True):
            made = ", ".join(f"{k} {tree.attrs[k]}" for k in _MADE if k in tree.attrs)
            console.print(f"{which}: {path} ({one_line(made)})", soft_wrap=True)
        for note in found.notes:
            console.print(f"Note: {one_line(note)}", soft_wrap=True)
        if left_a or left_b:
            console.print(f"Note: {_unmatched(left_a, left_b)}", soft_wrap=True)
        console.print()
        for state in found.states:
            _print_state(console, state, found, all_delays)
        console.print(_verdict(found, tolerance, passed), soft_wrap=True)
        if output is not None:
            console.print(f"Written to {output}.", soft_wrap=True)

    data = {
        "a": _side_data(a, trees[0]),
        "b": _side_data(b, trees[1]),
        "normalization": found.normalization,
        "group": found.group,
        "same_embedding_space": found.same_space,
        "notes": found.notes,
        "unmatched_a": left_a,
        "unmatched_b": left_b,
        "states": [_state_data(s) for s in found.states],
        "required_tolerance": needed,
        "tolerance": tolerance,
        "passed": passed,
    }
    rows = [
        {
            "state_a": state.a,
            "state_b": state.b,
            "group": found.group,
            "normalization": found.normalization,
            **_flat(row),
        }
        for state in found.states
        for row in state.rows()
    ]
    return Report(data, render, rows, passed=passed is not False)


@dataclass(frozen=True)
class _Input:
    """A or B, as it was given: a result or a model."""

    path: str
    tree: xr.DataTree | None = None
    model: MemoryModel | None = None

    def states(self) -> list[str]:
        """Names of the states that it has, or would have once analysed."""
        if self.tree is not None:
            return list(self.tree.children)
        assert self.model is not None
        return self.model.differentiable_states

    def recorded(self) -> dict[str, Any]:
        """The options that a result was made with."""
        from mnemoscope.analyzer.comparison import recorded_options

        assert self.tree is not None
        return recorded_options(self.tree)

    def analyzed(
        self, corpus: str | None, states: list[str], options: dict[str, Any], quiet: bool
    ) -> xr.DataTree:
        """The result, or that of the model, analysed now."""
        if self.tree is not None:
            return self.tree
        assert self.model is not None
        assert corpus is not None
        from mnemoscope.analyzer import analyze, read_corpus

        options = dict(options)
        text = read_corpus(corpus, self.model.vocabulary, level=options.pop("level", None))
        if options.get("method") != "fd":
            options.pop("step", None)  # recorded by a result of differences
        memory = in_bytes(options.pop("memory", None))
        with progress_of(quiet) as (progress, report):
            if report:
                report(f"Analysing {self.path}.")
            return analyze(
                self.model,
                text,
                states=states,
                memory=memory,
                progress=progress,
                report=report,
                **options,
            )


def _open(path: str) -> _Input:
    from mnemoscope.analyzer import open_model, open_result

    if not os.path.exists(path):
        raise MnemoscopeError(
            f"Expected a result (.nc) or a memory model (.onnx); {path} does not exist. Check the "
            "path."
        )
    if is_result(path):
        return _Input(path, tree=open_result(path))
    return _Input(path, model=open_model(path))


def _check_options(
    sides: list[_Input], corpus: str | None, options: dict[str, Any], group: str | None
) -> None:
    models = [s.path for s in sides if s.model is not None]
    given = [f"--{'no-' * (value is False)}{name}" for name, value in options.items()
             if value is not None]  # fmt: skip
    if not models and (corpus is not None or given):
        raise click.UsageError(
            f"{', '.join(['--corpus'] * (corpus is not None) + given)}: only models are analysed, "
            "and both A and B are results. Leave it out, or give a model."
        )
    if not models:
        return
    if corpus is None:
        raise click.UsageError(
            f"{' and '.join(models)} must be analysed first: name the text with --corpus."
        )
    if corpus == "-" and len(models) > 1:
        raise click.UsageError("Two models cannot both read standard input; give a file.")
    if group not in (None, "all"):
        raise click.UsageError(
            f"A model is analysed with the group 'all' only, not {group!r}. Give results of "
            "analyses that have this group."
        )
    step, method = options["step"], options["method"]
    if method is None:
        method = next((s.recorded().get("method") for s in sides if s.tree is not None), None)
    check_step(step, method)


def _check_gradients(sides: list[_Input], pairs: list[tuple[str, str]]) -> None:
    """Refuse a tolerance that would be held against something else than it says."""
    for which, side, states in zip("AB", sides, zip(*pairs, strict=True), strict=True):
        if side.tree is None:
            continue
        for state in states:
            if "gradient" not in side.tree[state].data_vars:
                raise MnemoscopeError(
                    f"A tolerance is held against the mean gradients, and {which} ({side.path}) "
                    f"holds none of {state}. Analyse it again, or compare without --tolerance."
                )


def _parse_matches(matches: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in matches:
        name, equals, partner = text.partition("=")
        if not (name and equals and partner):
            raise click.UsageError(
                f"--match expects STATE_OF_A=STATE_OF_B, such as lstm0.h=h; found {text!r}."
            )
        if name in found:
            raise click.UsageError(f"--match names the state {name!r} of A twice.")
        found[name] = partner
    return found


def _unmatched(left_a: list[str], left_b: list[str]) -> str:
    said = [
        f"{which} alone has {', '.join(names)}"
        for which, names in (("A", left_a), ("B", left_b))
        if names
    ]
    return "; ".join(said) + "; not compared."


def _labels(a: str, b: str) -> tuple[str, str]:
    """Names for a figure: of the files, or the paths where the files share a name."""
    x, y = (os.path.splitext(os.path.basename(p))[0] for p in (a, b))
    return (x, y) if x != y else (a, b)


def _side_data(path: str, tree: xr.DataTree) -> dict[str, Any]:
    attributes = {k: getattr(v, "item", lambda v=v: v)() for k, v in tree.attrs.items()}
    return {"path": path, "attributes": attributes}


def _state_data(state: StateComparison) -> dict[str, Any]:
    return {
        "state_a": state.a,
        "state_b": state.b,
        "paired": state.paired,
        "test": state.test,
        "gradients_not_compared": state.no_gradients,
        "angles_not_compared": state.no_angles,
        "first_difference": state.first_difference,
        "resolution": state.resolution,
        "measure": state.measure,
        "required_tolerance": state.tolerance,
        "worst_delay": state.worst,
        "rows": state.rows(),
    }


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row with a column for each number: ``angles5_1`` to ``angles5_5``, the largest first."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, list) and len(value) > 1:
            flat |= {f"{key}_{i}": v for i, v in enumerate(value, 1)}
        else:
            flat[key] = value[0] if isinstance(value, list) else value
    return flat


def _print_state(console: Console, state: StateComparison, all_: Comparison, every: bool) -> None:
    from rich.table import Table

    name = state.a if state.a == state.b else f"{state.a} = {state.b}"
    what = "whitened" if all_.normalization == "whitened" else "not whitened"
    errors = "paired (same positions)" if state.paired else "independent errors"
    console.print(f"{name} · inputs: {all_.group} · {what} · {errors}", style="bold")
    shown = {*_USUAL, int(state.delay[-1]), state.first_difference, state.worst}
    rows = [
        (row, state.curve_a.sigma1[t], state.curve_b.sigma1[t])
        for t, row in enumerate(state.rows())
        if every or row["delay"] in shown
    ]
    delay = {"delay": [f"{row['delay']}" for row, _, _ in rows]}
    levels = {
        "σ₁ of A": [_number(a, ".2e") for _, a, _ in rows],
        "of B": [_number(b, ".2e") for _, _, b in rows],
    }
    if not state.no_gradients:
        levels["‖ΔḠ‖/‖Ḡ‖"] = [_difference(row, "gradient") for row, _, _ in rows]
        levels["by noise"] = [_number(row["gradient_noise"], ".0e") for row, _, _ in rows]
    changes = {
        heading: [_difference(row, key, sign="+") for row, _, _ in rows]
        for heading, key in (
            ("Δσ₁/σ₁", "sigma1"),
            ("Δ(σ₁/Σσ)", "share1"),
            ("Δ(σ₁..₅/Σσ)", "share5"),
        )
    }
    angles = {}
    if not state.no_angles:
        for heading, key in (("∠1", "angles1"), ("∠5", "angles5")):
            angles[heading] = [_number(row[key][0], ".1f", "°") for row, _, _ in rows]
    mark = {"": ["!" if row["differs"] else "" for row, _, _ in rows]}
    # One wide table, or two where the terminal is too narrow for it.
    tables = [delay | levels | changes | angles | mark]
    if console.width < _WIDE:
        tables = [delay | levels | angles | mark, delay | changes | mark]
    for columns in tables:
        table = Table()
        for heading in columns:
            table.add_column(heading, justify="right", no_wrap=True)
        for cells in zip(*columns.values(), strict=True):
            table.add_row(*cells)
        console.print(table)
    if state.no_gradients and all_.same_space:  # of other spaces a note has told
        console.print(f"Mean gradients not compared: {state.no_gradients}.", soft_wrap=True)
    console.print(f"{name}: {_said(state)}\n", soft_wrap=True)


def _number(value: float, form: str, unit: str = "") -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "B is 0"
    return "0" if value == 0 else f"{value:{form}}{unit}"


def _difference(row: dict[str, Any], key: str, sign: str = "") -> str:
    error = row[f"{key}_stderr"]
    value = _number(row[key], f"{sign}.1e")
    return f"{value} ± {error:.0e}" if math.isfinite(error) and math.isfinite(row[key]) else value


def _said(state: StateComparison) -> str:
    tests = {"gradient": "sign-flip test of the mean gradients", "sigma1": "t test of σ₁"}
    if state.test == "none":
        return "not tested: the results keep too few blocks for standard errors."
    of = len(state.delay)
    tested = sum(not math.isnan(p) for p in state.p_value)
    if not tested:
        return "not tested: at no delay is σ₁ clear of its noise floor, in A or in B."
    test = f"{tests[state.test]}, 1 % for all delays together"
    if tested == of:
        where = "at any delay"
    else:
        where = f"at any of {tested} delays"
        lacking = "too few blocks" + (" or σ₁ within its noise" if state.test == "sigma1" else "")
        test += f"; not tested at {of - tested}: {lacking}"
    if state.first_difference is None:
        return f"no difference beyond noise {where} ({test})."
    count = int(state.differs.sum())
    first = f"differs beyond noise from delay {state.first_difference}"
    return f"{first}, at {count} of {tested} ({test})."


def _verdict(found: Comparison, tolerance: float | None, passed: bool | None) -> str:
    needed = found.tolerance
    if math.isnan(needed):
        return "Nothing could be compared: no delay has derivatives in both."
    worst = max((s for s in found.states if not math.isnan(s.tolerance)), key=lambda s: s.tolerance)
    where = f"{_MEASURES[worst.measure]}, {worst.a} at delay {worst.worst}"
    if math.isinf(needed):
        said = f"No tolerance would have passed: B is 0 where A is not ({where})."
    else:
        said = f"Tolerance that would have passed: {_rounded_up(needed)} ({where})."
    if passed is not None:
        verdict = "Passed" if passed else "Failed"
        said = f"{verdict} at --tolerance {tolerance:g}. {said}"
    return said


def _rounded_up(value: float) -> str:
    """Three digits, and never less than the value: what is printed must pass."""
    if value == 0:
        return "0"
    text = f"{value:.2e}"
    if float(text) < value:
        exponent = int(text.split("e")[1])
        text = f"{float(text) + 10.0 ** (exponent - 2):.2e}"
    return text
