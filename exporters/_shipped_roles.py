"""Roles that a user writes, and pairs that names suggest."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from mnemoscope.analyzer._files import replacing
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import Kind, State, _read, require_state_names

_PLAIN = {"version": int, "tokens": str, "features": str, "layout": str, "logits": str,
          "embedding": str, "constants": dict, "states": list, "help": list}  # fmt: skip
_LARGEST_FILE = 2**24

# An entry of states is complete with these; a wrong type is told whatever is missing.
_FILLED = {"name": "state", "output": "state", "kind": "other", "layer": 0, "batch_axis": 0}

HELP = [
    "Complete this file and give it with --roles. What is filled in was found; every entry that is "
    "null, empty or absent is inferred.",
    "tokens: graph input with token ids; or features: graph input with floating-point features.",
    "layout: the axes of that input: NT or TN for tokens, N for one token per stream; NTE, TNE, "
    "NET or NE for features (N streams, T time, E features).",
    "constants: graph inputs that always get the same value, a number or a list for one stream, "
    'such as {"sr": 16000}. An input that is no state belongs here, and not under states.',
    "states: one entry per component: input and output, and, where they are not to be inferred, "
    "name, kind (cell, hidden or other), layer, batch_axis, and layer_axis and layer_index for a "
    "tensor that stacks components. candidates lists the outputs that have the shape of the input; "
    "put the right one as output.",
    "logits: the graph output that is read as logits.",
    "embedding: the tensor that the recurrent core reads, where the lookup is not found.",
]


class RolesNeeded(ModelError):
    """The roles cannot be decided; a template says what is open."""


def read_given(source: Any) -> dict[str, Any]:
    """Roles from a file or a dictionary, checked; entries that are null are left out.

    Raises:
        ModelError: It cannot be read, is not JSON, or says something that roles do not have.
    """
    if source is None:
        return {}
    where = "the roles"
    if isinstance(source, (str, os.PathLike)):
        where = f"the roles file {os.fspath(source)!r}"
        path = Path(source)
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise ModelError(f"{where} is larger than 16 MiB; expected a short JSON file.")
            source = json.loads(path.read_bytes().decode("utf-8-sig"))
        except OSError as error:
            raise ModelError(f"Cannot read {where}: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise ModelError(f"Cannot read {where}: not JSON: {str(error)[:200]}.") from error
    if not isinstance(source, dict):
        raise ModelError(f"{where} must be a JSON object, found a {type(source).__name__}.")
    given: dict[str, Any] = {}
    for key, value in source.items():
        if key not in _PLAIN:
            raise ModelError(
                f"{where} has the unknown entry {key!r:.40}; known are {', '.join(_PLAIN)}."
            )
        if value is None or key == "help":
            continue
        if not isinstance(value, _PLAIN[key]) or isinstance(value, bool):
            raise ModelError(
                f"{where}: {key} must be {_words(_PLAIN[key])}, found {str(value)[:40]!r}."
            )
        given[key] = value
    if given.get("version", 1) != 1:
        raise ModelError(f"{where} has version {given['version']}; this program reads version 1.")
    if "tokens" in given and "features" in given:
        raise ModelError(f"{where} names both tokens and features; a model reads one of them.")
    if "constants" in given:
        given["constants"] = {k: v for k, v in given["constants"].items() if v is not None}
    for name, value in given.get("constants", {}).items():
        if not _is_numbers(value):
            raise ModelError(
                f"{where}: the constant {name!r} must be a number or a list of numbers, found "
                f"{value!r:.40}."
            )
    states = []
    for number, item in enumerate(given.get("states", [])):
        try:
            entry = _entry(item, f"states[{number}]")
        except ValueError as error:
            raise ModelError(f"{where}: {error}.") from error
        # What the template lists and the user made a constant.
        if "output" in entry or entry["input"] not in given.get("constants", {}):
            states.append(entry)
    for key in ("states", "constants"):
        if not given.get(key):
            given.pop(key, None)
    if states:
        try:
            require_state_names([s["name"] for s in states if "name" in s])
        except ModelError as error:
            raise ModelError(f"{where}: {error}") from error
        given["states"] = states
    return given


def _is_numbers(value: Any, depth: int = 0) -> bool:
    if isinstance(value, list):
        return depth < 8 and bool(value) and all(_is_numbers(v, depth + 1) for v in value)
    return isinstance(value, (int, float))


def _entry(item: Any, where: str) -> dict[str, Any]:
    """What is said of a state; ValueError where it is said wrongly."""
    said = {k: v for k, v in item.items() if v is not None} if isinstance(item, dict) else item
    if isinstance(said, dict):
        said.pop("candidates", None)
        if "input" not in said:
            raise ValueError(f"{where} lacks input")
        if ("layer_axis" in said) != ("layer_index" in said):
            raise ValueError(f"{where} needs both layer_axis and layer_index, or neither")
    state = _read({**_FILLED, **said} if isinstance(said, dict) else said, State, where)
    return {key: getattr(state, key) for key in said}


def is_complete(entry: dict[str, Any]) -> bool:
    """Whether an entry leaves nothing of a state to be inferred."""
    return {*_FILLED, "input"} <= entry.keys()


def _words(kind: type) -> str:
    return {int: "a whole number", str: "text", dict: "an object", list: "a list"}[kind]


def write_template(
    path: Path, known: dict[str, Any], inputs: list[str], outputs: list[str]
) -> None:
    """Write roles for a user to complete: what is known, and what the graph has."""
    listed = [f"Graph inputs: {', '.join(inputs)}.", f"Graph outputs: {', '.join(outputs)}."]
    data = {"help": [*HELP, *listed], "version": 1, "tokens": None, "features": None,
            "layout": None, "logits": None, "embedding": None, "constants": {}, "states": [],
            **known}  # fmt: skip
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise ModelError(f"Cannot write {str(path)!r}: {error.strerror}.") from error


_BEFORE = re.compile(r"^(past|prev|previous|initial|init|in|input|old|last)[_.]|"
                     r"[_.]?(in|prev|past|init|initial|input|old|0)$", re.IGNORECASE)  # fmt: skip
_AFTER = re.compile(r"^(next|new|present|out|output|final|updated|cur|current)[_.]|"
                    r"[_.]?(out|next|new|present|final|output|updated|n|N|1)$",
                    re.IGNORECASE)  # fmt: skip


def stems(name: str, *, after: bool) -> dict[str, int]:
    """What a name says without its before or after; the fewer parts dropped, the surer."""
    found = {name.lower(): 0}
    patterns = [_AFTER, _BEFORE] if after else [_BEFORE]
    for turn, pattern in enumerate([*patterns, *patterns], start=1):
        for stem, cost in list(found.items()):
            for match in pattern.finditer(stem):
                rest = (stem[: match.start()] + stem[match.end() :]).strip("_.")
                if rest:
                    found.setdefault(rest, cost + turn)
    return found


def name_pairs(inputs: list[str], outputs: list[str]) -> dict[str, str]:
    """Input → output for names that belong together: h0, hn; X, next_X; past_X, present_X."""
    scores = []
    of_outputs = {o: stems(o, after=True) for o in outputs}
    for i in inputs:
        of_input = stems(i, after=False)
        for o, of_output in of_outputs.items():
            shared = of_input.keys() & of_output.keys()
            if shared:
                scores.append((min(of_input[s] + of_output[s] for s in shared), i, o))
    pairs: dict[str, str] = {}
    for score, i, o in sorted(scores):
        rivals = [s for s in scores if s[0] == score and (s[1] == i) != (s[2] == o)
                  and s[1] not in pairs and s[2] not in pairs.values()]  # fmt: skip
        if i not in pairs and o not in pairs.values() and not rivals:
            pairs[i] = o
    return pairs


def kind_of(name: str) -> Kind:
    """What a name says of a state's kind."""
    stem = min(stems(name, after=False), key=len)
    if re.fullmatch(r"c\w?|.*cell.*", stem):
        return "cell"
    return "hidden" if re.fullmatch(r"h\w?|.*hid.*", stem) else "other"
