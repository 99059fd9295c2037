"""What a property is asked to be: from the command line or a TOML file of many.

``docs/properties.md`` has the format.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ._files import printable
from ._toml import parse_toml
from .errors import PropertyError
from .lexicon import Members

_MOST_BYTES = 10_000_000
_SIGNS = {"+": 1.0, "-": -1.0, "−": -1.0}


@dataclass(frozen=True)
class Side:
    """One side of a difference: classes of the result, or words."""

    classes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """A short name."""
        if self.classes:
            return "+".join(self.classes)
        return "+".join(self.words[:3]) + ("…" if len(self.words) > 3 else "")


@dataclass(frozen=True)
class Spec:
    """A property as it was asked for.

    Exactly one of three is given: the two sides of a difference; signed words; or a suffix, for
    the difference between words that end on it and the same words without it.

    Attributes:
        name: For tables and legends.
        a: One side of a difference.
        b: The other.
        terms: Signs and words of embedding arithmetic.
        suffix: Such as ``'s``.
        group: Whose gradient; None leaves that to the caller.
        members: Which types a class has; None leaves that to the caller.
    """

    name: str
    a: Side | None = None
    b: Side | None = None
    terms: tuple[tuple[float, str], ...] = ()
    suffix: str | None = None
    group: str | None = None
    members: Members | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes of both sides; empty unless both sides are classes."""
        if self.a is None or self.b is None or not (self.a.classes and self.b.classes):
            return ()
        return tuple(dict.fromkeys((*self.a.classes, *self.b.classes)))


def read_word_list(text: str) -> tuple[str, ...]:
    """Read words from a file, separated by white space, or from a list with commas.

    Without a comma, a name that exists as a file, or looks like one (it holds a separator of
    folders or ends in ``.txt``), is a file.

    Raises:
        PropertyError: The file cannot be read, or there is no word.
    """
    path = Path(text)
    if "\0" in text or not text.strip():
        raise PropertyError("A list of words is empty; give word,word,… or the name of a file.")
    # Words may hold a slash and a list may be longer than a file's name: with a comma, it is one.
    if "," not in text and (os.sep in text or path.suffix.lower() == ".txt" or _is_file(path)):
        words = _read(path, "a list of words").split()
    else:
        words = [w.strip() for w in text.split(",") if w.strip()]
    if not words:
        raise PropertyError(f"There is no word in {printable(text)}; give at least one.")
    return tuple(dict.fromkeys(words))


def read_classes(text: str) -> tuple[str, ...]:
    """Read names of classes, separated by commas."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise PropertyError("A list of classes is empty; give CLASS,CLASS,… .")
    return names


def read_arithmetic(text: str) -> tuple[tuple[float, str], ...]:
    """Read embedding arithmetic such as ``king - man + woman``.

    White space must surround the signs, since a token may hold + and - itself. (A token that is
    a sign can be named in a file only: ``plus`` and ``minus``.)

    Raises:
        PropertyError: Two words or two signs follow each other, or fewer than two words are left.
    """
    parts = text.split()
    expected = (
        "Expected words with a sign between any two, as in 'king - man + woman', and found "
        f"{text!r}: "
    )
    terms: list[tuple[float, str]] = []
    sign: float | None = 1.0  # the first word needs none
    for i, part in enumerate(parts):
        if part in _SIGNS and (sign is None or i == 0):
            sign = _SIGNS[part]
        elif part in _SIGNS:
            raise PropertyError(f"{expected}two signs follow each other. Remove one.")
        elif sign is None:
            raise PropertyError(f"{expected}{part!r} follows a word. Put + or - before it.")
        else:
            terms.append((sign, part))
            sign = None
    if sign is not None and parts:
        raise PropertyError(f"{expected}a word is missing at the end.")
    if len(terms) < 2:
        hint = " Put spaces around the signs." if len(parts) == 1 else ""
        raise PropertyError(f"{expected}a direction needs at least two words.{hint}")
    return tuple(terms)


def read_properties(path: str | os.PathLike[str]) -> list[Spec]:
    """Read a TOML file of properties.

    Raises:
        PropertyError: It cannot be read, or holds what no property has.
    """
    shown = printable(path)
    tables = read_tables(path, "property", "a file of properties")
    specs = [_spec(table, where) for where, table in tables.items()]
    names = [s.name for s in specs]
    for name in names:
        if names.count(name) > 1:
            raise PropertyError(f"{shown} names two properties {name!r}; give each its own name.")
    return specs


def read_tables(path: str | os.PathLike[str], key: str, what: str) -> dict[str, dict[str, Any]]:
    """Read a TOML file of nothing but tables of one name.

    Args:
        path: Of the file.
        key: The name, as in ``[[key]]``.
        what: The file is called in messages.

    Returns:
        What each is called in messages → the table.

    Raises:
        PropertyError: It cannot be read, or holds something else or nothing.
    """
    shown = printable(path)
    try:
        data = parse_toml(_read(Path(path), what))
    except ValueError as error:
        raise PropertyError(f"{shown} is no TOML file: {error}. Correct it.") from None
    if set(data) != {key} or not isinstance(data[key], list) or not data[key]:
        raise PropertyError(
            f"{shown} must hold one or more [[{key}]] tables and nothing else; it holds "
            f"{', '.join(map(repr, data)) or 'nothing'}."
        )
    tables = {f"[[{key}]] {i} of {shown}": table for i, table in enumerate(data[key], 1)}
    for where, table in tables.items():
        if not isinstance(table, dict):
            raise PropertyError(f"{where} must be a table.")
    return tables


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long for a name
        return False


def _read(path: Path, what: str) -> str:
    shown = printable(path)
    try:
        if not path.is_file():
            raise PropertyError(f"Expected {what}; there is no file {shown}. Check the path.")
        if path.stat().st_size > _MOST_BYTES:
            raise PropertyError(f"{shown} is larger than {_MOST_BYTES:,} bytes; that is no {what}.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PropertyError(f"{shown} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise PropertyError(f"{shown} is not UTF-8 text. Convert it to UTF-8 first.") from None


_KEYS = {
    "name": str, "a": list, "b": list, "a_words": list, "b_words": list, "direction": str,
    "plus": list, "minus": list, "suffix": str, "group": str, "members": str,
}  # fmt: skip
_FORMS = (
    {"a", "b"}, {"a_words", "b_words"}, {"a", "b_words"}, {"a_words", "b"},
    {"direction"}, {"plus", "minus"}, {"plus"}, {"suffix"},
)  # fmt: skip


def _spec(table: dict[str, Any], where: str) -> Spec:
    check_keys(table, _KEYS, where)
    given = {k for k in table if k not in ("name", "group", "members")}
    if given not in _FORMS:
        raise PropertyError(
            f"{where} must say what it is by a and b (classes), a_words and b_words, direction, "
            f"plus and minus, or suffix; it has {', '.join(sorted(given)) or 'none of them'}."
        )
    return make_spec(table, where)


def make_spec(table: Mapping[str, Any], where: str) -> Spec:
    """Make a property of what a table or the options of a command say.

    Raises:
        PropertyError: A value is not what it must be.
    """
    members = table.get("members")
    if members not in (None, "main", "every"):
        raise PropertyError(f'{where}: members must be "main" or "every", not {members!r}.')
    found = Spec(
        name="",
        a=_side(table, "a", where),
        b=_side(table, "b", where),
        terms=(
            read_arithmetic(table["direction"])
            if "direction" in table
            else tuple(
                (sign, word)
                for key, sign in (("plus", 1.0), ("minus", -1.0))
                for word in _texts(table.get(key, []), f"{where}: {key}", empty=True)
            )
        ),
        suffix=table.get("suffix"),
        group=table.get("group"),
        members=cast("Members | None", members),
    )
    if found.suffix is not None and not found.suffix:
        raise PropertyError(f"{where}: the suffix is empty; give an ending such as 's.")
    if not found.a and not found.suffix and len(found.terms) < 2:
        raise PropertyError(f"{where}: plus and minus must name at least two words together.")
    name = table.get("name") or _name(found)
    return Spec(**{**vars(found), "name": name})


def _name(spec: Spec) -> str:
    if spec.a is not None and spec.b is not None:
        return f"{spec.a.label} − {spec.b.label}"
    if spec.suffix:
        return f"words with and without {spec.suffix}"
    signs = [("+ " if sign > 0 else "− ") + word for sign, word in spec.terms]
    return " ".join(signs).removeprefix("+ ")


def _side(table: Mapping[str, Any], side: str, where: str) -> Side | None:
    if side in table:
        return Side(classes=_texts(table[side], f"{where}: {side}"))
    if f"{side}_words" in table:
        return Side(words=_texts(table[f"{side}_words"], f"{where}: {side}_words"))
    return None


def _texts(values: Sequence[Any], where: str, *, empty: bool = False) -> tuple[str, ...]:
    if not all(isinstance(v, str) and v.strip() for v in values) or not (values or empty):
        raise PropertyError(f"{where} must be a list of texts that are not empty.")
    return tuple(values)


def check_keys(table: Mapping[str, Any], keys: Mapping[str, type], where: str) -> None:
    """Refuse keys that mean nothing, and values of another type.

    Raises:
        PropertyError: With the key.
    """
    for key, value in table.items():
        if key not in keys:
            raise PropertyError(f"{where} has no key {key!r}; its keys are {', '.join(keys)}.")
        if not isinstance(value, keys[key]):
            kind = "a list of texts" if keys[key] is list else "a text"
            raise PropertyError(f"{where}: {key} must be {kind}, not {value!r:.60}.")
