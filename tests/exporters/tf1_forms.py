"""Checkpoints as TensorFlow 1 wrote them, and the steps of their cells by hand.

Keras 3 took ``tf.compat.v1.nn.rnn_cell`` away, so that the graphs here make the variables under
the names and shapes that those cells gave them, and ``tf.compat.v1.train.Saver`` writes them. The
names are those of checkpoints of that time: BasicLSTMCell in a MultiRNNCell gives
``rnn/multi_rnn_cell/cell_0/basic_lstm_cell/kernel``.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from complex_step import mean_gradients, sigmoid
from forms import Form

v1 = tf.compat.v1
E, H, P, V = 6, 8, 5, 11


@dataclass(frozen=True)
class Layer:
    """A cell's kind, its scope, and what is special about it."""

    kind: str
    scope: str
    forget_bias: float = 1.0
    peepholes: bool = False
    projection: int | None = None
    block: bool = False
    words: tuple[str, str] = ("kernel", "bias")

    @property
    def width(self):
        return self.projection or H


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    layers: tuple[Layer, ...]
    embedding: str | None = "Model/embedding"
    output: tuple[str, str | None] = ("Model/softmax_w", "Model/softmax_b")
    transposed: bool = False
    adam: bool = False

    def shapes(self):
        size = E if self.embedding else V
        shapes = {self.embedding: (V, E)} if self.embedding else {}
        for layer in self.layers:
            kernel, bias = layer.words
            rows, s = size + layer.width, layer.scope
            if layer.kind == "gru":
                shapes |= {
                    f"{s}/gates/{kernel}": (rows, 2 * H), f"{s}/gates/{bias}": (2 * H,),
                    f"{s}/candidate/{kernel}": (rows, H), f"{s}/candidate/{bias}": (H,),
                }  # fmt: skip
            else:
                n = 4 * H if layer.kind == "lstm" else H
                shapes |= {f"{s}/{kernel}": (rows, n), f"{s}/{bias}": (n,)}
            if layer.peepholes:
                shapes |= {f"{s}/w_{g}_diag": (H,) for g in "ifo"}
            if layer.projection:
                shapes[f"{s}/projection/{kernel}"] = (H, layer.projection)
            size = layer.width
        weights, bias = self.output
        shapes[weights] = (V, size) if self.transposed else (size, V)
        if bias:
            shapes[bias] = (V,)
        return shapes

    def weights(self):
        rng = np.random.default_rng(3)
        return {
            n: rng.normal(0, 0.9 / np.sqrt(s[0]) if len(s) == 2 else 0.2, s).astype(np.float32)
            for n, s in self.shapes().items()
        }


def write(checkpoint: Checkpoint, folder: Path, ids: np.ndarray):
    """Save `checkpoint` with TensorFlow's v1 saver; the v1 graph's logits and states for `ids`.

    Returns:
        Prefix of the files, logits ``[batch, time, V]``, last states in order, h before c.
    """
    with v1.Graph().as_default(), v1.Session() as session:
        w = {
            n: v1.get_variable(n, initializer=value, use_resource=False)
            for n, value in checkpoint.weights().items()
        }
        x = tf.one_hot(ids, V)
        if checkpoint.embedding:
            x = tf.nn.embedding_lookup(w[checkpoint.embedding], ids)
        outputs = tf.unstack(x, axis=1)
        states = []
        for layer in checkpoint.layers:
            outputs, last = _unrolled(layer, w, outputs, len(ids))
            states += last
        top = tf.stack(outputs, 1)
        kernel = w[checkpoint.output[0]]
        logits = tf.einsum("bth,vh->btv" if checkpoint.transposed else "bth,hv->btv", top, kernel)
        if checkpoint.output[1]:
            logits = logits + w[checkpoint.output[1]]
        if checkpoint.adam:
            v1.get_variable("global_step", initializer=np.int64(7), trainable=False)
            v1.train.AdamOptimizer().minimize(tf.reduce_mean(logits))
        session.run(v1.global_variables_initializer())
        prefix = v1.train.Saver().save(session, str(folder / "model.ckpt"), global_step=100)
        values, last = session.run([logits, states])
    return prefix, values, last


def _unrolled(layer, w, inputs, batch):
    kernel, bias = layer.words
    s = layer.scope
    h, c = tf.zeros((batch, layer.width)), tf.zeros((batch, H))
    outputs = []
    for x in inputs:
        both = tf.concat([x, h], 1)
        if layer.block:  # TensorFlow's own operator
            none = tf.zeros(H)
            peep = [w[f"{s}/w_{g}_diag"] if layer.peepholes else none for g in "ifo"]
            _, c, _, _, _, _, h = tf.raw_ops.LSTMBlockCell(
                x=x, cs_prev=c, h_prev=h, w=w[f"{s}/{kernel}"], wci=peep[0], wcf=peep[1],
                wco=peep[2], b=w[f"{s}/{bias}"], forget_bias=layer.forget_bias, cell_clip=-1.0,
                use_peephole=layer.peepholes,
            )  # fmt: skip
        elif layer.kind == "rnn":
            h = tf.tanh(v1.nn.xw_plus_b(both, w[f"{s}/{kernel}"], w[f"{s}/{bias}"]))
        elif layer.kind == "gru":
            gates = v1.nn.xw_plus_b(both, w[f"{s}/gates/{kernel}"], w[f"{s}/gates/{bias}"])
            r, u = tf.split(tf.sigmoid(gates), 2, 1)
            new = tf.tanh(
                v1.nn.xw_plus_b(tf.concat([x, r * h], 1), w[f"{s}/candidate/{kernel}"],
                                w[f"{s}/candidate/{bias}"])
            )  # fmt: skip
            h = u * h + (1 - u) * new
        else:
            gates = v1.nn.xw_plus_b(both, w[f"{s}/{kernel}"], w[f"{s}/{bias}"])
            i, j, f, o = tf.split(gates, 4, 1)
            peep = {g: w[f"{s}/w_{g}_diag"] if layer.peepholes else 0.0 for g in "ifo"}
            new = c * tf.sigmoid(f + layer.forget_bias + peep["f"] * c)
            c = new + tf.sigmoid(i + peep["i"] * c) * tf.tanh(j)
            h = tf.sigmoid(o + peep["o"] * c) * tf.tanh(c)
            if layer.projection:
                h = tf.matmul(h, w[f"{s}/projection/{kernel}"])
        outputs.append(h)
    return outputs, [h, c] if layer.kind == "lstm" else [h]


def step_by_hand(checkpoint: Checkpoint):
    """The step in numpy, any dtype, split into its parts where the cells join theirs."""
    w = {n: x.astype(np.float64) for n, x in checkpoint.weights().items()}

    def step(x, s):
        new = {}
        for k, layer in enumerate(checkpoint.layers):
            kernel, bias = layer.words
            scope = layer.scope
            if layer.kind == "gru":
                h, n = s[f"gru{k}.h"], x.shape[-1]
                g, b = w[f"{scope}/gates/{kernel}"], w[f"{scope}/gates/{bias}"]
                d, e = w[f"{scope}/candidate/{kernel}"], w[f"{scope}/candidate/{bias}"]
                r = sigmoid(x @ g[:n, :H] + h @ g[n:, :H] + b[:H])
                u = sigmoid(x @ g[:n, H:] + h @ g[n:, H:] + b[H:])
                x = h + (1 - u) * (np.tanh(x @ d[:n] + (r * h) @ d[n:] + e) - h)
                new[f"gru{k}.h"] = x
                continue
            m, b = w[f"{scope}/{kernel}"], w[f"{scope}/{bias}"]
            n = x.shape[-1]
            if layer.kind == "rnn":
                x = new[f"rnn{k}.h"] = np.tanh(x @ m[:n] + s[f"rnn{k}.h"] @ m[n:] + b)
                continue
            h, c = s[f"lstm{k}.h"], s[f"lstm{k}.c"]
            i, j, f, o = (
                x @ m[:n, q * H : q * H + H] + h @ m[n:, q * H : q * H + H] + b[q * H : q * H + H]
                for q in range(4)
            )
            if layer.peepholes:
                i, f = i + c * w[f"{scope}/w_i_diag"], f + c * w[f"{scope}/w_f_diag"]
            c = sigmoid(i) * np.tanh(j) + sigmoid(f + layer.forget_bias) * c
            if layer.peepholes:
                o = o + c * w[f"{scope}/w_o_diag"]
            x = np.tanh(c) * sigmoid(o)
            if layer.projection:
                x = x @ w[f"{scope}/projection/{kernel}"]
            new[f"lstm{k}.h"], new[f"lstm{k}.c"] = x, c
        return new

    return step


def sizes(checkpoint: Checkpoint):
    found = {}
    for k, layer in enumerate(checkpoint.layers):
        found[f"{layer.kind}{k}.h"] = layer.width
        if layer.kind == "lstm":
            found[f"{layer.kind}{k}.c"] = H
    return found


def _form(name, checkpoint, **options):
    def export(folder: Path) -> Path:
        from mnemoscope.exporters import tf1_checkpoint

        prefix, _, _ = write(checkpoint, folder, np.zeros((1, 2), np.int64))
        tf1_checkpoint.export(prefix, folder / "m.onnx", **options)
        return folder / "m.onnx"

    def oracle(ids, delays):
        table = np.eye(V)
        if checkpoint.embedding:
            table = checkpoint.weights()[checkpoint.embedding].astype(np.float64)
        starts = {k: np.zeros(n) for k, n in sizes(checkpoint).items()}
        return mean_gradients(step_by_hand(checkpoint), starts, table[ids], delays)

    return Form(name, export, oracle)


_MULTI = "Model/RNN/multi_rnn_cell/cell_{}/{}"

CHECKPOINTS = {
    "TensorFlow 1 BasicLSTMCell": (Checkpoint((Layer("lstm", "rnn/basic_lstm_cell"),)), {}),
    "TensorFlow 1 BasicLSTMCell, forget bias 0": (
        Checkpoint((Layer("lstm", "rnn/basic_lstm_cell", 0.0),)), {"forget_bias": 0.0}),
    "TensorFlow 1 MultiRNNCell of BasicLSTMCell, with Adam": (
        Checkpoint(tuple(Layer("lstm", _MULTI.format(k, "basic_lstm_cell")) for k in range(2)),
                   adam=True), {}),
    "TensorFlow 1 GRUCell": (Checkpoint((Layer("gru", "rnn/gru_cell"),)), {}),
    "TensorFlow 1 MultiRNNCell of GRUCell": (
        Checkpoint(tuple(Layer("gru", _MULTI.format(k, "gru_cell")) for k in range(2)),
                   embedding="embed_matrix", output=("dense/kernel", "dense/bias")), {}),
    "TensorFlow 1 BasicRNNCell": (Checkpoint((Layer("rnn", "rnn/basic_rnn_cell"),)), {}),
    "TensorFlow 1 LSTMCell, peepholes and projection": (
        Checkpoint((Layer("lstm", "rnn/lstm_cell", peepholes=True, projection=P),)), {}),
    "TensorFlow 1 three kinds of cells": (
        Checkpoint((Layer("lstm", _MULTI.format(0, "lstm_cell")),
                    Layer("gru", _MULTI.format(1, "gru_cell")),
                    Layer("rnn", _MULTI.format(2, "basic_rnn_cell")))), {}),
    "TensorFlow 1.0 names, one-hot input": (
        Checkpoint((Layer("lstm", "rnn/basic_lstm_cell", words=("weights", "biases")),),
                   embedding=None, output=("W", None)), {}),
    "TensorFlow 1 GRUCell, output by rows": (
        Checkpoint((Layer("gru", "rnn/gru_cell"),), embedding="words", output=("nce_w", "nce_b"),
                   transposed=True),
        {"embedding": "words", "output_weights": "nce_w", "output_bias": "nce_b"}),
}  # fmt: skip

FORMS = [_form(name, c, **options) for name, (c, options) in CHECKPOINTS.items()]
