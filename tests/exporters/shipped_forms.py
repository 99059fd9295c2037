"""Shipped models of every form, made by hand, and their mean gradients by float64 oracles.

No model comes from an exporter. The oracles compute each step from the weights with torch in
float64, by the equations of the ONNX operator specification.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from forms import Form
from mnemoscope.exporters import shipped
from onnx import TensorProto, helper, numpy_helper

V, E, H = 11, 6, 8
FLOAT, INT64, INT32, HALF = (TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32,
                             TensorProto.FLOAT16)  # fmt: skip
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass
class Net:
    """A graph under construction, with its weights kept in float64 for the oracle."""

    opset: int = 18
    seed: int = 0
    dtype: str = "float32"
    nodes: list = field(default_factory=list)
    stored: list = field(default_factory=list)
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    weights: dict = field(default_factory=dict)
    count: int = 0

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)

    def op(self, kind, *inputs, out=None, **attributes):
        self.count += 1
        out = out or f"v{self.count}"
        outs = [out] if isinstance(out, str) else out
        self.nodes.append(helper.make_node(kind, list(inputs), outs, name=f"n{self.count}",
                                           **attributes))  # fmt: skip
        return outs[0]

    def const(self, value, dtype="int64"):
        name = f"k{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, key, *shape, scale=0.5):
        value = (self.rng.standard_normal(shape) * scale).astype(self.dtype)
        self.weights[key] = value.astype(np.float64)
        return self.const(value, self.dtype)

    def input(self, name, shape, kind=FLOAT):
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name, shape, kind=FLOAT):
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def model(self):
        graph = helper.make_graph(self.nodes, "shipped", self.inputs, self.outputs, self.stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)],
                                 ir_version=8, producer_name="tests")  # fmt: skip

    def squeeze(self, x, axis):
        if self.opset < 13:
            return self.op("Squeeze", x, axes=[axis])
        return self.op("Squeeze", x, self.const([axis]))

    def unsqueeze(self, x, axis):
        if self.opset < 13:
            return self.op("Unsqueeze", x, axes=[axis])
        return self.op("Unsqueeze", x, self.const([axis]))

    def recurrent(self, kind, x, layer, width, starts, ends, **attributes):
        """One node; `x` and Y (squeezed) are ``[time, batch, *]``."""
        g = GATES[kind]
        names = [self.weight(f"W{layer}", 1, g * H, width), self.weight(f"R{layer}", 1, g * H, H),
                 self.weight(f"B{layer}", 1, 2 * g * H)]  # fmt: skip
        self.op(kind, x, *names, "", *starts, out=[f"Y{layer}", *ends], hidden_size=H, **attributes)
        return self.squeeze(f"Y{layer}", 1)

    def embed(self, tokens, size=V, width=E):
        return self.op("Gather", self.weight("E", size, width, scale=1), tokens)

    def head(self, y, width=H, size=V):
        return self.op("MatMul", y, self.weight("out", width, size))


def classic(kind="LSTM", layers=2, *, names=None, x=("x", INT64), time_major=False, stacked=True,
            batch="N", time="T", log=True, opset=18, dtype="float32", swap=False,
            outputs=True, starts=True, transposed_logits=False):  # fmt: skip
    """A language model around fused nodes, with any interface."""
    n = Net(opset=opset, dtype=dtype)
    element = HALF if dtype == "float16" else FLOAT
    letters = "hc" if kind == "LSTM" else "h"
    names = names or {"y": "log_softmax", **{f"{a}0": f"{a}0" for a in letters},
                      **{f"{a}n": f"next_{a}0" for a in letters}}  # fmt: skip
    tokens = n.input(x[0], [time, batch] if time_major else [batch, time], x[1])
    embedded = n.embed(tokens)
    y = embedded if time_major else n.op("Transpose", embedded, perm=[1, 0, 2])
    given = {a: n.input(names[f"{a}0"], [layers, batch, H], element) for a in letters
             if starts}  # fmt: skip
    ends = {a: [] for a in letters}
    for k in range(layers):
        first = [n.op("Gather", given[a], n.const([k]), axis=0) if layers > 1 else given[a]
                 for a in letters if starts]  # fmt: skip
        out = [f"Y_{a}{k}" for a in letters]
        y = n.recurrent(kind, y, k, E if k == 0 else H, first, out)
        for a, name in zip(letters, out, strict=True):
            ends[a].append(name)
    if outputs:
        for a in letters:
            target = names[f"{'hc'[a == 'h']}n"] if swap else names[f"{a}n"]
            if layers > 1:
                n.op("Concat", *ends[a], out=target, axis=0)
            else:
                n.op("Identity", ends[a][0], out=target)
    logits = n.head(y)
    if log:
        logits = n.op("LogSoftmax", logits, axis=-1)
    if transposed_logits:
        n.op("Transpose", logits, out=names["y"], perm=[1, 2, 0])
        n.output(names["y"], [batch, V, time], element)
    else:
        n.op("Transpose", logits, out=names["y"], perm=[0, 1, 2] if time_major else [1, 0, 2])
        n.output(names["y"], [time, batch, V] if time_major else [batch, time, V], element)
    if outputs:
        for a in letters:
            n.output(names[f"{a}n"], [layers, batch, H], element)
    return n


def vad(*, in_if=True, packed=True):
    """A step VAD: samples in, one probability out, h and c of an LSTM in one tensor."""
    n = Net()
    width = 16
    n.input("input", ["batch", width])
    n.input("state", [2, "batch", H])
    n.input("sr", [], INT64)
    # Small, or the cell saturates: 1 - tanh(c)^2 then has few digits in float32.
    n.weight("filter", width, E, scale=0.2)
    filtered = n.op("Relu", n.op("MatMul", "input", n.stored[-1].name))
    x = n.unsqueeze(filtered, 0)
    h = n.op("Gather", "state", n.const([0]), axis=0)
    c = n.op("Gather", "state", n.const([1]), axis=0)
    y = n.recurrent("LSTM", x, 0, E, [h, c], ["hn", "cn"])
    stacked = n.op("Concat", "hn", "cn", axis=0)
    last = n.squeeze(y, 0)
    probability = n.op("Sigmoid", n.head(last, size=1))
    if in_if:
        # As in shipped detectors, each sampling rate has a branch of its own.
        branches = {}
        for name in ("then", "else"):
            nodes = [onnx.NodeProto() for _ in n.nodes]
            for copy, node in zip(nodes, n.nodes, strict=True):
                copy.CopyFrom(node)
                copy.output[:] = [f"{name}/{o}" for o in node.output]
                produced = {o for m in n.nodes for o in m.output}
                copy.input[:] = [f"{name}/{i}" if i in produced else i for i in node.input]
            scale = numpy_helper.from_array(
                np.array(1.0 if name == "then" else 0.5, np.float32), f"{name}/scale"
            )
            nodes.append(helper.make_node("Mul", [f"{name}/{probability}", f"{name}/scale"],
                                          [f"{name}/p"]))  # fmt: skip
            outs = [helper.make_tensor_value_info(o, FLOAT, None)
                    for o in (f"{name}/p", f"{name}/{stacked}")]  # fmt: skip
            branches[f"{name}_branch"] = helper.make_graph(nodes, name, [], outs, [scale])
        n.nodes = []
        condition = n.op("Equal", "sr", n.const(16000))
        n.op("If", condition, out=["output", "stateN"], **branches)
    else:
        n.op("Identity", probability, out="output")
        n.op("Identity", stacked, out="stateN")
    n.output("output", ["batch", 1])
    n.output("stateN", [2, "batch", H])
    n.weights["input_width"] = width
    return n


def transducer():
    """A transducer's prediction network: unhelpful names, vectors instead of logits."""
    n = Net()
    n.input("targets", ["B", "U"], INT32)
    n.input("target_length", ["B"], INT32)
    n.input("states.1", [2, "B", H])
    n.input("onnx::LSTM_3", [2, "B", H])
    x = n.op("Transpose", n.embed("targets", size=13), perm=[1, 0, 2])
    hs, cs = [], []
    for k in range(2):
        h = n.op("Gather", "states.1", n.const([k]), axis=0)
        c = n.op("Gather", "onnx::LSTM_3", n.const([k]), axis=0)
        x = n.recurrent("LSTM", x, k, E if k == 0 else H, [h, c], [f"h{k}", f"c{k}"])
        hs.append(f"h{k}")
        cs.append(f"c{k}")
    n.op("Transpose", x, out="outputs", perm=[1, 2, 0])
    n.op("Identity", "target_length", out="prednet_lengths")
    n.op("Concat", *hs, out="states", axis=0)
    n.op("Concat", *cs, out="74", axis=0)
    n.output("outputs", ["B", H, "U"])
    n.output("prednet_lengths", ["B"], INT32)
    n.output("states", [2, "B", H])
    n.output("74", [2, "B", H])
    return n


def floating(kind="LSTM", *, width=V, size=V, names=("x", "h", "c", "y", "hn", "cn"), rank=3):
    """x, h, c → y, hn, cn: one-hot or feature input, one layer."""
    n = Net()
    letters = 2 if kind == "LSTM" else 1
    x = n.input(names[0], ["N", "T", width] if rank == 3 else ["N", width])
    states = [n.input(names[1 + k], [1, "N", H]) for k in range(letters)]
    x = n.op("Transpose", x, perm=[1, 0, 2]) if rank == 3 else n.unsqueeze(x, 0)
    y = n.recurrent(kind, x, 0, width, states, list(names[4 : 4 + letters]))
    y = n.op("Transpose", y, perm=[1, 0, 2])
    if rank == 2:
        y = n.squeeze(y, 1)
    n.op("Identity", n.head(y, size=size), out=names[3])
    n.output(names[3], ["N", "T", size] if rank == 3 else ["N", size])
    for k in range(letters):
        n.output(names[4 + k], [1, "N", H])
    return n


def cell(*, time="one", names=("tokens", "past_key", "present_key"), loops=None):
    """h' = tanh(x W + h U + b) in primitive operators, or in the body of a Scan or Loop."""
    n = Net()
    if loops is None:
        n.input(names[0], ["N"], INT64)
        x = n.embed(names[0])
        h = n.input(names[1], ["N", H])
        total = n.op("Add", n.op("MatMul", x, n.weight("W", E, H)),
                     n.op("MatMul", h, n.weight("U", H, H)))  # fmt: skip
        n.op("Tanh", n.op("Add", total, n.weight("b", H)), out=names[2])
        n.op("Identity", n.head(names[2]), out="logits")
        n.output("logits", ["N", V])
        n.output(names[2], ["N", H])
        return n
    n.input(names[0], ["N", "T"], INT64)
    x = n.op("Transpose", n.embed(names[0]), perm=[1, 0, 2])
    w, u, b = n.weight("W", E, H), n.weight("U", H, H), n.weight("b", H)
    info = helper.make_tensor_value_info
    body = [helper.make_node("MatMul", ["xt", w], ["xw"]),
            helper.make_node("MatMul", ["h_in", u], ["hu"]),
            helper.make_node("Add", ["xw", "hu"], ["sum"]),
            helper.make_node("Add", ["sum", b], ["sumb"]),
            helper.make_node("Tanh", ["sumb"], ["h_out"]),
            helper.make_node("Identity", ["h_out"], ["y_out"])]  # fmt: skip
    if "inner" in loops:  # no state on the interface
        count = n.op("Shape", names[0], start=0, end=1)
        shape = n.op("Concat", count, n.const([H]), axis=0)
        h = n.op("ConstantOfShape", shape)
    else:
        h = n.input("h", ["N", H])
    if loops.startswith("scan"):
        ins, outs = (
            [info(v, FLOAT, None) for v in names] for names in (("h_in", "xt"), ("h_out", "y_out"))
        )
        graph = helper.make_graph(body, "body", list(ins), list(outs))
        n.op("Scan", h, x, out=["h_last", "ys"], body=graph, num_scan_inputs=1)
    else:
        body = [helper.make_node("Gather", [x, "i"], ["xt"], axis=0), *body,
                helper.make_node("Identity", ["go"], ["go_on"])]  # fmt: skip
        graph = helper.make_graph(
            body, "body",
            [info("i", INT64, []), info("go", TensorProto.BOOL, []), info("h_in", FLOAT, None)],
            [info("go_on", TensorProto.BOOL, []), info("h_out", FLOAT, None),
             info("y_out", FLOAT, None)])  # fmt: skip
        steps = n.squeeze(n.op("Shape", x, start=0, end=1), 0)
        n.op("Loop", steps, n.const(True, "bool"), h, out=["h_last", "ys"], body=graph)
    n.op("Transpose", n.head("ys"), out="logits", perm=[1, 0, 2])
    n.output("logits", ["N", "T", V])
    if "inner" not in loops:
        n.op("Identity", "h_last", out="new_h")
        n.output("new_h", ["N", H])
    return n


def in_scan_lstm():
    """An LSTM node inside the body of a Scan: one step per turn."""
    n = Net()
    n.input("ids", ["N", "T"], INT64)
    for a in "hc":
        n.input(f"{a}_prev", [1, "N", H])
    x = n.op("Transpose", n.embed("ids"), perm=[1, 0, 2])
    outer = n.nodes
    n.nodes = []
    xt = n.unsqueeze("xt", 0)
    y = n.recurrent("LSTM", xt, 0, E, ["hb", "cb"], ["hb_out", "cb_out"])
    n.op("Squeeze", y, n.const([0]), out="y_out")
    info = helper.make_tensor_value_info
    ins, outs = (
        [info(v, FLOAT, None) for v in names]
        for names in (("hb", "cb", "xt"), ("hb_out", "cb_out", "y_out"))
    )
    graph = helper.make_graph(n.nodes, "body", ins, outs)
    n.nodes = outer
    # Names that would mislead: tracing alone tells h from c.
    n.op("Scan", "h_prev", "c_prev", x, out=["u1", "u2", "ys"], body=graph, num_scan_inputs=1)
    n.op("Identity", "u1", out="out_a")
    n.op("Identity", "u2", out="out_b")
    n.op("Transpose", n.head("ys"), out="scores", perm=[1, 0, 2])
    n.output("scores", ["N", "T", V])
    n.output("out_b", [1, "N", H])
    n.output("out_a", [1, "N", H])
    return n


def baked(batch=1, time="T"):
    """A file traced with a fixed batch: its Reshapes name it."""
    n = Net()
    n.input("tokens", [batch, time], INT64)
    x = n.op("Transpose", n.embed("tokens"), perm=[1, 0, 2])
    zeros = n.const(np.zeros((1, batch, H)), "float32")
    y = n.recurrent("LSTM", x, 0, E, [zeros, zeros], [])
    steps = time if isinstance(time, int) else -1
    flat = n.op("Reshape", y, n.const([steps * batch if steps > 0 else -1, H]))
    logits = n.op("Reshape", n.head(flat), n.const([steps, batch, V]))
    n.op("Transpose", logits, out="logits", perm=[1, 0, 2])
    n.output("logits", [batch, time, V])
    return n


def bidirectional():
    n = Net()
    n.input("tokens", ["N", "T"], INT64)
    x = n.op("Transpose", n.embed("tokens"), perm=[1, 0, 2])
    names = [n.weight(k, 2, *s) for k, s in (("W", (4 * H, E)), ("R", (4 * H, H)), ("B", (8 * H,)))]
    n.op("LSTM", x, *names, out=["Y"], hidden_size=H, direction="bidirectional")
    y = n.op("ReduceSum", "Y", n.const([1]), keepdims=0)
    n.op("Transpose", n.head(y), out="logits", perm=[1, 0, 2])
    n.output("logits", ["N", "T", V])
    return n


def quantized(folder: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    onnx.save(classic(layers=1).model(), folder / "float.onnx")
    quantize_dynamic(folder / "float.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8)
    return folder / "int8.onnx"


# Oracles


def mean(step, xs, sizes, delays):
    """Mean of d state_{p+delay} / d x_p; `step` maps (x [E], state dict) to a state dict."""
    import torch
    from torch.func import jacrev

    torch.set_num_threads(1)  # the matrices are small: threads would only wait for each other
    count = len(xs)
    states = {k: torch.zeros(s, dtype=torch.float64) for k, s in sizes.items()}
    keys = list(sizes)
    edges = np.cumsum([0, *sizes.values()])

    def joined(x, s):
        parts = {k: s[edges[i] : edges[i + 1]] for i, k in enumerate(keys)}
        new = step(x, parts)
        return torch.cat([new[k] for k in keys])

    s = torch.cat([states[k] for k in keys])
    total = torch.zeros(delays + 1, edges[-1], xs.shape[1], dtype=torch.float64)
    alive: list = []
    for x in xs:
        b, a = jacrev(joined, argnums=(0, 1))(x, s)
        s = joined(x, s)
        alive = [b, *(a @ j for j in alive)][: delays + 1]
        for d, j in enumerate(alive):
            total[d] += j
    total /= (count - torch.arange(delays + 1))[:, None, None]
    return {k: total[:, edges[i] : edges[i + 1]].numpy() for i, k in enumerate(keys)}


def _weights(net):
    import torch

    return {k: torch.tensor(v, dtype=torch.float64) for k, v in net.weights.items()}


def node_step(kind, w, layer, x, s, prefix=None):
    """One step of an LSTM (gates i, o, f, c), GRU (z, r, h) or RNN node."""
    import torch

    name = prefix or f"{kind.lower()}{layer}"
    matrix, recurrence, bias = w[f"W{layer}"][0], w[f"R{layer}"][0], w[f"B{layer}"][0]
    count = GATES[kind] * H
    wb, rb = bias[:count], bias[count:]
    h = s[f"{name}.h"]
    if kind == "LSTM":
        i, o, f, g = (matrix @ x + wb + recurrence @ h + rb).split(H)
        c = f.sigmoid() * s[f"{name}.c"] + i.sigmoid() * g.tanh()
        return {f"{name}.h": o.sigmoid() * c.tanh(), f"{name}.c": c}
    if kind == "GRU":
        gates = matrix @ x + wb
        z = (gates[:H] + recurrence[:H] @ h + rb[:H]).sigmoid()
        r = (gates[H : 2 * H] + recurrence[H : 2 * H] @ h + rb[H : 2 * H]).sigmoid()
        # linear_before_reset = 0
        n = torch.tanh(gates[2 * H :] + recurrence[2 * H :] @ (r * h) + rb[2 * H :])
        return {f"{name}.h": (1 - z) * n + z * h}
    return {f"{name}.h": torch.tanh(matrix @ x + wb + recurrence @ h + rb)}


def nodes_oracle(net, kind="LSTM", layers=1, before=None):
    letters = "hc" if kind == "LSTM" else "h"
    sizes = {f"{kind.lower()}{k}.{a}": H for k in range(layers) for a in letters}

    def oracle(ids, delays):
        import torch

        w = _weights(net)

        def step(x, s):
            y, new = (before(w, x) if before else x), {}
            for k in range(layers):
                new.update(node_step(kind, w, k, y, s))
                y = new[f"{kind.lower()}{k}.h"]
            return new

        if "E" in w:
            xs = w["E"][torch.tensor(ids)]
        else:
            width = int(net.weights.get("input_width", net.weights["W0"].shape[-1]))
            xs = torch.eye(width, dtype=torch.float64)[torch.tensor(ids)]
        return mean(step, xs, sizes, delays)

    return oracle


def cell_oracle(net, name):
    def oracle(ids, delays):
        import torch

        w = _weights(net)

        def step(x, s):
            return {name: torch.tanh(x @ w["W"] + s[name] @ w["U"] + w["b"])}

        return mean(step, w["E"][torch.tensor(ids)], {name: H}, delays)

    return oracle


def _export(make, **options):
    def export(folder):
        source = folder / "shipped.onnx"
        net = make() if callable(make) else make
        onnx.save(net.model(), source)
        shipped.export(source, folder / "m.onnx", **options)
        return folder / "m.onnx"

    return export


def probabilities():
    """The last node is a Softmax."""
    n = classic(log=False)
    last = n.nodes.pop(next(k for k, m in enumerate(n.nodes) if m.output[0] == "log_softmax"))
    last.input[0] = n.op("Softmax", last.input[0], axis=-1)
    n.nodes.append(last)
    return n


def dilated():
    """A causal convolution with a gap before the LSTM: memory that is no recurrent state."""
    n = Net()
    n.input("tokens", ["N", "T"], INT64)
    x = n.op("Transpose", n.embed("tokens"), perm=[0, 2, 1])
    x = n.op("Conv", x, n.weight("k", E, E, 2), dilations=[8], pads=[8, 0], kernel_shape=[2])
    y = n.recurrent("LSTM", n.op("Transpose", x, perm=[2, 0, 1]), 0, E, [], [])
    n.op("Transpose", n.head(y), out="logits", perm=[1, 0, 2])
    n.output("logits", ["N", "T", V])
    return n


def _quantized(folder):
    shipped.export(quantized(folder), folder / "m.onnx")
    return folder / "m.onnx"


def form(name, net, kind="LSTM", layers=1, oracle=None, before=None, **options) -> Form:
    return Form(name, _export(net, **options),
                oracle or nodes_oracle(net, kind, layers, before))  # fmt: skip


def _vad_front(w, x):
    return (x @ w["filter"]).relu()


def _unhelpful(kind="LSTM"):
    return {"y": "o1", "h0": "a", "c0": "b", "hn": "o2", "cn": "o3"}


_plain = {"y": "y", "h0": "h", "c0": "c", "hn": "hn", "cn": "cn"}

FORMS: list[Form] = [
    form("x,h0,c0 → log_softmax,next_h0,next_c0, [L,N,H]", classic(), layers=2),
    form("the same, names of h and c swapped", classic(swap=True), layers=2),
    form("x,h,c → y,hn,cn, tokens", classic(layers=1, names=_plain, log=False)),
    form("names that say nothing", classic(names=_unhelpful()), layers=2),
    form("GRU, states stacked", classic("GRU"), "GRU", 2),
    form("RNN, three layers", classic("RNN", 3), "RNN", 3),
    form("tokens int32 [T,N]", classic(x=("ids", INT32), time_major=True), layers=2),
    form("logits [N,V,T]", classic(transposed_logits=True), layers=2),
    form("no states on the interface", classic(starts=False, outputs=False), layers=2),
    form("initial states in, no final states out", classic(outputs=False), layers=2),
    form("final states out, no initial states in", classic(starts=False), layers=2),
    form("opset 11", classic(opset=11), layers=2),
    form("opset 20", classic(opset=20), layers=2),
    form("float16, computed in float32", classic(dtype="float16"), layers=2),
    form("step VAD: input,state,sr → output,stateN", vad(in_if=False), before=_vad_front),
    form("step VAD, a branch per sampling rate (If)", vad(), before=_vad_front),
    form("transducer decoder: targets,target_length,states.1,onnx::LSTM_3", transducer(), layers=2),
    form("one-hot input", floating()),
    form("feature input, one step", floating(width=9, size=5, rank=2)),
    form(
        "feature input, GRU",
        floating("GRU", width=7, size=7, names=("feats", "hx", "", "out", "hy")),
        "GRU",
    ),
    form("custom cell, past_X → present_X", (_c := cell()), oracle=cell_oracle(_c, "past_key")),
    form(
        "Scan, state on the interface",
        (_s := cell(loops="scan")),
        oracle=cell_oracle(_s, "scan0.s0"),
    ),
    form(
        "Scan, state inside", (_si := cell(loops="scan inner")), oracle=cell_oracle(_si, "scan0.s0")
    ),
    form(
        "Loop, state on the interface",
        (_l := cell(loops="loop")),
        oracle=cell_oracle(_l, "loop0.s0"),
    ),
    form(
        "Loop, state inside", (_li := cell(loops="loop inner")), oracle=cell_oracle(_li, "loop0.s0")
    ),
    form("LSTM inside a Scan", in_scan_lstm()),
    form("ends in a softmax", probabilities(), layers=2),
    form("batch 1 baked in", baked()),
    form("batch 4 baked in", baked(4)),
    form("batch 1 and 5 steps baked in", baked(1, 5)),
    form("batch 3 and 5 steps baked in", baked(3, 5)),
    Form(
        "dynamically quantised LSTM (int8)",
        _quantized,
        None,
        jvp=False,
        why="DynamicQuantizeLSTM rounds its weights and inputs",
    ),
    Form(
        "dilated causal convolution before an LSTM",
        _export(dilated),
        None,
        refused="mixes time steps outside its recurrence",
    ),
    Form("bidirectional LSTM", _export(bidirectional), None, refused="depends on later words"),
]

MAKERS: dict[str, Callable[..., Net]] = {"classic": classic, "vad": vad, "cell": cell}
