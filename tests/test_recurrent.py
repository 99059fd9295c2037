"""LSTM, GRU and RNN written out, against ONNX Runtime's own operators, in every variant."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.analyzer import _passes, _runtime
from mnemoscope.analyzer.errors import NoBlockRule
from mnemoscope.analyzer.linearize._lower import lower
from onnx import TensorProto, helper, numpy_helper

T, B, E, H = 3, 2, 4, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FUNCTIONS = [
    ("Sigmoid", None, None),
    ("Tanh", None, None),
    ("Relu", None, None),
    ("Affine", 0.7, 0.1),
    ("LeakyRelu", 0.2, None),
    ("ThresholdedRelu", 0.3, None),
    ("ScaledTanh", 1.2, 0.8),
    ("HardSigmoid", 0.3, 0.4),
    ("Elu", 0.9, None),
    ("Softsign", None, None),
    ("Softplus", None, None),
]


def model(kind, *, bias=True, initial=True, peepholes=False, lengths=None, layout=0, **attributes):
    """One recurrent node over X with random weights, and feeds for it."""
    rng = np.random.default_rng(0)
    g = GATES[kind]

    def weight(*shape):
        return rng.uniform(-0.8, 0.8, shape).astype(np.float32)

    stored = {"W": weight(1, g * H, E), "R": weight(1, g * H, H)}
    names = ["X", "W", "R", "", "", ""]
    if bias:
        stored["B"], names[3] = weight(1, 2 * g * H), "B"
    if lengths is not None:
        stored["lengths"], names[4] = np.array(lengths, np.int32), "lengths"
    feeds = {"X": weight(B, T, E) if layout else weight(T, B, E)}
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    if initial:
        for i, name in enumerate(states):
            feeds[name] = weight(B, 1, H) if layout else weight(1, B, H)
            names[5 + i :] = [name]
    if peepholes:
        names += [""] * (7 - len(names)) + ["P"]
        stored["P"] = weight(1, 3 * H)
    outputs = ["Y", *(f"Y_{s}" for s in states)]
    node = helper.make_node(kind, names, outputs, hidden_size=H, layout=layout, **attributes)
    graph = helper.make_graph(
        [node],
        kind,
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, v.shape) for n, v in feeds.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(v, n) for n, v in stored.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return made, feeds


def compare(kind, **variant):
    fused, feeds = model(kind, **variant)
    written = lower(fused, feeds)
    assert not {n.op_type for n in written.graph.node} & set(GATES)
    wanted = _runtime.run(_runtime.session(fused), None, feeds)
    got = _runtime.run(_runtime.session(written), None, feeds)
    for name, a, b in zip([o.name for o in fused.graph.output], got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("initial", [True, False])
def test_optional_inputs(kind, bias, initial):
    compare(kind, bias=bias, initial=initial)


@pytest.mark.parametrize("kind", GATES)
def test_clip(kind):
    compare(kind, clip=0.3)


@pytest.mark.parametrize("kind", GATES)
def test_sequence_lengths(kind):
    compare(kind, lengths=[3, 1])
    compare(kind, lengths=[3, 3])


@pytest.mark.parametrize("after", [0, 1])
def test_linear_before_reset(after):
    compare("GRU", linear_before_reset=after)


@pytest.mark.parametrize("coupled", [0, 1])
@pytest.mark.parametrize("peepholes", [True, False])
def test_peepholes_and_coupled_gates(coupled, peepholes):
    compare("LSTM", peepholes=peepholes, input_forget=coupled)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f[0])
def test_activations(kind, function):
    name, alpha, beta = function
    count = {"LSTM": 3, "GRU": 2, "RNN": 1}[kind]
    parameters = {}
    if alpha is not None:
        parameters["activation_alpha"] = [alpha] * count
    if beta is not None:
        parameters["activation_beta"] = [beta] * count
    compare(kind, activations=[name] * count, **parameters)


def test_parameters_go_to_the_functions_that_take_them():
    mixed = ["HardSigmoid", "Tanh", "Elu"]
    compare("LSTM", activations=mixed, activation_alpha=[0.3, 0.8], activation_beta=[0.4])


@pytest.mark.parametrize("kind", GATES)
def test_layout_batch_first(kind):
    """ONNX Runtime has no batch-first layout: the same weights, transposed by hand."""
    written, feeds = model(kind, layout=1)
    got = _runtime.run(_runtime.session(_lowered_elsewhere(written, feeds)), None, feeds)
    plain, _ = model(kind, layout=0)
    moved = {n: np.swapaxes(v, 0, 1) for n, v in feeds.items()}
    y, *last = _runtime.run(_runtime.session(plain), None, moved)
    np.testing.assert_allclose(got[0], y.transpose(2, 0, 1, 3), atol=2e-6)
    for a, b in zip(got[1:], last, strict=True):
        np.testing.assert_allclose(a, np.swapaxes(b, 0, 1), atol=2e-6)


def _lowered_elsewhere(fused, feeds):
    """Lower with the reference evaluator, which knows the layout, finding the shapes."""
    import spec_cases

    return lower(fused, feeds, spec_cases.evaluate)


@pytest.mark.parametrize("kind", GATES)
def test_other_directions_are_refused(kind):
    fused, feeds = model(kind, direction="reverse")
    with pytest.raises(NoBlockRule, match="depends on later words"):
        lower(fused, feeds)


@pytest.mark.parametrize("op", ["LeakyRelu", "Elu", "HardSigmoid", "Softplus", "Softsign", "Selu"])
@pytest.mark.parametrize("opset", [18, 20])
def test_functions_run_in_double_with_default_attributes(op, opset):
    nodes = [
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("ConstantOfShape", ["n"], ["zero"]),
        helper.make_node("Add", ["x", "half"], ["a"]),
        helper.make_node("Add", ["a", "zero"], ["b"]),
        helper.make_node(op, ["b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(np.array([4]), "n")],
    )
    single = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    double = _passes.to_precision(single, np.float64)
    x = np.array([-2.0, -0.7, 0.3, 1.5])
    (wanted,) = _runtime.run(_runtime.session(single), None, {"x": x.astype(np.float32)})
    (got,) = _runtime.run(_runtime.session(double), None, {"x": x})
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_a_variant_that_runtimes_take_differently_is_refused():
    """Without activation_alpha, ONNX Runtime takes Affine's alpha as 0, others as 1."""
    fused, feeds = model("RNN", activations=["Affine"])
    with pytest.raises(NoBlockRule, match="RNN in a variant"):
        lower(fused, feeds)
