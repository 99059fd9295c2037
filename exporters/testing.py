"""Checks for writers of exporters: a file keeps the contract and computes what it should."""

from __future__ import annotations

import os
from collections.abc import Sequence

import onnx
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import IR_VERSION, OPSET, read_roles

from ._embedding import require_true_cut
from ._parity import Feeds, Parity, ParityError, Reference, check_parity

__all__ = ["Feeds", "Parity", "ParityError", "Reference", "check_exporter", "check_parity"]


def check_exporter(
    path: str | os.PathLike[str],
    reference: Reference,
    *,
    steps: int = 4,
    batches: Sequence[int] = (1, 2, 5),
    tolerance: float | None = None,
    seed: int = 0,
) -> Parity:
    """Check a memory model that an exporter wrote against the model that it was made from.

    The file must pass ``onnx.checker``, have the opset and IR version of the contract, roles that
    fit the graph, an embedding that separates the tokens from everything else, and must agree
    with `reference` over several steps and batch sizes.

    Args:
        path: The file.
        reference: One step of the source, as in `check_parity`: graph inputs by name in, logits
            ``[batch, 1, V]`` and new states by the names of the graph outputs out.
        steps: Time steps in a row, the state fed back.
        batches: Numbers of streams.
        tolerance: As in `check_parity`.
        seed: As in `check_parity`.

    Returns:
        The differences found.

    Raises:
        ModelError: The contract is broken; the message says where.
        ParityError: The results differ.
    """
    model = onnx.load(os.fspath(path))
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's errors share no base class
        raise ModelError(f"onnx.checker refuses {os.fspath(path)!r}: {error}") from error
    versions = {o.domain: o.version for o in model.opset_import}
    if versions.get("", 0) < OPSET or versions.get("", 0) > 20 or model.ir_version < IR_VERSION:
        raise ModelError(
            f"Expected opset {OPSET} to 20 and IR version {IR_VERSION} or later, found "
            f"{versions} and {model.ir_version}."
        )
    roles, vocabulary = read_roles(model)
    require_true_cut(model.graph, roles.tokens, roles.embedding)
    shapes = {
        o.name: [d.dim_value or d.dim_param for d in o.type.tensor_type.shape.dim]
        for o in model.graph.output
    }
    for name in (roles.embedding, roles.logits):
        if len(shapes[name]) != 3 or not isinstance(shapes[name][-1], int):
            raise ModelError(
                f"Expected {name!r} as [batch, time, width] with a known width, found "
                f"{shapes[name]}."
            )
    size = int(shapes[roles.logits][-1])
    if vocabulary is not None and len(vocabulary.tokens) != size:
        raise ModelError(
            f"The vocabulary has {len(vocabulary.tokens)} tokens, the logits have {size}."
        )
    return check_parity(
        model,
        reference,
        vocabulary_size=size,
        steps=steps,
        batches=batches,
        tolerance=tolerance,
        seed=seed,
    )
