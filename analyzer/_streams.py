"""The products of `_products.py` for many streams side by side: one ONNX Runtime call a time step.

Streams are shards that advance in lockstep, each from its own exact state. The graph of a step
holds all there is to do: it takes the embeddings of the next tokens, linearises the step, advances
the states, multiplies and inserts, and adds what the streams have in common to sums. Tokens, flags
and weights of all steps are handed over beforehand, and a counter in the graph says which are due;
so on a GPU nothing crosses the bus but sums, every few hundred steps. For a small model on a
processor it is the calls that would cost most, and many streams share them.

The tangents of a state are ``[delay, stream, E, n]``. A step reads the delays 0 … τ_max-1 of one
buffer and writes them, multiplied, as 1 … τ_max of a second one, whose delay 0 is the new input's:
making room costs nothing. The products want ``[stream, delay · E, n]``, one matrix product for each
stream, so tangents are turned round before them and after. The sum over the streams is a product
too, with weights that say which stream's input at each delay counts where.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from . import _runtime
from ._products import Stretch
from ._shards import Shard
from ._states import States
from .errors import ResourceError
from .linearize import EMBEDDING, Jacobian, Linearization
from .sums import Accumulator

# What ONNX Runtime's CUDA provider can choose between (its OperatorKernels.md, Where).
_HELD = tuple(map(np.dtype, (np.float32, np.float64, np.int32, np.int64, np.uint8)))


class Streams:
    """State-embedding Jacobians of several shards at every delay, summed where they are computed.

    Args:
        linearization: The step and its blocks; its `batch` is the number of streams.
        max_delay: τ_max.
        wanted: Names of the states that are asked for; others are carried only where one of
            these depends on them.
        table: ``[V, E]`` embeddings.
        provider: ONNX Runtime provider.
        tf32: Whether CUDA may round factors to TF32.
        threads: On the CPU; None lets ONNX Runtime choose.
        summing: Whether the graph sums. If not, the Jacobians of every step come to the host and
            are added there: for so many classes that the sums of each would not fit.
        verify: Find out which provider ran each node of the first step; None means on a GPU.

    Attributes:
        count: Number of streams.
        parts: As those of `Products`: one, the whole embedding.
    """

    def __init__(
        self,
        linearization: Linearization,
        max_delay: int,
        wanted: list[str],
        table: np.ndarray,
        *,
        provider: str = _runtime.CPU,
        tf32: bool = False,
        threads: int | None = None,
        summing: bool = True,
        verify: bool | None = None,
    ) -> None:
        self._step, self.count = linearization.step, linearization.batch
        self._max_delay, self._wanted, self._provider = max_delay, wanted, provider
        step = self._step
        self.parts = [slice(0, step.embedding_size)]
        self._summing, self._table = summing, table.astype(step.dtype)
        graph = _StepGraph(linearization, max_delay, wanted, summing)
        self._verify = provider == _runtime.CUDA if verify is None else verify
        self._session = _runtime.session(
            graph.model,
            provider,
            tf32=tf32,
            threads=threads,
            spinning=False,  # it gains little on an idle machine and loses much on a busy one
            profile=self._verify,
        )
        self._inputs = {i.name for i in self._session.get_inputs()}
        self._outputs = {o.name for o in self._session.get_outputs()}
        self._names = graph.names
        shape = (max_delay + 1, self.count, step.embedding_size)
        sizes = {c.name: c.size for c in step.differentiable}
        self._tangents = {s: self._pair((*shape, sizes[s]), step.dtype) for s in graph.carried}
        self._states = {c.name: self._pair((self.count, c.size), c.dtype) for c in step.components}
        self._clock = self._pair((1,), np.dtype(np.int64))
        self._sums: dict[str, list[_Buffer]] = {}
        self._sizes = {s: sizes[s] for s in wanted}
        self._read = {"table": _Buffer(self._table, provider)}

    def run(
        self,
        ids: np.ndarray,
        shards: Sequence[Shard],
        starts: Sequence[States],
        sums: Accumulator,
    ) -> Iterator[int]:
        """Follow shards side by side, to the end of the longest; yields time steps done, in all.

        Args:
            ids: ``[position]`` tokens of the corpus.
            shards: No more than there are streams.
            starts: The state before each.
            sums: Takes the sums.

        Raises:
            ModelError: The graph does not run.
            ResourceError: A node ran on another provider, or memory is too small.
        """
        schedule = _Schedule.of(ids, shards, self.count, self._max_delay, sums)
        self._load(schedule, starts)
        bindings = [self._binding(now) for now in range(2)]
        stretches = [
            Stretch(s.begin, self._max_delay, s.steps, s.follow)
            for s in shards
            if not self._summing
        ]
        flushed = 0
        for time in range(schedule.steps):
            try:
                self._session.run_with_iobinding(bindings[time % 2])
            except Exception as error:
                if "alloc" in str(error).lower():
                    raise ResourceError(
                        f"{self.count} streams do not fit into memory: {_runtime.said(error)}. "
                        "Ask for fewer --streams."
                    ) from error
                at = ", ".join(str(s.begin + time) for s in shards if time < s.steps)
                raise _runtime.failed(error, f"at the positions {at:.200}") from error
            if self._verify:
                _runtime.require_placement(self._session.end_profiling(), self._provider)
                self._verify = False
            now = 1 - time % 2
            if not self._summing:
                self._visit(time, now, stretches, sums)
            elif time + 1 - flushed >= sums.most_additions or time + 1 == schedule.steps:
                self._flush(now, schedule, flushed, time + 1, sums)
                flushed = time + 1
            yield int(np.minimum(schedule.lengths, time + 1).sum())

    def _pair(self, shape: tuple[int, ...], dtype: np.dtype) -> list[_Buffer]:
        return [_Buffer(np.zeros(shape, dtype), self._provider) for _ in range(2)]

    def _load(self, schedule: _Schedule, starts: Sequence[States]) -> None:
        """Hand over all that the steps need."""
        dtype = self._step.dtype
        # A stream that has no shard stands at the start of the first.
        every = [*starts, *[starts[0]] * (self.count - len(starts))]
        for name, pair in self._states.items():
            pair[0].write(np.concatenate([s[name] for s in every]))
        self._clock[0].write(np.zeros(1, np.int64))
        given = {
            "ids": schedule.ids,
            "carry": schedule.carry.astype(dtype),
            "follow": schedule.follow.astype(dtype),
            "move": schedule.move,
        }
        if self._summing:
            # Before the first step there is nothing, at any delay.
            before = np.zeros((self._max_delay, *schedule.weights.shape[1:]), bool)
            given["weights"] = np.concatenate([before, schedule.weights]).astype(dtype)
            cells = self._step.embedding_size
            for state, size in self._sizes.items():
                shape = (self._max_delay + 1, len(schedule.keys), cells * size)
                if state not in self._sums or self._sums[state][0].array.shape != shape:
                    self._sums[state] = self._pair(shape, dtype)
                self._sums[state][0].write(np.zeros(1, dtype))
        self._read.update({n: _Buffer(v, self._provider) for n, v in given.items()})

    def _binding(self, now: int) -> ort.IOBinding:
        """The binding that reads the buffers `now` and writes the others."""
        binding, names = self._session.io_binding(), self._names
        after = 1 - now
        delays = self._max_delay + 1

        def read(name: str, buffer: _Buffer, low: int = 0, high: int | None = None) -> None:
            if name in self._inputs:
                buffer.bind(binding.bind_input, name, low, high)

        def write(name: str, buffer: _Buffer, low: int = 0, high: int | None = None) -> None:
            if name in self._outputs:
                buffer.bind(binding.bind_output, name, low, high)

        for name, buffer in self._read.items():
            read(names(name), buffer)
        read(names("clock"), self._clock[now])
        write(names("clock/next"), self._clock[after])
        for c in self._step.components:
            read(c.input, self._states[c.name][now])
            write(names(f"state/{c.name}"), self._states[c.name][after])
        for state, pair in self._tangents.items():
            read(names(f"tangent/{state}"), pair[now], 0, delays - 1)
            write(names(f"tangent/{state}/new"), pair[after], 0, 1)
            write(names(f"tangent/{state}/next"), pair[after], 1, delays)
        for state, pair in self._sums.items():
            for part, low, high in (("new", 0, 1), ("next", 1, delays)):
                read(names(f"sum/{state}/{part}"), pair[now], low, high)
                write(names(f"sum/{state}/{part}/next"), pair[after], low, high)
        return binding

    def _flush(self, now: int, schedule: _Schedule, low: int, high: int, sums: Accumulator) -> None:
        """Move the sums of some steps to the totals."""
        found = []
        for state, size in self._sizes.items():
            buffer = self._sums[state][now]
            values = buffer.numpy()
            found.append(values.reshape(*values.shape[:2], -1, size))
        values = np.concatenate(found, -1)
        counts = schedule.counts(low, high)
        for i, key in enumerate(schedule.keys):
            if counts[:, i].any():
                sums.add_sum(*key, values[:, i], counts[:, i])
        for pair in self._sums.values():
            pair[now].write(np.zeros(1, self._step.dtype))

    def _visit(self, time: int, now: int, stretches: list[Stretch], sums: Accumulator) -> None:
        """Add the Jacobians of one step on the host."""
        tangents = [self._tangents[s][now].numpy() for s in self._wanted]
        for stream, stretch in enumerate(stretches):
            if time >= stretch.end:
                continue
            inputs, _ = stretch.at(time)
            if len(inputs):
                at = stretch.time(time)
                rows = [t[at - inputs, stream] for t in tangents]
                sums.add(at, inputs, np.concatenate(rows, -1))


@dataclass(frozen=True)
class _Schedule:
    """What each stream does at each time step.

    A stream whose shard has ended repeats its last step: whatever it computes is as finite as
    that, and what becomes of it is multiplied by zero.

    Attributes:
        ids: ``[time, stream]`` tokens.
        carry: ``[time, stream]``, whether tangents live on: not into the first step of a shard.
        follow: ``[time, stream]``, whether the token is one of those that are followed.
        move: ``[time, stream]``, whether the state advances.
        weights: ``[time, key, stream]``, whether the token counts there.
        keys: Where any counts, as `Accumulator.places` says.
        upto: ``[time, key, stream]``, how many tokens before each time count.
        lengths: ``[stream]`` time steps of each.
        max_delay: τ_max.
    """

    ids: np.ndarray
    carry: np.ndarray
    follow: np.ndarray
    move: np.ndarray
    weights: np.ndarray
    keys: list[tuple[int, int]]
    upto: np.ndarray
    lengths: np.ndarray
    max_delay: int

    @classmethod
    def of(
        cls,
        ids: np.ndarray,
        shards: Sequence[Shard],
        count: int,
        max_delay: int,
        sums: Accumulator,
    ) -> _Schedule:
        """The schedule of some shards."""
        lengths = np.array([s.steps for s in shards] + [0] * (count - len(shards)))
        time = np.arange(lengths.max())[:, None]
        begin = np.array([s.begin for s in shards] + [shards[0].begin] * (count - len(shards)))
        follow = np.zeros((len(time), count), bool)
        for i, shard in enumerate(shards):
            follow[: shard.steps, i] = shard.follow
        at, stream = np.nonzero(follow)
        entry, places = sums.places(begin[stream] + at)
        keys, number = np.unique(places, axis=0, return_inverse=True)
        weights = np.zeros((len(time), len(keys), count), bool)
        weights[at[entry], number.reshape(-1), stream[entry]] = True
        return cls(
            ids=ids[begin + np.minimum(time, np.maximum(lengths - 1, 0))].astype(np.int64),
            carry=(time > 0) & (time < lengths),
            follow=follow,
            move=time + 1 < lengths,
            weights=weights,
            keys=[(int(b), int(g)) for b, g in keys],
            upto=np.concatenate(
                [np.zeros_like(weights[:1], np.int32), weights.cumsum(0, dtype=np.int32)]
            ),
            lengths=lengths,
            max_delay=max_delay,
        )

    @property
    def steps(self) -> int:
        """Time steps of the longest shard."""
        return len(self.ids)

    def counts(self, low: int, high: int) -> np.ndarray:
        """``[delay, key]``, how many Jacobians the time steps from `low` to before `high` add."""
        delay, stream = np.arange(self.max_delay + 1)[:, None], np.arange(len(self.lengths))
        # The inputs whose memory is seen at a delay by the time steps that the stream has.
        first, last = (np.maximum(np.minimum(t, self.lengths) - delay, 0) for t in (low, high))
        return (self.upto[last, :, stream] - self.upto[first, :, stream]).sum(1)


class _Buffer:
    """Memory on the provider's device whose leading rows can be bound in part."""

    def __init__(self, value: np.ndarray, provider: str) -> None:
        self.device = "cuda" if provider == _runtime.CUDA else "cpu"
        self.array = np.ascontiguousarray(value)
        self._value = None
        if self.device == "cuda":
            self._value = ort.OrtValue.ortvalue_from_numpy(self.array, "cuda", 0)

    def bind(self, method, name: str, low: int = 0, high: int | None = None) -> None:
        """Bind rows [low, high) as an input or output."""
        high = len(self.array) if high is None else high
        base = self._value.data_ptr() if self._value else self.array.ctypes.data
        method(name, self.device, 0, self.array.dtype.type, [high - low, *self.array.shape[1:]],
               base + low * self.array.strides[0])  # fmt: skip

    def write(self, value: np.ndarray) -> None:
        """Replace the whole content."""
        self.array[...] = value
        if self._value:
            self._value.update_inplace(self.array)

    def numpy(self) -> np.ndarray:
        """The content on the host: a view on the CPU, a copy otherwise."""
        return self._value.numpy() if self._value else self.array


class _StepGraph:
    """The graph of one time step of all streams.

    For state s with tangents T: ``T_s' = Σ_x T_x · J[s, x] + Σ_r T_r' · J[s, r]``, one matrix
    product per dense block, one scaling per diagonal or identity, none for zero.

    Attributes:
        model: The graph.
        carried: States whose tangents it carries.
    """

    def __init__(
        self, linearization: Linearization, max_delay: int, wanted: list[str], summing: bool
    ) -> None:
        self._linear, self._step = linearization, linearization.step
        self._streams, self._delay = linearization.batch, max_delay
        self.carried = linearization.carried(wanted)
        self._element = helper.np_dtype_to_tensor_dtype(self._step.dtype)
        self.model = onnx.ModelProto()
        self.model.CopyFrom(linearization.model)
        self._nodes: list[onnx.NodeProto] = []
        graph = self.model.graph
        del graph.input[:], graph.output[:]
        self._read_tokens()
        before, self._nodes = self._nodes, []
        self._move()
        news: dict[str, str] = {}
        nexts: dict[str, str | None] = {}
        relays = dict.fromkeys(r for _, r in linearization.relayed if r in self.carried)
        for state in dict.fromkeys([*relays, *self.carried]):
            news[state] = self._new(state, news)
            nexts[state] = self._next(state, nexts) if max_delay else None
        for state in wanted if summing else ():
            self._sum(state, "new", news[state], 0)
            if (after := nexts.get(state)) is not None:
                self._sum(state, "next", after, 1)
        nodes = [*before, *graph.node, *self._nodes]
        del graph.node[:]
        graph.node.extend(nodes)

    def names(self, name: str) -> str:
        """What an input or output of these streams is called in the graph."""
        return f"{self._step.prefix}streams/{name}"

    def _emit(self, op: str, *inputs: str, out: str | None = None, **attributes) -> str:
        name = out or self.names(f"{op}/{len(self.model.graph.initializer)}/{len(self._nodes)}")
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def _constant(self, value: np.ndarray | list[int]) -> str:
        name = self.names(f"constant/{len(self.model.graph.initializer)}")
        tensor = numpy_helper.from_array(np.asarray(value), name)
        self.model.graph.initializer.append(tensor)
        return name

    def _input(self, name: str, shape: list, element: int | None = None) -> str:
        if name not in {i.name for i in self.model.graph.input}:
            info = helper.make_tensor_value_info(name, element or self._element, shape)
            self.model.graph.input.append(info)
        return name

    def _output(self, name: str, shape: list, element: int | None = None) -> str:
        info = helper.make_tensor_value_info(name, element or self._element, shape)
        self.model.graph.output.append(info)
        return name

    def _reshape(self, value: str, *shape: int) -> str:
        return self._emit("Reshape", value, self._constant(list(shape)))

    def _due(self, what: str, shape: list[int], element: int | None = None) -> str:
        """The row of an input ``[time, stream]`` that belongs to the step at hand."""
        given = self._input(self.names(what), ["time", self._streams], element)
        return self._reshape(self._emit("Gather", given, self.names("clock"), axis=0), *shape)

    def _read_tokens(self) -> None:
        """The embeddings of the tokens, and the tokens themselves where the core reads them."""
        step, integer = self._step, onnx.TensorProto.INT64
        clock = self._input(self.names("clock"), [1], integer)
        self._output(
            self._emit("Add", clock, self._constant([1]), out=self.names("clock/next")),
            [1], integer,
        )  # fmt: skip
        ids = self._due("ids", [self._streams], integer)
        table = self._input(self.names("table"), ["token", step.embedding_size])
        self._emit("Gather", table, ids, out=step.embedding, axis=0)
        if step.tokens:
            kind = helper.np_dtype_to_tensor_dtype(step.tokens_dtype)
            tokens = self._reshape(ids, self._streams, 1)
            self._emit("Cast", tokens, out=step.tokens, to=kind)
        self._carry = self._due("carry", [self._streams, 1, 1])
        self._follow = self._due("follow", [self._streams, 1, 1])

    def _move(self) -> None:
        """The states after the step, or before it where the stream has ended."""
        moves = self._due("move", [self._streams, 1], onnx.TensorProto.BOOL)
        for c in self._step.components:
            kind = helper.np_dtype_to_tensor_dtype(c.dtype)
            shape = [self._streams, c.size]
            self._input(c.input, shape, kind)
            out = self.names(f"state/{c.name}")
            if c.dtype in _HELD:
                self._emit("Where", moves, c.output, c.input, out=out)
            else:
                self._emit("Identity", c.output, out=out)
            self._output(out, shape, kind)

    def _matrix(self, tensor: str, flag: str | None) -> str:
        """A dense block as ``[stream, source, state]``, zero where the flag is."""
        turned = self._emit("Transpose", tensor, perm=[1, 2, 0])
        return self._emit("Mul", turned, flag) if flag else turned

    def _size(self, state: str) -> int:
        return self._step.sources[state][1]

    def _new(self, state: str, news: dict[str, str]) -> str:
        """The derivative by the new input, ``[1, stream, E, n]``, zero where none is followed.

        Args:
            state: Of which state.
            news: The same of its relays.
        """
        block, step = self._linear.jacobians[state, EMBEDDING], self._step
        shape = [1, self._streams, step.embedding_size, self._size(state)]
        pattern = np.zeros((1, *shape[2:]), step.dtype)
        if block.kind == "dense":
            new = self._matrix(str(block.tensor), self._follow)
        else:
            if block.kind != "zero":
                np.fill_diagonal(pattern[0], 1)
            new = self._emit("Mul", self._constant(pattern), self._follow)
            if block.kind == "diagonal":
                new = self._emit(
                    "Mul", new, self._reshape(str(block.tensor), -1, 1, pattern.shape[2])
                )
        terms = [self._reshape(new, *shape), *self._terms(state, self._linear.relayed, news, 1)]
        out = self.names(f"tangent/{state}/new")
        self._add(terms, out)
        return self._output(out, shape)

    def _tangents(self, state: str) -> str:
        shape = [self._delay, self._streams, self._step.embedding_size, self._size(state)]
        return self._input(self.names(f"tangent/{state}"), shape)

    def _next(self, state: str, nexts: dict[str, str | None]) -> str | None:
        """The tangents a delay later, ``[delay, stream, E, n]``; None where they are zero.

        Args:
            state: Of which state.
            nexts: The same of its relays.
        """
        before = {x: self._tangents(x) for x in self.carried}
        terms = self._terms(state, self._linear.jacobians, before, self._delay, self._carry)
        terms += self._terms(state, self._linear.relayed, nexts, self._delay)
        if not terms:
            return None
        out = self.names(f"tangent/{state}/next")
        self._add(terms, out)
        return self._output(
            out, [self._delay, self._streams, self._step.embedding_size, self._size(state)]
        )

    def _terms(
        self,
        state: str,
        blocks: dict[tuple[str, str], Jacobian],
        tangents: Mapping[str, str | None],
        delays: int,
        flag: str | None = None,
    ) -> list[str]:
        """What sources add to the tangents of a state.

        Args:
            state: The state.
            blocks: (state, source) → block.
            tangents: Source → ``[delay, stream, E, n]``; None where they are zero.
            delays: How many.
            flag: ``[stream, 1, 1]``, 0 for the streams to which nothing is added.
        """
        found = {
            x: (str(t), blocks[state, x])
            for x, t in tangents.items()
            if t and (state, x) in blocks and blocks[state, x].kind != "zero"
        }
        dense = {x: f for x, f in found.items() if f[1].kind == "dense"}
        terms = [self._product(state, dense, delays, flag)] if dense else []
        return terms + [self._scaled(x, *f, flag) for x, f in found.items() if x not in dense]

    def _product(
        self, state: str, found: dict[str, tuple[str, Jacobian]], delays: int, flag: str | None
    ) -> str:
        terms = [
            self._emit(
                "MatMul",
                self._by_stream(given, delays, self._size(source)),
                self._matrix(str(block.tensor), flag),
            )
            for source, (given, block) in found.items()
        ]
        total = self._reshape(self._add(terms), self._streams, delays, -1)
        turned = self._emit("Transpose", total, perm=[1, 0, 2])
        return self._reshape(
            turned, delays, self._streams, self._step.embedding_size, self._size(state)
        )

    def _by_stream(self, tangents: str, delays: int, size: int) -> str:
        """Tangents as ``[stream, delay · E, n]``."""
        name = f"{tangents}/turned"
        if name not in {n.name for n in self._nodes}:
            flat = self._reshape(tangents, delays, self._streams, -1)
            turned = self._emit("Transpose", flat, perm=[1, 0, 2])
            self._emit("Reshape", turned, self._constant([self._streams, -1, size]), out=name)
        return name

    def _scaled(self, source: str, tangents: str, block: Jacobian, flag: str | None) -> str:
        size, factor = self._size(source), flag
        if block.kind == "diagonal":
            factor = self._reshape(str(block.tensor), -1, 1, size)
            factor = self._emit("Mul", factor, flag) if flag else factor
        if factor is None:
            return tangents
        # As large as the tangents of one delay: what is left to repeat are long rows.
        shape = [self._streams, self._step.embedding_size, size]
        return self._emit("Mul", tangents, self._emit("Expand", factor, self._constant(shape)))

    def _add(self, terms: list[str], out: str | None = None) -> str:
        total = terms[0]
        for i, term in enumerate(terms[1:], 2):
            total = self._emit("Add", total, term, out=out if i == len(terms) else None)
        if out and len(terms) == 1:
            self._emit("Identity", total, out=out)
        return out or total

    def _sum(self, state: str, part: str, tangents: str, low: int) -> None:
        """Add, at the delays from `low` on, what the weights make of the streams."""
        cells = self._step.embedding_size * self._size(state)
        delays = self._delay if low else 1
        name = self.names(f"sum/{state}/{part}")
        old = self._input(name, [delays, "key", cells])
        # Row τ_max + t - τ of the weights is of the input of time t - τ.
        back = self._constant(self._delay - np.arange(low, low + delays))
        rows = self._emit("Add", self.names("clock"), back)
        given = self._input(self.names("weights"), ["input", "key", self._streams])
        weights = self._emit("Gather", given, rows, axis=0)
        flat = self._reshape(tangents, delays, self._streams, cells)
        added = self._emit("Add", old, self._emit("MatMul", weights, flat), out=f"{name}/next")
        self._output(added, [delays, "key", cells])
