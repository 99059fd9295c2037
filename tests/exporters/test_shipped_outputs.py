"""Shipped models: probabilities, long memory, fixed numbers of steps, dynamic quantisation."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import shipped_forms as forms
from click.testing import CliRunner
from mnemoscope.analyzer import open_model
from mnemoscope.cli.main import main
from mnemoscope.exporters import _shipped_plan, shipped
from mnemoscope.exporters._shipped_output import are_probabilities, logarithm
from mnemoscope.exporters._shipped_roles import RolesNeeded
from mnemoscope.exporters._shipped_rounding import unrounded
from mnemoscope.exporters.testing import ParityError
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
E, H, V = forms.E, forms.H, forms.V


def export(net, folder, **options):
    onnx.save(net.model() if isinstance(net, forms.Net) else net, folder / "s.onnx")
    return shipped.export(folder / "s.onnx", folder / "m.onnx", **options)


def stepped(path, ids):
    """Logits ``[N, T, V]`` of the written model, its states fed back by ONNX Runtime alone."""
    model, session = open_model(path), ort.InferenceSession(path)
    names = [o.name for o in session.get_outputs()]
    feeds = {i.name: np.zeros([d if isinstance(d, int) else len(ids) for d in i.shape], np.float32)
             for i in session.get_inputs() if i.name != "tokens"}  # fmt: skip
    found = []
    for t in range(ids.shape[1]):
        given = {"tokens": ids[:, t : t + 1], **feeds}
        values = dict(zip(names, session.run(None, given), strict=True))
        found.append(values["logits"])
        feeds = {s.input: values[s.output] for s in model.roles.states}
    return np.concatenate(found, 1)


def softmax(make, *, steps=False, **options):
    """A model that ends in probabilities, by a Softmax or by its formula."""

    def end(n, logits):
        if make == "softmax":
            return n.op("Softmax", logits, axis=-1)
        if make == "softmax, moved":
            raised = n.op("Unsqueeze", logits, n.const([0]))
            return n.op("Squeeze", n.op("Softmax", raised, axis=3), n.const([0]))
        e = n.op("Exp", logits)
        return n.op("Div", e, n.op("ReduceSum", e, n.const([-1])))

    n = forms.Net(**options)
    n.input("tokens", ["T", "N"], forms.INT64)
    starts = [n.input(f"{a}0", [1, "N", H]) for a in "hc"]
    y = n.recurrent("LSTM", n.embed("tokens"), 0, E, starts, ["hn", "cn"])
    # Wide logits, so that a float32 softmax rounds some to nothing.
    logits = n.op("Mul", n.head(y), n.const(120 if make != "formula" else 5, "float32"))
    n.op("Identity", end(n, logits), out="p")
    n.output("p", ["T", "N", V])
    for name in ("hn", "cn"):
        n.output(name, [1, "N", H])
    return n


@pytest.mark.parametrize("make", ["softmax", "softmax, moved", "formula"])
def test_probabilities_are_written_as_log_probabilities(tmp_path, make):
    report = export(softmax(make), tmp_path)
    assert report.normalized
    assert "gives probabilities" in dict(report.evidence)["p"]
    assert open_model(tmp_path / "m.onnx").roles.normalized
    ids = np.random.default_rng(0).integers(0, V, (2, 20))
    zeros = {k: np.zeros((1, 2, H), np.float32) for k in ("h0", "c0")}
    wanted = ort.InferenceSession(tmp_path / "s.onnx").run(["p"], {"tokens": ids.T, **zeros})[0]
    got = stepped(tmp_path / "m.onnx", ids)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(np.exp(got), wanted.swapaxes(0, 1), atol=1e-6)
    if make != "formula":
        # The digits that a softmax in float32 rounds away: those of the logits themselves.
        assert got.min() < -110


def test_a_softmax_of_an_old_operator_set(tmp_path):
    assert export(softmax("softmax", opset=13), tmp_path).normalized
    net = forms.classic(log=False, opset=11)
    last = net.nodes[-1]
    last.input[0] = net.op("Softmax", last.input[0], axis=2)
    net.nodes[-2], net.nodes[-1] = net.nodes[-1], net.nodes[-2]
    assert export(net, tmp_path).normalized


def test_other_outputs_are_left_as_they_are(tmp_path):
    assert export(forms.classic(layers=1), tmp_path).normalized  # log-probabilities
    report = export(forms.classic(layers=1, log=False), tmp_path)
    assert not report.normalized
    assert "gives probabilities" not in str(report.evidence)


def test_probabilities_written_as_they_are_would_be_caught(tmp_path, monkeypatch):
    """A planted fault: no logarithm is appended."""
    monkeypatch.setattr(shipped, "append_logarithm", lambda graph, name: name)
    with pytest.raises(ParityError, match="differs from its source in 'logits'"):
        export(softmax("softmax"), tmp_path)


def test_what_probabilities_are():
    rows = np.array([[0.25, 0.75], [0.0, 1.0]], np.float32)
    assert are_probabilities(rows)
    for bad in (rows - 0.1, rows * 1.1, rows[:, :1], np.array([[2, -1.0]]), rows > 0.1):
        assert not are_probabilities(bad)
    np.testing.assert_allclose(logarithm(rows)[0], np.log([0.25, 0.75]), rtol=1e-6)
    assert np.isfinite(logarithm(rows)).all()


def dilated(*, states, reach=8):
    """A causal convolution with a gap before the LSTM: `reach` steps back, beside the state."""
    n = forms.Net()
    n.input("tokens", ["N", "T"], forms.INT64)
    x = n.op("Transpose", n.embed("tokens"), perm=[0, 2, 1])
    x = n.op("Conv", x, n.weight("k", E, E, 2), dilations=[reach], pads=[reach, 0],
             kernel_shape=[2])  # fmt: skip
    starts = [n.input(f"{a}0", [1, "N", H]) for a in "hc"] if states else []
    y = n.recurrent("LSTM", n.op("Transpose", x, perm=[2, 0, 1]), 0, E, starts, ["hn", "cn"])
    n.op("Transpose", n.head(y), out="logits", perm=[1, 0, 2])
    n.output("logits", ["N", "T", V])
    for name in ("hn", "cn") if states else ():
        n.output(name, [1, "N", H])
    return n


@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("reach", [8, 60])
def test_memory_beside_the_states_is_refused(tmp_path, states, reach):
    with pytest.raises(ParityError, match=r"over 96 steps.*mixes time steps outside its rec"):
        export(dilated(states=states, reach=reach), tmp_path)
    assert not (tmp_path / "m.onnx").exists()


def test_the_long_run_is_told(tmp_path):
    report = export(forms.classic(layers=1), tmp_path)
    assert "one run of 96 steps gives the logits of as many single steps" in dict(report.evidence)[
        "log_softmax"]  # fmt: skip


@pytest.mark.parametrize("last", [True, False])
def test_many_fixed_steps(tmp_path, last):
    n = forms.Net()
    n.input("tokens", ["N", 70], forms.INT64)
    x = n.op("Transpose", n.embed("tokens"), perm=[1, 0, 2])
    y = n.recurrent("LSTM", x, 0, E, [], ["hn"])
    if last:
        n.op("Identity", n.head(n.squeeze("hn", 0)), out="logits")
        n.output("logits", ["N", V])
    else:
        n.op("Transpose", n.head(y), out="logits", perm=[1, 0, 2])
        n.output("logits", ["N", 70, V])
    assert export(n, tmp_path).parity.steps == 70


def quantized(net, folder):
    """An 8-bit copy of `net`, its activations' scales taken from each run."""
    onnx.save(net.model(), folder / "float.onnx")
    quantize_dynamic(folder / "float.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8)
    return onnx.load(folder / "int8.onnx")


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("states", [True, False])
def test_quantised_models_need_no_tolerance(tmp_path, layers, states):
    """Two layers differ from three runs of one step by more than 0.1, by the rounding alone."""
    net = forms.classic(layers=layers, starts=states, outputs=states)
    report = export(quantized(net, tmp_path), tmp_path)
    assert report.parity.tolerance == 0.01
    assert report.parity.worst < 1e-5
    assert any(
        "Single steps were compared with the rounding (0.01 allowed" in n for n in report.notes
    )
    if states:
        said = "one run of 3 steps equals 3 runs of one step (when its rounding is left out)"
        assert said in dict(report.evidence)["lstm0.h"]


def test_wrong_pairs_of_a_quantised_model(tmp_path):
    model = quantized(forms.classic(layers=1), tmp_path)
    states = [{"name": n, "input": i, "output": o, "kind": "other", "layer": 0, "batch_axis": 1}
              for n, i, o in (("a", "h0", "next_c0"), ("b", "c0", "next_h0"))]  # fmt: skip
    with pytest.raises(RolesNeeded, match="contradicts the model's behaviour"):
        export(model, tmp_path, roles={"states": states})


def test_long_memory_of_a_quantised_model(tmp_path):
    model = quantized(dilated(states=True), tmp_path)
    with pytest.raises(ParityError, match=r"over 96 steps.*mixes time steps"):
        export(model, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        for module in (shipped, _shipped_plan):
            patch.setattr(module, "unrounded", lambda model: None)
        with pytest.raises(ParityError, match=r"over 96 steps.*mixes time steps"):
            export(model, tmp_path)


def test_without_its_rounding_a_model_is_near_the_float_one(tmp_path):
    """The twin's weights are the rounded ones: 1/255 of the range, over few products."""
    net = forms.classic(layers=2)
    model = quantized(net, tmp_path)
    twin = unrounded(model)
    assert not {n.op_type for n in twin.graph.node} & {
        "DynamicQuantizeLSTM", "DynamicQuantizeLinear", "MatMulInteger"}  # fmt: skip
    feeds = {"x": np.random.default_rng(0).integers(0, V, (2, 7)),
             **{k: np.zeros((2, 2, H), np.float32) for k in ("h0", "c0")}}  # fmt: skip
    run = lambda m: ort.InferenceSession(m.SerializeToString()).run(None, feeds)  # noqa: E731
    for got, wanted in zip(run(twin), run(net.model()), strict=True):
        assert np.abs(got - wanted).max() < 0.03 * np.abs(wanted).max()
    rows = run(model)[0]
    assert np.abs(rows - run(twin)[0]).max() < 0.05 * np.abs(rows).max()


def test_a_quantised_model_whose_twin_is_not_known(tmp_path, monkeypatch):
    """Then the bounds are wide, and the evidence says so."""
    for module in (shipped, _shipped_plan):
        monkeypatch.setattr(module, "unrounded", lambda model: None)
    report = export(quantized(forms.classic(layers=2), tmp_path), tmp_path)
    assert "(to its rounding)" in dict(report.evidence)["lstm0.h"]
    assert any("--tolerance says otherwise)." in n for n in report.notes)


def test_changed_weights_of_a_quantised_model_are_caught(tmp_path, monkeypatch):
    build = shipped.build_memory_model

    def spoiled(step, *args, **options):
        tensor = next(t for t in step.graph.initializer if len(t.dims) == 3)
        value = numpy_helper.to_array(tensor).copy()
        value[..., 0] = 0
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        return build(step, *args, **options)

    monkeypatch.setattr(shipped, "build_memory_model", spoiled)
    with pytest.raises(ParityError, match="differs from its source"):
        export(quantized(forms.classic(), tmp_path), tmp_path)


def test_a_missing_vocabulary_is_mentioned(tmp_path):
    net = forms.classic(layers=1)
    report = export(net, tmp_path)
    assert "No --vocabulary: a corpus for this model must hold token ids, not words." in (
        report.notes)  # fmt: skip
    report = export(net, tmp_path, vocabulary=[f"w{k}" for k in range(V)])
    assert not any("vocabulary" in note for note in report.notes)


def test_commands_say_log_probabilities(tmp_path):
    onnx.save(softmax("softmax").model(), tmp_path / "s.onnx")
    run = lambda *a: CliRunner().invoke(main, [*map(str, a)]).output  # noqa: E731
    said = run("export", "onnx", tmp_path / "s.onnx", "-o", tmp_path / "m.onnx")
    assert "their logarithm is written as logits" in said
    assert "log-probabilities" in run("inspect", tmp_path / "m.onnx")


def test_two_classes_of_a_detector_are_no_tokens(tmp_path):
    """Probabilities over something else than the tokens stay as they are."""
    net = forms.floating(width=9, size=2, rank=2)
    last = next(n for n in net.nodes if n.output[0] == "y")
    last.op_type = "Softmax"
    report = export(net, tmp_path)
    assert not report.normalized
    assert "their logarithm" not in str(report.evidence)
    assert any("no distribution over them" in note for note in report.notes)
