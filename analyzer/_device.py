"""The products of `_products.py` on a GPU: one ONNX Runtime call per input position.

The same two buffers a state, in the device's memory; the states, the linearised step and the
products are one graph.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from . import _runtime
from ._products import Stretch, Visit, Window
from ._reading import carried_states
from ._states import States
from .linearize import EMBEDDING, Linearization


class DeviceProducts:
    """State-embedding Jacobians of a stream at every delay, one position at a time.

    Args:
        linearization: The step and its blocks, one position a call.
        max_delay: τ_max.
        wanted: Names of the states that are asked for; others are carried only where one of
            these depends on them.
        table: ``[V, E]`` embeddings.
        provider: ONNX Runtime provider.
        tf32: Whether CUDA may round factors to TF32.
    """

    def __init__(
        self,
        linearization: Linearization,
        max_delay: int,
        wanted: list[str],
        table: np.ndarray,
        *,
        provider: str,
        tf32: bool = False,
    ) -> None:
        assert linearization.batch == 1
        self.step, self.table = linearization.step, table
        self.max_delay, self.wanted = max_delay, wanted
        self.parts = [slice(0, self.step.embedding_size)]
        self.carried = carried_states(linearization, wanted)
        self._session = _runtime.session(
            _advance_model(linearization, self.carried),
            provider,
            tf32=tf32,
        )
        step = self.step
        self.sizes = {c.name: c.size for c in step.differentiable if c.name in self.carried}
        shape = (max_delay + 1, step.embedding_size)
        self._buffers = [
            {name: _Buffer((*shape, n), step.dtype, provider) for name, n in self.sizes.items()}
            for _ in range(2)
        ]
        self._states = [
            {c.name: _Buffer((1, c.size), c.dtype, provider) for c in step.components}
            for _ in range(2)
        ]
        self._bindings: dict[tuple[int, int, bool], ort.IOBinding] = {}
        self.kept: States | None = None
        self._embedding = _Buffer((1, step.embedding_size), step.dtype, provider)
        self._tokens = _Buffer((1, 1), step.tokens_dtype, provider)

    def run(
        self,
        tokens: np.ndarray,
        start: States,
        visit: Visit,
        begin: int = 0,
        follow: np.ndarray | None = None,
        keep: int | None = None,
    ) -> Iterator[int]:
        """As `Products.run`."""
        stretch = Stretch(begin, self.max_delay, len(tokens), follow)
        now, self.kept = 0, None
        for name, value in start.items():
            self._states[now][name].write(value)
        for i, token in enumerate(tokens[: stretch.end]):
            self._embedding.write(self.table[token][None])
            self._tokens.write(np.array([[token]]))
            inputs, insert = stretch.at(i)
            binding = self._binding(now, len(inputs) - insert, insert)
            try:
                self._session.run_with_iobinding(binding)
            except Exception as error:
                raise _runtime.failed(error, f"at position {begin + i}") from error
            now = 1 - now
            if i + 1 == keep:
                states = self._states[now].items()
                self.kept = {name: buffer.numpy(0, 1).copy() for name, buffer in states}
            if len(inputs):
                rows = [self._buffers[now][n].numpy(0, len(inputs)) for n in self.wanted]
                visit(Window(begin + i, inputs, self.parts[0], np.concatenate(rows, -1)))
            yield i + 1

    def _binding(self, now: int, slots: int, insert: bool) -> ort.IOBinding:
        """The binding that reads the first slots of one buffer and writes them to the other.

        They are written one slot later where the new input comes before them.
        """
        key = (now, slots, insert)
        if key in self._bindings:
            return self._bindings[key]
        shift = int(insert)
        binding = self._session.io_binding()
        old, new = self._buffers[now], self._buffers[1 - now]
        feeds = {self.step.embedding: self._embedding}
        if self.step.tokens:
            feeds[self.step.tokens] = self._tokens
        feeds.update({c.input: self._states[now][c.name] for c in self.step.components})
        present = {i.name for i in self._session.get_inputs()}
        for name, buffer in feeds.items():
            if name in present:
                buffer.bind(binding.bind_input, name)
        for c in self.step.components:
            self._states[1 - now][c.name].bind(binding.bind_output, c.output)
        for name in self.carried:
            rows = f"{self.step.prefix}tangent/{name}"
            if rows in present:
                old[name].bind(binding.bind_input, rows, 0, slots)
            new[name].bind(binding.bind_output, f"{rows}/next", shift, shift + slots)
            if insert:
                new[name].bind(binding.bind_output, f"{rows}/new", 0, 1)
        self._bindings[key] = binding
        return binding


class _Buffer:
    """Memory on the provider's device whose leading rows can be bound in part."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, provider: str) -> None:
        self.device = "cuda" if provider == _runtime.CUDA else "cpu"
        self.array = np.zeros(shape, dtype)
        self.value = None
        if self.device == "cuda":
            self.value = ort.OrtValue.ortvalue_from_numpy(self.array, "cuda", 0)
        self.stride = self.array.strides[0]

    def bind(self, method, name: str, low: int = 0, high: int | None = None) -> None:
        """Bind rows [low, high), flattened to a matrix, as an input or output."""
        high = self.array.shape[0] if high is None else high
        shape = [(high - low) * int(np.prod(self.array.shape[1:-1])), self.array.shape[-1]]
        base = self.value.data_ptr() if self.value else self.array.ctypes.data
        method(name, self.device, 0, self.array.dtype.type, shape, base + low * self.stride)

    def write(self, value: np.ndarray) -> None:
        """Replace the whole content."""
        self.array[...] = value
        if self.value:
            self.value.update_inplace(self.array)

    def numpy(self, low: int, high: int) -> np.ndarray:
        """Rows [low, high) on the host: a view on the CPU, a copy otherwise."""
        if self.value:
            return self.value.numpy()[low:high]
        return self.array[low:high]


def _advance_model(linearization: Linearization, carried: list[str]) -> onnx.ModelProto:
    """The linearised step, extended by the products.

    For state s with tangents T: ``T_s' = Σ_x T_x · J[s, x]``, one matrix product per dense
    block, one scaling per diagonal, none for zero and identity.
    """
    step = linearization.step
    model = onnx.ModelProto()
    model.CopyFrom(linearization.model)
    graph, count = model.graph, 0
    element = helper.np_dtype_to_tensor_dtype(step.dtype)

    def emit(op: str, *inputs: str, out: str | None = None) -> str:
        nonlocal count
        count += 1
        name = out or f"{step.prefix}product/{count}"
        graph.node.append(helper.make_node(op, list(inputs), [name], name=name))
        return name

    sizes = {c.name: c.size for c in step.differentiable}
    rows = {s: f"{step.prefix}tangent/{s}" for s in carried}
    one = f"{step.prefix}product/axis"  # of the positions, of which there is one
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), one))
    read = set()
    for state in carried:
        terms = []
        for source in carried:
            block = linearization.jacobians[state, source]
            if block.kind == "zero":
                continue
            read.add(source)
            if block.kind == "identity":
                terms.append(rows[source])
            else:
                dense = block.kind == "dense"
                matrix = emit("Squeeze", str(block.tensor), one) if dense else str(block.tensor)
                terms.append(emit("MatMul" if dense else "Mul", rows[source], matrix))
        out = f"{rows[state]}/next"
        if not terms:  # nothing is remembered of this state: its tangents are zero
            read.add(state)
            terms = [emit("Sub", rows[state], rows[state])]
        for i, term in enumerate(terms[1:], 1):
            terms[0] = emit("Add", terms[0], term, out=out if i == len(terms) - 1 else None)
        if len(terms) == 1:
            emit("Identity", terms[0], out=out)
        new = linearization.jacobians[state, EMBEDDING]
        fresh = f"{rows[state]}/new"
        if new.kind == "dense":
            emit("Squeeze", str(new.tensor), one, out=fresh)
        else:
            _insert_simple(graph, step, new, fresh, sizes[state])
        graph.output.append(helper.make_tensor_value_info(out, element, None))
        graph.output.append(
            helper.make_tensor_value_info(fresh, element, [step.embedding_size, sizes[state]])
        )
    graph.input.extend(
        helper.make_tensor_value_info(rows[s], element, ["rows", sizes[s]])
        for s in carried
        if s in read
    )
    return model


def _insert_simple(graph, step, block, out: str, size: int) -> None:
    """An embedding block that is zero, identity or diagonal, as a matrix."""
    values = np.zeros((step.embedding_size, size), step.dtype)
    if block.kind != "zero":
        np.fill_diagonal(values, 1)
    name = f"{out}/pattern"
    graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    if block.kind == "diagonal":
        graph.node.append(helper.make_node("Mul", [name, block.tensor], [out], name=out))
    else:
        graph.node.append(helper.make_node("Identity", [name], [out], name=out))
