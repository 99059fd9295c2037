"""Opening a memory model: a file from anywhere becomes a checked object, or a clear error."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from onnx import numpy_helper

from . import _limits, _passes, _runtime
from .errors import ModelError
from .roles import Roles, State, Vocabulary, read_roles

_LARGEST = 2**31  # bytes; a protobuf message cannot be larger
_CHUNK = 4096  # tokens embedded in one run
_NUMBERS = (*_passes.FLOATS, *_passes.INTEGERS)


@dataclass(frozen=True)
class MemoryModel:
    """A memory model: an ONNX graph whose roles are known.

    Attributes:
        path: Where it was read from.
        proto: The whole ONNX model, external data loaded.
        roles: Which tensor plays which part.
        vocabulary: The tokens, where the model carries them.
    """

    path: Path
    proto: onnx.ModelProto
    roles: Roles
    vocabulary: Vocabulary | None

    @cached_property
    def sha256(self) -> str:
        """Of the file's bytes, as ``sha256sum`` prints it; external data is not part of it."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @cached_property
    def vocabulary_size(self) -> int:
        """V, the number of token ids."""
        info = next(o for o in self.proto.graph.output if o.name == self.roles.logits)
        dims = info.type.tensor_type.shape.dim
        declared = dims[-1].dim_value if dims else 0
        words = len(self.vocabulary.tokens) if self.vocabulary is not None else 0
        if not declared and not words:
            raise ModelError(
                "The size of the vocabulary is unknown: the model carries no vocabulary and its "
                "logits have no fixed last dimension. Export it with --vocabulary."
            )
        if declared and words and declared != words:
            raise ModelError(
                f"The vocabulary has {words:,} tokens, but the model gives logits for "
                f"{declared:,}. Export it again with the vocabulary that it was trained with."
            )
        return declared or words

    def embed(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Embeddings of token ids.

        Args:
            ids: ``[n]`` integers below `vocabulary_size`, at least one.

        Returns:
            ``[n, E]`` in the model's own precision.
        """
        made, name, dtype, batch = self._embedder
        size = batch or _CHUNK
        parts = []
        for start in range(0, len(ids), size):
            chunk = np.asarray(ids[start : start + size], dtype)[:, None]
            pad = (batch or len(chunk)) - len(chunk)
            padded = np.pad(chunk, ((0, pad), (0, 0)))
            (out,) = _runtime.run(made, [self.roles.embedding], {name: padded})
            if out.ndim != 3 or out.shape[:2] != padded.shape:
                raise ModelError(
                    f"The embedding must be [batch, time, E] and came out as {list(out.shape)} "
                    f"for tokens {list(padded.shape)}."
                )
            parts.append(out[: len(chunk), 0])
        return np.concatenate(parts)

    @cached_property
    def _embedder(self):
        part = _passes.extract(self.proto, [self.roles.tokens], [self.roles.embedding])
        extra = [i.name for i in part.graph.input if i.name != self.roles.tokens]
        if extra:
            raise ModelError(
                f"The embedding {self.roles.embedding!r} must depend on the tokens alone, but it "
                f"also reads {', '.join(extra)}. Choose an earlier tensor as the embedding."
            )
        made = _runtime.session(part)
        info = made.get_inputs()
        if [i.name for i in info] != [self.roles.tokens]:
            raise ModelError(
                f"The embedding {self.roles.embedding!r} does not depend on the tokens."
            )
        dtype = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}.get(info[0].type)
        if dtype is None:
            raise ModelError(f"The tokens must be int32 or int64, not {info[0].type}.")
        batch = info[0].shape[0]
        return made, self.roles.tokens, dtype, batch if isinstance(batch, int) else None

    @cached_property
    def embeddings(self) -> np.ndarray:
        """The embedding of every token, ``[V, E]``."""
        # A range, since a size that the file merely claims must not fill the memory.
        table = self.embed(range(self.vocabulary_size))
        bad = int((~np.isfinite(table)).any(1).sum())
        if bad:
            raise ModelError(
                f"The embedding {self.roles.embedding!r} is NaN or infinite for {bad} of "
                f"{len(table):,} tokens."
            )
        return table

    def embeddings_in(self, dtype: np.dtype) -> np.ndarray:
        """The embedding of every token, ``[V, E]``, computed in `dtype`.

        Not a cast of `embeddings`: an embedding may itself be the result of a computation.
        """
        if self.embeddings.dtype == dtype:
            return self.embeddings
        return replace(self, proto=_passes.to_precision(self.proto, dtype)).embeddings

    @property
    def differentiable_states(self) -> list[str]:
        """Names of the states that are not integers, in the order of the roles."""
        return [s.name for s in self.roles.states if self.state_shape(s)[1] in _passes.FLOATS]

    def state_shape(self, state: State) -> tuple[tuple[int, ...], int]:
        """The per-stream shape of one component and the ONNX element type of its tensor."""
        info = next(i for i in self.proto.graph.input if i.name == state.input)
        tensor = info.type.tensor_type
        dims = tensor.shape.dim
        axes = {a for a in (state.batch_axis, state.layer_axis) if a is not None}
        if len(dims) <= max(axes, default=0):
            raise ModelError(
                f"State {state.name} claims axes {sorted(axes)} of {state.input!r}, which has "
                f"{len(dims)} axes."
            )
        if tensor.elem_type not in _NUMBERS:
            raise ModelError(
                f"State {state.name} must be a tensor of numbers; {state.input!r} is not."
            )
        shape = []
        for axis, dim in enumerate(dims):
            if axis in axes:
                continue
            if not dim.dim_value:
                raise ModelError(
                    f"The size of state {state.name} is unknown: axis {axis} of {state.input!r} "
                    "has no fixed length."
                )
            shape.append(dim.dim_value)
        return tuple(shape), tensor.elem_type


def open_model(path: str | Path) -> MemoryModel:
    """Read and check a memory model.

    Raises:
        ModelError: The file is missing, empty, not ONNX, damaged, has no roles or roles that do
            not fit, points at data outside its own folder, or holds weights that are not finite.
    """
    path = Path(path)
    with _limits.limited("opening the model", path.stat().st_size if path.is_file() else 0):
        proto = load_proto(path)
        roles, vocabulary = read_roles(proto)
        _passes.check_finite(proto)
        model = MemoryModel(path, proto, roles, vocabulary)
        _ = model.vocabulary_size
        for state in roles.states:
            model.state_shape(state)
        return model


def load_proto(path: Path) -> onnx.ModelProto:
    """Read any ONNX file, with its external data if that lies in the model's own folder.

    Raises:
        ModelError: As for `open_model`, roles and weights aside.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ModelError(f"{path} is not a file; expected an ONNX model.")
        if size == 0:
            raise ModelError(f"{path} is empty; expected an ONNX model.")
        if size >= _LARGEST:
            raise ModelError(
                f"{path} has {size / 2**30:.1f} GiB; an ONNX file holds at most 2 GiB. Store the "
                "weights as external data beside it."
            )
        proto = onnx.load_model_from_string(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"There is no model file {path}.") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
    except DecodeError:
        raise ModelError(f"{path} is not an ONNX model, or it is cut off or damaged.") from None
    if not _is_text(proto):
        raise ModelError(f"{path} is damaged: a name or text in it is not UTF-8.")
    if not proto.graph.node or not proto.opset_import:
        raise ModelError(f"{path} is not an ONNX model: it holds no graph.")
    _load_external_data(proto, path.parent)
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is not a valid ONNX model: {_runtime.said(error)}") from None
    _check_tensors(proto)
    for graph in _passes.graphs(proto.graph):
        _fill_sparse(graph)
    return proto


def _check_tensors(proto: onnx.ModelProto) -> None:
    """Refuse stored tensors that hold more than their shape says; the checker lets them pass."""
    for tensor in _all_tensors(proto):
        try:
            numpy_helper.to_array(tensor)
        except Exception as error:  # what it raises differs between versions of onnx
            raise ModelError(
                f"The weight {tensor.name!r} does not fit its type and shape "
                f"{list(tensor.dims)[:8]}: {_runtime.said(error)}. Export the model again."
            ) from None


def _fill_sparse(graph: onnx.GraphProto) -> None:
    """Store the sparse weights of `graph` with their zeros, as every later pass expects them."""
    for sparse in graph.sparse_initializer:
        name, shape = sparse.values.name, tuple(sparse.dims)
        try:
            values = numpy_helper.to_array(sparse.values)
            at = numpy_helper.to_array(sparse.indices)
            if math.prod(shape) * values.itemsize >= _LARGEST:
                raise ModelError(
                    f"The sparse weight {name!r} has the shape {list(shape)}; with its zeros it "
                    "would take 2 GiB or more. Export the model with a smaller weight."
                )
            dense = np.zeros(shape, values.dtype)
            dense.reshape(-1)[at if at.ndim == 1 else np.ravel_multi_index(tuple(at.T), shape)] = (
                values
            )
        except (ValueError, IndexError, TypeError) as error:
            raise ModelError(
                f"The sparse weight {name!r} does not fit its shape {list(shape)}: "
                f"{_runtime.said(error)}. Export the model again."
            ) from None
        graph.initializer.append(numpy_helper.from_array(dense, name))
    del graph.sparse_initializer[:]


def _is_text(message: Message) -> bool:
    """Whether every text in `message` is UTF-8, which ONNX demands and its parser does not check.

    Weights are not touched: a field of bytes would be copied.
    """
    for entry in message.DESCRIPTOR.fields:
        if entry.type not in (entry.TYPE_STRING, entry.TYPE_MESSAGE):
            continue
        value = getattr(message, entry.name)
        several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        if entry.type == entry.TYPE_STRING:
            if any(isinstance(v, bytes) for v in (value if several else [value])):
                return False
        elif several:
            if not all(map(_is_text, value)):
                return False
        elif message.HasField(entry.name) and not _is_text(value):
            return False
    return True


def _load_external_data(proto: onnx.ModelProto, folder: Path) -> None:
    """Load external tensors, refusing any path that leaves `folder`, links included."""
    root = folder.resolve()
    for tensor in _all_tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        target = (folder / location.replace("\0", "")).resolve()  # no path can hold a NUL
        if (
            not location
            or "\0" in location
            or Path(location).is_absolute()
            or not target.is_relative_to(root)
        ):
            raise ModelError(
                f"The weight {tensor.name!r} points at {location!r}, outside the model's folder; "
                "external data must lie beside the model. The file was not opened."
            )
        if not target.is_file():
            raise ModelError(
                f"The weight {tensor.name!r} lies in {location!r}, which is missing beside the "
                "model; keep the two files together."
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of entries that nobody reads
                onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            numpy_helper.to_array(tensor)
        except Exception as error:  # what it raises differs between versions of onnx
            raise ModelError(
                f"The weight {tensor.name!r} cannot be read from {location!r}: "
                f"{_runtime.said(error)}"
            ) from None


def _all_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _passes.graphs(proto.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from _constants(graph.node)
    for function in proto.functions:
        yield from _constants(function.node)
        for inner in _passes.inner_graphs(function.node):
            yield from inner.initializer
            yield from _constants(inner.node)


def _constants(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
