"""SavedModel folders: graphs of whole sequences, converted and then read like a shipped file.

A SavedModel holds no layers whose cells could be called, but a graph whose loop over time is
closed. tf2onnx turns it into LSTM nodes and Loops, and `shipped` finds the states in those.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from google.protobuf.message import DecodeError
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import State, read_roles, rename_states, write_roles
from tensorflow.core.protobuf import saved_model_pb2

from . import shipped
from ._graph import initializer_names, produced_values, rename_values
from ._keras_trace import trace
from ._memory_model import require_writable, save
from ._parity import LONG, Feeds, check_sequences
from ._report import Report
from ._shipped_output import SMALLEST, are_probabilities, logarithm
from ._shipped_roles import RolesNeeded
from ._vocabulary import VocabularyOptions

# A SavedModel is a program, and TensorFlow has over a thousand operations, among them many that
# read and write files, run code or use the network. What loading or a signature may run must be
# one of those that tf2onnx converts, which compute from their inputs, or of these.
_HARMLESS = re.compile(
    "|".join(
        (
            r"(Stateful)?PartitionedCall|Case|StatelessCase|Assert|ControlTrigger",
            r"VarHandleOp|(Read|Assign|Destroy)(\w*Variable|Resource)Op|VariableShape",
            r"Resource(Gather(Nd)?|Scatter\w+|Apply\w+)|VariableV2|Variable|Assign",
            r"Enter|Exit|NextIteration|Switch|Merge|LoopCond",  # loops of TensorFlow 1
            r"TensorList\w+|EmptyTensorList|TensorArray\w+|Stack(Push|Pop)?V2",
            r"(Mutable)?HashTable(V2)?|AnonymousHashTable|InitializeTable(V2)?",
            r"LookupTable(Insert|Remove|Export)V2|CudnnRNN\w*|Random(Uniform|Normal|Gamma)\w*",
            r"Stateless(Random|Truncated|Multinomial|Parameterized)\w*|TruncatedNormal",
            r"\w+Grad(V\d)?|BroadcastGradientArgs|PreventGradient|ConcatOffset",
            r"Rank|Empty|LinSpace|Bitcast|ListDiff|ApproximateEqual|LogicalXor|Log1p|Expm1|Xdivy",
            r"Xlogy|Xlog1py",
        )
    )
)
# A graph of TensorFlow 1 reads its variables by operations of its own.
_READS_VARIABLES = {"RestoreV2", "Restore"}
_LARGEST_GRAPH = 2**31 - 1
_NO_NAMES = (
    "A SavedModel keeps no names of layers: name the states with --state-names (a name that ends "
    "in .h or .c tells the kind too), or save a .keras file."
)


def is_saved_model(path: Any) -> bool:
    """Whether `path` is a SavedModel folder."""
    return isinstance(path, str | os.PathLike) and (Path(path) / "saved_model.pb").is_file()


def export_saved_model(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    said: VocabularyOptions,
    names: Sequence[str] | None,
    *,
    seed: int,
    tolerance: float | None,
) -> Report:
    """Write the language model in a SavedModel folder as a memory model.

    Args:
        folder: What ``model.export(folder)`` or ``tf.saved_model.save`` wrote: one signature
            that takes token ids ``[batch, time]`` and gives logits.
        path: The ONNX file to write.
        said: What a user says of the tokens.
        names: Of the states, in their order; None keeps those that are found.
        seed: As of `shipped.export`.
        tolerance: As of `shipped.export`.

    Raises:
        ModelError: The folder cannot be used, or its states are not found; nothing is written.
    """
    target = require_writable(path)
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
            found = shipped.write(
                graph, file, said, keras_reserved=True, seed=seed, tolerance=tolerance
            )
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
    source = {**roles.source, "framework": "tensorflow", "framework_version": tf.__version__}
    roles = replace(roles, states=states, source=source)
    del model.metadata_props[:]
    write_roles(model, roles, vocabulary)
    which = [o.name for o in graph.graph.output].index(found.logits.split(" ")[0])

    def whole(ids: np.ndarray, _: Feeds) -> tuple[np.ndarray, Feeds]:
        logits = np.asarray(run(tf.constant(ids, ids_type))[which])
        if found.normalized and are_probabilities(logits):  # their logarithm was written
            logits = logarithm(logits)
        return logits.reshape(len(ids), -1, logits.shape[-1]), {}

    streams, steps = spec.shape if spec.shape.rank == 2 else (None, None)
    parity = check_sequences(
        model,
        whole,
        vocabulary_size=found.vocabulary_size,
        lengths=(steps or 6,),
        long=None if steps else LONG,
        batches=(1, 2, 5) if streams is None else (streams,),
        lowest=float(np.log(SMALLEST)) if found.normalized else None,
        from_random=False,
        tolerance=tolerance,
        seed=seed,
    )
    save(model, target)
    return replace(
        found,
        path=str(target),
        tokens="[batch, time]",
        states=states,
        route="a SavedModel, converted whole by tf2onnx",
        parity=parity,
        notes=found.notes if names is not None else (*found.notes, _NO_NAMES),
        evidence=tuple((called.get(role, role), why) for role, why in found.evidence),
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
    from tf2onnx import onnx_opset  # noqa: F401 (registers what can be converted)
    from tf2onnx.handler import tf_op

    converted = {name for version in tf_op.get_opsets()[""] for name in version}
    bad = sorted(
        name
        for meta in message.meta_graphs
        for name in _operations(meta) - converted
        if not _HARMLESS.fullmatch(name)
    )
    if bad:
        raise ModelError(
            f"{str(folder)!r} uses {', '.join(bad[:8])}{' and more' if len(bad) > 8 else ''}, not "
            "known to compute from its inputs alone: it may reach out of the model, to files or "
            "to code. It was not loaded; save the model with model.save('m.keras'), or export a "
            "model that computes from its input alone."
        )


def _operations(meta: Any) -> set[str]:
    """The operations that loading `meta` or calling a signature of it may run."""
    library = {f.signature.name: f.node_def for f in meta.graph_def.library.function}
    if meta.HasField("object_graph_def"):
        # TensorFlow 2 runs functions only: signatures, and those that set up resources. Functions
        # that save the variables are in the library as well, but belong to no object.
        found: set[str] = set()
        waiting = list(meta.object_graph_def.concrete_functions)
    else:
        found, waiting = _of_nodes(_restored_or_fetched(meta), library)
        found -= _READS_VARIABLES
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in seen and name in library:
            seen.add(name)
            operations, called = _of_nodes(library[name], library)
            found |= operations
            waiting += called
    return found


def _of_nodes(nodes: Iterable[Any], library: Container[str]) -> tuple[set[str], list[str]]:
    """The operations of `nodes`, and the functions that they call."""
    operations, called = set(), []
    for node in nodes:
        if node.op in library:
            called.append(node.op)
        else:
            operations.add(node.op)
        for value in node.attr.values():
            called += [value.func.name, *(f.name for f in value.list.func)]
    return operations, called


def _restored_or_fetched(meta: Any) -> list[Any]:
    """The nodes of a graph of TensorFlow 1 that restore its variables or lead to its outputs."""
    nodes = {n.name: n for n in meta.graph_def.node}
    waiting = [o.name for s in meta.signature_def.values() for o in s.outputs.values()]
    waiting.append(meta.saver_def.restore_op_name)
    for collection in meta.collection_def.values():  # the initialisers are in some of them
        waiting += collection.node_list.value
    seen: dict[str, Any] = {}
    while waiting:
        name = waiting.pop().lstrip("^").partition(":")[0]
        if name in nodes and name not in seen:
            seen[name] = nodes[name]
            waiting += nodes[name].input
    return list(seen.values())


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
