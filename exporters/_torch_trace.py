"""From a step in PyTorch to a step graph in ONNX, by several routes."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator

import onnx
import torch
from mnemoscope.analyzer.roles import OPSET

from ._quiet import silenced
from ._torch_state import Leaf, Tensors

# Any size above 1 that is no usual layer width, so that no guard ties the batch to a width.
_BATCH = 5


def routes(
    step: torch.nn.Module, leaves: list[Leaf]
) -> Iterator[tuple[str, Callable[[], onnx.ModelProto]]]:
    """The ways to trace `step`, best first, each with its name.

    First through decompositions: an ``nn.LSTM`` becomes the operators that it is made of, where
    the exporter's own translation would make one LSTM operator. The others help where tracing
    with symbolic shapes fails.
    """
    tokens = torch.zeros(_BATCH, 1, dtype=torch.int64)
    states = [leaf.start(_BATCH).contiguous() for leaf in leaves]
    yield "torch.export", lambda: _decomposed(step, tokens, states, leaves)
    yield "torch.onnx", lambda: _direct(step, tokens, states, leaves)
    yield "TorchScript", lambda: _scripted(step, tokens, states, leaves)


def _decomposed(
    step: torch.nn.Module, tokens: torch.Tensor, states: Tensors, leaves: list[Leaf]
) -> onnx.ModelProto:
    with _quiet():
        program = torch.export.export(
            step, (tokens, states), dynamic_shapes=_dynamic(leaves), strict=False
        ).run_decompositions()
        written = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    return _proto(written)


def _direct(
    step: torch.nn.Module, tokens: torch.Tensor, states: Tensors, leaves: list[Leaf]
) -> onnx.ModelProto:
    with _quiet():
        written = torch.onnx.export(
            step,
            (tokens, states),
            dynamo=True,
            dynamic_shapes=_dynamic(leaves),
            opset_version=OPSET,
            verbose=False,
        )
    return _proto(written)


def _scripted(
    step: torch.nn.Module, tokens: torch.Tensor, states: Tensors, leaves: list[Leaf]
) -> onnx.ModelProto:
    inputs = ["tokens.given", *(f"state.given.{k}" for k in range(len(leaves)))]
    axes = {inputs[0]: {0: "batch"}}
    axes.update(
        {name: {leaf.batch_axis: "batch"} for name, leaf in zip(inputs[1:], leaves, strict=True)}
    )
    file = io.BytesIO()
    with _quiet():
        torch.onnx.export(
            step,
            (tokens, states),
            file,  # type: ignore[arg-type]  # the annotation forgets what this route can do
            dynamo=False,
            opset_version=OPSET,
            input_names=inputs,
            dynamic_axes=axes,
        )
    return onnx.load_from_string(file.getvalue())


def _dynamic(leaves: list[Leaf]) -> tuple[object, object]:
    batch = torch.export.Dim("batch")
    return ({0: batch}, [{leaf.batch_axis: batch} for leaf in leaves])


def _proto(written: torch.onnx.ONNXProgram | None) -> onnx.ModelProto:
    assert written is not None
    return written.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's chatter: deprecations inside its exporter, optional packages it misses."""
    with (
        silenced("torch.onnx", "torch.export", "onnxscript"),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
