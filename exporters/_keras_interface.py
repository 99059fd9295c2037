"""How a Keras model wants to be called: its tokens, its other inputs, its logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree
from mnemoscope.analyzer.errors import ModelError

from ._keras_recurrent import Recurrence, all_layers, replaced

_HALF = ("float16", "bfloat16")


@dataclass
class Interface:
    """A model, and the way from token ids to its logits.

    Attributes:
        model: The Keras model.
        tokens: Name of the input that takes the tokens; None when the model declares no inputs.
        others: The other inputs by name: shape without the batch axis, and dtype.
        one_hot: Width of the vectors that stand for tokens; None where the model takes ids.
        masked: The ids that the model masks: padding, which no stream holds.
        vocabulary_size: V.
        output: Position of the logits among the model's outputs, flattened.
        time: The logits have a time axis; otherwise they are the last step's.
        probabilities: What the model gives are probabilities.
        normalized: The logits are log-probabilities.
    """

    model: Any
    tokens: str | None
    others: dict[str, tuple[tuple[int, ...], str]]
    one_hot: int | None
    vocabulary_size: int = 0
    output: int = 0
    time: bool = True
    probabilities: bool = False
    normalized: bool = False
    masked: tuple[int, ...] = ()

    @property
    def ids(self) -> np.ndarray:
        """The ids that a stream may hold."""
        return np.setdiff1d(np.arange(self.vocabulary_size), self.masked)

    def outputs(self, ids: Any, others: dict[str, Any] | None = None) -> list[Any]:
        """Run the model on token ids ``[batch, time]``; its outputs, flattened.

        Inputs that are not in `others` are zeros.
        """
        if self.one_hot is not None:
            ids = tf.one_hot(ids, self.one_hot, dtype=self.model.compute_dtype)
        if self.tokens is None:
            return tree.flatten(self.model(ids, training=False))
        feeds = {self.tokens: ids}
        batch = tf.shape(ids)[0]
        for name, (shape, dtype) in self.others.items():
            given = (others or {}).get(name)
            feeds[name] = tf.zeros((batch, *shape), dtype) if given is None else given
        values = [feeds[x.name] for x in _inputs(self.model)]
        given = tree.pack_sequence_as(_structure(self.model), values)
        return tree.flatten(self.model(given, training=False))

    def logits(self, outputs: list[Any]) -> Any:
        """The logits among `outputs`; logarithms where the model gives probabilities."""
        found = outputs[self.output]
        return tf.math.log(found) if self.probabilities else found


def discover(
    model: Any,
    recurrence: Recurrence,
    *,
    tokens: str | None,
    vocabulary_size: int | None,
    seed: int,
) -> Interface:
    """Find out how to call `model`, which must be `prepared`.

    Raises:
        ModelError: There is no input for tokens or no output that can be logits.
    """
    name, others, one_hot = _token_input(model, tokens)
    interface = Interface(model, name, others, one_hot)
    random = np.random.default_rng(seed)
    rows = [x.input_dim for x in all_layers(model) if isinstance(x, keras.layers.Embedding)]
    known = one_hot or vocabulary_size or (min(rows) if rows else None) or 2
    ids = random.integers(min(1, known - 1), known, (3, 4))  # 0 is often masked
    try:
        with recurrence.running():
            outputs = interface.outputs(tf.constant(ids, tf.int64))
    except ModelError:
        raise
    except Exception as error:  # whatever the model raises
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise ModelError(
            f"The model cannot be run on token ids [batch, time]: {type(error).__name__}: {first}"
        ) from error
    _find_logits(interface, recurrence, outputs, vocabulary_size, rows)
    values = _array(outputs[interface.output]).astype(np.float64)
    if not np.all(np.isfinite(values)):
        raise ModelError("The model's logits are NaN or infinite; did the training diverge?")
    if np.all(values >= 0) and np.allclose(values.sum(-1), 1, atol=1e-4):
        interface.probabilities = interface.normalized = True
    elif np.all(values <= 1e-6) and np.allclose(np.exp(values).sum(-1), 1, atol=1e-4):
        interface.normalized = True
    small = [n for n in rows if n < interface.vocabulary_size]
    if small:
        raise ModelError(
            f"The embedding has {small[0]} rows, the logits are {interface.vocabulary_size} wide; "
            "expected a row for every token."
        )
    if any(mask is not None for mask in recurrence.masks):
        interface.masked = _masked_ids(interface, recurrence, random)
    return interface


@contextmanager
def prepared(model: Any) -> Iterator[None]:
    """Take any batch size and length, and compute in float32 what computes in half precision."""
    with ExitStack() as stack:
        for part in all_layers(model):
            if isinstance(part, keras.Model):
                # A declared length or batch size is no property of the weights.
                stack.enter_context(
                    replaced(part, "_assert_input_compatibility", lambda *a, **k: None)
                )
            if isinstance(part, keras.layers.CategoryEncoding):
                stack.enter_context(replaced(part, "call", _keeping_time(part.call)))
            if part.variable_dtype in _HALF:
                raise ModelError(
                    f"The weights of {part.name!r} are {part.variable_dtype}. Expected float32 or "
                    "float64: load the model under the policy float32 (mixed_float16 is fine)."
                )
            if part.compute_dtype in _HALF:
                stack.enter_context(
                    replaced(part, "_dtype_policy", keras.DTypePolicy(part.variable_dtype))
                )
        yield


def _keeping_time(call: Any) -> Any:
    """CategoryEncoding takes a last axis of length 1 away: a text of one token is a text still."""

    def encode(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        output = call(inputs, *args, **kwargs)
        taken = len(output.shape) == len(inputs.shape) == 2 and inputs.shape[-1] == 1
        return output[:, None] if taken else output

    return encode


def _masked_ids(
    interface: Interface, recurrence: Recurrence, random: np.random.Generator
) -> tuple[int, ...]:
    """The ids that a recurrent layer is told to skip, found by asking for the mask of every id.

    Every id is asked for twice, in different places and company.

    Raises:
        ModelError: The model masks every id, or more than the id decides.
    """
    size, length = interface.vocabulary_size, 16
    streams = int(np.clip(2**26 // size, 128, 4096)) // length
    answers = []
    for order in (np.arange(size), random.permutation(size)):
        rows = np.resize(order, (-(-size // length), length))
        kept = np.ones(size, bool)
        for start in range(0, len(rows), streams):
            ids = rows[start : start + streams]
            run = partial(interface.outputs, tf.constant(ids, tf.int64))
            for mask in recurrence.masks_of(run):
                if mask is not None:
                    kept[ids[~np.broadcast_to(_array(mask).astype(bool), ids.shape)]] = False
        answers.append(kept)
    differ = np.flatnonzero(answers[0] != answers[1])
    if differ.size:
        one = int(differ[0])
        raise ModelError(
            f"The model masks id {one} in one place and not in another; expected that the id alone "
            "decides whether a step is skipped. Take the mask out: a stream of text has no padding."
        )
    if not answers[0].any():
        raise ModelError("The model masks every id, so that nothing is read; expected padding.")
    return tuple(int(k) for k in np.flatnonzero(~answers[0]))


def _token_input(
    model: Any, asked: str | None
) -> tuple[str | None, dict[str, tuple[tuple[int, ...], str]], int | None]:
    """Name of the token input, the other inputs, and the width of one-hot vectors or None."""
    inputs = _inputs(model)
    if not inputs:
        if asked is not None:
            raise ModelError(f"The model declares no inputs, so none is called {asked!r}.")
        return None, {}, None
    for x in inputs:
        if x.dtype == "string":
            raise ModelError(
                f"The input {x.name!r} takes text. Expected token ids [batch, time]: export the "
                "part behind TextVectorization or StringLookup, and give their vocabulary with "
                "--vocabulary."
            )
    names = [x.name for x in inputs]
    if asked is not None and asked not in names:
        raise ModelError(f"There is no input {asked!r}; the model has {', '.join(names)}.")
    found = [x for x in inputs if x.name == asked] if asked else _candidates(inputs)
    if len(found) != 1:
        shapes = ", ".join(f"{x.name} {list(x.shape)} {x.dtype}" for x in inputs)
        raise ModelError(
            f"Which input takes the tokens cannot be told among {shapes}; name it with the option "
            "tokens (--tokens)."
        )
    (token,) = found
    width = None
    if len(token.shape) == 3:
        width = token.shape[-1]
        if width is None or token.dtype not in ("float32", "float64", *_HALF):
            raise ModelError(
                f"The input {token.name!r} has the shape {list(token.shape)}; expected token ids "
                "[batch, time] or one-hot vectors [batch, time, V]."
            )
    elif len(token.shape) != 2:
        raise ModelError(
            f"The input {token.name!r} has the shape {list(token.shape)}; expected token ids "
            "[batch, time]."
        )
    others = {}
    for x in inputs:
        if x is not token:
            if None in x.shape[1:]:
                raise ModelError(
                    f"The input {x.name!r} has the shape {list(x.shape)}; expected that inputs "
                    "besides the tokens are initial states of a known size."
                )
            others[x.name] = (tuple(x.shape[1:]), "float32" if x.dtype in _HALF else x.dtype)
    return token.name, others, width


def _candidates(inputs: list[Any]) -> list[Any]:
    """The inputs that can be tokens, by the strongest sign that any of them shows."""
    if len(inputs) == 1:
        return inputs
    embedded = [x for x in inputs if _consumers(x, keras.layers.Embedding)]
    if embedded:
        return embedded
    whole = [x for x in inputs if "int" in x.dtype]
    if whole:
        return whole
    return [x for x in inputs if len(x.shape) == 3 or (len(x.shape) == 2 and x.shape[1] is None)]


def _consumers(tensor: Any, kind: type) -> bool:
    origin = tensor._keras_history.operation
    return any(isinstance(n.operation, kind) for n in origin._outbound_nodes)


def _find_logits(
    interface: Interface,
    recurrence: Recurrence,
    outputs: list[Any],
    asked: int | None,
    rows: list[int],
) -> None:
    """Settle which output holds the logits, and whether it has a time axis."""
    batch, length = 3, 4
    states = [_array(s) for call in recurrence.calls for s in call.flat]
    candidates = []
    for k, output in enumerate(outputs):
        value = _array(output)
        whole = value.ndim == 3 and value.shape[:2] == (batch, length)
        last = value.ndim == 2 and value.shape[0] == batch
        same = any(s.shape == value.shape and np.array_equal(s, value) for s in states)
        if (whole or last) and not same and np.issubdtype(value.dtype, np.floating):
            candidates.append((k, value.shape[-1], whole))
    if not recurrence.calls:
        raise ModelError(
            "The model has recurrent layers, but calling it runs none of them; expected that "
            "calling the model with tokens runs its recurrence."
        )
    shapes = ", ".join(str(list(_array(o).shape)) for o in outputs)
    if asked is not None:
        candidates = [c for c in candidates if c[1] == asked]
    elif len(candidates) > 1:
        candidates = [c for c in candidates if c[1] in rows or c[1] == interface.one_hot]
    if len(candidates) != 1:
        raise ModelError(
            f"Which output holds the logits cannot be told: for {batch} streams of {length} "
            f"tokens the model gives the shapes {shapes}. Expected one of [batch, time, V] or "
            "[batch, V] that is no state; name its width with the option vocabulary_size."
        )
    interface.output, interface.vocabulary_size, interface.time = candidates[0]
    if interface.one_hot not in (None, interface.vocabulary_size):
        raise ModelError(
            f"The model reads vectors of {interface.one_hot} numbers and gives "
            f"{interface.vocabulary_size} logits; expected one-hot vectors, as wide as the logits, "
            "or token ids. Put what makes the vectors from the ids into the model."
        )


def _inputs(model: Any) -> list[Any]:
    try:
        return list(tree.flatten(model.inputs)) if model.inputs is not None else []
    except AttributeError:  # a subclassed model declares none
        return []


def _structure(model: Any) -> Any:
    inner = getattr(model, "_functional", None) or model
    return getattr(inner, "_inputs_struct", model.inputs)


def _array(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)
