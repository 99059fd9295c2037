"""`mnemoscope export`: from a framework's model to a memory model."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import click
from mnemoscope.analyzer.errors import MnemoscopeError

from ._lazy import example
from ._output import check_output, output_option


@click.group(epilog=example("mnemoscope export torch model.py:build -o model.onnx"))
def export() -> None:
    """Write a model of some framework as an ONNX file with roles."""


@export.command(
    epilog=example(
        "mnemoscope export torch model.py:build --weights best.pt --vocabulary words.txt "
        "-o model.onnx",
    )
)
@click.argument("reference", metavar="FILE.py:OBJECT")
@output_option("memory model")
@click.option("--weights", metavar="FILE", help="Weights: safetensors, or a saved state_dict.")
@click.option("--vocabulary", metavar="FILE", help="Tokens, one a line, in the order of the ids.")
@click.option(
    "--level", type=click.Choice(["word", "char"]), help="What a token is.  [from the vocabulary]"
)
@click.option("--unknown", metavar="TOKEN", help="Token for every other word.  [<unk> if present]")
@click.option("--end-of-line", metavar="TOKEN", help="Token at line ends.  [<eos> if present]")
@click.option(
    "--batch-first/--time-major",
    default=None,
    help="Whether tokens are [batch, time] or [time, batch].  [found by trying]",
)
@click.option("--state-shapes", metavar="JSON", help="Shapes of the initial state, as JSON.")
@click.option("--state-names", metavar="A,B", help="Names of the states, in their order.")
@click.option("--embedding", metavar="NAME", help="Submodule that embeds.  [found]")
@click.option("--vocabulary-size", type=click.IntRange(min=1), help="Number of token ids.  [found]")
@click.option("--seed", type=click.IntRange(min=0), help="Of the random tokens of the check.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    help="Largest accepted difference from the original.",
)
def torch(
    reference: str,
    output: str,
    state_shapes: str | None,
    state_names: str | None,
    **options: Any,
) -> None:
    """Export a PyTorch language model, and check the file against it.

    OBJECT is a torch.nn.Module in FILE.py, or a class or function that returns one; its forward
    is forward(tokens) -> logits or forward(tokens, state) -> (logits, state). FILE.py is run.
    """
    files = [reference.rpartition(":")[0], options["weights"], options["vocabulary"]]
    check_output(output, inputs=[f for f in files if f])
    if state_shapes is not None:
        options["state_shapes"] = _shapes(state_shapes)
    if state_names is not None:
        options["state_names"] = [name.strip() for name in state_names.split(",")]
    if find_spec("torch") is None:
        raise MnemoscopeError(
            "Exporting a PyTorch model needs PyTorch, which is not installed here. Install it: "
            "pip install 'mnemoscope[torch]'"
        )
    from mnemoscope.exporters import pytorch
    from mnemoscope.exporters._load import load_object

    report = pytorch.export(load_object(reference), output, **_given(options))
    click.echo(str(report))
    click.echo(f"Written to {output}; next: mnemoscope inspect {output}")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _shapes(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise MnemoscopeError(
            f"--state-shapes must be JSON, such as '[[1, 256], [1, 256]]'; found {text!r} "
            f"({error})."
        ) from error
