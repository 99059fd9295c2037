"""Rewrite a step graph into operators that have a block rule.

Passes, in order: model functions are inlined; operators without a rule but with a function body
in the ONNX specification are replaced by that body; Gemm and the recurrent operators become
primitive operators over their equations, one copy per time step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper

from .. import _runtime
from ..errors import NoBlockRule
from ._probe import Evaluate, Feeds, Probe, probe
from ._rules import LOWERED, RULES, ZERO

MAX_STEPS = 64  # of an unrolled sequence; a step graph has 1


def inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without calls of functions, neither its own nor bodies from the specification.

    Requires nothing. Leaves every operator that has a rule, or needs none, as it is.
    """
    if model.functions:
        model = inliner.inline_local_functions(model)
    # The body of ReduceLogSumExp computes in double whatever its input; onnx-ad has a rule for it.
    known = {*RULES, *ZERO, *LOWERED, "ReduceLogSumExp"}
    ops = {(n.domain, n.op_type) for n in model.graph.node if not n.domain}
    missing = [op for op in sorted(ops) if op[1] not in known]
    if missing:
        model = inliner.inline_selected_functions(model, missing, inline_schema_functions=True)
    return model


def time_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with recurrent nodes of layout 1 (batch first) as nodes of layout 0.

    ONNX Runtime has no kernels for layout 1. Requires nothing.
    """
    if not any(_batch_first(n) for n in model.graph.node):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for number, node in enumerate(model.graph.node):
        if not _batch_first(node):
            result.graph.node.append(node)
            continue
        moved = onnx.NodeProto()
        moved.CopyFrom(node)
        kept = [a for a in node.attribute if a.name != "layout"]
        del moved.attribute[:]
        moved.attribute.extend(kept)
        after = []
        for i in (0, 5, 6):  # X, initial_h, initial_c
            if i < len(node.input) and node.input[i]:
                moved.input[i] = f"{node.input[i]}/time-first/{number}"
                result.graph.node.append(
                    helper.make_node("Transpose", [node.input[i]], [moved.input[i]], perm=[1, 0, 2])
                )
        for i, name in enumerate(node.output):
            if name:
                # Y: [time, direction, batch, unit] to [batch, time, direction, unit].
                perm = [1, 0, 2] if i else [2, 0, 1, 3]
                moved.output[i] = f"{name}/time-first"
                after.append(helper.make_node("Transpose", [moved.output[i]], [name], perm=perm))
        result.graph.node.append(moved)
        result.graph.node.extend(after)
    return result


def _batch_first(node: onnx.NodeProto) -> bool:
    return node.op_type in ("LSTM", "GRU", "RNN") and any(
        a.name == "layout" and a.i == 1 for a in node.attribute
    )


def lower(
    model: onnx.ModelProto,
    feeds: dict[str, np.ndarray],
    evaluate: Evaluate = _runtime.evaluate,
) -> onnx.ModelProto:
    """`model` with Gemm, LSTM, GRU and RNN rewritten.

    Requires inlined functions. The result is for the shapes of `feeds` alone.

    Raises:
        NoBlockRule: A recurrent operator runs backwards, or over too many steps.
    """
    model = time_first(inline(model))
    if not any(n.op_type in LOWERED for n in model.graph.node):
        return model
    facts = probe(model, feeds, evaluate)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for number, node in enumerate(model.graph.node):
        if node.op_type in LOWERED and not node.domain:
            emit = _Emit(node, facts, f"{node.name or node.op_type}:{number}")
            {"Gemm": _gemm, "LSTM": _lstm, "GRU": _gru, "RNN": _rnn}[node.op_type](emit)
            result.graph.node.extend(emit.nodes)
            result.graph.initializer.extend(emit.initializers)
        else:
            result.graph.node.append(node)
    del result.graph.value_info[:]
    _check_same(model, result, feeds, evaluate)
    return result


def _check_same(
    model: onnx.ModelProto, written: onnx.ModelProto, feeds: Feeds, evaluate: Evaluate
) -> None:
    """Refuse a rewriting that computes something else than what is run.

    Runtimes differ in what they take a variant of an operator to mean.
    """
    rng = np.random.default_rng(0)
    moved = {
        n: (v + 0.3 * rng.standard_normal(v.shape)).astype(v.dtype)
        if np.issubdtype(v.dtype, np.floating)
        else v
        for n, v in feeds.items()
    }
    names = [o.name for o in model.graph.output]
    wanted, got = evaluate(model, names, moved), evaluate(written, names, moved)
    for name, value in wanted.items():
        if not np.allclose(got[name], value, rtol=1e-3, atol=1e-4, equal_nan=True):
            ops = sorted({n.op_type for n in model.graph.node} & set(LOWERED))
            raise NoBlockRule(f"{', '.join(ops)} in a variant that runtimes take differently")


class _Emit:
    """Writes the nodes that replace one node."""

    def __init__(self, node: onnx.NodeProto, facts: Probe, prefix: str) -> None:
        self.node, self.facts, self.prefix = node, facts, prefix
        self.attributes: dict[str, Any] = {
            a.name: helper.get_attribute_value(a) for a in node.attribute
        }
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.dtype = facts.dtypes[node.input[0]]

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name = out or f"{self.prefix}:{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def split(self, x: str, parts: int, axis: int = -1) -> list[str]:
        names = [f"{self.prefix}:{len(self.nodes)}:{i}" for i in range(parts)]
        width = self.facts.shapes[self.node.input[2]][2]  # R is [direction, gate·unit, unit]
        sizes = self.const([width] * parts, np.int64)
        self.nodes.append(helper.make_node("Split", [x, sizes], names, name=names[0], axis=axis))
        return names

    def const(self, value: Any, dtype: Any = None) -> str:
        name = f"{self.prefix}:const:{len(self.initializers)}"
        array = np.asarray(value, dtype=dtype or self.dtype)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def input(self, i: int) -> str | None:
        return (self.node.input[i] or None) if i < len(self.node.input) else None

    def output(self, i: int) -> str | None:
        return (self.node.output[i] or None) if i < len(self.node.output) else None

    def ints(self, *values: int) -> str:
        return self.const(list(values), np.int64)

    def squeeze(self, x: str, axis: int) -> str:
        return self.op("Squeeze", x, self.ints(axis))

    def unsqueeze(self, x: str, axis: int, out: str | None = None) -> str:
        return self.op("Unsqueeze", x, self.ints(axis), out=out)

    def transposed(self, x: str) -> str:
        return self.op("Transpose", x, perm=[1, 0])


def _gemm(e: _Emit) -> None:
    """Y = alpha A' B' + beta C."""
    a, b = e.node.input[:2]
    if e.attributes.get("transA", 0):
        a = e.transposed(a)
    if e.attributes.get("transB", 0):
        b = e.transposed(b)
    alpha, beta = e.attributes.get("alpha", 1.0), e.attributes.get("beta", 1.0)
    c = e.input(2)
    last = e.node.output[0]
    if alpha != 1.0:
        product = e.op("MatMul", a, b)
        product = e.op("Mul", product, e.const(alpha), out=None if c else last)
    else:
        product = e.op("MatMul", a, b, out=None if c else last)
    if c:
        if beta != 1.0:
            c = e.op("Mul", c, e.const(beta))
        e.op("Add", product, c, out=last)


# The activation functions that the recurrent operators may name, with the parameters that each
# takes from activation_alpha and activation_beta (ONNX operator specification, LSTM).
_ALPHA = {"affine": 1.0, "leakyrelu": 0.01, "thresholdedrelu": 1.0, "scaledtanh": 1.0,
          "hardsigmoid": 0.2, "elu": 1.0}  # fmt: skip
_BETA = {"affine": 0.0, "scaledtanh": 1.0, "hardsigmoid": 0.5}
_PLAIN = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "softsign": "Softsign",
          "softplus": "Softplus"}  # fmt: skip
_ONE_ALPHA = {"leakyrelu": "LeakyRelu", "thresholdedrelu": "ThresholdedRelu", "elu": "Elu"}


class _Recurrent:
    """What LSTM, GRU and RNN share: shapes, gates, activations, the sequence."""

    def __init__(self, e: _Emit, gates: int, defaults: tuple[str, ...]) -> None:
        self.e, self.gates = e, gates
        direction = e.attributes.get("direction", b"forward").decode()
        if direction != "forward":
            raise NoBlockRule(
                f"{e.node.op_type} with direction {direction}: its state depends on later words"
            )
        self.steps, self.batch = e.facts.shapes[e.node.input[0]][:2]
        if self.steps > MAX_STEPS:
            raise NoBlockRule(
                f"{e.node.op_type} over {self.steps} steps (at most {MAX_STEPS} are unrolled)"
            )
        self.width = e.facts.shapes[e.node.input[2]][2]
        names = [a.decode() for a in e.attributes.get("activations", [])] or list(defaults)
        alphas = iter(e.attributes.get("activation_alpha", []))
        betas = iter(e.attributes.get("activation_beta", []))
        self.functions = []
        for name in names:
            key = name.lower()
            if key not in {*_PLAIN, *_ALPHA}:
                raise NoBlockRule(f"{e.node.op_type} with the activation {name}")
            alpha = next(alphas, _ALPHA[key]) if key in _ALPHA else None
            beta = next(betas, _BETA[key]) if key in _BETA else None
            self.functions.append((key, alpha, beta))
        self.clip = e.attributes.get("clip")
        self.w = e.transposed(e.squeeze(e.node.input[1], 0))
        self.r = e.transposed(e.squeeze(e.node.input[2], 0))
        self.lengths = e.input(4)
        if self.lengths in e.facts.constants:
            lengths = e.facts.constants[self.lengths]
            self.lengths = None if (lengths >= self.steps).all() else self.lengths

    def biases(self) -> tuple[str | None, str | None]:
        """The biases of the input and of the recurrence, ``[gates·unit]`` each."""
        b = self.e.input(3)
        if b is None:
            return None, None
        flat = self.e.squeeze(b, 0)
        half = self.gates * self.width
        names = [f"{flat}:w", f"{flat}:r"]
        sizes = self.e.ints(half, half)
        self.e.nodes.append(helper.make_node("Split", [flat, sizes], names, name=names[0], axis=0))
        return names[0], names[1]

    def initial(self, i: int) -> str:
        """An initial state as ``[batch, unit]``."""
        given = self.e.input(i)
        if given is None:
            return self.e.const(np.zeros((self.batch, self.width)))
        return self.e.squeeze(given, 0)

    def step(self, t: int) -> str:
        """The input at time t, ``[batch, input]``."""
        x = self.e.node.input[0]
        if self.steps == 1:
            return self.e.squeeze(x, 0)
        at = self.e.const(t, np.int64)
        return self.e.op("Gather", x, at, axis=0)

    def affine(self, x: str, w: str, bias: str | None) -> str:
        product = self.e.op("MatMul", x, w)
        return self.e.op("Add", product, bias) if bias else product

    def activate(self, x: str, i: int, clip: bool = True) -> str:
        """Activation function number i, its argument clipped where the node says so."""
        if clip and self.clip is not None:
            x = self.e.op("Clip", x, self.e.const(-self.clip), self.e.const(self.clip))
        key, alpha, beta = self.functions[i]
        if key in _PLAIN:
            return self.e.op(_PLAIN[key], x)
        if key in _ONE_ALPHA:
            return self.e.op(_ONE_ALPHA[key], x, alpha=alpha)
        if key == "hardsigmoid":
            return self.e.op("HardSigmoid", x, alpha=alpha, beta=beta)
        if key == "affine":
            return self.e.op("Add", self.e.op("Mul", x, self.e.const(alpha)), self.e.const(beta))
        inner = self.e.op("Mul", x, self.e.const(beta))  # scaledtanh: alpha tanh(beta x)
        return self.e.op("Mul", self.e.op("Tanh", inner), self.e.const(alpha))

    def running(self, t: int, new: str, old: str) -> str:
        """`new` where the sequence has not ended at time t, else `old`."""
        if self.lengths is None:
            return new
        at = self.e.const(t, self.e.facts.dtypes[self.lengths])
        active = self.e.unsqueeze(self.e.op("Greater", self.lengths, at), 1)
        return self.e.op("Where", active, new, old)

    def finish(self, states: list[str], last: list[str]) -> None:
        """Write Y, ``[time, direction, batch, unit]``, and the final states."""
        e = self.e
        if e.output(0):
            parts = [e.unsqueeze(e.unsqueeze(s, 0), 0) for s in states]
            e.op("Concat", *parts, out=e.output(0), axis=0)
        for i, state in enumerate(last, 1):
            if e.output(i):
                e.unsqueeze(state, 0, out=e.output(i))

    def masked(self, t: int, new: str) -> str:
        """What Y shows at time t: zero after the end of a sequence."""
        if self.lengths is None:
            return new
        return self.running(t, new, self.e.const(np.zeros((self.batch, self.width))))


def _lstm(e: _Emit) -> None:
    """i, o, f = σ(...); c̃ = g(...); C = f∘C + i∘c̃; H = o∘h(C). Gates in the order i, o, f, c."""
    r = _Recurrent(e, 4, ("Sigmoid", "Tanh", "Tanh"))
    wb, rb = r.biases()
    h, c = r.initial(5), r.initial(6)
    peep: list[str] = e.split(e.squeeze(e.node.input[7], 0), 3) if e.input(7) else []

    def gate(x: str, cell: str, i: int) -> str:
        if not peep:
            return x
        return e.op("Add", x, e.op("Mul", peep[i], cell))  # peepholes are in the order i, o, f

    states = []
    for t in range(r.steps):
        total = e.op("Add", r.affine(r.step(t), r.w, wb), r.affine(h, r.r, rb))
        i, o, f, g = e.split(total, 4)
        i = r.activate(gate(i, c, 0), 0)
        if e.attributes.get("input_forget", 0):
            f = e.op("Sub", e.const(1.0), i)
        else:
            f = r.activate(gate(f, c, 2), 0)
        g = r.activate(g, 1)
        new_c = e.op("Add", e.op("Mul", f, c), e.op("Mul", i, g))
        o = r.activate(gate(o, new_c, 1), 0)
        new_h = e.op("Mul", o, r.activate(new_c, 2, clip=False))
        states.append(r.masked(t, new_h))
        h, c = r.running(t, new_h, h), r.running(t, new_c, c)
    r.finish(states, [h, c])


def _gru(e: _Emit) -> None:
    """z, r = σ(...); n = g(...); H = (1 - z)∘n + z∘H (gates z, r, h)."""
    r = _Recurrent(e, 3, ("Sigmoid", "Tanh"))
    after = e.attributes.get("linear_before_reset", 0)
    wb, rb = r.biases()
    h = r.initial(5)
    size = r.width
    names = [e.op("Slice", r.r, e.ints(a), e.ints(b), e.ints(1))
             for a, b in ((0, 2 * size), (2 * size, 3 * size))]  # fmt: skip
    rzr, rn = names
    rbzr = rbn = None
    if rb:
        rbzr = e.op("Slice", rb, e.ints(0), e.ints(2 * size), e.ints(0))
        rbn = e.op("Slice", rb, e.ints(2 * size), e.ints(3 * size), e.ints(0))
    states = []
    for t in range(r.steps):
        xz, xr, xn = e.split(r.affine(r.step(t), r.w, wb), 3)
        hz, hr = e.split(r.affine(h, rzr, rbzr), 2)
        z = r.activate(e.op("Add", xz, hz), 0)
        reset = r.activate(e.op("Add", xr, hr), 0)
        if after:
            inner = e.op("Mul", reset, r.affine(h, rn, rbn))
        else:
            inner = r.affine(e.op("Mul", reset, h), rn, rbn)
        n = r.activate(e.op("Add", xn, inner), 1)
        keep = e.op("Mul", z, h)
        new_h = e.op("Add", e.op("Mul", e.op("Sub", e.const(1.0), z), n), keep)
        states.append(r.masked(t, new_h))
        h = r.running(t, new_h, h)
    r.finish(states, [h])


def _rnn(e: _Emit) -> None:
    """H = f(W x + R H + b)."""
    r = _Recurrent(e, 1, ("Tanh",))
    wb, rb = r.biases()
    h = r.initial(5)
    states = []
    for t in range(r.steps):
        total = e.op("Add", r.affine(r.step(t), r.w, wb), r.affine(h, r.r, rb))
        new_h = r.activate(total, 0)
        states.append(r.masked(t, new_h))
        h = r.running(t, new_h, h)
    r.finish(states, [h])
