"""Keras models in every form that the exporter takes or refuses, and their steps by hand."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from complex_step import hard_sigmoid, layer_norm, mean_gradients, sigmoid
from forms import Form
from keras import layers, ops

E, H, V = 6, 8, 11


# --- steps by hand, from Keras' weights ------------------------------------------------------


def lstm(w, x, h, c, inner=sigmoid):
    kernel, recurrent, bias = w if len(w) == 3 else (*w, 0)
    i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, -1)
    c = inner(f) * c + inner(i) * np.tanh(g)
    return inner(o) * np.tanh(c), c


def gru(w, x, h, inner=sigmoid):
    kernel, recurrent, bias = w
    if bias.ndim == 2:  # reset_after: a bias on either side
        xz, xr, xn = np.split(x @ kernel + bias[0], 3, -1)
        hz, hr, hn = np.split(h @ recurrent + bias[1], 3, -1)
        z, r = inner(xz + hz), inner(xr + hr)
        n = np.tanh(xn + r * hn)
    else:
        xz, xr, xn = np.split(x @ kernel + bias, 3, -1)
        uz, ur, un = np.split(recurrent, 3, -1)
        z, r = inner(xz + h @ uz), inner(xr + h @ ur)
        n = np.tanh(xn + (r * h) @ un)
    return z * h + (1 - z) * n


def rnn(w, x, h):
    kernel, recurrent, bias = w
    return np.tanh(x @ kernel + h @ recurrent + bias)


def chain(*parts):
    """A stack: (kind, weights) in order; other things are functions between the layers."""

    def step(x, s):
        new, layer = {}, 0
        for part in parts:
            if callable(part):
                x = part(x)
                continue
            kind, w, *rest = part
            if kind == "lstm":
                h, c = lstm(w, x, s[f"lstm{layer}.h"], s[f"lstm{layer}.c"], *rest)
                new[f"lstm{layer}.h"], new[f"lstm{layer}.c"], x = h, c, h
            else:
                x = {"gru": gru, "rnn": rnn}[kind](w, x, s[f"{kind}{layer}.h"], *rest)
                new[f"{kind}{layer}.h"] = x
            layer += 1
        return new

    return step


# --- custom cells ----------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class MinimalCell(layers.Layer):
    """The minimal cell of Keras' documentation."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units))
        self.recurrent = self.add_weight(shape=(self.units, self.units))

    def call(self, inputs, states):
        h = ops.tanh(ops.matmul(inputs, self.kernel) + ops.matmul(states[0], self.recurrent))
        return h, [h]


class PeepholeCell(layers.Layer):
    """Two named states, a residual, a start that is not zero."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.state_size = [units, units]
        self.state_names = ("h", "c")

    def build(self, shape):
        u = self.units
        self.kernel = self.add_weight(shape=(shape[-1] + u, 3 * u))
        self.peep = self.add_weight(shape=(u,))

    def get_initial_state(self, batch_size=None):
        half = ops.full((batch_size, self.units), 0.5)
        return [ops.zeros((batch_size, self.units)), half]

    def call(self, inputs, states):
        h, c = states
        z = ops.matmul(ops.concatenate([inputs, h], -1), self.kernel)
        f, g, o = ops.split(z, 3, -1)
        f = ops.sigmoid(f + self.peep * c)
        c = f * c + (1 - f) * ops.tanh(g)
        h = ops.sigmoid(o + self.peep * c) * c + h / 2
        return h, [h, c]


def minimal(w, x, s):
    return {"minimal0": np.tanh(x @ w[0] + s["minimal0"] @ w[1])}


def peephole(w, x, s):
    h, c = s["peephole0.h"], s["peephole0.c"]
    f, g, o = np.split(np.concatenate([x, h], -1) @ w[0], 3, -1)
    f = sigmoid(f + w[1] * c)
    c = f * c + (1 - f) * np.tanh(g)
    return {"peephole0.h": sigmoid(o + w[1] * c) * c + h / 2, "peephole0.c": c}


# --- models ----------------------------------------------------------------------------------


class Tutorial(keras.Model):
    """The interface of the text generation tutorial: states asked for by an argument."""

    def __init__(self):
        super().__init__()
        self.embedding = layers.Embedding(V, E)
        self.gru = layers.GRU(H, return_sequences=True, return_state=True)
        self.dense = layers.Dense(V)

    def call(self, inputs, states=None, return_state=False, training=False):
        x = self.embedding(inputs, training=training)
        if states is None:
            states = self.gru.get_initial_state(tf.shape(x)[0])
        x, states = self.gru(x, initial_state=states, training=training)
        x = self.dense(x, training=training)
        return (x, states) if return_state else x


class Loop(keras.Model):
    """Cells that the model calls itself, step by step."""

    def __init__(self):
        super().__init__()
        self.embedding = layers.Embedding(V, E)
        self.one, self.two = layers.LSTMCell(H), layers.GRUCell(H)
        self.dense = layers.Dense(V)

    def call(self, inputs):
        x = self.embedding(inputs)
        n = tf.shape(x)[0]
        a, b, outputs = [tf.zeros((n, H))] * 2, [tf.zeros((n, H))], []
        for t in range(x.shape[1]):
            y, a = self.one(x[:, t], a)
            y, b = self.two(y, b)
            outputs.append(self.dense(y))
        return tf.stack(outputs, 1)


def sequential(*parts, shape=(None,), **options):
    return keras.Sequential([keras.Input(shape, **options), *parts])


def stacked(core, **embedding):
    return sequential(layers.Embedding(V, E, **embedding), *core, layers.Dense(V))


def with_states():
    tokens = keras.Input((None,), dtype="int32", name="words")
    h, c = keras.Input((H,), name="h"), keras.Input((H,), name="c")
    x = layers.Embedding(V, E)(tokens)
    x, h2, c2 = layers.LSTM(H, return_sequences=True, return_state=True)(x, initial_state=[h, c])
    return keras.Model([h, tokens, c], [h2, layers.Dense(V)(x), c2])


def returning_states():
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(V, E)(tokens)
    x, h = layers.GRU(H, return_sequences=True, return_state=True)(x)
    return keras.Model(tokens, {"logits": layers.Dense(V)(x), "state": h})


def reading_another_input():
    tokens, extra = keras.Input((None,), dtype="int32"), keras.Input((V,))
    x = layers.LSTM(H, return_sequences=True)(layers.Embedding(V, E)(tokens))
    x = layers.Dense(V)(x) + layers.Reshape((1, V))(extra)
    return keras.Model([tokens, extra], x)


def encoder_decoder():
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(V, E)(tokens)
    _, h, c = layers.LSTM(H, return_state=True)(x)
    x = layers.LSTM(H, return_sequences=True)(x, initial_state=[h, c])
    return keras.Model(tokens, layers.Dense(V)(x))


def with_policy(policy, make):
    before = keras.config.dtype_policy()
    floats = keras.config.floatx()
    keras.config.set_dtype_policy(policy)
    if policy == "float64":
        keras.config.set_floatx(policy)
    try:
        return make()
    finally:
        keras.config.set_dtype_policy(before)
        keras.config.set_floatx(floats)


def build(make, seed=0):
    """The model with seeded weights, biases and starts among them."""
    keras.utils.set_random_seed(seed)
    model = make()
    if not model.weights:
        model(np.zeros((2, 3), np.int32))
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "seed" not in weight.path and "state" not in weight.path.rpartition("/")[2]:
            value = np.asarray(weight)
            weight.assign(value + rng.normal(0, 0.2, value.shape))
    return model


def recurrent_weights(model):
    """Float64 weights of every cell in the order of the layers."""
    found = []
    for layer in model._flatten_layers():
        if isinstance(layer, layers.RNN):
            cells = getattr(layer.cell, "cells", [layer.cell])
            found += [[np.asarray(x, np.float64) for x in cell.weights] for cell in cells]
    return found


def _form(name, make, step, sizes, *, one_hot=False, starts=None, export=None, files=None):
    """A form whose step is `step(weights of the cells, model)`."""

    def write(folder: Path) -> Path:
        from mnemoscope.exporters import tensorflow

        path = folder / "m.onnx"
        source = build(make)
        if files is not None:
            file = files(source, folder)
            source = file if file.is_dir() else tensorflow.load_model(file)
        tensorflow.export(source, path, **(export or {}))
        return path

    def oracle(ids, delays):
        model = build(make)
        table = np.eye(V)
        if not one_hot:
            table = np.asarray(
                next(
                    x for x in model._flatten_layers() if isinstance(x, layers.Embedding)
                ).embeddings,
                np.float64,
            )
        begin = {k: np.zeros(n) for k, n in sizes.items()} | (starts or {})
        return mean_gradients(step(recurrent_weights(model), model), begin, table[ids], delays)

    return Form(name, write, oracle)


def _refused(name, make, message, *, files=None):
    def write(folder: Path) -> Path:
        from mnemoscope.exporters import tensorflow

        source = make()
        if files is not None:
            source = tensorflow.load_model(files(source, folder))
        tensorflow.export(source, folder / "m.onnx")
        return folder / "m.onnx"

    return Form(name, write, None, refused=message)


def _kinds(*kinds):
    return lambda ws, _: chain(*zip(kinds, ws, strict=True))


def _sizes(*kinds):
    sizes = {}
    for k, kind in enumerate(kinds):
        for part in ("h", "c") if kind == "lstm" else ("h",):
            sizes[f"{kind}{k}.{part}"] = H
    return sizes


def _normed(ws, model):
    norm = next(x for x in model._flatten_layers() if isinstance(x, layers.LayerNormalization))
    gamma, beta = (np.asarray(x, np.float64) for x in norm.weights)
    return chain(("lstm", ws[0]), lambda x: layer_norm(x, gamma, beta), ("lstm", ws[1]))


def _loop(_, model):
    one, two = ([np.asarray(x, np.float64) for x in c.weights] for c in (model.one, model.two))
    return chain(("lstm", one), ("gru", two))


def _dense_between(ws, model):
    kernel, bias = (np.asarray(x, np.float64) for x in model.layers[1].weights)
    return chain(lambda x: np.tanh(x @ kernel + bias), ("lstm", ws[0]))


def _save(suffix):
    def write(model, folder):
        path = folder / f"model{suffix}"
        model.save(path)
        return path

    return write


def _export(model, folder):
    model.export(folder / "saved", verbose=False)
    return folder / "saved"


def S(layer, *a, **k):
    return layer(*a, return_sequences=True, **k)


LSTM = _kinds("lstm"), _sizes("lstm")
GRU = _kinds("gru"), _sizes("gru")
RNN = _kinds("rnn"), _sizes("rnn")

FORMS = [
    _form("Keras LSTM", lambda: stacked([S(layers.LSTM, H)]), *LSTM),
    _form("Keras LSTM without bias", lambda: stacked([S(layers.LSTM, H, use_bias=False)]), *LSTM),
    _form("Keras LSTM, unrolled, declared length",
          lambda: sequential(layers.Embedding(V, E), S(layers.LSTM, H, unroll=True),
                             layers.Dense(V), shape=(9,)), *LSTM),
    _form("Keras LSTM, two layers, Dropout and LayerNormalization",
          lambda: stacked([S(layers.LSTM, H, dropout=0.2, recurrent_dropout=0.2),
                           layers.Dropout(0.5), layers.LayerNormalization(),
                           S(layers.LSTM, H)]), _normed, _sizes("lstm", "lstm")),
    _form("Keras LSTM behind TimeDistributed(Dense)",
          lambda: sequential(layers.Embedding(V, E),
                             layers.TimeDistributed(layers.Dense(E, activation="tanh")),
                             S(layers.LSTM, H), layers.TimeDistributed(layers.Dense(V))),
          _dense_between, _sizes("lstm")),
    _form("Keras GRU, reset_after=True", lambda: stacked([S(layers.GRU, H)]), *GRU),
    _form("Keras GRU, reset_after=False",
          lambda: stacked([S(layers.GRU, H, reset_after=False)]), *GRU),
    _form("Keras GRU, hard_sigmoid gates",
          lambda: stacked([S(layers.GRU, H, recurrent_activation="hard_sigmoid")]),
          lambda ws, _: chain(("gru", ws[0], hard_sigmoid)), _sizes("gru")),
    _form("Keras SimpleRNN", lambda: stacked([S(layers.SimpleRNN, H)]), *RNN),
    _form("Keras LSTM, GRU and SimpleRNN in one stack",
          lambda: stacked([S(layers.LSTM, H), S(layers.GRU, H), S(layers.SimpleRNN, H)]),
          _kinds("lstm", "gru", "rnn"), _sizes("lstm", "gru", "rnn")),
    _form("Keras RNN(cell), custom", lambda: stacked([S(layers.RNN, MinimalCell(H))]),
          lambda ws, _: lambda x, s: minimal(ws[0], x, s), {"minimal0": H}),
    _form("Keras RNN(cell), custom, two states, own start",
          lambda: stacked([S(layers.RNN, PeepholeCell(H))]),
          lambda ws, _: lambda x, s: peephole(ws[0], x, s),
          {"peephole0.h": H, "peephole0.c": H}, starts={"peephole0.c": np.full(H, 0.5)}),
    _form("Keras RNN of stacked cells",
          lambda: stacked([S(layers.RNN, [layers.LSTMCell(H), layers.GRUCell(H),
                                          layers.SimpleRNNCell(H)])]),
          _kinds("lstm", "gru", "rnn"), _sizes("lstm", "gru", "rnn")),
    _form("Keras LSTM, stateful",
          lambda: sequential(layers.Embedding(V, E), S(layers.LSTM, H, stateful=True),
                             layers.Dense(V), shape=None, batch_shape=(4, None)), *LSTM),
    _form("Keras GRU, softmax output",
          lambda: sequential(layers.Embedding(V, E), S(layers.GRU, H),
                             layers.Dense(V, activation="softmax")), *GRU),
    _form("Keras LSTM, logits of the last step only",
          lambda: sequential(layers.Embedding(V, E), layers.LSTM(H), layers.Dense(V),
                             layers.Softmax()), *LSTM),
    _form("Keras GRU, functional, states returned", returning_states, *GRU),
    _form("Keras LSTM, functional, initial states as inputs", with_states, *LSTM),
    _form("Keras GRU, subclassed, states by argument", Tutorial, *GRU),
    _form("Keras cells in the model's own loop", Loop, _loop, _sizes("lstm", "gru")),
    _form("Keras LSTM, mask_zero", lambda: stacked([S(layers.LSTM, H)], mask_zero=True), *LSTM),
    _form("Keras LSTM, one-hot by CategoryEncoding",
          lambda: sequential(layers.CategoryEncoding(V, output_mode="one_hot"),
                             S(layers.LSTM, H), layers.Dense(V)), *LSTM, one_hot=True),
    _form("Keras GRU, one-hot by Lambda",
          lambda: sequential(layers.Lambda(lambda x: tf.one_hot(x, V)), S(layers.GRU, H),
                             layers.Dense(V), dtype="int32"), *GRU, one_hot=True),
    _form("Keras LSTM, one-hot vectors as input",
          lambda: sequential(layers.LSTM(H), layers.Dense(V, activation="softmax"),
                             shape=(40, V)), *LSTM, one_hot=True),
    _form("Keras LSTM, mixed_float16",
          lambda: with_policy("mixed_float16", lambda: stacked([S(layers.LSTM, H)])), *LSTM),
    _form("Keras GRU, float64",
          lambda: with_policy("float64", lambda: stacked([S(layers.GRU, H)])), *GRU),
    _form("Keras LSTM from a .keras file", lambda: stacked([S(layers.LSTM, H)]), *LSTM,
          files=_save(".keras")),
    _form("Keras GRU from an H5 file", lambda: stacked([S(layers.GRU, H)]), *GRU,
          files=_save(".h5")),
    _refused("Keras Bidirectional",
             lambda: stacked([layers.Bidirectional(S(layers.LSTM, H))]), "is bidirectional"),
    _refused("Keras go_backwards", lambda: stacked([S(layers.GRU, H, go_backwards=True)]),
             "reads the text backwards"),
    _refused("Keras without a recurrent layer",
             lambda: stacked([layers.Dense(H)]), "no recurrent layer"),
    _refused("Keras with an input that is no state", reading_another_input,
             "in other ways than as an initial state"),
    _refused("Keras encoder and decoder", encoder_decoder, "depends on the tokens"),
    _refused("Keras layer that mixes the time steps",
             lambda: stacked([layers.Conv1D(E, 3, padding="causal"), S(layers.LSTM, H)]),
             "differs from its source"),
    _refused("Keras Lambda in a .keras file",
             lambda: sequential(layers.Lambda(lambda x: tf.one_hot(x, V)), S(layers.GRU, H),
                                layers.Dense(V), dtype="int32"),
             "Lambda.*FILE.py:OBJECT", files=_save(".keras")),
    _form("Keras LSTM in a SavedModel folder", lambda: stacked([S(layers.LSTM, H)]), *LSTM,
          files=_export),
    _form("Keras GRU in a SavedModel folder", lambda: stacked([S(layers.GRU, H)]), *GRU,
          files=_export, export={"state_names": ["gru0.h"]}),
    _form("Keras SimpleRNN in a SavedModel folder", lambda: stacked([S(layers.SimpleRNN, H)]),
          *RNN, files=_export, export={"state_names": ["rnn0.h"]}),
    _form("Keras LSTM and GRU in a SavedModel folder",
          lambda: stacked([S(layers.LSTM, H), S(layers.GRU, H)]), _kinds("lstm", "gru"),
          _sizes("lstm", "gru"), files=_export,
          export={"state_names": ["lstm0.h", "lstm0.c", "gru1.h"]}),
    _refused("Keras custom cell in a .keras file",
             lambda: stacked([S(layers.RNN, MinimalCell(H))]),
             "not a part of Keras.*FILE.py:OBJECT", files=_save(".keras")),
]  # fmt: skip
