"""From a step graph to a memory model on disk, whatever framework the graph came from."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from mnemoscope.analyzer import _runtime
from mnemoscope.analyzer._files import replacing
from mnemoscope.analyzer._passes import reads
from mnemoscope.analyzer._version import __version__
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import IR_VERSION, OPSET, Roles, Vocabulary, write_roles
from onnx import helper

from ._embedding import EMBEDDING, cut_at_embedding
from ._graph import initializer_names, rename_values

# A protobuf message cannot be larger.
_LARGEST = 2**31 - 1


def build_memory_model(
    step: onnx.ModelProto,
    roles: Roles,
    vocabulary: Vocabulary | None,
    *,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    embedding: str | None = None,
) -> onnx.ModelProto:
    """Turn a step graph into a memory model: interface, cut point, roles, checks.

    Args:
        step: One time step at opset 18: tokens ``[batch, 1]`` and states in, logits
            ``[batch, 1, V]`` and states out, every batch axis dynamic.
        roles: The roles, under the names that the memory model shall have.
        vocabulary: The tokens, or None.
        inputs: Graph input of `step` → its name in the memory model; all inputs.
        outputs: Name in the memory model → graph output of `step`. Other outputs are dropped.
        embedding: Tensor of `step` to cut at; None looks for it.

    Returns:
        The memory model, passed by ``onnx.checker``.

    Raises:
        ModelError: No embedding or several; a shape that is not the contract's; a graph that the
            checker refuses.
    """
    model = onnx.ModelProto()
    model.CopyFrom(step)
    # What inference cannot tell, behind operators that it does not know.
    stated = {o.name: o for o in step.graph.output}
    declared = {name: stated[old] for name, old in outputs.items() if old in stated}
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _strip(model)
    embedding = _rename_interface(model, inputs, outputs, embedding)
    model = cut_at_embedding(model, roles.tokens, embedding=embedding)
    _drop_unused(model.graph)
    _declare_shapes(model, roles, declared)
    model.ir_version = IR_VERSION
    model.graph.name = "step"
    model.producer_name, model.producer_version = "mnemoscope", __version__
    write_roles(model, roles, vocabulary)
    versions = {o.domain: o.version for o in model.opset_import}
    if versions.get("") != OPSET:
        raise ModelError(f"Expected a step graph at opset {OPSET}, found {versions}.")
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's errors share no base class
        raise ModelError(
            "The written model is not valid: its operators, types and shapes contradict each "
            f"other ({_runtime.said(error)}). Does the source run as it is?"
        ) from error
    return model


def require_writable(path: str | os.PathLike[str]) -> Path:
    """`path`, after asking whether a file can be put there: before the long work, not after.

    Raises:
        ModelError: The folder is missing or cannot be written to, or `path` is a folder.
    """
    target = Path(path)
    folder = target.parent
    if target.is_dir():
        raise ModelError(f"Expected a file name to write to, found the folder {str(target)!r}.")
    if not folder.is_dir():
        raise ModelError(
            f"Cannot write {str(target)!r}: there is no folder {str(folder)!r}. Create it first."
        )
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ModelError(f"Cannot write into {str(folder)!r}: {error.strerror}.") from error
    return target


def save(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write `model` under a temporary name beside `path`, then move it into place.

    Raises:
        ModelError: It is too large for one file, or the folder cannot be written to.
    """
    target = Path(path)
    if model.ByteSize() > _LARGEST:
        raise ModelError(
            f"The model takes {model.ByteSize() / 2**30:.1f} GiB; one ONNX file holds 2 GiB."
        )
    try:
        with replacing(target) as temporary:
            temporary.write_bytes(model.SerializeToString())
    except OSError as error:
        raise ModelError(f"Cannot write {str(target)!r}: {error.strerror}.") from error


def hash_weights(weights: Iterable[tuple[str, np.ndarray]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the weights, in the order of the names.

    Raises:
        ModelError: A weight is NaN or infinite.
    """
    digest = hashlib.sha256()
    for name, array in sorted(weights, key=lambda item: item[0]):
        if np.issubdtype(array.dtype, np.floating) and not np.all(np.isfinite(array)):
            bad = int(np.size(array) - np.count_nonzero(np.isfinite(array)))
            raise ModelError(
                f"The weight {name!r} holds {bad} values that are NaN or infinite (of "
                f"{np.size(array)}); expected finite weights. Did the training diverge?"
            )
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _strip(model: onnx.ModelProto) -> None:
    """Drop what the framework noted for its own use: stack traces hold the user's paths."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""
    model.domain = ""
    for item in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


def _rename_interface(
    model: onnx.ModelProto,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    embedding: str | None,
) -> str | None:
    """Give the graph's inputs and outputs their names; returns the embedding's, if it was named."""
    graph = model.graph
    found = [i.name for i in graph.input]
    if sorted(found) != sorted(inputs):
        raise ModelError(f"Expected the graph inputs {sorted(inputs)}, found {sorted(found)}.")
    taken = {*inputs.values(), *outputs, EMBEDDING}
    produced = {o for node in graph.node for o in node.output if o}
    new = {name: f"{name}.inner" for name in produced | initializer_names(graph) if name in taken}
    new.update(inputs)
    identities = []
    del graph.output[:]
    for name, old in outputs.items():
        # One tensor may serve as two outputs, or an input or the embedding be passed on.
        if old in produced and new.get(old, old) not in outputs and old != embedding:
            new[old] = name
        else:
            identities.append((old, name))
        graph.output.add(name=name)
    rename_values(graph.node, new)
    for value in (*graph.input, *graph.initializer):
        value.name = new.get(value.name, value.name)
    for old, name in identities:
        graph.node.append(helper.make_node("Identity", [new.get(old, old)], [name], name=name))
    return None if embedding is None else new.get(embedding, embedding)


def _drop_unused(graph: onnx.GraphProto) -> None:
    read = {i for node in graph.node for i in reads(node)} | {o.name for o in graph.output}
    kept = [t for t in graph.initializer if t.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _declare_shapes(
    model: onnx.ModelProto, roles: Roles, declared: Mapping[str, onnx.ValueInfoProto]
) -> None:
    """Write the contract's shapes on inputs and outputs: one symbol, ``batch``, all else known."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    elements = {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.output)}
    given = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*inferred.input, *inferred.output)
    }
    for name, value in declared.items():
        tensor = value.type.tensor_type
        elements[name] = elements.get(name) or tensor.elem_type
        if not given.get(name) or not given[name][-1]:
            given[name] = [d.dim_value for d in tensor.shape.dim]
    shapes: dict[str, list[int | str]] = {
        roles.tokens: ["batch", 1],
        roles.embedding: ["batch", 1, given[roles.embedding][-1]],
        roles.logits: ["batch", 1, given[roles.logits][-1]],
    }
    for state in roles.states:
        shape: list[int | str] = [*given[state.input]]
        shape[state.batch_axis] = "batch"
        shapes[state.input] = shapes[state.output] = shape
    for values in (model.graph.input, model.graph.output):
        for value in values:
            name = value.name
            value.CopyFrom(helper.make_tensor_value_info(name, elements[name], shapes[name]))
