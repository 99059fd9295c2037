"""Damage to texts: corpora, role files and budgets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from mnemoscope.analyzer.roles import ROLES_KEY

Rng = np.random.Generator
Mutator = Callable[[Rng, bytes], bytes]

CORPORA: dict[str, Mutator] = {}
ROLES: dict[str, Mutator] = {}
BUDGETS: dict[str, Mutator] = {}


def _into(*tables: dict[str, Mutator]) -> Callable[[Mutator], Mutator]:
    def register(function: Mutator) -> Mutator:
        for table in tables:
            table[function.__name__.strip("_").replace("_", "-")] = function
        return function

    return register


def _pick(rng: Rng, items: Any) -> Any:
    items = list(items)
    return items[int(rng.integers(len(items)))]


# Any file.


@_into(CORPORA, ROLES, BUDGETS)
def bit_flips(rng: Rng, text: bytes) -> bytes:
    data = bytearray(text)
    for at in rng.integers(len(data), size=int(rng.integers(1, 6))):
        data[at] ^= 1 << int(rng.integers(8))
    return bytes(data)


@_into(CORPORA, ROLES, BUDGETS)
def truncated(rng: Rng, text: bytes) -> bytes:
    return text[: int(rng.integers(len(text)))]


@_into(CORPORA, ROLES, BUDGETS)
def random_bytes(rng: Rng, text: bytes) -> bytes:
    start = int(rng.integers(len(text)))
    return text[:start] + rng.bytes(int(rng.integers(1, 30))) + text[start:]


@_into(CORPORA, ROLES, BUDGETS)
def other_encoding(rng: Rng, text: bytes) -> bytes:
    word = text.decode() + _pick(rng, ("", "é", "日本"))
    return word.encode(_pick(rng, ("utf-16", "utf-8-sig", "utf-16-le", "utf-32", "utf-7")))


@_into(CORPORA, ROLES, BUDGETS)
def strange_characters(rng: Rng, text: bytes) -> bytes:
    extra = ("\0", "\u202e", "\ufeff", "\x0c", "\u2028", "\x85", "\x1b[2J", "e\u0301" * 50,
             "\U0001f600", "\u0660\u0661", "\ud800", "\r", "\v", "\u3000")  # fmt: skip
    start = int(rng.integers(len(text)))
    return text[:start] + _pick(rng, extra).encode("utf-8", "surrogatepass") + text[start:]


@_into(CORPORA, ROLES, BUDGETS)
def nothing_in_it(rng: Rng, text: bytes) -> bytes:
    return _pick(rng, (b"", b"\n", b" \t\r\n" * 50, b"\0" * 100, b"\xef\xbb\xbf", b"null", b"[]",
                       b"{}", b"0"))  # fmt: skip


# Corpora.


@_into(CORPORA)
def long_line(rng: Rng, text: bytes) -> bytes:
    return text + b"w1" * int(_pick(rng, (10_000, 1_000_000))) + b"\n"


@_into(CORPORA)
def many_lines(rng: Rng, text: bytes) -> bytes:
    return _pick(rng, (b"\n", b"1\n", b"w1\r\n", b"\r")) * int(_pick(rng, (100, 3000)))


@_into(CORPORA)
def ids(rng: Rng, text: bytes) -> bytes:
    words = text.split()
    strange = ("12", "-1", "0", "999999999999999999", "9" * 30, "1.5", "1e3", "0x1", "٣", "²",
               "007", "+1", "nan", "w1", "<unk>", "<eos>", "11")  # fmt: skip
    for _ in range(int(rng.integers(1, 4))):
        words[int(rng.integers(len(words)))] = _pick(rng, strange).encode()
    return b" ".join(words)


@_into(CORPORA)
def short(rng: Rng, text: bytes) -> bytes:
    return b" ".join(text.split()[: int(rng.integers(6))])


@_into(CORPORA)
def one_word(rng: Rng, text: bytes) -> bytes:
    return (_pick(rng, text.split()) + b" ") * int(rng.integers(1, 60))


@_into(CORPORA)
def words_shuffled(rng: Rng, text: bytes) -> bytes:
    words = text.split()
    return b"".join(words[i] + _pick(rng, (b" ", b"\n", b"\t", b"\r\n", b"\xc2\xa0"))
                    for i in rng.permutation(len(words)))  # fmt: skip


@_into(CORPORA)
def binary(rng: Rng, text: bytes) -> bytes:
    return _pick(rng, (b"\x1f\x8b", b"PK\x03\x04", b"\x89HDF\r\n", b"")) + rng.bytes(500)


# JSON: roles.

_VALUES = (None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1e308, 0.5, "", "x", "\0", "é/",
           "x" * 100_000, [], {}, [[]], {"a": 1}, [None], "embedding", "delay", "h",
           float("nan"), float("inf"))  # fmt: skip


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        found.append((value, key))
        if isinstance(value[key], dict | list):
            found += _places(value[key])
    return found


def damaged_json(rng: Rng, text: str) -> str:
    """JSON with one to three damages, or text that is no JSON."""
    data = json.loads(text)
    if not isinstance(data, dict | list):
        return text
    kind = int(rng.integers(12))
    if kind == 0:
        return text[: int(rng.integers(len(text)))]
    if kind == 1:
        return _pick(
            rng,
            (
                "[" * 100_000,
                '{"a":' * 100_000,
                "1" * 100_000,
                '"' + "x" * 10,
                "NaN",
                '{"version": 1, "version": 1}',
                "null",
                '"\\ud800"',
                "[1,]",
                "",
            ),
        )
    for _ in range(int(rng.integers(1, 4))):
        container, key = _pick(rng, _places(data))
        what = int(rng.integers(4))
        if what == 0:
            del container[key]
        elif what == 1 and isinstance(container, dict):
            container[_pick(rng, ("extra", "", "x" * 1000, "é", "name"))] = container[key]
        elif what == 2 and isinstance(container, list):
            container.append(container[key])
        else:
            container[key] = _pick(rng, _VALUES)
        if not data:
            break
    made = json.dumps(data, ensure_ascii=bool(rng.integers(2)))
    if kind == 2:  # a key that stands twice, a huge exponent, half a surrogate pair
        made = made.replace(": 0", _pick(rng, (": 1e999", ": -0.0", ": 1e-999", ": 0E0")))
        made = made.replace('"h"', '"\\ud83d"', 1)
    return made.encode("utf-8", "ignore").decode()


@_into(ROLES)
def damaged(rng: Rng, text: bytes) -> bytes:
    return damaged_json(rng, text.decode()).encode()


@_into(ROLES)
def key_missing(rng: Rng, text: bytes) -> bytes:
    data = json.loads(text)
    container, key = _pick(rng, [p for p in _places(data) if isinstance(p[0], dict)])
    del container[key]
    return json.dumps(data).encode()


@_into(ROLES)
def value_replaced(rng: Rng, text: bytes) -> bytes:
    data = json.loads(text)
    container, key = _pick(rng, _places(data))
    container[key] = _pick(rng, _VALUES)
    return json.dumps(data).encode()


@_into(ROLES)
def names_exchanged(rng: Rng, text: bytes) -> bytes:
    data = json.loads(text)
    places = [p for p in _places(data) if isinstance(p[0][p[1]], str)]
    (a, i), (b, j) = _pick(rng, places), _pick(rng, places)
    a[i], b[j] = b[j], a[i]
    return json.dumps(data).encode()


@_into(ROLES)
def axes(rng: Rng, text: bytes) -> bytes:
    data = json.loads(text)
    for state in data["states"]:
        state[_pick(rng, ("batch_axis", "layer_axis", "layer_index", "layer"))] = _pick(
            rng, (0, 1, 2, 3, 50, 2**31 - 1)
        )
    return json.dumps(data).encode()


@_into(ROLES)
def many_states(rng: Rng, text: bytes) -> bytes:
    data = json.loads(text)
    count = int(_pick(rng, (2, 100, 20_000)))
    data["states"] = [{**data["states"][0], "name": f"s{i}"} for i in range(count)]
    return json.dumps(data).encode()


def good_roles(model: onnx.ModelProto) -> bytes:
    """The role file of a base model."""
    return next(p.value for p in model.metadata_props if p.key == ROLES_KEY).encode()


# TOML: budgets.


def good_budget() -> bytes:
    """A budget that every base model's check can read."""
    return (
        b'sigma = 2.0\nnormalization = "whitened"\n\n[analysis]\ndelays = 3\n\n'
        b"[[horizon]]\nfraction = 0.001\nat_least = 0\n\n"
        b'[[sigma1]]\nname = "nothing explodes"\ndelay = [0, 1]\nat_most = 1000.0\n\n'
        b"[[selectivity]]\ndelay = 1\nat_least = 0.01\n"
    )


@_into(BUDGETS)
def number_replaced(rng: Rng, text: bytes) -> bytes:
    numbers = ("nan", "inf", "-1", "1e400", "9" * 40, '"x"', "true", "[]", "{}", "1979-05-27",
               "0x10", "-0.0")  # fmt: skip
    lines = text.decode().split("\n")
    at = _pick(rng, [i for i, line in enumerate(lines) if "=" in line])
    lines[at] = lines[at].split("=")[0] + "= " + _pick(rng, numbers)
    return "\n".join(lines).encode()


@_into(BUDGETS)
def line_changed(rng: Rng, text: bytes) -> bytes:
    lines = text.decode().split("\n")
    at = int(rng.integers(len(lines)))
    kind = int(rng.integers(4))
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[at])
    elif kind == 2:
        lines.insert(at, _pick(rng, ("unknown = 1", "[x]", "[[x]]", "a.b.c = 1", "= 1", "[", '"')))
    else:
        lines[at] = lines[at].replace("sigma", "sgima").replace("delay", "delya")
    return "\n".join(lines).encode()


@_into(BUDGETS)
def deep(rng: Rng, text: bytes) -> bytes:
    n = int(_pick(rng, (50, 500, 100_000)))
    return text + _pick(rng, (b"a = " + b"[" * n, b"[" + b"a." * n + b"a]", b"a = " + b"{a=" * n,
                              b"a = '''" + b"x" * n))  # fmt: skip
