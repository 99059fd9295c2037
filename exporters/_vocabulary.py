"""A vocabulary from a file or a list, with its special tokens guessed where nobody names them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnemoscope.analyzer.errors import ModelError
from mnemoscope.analyzer.roles import Level, Vocabulary

UNKNOWN = ("<unk>", "<UNK>", "[UNK]", "<unknown>")
_KERAS_RESERVED = ("<pad>", "[UNK]")
_NO_VOCABULARY = "No --vocabulary: a corpus for this model must hold token ids, not words."
END_OF_LINE = ("<eos>", "</s>", "<EOS>")


@dataclass(frozen=True)
class VocabularyOptions:
    """What a user says of a model's tokens; None always means: find out.

    Attributes:
        source: A UTF-8 file in any form that `read_tokens` knows, or the tokens.
        level: ``word`` or ``char``; None takes ``char`` when all tokens but the special ones are
            single characters.
        unknown: Token that stands for every other; None looks for a usual name.
        end_of_line: Token that ends a line; None looks for a usual name, or the newline
            character at character level.
    """

    source: str | os.PathLike[str] | Sequence[str] | Vocabulary | None = None
    level: Level | None = None
    unknown: str | None = None
    end_of_line: str | None = None

    def make(
        self, size: int, *, keras_reserved: bool = False, notes: list[str] | None = None
    ) -> Vocabulary | None:
        """The vocabulary of `size` tokens; None without a source.

        Args:
            size: V, the width of the logits.
            keras_reserved: Put ``<pad>`` and ``[UNK]``, which Keras reserves and lists of its
                tokens may leave out, before the tokens of a JSON file that lacks just these two
                and names no token for unknown words.
            notes: Is told when that was done, or that there is no source.

        Raises:
            ModelError: The file cannot be read, its length is not `size`, a token comes twice,
                or a special token is not in it.
        """
        source, level, unknown, end_of_line = (
            self.source, self.level, self.unknown, self.end_of_line
        )  # fmt: skip
        if source is None:
            if notes is not None:
                notes.append(_NO_VOCABULARY)
            return None
        if isinstance(source, Vocabulary):
            tokens = list(source.tokens)
            level = level or source.level
            unknown = unknown if unknown is not None else source.unknown
            end_of_line = end_of_line if end_of_line is not None else source.end_of_line
        elif isinstance(source, (str, os.PathLike)):
            path = Path(source)
            tokens = read_tokens(path)
            named = {"<pad>", unknown, *UNKNOWN} & {*tokens}
            short = len(tokens) == size - len(_KERAS_RESERVED)
            if keras_reserved and short and not named and _is_json(path):
                tokens = [*_KERAS_RESERVED, *tokens]
                if notes is not None:
                    notes.append(
                        f"The vocabulary has two tokens less than the model's {size:,} logits: "
                        "<pad> and [UNK], which Keras reserves, were put before them as ids 0 and "
                        "1."
                    )
        else:
            tokens = list(source)
            if not all(isinstance(t, str) for t in tokens):
                wrong = next(t for t in tokens if not isinstance(t, str))
                raise ModelError(f"Expected a vocabulary of strings, found the token {wrong!r}.")
        if len(tokens) != size:
            raise ModelError(
                f"The vocabulary has {len(tokens)} tokens, the model's logits have {size}; "
                "expected one token per logit, in the order of the ids. Is it another model's "
                "vocabulary, or is the output layer padded? Then name the unused ids too."
            )
        if level is None:
            special = {*UNKNOWN, *END_OF_LINE, "<pad>", "<bos>", "<s>", unknown, end_of_line}
            rest = [t for t in tokens if t not in special]
            level = "char" if rest and all(len(t) == 1 for t in rest) else "word"
        if unknown is None:
            unknown = next((t for t in UNKNOWN if t in tokens), None)
        if end_of_line is None:
            usual = (*END_OF_LINE, "\n") if level == "char" else END_OF_LINE
            end_of_line = next((t for t in usual if t in tokens), None)
        return Vocabulary(tuple(tokens), level, unknown, end_of_line)


def read_tokens(path: Path) -> list[str]:
    r"""Read the tokens of a vocabulary file, in the order of their ids.

    Forms: one token a line (the line ``\n`` stands for the newline character); JSON: a list of
    tokens, an object token → id or id → token, also inside ``model.vocab`` or ``vocab`` or
    ``vocabulary``; what Keras' StringLookup and TextVectorization give out, a list that starts
    with ``""`` and ``[UNK]``; ``token id`` lines (``words.txt``, ``tokens.txt`` of Kaldi and
    icefall); SentencePiece's ``.vocab``, ``token<TAB>score`` lines.

    Args:
        path: UTF-8 text; a byte-order mark is passed over.

    Raises:
        ModelError: The file cannot be read, is no such list, or its ids are not 0, 1, 2, ...
    """
    text = _text(path)
    if _is_json(path, text):
        found = _from_json(path, text)
        if found is not None:
            return found
    # Not splitlines: a token may be one of the exotic separators that it splits at.
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    for form in (_numbered, _scored):
        found = form(lines)
        if found is not None:
            return found
    return _named_padding(["\n" if line == "\\n" else line for line in lines])


def _is_json(path: Path, text: str | None = None) -> bool:
    """By its name, or by how it begins."""
    if path.suffix.lower() == ".json":
        return True
    return (_text(path) if text is None else text).lstrip()[:1] in ("{", "[")


def _from_json(path: Path, text: str) -> list[str] | None:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        if path.suffix.lower() != ".json":
            return None  # a plain list whose first token is a bracket
        raise ModelError(
            f"The vocabulary {str(path)!r} is not JSON: {str(error)[:200]}."
        ) from error
    for keys in (("model", "vocab"), ("vocab",), ("vocabulary",), ("config", "vocabulary")):
        inner: Any = data
        for key in keys:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, (dict, list)):
            data = inner
            break
    if isinstance(data, list):
        if not all(isinstance(t, str) for t in data):
            wrong = next(t for t in data if not isinstance(t, str))
            raise ModelError(
                f"The vocabulary {str(path)!r} must be a list of strings; it holds {wrong!r:.40}."
            )
        return _named_padding(list(data))
    if isinstance(data, dict) and data:
        if all(isinstance(v, int) and not isinstance(v, bool) for v in data.values()):
            pairs = [(v, k) for k, v in data.items()]
        elif all(isinstance(v, str) and re.fullmatch(r"\d{1,9}", k) for k, v in data.items()):
            pairs = [(int(k), v) for k, v in data.items()]
        else:
            pairs = []
        if pairs:
            return _named_padding(_in_order(pairs, str(path)))
    raise ModelError(
        f"The vocabulary {str(path)!r} is JSON, but neither a list of tokens nor an object from "
        "token to id or from id to token."
    )


def _in_order(pairs: list[tuple[int, str]], where: str) -> list[str]:
    pairs.sort()
    for expected, (number, token) in enumerate(pairs):
        if number != expected:
            raise ModelError(
                f"The ids of the vocabulary {where!r} must be 0, 1, 2, ... without gaps; where "
                f"{expected} should be, {token!r:.40} has {number}."
            )
    return [token for _, token in pairs]


def _numbered(lines: list[str]) -> list[str] | None:
    """``token id`` on every line, the ids a permutation of 0, 1, 2, ...; None otherwise."""
    pairs = []
    for line in lines:
        # Ids stay small: a year beside a word is no id.
        match = re.fullmatch(r"(.*\S|)[ \t]+(\d{1,9})\s*", line)
        if match is None:
            return None
        pairs.append((int(match[2]), match[1]))
    if sorted(n for n, _ in pairs) != list(range(len(pairs))):
        return None
    return [token for _, token in sorted(pairs)]


def _scored(lines: list[str]) -> list[str] | None:
    """``token<TAB>score`` on every line, as SentencePiece writes it; None otherwise."""
    parts = [line.rsplit("\t", 1) for line in lines]
    number = r"-?\d+(\.\d+)?([eE][-+]?\d+)?"
    if not lines or not all(len(p) == 2 and re.fullmatch(number, p[1]) for p in parts):
        return None
    return [p[0] for p in parts]


def _named_padding(tokens: list[str]) -> list[str]:
    """Keras gives padding the empty string; ``<pad>`` says what it is."""
    return ["<pad>", *tokens[1:]] if tokens[:1] == [""] and "<pad>" not in tokens else tokens


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ModelError(f"Cannot read the vocabulary {str(path)!r}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ModelError(
            f"The vocabulary {str(path)!r} is not UTF-8 (byte {error.start}); expected a text "
            "file with one token a line."
        ) from error
