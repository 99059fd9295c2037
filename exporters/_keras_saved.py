"""SavedModel folders: graphs of whole sequences, converted and then read like a shipped file.

A SavedModel holds no layers whose cells could be called, but a graph whose loop over time is
closed. tf2onnx turns it into LSTM nodes and Loops, and `shipped` finds the states in those.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from google.protobuf.message import DecodeError
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import Roles, State, read_roles, rename_states, write_roles
from tensorflow.core.protobuf import saved_model_pb2

from . import shipped
from ._graph import initializer_names, produced_values, rename_values
from ._keras_trace import trace
from ._memory_model import require_writable, save
from ._parity import Feeds, check_sequences
from ._report import Report
from ._shipped_roles import RolesNeeded

# A SavedModel is a program. These of TensorFlow's operations reach beyond it: files, code, network.
_REACH_OUT = (
    "ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc",
    "WholeFileReader", "WholeFileReaderV2", "TextLineReader", "TextLineReaderV2", "TFRecordReader",
    "TFRecordReaderV2", "FixedLengthRecordReader", "FixedLengthRecordReaderV2", "TextLineDataset",
    "TFRecordDataset", "FixedLengthRecordDataset", "ImmutableConst", "PrintV2", "RemoteCall",
    "LoadDataset", "SaveDataset", "SaveDatasetV2", "RpcCall", "RpcClient", "RpcServer",
    "LookupTableImport", "InitializeTableFromTextFile", "InitializeTableFromTextFileV2",
)  # fmt: skip
_LARGEST_GRAPH = 2**31 - 1
_NO_NAMES = (
    "A SavedModel keeps no names of layers: name the states with --state-names (a name that ends "
    "in .h or .c tells the kind too), or save a .keras file."
)
# Probabilities below this are not told apart: float32 rounds them to zero soon after.
_SMALLEST = 1e-30


def is_saved_model(path: Any) -> bool:
    """Whether `path` is a SavedModel folder."""
    return isinstance(path, str | os.PathLike) and (Path(path) / "saved_model.pb").is_file()


def export_saved_model(
    folder: str | os.PathLike[str], path: str | os.PathLike[str], **options: Any
) -> Report:
    """Write the language model in a SavedModel folder as a memory model.

    Args:
        folder: What ``model.export(folder)`` or ``tf.saved_model.save`` wrote: one signature
            that takes token ids ``[batch, time]`` and gives logits.
        path: The ONNX file to write.
        options: As of `shipped.export`, and ``state_names``.

    Raises:
        ModelError: The folder cannot be used, or its states are not found; nothing is written.
    """
    target = require_writable(path)
    names = options.pop("state_names", None)
    _require_harmless(Path(folder))
    try:
        loaded = tf.saved_model.load(os.fspath(folder))
    except Exception as error:  # TensorFlow raises whatever the broken folder leads to
        raise ModelError(
            f"TensorFlow cannot load {os.fspath(folder)!r}: {type(error).__name__}: "
            f"{_first(error)} Write it again with model.export."
        ) from error
    function, name, spec = _signature(loaded, os.fspath(folder))
    # Keras declares ids as float32 unless told otherwise.
    ids_type = spec.dtype if spec.dtype.is_integer or spec.shape.rank != 2 else tf.int64
    tokens = tf.TensorSpec(spec.shape, ids_type, name="tokens")

    def run(ids: Any) -> tuple[Any, ...]:
        return tuple(function(**{name: tf.cast(ids, spec.dtype)}).values())

    graph = trace(run, [tokens])
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / target.name
        try:
            found = shipped.export(graph, file, **options)
        except RolesNeeded as error:
            reason = str(error).partition(" A template")[0]
            raise ModelError(
                f"{reason} Save the model with model.save('m.keras') where it was made, or write a "
                "FILE.py whose function builds it, and export that."
            ) from error
        model = onnx.load(file)
    roles, vocabulary = read_roles(model)
    states = _named(model, roles.states, names)
    called = {old.name: new.name for old, new in zip(roles.states, states, strict=True)}
    source = {
        **roles.source,
        "framework": "tensorflow",
        "framework_version": tf.__version__,
    }
    roles = Roles(roles.tokens, roles.embedding, states, roles.logits, roles.normalized, source)
    del model.metadata_props[:]
    write_roles(model, roles, vocabulary)
    which = [o.name for o in graph.graph.output].index(found.logits.split(" ")[0])

    def whole(ids: np.ndarray, _: Feeds) -> tuple[np.ndarray, Feeds]:
        logits = np.asarray(run(tf.constant(ids, ids_type))[which])
        if found.normalized and logits.min() >= 0:  # probabilities; written are their logarithms
            logits = np.log(np.maximum(logits, _SMALLEST))
        return logits.reshape(len(ids), -1, logits.shape[-1]), {}

    parity = check_sequences(
        model,
        whole,
        vocabulary_size=found.vocabulary_size,
        lengths=(spec.shape[1] or 6,),
        long=None if spec.shape[1] else 80,
        lowest=float(np.log(_SMALLEST)) if found.normalized else None,
        from_random=False,
        tolerance=options.get("tolerance"),
        seed=options.get("seed") or 0,
    )
    save(model, target)
    return Report(
        path=str(target),
        tokens="[batch, time]",
        logits=found.logits,
        vocabulary_size=found.vocabulary_size,
        embedding_size=found.embedding_size,
        normalized=found.normalized,
        states=states,
        initial="the graph's own",
        route="a SavedModel, converted whole by tf2onnx",
        parity=parity,
        notes=(
            *(f"{called.get(role, role)}: {why}." for role, why in found.evidence),
            *found.notes,
            *(() if names is not None else (_NO_NAMES,)),
        ),
    )


def _named(
    model: onnx.ModelProto, states: tuple[State, ...], names: Sequence[str] | None
) -> tuple[State, ...]:
    """The states under the names that were given, and so their tensors in the graph."""
    graph = model.graph
    tensors: dict[str, str] = {}
    named = []
    for old, new in zip(states, rename_states(states, names), strict=True):
        for tensor in (old.input, old.output):
            if tensor.startswith(old.name):
                tensors[tensor] = new.name + tensor.removeprefix(old.name)
        named.append(
            replace(new, input=tensors.get(old.input, old.input),
                    output=tensors.get(old.output, old.output))
        )  # fmt: skip
    # Names may change places; another tensor that has a new name already moves aside.
    taken = (produced_values(graph) | initializer_names(graph)) - set(tensors)
    moved = {n: f"{n}.inner" for n in taken & set(tensors.values())}
    rename_values(graph.node, tensors | moved)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = (tensors | moved).get(value.name, value.name)
    return tuple(named)


def _signature(loaded: Any, folder: str) -> tuple[Any, str, tf.TensorSpec]:
    """The function that reads tokens, the name of its argument, and what that takes."""
    signatures = dict(getattr(loaded, "signatures", {}))
    function = signatures.get("serving_default") or next(iter(signatures.values()), None)
    if function is None or (len(signatures) > 1 and "serving_default" not in signatures):
        raise ModelError(
            f"{folder!r} has {len(signatures)} signatures ({', '.join(sorted(signatures))}); "
            "expected one, or one named serving_default. Write it again with model.export."
        )
    inputs = function.structured_input_signature[1]
    if len(inputs) != 1:
        raise ModelError(
            f"The signature of {folder!r} takes {', '.join(sorted(inputs)) or 'nothing'}; expected "
            "one input, the token ids [batch, time]. Save a .keras file instead."
        )
    ((name, spec),) = inputs.items()
    return function, name, spec


def _require_harmless(folder: Path) -> None:
    file = folder / "saved_model.pb"
    if file.stat().st_size > _LARGEST_GRAPH:
        raise ModelError(f"{str(file)!r} is larger than 2 GiB, which no SavedModel is.")
    message = saved_model_pb2.SavedModel()
    try:
        message.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise ModelError(f"{str(file)!r} is damaged, or no SavedModel.") from error
    bad = sorted(set(_operations(message)) & set(_REACH_OUT))
    if bad:
        raise ModelError(
            f"{str(folder)!r} uses {', '.join(bad)}, which reaches out of the model, to files or "
            "to code. It was not loaded; export a model that computes from its input alone."
        )


def _operations(message: Any) -> Iterator[str]:
    for graph in message.meta_graphs:
        for node in graph.graph_def.node:
            yield node.op
        for function in graph.graph_def.library.function:
            for node in function.node_def:
                yield node.op


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
