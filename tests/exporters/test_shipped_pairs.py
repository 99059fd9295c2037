"""Shipped models of one step: which input is read, which are states, and what a user can say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import shipped_forms as forms
from mnemoscope.analyzer import open_model
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.exporters import shipped
from mnemoscope.exporters._shipped_roles import RolesNeeded

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
H, V = forms.H, forms.V


def export(net, folder, **options):
    onnx.save(net.model(), folder / "s.onnx")
    return shipped.export(folder / "s.onnx", folder / "m.onnx", **options)


def template(folder):
    return json.loads((folder / "m.onnx.roles.json").read_text())


def run(path, feeds):
    session = ort.InferenceSession(path)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def pairs(report):
    return {s.input: s.output for s in report.states}


def recurrence(first, second, after, *, other=None):
    """after = tanh(first A + second U): which of the two is the state only the names can say."""
    n = forms.Net()
    for name in (first, second):
        n.input(name, ["N", H])
    total = n.op("Add", n.op("MatMul", first, n.weight("A", H, H)),
                 n.op("MatMul", second, n.weight("U", H, H)))  # fmt: skip
    n.op("Tanh", total, out=after)
    n.op("Identity", n.head(after, size=5), out="y")
    n.output("y", ["N", 5])
    n.output(after, ["N", H])
    if other:
        n.op("MatMul", after, n.weight("P", H, H), out=other)
        n.output(other, ["N", H])
    return n


@pytest.mark.parametrize(
    ("state", "read", "after"),
    [("mem", "obs", "mem_new"), ("memory", "frame", "out_memory"), ("h", "frame", "h_out")],
)
def test_the_state_listed_first_is_not_read_as_features(tmp_path, state, read, after):
    report = export(recurrence(state, read, after), tmp_path)
    assert report.tokens == f"{read} [N, E]"
    assert pairs(report) == {state: after}


def test_two_inputs_that_may_both_be_read_are_asked_for(tmp_path):
    net = recurrence("a", "b", "a_out", other="b_out")
    with pytest.raises(RolesNeeded, match="'a' and 'b' both serve as the input that is read"):
        export(net, tmp_path)
    (tmp_path / "m.onnx.roles.json").unlink()
    states = [{"input": "a", "output": "a_out"}]
    report = export(net, tmp_path, roles={"features": "b", "logits": "y", "states": states})
    assert pairs(report) == {"a": "a_out"}


def test_a_name_of_a_state_decides_between_two_inputs(tmp_path):
    report = export(recurrence("x", "h", "h_out", other="x_out"), tmp_path)
    assert (report.tokens, pairs(report)) == ("x [N, E]", {"h": "h_out"})


def attention():
    """A decoder's step that takes a context and gives a query of the same shape."""
    n = forms.Net()
    n.input("token", ["N"], forms.INT64)
    n.input("context", ["N", H])
    for name in ("h0", "c0"):
        n.input(name, [1, "N", H])
    both = n.op("Concat", n.embed("token"), "context", axis=1)
    n.recurrent("LSTM", n.unsqueeze(both, 0), 0, forms.E + H, ["h0", "c0"], ["hn", "cn"])
    h = n.squeeze("hn", 0)
    n.op("Identity", n.head(h), out="logits")
    n.op("MatMul", h, n.weight("Q", H, H), out="query")
    n.output("logits", ["N", V])
    n.output("query", ["N", H])
    for name in ("hn", "cn"):
        n.output(name, [1, "N", H])
    return n


def speaker():
    """A constant vector beside the features, and a projection of its shape."""
    n = forms.Net()
    for name, width in (("frame", 6), ("speaker", 6), ("state", H)):
        n.input(name, ["N", width])
    total = n.op("Add", n.op("MatMul", "frame", n.weight("F", 6, H)),
                 n.op("MatMul", "speaker", n.weight("S", 6, H)))  # fmt: skip
    total = n.op("Add", total, n.op("MatMul", "state", n.weight("A", H, H)))
    n.op("Tanh", total, out="new_state")
    n.op("Identity", n.head("new_state", size=5), out="y")
    n.op("MatMul", "new_state", n.weight("P", H, 6), out="proj")
    for name, width in (("y", 5), ("new_state", H), ("proj", 6)):
        n.output(name, ["N", width])
    return n


def kept_to_itself():
    """A state that is not given out, beside an attention of its shape."""
    n = forms.Net()
    n.input("tok", ["N"], forms.INT64)
    n.input("s", ["N", H])
    t = n.op("Tanh", n.op("Add", n.op("MatMul", n.embed("tok"), n.weight("U", forms.E, H)),
                          n.op("MatMul", "s", n.weight("A", H, H))))  # fmt: skip
    n.op("Softmax", t, out="att")
    n.op("Identity", n.head(t), out="logits")
    n.output("logits", ["N", V])
    n.output("att", ["N", H])
    return n


@pytest.mark.parametrize(
    ("net", "before", "after"),
    [(attention, "context", "query"), (speaker, "speaker", "proj"), (kept_to_itself, "s", "att")],
)
def test_shape_alone_does_not_make_a_pair_at_one_step(tmp_path, net, before, after):
    with pytest.raises(RolesNeeded, match=f"{before!r} may belong to {after!r}, the only output"):
        export(net(), tmp_path)
    assert not (tmp_path / "m.onnx").exists()
    entry = next(s for s in template(tmp_path)["states"] if s["input"] == before)
    assert entry["output"] is None
    assert entry["candidates"] == [after]


def free_time():
    """A sum over all steps so far, kept in p and given out as q: no node or loop to be followed."""
    n = forms.Net()
    n.input("tokens", ["N", "T"], forms.INT64)
    n.input("p", ["N", H])
    x = n.op("MatMul", n.embed("tokens"), n.weight("W", forms.E, H))
    sums = n.op("Add", n.op("CumSum", x, n.const(1)), n.unsqueeze("p", 1))
    n.op("Add", n.op("ReduceSum", x, n.const([1]), keepdims=0), "p", out="q")
    n.op("Identity", n.head(n.op("Tanh", sums)), out="logits")
    n.output("logits", ["N", "T", V])
    n.output("q", ["N", H])
    return n


def test_shape_and_a_run_of_several_steps_make_a_pair(tmp_path):
    assert pairs(export(free_time(), tmp_path)) == {"p": "q"}


@pytest.mark.parametrize("value", [0, 0.25, [0.1 * k for k in range(H)]])
def test_the_template_with_a_constant_instead_of_a_state(tmp_path, value):
    """The written model computes what the shipped one does with that context."""
    with pytest.raises(RolesNeeded):
        export(attention(), tmp_path)
    roles = {**template(tmp_path), "constants": {"context": value}}
    report = export(attention(), tmp_path, roles=roles)
    assert pairs(report) == {"h0": "hn", "c0": "cn"}
    assert report.logits == "logits"
    ids = np.array([3, 1, 4])
    zeros = {k: np.zeros((1, 3, H), np.float32) for k in ("h0", "c0")}
    context = np.broadcast_to(np.array(value, np.float32), (3, H))
    wanted = run(tmp_path / "s.onnx", {"token": ids, "context": context, **zeros})
    got = run(tmp_path / "m.onnx", {"tokens": ids[:, None], **zeros})
    np.testing.assert_allclose(got["logits"][:, 0], wanted["logits"], atol=1e-6)


@pytest.mark.parametrize("value", [[1.0, 2.0], [[1.0], [1.0, 2.0]], "a", [["a"]], {}])
def test_bad_constants(tmp_path, value):
    roles = {"constants": {"context": value}}
    with pytest.raises(ModelError, match=r"constant 'context' must be"):
        export(attention(), tmp_path, roles=roles)


def temperature():
    n = forms.Net()
    n.input("w", ["N"], forms.INT64)
    n.input("p", [1, "N", H])
    n.input("temp", [])
    y = n.recurrent("GRU", n.unsqueeze(n.embed("w"), 0), 0, forms.E, ["p"], ["q"])
    n.op("Div", n.head(n.squeeze(y, 0)), "temp", out="y")
    n.output("y", ["N", V])
    n.output("q", [1, "N", H])
    return n


def test_an_unknown_scalar_is_named_with_its_remedy(tmp_path):
    with pytest.raises(RolesNeeded, match=r'the input \'temp\'.*"constants": \{"temp": 1.0\}'):
        export(temperature(), tmp_path)
    data = template(tmp_path)
    assert data["constants"] == {"temp": None}
    data["constants"]["temp"] = 1.0
    assert pairs(export(temperature(), tmp_path, roles=data)) == {"p": "q"}


def test_what_else_is_open_beside_an_unknown_scalar_is_told_at_once(tmp_path):
    net = opaque()
    net.input("temp", [])
    net.nodes[-1] = onnx.helper.make_node("Div", [net.nodes[-1].input[0], "temp"], ["out_logits"])
    with pytest.raises(
        RolesNeeded, match=r"'temp'.* Then, with 'w' as N: the input 'p' may belong"
    ):
        export(net, tmp_path)
    data = template(tmp_path)
    assert data["constants"] == {"temp": None}
    assert [s["candidates"] for s in data["states"]] == [["r", "s"]] * 2


def opaque():
    """Two states of one shape; p → s and q → r are right."""
    n = forms.Net()
    n.input("w", ["N"], forms.INT64)
    x = n.op("MatMul", n.embed("w"), n.weight("W", forms.E, H))
    n.input("p", ["N", H])
    n.input("q", ["N", H])
    n.op("Tanh", n.op("Add", x, n.op("MatMul", "p", n.weight("U", H, H))), out="s")
    n.op("Tanh", n.op("Add", "s", n.op("MatMul", "q", n.weight("Z", H, H))), out="r")
    n.op("Identity", n.head("r"), out="out_logits")
    for name in ("r", "s"):
        n.output(name, ["N", H])
    n.output("out_logits", ["N", V])
    return n


def test_the_template_holds_what_was_found(tmp_path):
    with pytest.raises(RolesNeeded):
        export(opaque(), tmp_path)
    data = template(tmp_path)
    assert (data["tokens"], data["layout"], data["logits"]) == ("w", "N", "out_logits")
    assert [(s["input"], s["candidates"]) for s in data["states"]] == [
        ("p", ["r", "s"]), ("q", ["r", "s"])]  # fmt: skip
    for entry, output in zip(data["states"], "sr", strict=True):
        entry["output"] = output
    assert pairs(export(opaque(), tmp_path, roles=data)) == {"p": "s", "q": "r"}


def test_the_template_of_a_stacked_state_can_be_given_back(tmp_path):
    """What tracing found is listed too, and accepted again."""
    net = forms.classic()
    net.input("more", ["N", 3])
    net.op("ReduceMean", "more", out="gone", keepdims=1, axes=[1])
    net.opset = 17
    with pytest.raises(RolesNeeded, match="'more'"):
        export(net, tmp_path)
    data = template(tmp_path)
    assert [s.get("layer_index") for s in data["states"]] == [0, 0, 1, 1, None]
    data["constants"] = {"more": 0.5}
    report = export(net, tmp_path, roles=data)
    assert [s.kind for s in report.states] == ["hidden", "cell", "hidden", "cell"]


@pytest.mark.parametrize("kinds", [(None, None), ("cell", None)])
def test_partial_states(tmp_path, kinds):
    states = [{"name": "low", "input": "p", "output": "s"}, {"input": "q", "output": "r"}]
    for entry, kind in zip(states, kinds, strict=True):
        entry["kind"] = kind
    report = export(opaque(), tmp_path, roles={"version": 1, "states": states})
    assert pairs(report) == {"p": "s", "q": "r"}
    assert [s.name for s in report.states] == ["low", "q"]
    assert [s.kind for s in report.states] == [kinds[0] or "other", "other"]
    assert [s.batch_axis for s in report.states] == [0, 0]


def test_partial_states_of_recurrent_nodes(tmp_path):
    """Tracing fills in layers and kinds, and contradicts a wrong pair."""
    net = forms.classic()
    report = export(net, tmp_path, roles={"states": [{"input": "h0", "output": "next_h0"}]})
    assert [(s.name, s.kind, s.layer_index) for s in report.states] == [
        ("lstm0.h", "hidden", 0), ("lstm0.c", "cell", 0),
        ("lstm1.h", "hidden", 1), ("lstm1.c", "cell", 1)]  # fmt: skip
    with pytest.raises(ModelError, match=r"tracing shows that 'next_h0' holds the new state"):
        export(net, tmp_path, roles={"states": [{"input": "h0", "output": "next_c0"}]})


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"output": "r"}, r"states\[0\] lacks input"),
        ({"input": "p", "kind": "blue"}, r"states\[0\].kind must be"),
        ({"input": "p", "layer_axis": 0}, "both layer_axis and layer_index"),
        ({"input": "none", "output": "r"}, "'none' as input of a state"),
        ({"input": "p", "output": "none"}, "'none' as output of the state 'p'"),
        ({"input": "p", "output": "out_logits"}, "must keep its shape"),
        ({"input": "p", "output": "r", "batch_axis": 1}, "streams on axis 1 of 'p'"),
        ({"input": "p", "output": "r", "layer_axis": 1, "layer_index": 99}, "at place 99"),
        ("p", r"states\[0\] must be"),
    ],
)
def test_bad_partial_states(tmp_path, entry, said):
    with pytest.raises(ModelError, match=said):
        export(opaque(), tmp_path, roles={"tokens": "w", "states": [entry]})


def test_a_pair_that_nothing_can_check_says_so(tmp_path):
    """At one step a wrong pair is only what the roles say: the evidence tells."""
    states = [{"input": "p", "output": "r"}, {"input": "q", "output": "s"}]
    report = export(opaque(), tmp_path, roles={"states": states})
    assert "no run of several can show whether the pair is right" in dict(report.evidence)["p"]
    report = export(free_time(), tmp_path, roles={"states": [{"input": "p", "output": "q"}]})
    assert "no run of several" not in str(report.evidence)


def test_a_template_that_a_user_has_completed_is_kept(tmp_path):
    with pytest.raises(RolesNeeded, match="A template was written"):
        export(opaque(), tmp_path)
    file = tmp_path / "m.onnx.roles.json"
    mine = json.dumps({**template(tmp_path), "logits": "out_logits"})
    file.write_text(mine)
    for roles in (None, file):
        with pytest.raises(RolesNeeded, match="exists and was left as it is"):
            export(opaque(), tmp_path, roles=roles)
        assert file.read_text() == mine


def test_written_models_open(tmp_path):
    export(recurrence("mem", "obs", "mem_new"), tmp_path)
    assert [s.input for s in open_model(tmp_path / "m.onnx").roles.states] == ["mem"]
