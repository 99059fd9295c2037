"""The specification's own node tests as cases for the block rules.

For every single-node model of `onnx.backend.test` whose operator has a block rule, the Jacobian
by block rules is held against central differences of the ONNX reference evaluator, both in
float64. Run as a script, this prints the table of ``docs/operators.md``.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from mnemoscope.analyzer import _passes
from mnemoscope.analyzer.linearize._blocks import Algebra
from mnemoscope.analyzer.linearize._graph import Builder
from mnemoscope.analyzer.linearize._lower import LOWERED, lower
from mnemoscope.analyzer.linearize._probe import probe
from mnemoscope.analyzer.linearize._rules import ELEMENTWISE, RULES
from mnemoscope.analyzer.linearize._walk import walk
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

STEP = 1e-5  # central differences in float64: h² and eps/h both about 1e-10
TOLERANCE = 1e-6  # relative to the largest entry; leaves room for curvature up to 1e4
MAX_INPUTS = 600  # elements differentiated per input; larger inputs by a seeded sample

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)

# These tests put an input on a kink, where the function has no derivative (celu and softsign: no
# second derivative, which central differences need). The whole input is moved off it.
KINKS = {
    "test_celu_float16": 0.1,
    "test_elu_example": 0.1,
    "test_leakyrelu_example": 0.1,
    "test_selu_example": 0.1,
    "test_softsign_example": 0.1,
    "test_thresholdedrelu_example": 0.1,
}

# The reference evaluator computes Erf in single precision whatever its input, so differences
# take the step that suits single precision, eps^(1/3), and are good to eps^(2/3) of that.
SINGLE = {"Erf": (5e-3, 1e-4), "Gelu": (5e-3, 1e-4)}


@dataclass(frozen=True)
class Case:
    """One node test."""

    name: str
    op: str
    model: onnx.ModelProto
    inputs: Sequence[np.ndarray]


@cache
def cases() -> tuple[Case, ...]:
    """All node tests of operators with a rule, in the order of their names."""
    from onnx.backend.test.loader import load_model_tests

    found = []
    with warnings.catch_warnings():
        # Building the specification's tests overflows and divides by zero on purpose.
        warnings.simplefilter("ignore")
        tests = load_model_tests(kind="node")
    for test in tests:
        model = test.model
        if model is None or len(model.graph.node) != 1:
            continue
        node = model.graph.node[0]
        if node.domain in ("", "ai.onnx") and node.op_type in {*RULES, *LOWERED}:
            # Types that numpy lacks come as tensor messages.
            inputs = [
                numpy_helper.to_array(a) if isinstance(a, onnx.TensorProto) else a
                for a in test.data_sets[0][0]
            ]
            found.append(_shortened(Case(test.name, node.op_type, model, inputs)))
    return tuple(sorted(found, key=lambda c: c.name))


def _shortened(case: Case) -> Case:
    """An elementwise test on thousands of numbers, on the first of them: enough, and quicker."""
    if case.op not in ELEMENTWISE or case.inputs[0].size <= MAX_INPUTS:
        return case
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for info in (*model.graph.input, *model.graph.output):
        del info.type.tensor_type.shape.dim[:]
        info.type.tensor_type.shape.dim.add(dim_value=MAX_INPUTS)
    return Case(case.name, case.op, model, (case.inputs[0].reshape(-1)[:MAX_INPUTS],))


def tolerance(case: Case) -> float:
    """What the largest relative error of a case may be."""
    return SINGLE[case.op][1] if case.op in SINGLE else TOLERANCE


def reason_left_out(case: Case) -> str | None:
    """Why a case has no Jacobian to compare; None when it has one."""
    node = case.model.graph.node[0]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    names = [i.name for i in case.model.graph.input]
    value = dict(zip(names, case.inputs, strict=False))
    floats = [n for n in names if _floating(case, n) and not _parameter(case, n)]
    outputs = [o for o in case.model.graph.output if o.type.tensor_type.elem_type in FLOATS]
    if not floats:
        return "no input of type float16, float32 or float64"
    if not outputs:
        return "no output of type float16, float32 or float64"
    if all(not isinstance(value[n], np.ndarray) or value[n].size == 0 for n in floats):
        return "empty tensors"
    if case.op == "Dropout" and len(node.input) > 2 and bool(value[node.input[2]]):
        return "training mode"
    if case.op in LOWERED and attributes.get("direction", b"forward") != b"forward":
        return "bidirectional or reverse: refused, the state would depend on later words"
    return None


def _floating(case: Case, name: str) -> bool:
    info = next(i for i in case.model.graph.input if i.name == name)
    return info.type.tensor_type.elem_type in FLOATS


def evaluate(model: onnx.ModelProto, names, feeds) -> dict[str, np.ndarray]:
    """Tensors of a graph by the reference evaluator."""
    if not names:
        return {}
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    values = ReferenceEvaluator(exposed).run(None, feeds)
    return {n: np.asarray(v) for n, v in zip(names, values, strict=True) if v is not None}


def check(case: Case, rng: np.random.Generator | None = None) -> float:
    """The largest relative error of any Jacobian of one case."""
    rng = rng or np.random.default_rng(0)
    model = _passes.to_precision(case.model, np.float64)
    names = [i.name for i in model.graph.input]
    feeds = {n: np.asarray(v) for n, v in zip(names, case.inputs, strict=False)}
    for name in feeds:
        if _floating(case, name):
            moved = feeds[name].astype(np.float64) + KINKS.get(case.name, 0.0)
            feeds[name] = np.asarray(moved)
    sources = [n for n in names if _floating(case, n) and feeds[n].size]
    sources = [n for n in sources if not _parameter(case, n)]
    # Parameters (axes, shapes, limits) are constants of the graph that a rule sees.
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.input[:]
    for info in model.graph.input:
        if info.name in sources:
            fixed.graph.input.append(info)
        elif info.name in feeds:
            fixed.graph.initializer.append(numpy_helper.from_array(feeds[info.name], info.name))
    live = {n: feeds[n] for n in sources}
    low = lower(fixed, live, evaluate)
    facts = probe(low, live, evaluate)
    builder = Builder(np.float64)
    spec = {n: (n, np.arange(feeds[n].size).reshape(feeds[n].shape)) for n in sources}
    blocks, missing, _ = walk(low, facts, spec, builder)
    outputs = [o.name for o in model.graph.output if o.type.tensor_type.elem_type == 11]
    assert not [m for o in outputs for m in missing.get(o, ())], missing
    algebra = Algebra(builder)
    wanted = {}
    for out in outputs:
        for source, block in blocks.get(out, {}).items():
            shape = facts.shapes[out]
            wanted[out, source] = algebra.full(block, shape, list(range(len(shape)))).name
    extended = onnx.ModelProto()
    extended.CopyFrom(low)
    extended.graph.node.extend(builder.nodes)
    extended.graph.initializer.extend(builder.initializers)
    values = evaluate(extended, list(dict.fromkeys(wanted.values())), live)
    reference = ReferenceEvaluator(fixed)
    h = SINGLE[case.op][0] if case.op in SINGLE else STEP
    order = [o.name for o in model.graph.output]
    worst = 0.0
    for source in sources:
        size = feeds[source].size
        chosen = np.arange(size)
        if size > MAX_INPUTS:
            chosen = np.sort(rng.choice(size, MAX_INPUTS, replace=False))
        for i in chosen:
            up, down = (dict(live, **{source: live[source].copy()}) for _ in range(2))
            up[source].flat[i] += h
            down[source].flat[i] -= h
            above, below = (dict(zip(order, reference.run(None, f), strict=True))
                            for f in (up, down))  # fmt: skip
            for out in outputs:
                # Where the function itself is infinite it has no derivative.
                finite = np.isfinite(above[out]) & np.isfinite(below[out])
                slope = np.zeros(np.shape(finite))
                slope[finite] = (above[out][finite] - below[out][finite]) / (2 * h)
                mine = values[wanted[out, source]][i] if (out, source) in wanted else 0.0
                size_of = max(1.0, float(np.abs(slope).max(initial=0)))
                error = np.abs(slope - mine)[finite].max(initial=0) / size_of
                worst = float(np.maximum(worst, error))  # unlike max(), keeps a NaN
    return worst


def _parameter(case: Case, name: str) -> bool:
    """Whether an input is a parameter of the operator, not something it differentiates."""
    node = case.model.graph.node[0]
    if name not in node.input:
        return True  # read by nothing
    position = list(node.input).index(name)
    return case.op in ("CastLike", "Clip", "Dropout") and position > 0


def table() -> str:
    """Cases per operator: how many agree, and why the others are left out."""
    rows: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    reasons: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for case in cases():
        reason = reason_left_out(case)
        if reason:
            reasons[case.op][reason] += 1
            continue
        rows[case.op][1] += 1
        rows[case.op][0] += check(case) <= tolerance(case)
    lines = [
        "# Operators with a block rule",
        "",
        "Written by `make docs`. For every single-node test model that the onnx package ships",
        f"(version {onnx.__version__}) and whose operator has a block rule: does the Jacobian by",
        "block rules agree with central differences of the ONNX reference evaluator, in float64,",
        f"to {TOLERANCE:g} of its largest entry? (Erf and Gelu to {SINGLE['Erf'][1]:g}: the",
        "evaluator computes erf in single precision. Inputs that lie on a kink are moved off it.)",
        "",
        "Operators that are not listed but have a function body in the specification are replaced",
        "by that body. Others are left to onnx-ad; `mnemoscope inspect` names them.",
        "",
        "| operator | node tests that agree | left out |",
        "| --- | --- | --- |",
    ]
    for op in sorted({*rows, *reasons}):
        left = "; ".join(f"{n} × {why}" for why, n in sorted(reasons[op].items()))
        lines.append(f"| {op} | {rows[op][0]} of {rows[op][1]} | {left} |")
    agree, run = (sum(r[i] for r in rows.values()) for i in (0, 1))
    out = sum(n for r in reasons.values() for n in r.values())
    lines += ["", f"{agree} of {run} node tests agree; {out} of {run + out} are left "
              "out for the reasons in the table."]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    text = table()
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
