"""`mnemoscope property`: how well directions of the embedding space are remembered."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click
from mnemoscope.analyzer.errors import PropertyError

from ._lazy import example
from ._output import Report, check_output, output_option, print_footnotes, reports
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
from .show import curve_mark, state_option

if TYPE_CHECKING:
    from mnemoscope.analyzer.lexicon import Lexicon
    from mnemoscope.analyzer.properties import Direction, PropertyCurve
    from mnemoscope.analyzer.property_specs import Spec
    from mnemoscope.analyzer.separability import Separability
    from rich.console import Console

_FOOTNOTES = {
    "*": "σ₁ does not exceed its noise floor: what is relative to it is relative to noise.",
    "?": "there are too few positions for a noise floor, or no standard error of σ₁.",
    "~": "σ₁ exceeds its noise floor by less than two standard errors: hardly better.",
}


@click.command(
    "property",
    epilog=example(
        "mnemoscope property result.nc --a NN,NNP --b NNS,NNPS --own -o number.png",
        "mnemoscope property result.nc --a-words he,him --b-words she,her",
        "mnemoscope property result.nc --direction 'king - man + woman' -n 3",
        "mnemoscope property result.nc --properties many.toml --csv > properties.csv",
    ),
)
@click.argument("result")
@click.option("--a", metavar="CLASS,…", help="Classes on one side of a difference.")
@click.option("--b", metavar="CLASS,…", help="Classes on the other.")
@click.option("--a-words", metavar="WORD,…|FILE", help="Words on one side, in place of --a.")
@click.option("--b-words", metavar="WORD,…|FILE", help="Words on the other, in place of --b.")
@click.option(
    "--direction", metavar="TEXT", help="Embedding arithmetic, as in 'king - man + woman'."
)
@click.option("--suffix", metavar="TEXT", help="Words that end so, against the same without it.")
@click.option("--name", help="Of the property, in tables and figures.")
@click.option(
    "--properties", metavar="FILE", help="Many properties in a TOML file (docs/properties.md)."
)
@click.option("--group", help="Class of input words whose mean gradient is taken.  [all words]")
@click.option("--own", is_flag=True, help="Take the mean gradient of the property's own classes.")
@state_option
@click.option(
    "-n",
    "--leading",
    type=click.IntRange(min=1),
    multiple=True,
    help="Compare with the N best remembered directions; may be repeated.  [1 and 5]",
)
@members_option
@skip_option
@model_option
@click.option("--no-separability", is_flag=True, help="Do not train classifiers first.")
@seed_option
@quiet_option
@output_option("figure (.png, .svg or .pdf)", required=False)
@reports("json", "csv")
def property_(
    result: str,
    properties: str | None,
    group: str | None,
    own: bool,
    states: tuple[str, ...],
    leading: tuple[int, ...],
    members: str,
    skip_unknown: bool,
    model: str | None,
    no_separability: bool,
    seed: int,
    quiet: bool,
    output: str | None,
    **one: str | None,
) -> Report:
    """Measure how well properties of words are remembered.

    A property is a direction of the embedding space: the difference of the mean embeddings of two
    classes of words, or a sum of words. First, whether a linear classifier can tell the classes
    apart, without which the direction means little. Then at every delay: the relative memory m
    (1: remembered as well as any direction), the cosine with the 1 and with the 5 best remembered
    directions, and the share of these in the sum of all singular values. Beside m and the cosines,
    what they are for 95 % of directions that point anywhere (random), and of differences made
    with the same types dealt out at random (shuffled).
    """
    if output:
        check_output(output, inputs=[f for f in (result, properties, model) if f],
                     suffixes=(".png", ".svg", ".pdf"))  # fmt: skip
    if own and group:
        raise click.UsageError("--own and --group exclude each other; give one.")
    specs = _specs(properties, one)
    from mnemoscope.analyzer import open_result
    from mnemoscope.analyzer.properties import has_blocks, property_curves

    tree = open_result(result)
    lexicon = read_types(tree, model)
    notes: list[str] = []
    found = _directions(
        tree, lexicon, specs, notes, own=own, group=group, members=members,
        skip_unknown=skip_unknown, seed=seed,
    )  # fmt: skip
    with bar_of("Measuring", quiet) as progress:
        curves = property_curves(
            tree, found, lexicon.D, states=states, leading=tuple(dict.fromkeys(leading)) or (1, 5),
            seed=seed, progress=progress,
        )  # fmt: skip
    if not has_blocks(tree, dict.fromkeys(c.state for c in curves)):
        notes.append(
            "The result holds no gradients of the blocks, so m and the cosines have no standard "
            "errors. Run mnemoscope analyze again with a larger --keep-blocks."
        )
    directions = [d for d, _ in found]
    probes: dict[str, Separability] = {}
    if not no_separability:
        with bar_of("Classifying", quiet) as progress:
            for i, direction in enumerate(directions):
                if progress is not None:
                    progress(i, len(directions))
                _probe(direction, lexicon, probes, notes, seed)
    if output:
        from mnemoscope.analyzer._files import replacing
        from mnemoscope.analyzer._property_plot import property_figure

        figure = property_figure(curves)
        with replacing(output) as temporary:
            figure.savefig(temporary, dpi=150)
        notes.append(f"Written to {output}.")
    if not quiet:
        for note in notes:
            click.echo(note, err=True)
    data = {
        "result": result,
        "members": members,
        "seed": seed,
        "properties": [_plain(d, probes.get(d.name)) for d in directions],
        "curves": [
            {
                "property": c.direction.name,
                "state": c.state,
                "inputs": list(c.inputs),
                "rows": c.rows(),
            }
            for c in curves
        ],
        "notes": notes,
    }
    rows = [
        {
            "property": c.direction.name,
            "state": c.state,
            "inputs": "+".join(c.inputs),
            "separable": "" if (p := probes.get(c.direction.name)) is None else p.separable,
            **row,
        }
        for c in curves
        for row in c.rows()
    ]

    def render(out: Console) -> None:
        if probes:
            out.print("Separability of the classes in the embedding space", style="bold")
            print_separability(out, list(probes.values()))
        for direction in directions:
            _print_direction(out, direction)
        for curve in curves:
            _print_curve(out, curve)
        print_footnotes(out, _FOOTNOTES, (curve_mark(row) for c in curves for row in c.rows()))

    return Report(data, render, rows)


def _specs(properties: str | None, one: dict[str, str | None]) -> list[Spec]:
    """What was asked for, from a file or from the options."""
    from mnemoscope.analyzer import property_specs

    given = {k: v for k, v in one.items() if v is not None}
    if properties:
        if given:
            named = ", ".join("--" + k.replace("_", "-") for k in given)
            raise click.UsageError(f"--properties says what to measure; leave out {named}.")
        return property_specs.read_properties(properties)
    forms = set(given) - {"name"}
    a, b = forms & {"a", "a_words"}, forms & {"b", "b_words"}
    sides = len(a) == len(b) == 1 and forms == a | b
    if not sides and forms not in ({"direction"}, {"suffix"}):
        raise click.UsageError(
            "Say what the property is: --a and --b (or --a-words, --b-words), or --direction, or "
            "--suffix, or many in a file with --properties."
        )
    read = {
        "a": property_specs.read_classes, "b": property_specs.read_classes,
        "a_words": property_specs.read_word_list, "b_words": property_specs.read_word_list,
    }  # fmt: skip
    table = {k: read[k](v) if k in read else v for k, v in given.items()}
    return [property_specs.make_spec(table, "The property")]


def _directions(
    tree: Any,
    lexicon: Lexicon,
    specs: list[Spec],
    notes: list[str],
    *,
    own: bool,
    group: str | None,
    members: Any,
    skip_unknown: bool,
    seed: int,
) -> list[tuple[Direction, tuple[str, ...]]]:
    """Directions with the groups of their gradients; those that cannot be formed are left out.

    Raises:
        PropertyError: None can be formed.
    """
    from mnemoscope.analyzer.properties import default_inputs, direction, own_inputs

    found, failed = [], []
    for spec in specs:
        try:
            made = direction(spec, lexicon, members=members, skip_unknown=skip_unknown, seed=seed)
            inputs: tuple[str, ...]
            if spec.group or group:
                inputs = (str(spec.group or group),)
            else:
                inputs = own_inputs(made) if own else default_inputs(tree)
            found.append((made, inputs))
        except PropertyError as error:
            failed.append((spec.name, error))
    if not found:
        raise failed[0][1]
    notes.extend(left_out(name, error) for name, error in failed)
    return found


def _probe(
    direction: Direction,
    lexicon: Lexicon,
    probes: dict[str, Separability],
    notes: list[str],
    seed: int,
) -> None:
    from mnemoscope.analyzer.separability import separability

    name = direction.name
    if not len(direction.a):
        notes.append(f"{name}: no classes, so nothing to separate.")
        return
    try:
        classes = {"a": direction.a, "b": direction.b}
        found = separability(
            name, classes, lexicon.whitened, paired=direction.spec.suffix is not None, seed=seed
        )
    except PropertyError as error:
        notes.append(f"Separability not tested: {error}")
        return
    probes[name] = found
    if not found.separable:
        notes.append(
            f"Warning: {name} is not separable: {found.accuracy:.3f} ± {found.stderr:.3f} of the "
            f"held-out types are told apart, {max(found.majority, found.shuffled):.3f} by chance. "
            "Its direction means little, and so does how well it is remembered."
        )


def _plain(direction: Direction, probe: Separability | None) -> dict[str, Any]:
    return {
        "name": direction.name,
        "types_a": len(direction.a),
        "types_b": len(direction.b),
        "distance": direction.distance,
        "equation14": direction.equation14,
        "outside": direction.outside,
        "pool": direction.pool,
        "notes": list(direction.notes),
        "separability": None if probe is None else {**probe.row(), "sizes": dict(probe.sizes)},
    }


def _print_direction(out: Console, direction: Direction) -> None:
    from rich.text import Text

    dealt = {
        "members": "its own types dealt out at random",
        "pairs": "the two words of each pair exchanged at random",
        "vocabulary": "the types of the vocabulary dealt out at random",
    }[direction.pool]
    parts = [
        *direction.notes,
        f"means {direction.distance:.2f} standard deviations apart"
        if len(direction.a)
        else f"length {direction.distance:.2f} standard deviations",
        f"shuffled: {dealt}",
    ]
    out.print(Text(f"{direction.name}: {'; '.join(parts)}."), soft_wrap=True)


def _print_curve(out: Console, curve: PropertyCurve) -> None:
    from rich import box
    from rich.table import Table

    inputs = "+".join(curve.inputs)
    out.print(f"\n{curve.direction.name} · {curve.state} · inputs: {inputs}", style="bold")
    table = Table(box=box.SIMPLE_HEAD)
    headings = ["delay", "m", "", "noise", "random", "shuffled"]
    for n in curve.leading:
        headings += [
            f"cos H{_low(n)}",
            "random",
            "shuffled",
            "σ₁/Σσ" if n == 1 else f"Σ{_low(n)}σ/Σσ",
        ]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in curve.rows():
        mark = curve_mark(row)
        cells = [str(row["delay"]), _value(row, "m"), mark]
        cells += [_number(row["m_noise"]), _band(row, "m_random"), _band(row, "m_shuffled")]
        for n in curve.leading:
            cells += [
                _value(row, f"cos{n}"),
                _band(row, f"cos{n}_random"),
                _band(row, f"cos{n}_shuffled"),
                _number(row[f"share{n}"]),
            ]
        table.add_row(*cells, style="dim" if mark else None)
    out.print(table)


def _low(n: int) -> str:
    return str(n).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else ""


def _value(row: dict[str, Any], key: str) -> str:
    error = row[f"{key}_stderr"]
    return f"{row[key]:.3f}" + (f"±{error:.3f}" if math.isfinite(error) else "")


def _band(row: dict[str, Any], key: str) -> str:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return f"{low:.2f}–{high:.2f}" if math.isfinite(low) else ""
