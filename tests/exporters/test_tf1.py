"""TensorFlow 1 checkpoints against the v1 graph that wrote them, and against hand-written steps."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow", reason="reading a checkpoint needs TensorFlow")
sys.path.insert(0, str(Path(__file__).parent))

import onnx
import onnxruntime as ort
import tf1_forms
from mnemoscope.analyzer import Corpus, analyze, open_model
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.exporters import _tf1_graph, tf1_checkpoint
from mnemoscope.exporters._parity import ParityError, initial_states
from tf1_forms import CHECKPOINTS, FORMS, Checkpoint, Layer, V

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
DELAYS, LENGTH = 50, 120
BARS = {("jvp", "float32"): 1e-5, ("jvp", "float64"): 1e-9, ("fd", "float32"): 5e-3}
IDS = np.random.default_rng(2).integers(0, V, (3, 9))


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.name)
def test_form(form, tmp_path):
    ids = np.random.default_rng(1).integers(0, V, LENGTH)
    model = open_model(form.export(tmp_path))
    wanted = form.oracle(ids, DELAYS)
    for (method, precision), bar in BARS.items():
        corpus = Corpus(ids, "random", "", 1, 0)
        tree = analyze(model, corpus, delays=DELAYS, method=method, precision=precision)
        assert set(tree.children) == set(wanted)
        for name, truth in wanted.items():
            mean = np.asarray(tree[name]["gradient"][0], np.float64)
            error = np.linalg.norm(mean - truth, axis=(1, 2)) / np.linalg.norm(truth, axis=(1, 2))
            assert error.max() <= bar, (method, precision, name, error.max(), error.argmax())


BLOCKS = {
    "LSTMBlockCell": (Checkpoint((Layer("lstm", "rnn/lstm_block_cell", block=True),)), {}),
    "LSTMBlockCell, peepholes, forget bias 0.5": (
        Checkpoint((Layer("lstm", "rnn/lstm_block_cell", 0.5, peepholes=True, block=True),)),
        {"forget_bias": 0.5}),
    "BasicLSTMCell below LSTMBlockCell": (
        Checkpoint((Layer("lstm", "rnn/multi_rnn_cell/cell_0/basic_lstm_cell"),
                    Layer("lstm", "rnn/multi_rnn_cell/cell_1/lstm_block_cell", block=True))), {}),
    "LSTMBlockFusedCell": (Checkpoint((Layer("lstm", "lstm_fused_cell", block=True),)), {}),
}  # fmt: skip


def test_the_fused_operator_is_the_cells_own():
    # LSTMBlockFusedCell runs BlockLSTM, whose weights are in the order of LSTMBlockCell's.
    tf = tf1_forms.tf
    r = np.random.default_rng(4)
    x, w, b = (r.normal(size=s).astype(np.float32) for s in ((5, 2, 3), (7, 16), (16,)))
    none, start = np.zeros(4, np.float32), np.zeros((2, 4), np.float32)
    common = {"wci": none, "wcf": none, "wco": none, "w": w, "b": b, "cell_clip": -1.0}
    whole = tf.raw_ops.BlockLSTM(seq_len_max=5, x=x, cs_prev=start, h_prev=start, **common)[-1]
    h = c = start
    for t in range(5):
        step = tf.raw_ops.LSTMBlockCell(x=x[t], cs_prev=c, h_prev=h, **common)
        c, h = step[1], step[6]
    np.testing.assert_allclose(whole[-1], h, atol=1e-6)


@pytest.mark.parametrize("name", [*CHECKPOINTS, *BLOCKS])
def test_logits_and_states_are_those_of_the_v1_graph(name, tmp_path):
    checkpoint, options = (CHECKPOINTS | BLOCKS)[name]
    prefix, logits, states = tf1_forms.write(checkpoint, tmp_path, IDS)
    report = tf1_checkpoint.export(prefix, tmp_path / "m.onnx", **options)
    assert [s.name for s in report.states] == list(tf1_forms.sizes(checkpoint))
    proto = onnx.load(tmp_path / "m.onnx")
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    roles, _ = tf1_checkpoint_roles(proto)
    feeds = initial_states(proto, roles, len(IDS))
    names = [o.name for o in session.get_outputs()]
    steps = []
    for t in range(IDS.shape[1]):
        results = dict(
            zip(names, session.run(names, {"tokens": IDS[:, t : t + 1], **feeds}), strict=True)
        )
        feeds = {s.input: results[s.output] for s in roles.states}
        steps.append(results["logits"])
    np.testing.assert_allclose(np.concatenate(steps, 1), logits, atol=2e-6)
    for state, wanted in zip(roles.states, states, strict=True):
        np.testing.assert_allclose(feeds[state.input], wanted, atol=2e-6)


def tf1_checkpoint_roles(proto):
    from mnemoscope.analyzer.roles import read_roles

    return read_roles(proto)


def test_the_forget_bias_matters_and_is_said(tmp_path):
    checkpoint, _ = CHECKPOINTS["TensorFlow 1 BasicLSTMCell"]
    prefix, _, _ = tf1_forms.write(checkpoint, tmp_path, IDS)
    report = tf1_checkpoint.export(prefix, tmp_path / "m.onnx")
    assert any("Forget bias 1:" in note for note in report.notes)


def test_swapped_gates_are_refused(tmp_path, monkeypatch):
    checkpoint, _ = CHECKPOINTS["TensorFlow 1 BasicLSTMCell"]
    prefix, _, _ = tf1_forms.write(checkpoint, tmp_path, IDS)
    right = _tf1_graph._Graph.split

    def swapped(self, value, names, layer):
        i, j, f, o = right(self, value, names, layer)
        return [i, f, j, o]

    monkeypatch.setattr(_tf1_graph._Graph, "split", swapped)
    with pytest.raises(ParityError, match="differs from its source"):
        tf1_checkpoint.export(prefix, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def saved(folder, **values):
    """A checkpoint of the named variables."""
    v1 = tf1_forms.v1
    with v1.Graph().as_default(), v1.Session() as session:
        for name, value in values.items():
            v1.get_variable(name.replace("__", "/"), initializer=value.astype(np.float32),
                            use_resource=False)  # fmt: skip
        session.run(v1.global_variables_initializer())
        return v1.train.Saver().save(session, str(folder / "other.ckpt"))


ONE = np.ones
LSTM = {"rnn__basic_lstm_cell__kernel": ONE((14, 32)), "rnn__basic_lstm_cell__bias": ONE(32)}
REST = {"embedding": ONE((11, 6)), "softmax_w": ONE((8, 11)), "softmax_b": ONE(11)}


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({"dense__kernel": ONE((3, 4))}, {}, "No cell of tf.nn.rnn_cell was found"),
        ({**REST, "rnn__basic_lstm_cell__kernel": ONE((14, 32))}, {}, "has no variable"),
        ({**LSTM, **REST, "rnn__basic_lstm_cell__bias": ONE(31)}, {}, "do not fit each other"),
        ({**LSTM, "softmax_w": ONE((8, 11)), "a": ONE((11, 6)), "b": ONE((11, 6))}, {},
         "name it with --embedding"),
        ({**LSTM, "embedding": ONE((11, 6))}, {}, "name it with --output-weights"),
        ({**LSTM, **REST}, {"embedding": "nothing"}, "There is no variable 'nothing'"),
        ({**LSTM, **REST}, {"embedding": "softmax_w"}, r"expected \[V, 6\]"),
        ({**LSTM, **REST, "embedding": ONE((7, 6))}, {"output_weights": "softmax_w"}, "has 7 rows"),
        ({**LSTM, **REST, "c": ONE(11)}, {"output_weights": "softmax_w", "output_bias": "x"},
         "There is no variable 'x'"),
        ({**LSTM, **REST}, {"vocabulary": ["a", "b"]}, "The vocabulary has 2 tokens"),
        ({**LSTM, **REST}, {"scope": "Train"}, "No variable begins with 'Train'"),
        ({**LSTM, **REST}, {"state_names": ["a"]}, "Expected 2 distinct state names"),
        ({**LSTM, **REST, "softmax_b": ONE(11) * np.nan}, {}, "NaN or infinite"),
        ({**REST, "rnn__fw__basic_lstm_cell__kernel": ONE((14, 32)),
          "rnn__fw__basic_lstm_cell__bias": ONE(32), "rnn__bw__basic_lstm_cell__kernel":
          ONE((14, 32)), "rnn__bw__basic_lstm_cell__bias": ONE(32)}, {}, "bidirectional"),
        ({**REST, "a__gru_cell__gates__kernel": ONE((14, 16)), "a__gru_cell__gates__bias": ONE(16),
          "a__gru_cell__candidate__kernel": ONE((14, 8)), "a__gru_cell__candidate__bias": ONE(8),
          **LSTM}, {}, "Choose one with --scope"),
        ({**LSTM, **REST, "between__kernel": ONE((6, 6)), "between__bias": ONE(6)}, {},
         r"holds more: between/bias \[6\], between/kernel \[6, 6\]"),
        ({**LSTM, **REST, "initial_c": ONE((1, 8))}, {}, "holds more: initial_c"),
        ({**LSTM, **REST, "rnn__basic_lstm_cell__gamma": ONE(8)}, {},
         "has more than is known of that cell"),
    ],
)  # fmt: skip
def test_refused(tmp_path, values, options, message):
    prefix = saved(tmp_path, **values)
    with pytest.raises(ModelError, match=message):
        tf1_checkpoint.export(prefix, tmp_path / "m.onnx", **options)
    assert not (tmp_path / "m.onnx").exists()


def cells(*scopes):
    """LSTM cells that read as many numbers as they give, an embedding, and an output."""
    found = {"embedding": ONE((11, 8)), "softmax_w": ONE((8, 11)), "softmax_b": ONE(11)}
    for scope in scopes:
        found |= {f"{scope}/kernel": ONE((16, 32)), f"{scope}/bias": ONE(32)}
    return {n.replace("/", "__"): v for n, v in found.items()}


@pytest.mark.parametrize(
    ("scopes", "message"),
    [
        (("encoder/rnn/basic_lstm_cell", "decoder/rnn/basic_lstm_cell"), "are one stack"),
        (("rnn/lstm_cell", "rnn/gru/lstm_cell"), "are one stack"),
        (("a_0/cell_0/lstm_cell", "a_0/cell_1/lstm_cell", "a_1/cell_0/lstm_cell",
          "a_1/cell_1/lstm_cell"), "are one stack"),
        (("rnn/lstm_cell", "rnn/basic_lstm_cell"), "are one stack"),
        (("fwd/lstm_cell", "bwd/lstm_cell"), "is bidirectional"),
        (("forward_rnn/lstm_cell", "reverse_rnn/lstm_cell"), "is bidirectional"),
        (("rnn/multi_rnn_cell/cell_0/lstm_cell", "rnn/multi_rnn_cell/cell_2/lstm_cell"),
         "are numbered 0, 2"),
        (("rnn/multi_rnn_cell/cell_0/basic_lstm_cell",
          "rnn/multi_rnn_cell/cell_1/layer_norm_basic_lstm_cell"),
         "'rnn/multi_rnn_cell/cell_1/layer_norm_basic_lstm_cell', which is no cell"),
        (("rnn/lstm_cell", "rnn/nas_cell"), "'rnn/nas_cell', which is no cell"),
    ],
)  # fmt: skip
def test_cells_that_are_no_stack(tmp_path, scopes, message):
    prefix = saved(tmp_path, **cells(*scopes))
    with pytest.raises(ModelError, match=message):
        tf1_checkpoint.export(prefix, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    "scopes",
    [
        ("rnn/basic_lstm_cell", "rnn/basic_lstm_cell_1"),
        ("layer1/lstm_cell", "layer2/lstm_cell"),
        ("rnn/lstm_cell", "rnn_1/lstm_cell"),
        ("m/RNN/MultiRNNCell/Cell0/lstm_cell", "m/RNN/MultiRNNCell/Cell1/lstm_cell"),
    ],
)
def test_numbered_cells_are_a_stack(tmp_path, scopes):
    prefix = saved(tmp_path, **cells(*scopes))
    report = tf1_checkpoint.export(prefix, tmp_path / "m.onnx")
    assert [note for note in report.notes if note.startswith("lstm")] == [
        f"lstm{k}: {scope}." for k, scope in enumerate(scopes)
    ]


def test_a_scope_chooses_and_orders(tmp_path):
    one, two = "encoder/rnn/basic_lstm_cell", "decoder/rnn/basic_lstm_cell"
    prefix = saved(tmp_path, **cells(one, two), between__kernel=ONE((8, 8)))
    rest = "embedding,softmax"
    for scope, found in ((f"decoder/,{rest}", [two]), (f"encoder/,decoder/,{rest}", [one, two]),
                         (f"{rest},decoder/,encoder/", [two, one])):  # fmt: skip
        report = tf1_checkpoint.export(prefix, tmp_path / "m.onnx", scope=scope)
        assert [note.split(": ")[1] for note in report.notes if note.startswith("lstm")] == [
            f"{scope}." for scope in found
        ]
    with pytest.raises(ModelError, match="No variable begins with 'middle/'"):
        tf1_checkpoint.export(prefix, tmp_path / "m.onnx", scope="decoder/,middle/")


@pytest.mark.parametrize("slot", ["kernel__Adam", "kernel__my_optimizer", "train"])
def test_what_optimisers_leave_is_passed_over(tmp_path, slot):
    name = f"rnn__basic_lstm_cell__{slot}"
    if slot == "train":
        name = "train__rnn__basic_lstm_cell__kernel__Adam_1"
    prefix = saved(tmp_path, **LSTM, **REST, learning_rate=ONE(()), **{name: ONE((14, 32))})
    report = tf1_checkpoint.export(prefix, tmp_path / "m.onnx")
    assert report.notes[-1] == "Not used: learning_rate."


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(ModelError, match="There is no checkpoint"):
        tf1_checkpoint.export(tmp_path / "model.ckpt", tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="has no file 'checkpoint'"):
        tf1_checkpoint.export(tmp_path, tmp_path / "m.onnx")
    (tmp_path / "x.ckpt.index").write_bytes(b"nonsense" * 9)
    with pytest.raises(ModelError, match="no checkpoint that TensorFlow can read"):
        tf1_checkpoint.export(tmp_path / "x.ckpt", tmp_path / "m.onnx")


def test_any_of_its_names_will_do(tmp_path):
    checkpoint, _ = CHECKPOINTS["TensorFlow 1 GRUCell"]
    prefix, _, _ = tf1_forms.write(checkpoint, tmp_path, IDS)
    for name in (prefix, f"{prefix}.index", f"{prefix}.data-00000-of-00001", tmp_path):
        assert tf1_checkpoint.export(name, tmp_path / "m.onnx").states[0].name == "gru0.h"


def test_ten_layers_come_in_their_order(tmp_path):
    scope = "rnn/multi_rnn_cell/cell_{}/basic_rnn_cell"
    checkpoint = Checkpoint(tuple(Layer("rnn", scope.format(k)) for k in range(11)))
    prefix, _, _ = tf1_forms.write(checkpoint, tmp_path, IDS)
    report = tf1_checkpoint.export(prefix, tmp_path / "m.onnx")
    assert [n.split(":")[1].strip() for n in report.notes if n.startswith("rnn1")][-1] == (
        scope.format(10) + "."
    )
