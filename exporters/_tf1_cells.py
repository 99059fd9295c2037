"""The cells of ``tf.nn.rnn_cell`` in a checkpoint: how they are known, and what they compute."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from mnemoscope.analyzer.errors import ModelError

# `kernel` and `bias` since TensorFlow 1.2, `weights` and `biases` in 1.0 and 1.1, `W` and `B` or
# `Matrix` and `Bias` under `Linear` before that.
_KERNELS = ("kernel", "weights", "Matrix", "W")
_BIASES = {"kernel": "bias", "weights": "biases", "Matrix": "Bias", "W": "B"}
_PEEPHOLES = {"i": ("w_i_diag", "W_I_diag"), "f": ("w_f_diag", "W_F_diag"),
              "o": ("w_o_diag", "W_O_diag")}  # fmt: skip

# Scopes of cells, and of what only holds cells.
_CELL = re.compile(r"(?i)cell(_?\d+)?$")
_CONTAINER = re.compile(r"cell_?\d*|multi_?rnn_?cell(_?\d+)?")
_BACKWARDS = re.compile(r"(^|[/_])(bw|bwd|rev|reversed?|backwards?)(?![a-z])|backward")


@dataclass(frozen=True)
class Cell:
    """A cell and its variables.

    Attributes:
        kind: ``lstm``, ``gru`` or ``rnn``.
        scope: Where its variables are.
        kernel: ``[input + hidden, 4·units]`` (LSTM: i, j, f, o), ``[input + hidden, 2·units]``
            (GRU: r, u) or ``[input + hidden, units]``.
        bias: As long as `kernel` is wide.
        candidate: A GRU's ``[input + units, units]`` and ``[units]``.
        peepholes: Gate ``i``, ``f``, ``o`` → ``[units]``.
        projection: ``[units, hidden]`` of an LSTM's h, or None.
        used: The names of its variables.
    """

    kind: str
    scope: str
    kernel: np.ndarray
    bias: np.ndarray
    candidate: tuple[np.ndarray, np.ndarray] | None
    peepholes: Mapping[str, np.ndarray]
    projection: np.ndarray | None
    used: frozenset[str]

    @property
    def units(self) -> int:
        """Width of the gates."""
        return self.kernel.shape[1] // {"lstm": 4, "gru": 2, "rnn": 1}[self.kind]

    @property
    def output_size(self) -> int:
        """Width of h."""
        return self.units if self.projection is None else self.projection.shape[1]

    @property
    def input_size(self) -> int:
        """Width of what the cell reads."""
        return self.kernel.shape[0] - self.output_size

    @property
    def sizes(self) -> dict[str, int]:
        """State component → width, h first."""
        own = {"h": self.output_size}
        return own | {"c": self.units} if self.kind == "lstm" else own


def find_cells(variables: Mapping[str, np.ndarray], order: Sequence[str] = ()) -> list[Cell]:
    """The cells in `variables`, from the first layer to the last.

    Args:
        variables: By name.
        order: Beginnings of names, where cells whose names do not say so are one stack: what
            begins with the first lies below what begins with the next.

    Raises:
        ModelError: There are none, one is not known or not complete, nothing says that they are
            one stack, they do not fit one on the other, or they read the text backwards too.
    """
    cells = []
    for name in variables:
        scope, _, last = name.rpartition("/")
        if last not in _KERNELS or variables[name].ndim != 2:
            continue
        kind = _kind(scope)
        if kind is not None and not scope.endswith(("/candidate", "/projection")):
            cells.append(_cell(kind, scope, last, variables))
    if not cells:
        shown = ", ".join(f"{n} {list(v.shape)}" for n, v in sorted(variables.items())[:12])
        raise ModelError(
            "No cell of tf.nn.rnn_cell was found: expected variables such as "
            "rnn/basic_lstm_cell/kernel, rnn/gru_cell/gates/kernel or rnn/basic_rnn_cell/kernel; "
            f"the checkpoint has {shown or 'no floating-point variables'}."
        )
    _require_known(variables, cells)
    if any(_BACKWARDS.search(cell.scope.lower()) for cell in cells):
        raise ModelError(
            "The model is bidirectional: its state at a word depends on the words that follow, so "
            "that how long a word is remembered has no answer. Expected cells that read forwards."
        )
    groups: dict[int, list[Cell]] = {}
    for cell in cells:
        place = next((k for k, start in enumerate(order) if cell.scope.startswith(start)), 0)
        groups.setdefault(place, []).append(cell)
    cells = [cell for place in sorted(groups) for cell in _stacked(groups[place])]
    for below, above in pairwise(cells):
        if above.input_size != below.output_size:
            raise ModelError(
                f"The cell {above.scope!r} reads {above.input_size} numbers and "
                f"{below.scope!r} gives {below.output_size}; expected a stack of cells. Does the "
                "checkpoint hold several models? Choose one with --scope."
            )
    return cells


def run_cell(
    cell: Cell, x: np.ndarray, state: Sequence[np.ndarray], forget_bias: float
) -> tuple[np.ndarray, list[np.ndarray]]:
    """One step in numpy: the output and the new states, h first."""
    h = state[0]
    total = np.concatenate([x, h], 1) @ cell.kernel + cell.bias
    if cell.kind == "rnn":
        h = np.tanh(total)
        return h, [h]
    if cell.kind == "gru":
        assert cell.candidate is not None
        kernel, bias = cell.candidate
        r, u = np.split(_sigmoid(total), 2, 1)
        n = np.tanh(np.concatenate([x, r * h], 1) @ kernel + bias)
        h = u * h + (1 - u) * n
        return h, [h]
    c = state[1]
    peep = {gate: cell.peepholes.get(gate, np.float32(0)) for gate in "ifo"}
    i, j, f, o = np.split(total, 4, 1)
    forget = f + total.dtype.type(forget_bias) + peep["f"] * c
    c = _sigmoid(forget) * c + _sigmoid(i + peep["i"] * c) * np.tanh(j)
    h = _sigmoid(o + peep["o"] * c) * np.tanh(c)
    if cell.projection is not None:
        h = h @ cell.projection
    return h, [h, c]


def _require_known(variables: Mapping[str, np.ndarray], cells: Sequence[Cell]) -> None:
    """Raise ModelError for a variable of a cell that is not among `cells`."""
    for name in sorted(variables):
        if any(name in cell.used for cell in cells):
            continue
        parts = name.split("/")[:-1]
        for k, part in reversed(list(enumerate(parts))):
            if _CELL.search(part) and not _CONTAINER.fullmatch(part.lower()):
                raise ModelError(
                    f"The variable {name!r} belongs to {'/'.join(parts[: k + 1])!r}, which is no "
                    "cell that can be written, or has more than is known of that cell. Expected "
                    "BasicLSTMCell, LSTMCell, LSTMBlockCell, GRUCell or BasicRNNCell of "
                    "tf.nn.rnn_cell. If it belongs to another model, choose yours with --scope."
                )


def _stacked(cells: Sequence[Cell]) -> list[Cell]:
    """`cells` in the order of the one number in which their scopes differ.

    Raises:
        ModelError: The scopes differ otherwise, or a number is left out.
    """
    if len(cells) < 2:
        return list(cells)
    found = []
    for cell in cells:
        parts = cell.scope.lower().split("/")
        if parts[-1] == "linear":
            parts = parts[:-1]
        numbered = [re.fullmatch(r"(.*?)_?(\d+)", part) for part in parts]
        names = [m[1] if m else part for m, part in zip(numbered, parts, strict=True)]
        found.append((names, [int(m[2]) if m else 0 for m in numbered], cell))
    shown = ", ".join(cell.scope or "(no scope)" for cell in cells)
    # Cells of different kinds are told apart by the scopes that they are in.
    parents = {tuple(names[:-1]) for names, _, _ in found}
    kinds = {names[-1] for names, _, _ in found}
    last = len(found[0][0]) - 1
    places = [k for k in range(last + 1) if len({n[k] for _, n, _ in found if k < len(n)}) > 1]
    if len(parents) > 1 or len(places) != 1 or (places == [last] and len(kinds) > 1):
        raise ModelError(
            f"Nothing says that the cells {shown} are one stack: their scopes do not differ by one "
            "number, as multi_rnn_cell/cell_0 and cell_1 do. An encoder and a decoder, two "
            "directions of reading, or two models look the same. Choose one with --scope; for a "
            "stack, give the beginnings of the names from the first layer on, and those of the "
            "embedding and the output: --scope first/,second/,embedding,softmax."
        )
    found.sort(key=lambda item: item[1][places[0]])
    numbers = [numbers[places[0]] for _, numbers, _ in found]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise ModelError(
            f"The cells {shown} are numbered {', '.join(map(str, numbers))}; expected every number "
            "in between: a layer without variables that can be read would be left out."
        )
    return [cell for _, _, cell in found]


def _cell(kind: str, scope: str, last: str, variables: Mapping[str, np.ndarray]) -> Cell:
    def need(name: str) -> np.ndarray:
        used.add(name)
        if name not in variables:
            raise ModelError(f"The cell {scope!r} has no variable {name!r}; expected one.")
        return variables[name]

    used: set[str] = set()
    bias_name = _BIASES[last]
    kernel, bias = need(f"{scope}/{last}"), need(f"{scope}/{bias_name}")
    candidate = projection = None
    peepholes: dict[str, np.ndarray] = {}
    home = scope
    if kind == "gru":
        home = scope.rpartition("/")[0]
        candidate = need(f"{home}/candidate/{last}"), need(f"{home}/candidate/{bias_name}")
    if kind == "lstm":
        for gate, names in _PEEPHOLES.items():
            for name in names:
                if f"{scope}/{name}" in variables:
                    peepholes[gate] = need(f"{scope}/{name}")
        if f"{scope}/projection/{last}" in variables:
            projection = need(f"{scope}/projection/{last}")
    width = {"lstm": 4, "gru": 2, "rnn": 1}[kind]
    units = kernel.shape[1] // width
    hidden = units if projection is None else projection.shape[1]
    right = (
        kernel.shape[1] == width * units
        and kernel.shape[0] > hidden
        and bias.shape == (width * units,)
        and (candidate is None or candidate[0].shape == (kernel.shape[0], units))
        and (candidate is None or candidate[1].shape == (units,))
        and (projection is None or projection.shape[0] == units)
        and all(p.shape == (units,) for p in peepholes.values())
    )
    if not right:
        shapes = ", ".join(f"{n} {list(variables[n].shape)}" for n in sorted(used))
        raise ModelError(
            f"The variables of the cell {home!r} do not fit each other: {shapes}; expected a "
            f"kernel [input + hidden, {width}·units] and a bias as long as that is wide."
        )
    return Cell(kind, home, kernel, bias, candidate, peepholes, projection, frozenset(used))


def _kind(scope: str) -> str | None:
    """The kind of cell that a scope's last parts name."""
    parts = scope.lower().split("/")
    last = re.sub(r"_\d+$", "", parts[-1])
    if last == "linear" and len(parts) > 1:
        last = re.sub(r"_\d+$", "", parts[-2])
    if last == "gates" or (last == "candidate" and len(parts) > 1):
        return "gru"
    kinds = {
        "basic_lstm_cell": "lstm", "basiclstmcell": "lstm", "lstm_cell": "lstm",
        "lstmcell": "lstm", "basic_rnn_cell": "rnn", "basicrnncell": "rnn",
        "lstm_block_cell": "lstm", "lstm_fused_cell": "lstm",
    }  # fmt: skip
    return kinds.get(last)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
