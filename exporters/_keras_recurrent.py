"""Find the recurrent layers of a Keras model, hand them states, and let them do a single step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import tree
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import Kind

_BUILT_IN = {"lstm": keras.layers.LSTMCell, "gru": keras.layers.GRUCell}
_RNN = keras.layers.SimpleRNNCell
# What an LSTM returns as its state: h first.
_FIELD_NAMES = {"lstm": ("h", "c"), "gru": ("h",), "rnn": ("h",)}
_KINDS: dict[str, Kind] = {"h": "hidden", "c": "cell"}


@dataclass
class Call:
    """One recurrence: a recurrent layer's loop over time, or all calls of a cell in a loop.

    Attributes:
        owner: The layer, or the cell that the model calls itself.
        cell: The cell that makes a step.
        before: The state at the start, as the cell wants it (any nesting).
        after: The state at the end, nested likewise.
    """

    owner: Any
    cell: Any
    before: Any
    after: Any = None

    @property
    def flat(self) -> list[Any]:
        """The components of `after`."""
        return tree.flatten(self.after)


@dataclass
class Recurrence:
    """The recurrent layers of `model`, whose loops can be replaced while it runs."""

    model: Any
    calls: list[Call] = field(default_factory=list)
    masks: list[Any] = field(default_factory=list)
    given: list[Any] | None = None

    def __post_init__(self) -> None:
        parts = all_layers(self.model)
        _refuse_reversed(parts)
        self.layers = [x for x in parts if isinstance(x, keras.layers.RNN)]
        owned = {id(c) for layer in self.layers for c in _nested_cells(layer.cell)}
        cells = [x for x in parts if is_cell(x) and id(x) not in owned]
        inner = {id(c) for x in cells for c in _nested_cells(x) if c is not x}
        self.cells = [x for x in cells if id(x) not in inner]
        if not self.layers and not self.cells:
            names = ", ".join(f"{x.name} ({type(x).__name__})" for x in parts[1:9])
            raise ModelError(
                "The model has no recurrent layer that can be found; expected LSTM, GRU, "
                f"SimpleRNN, RNN(cell) or a cell with state_size among its layers: {names or '-'}."
                " A recurrence that is written out inside another layer must be put in a cell: a "
                "Layer with call(inputs, states) and state_size."
            )

    @contextmanager
    def running(self, given: list[Any] | None = None, *, one_step: bool = False) -> Iterator[None]:
        """Record the recurrences that are run inside.

        Args:
            given: State components to start from, in the order of `calls` flattened; None
                leaves each recurrence at its own start.
            one_step: Call the cell once in place of the loop over time.
        """
        self.calls, self.masks = [], []
        self.given = None if given is None else list(given)
        with ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(_with_loop(layer, self._loop(layer, one_step)))
            for cell in self.cells:
                stack.enter_context(replaced(cell, "call", self._cell(cell, one_step)))
            yield
        if self.given:
            raise ModelError(
                "The model runs another number of recurrences from call to call; expected the "
                "same recurrent layers at every length."
            )

    def masks_of(self, run: Callable[[], Any]) -> list[Any]:
        """The masks ``[batch, time]`` that the recurrent layers are handed, None for none.

        Args:
            run: Runs the model, which must have run within `running` before. What lies behind
                the last recurrent layer is not computed, and no loop is run.
        """
        count, found = len(self.masks), list[Any]()

        def without_loop(layer: Any) -> Any:
            def inner_loop(
                sequences: Any, initial_state: Any, mask: Any = None, training: bool = False
            ) -> Any:
                found.append(mask)
                if len(found) == count:
                    raise _AllSeen
                output, state = _step(layer.cell, sequences[:, 0], initial_state)
                every = keras.ops.repeat(output[:, None], sequences.shape[1], axis=1)
                return output, every, state

            return inner_loop

        with ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(_with_loop(layer, without_loop(layer)))
            with suppress(_AllSeen):
                run()
        return found

    def _loop(self, layer: Any, one_step: bool) -> Any:
        own = layer.inner_loop

        def inner_loop(
            sequences: Any, initial_state: Any, mask: Any = None, training: bool = False
        ) -> Any:
            call = Call(layer, layer.cell, self._take(initial_state))
            if not one_step:
                result = own(
                    sequences=sequences, initial_state=call.before, mask=mask, training=False
                )
            else:
                # No mask: which ids are masked is known, and a stream does not have them.
                output, state = _step(layer.cell, sequences[:, 0], call.before)
                result = output, output[:, None], state
            call.after = result[2]
            self.masks.append(mask)
            self.calls.append(call)
            return result

        return inner_loop

    def _cell(self, cell: Any, one_step: bool) -> Any:
        own = cell.call

        def call(inputs: Any, states: Any, *args: Any, **kwargs: Any) -> Any:
            found = next((c for c in self.calls if c.owner is cell), None)
            if found is None:
                states = self._take(states)
                found = Call(cell, cell, states)
                self.calls.append(found)
            elif one_step:
                raise ModelError(
                    f"The cell {cell.name!r} is called more than once in one time step; expected "
                    "one call per step. Give every layer a cell of its own."
                )
            output, found.after = own(inputs, states, *args, **kwargs)
            return output, found.after

        return call

    def _take(self, own: Any) -> Any:
        """The next given components, nested as `own`."""
        if self.given is None:
            return own
        count = len(tree.flatten(own))
        if len(self.given) < count:
            raise ModelError(
                "The model runs more recurrences than it has states; expected the same recurrent "
                "layers at every length."
            )
        taken, self.given = self.given[:count], self.given[count:]
        return tree.pack_sequence_as(own, taken)


class _AllSeen(BaseException):  # not an Exception: Keras wraps those
    """Every recurrent layer has been handed its mask."""


@contextmanager
def _with_loop(layer: Any, inner_loop: Any) -> Iterator[None]:
    """Put `inner_loop` in the place of the loop of a recurrent layer."""
    with ExitStack() as stack:
        # Its state variables have one batch size, and are the caller's.
        stack.enter_context(replaced(layer, "stateful", False))
        # Masks of dropout are drawn even in inference, and the generator is a variable.
        stack.enter_context(replaced(layer, "_maybe_config_dropout_masks", lambda *a, **k: None))
        stack.enter_context(replaced(layer, "inner_loop", inner_loop))
        yield


def all_layers(model: Any) -> list[Any]:
    """The model and every layer inside it, cells too."""
    return list(model._flatten_layers())


def is_cell(layer: Any) -> bool:
    """Whether `layer` makes a step: call(inputs, states) and state_size."""
    if isinstance(layer, keras.layers.RNN) or not hasattr(layer, "state_size"):
        return False
    return "states" in getattr(layer, "call_signature_parameters", ())


@dataclass(frozen=True)
class Component:
    """What a state component is called, and what it is."""

    name: str
    kind: Kind
    layer: int


def components(calls: Sequence[Call]) -> list[Component]:
    """The components of all states in order: ``lstm0.h``, ``lstm0.c``, ``gru1.h``, ...

    A cell that is not Keras' own gives its class' name, and the names in its ``state_names``.
    """
    found: list[Component] = []
    layer = 0
    for call in calls:
        for cell, state in _split(call.cell, call.after):
            kind = _type_name(cell)
            count = len(tree.flatten(state))
            fields = _FIELD_NAMES.get(kind) or getattr(cell, "state_names", None)
            if not fields or len(fields) != count:
                fields = ("",) if count == 1 else tuple(str(k) for k in range(count))
            for name in fields:
                label = f"{kind}{layer}.{name}" if name else f"{kind}{layer}"
                found.append(Component(label, _KINDS.get(name, "other"), layer))
            layer += 1
    return found


@contextmanager
def replaced(thing: Any, name: str, value: Any) -> Iterator[None]:
    """Put `value` in place of an attribute of `thing`, past Keras' bookkeeping."""
    own = name in vars(thing)
    before = vars(thing).get(name)
    object.__setattr__(thing, name, value)
    try:
        yield
    finally:
        if own:
            object.__setattr__(thing, name, before)
        else:
            object.__delattr__(thing, name)


def _step(cell: Any, inputs: Any, states: Any) -> tuple[Any, Any]:
    """One call of `cell`, in the way of keras.layers.RNN."""
    options = {}
    if getattr(cell, "_call_has_training_arg", False):
        options["training"] = False
    states = states if tree.is_nested(states) else [states]
    output, new = cell(inputs, states, **options)
    return output, new if tree.is_nested(new) else [new]


def _split(cell: Any, state: Any) -> Iterator[tuple[Any, Any]]:
    """Each cell of a stack with its part of the state."""
    if not isinstance(cell, keras.layers.StackedRNNCells):
        yield cell, state
        return
    parts = tree.flatten(state)
    for part in cell.cells:
        count = len(tree.flatten(part.state_size))
        yield from _split(part, parts[:count])
        parts = parts[count:]


def _nested_cells(cell: Any) -> Iterator[Any]:
    if hasattr(cell, "_flatten_layers"):
        yield from cell._flatten_layers()
    else:
        yield cell


def _type_name(cell: Any) -> str:
    for name, kind in _BUILT_IN.items():
        if isinstance(cell, kind):
            return name
    if isinstance(cell, _RNN):
        return "rnn"
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(cell).__name__)
    return words.lower().removesuffix("_cell").strip("_") or "cell"


def _refuse_reversed(parts: Sequence[Any]) -> None:
    for part in parts:
        if isinstance(part, keras.layers.Bidirectional):
            what = f"is bidirectional ({part.name!r})"
        elif isinstance(part, keras.layers.RNN) and part.go_backwards:
            what = f"reads the text backwards ({part.name!r} has go_backwards=True)"
        else:
            continue
        raise ModelError(
            f"The model {what}: its state at a word depends on the words that follow, so that how "
            "long a word is remembered has no answer. Expected layers that read forwards."
        )
