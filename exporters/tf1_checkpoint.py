"""Write the recurrent language model in a TensorFlow 1 checkpoint as a memory model.

A checkpoint holds variables and no graph. The cells of ``tf.nn.rnn_cell`` (TensorFlow 1) are known
by the names and shapes of their variables, so that the step can be written from them:

- BasicRNNCell: h = tanh([x, h]·kernel + bias).
- BasicLSTMCell, LSTMCell, LSTMBlockCell, LSTMBlockFusedCell: [i, j, f, o] = [x, h]·kernel + bias;
  c = σ(f + forget_bias)·c + σ(i)·tanh(j), h = σ(o)·tanh(c); with peepholes (w_i_diag, w_f_diag of
  the old c, w_o_diag of the new one) and a projection of h where the checkpoint has them.
- GRUCell: [r, u] = σ([x, h]·gates/kernel + gates/bias);
  n = tanh([x, r·h]·candidate/kernel + candidate/bias), h = u·h + (1 − u)·n.

Source: the documentation and the published code of ``tensorflow/python/ops/rnn_cell_impl.py``,
release 1.15, and TensorFlow's operators LSTMBlockCell and BlockLSTM. The forget bias (1.0 unless
told otherwise) is added at run time and is in no variable.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from mnemoscope.analyzer._version import __version__
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import Kind, Level, Roles, State, Vocabulary, rename_states

from ._embedding import EMBEDDING
from ._memory_model import build_memory_model, hash_weights, require_writable, save
from ._parity import Feeds, check_parity
from ._report import Report
from ._tf1_cells import Cell, find_cells, run_cell
from ._tf1_graph import step_graph
from ._vocabulary import VocabularyOptions

__all__ = ["Report", "export"]

# What optimisers and averaging leave beside the variables that they belong to.
_SLOTS = (
    "Adam", "Adam_1", "Momentum", "Adagrad", "Adadelta", "Adadelta_1", "RMSProp", "RMSProp_1",
    "Ftrl", "Ftrl_1", "ExponentialMovingAverage",
)  # fmt: skip
_EMBEDDING_NAMES = ("embedding", "embeddings", "embedding_matrix", "word_embedding", "embed")


def export(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    vocabulary: str | os.PathLike[str] | Sequence[str] | Vocabulary | None = None,
    level: Level | None = None,
    unknown: str | None = None,
    end_of_line: str | None = None,
    forget_bias: float | None = None,
    embedding: str | None = None,
    output_weights: str | None = None,
    output_bias: str | None = None,
    scope: str | None = None,
    state_names: Sequence[str] | None = None,
    seed: int | None = None,
    tolerance: float | None = None,
) -> Report:
    """Write the model in `checkpoint` as a memory model; None always means: find out.

    Args:
        checkpoint: Prefix of the checkpoint's files (``model.ckpt-100``), one of the files, or a
            folder with a file ``checkpoint``.
        path: The ONNX file to write.
        vocabulary: File with one token a line, or the tokens, ``[V]``.
        level: ``word`` or ``char``.
        unknown: Token that stands for all that the vocabulary lacks.
        end_of_line: Token that ends a line.
        forget_bias: What the LSTM cells add to their forget gate; None is 1.0.
        embedding: Variable ``[V, E]``; ``one-hot`` where the cells read one-hot vectors.
        output_weights: Variable ``[H, V]`` or ``[V, H]``.
        output_bias: Variable ``[V]``; ``none`` for no bias.
        scope: Only variables whose names begin so, where the checkpoint holds several models;
            several beginnings are separated by commas, and cells under different ones are a stack
            in that order.
        state_names: One name per state component, in the order that they are found.
        seed: Of the random tokens and states of the tests; None is 0.
        tolerance: Largest difference from the formulas above; None is 1e-5 for float32.

    Returns:
        What was found.

    Raises:
        ModelError: It is no checkpoint, its variables are no known cells, what belongs to what
            cannot be told, or a variable is left over; nothing is written then.
    """
    target = require_writable(path)
    beginnings = () if scope is None else tuple(filter(None, scope.split(",")))
    variables = _read(checkpoint, beginnings)
    digest = hash_weights(variables.items())
    cells = find_cells(variables, beginnings)
    rest = {n: v for n, v in variables.items() if not any(n in cell.used for cell in cells)}
    table, table_name = _find_embedding(rest, cells, embedding)
    weights, weights_name = _find_output(rest, cells[-1], table, table_name, output_weights)
    size = weights.shape[1]
    if table is None and cells[0].input_size != size:
        raise ModelError(
            f"The first cell reads {cells[0].input_size} numbers and there are {size} logits; "
            "expected one-hot vectors, as wide as the logits, or an embedding: name it with "
            "--embedding."
        )
    table = np.eye(size, dtype=weights.dtype) if table is None else table
    if table.shape[0] < size:
        raise ModelError(
            f"The embedding {table_name!r} has {table.shape[0]} rows, the logits are {size} wide; "
            "expected a row for every token. Name others with --embedding and --output-weights."
        )
    table = table[:size]
    bias, bias_name = _find_bias(rest, size, weights_name, output_bias)
    unused = sorted(set(rest) - {table_name, weights_name, bias_name})
    _require_all_used(rest, unused, size, output_bias)
    bias_of_gate = 1.0 if forget_bias is None else forget_bias
    notes: list[str] = []
    words = VocabularyOptions(vocabulary, level, unknown, end_of_line).make(size, notes=notes)
    states = _describe(cells, state_names)
    roles = Roles(
        tokens="tokens",
        embedding=EMBEDDING,
        states=states,
        logits="logits",
        normalized=False,
        source={
            "framework": "tensorflow1",
            "framework_version": tf.__version__,
            "exporter_version": __version__,
            "weights_sha256": digest,
        },
    )
    graph = step_graph(cells, table, weights, bias, bias_of_gate)
    names = [state.input for state in states]
    outputs = [state.output for state in states]
    written = build_memory_model(
        graph,
        roles,
        words,
        inputs={f"{name}_in": name for name in ("tokens", *names)},
        outputs={name: f"{name}_out" for name in ("logits", *outputs)},
    )

    def reference(feeds: Feeds) -> Feeds:
        x = table[feeds["tokens"][:, 0]]
        results: Feeds = {}
        given = iter(zip(names, outputs, strict=True))
        for cell in cells:
            own = [next(given) for _ in cell.sizes]
            x, new = run_cell(cell, x, [feeds[i] for i, _ in own], bias_of_gate)
            results.update(zip([o for _, o in own], new, strict=True))
        results["logits"] = (x @ weights + bias)[:, None]
        return results

    parity = check_parity(
        written,
        reference,
        vocabulary_size=size,
        seed=seed or 0,
        tolerance=tolerance,
    )
    save(written, target)
    notes += [
        f"Embedding: {table_name}; output: {weights_name}, bias {bias_name}.",
        *(f"{cell.kind}{k}: {cell.scope or '(no scope)'}." for k, cell in enumerate(cells)),
    ]
    if any(cell.kind == "lstm" for cell in cells):
        notes.append(
            f"Forget bias {bias_of_gate:g}: no variable holds it; it must be what the training "
            "used (1.0 is TensorFlow's default)."
        )
    if unused:
        notes.append(f"Not used: {', '.join(unused)}.")
    return Report(
        path=str(target),
        tokens="[batch, time]",
        logits="[N, T, V]",
        vocabulary_size=size,
        embedding_size=table.shape[1],
        normalized=False,
        states=states,
        initial="zeros",
        route="the formulas of tf.nn.rnn_cell",
        parity=parity,
        notes=tuple(notes),
    )


def _require_all_used(
    rest: dict[str, np.ndarray], unused: Sequence[str], size: int, output_bias: str | None
) -> None:
    """Raise ModelError for a variable that is left over and may be a part of the model.

    A number alone is a learning rate or the like; a bias that was declined is known.
    """
    lost = {n: rest[n] for n in unused if rest[n].ndim > 0}
    if output_bias == "none":
        lost = {n: v for n, v in lost.items() if v.shape != (size,)}
    if lost:
        raise ModelError(
            f"The model is an embedding, cells and an output, and the checkpoint holds more: "
            f"{_list(lost)}. A layer that is left out makes a wrong model. If they are no part of "
            "the model, choose what is by the beginnings of the names, separated by commas: "
            "--scope rnn/,embedding,softmax."
        )


def _read(checkpoint: str | os.PathLike[str], beginnings: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The floating-point variables of a checkpoint, without those of its optimiser."""
    text = os.fspath(checkpoint)
    prefix = text
    if Path(text).is_dir():
        prefix = tf.train.latest_checkpoint(text) or ""
        if not prefix:
            raise ModelError(
                f"The folder {text!r} has no file 'checkpoint' that names one; name the "
                "checkpoint itself, such as model.ckpt-100."
            )
    for ending in (".index", ".meta"):
        prefix = prefix.removesuffix(ending)
    if ".data-0" in prefix:
        prefix = prefix[: prefix.rindex(".data-0")]
    if not Path(f"{prefix}.index").is_file() and not Path(prefix).is_file():
        raise ModelError(
            f"There is no checkpoint {text!r}; expected the prefix of its files, such as "
            "model.ckpt-100 for model.ckpt-100.index and model.ckpt-100.data-00000-of-00001."
        )
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = reader.get_variable_to_shape_map()
        types = reader.get_variable_to_dtype_map()
        found = {
            name: reader.get_tensor(name)
            for name in sorted(shapes)
            if types[name].is_floating and not _is_slot(name, shapes)
        }
    except Exception as error:  # TensorFlow's readers raise errors without a common base
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise ModelError(f"{text!r} is no checkpoint that TensorFlow can read: {first}") from error
    if any("_CHECKPOINTABLE_OBJECT_GRAPH" in name for name in shapes):
        raise ModelError(
            f"{text!r} is a checkpoint of TensorFlow 2: its names are those of Python objects. "
            "Build the model in a FILE.py, load it there, and use: mnemoscope export keras "
            "FILE.py:OBJECT."
        )
    if beginnings:
        for start in beginnings:
            if not any(n.startswith(start) for n in found):
                raise ModelError(f"No variable begins with {start!r}; there are {_list(found)}.")
        found = {n: v for n, v in found.items() if n.startswith(beginnings)}
    half = [n for n, v in found.items() if v.dtype.itemsize < 4]
    return {n: v.astype(np.float32) if n in half else v for n, v in found.items()}


def _is_slot(name: str, names: dict[str, list[int]]) -> bool:
    base, _, last = name.rpartition("/")
    if last in ("beta1_power", "beta2_power"):
        return True
    if base in names and (last in _SLOTS or names[base] == names[name]):
        return True  # optimisers of any name keep what they need under a variable's name
    # Made inside a variable scope: Train/rnn/kernel/Adam.
    parts = base.split("/")
    return last in _SLOTS and any("/".join(parts[k:]) in names for k in range(1, len(parts)))


def _find_embedding(
    rest: dict[str, np.ndarray], cells: Sequence[Cell], asked: str | None
) -> tuple[np.ndarray | None, str]:
    """The lookup, or None for one-hot vectors, and what to call it."""
    size = cells[0].input_size
    if asked == "one-hot":
        return None, "one-hot vectors"
    matrices = {n: v for n, v in rest.items() if v.ndim == 2}
    fits = {n: v for n, v in matrices.items() if v.shape[1] == size}
    if asked is not None:
        return _named(rest, fits, asked, f"[V, {size}]"), asked
    names = [n for n in fits if n.rpartition("/")[2].lower() in _EMBEDDING_NAMES]
    names = names or [n for n in fits if "embed" in n.lower()]
    if not names:
        output = [n for n, v in matrices.items() if {*v.shape} == {cells[-1].output_size, size}]
        if len(matrices) == 1 and output:
            return None, "one-hot vectors"
        names = list(fits)
    if len(names) != 1:
        raise ModelError(
            f"Expected one variable [V, {size}] as the embedding, found "
            f"{', '.join(names) or 'none'}; name it with --embedding NAME (or one-hot). The "
            f"checkpoint has {_list(rest)}."
        )
    return fits[names[0]], names[0]


def _find_output(
    rest: dict[str, np.ndarray],
    last: Cell,
    table: np.ndarray | None,
    table_name: str,
    asked: str | None,
) -> tuple[np.ndarray, str]:
    width = last.output_size
    fits = {n: v for n, v in rest.items() if v.ndim == 2 and width in v.shape and n != table_name}
    if asked is None:
        if table is not None:  # as many logits as the lookup has rows
            tight = {n: v for n, v in fits.items() if {*v.shape} == {width, table.shape[0]}}
            fits = tight or fits
        names = list(fits)
        if not names and table is not None and table.shape[1] == width:
            return np.ascontiguousarray(table.T), f"{table_name} (tied)"
        if len(names) != 1:
            raise ModelError(
                f"Expected one variable [{width}, V] as the output's weights, found "
                f"{', '.join(names) or 'none'}; name it with --output-weights NAME. The "
                f"checkpoint has {_list(rest)}."
            )
        asked = names[0]
    if table is not None and asked == table_name:
        fits = {**fits, table_name: table}
    value = _named(rest, fits, asked, f"[{width}, V] or [V, {width}]")
    upright = value.shape[0] == width
    if table is not None and value.shape == (width, width):
        upright = asked != table_name
    elif table is not None and value.shape[0] == table.shape[0] and value.shape[1] == width:
        upright = False
    return (value if upright else np.ascontiguousarray(value.T)), asked


def _find_bias(
    rest: dict[str, np.ndarray], size: int, weights_name: str, asked: str | None
) -> tuple[np.ndarray, str]:
    fits = {n: v for n, v in rest.items() if v.shape == (size,)}
    nothing = np.zeros(size, np.float32)
    if asked == "none":
        return nothing, "none"
    if asked is not None:
        return _named(rest, fits, asked, f"[{size}]"), asked
    scope = weights_name.rpartition("/")[0]
    near = [n for n in fits if n.rpartition("/")[0] == scope] or list(fits)
    if len(near) > 1:
        raise ModelError(
            f"Several variables can be the output's bias: {', '.join(near)}; name one with "
            "--output-bias NAME (or none)."
        )
    return (fits[near[0]], near[0]) if near else (nothing, "none")


def _named(
    rest: dict[str, np.ndarray], fits: dict[str, np.ndarray], name: str, shape: str
) -> np.ndarray:
    if name not in rest:
        raise ModelError(f"There is no variable {name!r}; the checkpoint has {_list(rest)}.")
    if name not in fits:
        raise ModelError(
            f"The variable {name!r} has the shape {list(rest[name].shape)}; expected {shape}."
        )
    return fits[name]


def _describe(cells: Sequence[Cell], names: Sequence[str] | None) -> tuple[State, ...]:
    fields: list[tuple[str, Kind, int]] = []
    kinds: dict[str, Kind] = {"h": "hidden", "c": "cell"}
    for layer, cell in enumerate(cells):
        fields += [(f"{cell.kind}{layer}.{part}", kinds[part], layer) for part in cell.sizes]
    states = [
        State(label, f"state_{k}", f"state_{k}_next", kind, layer, 0)
        for k, (label, kind, layer) in enumerate(fields)
    ]
    return rename_states(states, names)


def _list(variables: dict[str, np.ndarray]) -> str:
    shown = [f"{n} {list(v.shape)}" for n, v in sorted(variables.items())]
    more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
    return (", ".join(shown[:12]) or "nothing besides") + more
