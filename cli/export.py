"""`mnemoscope export`: from a framework's model to a memory model."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click
from mnemoscope.analyzer.errors import MnemoscopeError

from ._analysis import Finite
from ._lazy import example
from ._output import check_output, output_option

if TYPE_CHECKING:
    from mnemoscope.exporters._report import Report


def _vocabulary_options(command: Callable) -> Callable:
    """Which token an id stands for."""
    options = [
        click.option(
            "--vocabulary", metavar="FILE", help="Tokens in the order of the ids: text or JSON."
        ),
        click.option(
            "--level",
            type=click.Choice(["word", "char"]),
            help="What a token is.  [from the vocabulary]",
        ),
        click.option(
            "--unknown", metavar="TOKEN", help="Token for every other word.  [<unk> if present]"
        ),
        click.option(
            "--end-of-line", metavar="TOKEN", help="Token at line ends.  [<eos> if present]"
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _check_options(command: Callable) -> Callable:
    """How the written file is compared with its source."""
    options = [
        click.option(
            "--seed", type=click.IntRange(min=0), help="Of the random tokens of the check."
        ),
        click.option(
            "--tolerance",
            type=Finite(),
            help="Largest accepted difference from the original.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


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
@_vocabulary_options
@click.option(
    "--batch-first/--time-major",
    default=None,
    help="Whether tokens are [batch, time] or [time, batch].  [found by trying]",
)
@click.option("--state-shapes", metavar="JSON", help="Shapes of the initial state, as JSON.")
@click.option("--state-names", metavar="A,B", help="Names of the states, in their order.")
@click.option(
    "--embedding", metavar="NAME", help="Submodule or tensor that the core reads.  [found]"
)
@click.option("--vocabulary-size", type=click.IntRange(min=1), help="Number of token ids.  [found]")
@_check_options
def torch(
    reference: str,
    output: str,
    state_shapes: str | None,
    state_names: str | None,
    **options: Any,
) -> None:
    """Export a PyTorch language model and check the file.

    OBJECT is a torch.nn.Module in FILE.py, or a class or function that returns one; its forward
    is forward(tokens) -> logits or forward(tokens, state) -> (logits, state). FILE.py is run.
    """
    files = [reference.rpartition(":")[0], options["weights"], options["vocabulary"]]
    check_output(output, inputs=[f for f in files if f])
    if state_shapes is not None:
        options["state_shapes"] = _shapes(state_shapes)
    options["state_names"] = _names(state_names)
    if find_spec("torch") is None:
        raise MnemoscopeError(
            "Exporting a PyTorch model needs PyTorch, which is not installed here. Install it: "
            "pip install 'mnemoscope[torch]'"
        )
    from mnemoscope.exporters import pytorch
    from mnemoscope.exporters._load import load_object

    report = pytorch.export(load_object(reference), output, **_given(options))
    _tell(report, output, unweighted=options["weights"] is None)


@export.command(
    epilog=example(
        "mnemoscope export keras model.keras --vocabulary words.txt -o model.onnx",
        "mnemoscope export keras model.py:build --weights best.weights.h5 -o model.onnx",
    )
)
@click.argument("source", metavar="MODEL")
@output_option("memory model")
@click.option("--weights", metavar="FILE", help="Weights, from model.save_weights.")
@_vocabulary_options
@click.option("--tokens", metavar="NAME", help="Input that takes the token ids.  [found]")
@click.option("--state-names", metavar="A,B", help="Names of the states, in their order.")
@click.option("--embedding", metavar="NAME", help="Layer that the core reads.  [found]")
@click.option("--vocabulary-size", type=click.IntRange(min=1), help="Number of token ids.  [found]")
@_check_options
def keras(source: str, output: str, state_names: str | None, **options: Any) -> None:
    """Export a Keras language model and check the file.

    MODEL is a .keras file, an H5 file, a SavedModel folder, or FILE.py:OBJECT with a keras.Model
    in FILE.py, or a class or function that returns one. FILE.py is run. A .keras or H5 file runs no
    code of its own; a SavedModel is a program of TensorFlow's operations, run if all of them are
    known to compute from their inputs alone.
    """
    files = [source, source.rpartition(":")[0], options["weights"], options["vocabulary"]]
    check_output(output, inputs=[f for f in files if f])
    options["state_names"] = _names(state_names)
    _require_tensorflow("a Keras model")
    with _without_chatter():
        from mnemoscope.exporters import tensorflow

        whole = os.path.isfile(os.path.join(source, "saved_model.pb"))
        model = source if whole else tensorflow.load_model(source)
        report = tensorflow.export(model, output, **_given(options))
    _tell(report, output, unweighted=options["weights"] is None and not os.path.exists(source))


@export.command(
    name="tf1-checkpoint",
    epilog=example("mnemoscope export tf1-checkpoint train/model.ckpt-100 -o model.onnx"),
)
@click.argument("checkpoint", metavar="CHECKPOINT")
@output_option("memory model")
@_vocabulary_options
@click.option(
    "--forget-bias", type=float, help="Added to the forget gate of LSTM cells.  [default: 1.0]"
)
@click.option("--embedding", metavar="NAME", help="Variable [V, E], or one-hot.  [found]")
@click.option("--output-weights", metavar="NAME", help="Variable [H, V] or [V, H].  [found]")
@click.option("--output-bias", metavar="NAME", help="Variable [V], or none.  [found]")
@click.option(
    "--scope",
    metavar="PREFIX,PREFIX",
    help="Only variables whose names begin so; cells under several prefixes stack in that order.",
)
@click.option("--state-names", metavar="A,B", help="Names of the states, in their order.")
@_check_options
def tf1_checkpoint(checkpoint: str, output: str, state_names: str | None, **options: Any) -> None:
    """Export a language model from TensorFlow 1.

    CHECKPOINT is the prefix of its files (model.ckpt-100) or their folder. Known are the cells of
    tf.nn.rnn_cell: BasicLSTMCell, LSTMCell, LSTMBlockCell, LSTMBlockFusedCell, GRUCell,
    BasicRNNCell, alone or in a MultiRNNCell.
    """
    files = [checkpoint, f"{checkpoint}.index", f"{checkpoint}.meta", options["vocabulary"]]
    check_output(output, inputs=[f for f in files if f])
    options["state_names"] = _names(state_names)
    _require_tensorflow("a TensorFlow 1 checkpoint")
    with _without_chatter():
        from mnemoscope.exporters import tf1_checkpoint as exporter

        report = exporter.export(checkpoint, output, **_given(options))
    _tell(report, output)


@export.command(
    epilog=example("mnemoscope export onnx shipped.onnx --vocabulary words.txt -o model.onnx")
)
@click.argument("shipped", metavar="SHIPPED.onnx")
@output_option("memory model")
@click.option(
    "--roles", metavar="FILE", help="What inference cannot decide, as JSON (docs/shipped.md)."
)
@click.option(
    "--features", metavar="FILE.npy", help="Rows [V, E] for a model that reads features.  [one-hot]"
)
@_vocabulary_options
@_check_options
def onnx(shipped: str, output: str, **options: Any) -> None:
    """Give a shipped ONNX model its roles, and check it.

    Which tensor is a state, and of what kind, is found by tracing it to recurrent nodes, by its
    name and by what the model does; every finding is printed with its evidence. What cannot be
    decided is asked for: a template is written beside the output, to be given with --roles.
    """
    files = [options["roles"], options["vocabulary"], options["features"]]
    check_output(output, inputs=[shipped, *(f for f in files if f)])
    from mnemoscope.exporters import shipped as exporter

    _tell(exporter.export(shipped, output, **_given(options)), output)


def _require_tensorflow(what: str) -> None:
    """Say what to install, where something is missing."""
    missing = [name for name in ("tensorflow", "tf2onnx") if find_spec(name) is None]
    if missing:
        raise MnemoscopeError(
            f"Exporting {what} needs TensorFlow and tf2onnx; {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed here. Install: "
            "pip install 'mnemoscope[tensorflow]'"
        )


def _without_chatter() -> AbstractContextManager[None]:
    """TensorFlow as it is needed here, and quiet; to be called before it is imported."""
    from mnemoscope.exporters._quiet import silenced

    # Its C++ part reads these when it is loaded.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    return silenced("tensorflow", "absl", "tf2onnx", level=logging.ERROR)


def _tell(report: Report, output: str, *, unweighted: bool = False) -> None:
    for line in _lines(report):
        click.echo(line)
    if unweighted:
        click.echo("No --weights given: the weights are as OBJECT left them.")
    click.echo(f"Written to {output}; next: mnemoscope inspect {output}")


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def _lines(report: Report) -> Iterator[str]:
    yield from (f"{name}: {why}." for name, why in report.evidence)
    logits = f"{report.logits}{', log-probabilities' if report.normalized else ''}"
    yield f"Tokens {report.tokens} in {report.vocabulary_size:,} kinds, logits {logits}."
    yield f"Embedding of {report.embedding_size}; initial state: {report.initial}."
    yield "States: " + ", ".join(f"{s.name} ({s.kind}, layer {s.layer})" for s in report.states)
    yield from (f"Note: {note}" for note in report.notes)
    parity = report.parity
    yield (
        f"Step from {report.route}; differs from the original by {parity.worst:.1e} at most over "
        f"{parity.steps} steps and batches of {', '.join(map(str, parity.batches))} "
        f"({parity.tolerance:.0e} allowed)."
    )


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _shapes(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise MnemoscopeError(
            """--state-shapes must be JSON, such as '[[1, "N", 256], [1, "N", 256]]'; found """
            f"{text!r} ({error})."
        ) from error
