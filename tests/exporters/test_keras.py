"""What the Keras exporter says, refuses and leaves alone; the forms are in test_keras_forms.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow", reason="the Keras exporter needs TensorFlow")
pytest.importorskip("tf2onnx", reason="the Keras exporter needs tf2onnx")
sys.path.insert(0, str(Path(__file__).parent))

import keras
import keras_forms as forms
import onnx
import tensorflow as tf
from keras import layers
from keras_forms import E, H, S, V, build, sequential, stacked
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import read_roles
from mnemoscope.exporters import _keras_recurrent, _keras_saved, tensorflow
from mnemoscope.exporters._parity import ParityError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
WORDS = [f"w{k}" for k in range(V)]


def lstm():
    return stacked([S(layers.LSTM, H)])


def masked():
    return stacked([S(layers.GRU, H)], mask_zero=True)


def export(model, folder, **options):
    return tensorflow.export(model, folder / "m.onnx", **options)


def test_a_step_with_swapped_gates_is_refused(tmp_path, monkeypatch):
    right = _keras_recurrent._step

    def wrong(cell, inputs, states):
        output, (h, c) = right(cell, inputs, states)
        return output, [c, h]

    monkeypatch.setattr(_keras_recurrent, "_step", wrong)
    with pytest.raises(ParityError, match=r"differs from its source.*That is no rounding"):
        export(build(lstm), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_small_error_is_refused_too(tmp_path, monkeypatch):
    right = _keras_recurrent._step

    def wrong(cell, inputs, states):
        output, new = right(cell, inputs, states)
        return output, [x * 1.0001 for x in new]

    monkeypatch.setattr(_keras_recurrent, "_step", wrong)
    with pytest.raises(ParityError, match="differs from its source"):
        export(build(lstm), tmp_path)


def test_the_model_is_left_as_it_was(tmp_path):
    model = build(
        lambda: sequential(
            layers.Embedding(V, E),
            S(layers.LSTM, H, stateful=True),
            layers.Dense(V),
            shape=None,
            batch_shape=(2, None),
        )
    )
    ids = np.arange(8).reshape(2, 4)
    before = model.predict(ids, verbose=0)
    layer = model.layers[1]
    state = [np.asarray(s) for s in layer.states]
    attributes = {id(x): set(vars(x)) for x in model._flatten_layers()}
    export(model, tmp_path)
    assert layer.stateful
    assert attributes == {id(x): set(vars(x)) for x in model._flatten_layers()}
    for old, now in zip(state, layer.states, strict=True):
        np.testing.assert_array_equal(old, np.asarray(now))
    layer.reset_state()
    np.testing.assert_array_equal(before, model.predict(ids, verbose=0))


def test_probabilities_become_log_probabilities(tmp_path):
    model = build(
        lambda: sequential(
            layers.Embedding(V, E), S(layers.GRU, H), layers.Dense(V, activation="softmax")
        )
    )
    report = export(model, tmp_path, vocabulary=WORDS)
    proto = onnx.load(tmp_path / "m.onnx")
    assert report.normalized
    assert read_roles(proto)[0].normalized
    # No logarithm of a rounded probability: the softmax itself is taken in logarithms.
    kinds = {n.op_type for n in proto.graph.node}
    assert "LogSoftmax" in kinds
    assert not {"Softmax", "Log"} & kinds


def test_no_loop_and_no_fused_operator_is_left(tmp_path):
    for make in (lstm, lambda: stacked([S(layers.GRU, H), S(layers.SimpleRNN, H)])):
        export(build(make), tmp_path)
        kinds = {n.op_type for n in onnx.load(tmp_path / "m.onnx").graph.node}
        assert not kinds & {"Loop", "Scan", "If", "LSTM", "GRU", "RNN"}


def test_masking_is_explained_and_padding_kept_apart(tmp_path):
    report = export(build(masked), tmp_path, vocabulary=["<pad>", *WORDS[1:]])
    assert any("mask_zero" in note for note in report.notes)
    with pytest.raises(ModelError, match=r"masks id 0.*the unknown token '<unk>' has it"):
        export(build(masked), tmp_path, vocabulary=["<unk>", *WORDS[1:]])


def with_mask(mask):
    """An LSTM that is handed `mask`, a function of the ids."""

    def make():
        ids = keras.Input((None,), dtype="int32")
        x = layers.Embedding(V, E)(ids)
        kept = layers.Lambda(mask, output_shape=lambda s: s)(ids)
        return keras.Model(
            ids, layers.Dense(V)(layers.LSTM(H, return_sequences=True)(x, mask=kept))
        )

    return make


def masking_row():
    """Masking on an embedding whose row 5 is zero."""
    return stacked([layers.Masking(), S(layers.LSTM, H)])


def test_a_mask_of_any_kind_is_found_and_said(tmp_path):
    for make, masked, row in (
        (with_mask(lambda t: keras.ops.not_equal(t, 1)), "id 1 ", None),
        (with_mask(lambda t: keras.ops.greater(t, 2)), "ids 0, 1, 2 ", None),
        (masking_row, "id 5 ", 5),
    ):
        model = build(make)
        if row is not None:
            table = model.layers[0].get_weights()[0]
            table[row] = 0
            model.layers[0].set_weights([table])
        report = export(model, tmp_path)
        assert any(f"The model masks {masked}" in note for note in report.notes), report.notes


def test_what_a_mask_skips_may_be_no_special_token(tmp_path):
    model = build(with_mask(lambda t: keras.ops.not_equal(t, 4)))
    words = [*WORDS[:4], "<unk>", *WORDS[5:]]
    with pytest.raises(ModelError, match=r"masks id 4.*the unknown token '<unk>' has it"):
        export(model, tmp_path, vocabulary=words)
    export(model, tmp_path, vocabulary=["<unk>", *WORDS[1:]])


def test_a_mask_that_skips_nothing_is_not_mentioned(tmp_path):
    report = export(build(lambda: stacked([layers.Masking(), S(layers.LSTM, H)])), tmp_path)
    assert not any("mask" in note for note in report.notes)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda t: keras.ops.equal(t, t[:, :1]), "in one place and not in another"),
        (lambda t: keras.ops.less(t, 0), "masks every id"),
    ],
)
def test_a_mask_that_the_id_does_not_decide_is_refused(tmp_path, mask, message):
    with pytest.raises(ModelError, match=message):
        export(build(with_mask(mask)), tmp_path)


class Window(layers.Layer):
    """What is left of a text: its last tokens."""

    def call(self, ids):
        return ids[:, -16:]


class BatchMean(layers.Layer):
    """What is left when the mean over the streams is taken away."""

    def call(self, x):
        return x - keras.ops.mean(x, 0, keepdims=True)


def windowed():
    return sequential(Window(), layers.Embedding(V, E), layers.LSTM(H), layers.Dense(V))


def dilated():
    return layers.Conv1D(H, 2, padding="causal", dilation_rate=8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stacked([dilated(), S(layers.LSTM, H)]), "over 96 steps"),
        (lambda: stacked([S(layers.LSTM, H), dilated(), S(layers.LSTM, H)]), "over 96 steps"),
        (windowed, "over 96 steps"),
        (lambda: stacked([S(layers.LSTM, H), BatchMean(), S(layers.LSTM, H)]),
         "streams of a batch influence one another"),
        (lambda: sequential(layers.Embedding(V, E), S(layers.LSTM, H),
                            layers.Conv1D(H, 2, padding="causal"), layers.Dense(V),
                            layers.Lambda(lambda t: t + keras.ops.one_hot(0, V) * -1e9)),
         "differs from its source in 'logits'"),
    ],
)  # fmt: skip
def test_what_a_short_run_does_not_show_is_refused(tmp_path, make, message):
    with pytest.raises(ParityError, match=message):
        export(build(make), tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_are_loaded_and_change_the_hash(tmp_path):
    build(lstm, seed=1).save_weights(tmp_path / "w.weights.h5")
    export(build(lstm, seed=0), tmp_path)
    one = read_roles(onnx.load(tmp_path / "m.onnx"))[0].source["weights_sha256"]
    export(build(lstm, seed=0), tmp_path, weights=tmp_path / "w.weights.h5")
    two = read_roles(onnx.load(tmp_path / "m.onnx"))[0].source["weights_sha256"]
    export(build(lstm, seed=1), tmp_path)
    assert read_roles(onnx.load(tmp_path / "m.onnx"))[0].source["weights_sha256"] == two != one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": ["a", "b"]}, "The vocabulary has 2 tokens"),
        ({"state_names": ["a"]}, "Expected 2 distinct state names"),
        ({"state_names": ["a", "b/c"]}, "holds a /"),
        ({"state_names": ["a", ""]}, "is empty"),
        ({"state_names": ["a", "a"]}, "2 distinct state names"),
        ({"tokens": "words"}, "There is no input 'words'"),
        ({"embedding": "nothing"}, "'nothing', asked for as the embedding"),
        ({"vocabulary_size": 9}, "Which output holds the logits"),
        ({"weights": "missing.weights.h5"}, "There is no weights file"),
        ({"tolerance": 1e-12}, "would have passed"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(ModelError, match=message):
        export(build(lstm), tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_state_names_and_the_embedding_can_be_chosen(tmp_path):
    def make():
        return sequential(
            layers.Embedding(V, E),
            layers.Dense(4, name="projected"),
            S(layers.LSTM, H),
            layers.Dense(V),
        )

    assert export(build(make), tmp_path).embedding_size == E
    report = export(build(make), tmp_path, embedding="projected", state_names=["out", "memory"])
    assert report.embedding_size == 4
    assert [s.name for s in report.states] == ["out", "memory"]


def test_nan_weights(tmp_path):
    model = build(lstm)
    model.layers[1].cell.bias.assign(np.full(4 * H, np.nan))
    with pytest.raises(ModelError, match="NaN or infinite"):
        export(model, tmp_path)


def test_no_keras_model(tmp_path):
    with pytest.raises(ModelError, match="Expected a Keras model, found a dict"):
        export({}, tmp_path)


def test_text_input(tmp_path):
    model = keras.Sequential(
        [keras.Input((1,), dtype="string"), layers.StringLookup(vocabulary=WORDS[:-1]),
         layers.Embedding(V, E), S(layers.LSTM, H), layers.Dense(V)]
    )  # fmt: skip
    with pytest.raises(ModelError, match="takes text"):
        export(model, tmp_path)


# --- files -----------------------------------------------------------------------------------


def test_broken_files(tmp_path):
    def refused(name, data, message):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelError, match=message):
            tensorflow.load_model(tmp_path / name)

    refused("a.keras", b"nonsense", "is no Keras model")
    refused("a.h5", b"\x89HDF\r\n\x1a\n", "cannot be read")
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as archive:
        archive.writestr("other.txt", "x")
    refused("b.keras", (tmp_path / "b.keras").read_bytes(), "config.json")
    build(lstm).save(tmp_path / "c.keras")
    whole = (tmp_path / "c.keras").read_bytes()
    refused("c.keras", whole[: len(whole) // 2], "is no Keras model")
    build(lstm).save_weights(tmp_path / "w.weights.h5")
    with pytest.raises(ModelError, match="holds weights, but no model"):
        tensorflow.load_model(tmp_path / "w.weights.h5")
    with pytest.raises(ModelError, match="There is no file"):
        tensorflow.load_model(tmp_path / "missing.keras")


@pytest.mark.parametrize(
    "planted",
    [
        {"class_name": "Lambda", "module": "keras.layers", "config": {}},
        {"class_name": "system", "module": "os", "config": {}, "registered_name": None},
        {"class_name": "function", "config": "system", "module": "builtins",
         "registered_name": "os>system"},
    ],
)  # fmt: skip
def test_a_file_with_code_is_refused_unloaded(tmp_path, planted, monkeypatch):
    build(lstm).save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        parts = {n: archive.read(n) for n in archive.namelist()}
    config = json.loads(parts["config.json"])
    config["config"]["layers"].append(planted)
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(tmp_path / "bad.keras", "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    monkeypatch.setattr(keras.saving, "load_model", lambda *a, **k: pytest.fail("was loaded"))
    with pytest.raises(ModelError, match=r"FILE\.py:OBJECT"):
        tensorflow.load_model(tmp_path / "bad.keras")


# --- commands --------------------------------------------------------------------------------

MODEL = """
import keras
from keras import layers

def build():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((None,)), layers.Embedding(11, 6),
                             layers.LSTM(8, return_sequences=True), layers.Dense(11)])

nothing = 3
"""


def command(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "mnemoscope.cli", "export", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        # A user's own setting wins; tf2onnx leaves one in this process.
        env={k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"},
    )


def test_command(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    done = command(tmp_path, "keras", "model.py:build", "-o", "m.onnx", "--vocabulary", "words.txt")
    assert done.returncode == 0
    assert done.stderr == ""  # TensorFlow keeps quiet
    lines = done.stdout.splitlines()
    assert lines[0] == "Tokens [batch, time] in 11 kinds, logits [N, T, V]."
    assert "States: lstm0.h (hidden, layer 0), lstm0.c (cell, layer 0)" in lines
    assert "next: mnemoscope inspect m.onnx" in done.stdout
    assert read_roles(onnx.load(tmp_path / "m.onnx"))[1].tokens == tuple(WORDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["keras", "model.py:nothing", "-o", "m.onnx"], "is a int; expected a keras.Model"),
        (["keras", "model.py:missing", "-o", "m.onnx"], "has no 'missing'"),
        (["keras", "missing.keras", "-o", "m.onnx"], "There is no file"),
        (["keras", "model.py", "-o", "m.onnx"], "name the object in it"),
        (["keras", "model.py:build", "-o", "model.py"], "is also an input"),
        (["tf1-checkpoint", "missing.ckpt", "-o", "m.onnx"], "There is no checkpoint"),
    ],
)
def test_bad_calls(tmp_path, arguments, message):
    (tmp_path / "model.py").write_text(MODEL)
    done = command(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "m.onnx").exists()


def test_without_tensorflow(tmp_path, monkeypatch):
    from click.testing import CliRunner
    from mnemoscope.cli import export as module
    from mnemoscope.cli.main import main

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    done = CliRunner().invoke(main, ["export", "keras", "m.keras", "-o", str(tmp_path / "m.onnx")])
    assert done.exit_code == 2
    assert "pip install 'mnemoscope[tensorflow]'" in done.output


def test_the_forms_have_names_of_their_own():
    names = [f.name for f in forms.FORMS]
    assert len(set(names)) == len(names)


def test_a_saved_model_that_reaches_out_is_not_loaded(tmp_path, monkeypatch):
    class Reader(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int64, name="ids")])
        def __call__(self, ids):
            secret = tf.strings.length(tf.io.read_file("secret.txt"))
            return {"y": tf.cast(ids + tf.cast(secret, tf.int64), tf.float32)}

    module = Reader()
    tf.saved_model.save(module, tmp_path / "saved", signatures=module.__call__)
    monkeypatch.setattr(tf.saved_model, "load", None)
    with pytest.raises(ModelError, match=r"uses ReadFile, .*not known to compute"):
        tensorflow.export(str(tmp_path / "saved"), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


RAW = tf.raw_ops
REACH_OUT = {
    "SaveV2": lambda x: RAW.SaveV2(
        prefix="out", tensor_names=["a"], shape_and_slices=[""], tensors=[x]
    ),
    "RestoreV2": lambda x: RAW.RestoreV2(
        prefix="in", tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32]
    )[0],
    "MergeV2Checkpoints": lambda x: RAW.MergeV2Checkpoints(
        checkpoint_prefixes=["a"], destination_prefix="out"
    ),
    "WriteFile": lambda x: tf.io.write_file("out", "x"),
    "TFRecordDataset": lambda x: RAW.TFRecordDataset(
        filenames=["in"], compression_type="", buffer_size=0
    ),
    "CacheDataset": lambda x: RAW.CacheDataset(
        input_dataset=RAW.RangeDataset(
            start=0, stop=1, step=1, output_types=[tf.int64], output_shapes=[[]]
        ),
        filename="out", output_types=[tf.int64], output_shapes=[[]],
    ),
    "DebugIdentityV2": lambda x: RAW.DebugIdentityV2(input=x, debug_urls=["file:///tmp/out"]),
    "EagerPyFunc": lambda x: tf.py_function(lambda v: v, [x], tf.float32),
    "PrintV2": lambda x: tf.print(x, output_stream="file:///tmp/out"),
}  # fmt: skip


@pytest.mark.parametrize("name", REACH_OUT)
@pytest.mark.parametrize("deep", [False, True])
def test_operations_that_reach_out_are_refused(tmp_path, name, deep, monkeypatch):
    """In a signature, or in the body of a loop that it runs; nothing is loaded or converted."""

    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int64, name="ids")])
        def __call__(self, ids):
            y = tf.cast(ids, tf.float32)

            def body(k, y):
                with tf.control_dependencies([REACH_OUT[name](y)]):
                    return k + 1, tf.identity(y)

            if deep:
                _, y = tf.while_loop(lambda k, _: k < 2, body, (0, y))
            else:
                _, y = body(0, y)
            return {"y": y}

    module = Model()
    tf.saved_model.save(module, tmp_path / "saved", signatures=module.__call__)
    monkeypatch.setattr(tf.saved_model, "load", None)
    with pytest.raises(ModelError, match=rf"uses .*{name}.*not known to compute"):
        tensorflow.export(str(tmp_path / "saved"), tmp_path / "m.onnx")


def test_what_loading_runs_is_looked_at_too(tmp_path, monkeypatch):
    """A table that is filled from a file, which is read as soon as the model is loaded."""
    (tmp_path / "words.txt").write_text("a\nb\n")

    class Model(tf.Module):
        def __init__(self):
            line = tf.lookup.TextFileIndex.LINE_NUMBER
            self.table = tf.lookup.StaticHashTable(
                tf.lookup.TextFileInitializer(str(tmp_path / "words.txt"), tf.string,
                                              tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, line), 0
            )  # fmt: skip

        @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int64, name="ids")])
        def __call__(self, ids):
            return {"y": tf.cast(ids, tf.float32)}

    module = Model()
    tf.saved_model.save(module, tmp_path / "saved", signatures=module.__call__)
    monkeypatch.setattr(tf.saved_model, "load", None)
    with pytest.raises(ModelError, match="InitializeTableFromTextFile"):
        tensorflow.export(str(tmp_path / "saved"), tmp_path / "m.onnx")


def test_ordinary_saved_models_are_not_refused(tmp_path):
    """Variables, loops, assertions, dropout, gradients beside the signature; TensorFlow 1."""

    class Model(tf.Module):
        def __init__(self):
            self.w = tf.Variable(tf.ones((E, E)))

        @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int64, name="ids")])
        def __call__(self, ids):
            tf.debugging.assert_less(ids, tf.constant(V, tf.int64))
            x = tf.nn.dropout(tf.gather(tf.ones((V, E)), ids), 0.5)
            h = tf.zeros((tf.shape(ids)[0], E))
            rows = tf.TensorArray(tf.float32, 0, dynamic_size=True)
            for t in tf.range(tf.shape(ids)[1]):
                h = tf.tanh(x[:, t] @ self.w + h)
                rows = rows.write(t, h)
            return {"y": tf.transpose(rows.stack(), (1, 0, 2))}

        @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int64, name="ids")])
        def train(self, ids):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(self(ids)["y"])
            self.w.assign_sub(tape.gradient(loss, self.w))
            return loss

    module = Model()
    tf.saved_model.save(module, tmp_path / "two", signatures=module.__call__)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        ids = tf.compat.v1.placeholder(tf.int64, (None, None))
        y = tf.nn.embedding_lookup(tf.compat.v1.get_variable("e", (V, E)), ids)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "one"), {"x": ids}, {"y": y})
    for name in ("two", "one"):
        _keras_saved._require_harmless(tmp_path / name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A SavedModel of an LSTM and a GRU with a softmax behind."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = build(
        lambda: sequential(
            layers.Embedding(V, E), S(layers.LSTM, H), S(layers.GRU, H),
            layers.Dense(V, activation="softmax"),
        )
    )  # fmt: skip
    model.export(folder, verbose=False)
    return folder


def test_names_that_a_saved_model_lacks(tmp_path, saved):
    report = tensorflow.export(saved, tmp_path / "m.onnx")
    assert [(s.name, s.kind) for s in report.states][2] == ("loop1.s0", "other")
    assert "name the states with --state-names" in report.notes[-1]

    names = ["lstm0.h", "lstm0.c", "gru1.h"]
    report = tensorflow.export(saved, tmp_path / "m.onnx", state_names=names)
    assert [(s.name, s.kind) for s in report.states] == [
        ("lstm0.h", "hidden"), ("lstm0.c", "cell"), ("gru1.h", "hidden")
    ]  # fmt: skip
    assert not any("--state-names" in note for note in report.notes)
    assert dict(report.evidence).keys() >= {*names}
    assert "loop1.s0" not in dict(report.evidence)
    proto = onnx.load(tmp_path / "m.onnx")
    assert {i.name for i in proto.graph.input} == {"tokens", *(f"{n}_in" for n in names)}
    assert {f"{n}_out" for n in names} < {o.name for o in proto.graph.output}


def test_names_of_a_saved_model_that_change_places(tmp_path, saved):
    names = ["lstm0.c", "lstm0.h", "x"]
    report = tensorflow.export(saved, tmp_path / "m.onnx", state_names=names)
    assert [(s.name, s.kind, s.input) for s in report.states] == [
        ("lstm0.c", "hidden", "lstm0.c_in"),
        ("lstm0.h", "cell", "lstm0.h_in"),
        ("x", "other", "x_in"),
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], "Expected 3 distinct state names"),
        (["a", "a", "b"], "Expected 3 distinct state names"),
        (["a", "", "b"], "is empty"),
        (["a", "b/c", "d"], "holds a /"),
    ],
)
def test_wrong_names_of_a_saved_model(tmp_path, saved, names, message):
    with pytest.raises(ModelError, match=message):
        tensorflow.export(saved, tmp_path / "m.onnx", state_names=names)
    assert not list(tmp_path.iterdir())


def test_a_saved_model_that_ends_in_a_softmax_gives_log_probabilities(tmp_path, saved):
    report = tensorflow.export(saved, tmp_path / "m.onnx")
    assert report.normalized
    assert read_roles(onnx.load(tmp_path / "m.onnx"))[0].normalized


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff\xff\xff", "damaged"), (b"", "cannot load")]
)
def test_a_broken_saved_model(tmp_path, content, message):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        tensorflow.export(tmp_path / "saved", tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="takes no weights"):
        tensorflow.export(tmp_path / "saved", tmp_path / "m.onnx", weights="w.h5")


def test_a_saved_model_of_fixed_length_and_its_vocabulary(tmp_path):
    """Compared over its own number of steps; Keras' reserved tokens are put before a list."""
    parts = [layers.Embedding(V, E), layers.LSTM(H), layers.Dense(V)]
    model = sequential(*parts, shape=(9,), dtype="int64")
    model.export(tmp_path / "saved", verbose=False)
    (tmp_path / "v.json").write_text(json.dumps([f"w{k}" for k in range(V - 2)]))
    report = export(str(tmp_path / "saved"), tmp_path, vocabulary=tmp_path / "v.json",
                    state_names=["a", "b"])  # fmt: skip
    assert report.parity.steps == 9
    assert [s.name for s in report.states] == ["a", "b"]
    assert any("<pad> and [UNK]" in note for note in report.notes)
    assert report.evidence
    _, vocabulary = read_roles(onnx.load(tmp_path / "m.onnx"))
    assert vocabulary.tokens[:3] == ("<pad>", "[UNK]", "w0")
    with pytest.raises(ModelError, match="is empty, holds a /"):
        export(str(tmp_path / "saved"), tmp_path, state_names=["a", ""])
