"""Small memory models made by hand, one per way of keeping a state.

Every model reads `tokens` [batch, time] through an embedding table [V, E] and gives `embedding`,
`logits` and its states; none comes from an exporter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from mnemoscope.analyzer.roles import Roles, State, Vocabulary, write_roles
from onnx import TensorProto, helper, numpy_helper

V, E, H = 12, 3, 4
WORDS = (*(f"w{i}" for i in range(V - 2)), "<unk>", "<eos>")
VOCABULARY = Vocabulary(WORDS, "word", "<unk>", "<eos>")
TYPES = {
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}


@dataclass
class Graph:
    """A graph under construction: nodes, weights, and the states declared so far."""

    dtype: str = "float32"
    vocabulary: int = V
    seed: int = 0
    opset: int = 18
    nodes: list = field(default_factory=list)
    weights: list = field(default_factory=list)
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    states: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes) -> str:
        """A node; the name of its first output."""
        name = out or f"v{len(self.nodes)}"
        outputs = [name] if isinstance(name, str) else name
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, **attributes))
        return outputs[0]

    def weight(self, *shape: int, scale: float = 0.7) -> str:
        """A random weight."""
        return self.constant(self.rng.standard_normal(shape) * scale, self.dtype)

    def constant(self, value, dtype: str = "int64") -> str:
        """A stored tensor."""
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def state(self, name: str, shape: list, parts: Iterable[State] = (), **role) -> str:
        """Declare a state tensor; `role` or, for a stacked tensor, its parts."""
        kind = TYPES[role.pop("dtype", self.dtype)] if role.get("dtype") != "int64" else None
        if kind is None:
            role.pop("dtype")
            kind = TensorProto.INT64
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        self.outputs.append(helper.make_tensor_value_info(f"{name}_next", kind, shape))
        new = list(parts) or [State(name, name, f"{name}_next", **role)]
        self.states += new
        return name

    def finish(self, output: str, width: int = H, *, time: str | int = "time") -> onnx.ModelProto:
        """The memory model whose logits are a linear function of `output` [batch, time, width]."""
        self.op("MatMul", output, self.weight(width, self.vocabulary), out="logits")
        kind = TYPES[self.dtype]
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "step",
            [info("tokens", TensorProto.INT64, ["batch", time]), *self.inputs],
            [
                info("logits", kind, ["batch", time, self.vocabulary]),
                info("embedding", kind, ["batch", time, E]),
                *self.outputs,
            ],
            self.weights,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        words = (*(f"w{i}" for i in range(self.vocabulary - 2)), "<unk>", "<eos>")
        roles = Roles("tokens", "embedding", tuple(self.states), "logits")
        write_roles(model, roles, Vocabulary(words, "word", "<unk>", "<eos>"))
        return model

    def embed(self) -> str:
        """The embedding, ``[batch, time, E]``."""
        return self.op("Gather", self.weight(self.vocabulary, E, scale=1), "tokens",
                       out="embedding")  # fmt: skip

    def now(self) -> str:
        """The embedding of a single step, ``[batch, E]``."""
        return self.op("Squeeze", self.embed(), self.constant([1]))

    def lone(self, vector: str) -> str:
        """``[batch, n]`` as ``[batch, 1, n]``."""
        return self.op("Unsqueeze", vector, self.constant([1]))


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def fused(kind: str = "LSTM", layers: int = 2, **options) -> onnx.ModelProto:
    """Recurrent operators; states stacked as ``[layer, batch, unit]``, as PyTorch keeps them."""
    g = Graph(**options)
    gates = GATES[kind]
    x = g.op("Transpose", g.embed(), perm=[1, 0, 2])
    tensors = ["h", "c"] if kind == "LSTM" else ["h"]
    for t in tensors:
        parts = [
            State(f"{kind.lower()}{i}.{t}", t, f"{t}_next", "cell" if t == "c" else "hidden", i,
                  batch_axis=1, layer_axis=0, layer_index=i)
            for i in range(layers)
        ]  # fmt: skip
        g.state(t, [layers, "batch", H], parts)
    news: dict[str, list[str]] = {t: [] for t in tensors}
    for i in range(layers):
        at = g.constant([i])
        starts = [g.op("Gather", t, at, axis=0) for t in tensors]
        weights = [g.weight(1, gates * H, E if i == 0 else H), g.weight(1, gates * H, H),
                   g.weight(1, 2 * gates * H)]  # fmt: skip
        outs = [f"y{i}", *(f"{t}{i}" for t in tensors)]
        g.op(kind, x, *weights, "", *starts, out=outs, hidden_size=H)
        x = g.op("Squeeze", f"y{i}", g.constant([1]))
        for t in tensors:
            news[t].append(f"{t}{i}")
    for t in tensors:
        g.op("Concat", *news[t], out=f"{t}_next", axis=0)
    return g.finish(g.op("Transpose", x, perm=[1, 0, 2]))


def flat(**options) -> onnx.ModelProto:
    """h' = tanh(x W + h U) with a flat state and one step of time."""
    g = Graph(**options)
    x = g.now()
    h = g.state("h", ["batch", H], kind="hidden", layer=0, batch_axis=0)
    total = g.op("Add", g.op("MatMul", x, g.weight(E, H)), g.op("MatMul", h, g.weight(H, H)))
    g.op("Tanh", total, out="h_next")
    return g.finish(g.lone("h_next"), time=1)


def stack(**options) -> onnx.ModelProto:
    """Layers that read what those below have just computed: multiplied, scaled and as it is."""
    g = Graph(**options)
    h = [g.state(f"h{i}", ["batch", H], kind="hidden", layer=i, batch_axis=0) for i in range(3)]

    def layer(x: str, size: int, state: str) -> str:
        read = g.op("MatMul", x, g.weight(size, H))
        return g.op("Tanh", g.op("Add", read, g.op("MatMul", state, g.weight(H, H))))

    first = g.op("Identity", layer(g.now(), E, h[0]), out="h0_next")
    second = g.op("Add", layer(first, H, h[1]), g.op("Mul", first, g.weight(H)), out="h1_next")
    kept = g.op("Mul", g.op("Sigmoid", h[2]), second)
    g.op("Add", kept, first, out="h2_next")
    return g.finish(g.lone("h2_next"), time=1)


def alike(**options) -> onnx.ModelProto:
    """Blocks that are one and the same: by a state and by the embedding, and of two states."""
    g = Graph(**options)
    x, a = g.now(), g.state("a", ["batch", E], kind="hidden", layer=0, batch_axis=0)
    g.op("Tanh", g.op("MatMul", g.op("Add", x, a), g.weight(E, E)), out="a_next")
    b, c = (g.state(n, ["batch", H], kind="hidden", layer=0, batch_axis=0) for n in "bc")
    gated = g.op("Mul", g.op("MatMul", b, g.weight(H, H)),
                 g.op("Sigmoid", g.op("MatMul", c, g.weight(H, H))))  # fmt: skip
    both = g.op("Add", g.op("MatMul", x, g.weight(E, H)), gated)
    b = g.op("Add", both, g.weight(H), out="b_next")
    g.op("Add", both, g.weight(H), out="c_next")
    return g.finish(g.lone(b), time=1)


def quantized(*, dynamic: bool, **options) -> onnx.ModelProto:
    """As `flat`, with the state rounded to 8 bits before its product."""
    g = Graph(**options)
    x = g.now()
    h = g.state("h", ["batch", H], kind="hidden", layer=0, batch_axis=0)
    if dynamic:
        g.op("DynamicQuantizeLinear", h, out=["rounded", "scale", "zero"])
        scale, zero = "scale", "zero"
    else:
        scale, zero = g.constant(1 / 127, "float32"), g.constant(0, "int8")
        g.op("QuantizeLinear", h, scale, zero, out="rounded")
    rough = g.op("DequantizeLinear", "rounded", scale, zero)
    total = g.op("Add", g.op("MatMul", x, g.weight(E, H)), g.op("MatMul", rough, g.weight(H, H)))
    g.op("Tanh", total, out="h_next")
    return g.finish(g.lone("h_next"), time=1)


def counter(*, differentiable: bool = True, **options) -> onnx.ModelProto:
    """A counter of words scales the update of a flat state."""
    g = Graph(**options)
    x = g.now()
    n = g.state("n", ["batch", 1], kind="other", layer=0, batch_axis=0, dtype="int64")
    g.op("Add", n, g.constant([[1]]), out="n_next")
    if not differentiable:
        age = g.op("Cast", n, to=TYPES[g.dtype])
        return g.finish(g.lone(g.op("Mul", x, age)), E, time=1)
    h = g.state("h", ["batch", H], kind="hidden", layer=0, batch_axis=0)
    rate = g.op("Reciprocal", g.op("Cast", "n_next", to=TYPES[g.dtype]))
    new = g.op("Tanh", g.op("Add", g.op("MatMul", x, g.weight(E, H)),
                            g.op("MatMul", h, g.weight(H, H))))  # fmt: skip
    g.op("Add", h, g.op("Mul", rate, new), out="h_next")
    return g.finish(g.lone("h_next"), time=1)


def slots(count: int = 3, **options) -> onnx.ModelProto:
    """A memory ``[batch, slot, width]``: attention over slots reads and writes."""
    g = Graph(**options)
    x = g.now()
    m = g.state("m", ["batch", count, H], kind="other", layer=0, batch_axis=0)
    query = g.op("Unsqueeze", g.op("MatMul", x, g.weight(E, H)), g.constant([2]))
    scores = g.op("Softmax", g.op("MatMul", m, query), axis=1)  # [batch, slot, 1]
    word = g.lone(g.op("Tanh", g.op("MatMul", x, g.weight(E, H))))
    change = g.op("Mul", scores, g.op("Sub", word, g.op("Tanh", m)))
    g.op("Add", m, change, out="m_next")
    read = g.op("ReduceSum", g.op("Mul", scores, "m_next"), g.constant([1]), keepdims=1)
    return g.finish(read, time=1)


def masked(**options) -> onnx.ModelProto:
    """Keeps its state at token 0: the core reads the tokens past the embedding."""
    g = Graph(**options)
    x = g.now()
    h = g.state("h", ["batch", H], kind="hidden", layer=0, batch_axis=0)
    new = g.op("Tanh", g.op("Add", g.op("MatMul", x, g.weight(E, H)),
                            g.op("MatMul", h, g.weight(H, H))))  # fmt: skip
    g.op("Where", g.op("Equal", "tokens", g.constant(0)), h, new, out="h_next")
    return g.finish(g.lone("h_next"), time=1)


def first_stream(switch: str, **options) -> onnx.ModelProto:
    """Right for one stream alone: a switch that the first stream sets for all."""
    g = Graph(**options)
    x = g.now()
    h = g.state("h", ["batch", H], kind="hidden", layer=0, batch_axis=0)
    if switch == "counter":
        n = g.state("n", ["batch", 1], kind="other", layer=0, batch_axis=0, dtype="int64")
        g.op("Add", n, g.constant([[1]]), out="n_next")
        n = g.op("Mod", n, g.constant([[2]]))
    else:
        n = "tokens"
    new = g.op("Tanh", g.op("Add", g.op("MatMul", x, g.weight(E, H)),
                            g.op("MatMul", h, g.weight(H, H))))  # fmt: skip
    first = g.op("Gather", n, g.constant([0]), axis=0)
    g.op("Where", g.op("Equal", first, g.constant(0)), h, new, out="h_next")
    return g.finish(g.lone("h_next"), time=1)


def with_inputs_listed(model: onnx.ModelProto) -> onnx.ModelProto:
    """As until IR version 3: every initialiser stands among the inputs too."""
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )
    return model


MODELS = {
    "lstm": fused,
    "lstm-one-layer": lambda **o: fused(layers=1, **o),
    "gru": lambda **o: fused("GRU", **o),
    "rnn": lambda **o: fused("RNN", layers=3, **o),
    "flat": flat,
    "counter": counter,
    "slots": slots,
    "masked": masked,
}


# The cases of tests/fuzz are numbered by `MODELS`.
ALL = {**MODELS, "stack": stack, "alike": alike}


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model; gives the path."""
    path.write_bytes(model.SerializeToString())
    return path
