"""The contract between exporters and analyzer: what each tensor of a memory model is for.

A memory model is one ONNX file that computes one or more time steps of a recurrent language
model. Its metadata says which tensor is what: key ``mnemoscope.roles`` holds the roles as JSON,
key ``mnemoscope.vocabulary`` the tokens. ``docs/model-contract.md`` describes both for writers of
other exporters.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin, get_type_hints

from .errors import ModelError

if TYPE_CHECKING:
    import onnx

ROLES_KEY = "mnemoscope.roles"
VOCABULARY_KEY = "mnemoscope.vocabulary"
ROLES_VERSION = 1
OPSET = 18  # newer LSTM, GRU and Scan schemas have no CUDA kernel in ONNX Runtime
IR_VERSION = 8  # the first version that knows opset 18

# Names of other things in a result file, where states are groups.
RESERVED = frozenset(
    {"embedding", "delay", "group", "normalization", "leading", "embedding_whitening"}
)

Kind = Literal["cell", "hidden", "other"]
Level = Literal["word", "char"]


@dataclass(frozen=True)
class State:
    """One component of the recurrent state: a vector per stream.

    A tensor that stacks several layers, say ``[layer, batch, unit]``, is described by one `State`
    per layer, all with the same `input` and `output`.

    Attributes:
        name: Such as ``lstm0.h``; unique in the model, without ``/``.
        input: Graph input that carries the state into the step.
        output: Graph output that carries it out.
        kind: ``cell`` (an LSTM's c), ``hidden`` (what the next layer reads) or ``other``.
        layer: Layer number, counted from the input.
        batch_axis: Axis of the tensor that separates the streams.
        layer_axis: Axis that stacks the layers; None when the tensor is not stacked.
        layer_index: This component's position on `layer_axis`; None when not stacked.
        initial: Value at the start of a stream, flattened, without the batch axis (and without
            the layer axis); None means zeros.
    """

    name: str
    input: str
    output: str
    kind: Kind
    layer: int
    batch_axis: int
    layer_axis: int | None = None
    layer_index: int | None = None
    initial: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a model knows; a token's id is its position.

    Attributes:
        tokens: ``[V]`` distinct strings.
        level: ``word`` (white-space separated) or ``char``.
        unknown: Token that stands for every other; None when the model has none.
        end_of_line: Token that ends each line; None when the model has none.
    """

    tokens: tuple[str, ...]
    level: Level = "word"
    unknown: str | None = None
    end_of_line: str | None = None

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ModelError("The vocabulary is empty; it needs one entry per token id.")
        if len(set(self.tokens)) != len(self.tokens):
            seen: set[str] = set()
            twice = next(t for t in self.tokens if t in seen or seen.add(t))  # type: ignore[func-returns-value]
            raise ModelError(
                f"The vocabulary holds {twice!r} twice; each token must stand for one id."
            )
        for what, token in (("unknown", self.unknown), ("end-of-line", self.end_of_line)):
            if token is not None and token not in set(self.tokens):
                raise ModelError(f"The {what} token {token!r} is not in the vocabulary.")
        if self.level not in get_args(Level):
            raise ModelError(f"The vocabulary's level must be word or char, not {self.level!r}.")


@dataclass(frozen=True)
class Roles:
    """Which tensor of a memory model plays which part.

    Attributes:
        tokens: Graph input, integer ``[batch, time]``.
        embedding: Graph output and cut point, ``[batch, time, E]``: a function of the tokens
            alone, and all that the recurrent core reads of them.
        states: The components of the recurrent state, at least one.
        logits: Graph output ``[batch, time, V]``.
        normalized: True when `logits` are log-probabilities already.
        source: Where the model comes from: ``framework``, ``framework_version``,
            ``exporter_version``, ``weights_sha256``.
        version: Of this description.
    """

    tokens: str
    embedding: str
    states: tuple[State, ...]
    logits: str
    normalized: bool = False
    source: dict[str, str] = field(default_factory=dict)
    version: int = ROLES_VERSION


def require_state_names(names: Sequence[str]) -> None:
    """Refuse what cannot name the states of a model: on a screen, in a command, in a result file.

    Raises:
        ModelError: A name is empty, holds a slash, does not print, is reserved or comes twice.
    """
    for name in names:
        if not name.strip(" .") or "/" in name or not name.isprintable():
            raise ModelError(f"The state name {name!r} is empty, holds a / or does not print.")
        if name in RESERVED:
            raise ModelError(f"No state may be called {name}: result files use that name.")
    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise ModelError(f"The state name {twice!r} comes twice: two states share one name.")


def rename_states(states: Sequence[State], names: Sequence[str] | None) -> tuple[State, ...]:
    """`states` under the names that a user gives, in their order; None keeps their own.

    A name that ends in ``.h`` or ``.c`` says what a state of kind ``other`` is: ``hidden`` or
    ``cell``.

    Raises:
        ModelError: There are more or fewer names than states, or `require_state_names` refuses
            them.
    """
    own = [s.name for s in states]
    if names is not None and (len(names) != len(own) or len(set(names)) != len(names)):
        raise ModelError(
            f"Expected {len(own)} distinct state names, one per component ({', '.join(own)}); "
            f"found {', '.join(names) or 'none'}."
        )
    require_state_names(own if names is None else names)
    if names is None:
        return tuple(states)
    kinds: dict[str, Kind] = {"h": "hidden", "c": "cell"}
    renamed = []
    for state, name in zip(states, names, strict=True):
        said = kinds.get(name.rpartition(".")[2], "other")
        renamed.append(
            replace(state, name=name, kind=said if state.kind == "other" else state.kind)
        )
    return tuple(renamed)


def write_roles(model: onnx.ModelProto, roles: Roles, vocabulary: Vocabulary | None) -> None:
    """Put `roles` and `vocabulary` into the metadata of `model`, replacing older ones."""
    kept = [p for p in model.metadata_props if p.key not in (ROLES_KEY, VOCABULARY_KEY)]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    entries = {ROLES_KEY: asdict(roles)}
    if vocabulary is not None:
        entries[VOCABULARY_KEY] = asdict(vocabulary)
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))


def read_roles(model: onnx.ModelProto) -> tuple[Roles, Vocabulary | None]:
    """The roles and vocabulary that `model` carries.

    Raises:
        ModelError: There are none, or they are malformed, or they name tensors that the graph
            does not have.
    """
    metadata = {p.key: p.value for p in model.metadata_props}
    if ROLES_KEY not in metadata:
        raise ModelError(
            "This ONNX model says nothing about its roles (which tensor is the embedding, which "
            "are states). Give it roles first: mnemoscope export onnx MODEL.onnx -o m.onnx"
        )
    try:
        roles = _parse_roles(json.loads(metadata[ROLES_KEY]))
        vocabulary = None
        if VOCABULARY_KEY in metadata:
            vocabulary = _read(json.loads(metadata[VOCABULARY_KEY]), Vocabulary, "vocabulary")
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"The model's roles are malformed: {error}. Export the model again."
        ) from error
    _check_names(model, roles)
    return roles, vocabulary


def _parse_roles(data: Any) -> Roles:
    if isinstance(data, dict) and data.get("version") != ROLES_VERSION:
        raise ModelError(
            f"The model's roles have version {data.get('version')!r:.40}, this program reads "
            f"version {ROLES_VERSION}; export the model again or update mnemoscope."
        )
    roles = _read(data, Roles, "roles")
    names = [s.name for s in roles.states]
    if not names:
        raise ValueError("no state is listed")
    require_state_names(names)
    for state in roles.states:
        if (state.layer_axis is None) != (state.layer_index is None):
            raise ValueError(f"state {state.name!r} needs both layer_axis and layer_index or none")
        if state.layer_axis == state.batch_axis:
            raise ValueError(f"state {state.name!r} has one axis for both layers and streams")
    return roles


def _read(value: Any, hint: Any, where: str) -> Any:
    """A value of type `hint`, an annotation of the dataclasses above, from plain JSON.

    Whole numbers are axes, positions and layers: none is negative. Numbers and texts are such
    that every file format can hold them.

    Raises:
        ValueError: Says where what was expected, and what was found.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:  # only X | None occurs
        return None if value is None else _read(value, arguments[0], where)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {_read(k, arguments[0], where): _read(v, arguments[1], f"{where}.{k}")
                for k, v in value.items()}  # fmt: skip
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if is_dataclass(hint) and isinstance(value, dict):
        hints = get_type_hints(hint)
        for key in value.keys() - hints.keys():
            raise ValueError(f"{where} has the unknown entry {key!r:.40}")
        for part in fields(hint):
            if part.name not in value and part.default is part.default_factory:
                raise ValueError(f"{where} lacks {part.name}")
        return cast(type, hint)(**{k: _read(v, hints[k], f"{where}.{k}") for k, v in value.items()})
    if hint is str and isinstance(value, str) and _is_plain(value):
        return value
    if hint is bool and isinstance(value, bool):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int and number and isinstance(value, int) and 0 <= value < 2**31:
        return value
    if hint is float and number and abs(value) <= sys.float_info.max:
        return float(value)
    raise ValueError(f"{where} must be {_expected(hint)}, found {value!r:.40}")


def _is_plain(text: str) -> bool:
    """Whether `text` holds no NUL and no half of a surrogate pair, which files cannot store."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _expected(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    if get_origin(hint) is tuple:
        return "a list"
    words = {str: "text", int: "a whole number from 0 on", float: "a finite number",
             bool: "true or false"}  # fmt: skip
    return words.get(hint, "an object")


def _check_names(model: onnx.ModelProto, roles: Roles) -> None:
    inputs = {i.name for i in model.graph.input}
    outputs = {o.name for o in model.graph.output}
    wanted = [
        ("tokens", roles.tokens, "input", inputs),
        ("embedding", roles.embedding, "output", outputs),
        ("logits", roles.logits, "output", outputs),
    ]
    for state in roles.states:
        wanted.append((f"state {state.name}", state.input, "input", inputs))
        wanted.append((f"state {state.name}", state.output, "output", outputs))
    for role, name, side, present in wanted:
        if name not in present:
            raise ModelError(
                f"The roles name {name!r} as graph {side} for {role}, but the graph's {side}s "
                f"are {', '.join(sorted(present)) or 'none'}; export the model again."
            )
