"""Shipped models: every form against its oracle; wrong pairs, bad roles, templates, messages."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="the oracle is torch.func")

sys.path.insert(0, str(Path(__file__).parent))

import shipped_forms as forms
from click.testing import CliRunner
from mnemoscope.analyzer import Corpus, analyze, open_model
from mnemoscope.analyzer.errors import ModelError, NoDerivative
from mnemoscope.cli.main import main
from mnemoscope.exporters import _shipped_plan, shipped
from mnemoscope.exporters._shipped_roles import RolesNeeded, kind_of, name_pairs
from mnemoscope.exporters._vocabulary import VocabularyOptions, read_tokens
from mnemoscope.exporters.testing import ParityError
from onnx import helper, numpy_helper

DELAYS, LENGTH = 50, 120
BARS = {"jvp": 1e-5, "fd": 5e-3}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def gradients(model, ids, method, delays=DELAYS, **options):
    tree = analyze(model, Corpus(ids, "random", "", 1, 0), delays=delays, method=method, **options)
    return {n: np.asarray(tree[n]["gradient"][0], np.float64) for n in tree.children}


@pytest.mark.parametrize("form", forms.FORMS, ids=lambda f: f.name)
def test_form(form, tmp_path):
    if form.refused:
        with pytest.raises(ModelError, match=form.refused):
            form.export(tmp_path)
        assert not (tmp_path / "m.onnx").exists()
        return
    model = open_model(form.export(tmp_path))
    assert not list(tmp_path.glob("*.roles.json"))
    ids = np.random.default_rng(1).integers(0, model.vocabulary_size, LENGTH)
    if not form.jvp:
        with pytest.raises(NoDerivative, match="rounds"):
            gradients(model, ids, "jvp")
        return
    wanted = form.oracle(ids, DELAYS)
    for method, bar in BARS.items():
        got = gradients(model, ids, method)
        assert got.keys() == wanted.keys()
        for name, truth in wanted.items():
            error = np.linalg.norm(got[name] - truth, axis=(1, 2))
            assert (error / np.linalg.norm(truth, axis=(1, 2))).max() <= bar, (name, method)


def test_quantised_memory_is_near_that_of_its_float_model(tmp_path):
    path = forms.quantized(tmp_path)
    shipped.export(path, tmp_path / "m.onnx")
    ids = np.random.default_rng(1).integers(0, forms.V, LENGTH)
    got = gradients(open_model(tmp_path / "m.onnx"), ids, "fd", 3, step=0.25)
    wanted = forms.nodes_oracle(forms.classic(layers=1))(ids, 3)
    for name, truth in wanted.items():
        assert np.linalg.norm(got[name] - truth) < 0.2 * np.linalg.norm(truth), name


def write(net, folder, name="s.onnx"):
    onnx.save(net.model(), folder / name)
    return folder / name


def states_of(report):
    return {s.name: (s.input, s.output, s.kind, s.layer, s.batch_axis, s.layer_axis, s.layer_index)
            for s in report.states}  # fmt: skip


def test_roles_of_the_public_contracts(tmp_path):
    export = lambda net: states_of(shipped.export(write(net, tmp_path), tmp_path / "m.onnx"))  # noqa: E731
    assert export(forms.classic()) == {
        "lstm0.h": ("h0", "next_h0", "hidden", 0, 1, 0, 0),
        "lstm0.c": ("c0", "next_c0", "cell", 0, 1, 0, 0),
        "lstm1.h": ("h0", "next_h0", "hidden", 1, 1, 0, 1),
        "lstm1.c": ("c0", "next_c0", "cell", 1, 1, 0, 1),
    }
    assert export(forms.vad()) == {
        "lstm0.h": ("state", "stateN", "hidden", 0, 1, 0, 0),
        "lstm0.c": ("state", "stateN", "cell", 0, 1, 0, 1),
    }
    found = export(forms.transducer())
    assert found["lstm1.h"] == ("states.1", "states", "hidden", 1, 1, 0, 1)
    assert found["lstm0.c"] == ("onnx::LSTM_3", "74", "cell", 0, 1, 0, 0)
    assert export(forms.floating()) == {
        "lstm0.h": ("h", "hn", "hidden", 0, 1, None, None),
        "lstm0.c": ("c", "cn", "cell", 0, 1, None, None),
    }


def test_tracing_wins_over_misleading_names_and_says_so(tmp_path):
    report = shipped.export(write(forms.classic(swap=True), tmp_path), tmp_path / "m.onnx")
    found = states_of(report)
    assert found["lstm0.h"][:2] == ("h0", "next_c0")
    assert found["lstm0.c"][:2] == ("c0", "next_h0")
    evidence = dict(report.evidence)
    assert "'next_c0' sounds like a cell state, but tracing shows the hidden" in evidence["lstm0.h"]
    assert "one run of 3 steps equals 3 runs of one step" in evidence["lstm0.h"]


def pair(swap=False):
    """A step of a custom cell with two states of one shape, whose names say nothing."""
    n = forms.Net()
    n.input("w", ["N"], forms.INT64)
    x = n.op("MatMul", n.embed("w"), n.weight("W", forms.E, forms.H))
    n.input("p", ["N", forms.H])
    n.input("q", ["N", forms.H])
    n.op("Tanh", n.op("Add", x, n.op("MatMul", "p", n.weight("U", forms.H, forms.H))), out="r")
    n.op("Tanh", n.op("Add", "r", n.op("MatMul", "q", n.weight("Z", forms.H, forms.H))), out="s")
    n.op("Identity", n.head("s"), out="out_logits")
    for name in ("r", "s"):
        n.output(name, ["N", forms.H])
    n.output("out_logits", ["N", forms.V])
    return n


def test_template_completed_by_hand_works(tmp_path):
    source, target = write(pair(), tmp_path), tmp_path / "m.onnx"
    with pytest.raises(RolesNeeded, match=r"may belong to 'r' or 's'.*m.onnx.roles.json"):
        shipped.export(source, target)
    template = tmp_path / "m.onnx.roles.json"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx.roles.json", "s.onnx"]
    data = json.loads(template.read_text())
    assert any("Graph outputs: r, s, out_logits" in line for line in data["help"])
    data["states"] = [
        {"name": "low", "input": "p", "output": "r", "kind": "hidden", "layer": 0, "batch_axis": 0},
        {
            "name": "high",
            "input": "q",
            "output": "s",
            "kind": "hidden",
            "layer": 1,
            "batch_axis": 0,
        },
    ]
    template.write_text(json.dumps(data))
    report = shipped.export(source, target, roles=template)
    assert [s.name for s in report.states] == ["low", "high"]
    assert report.logits == "out_logits"
    ids = np.random.default_rng(0).integers(0, forms.V, 40)
    got = gradients(open_model(target), ids, "jvp", 5)
    assert np.linalg.norm(got["low"][5]) > 0


def last_step_only(steps):
    """A file that insists on its number of steps, and gives the logits of the last alone."""
    n = forms.Net()
    n.input("tokens", ["N", steps], forms.INT64)
    x = n.op("Transpose", n.embed("tokens"), perm=[1, 0, 2])
    n.recurrent("GRU", x, 0, forms.E, [], ["last"])
    n.op("Squeeze", n.head("last"), n.const([0]), out="logits")
    n.output("logits", ["N", forms.V])
    return n


@pytest.mark.parametrize("steps", [6, 70])
def test_a_fixed_number_of_steps_is_compared_whole(tmp_path, steps):
    report = shipped.export(write(last_step_only(steps), tmp_path), tmp_path / "m.onnx")
    assert report.parity.steps == steps
    assert [s.name for s in report.states] == ["gru0.h"]


def test_too_many_fixed_steps_are_refused_before_the_work(tmp_path):
    with pytest.raises(ModelError, match=r"insists on 32,768 steps .* at most 16,384"):
        shipped.export(write(last_step_only(2**15), tmp_path), tmp_path / "m.onnx")


def test_a_list_of_tokens_that_is_too_short_is_refused(tmp_path):
    """No two tokens are put before it: that would shift every id."""
    tokens = ["<unk>", "<eos>", *(f"w{k}" for k in range(forms.V - 4))]
    (tmp_path / "v.json").write_text(json.dumps(tokens))
    source = write(forms.classic(layers=1), tmp_path)
    with pytest.raises(ModelError, match=f"has {forms.V - 2} tokens, .* have {forms.V}"):
        shipped.export(source, tmp_path / "m.onnx", vocabulary=tmp_path / "v.json")


@pytest.mark.parametrize("initial", [[], [0.5], [0.5] * 99])
def test_an_initial_value_of_another_size(tmp_path, initial):
    given = roles(("h0", "next_h0"), ("c0", "next_c0"))
    given["states"][0]["initial"] = initial
    traced = {"states": [{"input": "h0", "name": "s0", "initial": initial}]}
    source = write(forms.classic(layers=1), tmp_path)
    for said in (given, traced):
        with pytest.raises(ModelError, match=f"'s0' has {len(initial)} elements; its tensor has"):
            shipped.export(source, tmp_path / "m.onnx", roles=said)


def test_an_initial_value_of_a_traced_state(tmp_path):
    initial = np.linspace(-1, 1, forms.H).astype(float).tolist()
    report = shipped.export(
        write(forms.classic(layers=1), tmp_path),
        tmp_path / "m.onnx",
        roles={"states": [{"input": "h0", "initial": initial}]},
    )
    assert report.states[0].initial == tuple(initial)
    assert report.states[1].initial is None
    assert report.initial == "as the file starts"


def test_the_shape_of_the_logits_is_found_once(tmp_path, monkeypatch):
    asked = []
    own = _shipped_plan.measure
    monkeypatch.setattr(_shipped_plan, "measure", lambda *a: asked.append(a[1]) or own(*a))
    shipped.export(write(forms.classic(layers=1), tmp_path), tmp_path / "m.onnx")
    assert len(asked) == 1


def roles(*pairs, **more):
    states = [
        {"name": f"s{k}", "input": i, "output": o, "kind": "other", "layer": 0, "batch_axis": 1}
        for k, (i, o) in enumerate(pairs)
    ]
    return {"version": 1, "states": states, **more}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (roles(("h0", "next_c0"), ("c0", "next_h0")), "contradicts the model's behaviour"),
        (roles(("h0", "next_h0")), "leave 'c0' without a part"),
        (roles(("h9", "next_h0")), "'h9' as input of the state 's0'"),
        (roles(("h0", "none"), ("c0", "next_c0")), "'none' as output of the state 's0'"),
        (roles(("h0", "log_softmax"), ("c0", "next_c0")), "must keep its shape"),
        (roles(tokens="nothing"), "name 'nothing' as an input"),
        (roles(layout="NTE"), "layout 'NTE' does not fit"),
        (roles(logits="nothing"), "name 'nothing' as logits"),
        (roles(tokens="x", features="x"), "both tokens and features"),
        (roles(constants={"x": "1"}), "must be a number"),
        (roles(version=2), "version 2"),
        (roles(tokens=3), "tokens must be text"),
        (roles(states=[{"name": "a"}]), r"states\[0\] lacks input"),
        (roles(colour="red"), "unknown entry 'colour'"),
        ([1], "must be a JSON object"),
    ],
)
def test_bad_roles_are_refused(tmp_path, given, said):
    source = write(forms.classic(layers=1), tmp_path)
    (tmp_path / "r.json").write_text(json.dumps(given))
    with pytest.raises(ModelError, match=said):
        shipped.export(source, tmp_path / "m.onnx", roles=tmp_path / "r.json")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_roles_that_are_no_json(tmp_path, content):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(ModelError, match="not JSON"):
        shipped.export(write(forms.classic(), tmp_path), tmp_path / "m.onnx",
                       roles=tmp_path / "r.json")  # fmt: skip


def test_wrong_pairs_are_accepted_only_where_behaviour_cannot_tell(tmp_path):
    """The planted fault of the proof: with it switched off the wrong roles pass to the parity."""
    from mnemoscope.exporters import _shipped_plan

    source = write(forms.classic(layers=1), tmp_path)
    wrong = roles(("h0", "next_c0"), ("c0", "next_h0"))
    proof = _shipped_plan.prove
    try:
        _shipped_plan.prove = lambda plan, **_: None
        with pytest.raises(ParityError, match="differs from its source in 'logits'"):
            shipped.export(source, tmp_path / "m.onnx", roles=wrong)
    finally:
        _shipped_plan.prove = proof
    assert not (tmp_path / "m.onnx").exists()


def test_parity_refuses_a_changed_weight(tmp_path, monkeypatch):
    """A written graph that differs from the shipped one is caught, and not written."""
    build = shipped.build_memory_model

    def spoiled(step, *args, **options):
        tensor = next(t for t in step.graph.initializer if len(t.dims) == 3)
        value = numpy_helper.to_array(tensor) * 1.01
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
        return build(step, *args, **options)

    monkeypatch.setattr(shipped, "build_memory_model", spoiled)
    for k, net in enumerate((forms.classic(), forms.classic(starts=False, outputs=False))):
        with pytest.raises(ParityError, match="differs from its source"):
            shipped.export(write(net, tmp_path), tmp_path / f"{k}.onnx")
        assert not (tmp_path / f"{k}.onnx").exists()


def test_roles_in_the_metadata_come_first(tmp_path):
    shipped.export(write(forms.classic(), tmp_path), tmp_path / "m.onnx",
                   vocabulary=[f"w{k}" for k in range(forms.V)])  # fmt: skip
    report = shipped.export(tmp_path / "m.onnx", tmp_path / "again.onnx")
    assert "metadata" in dict(report.evidence)["lstm0.h"]
    a, b = (open_model(tmp_path / n) for n in ("m.onnx", "again.onnx"))
    assert a.vocabulary == b.vocabulary
    assert [s.name for s in a.roles.states] == [s.name for s in b.roles.states]
    ids = np.random.default_rng(0).integers(0, forms.V, 30)
    for name, value in gradients(a, ids, "jvp", 5).items():
        np.testing.assert_allclose(gradients(b, ids, "jvp", 5)[name], value, atol=1e-6)


def test_initial_state_that_is_not_zero_is_stored(tmp_path):
    n = forms.Net()
    n.input("tokens", ["N", "T"], forms.INT64)
    x = n.op("Transpose", n.embed("tokens"), perm=[1, 0, 2])
    start = n.weight("start", 1, 1, forms.H)
    count = n.op("Shape", "tokens", start=0, end=1)
    one = n.const([1])
    h = n.op("Expand", start, n.op("Concat", one, count, n.const([forms.H]), axis=0))
    y = n.recurrent("GRU", x, 0, forms.E, [h], [])
    n.op("Transpose", n.head(y), out="logits", perm=[1, 0, 2])
    n.output("logits", ["N", "T", forms.V])
    report = shipped.export(write(n, tmp_path), tmp_path / "m.onnx")
    np.testing.assert_allclose(report.states[0].initial, n.weights["start"].ravel())
    assert "from a stored value" in dict(report.evidence)["gru0.h"]


def test_feature_table(tmp_path):
    source = write(forms.floating(width=9, size=5, rank=2), tmp_path)
    rows = np.random.default_rng(0).standard_normal((4, 9)).astype(np.float32)
    np.save(tmp_path / "f.npy", rows)
    report = shipped.export(source, tmp_path / "m.onnx", features=tmp_path / "f.npy")
    np.testing.assert_array_equal(open_model(tmp_path / "m.onnx").embeddings, rows)
    assert any("row k of the given table of 4" in note for note in report.notes)
    for bad in (rows[:, :3], rows[0], rows * np.nan):
        with pytest.raises(ModelError, match="features"):
            shipped.export(source, tmp_path / "n.onnx", features=bad)
    (tmp_path / "g.npy").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"Cannot read the features.*\.npy"):
        shipped.export(source, tmp_path / "n.onnx", features=tmp_path / "g.npy")


def test_no_recurrence(tmp_path):
    n = forms.Net()
    n.input("tokens", ["N", "T"], forms.INT64)
    n.op("Identity", n.head(n.embed("tokens"), forms.E), out="logits")
    n.output("logits", ["N", "T", forms.V])
    with pytest.raises(RolesNeeded, match="no recurrent state was found"):
        shipped.export(write(n, tmp_path), tmp_path / "m.onnx")


def test_external_data_beside_the_model_alone(tmp_path):
    model = forms.classic().model()
    onnx.save(model, tmp_path / "s.onnx", save_as_external_data=True, location="w.bin",
              size_threshold=0)  # fmt: skip
    shipped.export(tmp_path / "s.onnx", tmp_path / "m.onnx")
    (tmp_path / "inner").mkdir()
    stored = onnx.load(tmp_path / "s.onnx", load_external_data=False)
    for tensor in stored.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../w.bin"
    (tmp_path / "inner" / "s.onnx").write_bytes(stored.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        shipped.export(tmp_path / "inner" / "s.onnx", tmp_path / "inner" / "m.onnx")


@pytest.mark.parametrize(
    ("inputs", "outputs", "wanted"),
    [
        (["h0", "c0"], ["hn", "cn"], {"h0": "hn", "c0": "cn"}),
        (["h0", "c0"], ["next_c0", "next_h0"], {"h0": "next_h0", "c0": "next_c0"}),
        (["past_a", "past_b"], ["present_b", "present_a"],
         {"past_a": "present_a", "past_b": "present_b"}),
        (["state"], ["stateN"], {"state": "stateN"}),
        (["x", "m"], ["x_out", "new_m"], {"x": "x_out", "m": "new_m"}),
        (["h_in", "c_in"], ["h_out", "c_out"], {"h_in": "h_out", "c_in": "c_out"}),
        (["h_0", "c_0"], ["h_n", "c_n"], {"h_0": "h_n", "c_0": "c_n"}),
        (["a"], ["b", "c"], {}),
    ],
)  # fmt: skip
def test_names_that_belong_together(inputs, outputs, wanted):
    assert name_pairs(inputs, outputs) == wanted


def test_kinds_that_names_say():
    assert [kind_of(n) for n in ("h0", "c0", "hidden_in", "cell", "state")] == [
        "hidden", "cell", "hidden", "cell", "other"]  # fmt: skip


WORDS = ["<pad>", "<unk>", "the", "cat"]


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("v.txt", "<pad>\n<unk>\nthe\ncat\n", WORDS),
        ("v.json", json.dumps(WORDS), WORDS),
        ("v.json", json.dumps({t: k for k, t in enumerate(WORDS)}), WORDS),
        ("v.json", json.dumps({k: t for k, t in enumerate(WORDS)}), WORDS),
        ("v.json", json.dumps({"model": {"vocab": {t: k for k, t in enumerate(WORDS)}}}), WORDS),
        ("v.json", json.dumps(["", "[UNK]", "the", "cat"]), ["<pad>", "[UNK]", "the", "cat"]),
        ("v.json", json.dumps({"config": {"vocabulary": ["", "[UNK]", "the", "cat"]}}),
         ["<pad>", "[UNK]", "the", "cat"]),
        ("v.txt", "\n[UNK]\nthe\ncat\n", ["<pad>", "[UNK]", "the", "cat"]),
        ("words.txt", "the 2\ncat 3\n<pad> 0\n<unk> 1\n", WORDS),
        ("m.vocab", "<pad>\t0\n<unk>\t0\nthe\t-1.25\ncat\t-2e-3\n", WORDS),
        ("v.txt", "[\n{\nthe\n", ["[", "{", "the"]),
        ("v.txt", "in 1990\nfor 2\n", ["in 1990", "for 2"]),
    ],
)  # fmt: skip
def test_vocabulary_forms(tmp_path, name, text, wanted):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_tokens(tmp_path / name) == wanted
    assert VocabularyOptions(tmp_path / name).make(len(wanted)).tokens == tuple(wanted)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ('{"a": 0, "b": 2}', "without gaps"),
        ('{"a": 0, "b": 0}', "without gaps"),
        ('{"a": [0]}', "neither a list of tokens"),
        ("[1, 2]", "must be a list of strings"),
        ("3", "neither a list"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_bad_vocabularies(tmp_path, text, said):
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(ModelError, match=said):
        read_tokens(tmp_path / "v.json")


def call(*arguments):
    done = CliRunner().invoke(main, ["export", "onnx", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_command(tmp_path):
    source = write(forms.vad(), tmp_path)
    done = call(source, "-o", tmp_path / "m.onnx")
    assert done.exit_code == 0
    for line in (
        "sr: by its name a sampling rate: the first usual one with which it runs; stored as 16000.",
        "graph: If ",
        "input 'state'[1] reaches initial_c of LSTM",
        "Note: The input 'input' is floating point, so it is itself the embedding",
        "Note: The output 'output' has 1 numbers for 16 tokens",
        "Step from the shipped graph; differs from the original by ",
        "next: mnemoscope inspect",
    ):
        assert line in done.stdout, line
    assert CliRunner().invoke(main, ["inspect", str(tmp_path / "m.onnx")]).exit_code == 0


def test_command_asks_for_roles(tmp_path):
    done = call(write(pair(), tmp_path), "-o", tmp_path / "m.onnx")
    assert done.exit_code == 2
    assert re.search(r"Error: The roles of this model cannot be decided: .*--roles", done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"s.onnx", "m.onnx.roles.json"}


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_command_refuses_what_is_no_model(tmp_path, content):
    if content is not None:
        (tmp_path / "s.onnx").write_bytes(content)
    done = call(tmp_path / "s.onnx", "-o", tmp_path / "m.onnx")
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: ")
    assert not (tmp_path / "m.onnx").exists()


def test_unknown_domain(tmp_path):
    model = forms.classic(layers=1).model()
    model.opset_import.append(helper.make_opsetid("somewhere", 1))
    node = next(n for n in model.graph.node if n.op_type == "LogSoftmax")
    node.domain = "somewhere"
    onnx.save(model, tmp_path / "s.onnx")
    with pytest.raises(ModelError, match="ONNX Runtime cannot load"):
        shipped.export(tmp_path / "s.onnx", tmp_path / "m.onnx")
