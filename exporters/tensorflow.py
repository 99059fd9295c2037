"""Write a Keras language model as a memory model.

The model is run to find its recurrent layers. Then each layer's loop over time is replaced by one
call of its cell, the rest runs at time 1, and that step is converted, cut at the embedding, and
compared with the model's own loops over whole sequences before anything is written.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
from keras import tree
from mnemoscope.analyzer._version import __version__
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import Level, Roles, State, Vocabulary, rename_states

from ._embedding import EMBEDDING, EmbeddingError
from ._keras_interface import Interface, discover, prepared
from ._keras_load import load_model, load_weights
from ._keras_recurrent import Recurrence, all_layers, components, replaced
from ._keras_saved import export_saved_model, is_saved_model
from ._keras_trace import trace
from ._memory_model import build_memory_model, hash_weights, require_writable, save
from ._parity import LONG, Feeds, Parity, check_sequences
from ._report import Report
from ._shipped_output import SMALLEST
from ._vocabulary import VocabularyOptions

__all__ = ["Report", "export", "load_model", "load_weights"]


def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    vocabulary: str | os.PathLike[str] | Sequence[str] | Vocabulary | None = None,
    level: Level | None = None,
    unknown: str | None = None,
    end_of_line: str | None = None,
    tokens: str | None = None,
    state_names: Sequence[str] | None = None,
    embedding: str | None = None,
    vocabulary_size: int | None = None,
    seed: int | None = None,
    tolerance: float | None = None,
) -> Report:
    """Write `model` as a memory model; None always means: find out.

    The model takes token ids ``[batch, time]`` (or one-hot vectors ``[batch, time, V]``), perhaps
    initial states besides, and gives logits or probabilities ``[batch, time, V]``, or those of
    the last step ``[batch, V]``, perhaps states besides. Its weights stay as they are. Layers
    that compute in half precision compute in float32; dropout is off; ``stateful`` layers start
    from zeros. Probabilities become log-probabilities.

    Args:
        model: The language model: Sequential, functional or subclassed; or the path of a
            SavedModel folder, whose states are found as in a shipped ONNX file (`shipped`).
        path: The ONNX file to write.
        weights: File to load weights from first; see `load_weights`.
        vocabulary: File with one token a line, or the tokens, ``[V]``.
        level: ``word`` or ``char``.
        unknown: Token that stands for all that the vocabulary lacks.
        end_of_line: Token that ends a line.
        tokens: Name of the model's input that takes the tokens.
        state_names: One name per state component, in the order that they are found.
        embedding: Name of the layer that returns what the recurrent core reads, or of a tensor
            of the converted graph.
        vocabulary_size: V, where several outputs could be the logits.
        seed: Of the random tokens and states of the tests; None is 0.
        tolerance: Largest difference from the model, relative to how much each tensor varies
            (`Parity`); None is 1e-5 for float32 and 1e-12 for float64.

    Returns:
        What was found.

    Raises:
        ModelError: The model, its weights or its vocabulary cannot be used, or the written file
            would not compute what the model computes; nothing is written then.
    """
    if keras.backend.backend() != "tensorflow":
        raise ModelError(
            f"Keras runs on {keras.backend.backend()} here; expected TensorFlow. Set the "
            "environment variable KERAS_BACKEND=tensorflow."
        )
    said = VocabularyOptions(vocabulary, level, unknown, end_of_line)
    seed = seed or 0
    if is_saved_model(model):
        _refuse("a SavedModel", weights=weights, tokens=tokens, embedding=embedding)
        return export_saved_model(model, path, said, state_names, seed=seed, tolerance=tolerance)
    if not isinstance(model, keras.layers.Layer):
        raise ModelError(f"Expected a Keras model, found a {type(model).__name__}.")
    target = require_writable(path)
    notes: list[str] = []
    recurrence = Recurrence(model)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # A layer that declares a mask warns when its neighbour does not hand it on.
        warnings.filterwarnings("ignore", "Layer .* does not support masking")
        warnings.filterwarnings("ignore", message="The structure of `inputs` doesn't match")
        stack.enter_context(prepared(model))
        options: dict[str, Any] = {"tokens": tokens, "vocabulary_size": vocabulary_size}
        interface = discover(model, recurrence, **options, seed=seed)
        if weights is not None:  # only a model that has run has all its weights
            load_weights(model, weights)
            interface = discover(model, recurrence, **options, seed=seed)
        digest = hash_weights(_arrays(model))
        words = said.make(interface.vocabulary_size, keras_reserved=True, notes=notes)
        notes += _masking_notes(interface, words)
        states = _find_states(interface, recurrence, state_names, seed)
        _require_no_other_input(interface, recurrence, seed)
        roles = Roles(
            tokens="tokens",
            embedding=EMBEDDING,
            states=states,
            logits="logits",
            normalized=interface.normalized,
            source={
                "framework": "keras",
                "framework_version": f"{keras.__version__} on tensorflow {tf.__version__}",
                "exporter_version": __version__,
                "weights_sha256": digest,
            },
        )
        written = _convert(interface, recurrence, roles, words, embedding)
        parity = _compare(written, interface, recurrence, roles, seed, tolerance)
    save(written, target)
    size = next(o for o in written.graph.output if o.name == EMBEDDING)
    others = f", inputs {', '.join(interface.others)}" if interface.others else ""
    return Report(
        path=str(target),
        tokens="[batch, time]" if interface.one_hot is None else "[batch, time, V] one-hot",
        logits="[N, T, V]" if interface.time else "[N, V]",
        vocabulary_size=interface.vocabulary_size,
        embedding_size=size.type.tensor_type.shape.dim[-1].dim_value,
        normalized=interface.normalized,
        states=states,
        initial=("as the model starts" if any(s.initial for s in states) else "zeros") + others,
        route="one call of each cell",
        parity=parity,
        notes=tuple(notes),
    )


def _find_states(
    interface: Interface, recurrence: Recurrence, names: Sequence[str] | None, seed: int
) -> tuple[State, ...]:
    """Describe every state tensor: input ``state_K``, output ``state_K_next``, all batch first."""
    random = np.random.default_rng(seed)
    starts = []
    for _ in range(2):
        ids = tf.constant(random.choice(interface.ids, (3, 2)), tf.int64)
        with recurrence.running():
            interface.outputs(ids)
        calls = recurrence.calls
        starts.append([np.asarray(x) for call in calls for x in tree.flatten(call.before)])
    states = []
    for k, (component, one, two) in enumerate(zip(components(calls), *starts, strict=True)):
        label = component.name
        if one.ndim < 2 or one.shape[0] != 3:
            raise ModelError(
                f"The state {label!r} has the shape {list(one.shape)} for 3 streams; expected "
                "[batch, ...], a vector per stream."
            )
        if not (
            np.array_equal(one, two) and np.array_equal(one, np.broadcast_to(one[:1], one.shape))
        ):
            raise ModelError(
                f"The initial state {label!r} depends on the tokens; expected a constant, or an "
                "input of the model. An encoder that reads a text first cannot be exported: export "
                "the part that reads the text whose memory you ask for."
            )
        initial = tuple(float(x) for x in one[0].ravel()) if np.any(one) else None
        states.append(
            State(
                label,
                f"state_{k}",
                f"state_{k}_next",
                component.kind,
                component.layer,
                0,
                initial=initial,
            )
        )
    return rename_states(states, names)


def _require_no_other_input(interface: Interface, recurrence: Recurrence, seed: int) -> None:
    """Inputs besides the tokens must be initial states, which the step is handed anyway."""
    random = np.random.default_rng(seed)
    ids = tf.constant(random.choice(interface.ids, (2, 3)), tf.int64)
    if not interface.others:
        return
    with recurrence.running():
        interface.outputs(ids)
    given = [x for call in recurrence.calls for x in tree.flatten(call.before)]

    def run(others: dict[str, Any]) -> list[np.ndarray]:
        with recurrence.running(given):
            logits = interface.outputs(ids, others)[interface.output]
        return [np.asarray(x) for x in (logits, *(s for c in recurrence.calls for s in c.flat))]

    wanted = run({})
    for name, (shape, dtype) in interface.others.items():
        value = tf.constant(random.normal(size=(2, *shape)) * 3, dtype)
        if any(not np.array_equal(a, b) for a, b in zip(wanted, run({name: value}), strict=True)):
            raise ModelError(
                f"The model reads the input {name!r} in other ways than as an initial state; "
                "expected that it reads tokens and states alone. Put a constant in its place, in "
                "a model of the tokens only."
            )


def _masking_notes(interface: Interface, words: Vocabulary | None) -> tuple[str, ...]:
    if not interface.masked:
        return ()
    for what, token in (
        ()
        if words is None
        else (
            ("unknown", words.unknown),
            ("end-of-line", words.end_of_line),
        )
    ):
        place = None if token is None or words is None else words.tokens.index(token)
        if place in interface.masked:
            raise ModelError(
                f"The model masks id {place} (mask_zero, or a mask), and the {what} token "
                f"{token!r} has it: the model skips that token where a text is to be read. "
                "Expected padding there; name another token, or give the model one."
            )
    shown = ", ".join(map(str, interface.masked[:8])) + (", …" if len(interface.masked) > 8 else "")
    ids, it = ("ids", "they are") if len(interface.masked) > 1 else ("id", "it is")
    return (
        f"The model masks {ids} {shown} (mask_zero, or a mask): {it} padding, which no stream of "
        "text may hold. The written step reads every token and was compared on the other ids.",
    )


def _convert(
    interface: Interface,
    recurrence: Recurrence,
    roles: Roles,
    vocabulary: Vocabulary | None,
    embedding: str | None,
) -> onnx.ModelProto:
    """The memory model of one step of all cells."""
    starts = [x for call in recurrence.calls for x in tree.flatten(call.before)]
    names = [state.input for state in roles.states]
    signature = [
        tf.TensorSpec((None, 1), tf.int64, name="tokens_in"),
        *(
            tf.TensorSpec((None, *x.shape[1:]), x.dtype, name=f"{name}_in")
            for name, x in zip(names, starts, strict=True)
        ),
    ]
    watched = next((x for x in all_layers(interface.model) if x.name == embedding), None)
    seen: list[Any] = []

    def watch(*args: Any, **kwargs: Any) -> Any:
        seen.append(own(*args, **kwargs))
        return seen[-1]

    def step(tokens: Any, *states: Any) -> tuple[Any, ...]:
        seen.clear()
        with recurrence.running(list(states), one_step=True):
            outputs = interface.outputs(tokens)
        logits = tf.reshape(interface.logits(outputs), (-1, 1, interface.vocabulary_size))
        after = [s for call in recurrence.calls for s in call.flat]
        if len(after) != len(states):
            raise ModelError(f"One step has {len(after)} states, a sequence {len(states)}.")
        shaped = [
            tf.ensure_shape(tf.cast(new, old.dtype), old.shape)
            for new, old in zip(after, states, strict=True)
        ]
        return (logits, *shaped, *map(tf.identity, seen[:1]))

    with ExitStack() as stack:
        for part in all_layers(interface.model):
            if isinstance(part, keras.layers.Masking):
                # It passes on what it does not mask, and what it masks is in no stream.
                stack.enter_context(replaced(part, "call", lambda inputs: inputs))
        if watched is not None:
            own = watched.call
            stack.enter_context(replaced(watched, "call", watch))
        graph = trace(step, signature)
    given = [i.name for i in graph.graph.input]
    returned = [o.name for o in graph.graph.output]
    wanted = [roles.logits, *(state.output for state in roles.states)]
    if watched is not None and len(returned) <= len(wanted):
        raise ModelError(f"The layer {embedding!r} is not run in a step; name another.")
    try:
        return build_memory_model(
            graph,
            roles,
            vocabulary,
            inputs=dict(zip(given, [roles.tokens, *names], strict=True)),
            outputs=dict(zip(wanted, returned, strict=False)),
            embedding=returned[-1] if watched is not None else embedding,
        )
    except EmbeddingError as error:
        layers = ", ".join(x.name for x in all_layers(interface.model)[1:9])
        raise EmbeddingError(
            f"{error} For Keras, the option embedding takes the name of a layer, of: {layers}."
        ) from error


def _compare(
    written: onnx.ModelProto,
    interface: Interface,
    recurrence: Recurrence,
    roles: Roles,
    seed: int,
    tolerance: float | None,
) -> Parity:
    """Compare with the model's own layers, which loop over time themselves."""

    def whole(ids: np.ndarray, states: Feeds) -> tuple[np.ndarray, Feeds]:
        given = [tf.constant(states[s.input]) for s in roles.states]
        try:
            with recurrence.running(given):
                outputs = interface.outputs(tf.constant(ids))
        except ModelError:
            raise
        except Exception as error:  # whatever the model raises
            first = (str(error).strip().splitlines() or ["no message"])[0]
            raise ModelError(
                f"The model cannot be run on {ids.shape[1]} tokens: {type(error).__name__}: "
                f"{first} Expected a model of texts of any length."
            ) from error
        logits = np.asarray(interface.logits(outputs))
        logits = logits.reshape(ids.shape[0], -1, interface.vocabulary_size)
        after = [np.asarray(x) for call in recurrence.calls for x in call.flat]
        return logits, {s.output: x for s, x in zip(roles.states, after, strict=True)}

    return check_sequences(
        written,
        whole,
        vocabulary_size=interface.vocabulary_size,
        tokens=interface.ids,
        long=LONG,
        lengths=(2, 7),  # some layers take a time axis of length 1 for none
        lowest=float(np.log(SMALLEST)) if interface.probabilities else None,
        tolerance=tolerance,
        seed=seed,
    )


def _refuse(what: str, **options: Any) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ModelError(
            f"{what} takes no {', '.join(given)}: it holds its weights, and a graph without layers."
        )


def _arrays(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    # Keras numbers the layers of a process through: their names say nothing about a model.
    for k, weight in enumerate(model.weights):
        yield f"{k:04}:{weight.name}", np.asarray(weight)
